"""The tables of README.md: arms beside the strongest that is not by the segment, and every seed.

    python tables.py runs/13/k1 runs/13/k4 runs/13/k16 runs/13/warmer

Adds what finished there to ``runs.csv`` beside this file, then prints every table from it alone.
"""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import segcredit
from segcredit.study.statistics import paired
from segcredit.study.statistics.intervals import student_interval

FILE = Path(__file__).with_name("runs.csv")
KEYS = ["test", "arm", "seed"]
MEASURES = ("measure", "reward")
SETTINGS = {
    "loss.ratio": "",
    "loss.ratio.until": "until=",
    "loss.ratio.since": "since=",
    "loss.bound": "",
    "loss.bound.per": "per=",
    "loss.correction": "",
    "loss.correction.level": "level=",
}


def measured(path: str) -> pd.DataFrame:
    """Returns a row a finished run: accuracy at the end, mean reward, and how far it was behind.

    The accuracy is that of sampled completions where the trainer's own model samples, and of greedy
    ones where a sampler of its own would be evaluated otherwise.
    """
    runs = segcredit.read_runs(path)
    names = runs.runs.query("status == 'finished'")
    groups = runs.steps.query("step > 0").sort_values("step").groupby("run")
    own = bool((names.sampler == "behind").all())
    found = pd.DataFrame(
        {
            "measure": groups[f"accuracy{'_greedy' * own}"].last(),
            "reward": groups.reward.mean(),
            "kl": groups["sampler_kl" if own else "kl"].max(),
            "cpu_seconds": groups.cpu_seconds.last(),
        }
    )
    told = names[["run", "seed"]].assign(
        test=Path(path).name, arm=[_arm(row) for _, row in names.iterrows()]
    )
    rows = told.merge(found.reset_index(), on="run").drop(columns="run")
    return rows[[*KEYS, *found.columns]].round(6)


def _arm(row: Any) -> str:
    told = {key: row.get(key) for key in SETTINGS}
    parts = [
        SETTINGS[key] + str(value)
        for key, value in told.items()
        if isinstance(value, str) and value not in ("none", "token" * key.endswith("per"), "start")
    ]
    return " ".join(parts) or "none"


def table(rows: pd.DataFrame) -> list[str]:
    """Returns the lines of a table, the arms by their measure."""
    arms = {arm: group.set_index("seed").sort_index() for arm, group in rows.groupby("arm")}
    order = sorted(arms, key=lambda arm: -arms[arm].measure.mean())
    best = next(arm for arm in order if "segment" not in arm)
    others = [arm for arm in order if arm != best]
    lines = [
        f"| arm | accuracy | less `{best}` | p | by Holm | mean reward | less it | p | by Holm |"
        " most KL |",
        "|---" * 10 + "|",
    ]
    tested = {name: _tests([arms[arm] for arm in others], arms[best], name) for name in MEASURES}
    for arm in order:
        cells: list[str] = [f"`{arm}`"]
        for name in MEASURES:
            found = ["", "", ""] if arm == best else tested[name][others.index(arm)]
            cells += [f"{arms[arm][name].mean():.3f}", *found]
        lines.append("| " + " | ".join([*cells, f"{arms[arm].kl.mean():.3f}"]) + " |")
    return lines


def _tests(groups: list[pd.DataFrame], base: pd.DataFrame, name: str) -> list[list[str]]:
    """Returns each arm's difference from the base with its interval, p and corrected p."""
    found = [(group[name] - base[name]).dropna().to_numpy() for group in groups]
    p = [paired.sign_flip_p(differences) for differences in found]
    rows: list[list[str]] = []
    for differences, own, corrected in zip(found, p, paired.holm(p), strict=True):
        low, high = student_interval(differences)
        mean = np.mean(differences)
        rows.append([f"{mean:+.3f} [{low:.3f} {high:.3f}]", f"{own:.3f}", f"{corrected:.3f}"])
    return rows


def main(paths: list[str]) -> None:
    """Adds runs to the file, and prints the tables."""
    known = [pd.read_csv(FILE)] if FILE.exists() else []
    rows = pd.concat([*known, *map(measured, paths)]).drop_duplicates(KEYS, keep="last")
    rows = rows.sort_values(KEYS)
    rows.to_csv(FILE, index=False)
    for test, group in rows.groupby("test"):
        seeds = ", ".join(map(str, sorted({*group.seed})))
        print(f"\n{test}, seeds {seeds}\n")
        print("\n".join(table(group)))
        print("\nEach seed's accuracy:\n")
        wide = group.pivot(index="arm", columns="seed", values="measure")
        print("| arm | " + " | ".join(map(str, wide.columns)) + " |")
        print("|---" * (1 + wide.shape[1]) + "|")
        for arm, row in wide.iterrows():
            print(f"| `{arm}` | " + " | ".join(f"{x:.3f}" for x in row) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
