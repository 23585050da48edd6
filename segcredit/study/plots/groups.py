"""Groups of the runs in a figure: those that share some settings."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, setting_text
from segcredit.study.plots.style import LOOKS
from segcredit.study.statistics.groups import columns_of


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that share the settings a figure tells apart."""

    name: str
    """The settings' values, joined by commas."""
    number: int
    """Its place among all groups of the runs, drawn or not: what its look follows."""
    runs: tuple[str, ...]
    """Names of the group's runs, as in the column ``run``."""


def groups_of(runs: Runs, by: Sequence[str] | str, *, most: int | None = LOOKS) -> list[Group]:
    """Returns the groups that the values of some config columns make, in the order of those values.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs``.
        most: how many groups there may be; by default as many as can be told apart.

    Raises:
        StudyError: ``by`` is empty or names no config column, or makes more groups than can be
            told apart.
    """
    columns = columns_of(runs, by)
    settings = runs.runs[columns].astype(object).itertuples(index=False, name=None)
    found: dict[Any, tuple[str, list[str]]] = {}
    for run, values in zip(runs.runs["run"].astype(str), settings, strict=True):
        name = ", ".join(map(setting_text, values))
        found.setdefault(tuple(map(_order, values)), (name, []))[1].append(run)
    groups = [
        Group(name, number, tuple(members))
        for number, (_, (name, members)) in enumerate(sorted(found.items()))
    ]
    if most is not None and len(groups) > most:
        raise StudyError(
            f"The columns {', '.join(columns)} make {len(groups)} groups of the {len(runs)} runs;"
            f" expected at most {most}, which can be told apart. Usually a column that differs in"
            " every run, such as 'seed', is among them: name fewer, or read fewer runs."
        )
    return groups


def unit_of(runs: Runs, groups: Iterable[Iterable[str]]) -> str:
    """Names the unit of an interval: 'seed', or 'run' where a group's runs differ in more.

    Args:
        runs: as ``read_runs`` returns them.
        groups: the names of the runs of each group.
    """
    if "seed" not in runs.runs.columns:
        return "run"
    seeds = dict(zip(runs.runs["run"].astype(str), runs.runs["seed"], strict=True))
    each = [pd.Series([seeds[run] for run in group], dtype=object) for group in groups]
    return "run" if any(one.isna().any() or one.duplicated().any() for one in each) else "seed"


def failed_runs(runs: Runs) -> set[str]:
    """Returns the names of the runs that failed."""
    return set(runs.runs.loc[runs.runs["status"] == "failed", "run"].astype(str))


def _order(value: Any) -> tuple[int, Any]:
    """Sorts numbers by value, then everything else as text, then what is missing."""
    if pd.isna(value):
        return (2, "")
    return (0, value) if isinstance(value, Real) else (1, str(value))
