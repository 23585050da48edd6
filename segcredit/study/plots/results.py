"""Figures of what runs ended at: groups beside each other, and maps of two settings."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_known
from segcredit.study.plots.curves import groups_of, require_curves, unit_of
from segcredit.study.plots.dots import Dot, draw_dots, row_names, rows_height
from segcredit.study.plots.sheet import Canvas, sheet
from segcredit.study.plots.style import COLUMN, PAGE, label, letters, wrapped
from segcredit.study.statistics import (
    FEWEST,
    compare,
    headline,
    run_values,
    summarise,
)
from segcredit.study.statistics.groups import columns_of, group_name, setting_text, varying

_WIDTHS, _HEIGHT = (0.88, 1.5), 0.5
"""The least and the most width of a field, and its height, in inches: three lines to read."""
_NAMES = 1.0
"""Inches for the names of the rows."""
_LETTERS = 13
"""In a line of a row's or column's name."""
_SHADES = LinearSegmentedColormap.from_list("blues", ["#EAF2FA", "#6BAED6", "#08306B"])
_DARK = 0.7
"""The shade from which text on it is white."""
_LEVEL = 0.05
"""Of the tests."""


def comparison(
    runs: Runs,
    *,
    metric: str = "accuracy",
    by: Sequence[str] | str = ("method", "segmenter"),
    baseline: str | None = None,
    width: float = PAGE,
    figure: Canvas | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws where groups end as dots with intervals, the highest on top, and their differences.

    First the mean of the last recorded values over the runs of a group, with its 95% interval (of
    two runs their range, of one nothing; of a share inside [0, 1]) and a tick a run. Then, beside
    or below, the mean difference from one group over shared seeds, as ``compare`` of
    ``segcredit.study.statistics`` has it: filled where the seeds separate the two after Holm's
    correction, open where they do not. Judge by the differences: pairing by seed takes out what
    seeds do to both. Where runs cannot be paired there are none, and the note says why.

    Args:
        runs: as ``read_runs`` returns them.
        metric: a column of ``runs.steps``.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        baseline: the group that the others are compared with, its values joined by spaces; by
            default the highest, the correction then being over all pairs.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".
        ax: one panel, for the last values alone.

    Raises:
        StudyError: a column, the metric or the baseline is unknown, or no run recorded the metric.
    """
    columns = columns_of(runs, by)
    ends = run_values(runs, metric)
    require_curves(runs, ends["run"].tolist(), "comparison", f"'{metric}'")
    last = dict(zip(ends["run"].astype(str), ends["value"], strict=True))
    table = summarise(runs, columns, metric).dropna(subset="mean")
    table = table.sort_values("mean", ascending=False, kind="stable")
    settings = table[columns].to_dict("records")
    keys = [" ".join(map(setting_text, one.values())) for one in settings]
    if baseline is not None:
        require_known("group", [baseline], keys)
    named = varying(runs, columns)
    names = [group_name({name: one[name] for name in named}) for one in settings]
    members = {group.name: group.runs for group in groups_of(runs, columns, most=None)}
    dots = [
        Dot(row, 0, *ends, points=[last[run] for run in members[names[row]] if run in last])
        for row, ends in enumerate(zip(table["mean"], table["low"], table["high"], strict=True))
    ]
    pairs: Any = None
    unit = unit_of(runs, members.values())
    note = (
        f"Dots: means; bars: 95% Student interval over {unit}s, of two their range; ticks: {unit}s."
    )
    unfinished = int((runs.runs["status"] != "finished").sum())
    note += f" {unfinished} of {len(runs)} runs did not finish." if unfinished else ""
    try:
        pairs = compare(runs, columns, metric, baseline=baseline) if ax is None else None
    except StudyError as error:
        note += f" No differences: {error}" if len(names) > 1 else ""
    across = 1 if pairs is None or width < 1.5 * COLUMN else 2
    shown = row_names(names, width)
    height = rows_height(shown) * (1 if pairs is None else 2 // across)
    described = f"{label(metric)} at the end by {', '.join(columns)}, and differences"
    with sheet(width, height, described, figure=figure, ax=ax) as page:
        panes = page.panels(1 if pairs is None else 2, across, sharey=True)
        draw_dots(panes[0], dots, shown, mark=None)
        panes[0].set_xlabel(f"{label(metric)} at the end")
        if pairs is not None:
            reference = baseline or keys[0]
            draw_dots(panes[1], _differences(pairs, keys, reference), shown)
            other = f"minus {names[keys.index(reference)]}, over shared seeds"
            panes[1].set_xlabel(wrapped(other, letters(width / (across + 1))))
            note += f" Minus: filled where the seeds separate the two (corrected p ≤ {_LEVEL})."
        page.finish(headline(runs, columns, metric, label(metric)), note)
    return page.figure


def _differences(pairs: pd.DataFrame, keys: Sequence[str], reference: str) -> list[Dot]:
    """Returns the difference of each other group from one."""
    found: list[Dot] = []
    for pair in pairs.to_dict("records"):
        if reference in (pair["a"], pair["b"]):
            ends = [pair[name] for name in ("difference", "low", "high")]
            other = pair["b"]
            if pair["b"] == reference:
                other, ends = pair["a"], [-ends[0], -ends[2], -ends[1]]
            if other in keys:
                is_open = not pair["p_adjusted"] <= _LEVEL
                found.append(Dot(keys.index(other), 0, *ends, is_open=is_open))
    return found


def heat_map(
    runs: Runs,
    *,
    rows: str = "segmenter",
    columns: str = "estimator",
    metric: str = "accuracy",
    width: float = COLUMN,
    ax: Axes | None = None,
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
        width: in inches, ``COLUMN`` or ``PAGE``. The figure is wider where its fields could not be
            read otherwise, and less wide where they are few.
        ax: the axes to draw into, without the note.

    Raises:
        StudyError: a column or the metric is unknown, both columns are the same, or no run
            recorded the metric.
    """
    if rows == columns:
        raise StudyError(
            f"Both the rows and the columns of the heat map are {rows!r}; expected two different"
            " config columns, such as 'segmenter' and 'estimator'."
        )
    down, across = (
        [group.name for group in groups_of(runs, axis, most=None)] for axis in (rows, columns)
    )
    pairs = groups_of(runs, (rows, columns), most=None)
    table = summarise(runs, [rows, columns], metric)
    require_curves(runs, table["mean"].dropna().tolist(), "heat map", f"'{metric}'")
    fields = table.to_dict("records")
    run_counts = runs.runs.groupby([rows, columns], dropna=False, observed=True).size()
    sizes = {tuple(map(setting_text, key)): size for key, size in run_counts.items()}
    least, most = (_NAMES + len(across) * field for field in _WIDTHS)
    height = 0.5 + len(down) * _HEIGHT
    named = f"Heat map of {label(metric)}: {rows} by {columns}"
    with sheet(min(max(width, least), most), height, named, ax=ax) as page:
        (axes,) = page.panels()
        _draw_names(axes, down, across)
        axes.set(xlabel=columns, ylabel=rows)
        lowest, highest = table["mean"].min(), table["mean"].max()
        digits = _digits([lowest, highest])
        for field in fields:
            pair = (setting_text(field[rows]), setting_text(field[columns]))
            shade = (field["mean"] - lowest) / ((highest - lowest) or 1.0)
            known = not math.isnan(shade)
            ink = "white" if shade > _DARK else "black" if known else "0.3"
            row, column = down.index(pair[0]), across.index(pair[1])
            ground: Any = {"facecolor": _SHADES(shade) if known else "0.93", "edgecolor": "white"}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **ground, linewidth=1))
            middle: Any = {"ha": "center", "va": "center", "size": "small", "color": ink}
            axes.text(column, row, _numbers(field, sizes[pair], digits), **middle, linespacing=1.25)
        unit = unit_of(runs, [group.runs for group in pairs])
        mixed = "" if unit == "seed" else ", which may differ in more than the seed"
        note = f"Mean, 95% Student interval over {unit}s{mixed}, and their number n."
        hatched = " Hatched: no run." if len(fields) < len(down) * len(across) else ""
        page.finish(headline(runs, (rows, columns), metric, label(metric)), note + hatched)
    return page.figure


def _draw_names(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draws rows from above, columns from the left, hatched as long as nothing lies on them."""
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [wrapped(name, _LETTERS) for name in columns])
    axes.set_yticks(range(len(rows)), [wrapped(name, _LETTERS) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    ground: Any = {"facecolor": "white", "edgecolor": "0.75", "hatch": "////", "linewidth": 0}
    axes.add_patch(Rectangle((-0.5, -0.5), len(columns), len(rows), **ground, zorder=0))


def _numbers(field: dict[Any, Any], all_runs: int, digits: int) -> str:
    """Writes mean, interval and number of runs, a line each."""
    measured = int(field["seeds"])
    if not measured:
        return f"not recorded\n(n = 0 of {all_runs})"
    low, high = (f"{field[end]:.{digits}f}" for end in ("low", "high"))
    interval = f"range {low}–{high}" if measured < FEWEST else f"[{low}, {high}]"
    interval = "no interval" if measured == 1 else interval
    number = f"n = {measured}" if measured == all_runs else f"n = {measured} of {all_runs}"
    return f"{field['mean']:.{digits}f}\n{interval}\n{number}"


def _digits(means: Sequence[float]) -> int:
    """Counts the decimals that show three digits of the largest mean."""
    largest = max(map(abs, means))
    return min(8, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2
