"""Groups of runs, and notes on a group whose runs are not alike."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_known, setting_text
from segcredit.study.statistics.run_values import last_steps

_NO_SETTING = ("run", "seed", "status", "error", "started", "ended")
"""Columns of ``.runs`` in which runs of one method and setting may differ."""

_STATUS = {"running": "still running"}


@dataclass(frozen=True)
class Group:
    """The runs that share the values of ``by``."""

    name: str
    settings: dict[str, Any]
    runs: Any
    """A table with a row a run: the columns of ``.runs``, and those of ``run_values`` (NaN for a
    run that never recorded the metric)."""
    config: list[str]
    """The columns that hold its config, without the seed."""

    @cached_property
    def measured(self) -> Any:
        """The runs that have a value."""
        return self.runs.dropna(subset=["value"])

    def strata(self, columns: Sequence[str]) -> list[Any]:
        """Returns the values, apart for each combination of some config columns."""
        if not columns:
            return [self.measured["value"]]
        parts = self.measured.groupby(list(columns), dropna=False, observed=True, sort=False)
        return [part["value"] for _, part in parts]


def groups_of(runs: Runs, by: Sequence[str] | str, values: pd.DataFrame) -> list[Group]:
    """Returns the groups, in the order of their settings.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs``.
        values: as ``run_values`` gives them.

    Raises:
        StudyError: a column does not exist, or ``by`` is empty.
    """
    columns = columns_of(runs, by)
    found, options = _with_values(runs, values)
    place = found.sort_values(columns, kind="stable").index
    parts = found.loc[place].groupby(columns, sort=False, dropna=False, observed=True)
    rows = [part.sort_index() for _, part in parts]
    settings: list[dict[str, Any]] = [part.iloc[0][columns].to_dict() for part in rows]
    names = [" ".join(map(setting_text, setting.values())) for setting in settings]
    return [Group(*group, options) for group in zip(names, settings, rows, strict=True)]


def named_groups(
    runs: Runs, names: Mapping[str, Iterable[str]], values: pd.DataFrame
) -> list[Group]:
    """Returns groups of runs that were chosen one by one.

    Args:
        runs: as ``read_runs`` returns them.
        names: the names of each group's runs, by that of the group.
        values: as ``run_values`` gives them.

    Raises:
        StudyError: there is no run of a name.
    """
    found, options = _with_values(runs, values)
    chosen = {group: list(members) for group, members in names.items()}
    for members in chosen.values():
        require_known("run", members, runs.directories)
    return [
        Group(group, {}, found[found["run"].isin(members)], options)
        for group, members in chosen.items()
    ]


def _with_values(runs: Runs, values: pd.DataFrame) -> tuple[Any, list[str]]:
    """Returns the columns of ``.runs`` beside those of ``values``, and which hold the config."""
    config = runs.runs.assign(run=runs.runs["run"].astype(str))
    options = [str(name) for name in config.columns if name not in _NO_SETTING]
    return config.merge(values, on="run", how="left"), options


def table_of(rows: Iterable[Mapping[str, Any]], groups: Sequence[Group]) -> pd.DataFrame:
    """Returns the rows, with settings that are numbers in the same type as in ``.runs``.

    Otherwise a group without an option would turn the numbers of the others to objects.
    """
    types = groups[0].runs.dtypes[list(groups[0].settings)]
    numbers = {name: kind for name, kind in types.items() if pd.api.types.is_numeric_dtype(kind)}
    return pd.DataFrame(rows).astype(numbers)


def note_of(group: Group, apart: Sequence[str] = ()) -> str:
    """Notes what a reader must know of the runs behind a number; '' where there is nothing.

    Args:
        group: the runs.
        apart: config columns that the runs of one seed are known to differ in.
    """
    return "; ".join([*_missing(group), *_ended(group.measured), *_repeated(group, apart)])


def columns_of(runs: Runs, by: Sequence[str] | str) -> list[str]:
    """Returns the config columns that ``by`` names, each once.

    Raises:
        StudyError: there is none, or one does not exist.
    """
    columns = list(dict.fromkeys([by] if isinstance(by, str) else by))
    if not columns:
        raise StudyError(
            "No column to group by was given; expected at least one config column, such as"
            " 'method' or 'segmenter'."
        )
    require_known("config column", columns, runs.runs.columns)
    return columns


def varying(runs: Runs, columns: Sequence[str]) -> list[str]:
    """Returns those of some config columns that tell runs apart; all where none does."""
    table: Any = runs.runs[list(columns)].astype(object)
    varied = [name for name in columns if table[name].nunique(dropna=False) > 1]
    return varied or list(columns)


def _missing(group: Group) -> Iterator[str]:
    """Runs that do not count among the seeds."""
    absent = group.runs[group.runs["value"].isna()]
    short = int(absent["step"].notna().sum()) if "reached" in absent else 0
    for count, why in (
        (len(absent) - short, "never recorded the metric"),
        (short, "fell short of the budget"),
    ):
        if count:
            yield f"{count} of {len(group.runs)} runs {why}"


def _ended(measured: Any) -> Iterator[str]:
    """Runs that count with a value from before their end, or at another step than the others."""
    stopped = [status for status in measured["status"].astype(str) if status != "finished"]
    for status, count in sorted(Counter(stopped).items()):
        yield f"{count} of {len(measured)} runs {_STATUS.get(status, status)}"
    if measured["step"].nunique() > 1:
        yield f"last recorded at steps {last_steps(measured['step'])}"


def _repeated(group: Group, apart: Sequence[str]) -> Iterator[str]:
    """Runs of the same seed, which differ in something that is not named."""
    measured = group.measured
    if "seed" in measured and bool(measured.duplicated(["seed", *apart]).any()):
        yield f"several runs a seed, {differing(measured, group.config)}"


def differing(runs: Any, config: Sequence[str]) -> str:
    """Names the settings in which some runs differ, as the end of a sentence."""
    varied = [name for name in config if runs[name].nunique(dropna=False) > 1]
    # Where the plug-in itself differs, its options follow.
    names = [name for name in varied if not any(name.startswith(f"{of}.") for of in varied)]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"which differ in {shown}" if names else "alike in config: usually, versions of a plug-in"
    )


def group_name(settings: Mapping[str, Any]) -> str:
    """Returns a group's name in a figure: its settings, with the names of plug-ins' options.

    An option that the group does not have is left out: "entropy, top_fraction=0.15".

    Args:
        settings: values by config column.
    """
    if len(settings) == 1:
        return setting_text(next(iter(settings.values())))
    parts = [
        f"{name.rpartition('.')[2]}={setting_text(value)}" if "." in name else setting_text(value)
        for name, value in settings.items()
        if "." not in name or not pd.isna(value)
    ]
    return ", ".join(parts) or "none"
