"""The tables of README.md: training by definition, planned differences, and what audits foretold.

    python tables.py TASK RUNS [AUDITS]

RUNS has the cells of definitions.toml and grpo.toml on one task, AUDITS a directory a seed of
audit.toml. Writes one row a run and one row an audited definition to ``TASK_runs.csv`` and
``TASK_audits.csv`` beside this file.
"""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportArgumentType=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import segcredit
from segcredit.records.tables import Runs
from segcredit.study.statistics.comparison import compare
from segcredit.study.statistics.paired import holm

HERE = Path(__file__).parent
TOKEN, GRPO = "per_token", "grpo"
UNIFORM = {
    "entropy(top_fraction=0.3)": "random(fraction=0.3)",
    "entropy(fork=starts, top_fraction=0.3)": "random(fraction=0.3)",
    "entropy(fork=isolate, top_fraction=0.15)": "random(fraction=0.3)",
    "probability": "random(fraction=0.3)",
    "fixed_length(tokens=3)": "random(fraction=0.3)",
    "entropy(top_fraction=0.15)": "random(fraction=0.15)",
    "newline": "random(fraction=0.15)",
}
"""Definitions, and uniform cuts of about as many segments."""
MEASURES = {"mean reward": ("reward", "area"), "accuracy at the end": ("accuracy", "last")}
FORETELLERS = {
    "credit noise, gradient": ("credit", "gradient", "credit_noise_ratio", -1),
    "correlation, gradient": ("credit", "gradient", "correlation", 1),
    "correlation, tokens": ("credit", "token", "correlation", 1),
    "slope, gradient": ("credit", "gradient", "slope", 1),
    "EV, tokens": ("values", "tokens", "explained_variance", 1),
    "segments": ("movement", "", "segments", 1),
}
"""Metrics of an audit: section, place, name, and 1 where more is better, -1 where less is."""


def labelled(runs: Runs) -> Runs:
    """Adds the column ``definition``: the segmenter and its options, or ``grpo``."""
    names = []
    for row in runs.runs.to_dict("records"):
        options = {
            name: row.get(f"segmenter.{name}")
            for name in ("fork", "fraction", "tokens", "top_fraction")
        }
        shown = [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in options.items()
            if not pd.isna(value) and value != "ends" and row["segmenter"] != "probability"
        ]
        name = row["segmenter"] + (f"({', '.join(shown)})" if shown else "")
        names.append(GRPO if row["method"] == GRPO else name)
    runs.runs["definition"] = names
    return runs


def share_pretraining(runs: Runs) -> None:
    """Adds to each run's ``cpu_seconds`` its share of the seed's pretraining, equal for its users."""
    users = runs.runs[runs.runs["definition"] != GRPO].groupby("seed").size()
    seeds = runs.runs.set_index(runs.runs["run"].astype(str))["seed"]
    spent = runs.steps.groupby("run", observed=True)["pretraining_cpu_seconds"].transform("max")
    sharing = runs.steps["run"].astype(str).map(seeds).map(users)
    runs.steps["cpu_seconds"] += spent.fillna(0) / sharing


def planned(runs: Runs, metric: str, measure: str, per: str = "step") -> pd.DataFrame:
    """Paired differences from a token a segment, from ``grpo``, and from as many uniform cuts.

    Corrected (Holm) over all of them together.
    """
    found = [
        compare(runs, ["definition"], metric, measure=measure, per=per, baseline=baseline)
        for baseline in (TOKEN, GRPO)
    ]
    for definition, uniform in UNIFORM.items():
        pair = runs.runs[runs.runs["definition"].isin([definition, uniform])]
        if pair["definition"].nunique() == 2:
            two = labelled(runs.select(pair["run"]))
            found.append(
                compare(two, ["definition"], metric, measure=measure, per=per, baseline=uniform)
            )
    table = pd.concat(found, ignore_index=True)
    table = table[~((table["a"] == GRPO) & (table["b"] == TOKEN))]
    adjusted = holm(table["p"].tolist())
    columns = ["a", "b", "difference", "low", "high", "shared_seeds", "p", "seeds_needed"]
    return table[columns].assign(p_adjusted=adjusted)


