"""The tables of README.md: every arm beside grpo, and every seed.

    python tables.py runs/17/pointer runs/17/grid_world

Adds what finished there to ``runs.csv`` beside this file, then prints every table from it alone.
"""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import segcredit
from segcredit.study.statistics import paired
from segcredit.study.statistics.intervals import student_interval

FILE = Path(__file__).with_name("runs.csv")
KEYS = ["task", "method", "segmenter", "seed"]
MEASURES = {"reward": "mean reward", "accuracy": "accuracy at the end"}


def measured(path: str) -> pd.DataFrame:
    """Returns a row a finished run: its mean training reward, last accuracy and CPU-seconds."""
    runs = segcredit.read_runs(path)
    names = runs.runs.query("status == 'finished'")[["run", *KEYS]]
    groups = runs.steps.query("step > 0").sort_values("step").groupby("run")
    found = pd.DataFrame(
        {
            "reward": groups.reward.mean(),
            "accuracy": groups.accuracy.last(),
            "before": runs.steps.query("step == 0").set_index("run").accuracy,
            "cpu_seconds": groups.cpu_seconds.last(),
        }
    )
    rows = names.merge(found.reset_index(), on="run").drop(columns="run")
    return rows.astype({"task": str, "segmenter": str}).round(6)


def table(rows: pd.DataFrame) -> list[str]:
    """Returns the lines of a task's table."""
    arms = {
        arm: group.set_index("seed").sort_index()
        for arm, group in rows.groupby(["method", "segmenter"], sort=False)
    }
    base = next(group for (method, _), group in arms.items() if method == "grpo")
    others = {arm: group for arm, group in arms.items() if group is not base}
    lines = [
        "| method | segmenter | mean reward | less `grpo` | p | by Holm | accuracy | less `grpo` |"
        " p | by Holm | CPU-s |",
        "|---" * 11 + "|",
        _row("grpo", "whole", base, ["", "", ""], ["", "", ""]),
    ]
    tested = {name: _tests([*others.values()], base, name) for name in MEASURES}
    for place, ((method, segmenter), group) in enumerate(others.items()):
        lines.append(_row(method, segmenter, group, *(tested[name][place] for name in MEASURES)))
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


def _row(
    method: str, segmenter: str, group: pd.DataFrame, reward: list[str], accuracy: list[str]
) -> str:
    cells = [
        *(f"`{method}`", f"`{segmenter}`", f"{group.reward.mean():.3f}", *reward),
        *(f"{group.accuracy.mean():.3f}", *accuracy, f"{group.cpu_seconds.mean():.0f}"),
    ]
    return "| " + " | ".join(cells) + " |"


def main(paths: list[str]) -> None:
    """Adds runs to the file, and prints the tables."""
    known = [pd.read_csv(FILE)] if FILE.exists() else []
    rows = pd.concat([*known, *map(measured, paths)]).drop_duplicates(KEYS, keep="last")
    rows = rows.sort_values(KEYS)
    rows.to_csv(FILE, index=False)
    for task, group in rows.groupby("task"):
        seeds = ", ".join(map(str, sorted({*group.seed})))
        print(f"\n{task}, seeds {seeds}, accuracy before {group.before.mean():.3f}\n")
        print("\n".join(table(group)))


if __name__ == "__main__":
    main(sys.argv[1:])
