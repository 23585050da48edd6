"""Choice of the settings that a report sets side by side, when nobody has said so."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from segcredit.records.tables import Runs
from segcredit.study.report.view import Cell
from segcredit.study.statistics.groups import setting_text

AXES = ("method", "segmenter", "estimator", "advantage", "loss.ratio")
"""Parts of a method, named before any option, in this order."""

NOT_CONFIG = ("run", "status", "error", "started", "ended")
"""The columns of ``.runs`` that say how a run went rather than what it was."""


def default_by(runs: Runs) -> list[str]:
    """Returns the config columns that tell apart all runs but those of different seeds alone.

    Columns are taken in the order of ``AXES``, then options by depth, each one only where it
    divides the runs further; so ``method`` alone where everything else follows from it.

    Args:
        runs: as ``read_runs`` returns them.

    Returns:
        At least one column of ``runs.runs``. Where the runs differ in nothing but their seed,
        the first of ``AXES`` that they have; ``run`` where they have none.
    """
    table = comparable(runs.runs)
    candidates = sorted((name for name in table if _is_free(table, name)), key=_rank)
    goal = _count(table, candidates)
    chosen: list[str] = []
    for name in candidates:
        if _count(table, chosen) < goal and _count(table, [*chosen, name]) > _count(table, chosen):
            chosen.append(name)
    return chosen or [next((name for name in AXES if name in table), "run")]


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


def comparable(table: Any) -> Any:
    """Returns the config columns as text, so that a missing option is a value like others."""
    config = table.drop(columns=[name for name in NOT_CONFIG if name in table])
    return pd.DataFrame({name: [setting_text(value) for value in config[name]] for name in config})


def config_cells(column: Iterable[Any]) -> list[Cell]:
    """Returns config values as cells of a table, where numbers are sorted as numbers."""
    values = list(column)
    numeric = all(isinstance(value, int | float | np.number) for value in values)
    return [Cell(setting_text(value), float(value) if numeric else None) for value in values]


def _is_free(table: Any, name: str) -> bool:
    """Tells whether a column varies and is neither a seed nor a consequence of the run's seed."""
    if table[name].nunique() < 2 or name.split(".")[-1] == "seed":
        return False
    if "seed" not in table or table["seed"].is_unique:
        return True  # no seed met two runs, hence nothing shows what follows from it
    return bool(table.groupby("seed")[name].nunique().max() > 1)


def _rank(name: str) -> tuple[int, int]:
    """Sorts the axes first, then options by depth; equals keep the order of the config."""
    return AXES.index(name) if name in AXES else len(AXES), name.count(".")


def _count(table: Any, columns: Sequence[str]) -> int:
    """Counts the groups that some columns make."""
    return len(table[list(columns)].drop_duplicates()) if columns else 1


def _crossed(table: Any, rows: str, columns: str) -> bool:
    met = table[[rows, columns]].drop_duplicates()
    return bool(met[rows].duplicated().any() and met[columns].duplicated().any())
