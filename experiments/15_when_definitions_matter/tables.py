"""The tables of README.md, from the steps of every run and the metrics of every audit.

    python tables.py [RUNS_OR_AUDITS ...]

Adds what finished in the directories given to ``steps.csv.gz`` and ``audits.csv.gz`` beside this
file, then prints every table from these two alone.
"""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import segcredit
from segcredit import registry
from segcredit.registry import plugin_label
from segcredit.study.statistics import paired
from segcredit.study.statistics.intervals import student_interval

HERE = Path(__file__).parent
STEPS, AUDITS = HERE / "steps.csv.gz", HERE / "audits.csv.gz"
READER, TD = "critic(network=reader)", "whitened(inner=td)"
ARM = ["task", "method", "definition", "critic", "credit", "ratio"]
"""What tells arms apart; their seeds are paired."""
MEASURED = [
    *("step", "reward", "accuracy", "entropy", "segments_per_completion", "clamped_share"),
    *("token_explained_variance", "cpu_seconds", "pretraining_cpu_seconds"),
]
UNIFORM = {
    "entropy": "random",
    "entropy(fork=starts)": "random",
    "entropy(top_fraction=0.15, fork=isolate)": "random",
    "probability": "random",
    "fixed_length(tokens=3)": "random",
    "entropy(top_fraction=0.15)": "random(fraction=0.15)",
    "newline": "random(fraction=0.15)",
}
"""Definitions, and uniform cuts of about as many segments."""
PLANNED = {"arithmetic with filler": 10, "route": 5}
"""Last of the planned seeds; those beyond are fresh, drawn to try a lead again."""
ABLATED = [
    ({"definition": "entropy", "ratio": "segment"}, {"definition": "entropy"}),
    ({"definition": "newline", "ratio": "segment"}, {"definition": "newline"}),
    ({"definition": "entropy", "ratio": "sequence"}, {"definition": "entropy"}),
    ({"definition": "entropy(top_fraction=0.05)"}, {"definition": "entropy"}),
    ({"definition": "entropy(top_fraction=0.5)"}, {"definition": "entropy"}),
]
"""The questions of experiments/05 with this critic: an arm, and what it is compared with."""
FORETELLERS = {
    ("credit", "gradient", "credit_noise_ratio"): -1,
    ("credit", "gradient", "correlation"): 1,
    ("credit", "gradient", "slope"): 1,
    ("credit", "token", "correlation"): 1,
    ("credit", "gradient", "sharpening"): -1,
    ("movement", "gradient", "true_noise_ratio"): -1,
    ("movement", "", "segments"): 1,
}
"""Metrics of an audit, with 1 where more should be better and -1 where less should."""


def steps_of(directory: Path) -> pd.DataFrame:
    """Reads one finished run: a row a step, with the arm and the seed."""
    config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
    task = {key: value for key, value in config["task"].items() if key != "filler"}
    arm = {
        "task": plugin_label(registry.tasks, task)
        + " with filler" * config["task"].get("filler", False),
        "method": config["method"],
        "definition": plugin_label(registry.segmenters, config["segmenter"]),
        "critic": plugin_label(registry.estimators, config["estimator"]),
        "credit": plugin_label(registry.advantages, config["advantage"]),
        "ratio": plugin_label(registry.ratios, config["loss"]["ratio"]),
        "seed": config["seed"],
    }
    steps = segcredit.read_runs(directory).steps
    return steps.reindex(columns=MEASURED).assign(**arm)


def audited(directory: Path) -> pd.DataFrame:
    """Reads one audit: a row a definition, critic and metric that might foretell."""
    config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
    table = segcredit.read_runs(directory).audit
    table = table.astype(dict.fromkeys(("segmenter", "estimator", "section", "at", "metric"), str))
    keys = pd.MultiIndex.from_frame(table[["section", "at", "metric"]])
    found = table[keys.isin(list(FORETELLERS))]
    columns = ["segmenter", "estimator", "section", "at", "metric", "value", "low", "high"]
    name = config["task"]["name"] + " with filler" * config["task"].get("filler", False)
    return found[columns].assign(task=name, seed=config["seed"])


