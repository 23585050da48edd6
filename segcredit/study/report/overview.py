"""The sections of a report on what was run: runs, failures, settings, environment, Python."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd

from segcredit.records.manifest import STATUS, read_signed
from segcredit.records.run_directory import ENVIRONMENT, read_ending
from segcredit.records.stored_config import CONFIG
from segcredit.records.tables import Runs, comparable, flatten, setting_text
from segcredit.study.report import view
from segcredit.study.report.grouping import config_cells
from segcredit.study.report.view import Block, Cell, Code, Failure, Listing, Note, Section, Table

MOST_ROWS = 300
"""Rows of a table of runs that a page still bears."""
_MOST_OPEN = 10
"""Rows of a table of runs that stand open though all finished."""
MOST_GROUPS = 40
"""Columns of a table of groups, likewise."""
_MOST_FAILURES = 20
_MOST_VALUES = 4
_LONGEST_TRACEBACK = 8_000
_URGENCY = {"interrupted": 1, "running": 2, "finished": 3}
"""Order of states by urgency for the reader: what failed, before all."""

_AUDIT_LINES = (
    "runs.runs       # a row a run: config, status, error",
    "runs.audit      # a row a metric of an audit, with its interval",
)

Statuses = Mapping[str, Mapping[str, Any]]


def runs_section(runs: Runs, by: Sequence[str], damaged: Mapping[str, str]) -> Section:
    """Builds the section of all runs: settings, state and steps; first, what failed.

    Args:
        runs: those whose config and status can be read.
        by: the settings to show.
        damaged: the sentence on each run of which some file cannot be read, by its name.
    """
    statuses = {run: read_ending(path) for run, path in runs.directories.items()}
    blocks: list[Block] = [
        Note(_ended(statuses)),
        *_failures(statuses),
        *_left_out(runs, damaged),
        _runs_table(runs, by, statuses),
    ]
    return Section("runs", "What was run", blocks)


def settings_section(runs: Runs, by: Sequence[str]) -> Section:
    """Builds the section of config keys in which the runs differ; the others are folded away."""
    config: Any = comparable(runs.runs)
    differing = [str(name) for name in config if config[name].nunique() > 1]
    same = [str(name) for name in config if name not in differing]
    shared = Table(
        "What all runs share.",
        ["key", "value"],
        [[view.text(name), view.text(config[name].iloc[0])] for name in same],
        folded=f"{view.counted(len(same), 'key')} that all runs share",
    )
    if not differing:
        return Section("settings", "Settings", [Note("The runs differ in no key."), shared])
    return Section("settings", "Settings", [_differences(config, differing, by), shared])


def environment_section(runs: Runs) -> Section:
    """Builds the section of versions, git revision and machine, with the runs that had each."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    silent: list[str] = []
    for run, path in runs.directories.items():
        environment = _environment(path)
        environment.pop("seed", None)  # differs on purpose, and is among the settings
        for key, value in environment.items():
            found[key][setting_text(value)].append(run)
        if not environment:
            silent.append(run)
    blocks: list[Block] = []
    if silent:
        blocks.append(Note(f"No readable {ENVIRONMENT}: {view.listed(silent)}."))
    if found:
        blocks.append(_environments(found, len(runs)))
    return Section("environment", "Environment", blocks)


def python_section(
    runs: Runs, by: Sequence[str], metric: str, *, trained: bool = True, audited: bool = False
) -> Section:
    """Builds the section on how to have the same tables in Python.

    Args:
        runs: all that the report is on.
        by: the settings to compare by.
        metric: to compare.
        trained: whether some of the runs are no audits.
        audited: whether some are.
    """
    if not trained:
        return _python([f"runs = segcredit.read_runs({str(runs.path)!r})", *_AUDIT_LINES])
    names = [name for name in dict.fromkeys(["run", *by, "seed"]) if name in runs.runs]
    lines = [
        "from segcredit.study.statistics import compare, summarise",
        "",
        f"runs = segcredit.read_runs({str(runs.path)!r})",
        f"by = {list(by)!r}",
        "runs.runs       # a row a run: config, status, error",
        "runs.steps      # a row a step: the metrics",
        "runs.completions  # a row a completion; .segments and .tokens likewise",
        f"summarise(runs, by, {metric!r})",
        f"compare(runs, by, {metric!r})",
        f"runs.steps.merge(runs.runs[{names!r}], on='run')",
    ]
    return _python([*lines, *_AUDIT_LINES[1:]] if audited else lines)


def _python(lines: Sequence[str]) -> Section:
    said = "The tables behind this page; nothing is read before it is asked for."
    code = "\n".join(["import segcredit", *lines])
    return Section("python", "Read it in Python", [Note(said), Code(code)])


def half_written(path: Path, runs: Runs) -> list[str]:
    """Lists directories with a config or a status that ``read_runs`` could not take for runs."""
    known = {str(directory) for directory in runs.directories.values()}
    found: list[str] = []
    for folder, subfolders, files in os.walk(path):
        if folder in known:
            subfolders.clear()
        elif CONFIG in files or STATUS in files:
            found.append(Path(folder).relative_to(path).as_posix())
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    return found


def _ended(statuses: Statuses) -> str:
    """Counts the runs by how they ended, and says what that means for the numbers below."""
    ends = Counter(str(status["status"]) for status in statuses.values())
    parts = ", ".join(f"{count:,} {name}" for name, count in sorted(ends.items()))
    said = f"{view.counted(len(statuses), 'run')}: {parts}."
    if set(ends) - {"finished"}:
        said += (
            " A run that has not finished counts below with what it recorded, up to its last value:"
            " to leave out what failed would flatter the methods that fail."
        )
    if "running" in ends:
        said += " A copy of a run that was killed is still called running."
    return said


