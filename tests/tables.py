"""What two runs or grids that did the same work have in common."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from segcredit import read_runs

SAME_TABLES = ("runs", "steps", "completions", "turns", "segments", "tokens")
OF_TIME = ("cpu_seconds",)
"""The columns that measure time."""


def tables_of(path: Path) -> dict[str, pd.DataFrame]:
    """Every table, in the order of the runs' names, without the columns that measure time."""
    runs = read_runs(path)
    return {
        name: getattr(runs, name).drop(columns=list(OF_TIME), errors="ignore")
        for name in SAME_TABLES
    }


def assert_same(one: Path, other: Path) -> None:
    """Both hold the same rows, bit for bit, but for the time that they took."""
    first, second = tables_of(one), tables_of(other)
    for name in SAME_TABLES:
        pd.testing.assert_frame_equal(first[name], second[name], check_exact=True, obj=name)
