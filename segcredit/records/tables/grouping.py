"""Settings that tell runs apart, and how a setting is written."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from segcredit.records.tables.runs import Runs

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


def comparable(table: Any) -> Any:
    """Returns the config columns as text, so that a missing option is a value like others."""
    config = table.drop(columns=[name for name in NOT_CONFIG if name in table])
    return pd.DataFrame({name: [setting_text(value) for value in config[name]] for name in config})


def setting_text(value: Any) -> str:
    """Returns a config value as a reader writes it; 'none' where the group has no such option."""
    if pd.isna(value):
        return "none"
    # Where some runs lack an option, pandas may hold the whole numbers of the others as floats.
    return format(value, ".12g") if isinstance(value, float) else str(value)


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
