"""The tables of README.md: mean reward and accuracy by definition, and paired differences.

    python tables.py RUNS

RUNS is a directory with the cells of definitions.toml and grpo.toml.
"""

from __future__ import annotations

import sys

import segcredit
from segcredit.records.tables import Runs
from segcredit.study.statistics.comparison import compare
from segcredit.study.statistics.summary import learning_areas, summarise

BY = [
    "method",
    "segmenter",
    *(f"segmenter.{name}" for name in ("top_fraction", "fork", "fraction")),
]
DIFFERENCES = ["a", "b", "difference", "low", "high", "p_adjusted", "seeds_needed"]


def main() -> None:
    """Prints the primary measure, the second, and differences from a token a segment."""
    runs = segcredit.read_runs(sys.argv[1])
    by = [name for name in BY if name in runs.runs]
    areas = learning_areas(runs, by, "reward")
    print("Mean training reward over all steps\n", areas.round(3).to_string(index=False))
    print("\nHeld-out accuracy at the end\n", summarise(runs, by, "accuracy").round(3).to_string())
    _print_differences(runs, by, "reward", "area")
    _print_differences(runs, by, "accuracy", "last")


def _print_differences(runs: Runs, by: list[str], metric: str, measure: str) -> None:
    """Prints every pair's paired difference, corrected for their number (Holm)."""
    found = compare(runs, by, metric, measure=measure)  # pyright: ignore[reportArgumentType]
    print(f"\nPaired differences of {metric} ({measure})")
    print(found[DIFFERENCES].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
