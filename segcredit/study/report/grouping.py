"""Settings that a report sets side by side, and their cells."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from segcredit.records.tables import Runs, comparable, setting_text
from segcredit.study.report.view import Cell


def heat_map_axes(runs: Runs, by: Sequence[str]) -> tuple[str, str] | None:
    """Returns two settings that were crossed: the segmenter and the estimator, else two of ``by``.

    Two settings are crossed where some value of one met several of the other, and the other way
    round; otherwise a heat map would be a diagonal or a line.

    Returns:
        The columns for the rows and for the columns of a heat map, or None where none is crossed.
    """
    present = [name for name in dict.fromkeys(["segmenter", "estimator", *by]) if name in runs.runs]
    table = comparable(runs.runs[present])
    pairs = itertools.combinations(table, 2)
    return next((pair for pair in pairs if _crossed(table, *pair)), None)


def config_cells(column: Iterable[Any]) -> list[Cell]:
    """Returns config values as cells of a table, where numbers are sorted as numbers."""
    values = list(column)
    numeric = all(isinstance(value, int | float | np.number) for value in values)
    return [Cell(setting_text(value), float(value) if numeric else None) for value in values]


def _crossed(table: Any, rows: str, columns: str) -> bool:
    met = table[[rows, columns]].drop_duplicates()
    return bool(met[rows].duplicated().any() and met[columns].duplicated().any())
