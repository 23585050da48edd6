"""A metric for every pair of two settings, as a map whose fields hold the numbers."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from segcredit.errors import StudyError
from segcredit.records.tables import Runs
from segcredit.study.plots.curves import INTERVALS, IntervalKind, intervals, require_curves
from segcredit.study.plots.groups import Group, groups_of, unit_of
from segcredit.study.plots.sheet import finish, new_axes, new_sheet
from segcredit.study.plots.style import COLUMN, NOTE_SIZE, STYLE, label, wrapped
from segcredit.study.statistics import FEWEST, limits_of, run_values

_WIDTHS, _HEIGHT = (0.88, 1.5), 0.5
"""The least and the most width of a field, and its height, in inches: three lines to read."""
_NAMES = 1.0
"""Inches for the names of the rows."""
_LETTERS = 13
"""In a line of a row's or column's name."""
_SHADES = LinearSegmentedColormap.from_list("blues", ["#EAF2FA", "#6BAED6", "#08306B"])
_DARK = 0.7
"""The shade from which text on it is white."""


@dataclass(frozen=True, slots=True)
class _Field:
    """One pair of settings."""

    row: int
    column: int
    runs: list[str]
    values: NDArray[np.float64]
    """The last recorded value of each run that has one."""
    ends: tuple[float, float]
    """Ends of the interval of their mean; NaN for fewer than two."""


def heat_map(
    runs: Runs,
    *,
    rows: str = "segmenter",
    columns: str = "estimator",
    metric: str = "accuracy",
    interval: IntervalKind = "student",
    width: float = COLUMN,
) -> Figure:
    """Draws the last recorded value of a metric for every pair of two settings.

    A field holds the mean over its runs, the 95% interval of that mean and the runs' number ``n``;
    its shade is the mean, from the lowest of the map to the highest. The unit of the interval is
    the run, normally a seed; where the runs of a field differ in more than the seed, such as in
    the method, the note says so. A field without runs is hatched; one whose runs never recorded
    the metric says that instead. Shades do not rank: compare the intervals.

    Args:
        runs: as ``read_runs`` returns them.
        rows: the column of ``runs.runs`` whose values are the rows.
        columns: the one whose values are the columns; another than ``rows``.
        metric: a column of ``runs.steps``.
        interval: "student" (mean ± t · standard error) or "bootstrap" (percentiles of the mean;
            too narrow below some ten seeds), as in the tables.
        width: in inches, ``COLUMN`` or ``PAGE``. The figure is wider where its fields could not be
            read otherwise, and less wide where they are few.

    Raises:
        StudyError: a column or the metric is unknown, both columns are the same, or no run
            recorded the metric.
    """
    if rows == columns:
        raise StudyError(
            f"Both the rows and the columns of the heat map are {rows!r}; expected two different"
            " config columns, such as 'segmenter' and 'estimator'."
        )
    down, across = (groups_of(runs, axis, most=None) for axis in (rows, columns))
    ends = run_values(runs, metric)
    last = dict(zip(ends["run"], ends["value"], strict=True))
    limits = limits_of(metric)
    every = [_field(*pair, last, interval, limits) for pair in product(down, across)]
    fields = [field for field in every if field.runs]
    require_curves(runs, last, "heat map", f"'{metric}'")
    with matplotlib.rc_context(STYLE):
        least, most = (_NAMES + len(across) * field for field in _WIDTHS)
        height = 0.5 + len(down) * _HEIGHT
        title = f"Heat map of {label(metric)}: {rows} by {columns}"
        figure = new_sheet(min(max(width, least), most), height, title)
        (axes,) = new_axes(figure)
        _draw_names(axes, down, across)
        axes.set(xlabel=columns, ylabel=rows)
        _draw_fields(axes, fields)
        note = _note(runs, metric, fields, interval)
        finish(figure, note if len(fields) == len(every) else f"{note} Hatched: no run.")
    return figure


def _field(
    row: Group,
    column: Group,
    last: Mapping[str, float],
    interval: IntervalKind,
    limits: tuple[float, float] | None,
) -> _Field:
    shared = [run for run in row.runs if run in column.runs]
    values = np.array([last[run] for run in shared if run in last])
    low, high = intervals(pd.DataFrame([values]), interval, limits)
    return _Field(row.number, column.number, shared, values, (low[0], high[0]))


def _draw_names(axes: Axes, rows: Sequence[Group], columns: Sequence[Group]) -> None:
    """Draws rows from above, columns from the left, hatched as long as nothing lies on them."""
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [wrapped(one.name, _LETTERS) for one in columns])
    axes.set_yticks(range(len(rows)), [wrapped(one.name, _LETTERS) for one in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    ground: Any = {"facecolor": "white", "edgecolor": "0.75", "hatch": "////", "linewidth": 0}
    axes.add_patch(Rectangle((-0.5, -0.5), len(columns), len(rows), **ground, zorder=0))


def _draw_fields(axes: Axes, fields: Sequence[_Field]) -> None:
    """Draws a square for each field, as dark as its mean, with its numbers."""
    means = [field.values.mean() for field in fields if len(field.values)]
    lowest, range_, digits = min(means), max(means) - min(means), _digits(means)
    for field in fields:
        ground, ink = "0.93", "0.3"
        if len(field.values):
            shade = (field.values.mean() - lowest) / range_ if range_ else 0.0
            ground, ink = _SHADES(shade), "white" if shade > _DARK else "black"
        corner = (field.column - 0.5, field.row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=ground, edgecolor="white", linewidth=1))
        middle: Any = {"ha": "center", "va": "center", "size": NOTE_SIZE, "color": ink}
        axes.text(field.column, field.row, _numbers(field, digits), **middle, linespacing=1.25)


def _numbers(field: _Field, digits: int) -> str:
    """Writes mean, interval and number of runs, a line each."""
    measured, all_runs = len(field.values), len(field.runs)
    if not measured:
        return f"not recorded\n(n = 0 of {all_runs})"
    ends = [f"{end:.{digits}f}" for end in field.ends]
    interval = f"range {ends[0]}–{ends[1]}" if measured < FEWEST else f"[{ends[0]}, {ends[1]}]"
    interval = "no interval" if math.isnan(field.ends[0]) else interval
    number = f"n = {measured}" if measured == all_runs else f"n = {measured} of {all_runs}"
    return f"{field.values.mean():.{digits}f}\n{interval}\n{number}"


def _digits(means: Sequence[float]) -> int:
    """Counts the decimals that show three digits of the largest mean."""
    largest = max(map(abs, means))
    return min(8, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2


def _note(runs: Runs, metric: str, fields: Sequence[_Field], interval: IntervalKind) -> str:
    unit = unit_of(runs, [field.runs for field in fields])
    mixed = "" if unit == "seed" else ", which may differ in more than the seed"
    return (
        f"Last recorded {label(metric)}: mean, {INTERVALS[interval]} over {unit}s{mixed}, and"
        " their number n."
    )
