"""Prints a Markdown table with every seed of a grid: accuracy before and after, and what it cost.

python experiments/seed_table.py runs/01_embedded [CONFIG_COLUMN ...]
"""

from __future__ import annotations

import sys

import pandas as pd

import segcredit

KEYS = ["method", "segmenter", "seed"]


def main(path: str, *more: str) -> None:
    """One row a run, in the order of method, segmenter, further columns and seed."""
    runs = segcredit.read_runs(path)
    keys = [*KEYS[:-1], *more, KEYS[-1]]
    steps = runs.steps.merge(runs.runs[["run", *keys]], on="run").sort_values("step")
    plain = steps.astype(dict.fromkeys([*keys, "run"], object))
    # By the run too: settings that no column shows must not make one row of two runs.
    groups = plain.groupby([*keys, "run"], dropna=False)
    columns = ("accuracy", "accuracy_greedy", "process_correct")
    table = pd.DataFrame(
        {
            **{f"{name} before": groups[name].first() for name in columns},
            **{f"{name} after": groups[name].last() for name in columns},
            "explained variance": groups["explained_variance"].last(),
            "tokens sampled": groups["tokens_sampled"].last(),
            "CPU-seconds": groups["cpu_seconds"].last(),
        }
    ).reset_index()
    table = table.drop(columns="run")
    print("| " + " | ".join(table.columns) + " |")
    print("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(_shown(value) for value in row) + " |")


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