def add(file: Path, rows: list[pd.DataFrame], key: list[str]) -> pd.DataFrame:
    """Adds rows to a table on disk, in the place of those with the same key."""
    known = [pd.read_csv(file)] if file.exists() else []
    for table in known:
        if "ratio" in key and "ratio" not in table:
            table["ratio"] = "token"  # written before any run had another
    if not rows:
        return pd.concat(known)
    table = pd.concat([*known, *rows]).drop_duplicates(key, keep="last").sort_values(key)
    table.round(5).to_csv(file, index=False, compression={"method": "gzip", "mtime": 0})
    return pd.read_csv(file)


def collected(paths: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the steps of all runs and the metrics of all audits, those at ``paths`` added."""
    runs, audits = [], []
    for status in (file for path in paths for file in path.rglob("status.json")):
        if '"finished"' not in status.read_text(encoding="utf-8"):
            continue
        is_audit = (status.parent / "audit.parquet").exists()
        (audits if is_audit else runs).append((audited if is_audit else steps_of)(status.parent))
    return (
        add(STEPS, runs, [*ARM, "seed", "step"]),
        add(AUDITS, audits, ["task", "seed", "section", "at", "metric", "segmenter", "estimator"]),
    )


def measures(steps: pd.DataFrame) -> pd.DataFrame:
    """Computes one row a run: mean reward over all steps, and accuracy at the end."""
    runs = steps.sort_values("step").groupby([*ARM, "seed"], dropna=False)
    found = runs.agg(
        reward=("reward", "mean"),
        accuracy=("accuracy", "last"),
        start=("accuracy", "first"),
        entropy=("entropy", "last"),
        segments=("segments_per_completion", "mean"),
        clamped=("clamped_share", "mean"),
        cpu_seconds=("cpu_seconds", "max"),
        pretraining=("pretraining_cpu_seconds", "max"),
    )
    return found.reset_index()


def matching(runs: pd.DataFrame, arm: dict[str, str]) -> pd.DataFrame:
    """Returns the runs of an arm."""
    return runs[np.logical_and.reduce([runs[key] == value for key, value in arm.items()])]


def difference(runs: pd.DataFrame, a: dict[str, str], b: dict[str, str], by: str) -> dict[str, Any]:
    """Computes b less a over the seeds that both arms have."""
    of = [matching(runs, arm).set_index("seed")[by] for arm in (a, b)]
    found = (of[1] - of[0]).dropna()
    low, high = student_interval(found) if len(found) > 1 else (np.nan, np.nan)
    return {
        "difference": found.mean(),
        "low": low,
        "high": high,
        "seeds": len(found),
        "p, signs": paired.sign_flip_p(found),
        "p": paired.student_p(found),
        "seeds needed": paired.seeds_needed(found) if len(found) > 1 else np.nan,
    }


def planned(runs: pd.DataFrame, task: str, by: str) -> pd.DataFrame:
    """Compares definitions with ``grpo``, with a token a segment, and with as many uniform cuts.

    All with one reader and lambda 0. Student's p of each of the three questions are corrected for
    their number (Holm); an exact p of signs cannot be below .002 for ten seeds.
    """
    td = {"task": task, "critic": READER, "credit": TD, "ratio": "token"}
    grpo = {"task": task, "method": "grpo"}
    own = matching(runs, td)
    of = own.groupby("definition")["reward"].agg(["mean", "size"]).sort_values("mean")
    names = list(of[of["size"] >= PLANNED[task]].index[::-1])
    found = []
    for baseline in (grpo, {**td, "definition": "per_token"}, None):
        rows = []
        for name in names:
            other = baseline or {**td, "definition": UNIFORM.get(name, name)}
            less = other.get("definition", "grpo")
            if name != less:
                pair = difference(runs, other, {**td, "definition": name}, by)
                rows.append({"definition": name, "less": less, **pair})
        table = pd.DataFrame(rows)
        found.append(table.assign(corrected=paired.holm(table["p"])))
    return pd.concat(found)


def varied(runs: pd.DataFrame, task: str, by: str) -> pd.DataFrame:
    """Compares other credit and ratios with lambda 0 and the token ratio, by definition."""
    base = {"task": task, "critic": READER, "credit": TD, "ratio": "token"}
    own = matching(runs, {"task": task, "critic": READER})
    rows = []
    for names, _ in own.groupby(["definition", "credit", "ratio"]):
        arm = base | dict(zip(("definition", "credit", "ratio"), map(str, names), strict=True))
        if arm | base != arm:
            other = base | {"definition": arm["definition"]}
            rows.append({**arm, **difference(runs, other, arm, by)})
    return pd.DataFrame(rows).drop(columns=["task", "critic"], errors="ignore")


def ablated(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """Compares ratios and shares of cuts, as experiments/05 does; Holm over its five questions."""
    base = {"task": "arithmetic with filler", "critic": READER, "credit": TD, "ratio": "token"}
    rows = [
        {
            **base,
            **arm,
            "less": other["definition"],
            **difference(runs, base | other, base | arm, by),
        }
        for arm, other in ABLATED
    ]
    table = pd.DataFrame(rows).drop(columns=["task", "critic", "credit"])
    return table.assign(corrected=paired.holm(table["p"]))


def led(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """Compares definitions with as many uniform cuts over the pairs of both tasks together."""
    rows = []
    for name, uniform in UNIFORM.items():
        pairs = []
        for task in PLANNED:
            td = {"task": task, "critic": READER, "credit": TD, "ratio": "token"}
            of = [
                matching(runs, td | {"definition": d}).set_index("seed")[by]
                for d in (name, uniform)
            ]
            pairs.append((of[0] - of[1]).dropna())
        if len(found := pd.concat(pairs)) > 1:
            low, high = student_interval(found)
            rows.append([name, found.mean(), low, high, len(found), paired.student_p(found)])
    table = pd.DataFrame(rows, columns=["definition", "difference", "low", "high", "pairs", "p"])
    return table.assign(corrected=paired.holm(table["p"]))


def foretold(
    runs: pd.DataFrame, audits: pd.DataFrame, task: str, draws: int = 2000
) -> pd.DataFrame:
    """Computes the rank correlation over definitions of an audit's metric and the mean reward.

    Spearman's; intervals draw the seeds of audits and of training anew.
    """
    own = matching(runs, {"task": task, "critic": READER, "credit": TD, "ratio": "token"})
    reward = own.pivot_table("reward", "seed", "definition").dropna()
    chance, rows = np.random.default_rng(0), []
    table = audits[(audits["task"] == task)].fillna({"estimator": "", "at": ""})
    for (section, at, metric), sign in FORETELLERS.items():
        of = table[
            (table["section"] == section) & (table["at"] == at) & (table["metric"] == metric)
        ]
        for critic, each in of.groupby("estimator", sort=False):
            values = sign * each.pivot_table("value", "seed", "segmenter")
            shared = reward.columns.intersection(values.columns)
            a, b = values[shared].to_numpy(), reward[shared].to_numpy()

            def agreement(at_a: Any, at_b: Any, a: Any = a, b: Any = b) -> float:
                means = pd.Series(a[at_a].mean(0)), pd.Series(b[at_b].mean(0))
                return float(means[0].corr(means[1], method="spearman"))

            drawn = [
                agreement(*(chance.choice(len(x), len(x)) for x in (a, b))) for _ in range(draws)
            ]
            low, high = np.nanquantile(drawn, [0.025, 0.975])
            whole = agreement(slice(None), slice(None))
            rows.append([metric, at, critic, whole, low, high, len(shared), len(a)])
    columns = ["metric", "at", "critic", "rank correlation", "low", "high", "definitions", "audits"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    """Collects, and prints every table."""
    steps, audits = collected([Path(name) for name in sys.argv[1:]])
    every = measures(steps)
    is_fresh = every["seed"] > every["task"].map(PLANNED)
    runs, fresh = every[~is_fresh], every[is_fresh]
    for by in ("reward", "accuracy"):
        for what, of in (("planned", runs), ("fresh", fresh)):
            print(f"\n{what} pairs of both tasks, less as many uniform cuts, {by}")
            print(led(of, by).round(4).to_string(index=False))
    arms = runs.groupby(ARM).agg(
        dict.fromkeys(runs.columns[len(ARM) + 1 :], "mean") | {"seed": "size"}
    )
    print(arms.round(3).to_string())
    for by in ("reward", "accuracy"):
        print(f"\nexperiments/05 with this critic, {by}")
        print(ablated(runs, by).round(5).to_string(index=False))
    for task in dict.fromkeys(runs["task"]):
        for by in ("reward", "accuracy"):
            print(f"\n{task}: paired differences of {by}, {READER}, {TD}")
            print(planned(runs, task, by).round(4).to_string(index=False))
            print(f"\n{task}: other credit and ratios less {TD} and the token's, {by}")
            print(varied(runs, task, by).round(4).to_string(index=False))
        if not audits.empty and (audits["task"] == task).any():
            print(f"\n{task}: does the audit's order foretell training's?")
            print(foretold(runs, audits, task).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