def _failures(statuses: Statuses) -> Iterator[Block]:
    """Yields each sentence with which runs were stopped, once, with one of its tracebacks."""
    stopped: dict[str, list[str]] = defaultdict(list)
    for run, status in statuses.items():
        if status["status"] in ("failed", "interrupted"):
            parts = [str(status[key]) for key in ("error_type", "message") if status.get(key)]
            sentence = f"{status['status']}: {': '.join(parts) or 'no reason was recorded.'}"
            stopped[sentence].append(run)
    for sentence, names in list(stopped.items())[:_MOST_FAILURES]:
        found = str(statuses[names[0]].get("traceback") or "")
        yield Failure(sentence, view.listed(names), _shortened(found))
    if len(stopped) > _MOST_FAILURES:
        rest = len(stopped) - _MOST_FAILURES
        yield Note(f"{rest:,} more sentences are in the column error of read_runs(…).runs.")


def _shortened(traceback: str) -> str:
    """Returns the end of a long traceback, which says what happened."""
    if len(traceback) <= _LONGEST_TRACEBACK:
        return traceback
    return f"… the whole of it is in {STATUS} …\n{traceback[-_LONGEST_TRACEBACK:]}"


def _left_out(runs: Runs, damaged: Mapping[str, str]) -> Iterator[Block]:
    """Lists what lies in the directory and does not count, or not everywhere."""
    if damaged:
        count = view.counted(len(damaged), "run")
        yield Note(f"{count} left out of whatever needs a file that is damaged:")
        yield Listing([f"{run}: {reason}" for run, reason in damaged.items()])
    partial = [name for name in half_written(runs.path, runs) if name not in damaged]
    if partial:
        yield Note(
            f"Passed over, since they hold a {CONFIG} or a {STATUS} but no whole run:"
            f" {view.listed(partial)}. Usually these were stopped while they were being made, or"
            " belong to another program."
        )


def _runs_table(runs: Runs, by: Sequence[str], statuses: Statuses) -> Table:
    config = [name for name in dict.fromkeys([*by, "seed"]) if name in runs.runs and name != "run"]
    costs = ["step", "tokens_sampled", "cpu_seconds"]
    ordered = runs.steps.sort_values(["run", "step"], kind="stable")
    last: Any = ordered.groupby("run", observed=True)[costs].last()
    table: Any = runs.runs[["run", "status", *config]].merge(last, on="run", how="left")
    table = table.sort_values(["status", *config], key=_sortable, kind="stable")
    caption = "A row a run, with its costs up to its last recorded step; minutes are of the clock."
    if len(table) > MOST_ROWS:
        caption += f" {MOST_ROWS} of {len(table):,} are shown, those that did not finish first."
        table = table.head(MOST_ROWS)
    columns = [config_cells(table[name]) for name in ["run", "status", *config]]
    columns += [view.numbers(table[name], 0) for name in costs]
    columns += [view.numbers([_minutes(statuses[str(run)]) for run in table["run"]], 1)]
    headings = ["run", "status", *config, "steps", "tokens sampled", "CPU-seconds", "minutes"]
    rows, count = list(zip(*columns, strict=True)), view.counted(len(table), "run")
    ended = bool((table["status"] == "finished").all())
    # All is well: the results come first, and the rows on demand.
    return Table(caption, headings, rows, folded=count if ended and len(rows) > _MOST_OPEN else "")


def _sortable(column: Any) -> Any:
    """Sorts unfinished first, then numbers by value and everything else as text."""
    if column.name == "status":
        return pd.Series([_URGENCY.get(str(value), 0) for value in column], column.index)
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)


def _minutes(status: Mapping[str, Any]) -> float:
    """Returns the minutes from a run's last start to its end; NaN while it has none."""
    try:
        started, ended = (datetime.fromisoformat(status[key]) for key in ("started", "ended"))
    except (KeyError, TypeError, ValueError):
        return math.nan
    return (ended - started).total_seconds() / 60


def _differences(config: Any, differing: Sequence[str], by: Sequence[str]) -> Table:
    """Returns a row a key, a column a group; where a group has several values, all of them."""
    columns = [name for name in by if name in config]
    groups = list(config.groupby(columns, sort=False)) if columns else [(("all runs",), config)]
    shown_groups = groups[:MOST_GROUPS]
    rows = [
        [view.text(name), *(view.text(_values(group[name])) for _, group in shown_groups)]
        for name in differing
    ]
    caption = f"The {view.counted(len(differing), 'key')} in which the runs differ."
    if len(groups) > MOST_GROUPS:
        caption += f" {MOST_GROUPS} of {len(groups):,} groups are shown."
    headings = [" ".join(cast("tuple[str, ...]", key)) for key, _ in shown_groups]
    return Table(caption, ["key", *headings], rows)


def _values(column: Any) -> str:
    return view.listed(list(dict.fromkeys(column)), _MOST_VALUES)


def _environment(path: Path) -> dict[str, Any]:
    """Returns a run's environment in dotted keys; empty where there is none that can be read."""
    try:
        return flatten(read_signed(path / ENVIRONMENT)[0])
    except (OSError, ValueError):
        return {}


def _environments(found: Mapping[str, Mapping[str, Sequence[str]]], total: int) -> Table:
    rows = [
        [view.text(key), view.text(value), *view.numbers([len(those)], 0), _which(those, total)]
        for key, values in found.items()
        for value, those in list(values.items())[:MOST_GROUPS]
    ]
    caption = "What the runs recorded of where they ran; where they differ, a row a value."
    return Table(caption, ["key", "value", "runs", "which"], rows)


def _which(names: Sequence[str], total: int) -> Cell:
    return view.text("all" if len(names) == total else view.listed(names, 3))