def rows_of(runs: Runs) -> pd.DataFrame:
    """One row a run: its definition, seed and measures."""
    steps = runs.steps.groupby("run", observed=True)
    found = pd.DataFrame(
        {
            "reward": steps["reward"].mean(),
            "accuracy": steps["accuracy"].last(),
            "start": steps["accuracy"].first(),
            "segments": steps["segments_per_completion"].mean(),
            "cpu_seconds": steps["cpu_seconds"].max(),
            "pretraining_cpu_seconds": steps["pretraining_cpu_seconds"].max(),
        }
    )
    names = runs.runs.set_index("run")[["definition", "seed", "status"]]
    return names.join(found).sort_values(["definition", "seed"]).reset_index(drop=True)


def audited(path: Path) -> pd.DataFrame:
    """One row a definition, estimator and seed, with the metrics that might foretell."""
    rows = []
    for place in sorted(path.iterdir()):
        runs = segcredit.read_runs(place)
        seed = int(runs.runs["seed"].iloc[0])
        table = runs.audit.astype({c: str for c in ("segmenter", "estimator", "section", "at")})
        for name, (section, at, metric, _) in FORETELLERS.items():
            chosen = table[
                (table["section"] == section) & (table["at"] == at) & (table["metric"] == metric)
            ]
            rows += [
                (seed, row.segmenter, row.estimator, name, row.value)
                for row in chosen.itertuples()
            ]
    return pd.DataFrame(rows, columns=["seed", "definition", "estimator", "metric", "value"])


def foretold(runs: pd.DataFrame, audits: pd.DataFrame, draws: int = 2000) -> pd.DataFrame:
    """Spearman's rank correlation over definitions of a metric and the mean reward that came.

    Intervals draw the seeds anew, of audits and of training alike.
    """
    reward = runs[runs["definition"] != GRPO].pivot_table("reward", "seed", "definition")
    chance = np.random.default_rng(0)
    rows = []
    for (metric, estimator), table in audits.groupby(["metric", "estimator"], sort=False):
        values = FORETELLERS[metric][3] * table.pivot_table("value", "seed", "definition")
        shared = reward.columns.intersection(values.columns)
        seeds = reward.index.intersection(values.index)
        a, b = values.loc[seeds, shared].to_numpy(), reward.loc[seeds, shared].to_numpy()

        def agreement(
            at_a: np.ndarray, at_b: np.ndarray, a: np.ndarray = a, b: np.ndarray = b
        ) -> float:
            means = pd.Series(a[at_a].mean(0)), pd.Series(b[at_b].mean(0))
            return float(means[0].corr(means[1], method="spearman"))

        every = np.arange(len(seeds))
        found = [
            agreement(*(chance.choice(every, len(every)) for _ in range(2))) for _ in range(draws)
        ]
        low, high = np.nanquantile(found, [0.025, 0.975])
        rows.append((metric, estimator, agreement(every, every), low, high, len(shared)))
    return pd.DataFrame(
        rows, columns=["metric", "estimator", "rank correlation", "low", "high", "definitions"]
    )


def main() -> None:
    """Writes the rows of runs and audits, and prints every table."""
    task, runs = sys.argv[1], labelled(segcredit.read_runs(sys.argv[2]))
    rows = rows_of(runs)
    rows.round(4).to_csv(HERE / f"{task}_runs.csv", index=False)
    means = rows.groupby("definition").agg(
        {"reward": "mean", "accuracy": "mean", "segments": "mean", "cpu_seconds": "mean", "seed": "size"}
    )
    print(means.sort_values("reward", ascending=False).round(3).to_string())
    for title, (metric, measure) in MEASURES.items():
        print(f"\n{title}: paired differences, b less a, corrected over all")
        print(planned(runs, metric, measure).round(4).to_string(index=False))
    print("\nmean reward at equal CPU-seconds, pretraining shared by a seed's definitions")
    share_pretraining(runs)
    print(planned(runs, "reward", "area", "cpu_seconds").round(4).to_string(index=False))
    if len(sys.argv) > 3:
        audits = audited(Path(sys.argv[3]))
        audits.round(4).to_csv(HERE / f"{task}_audits.csv", index=False)
        print("\nDoes the audit's order foretell training's?")
        print(foretold(rows, audits).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
