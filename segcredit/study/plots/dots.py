"""Dots with their intervals, a row of them for each of several things; a comparison of groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_known, setting_text
from segcredit.study.plots.curves import groups_of, require_curves, unit_of
from segcredit.study.plots.sheet import Canvas, room, sheet
from segcredit.study.plots.style import COLUMN, PAGE, label, letters, look, wrapped
from segcredit.study.statistics import compare, headline, run_values, summarise
from segcredit.study.statistics.groups import columns_of, group_name, varying

MOST_KINDS = 14
"""Kinds of dots that can be told apart without colour: by marker, filled or open."""
_SPREAD, _APART = 0.76, 0.3
"""The share of a row that its dots take, and the most that two of them lie apart."""
_BEYOND, _USUAL = 0.5, 2.0
"""Stretch of the axis to each side by intervals, at most: a share of the range of the dots, or
widths of the median interval, whichever is more."""
_LEVEL = 0.05
"""Level of the tests."""
_LARGE = 1e4
"""From which numbers on an axis are 10k."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A number with its interval."""

    row: int
    kind: int
    """Its place among the kinds: what look and place in the row follow."""
    value: float
    low: float
    """NaN where there is no interval."""
    high: float
    points: Sequence[float] = ()
    """Values that the number is a mean of, to be drawn as well."""
    is_open: bool = False
    """Drawn without filling."""


def dot_style(kind: int) -> dict[str, Any]:
    """Returns ``look`` with whole lines, since intervals are short; the marker tells apart."""
    return look(kind) | {"linestyle": "-"}


def row_names(names: Iterable[str], width: float) -> list[str]:
    """Returns the names of rows, broken into lines for a figure of a width in inches."""
    return [wrapped(name, 26 if width >= 1.5 * COLUMN else 18) for name in names]


def rows_height(names: Sequence[str], kinds: int = 1) -> float:
    """Returns the height of a panel of rows in inches."""
    lines = max((name.count("\n") + 1 for name in names), default=1)
    return len(names) * max(0.19, 0.11 * kinds + 0.06, 0.115 * lines + 0.03) + 0.45


def draw_dots(
    axes: Axes,
    dots: Sequence[Dot],
    names: Sequence[str],
    *,
    kinds: int = 1,
    mark: float | None = 0.0,
    scale: Sequence[Dot] = (),
) -> bool:
    """Draws a panel of dots and intervals, with a row for each name, kinds one below the other.

    Each artist's label says which it is: _dot, _interval, _point, _mark or _part. Dots of NaN are
    left out; ``mark`` is where a thin line is; ``scale``, dots of other panels on the same axis.
    Returns whether some interval goes on beyond the frame.
    """
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color="0.9", linewidth=0.5, label="_part", zorder=0)
    if mark is not None:
        axes.axvline(mark, color="0.4", linewidth=0.6, label="_mark", zorder=1)
    left, right = _limits([*dots, *scale], mark)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if max(-left, right) >= _LARGE:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    apart = min(_SPREAD / kinds, _APART)
    shown = [dot for dot in dots if not math.isnan(dot.value)]
    for dot in shown:
        y, style = dot.row + (dot.kind - (kinds - 1) / 2) * apart, dot_style(dot.kind)
        if not math.isnan(dot.low + dot.high):
            # An endless interval cannot be drawn; one that leaves the frame can.
            ends = [max(dot.low, 2 * left - right), min(dot.high, 2 * right - left)]
            line: Any = {"color": style["color"], "solid_capstyle": "butt", "label": "_interval"}
            axes.plot(ends, [y, y], **line)
        if dot.points:
            small: Any = {"linestyle": "", "marker": "|", "markersize": 5, "color": style["color"]}
            axes.plot(dot.points, [y] * len(dot.points), **small, alpha=0.45, label="_point")
        style |= {"markerfacecolor": "white"} if dot.is_open else {}
        axes.plot([dot.value], [y], **style, label="_dot", zorder=3)
    return any(dot.low < left or dot.high > right for dot in shown)


def _limits(dots: Sequence[Dot], mark: float | None) -> tuple[float, float]:
    """Returns an axis's limits: every dot and the mark whole, of wide intervals what is near."""
    dots = [dot for dot in dots if math.isfinite(dot.value)]
    numbers = [number for dot in dots for number in (dot.value, *dot.points)]
    numbers += [] if mark is None else [mark]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    ends = [end for dot in dots for end in (dot.low, dot.high) if math.isfinite(end)]
    widths = [width for dot in dots if math.isfinite(width := dot.high - dot.low)]
    beyond = max(_BEYOND * (high - low), _USUAL * median(widths or [0.0])) or math.inf
    low, high = max(low - beyond, min([low, *ends])), min(high + beyond, max([high, *ends]))
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


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
    table: Any = summarise(runs, columns, metric).dropna(subset="mean")
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
    unfinished = list(runs.runs["status"] != "finished").count(True)
    note += f" {unfinished} of {len(runs)} runs did not finish." if unfinished else ""
    try:
        pairs = compare(runs, columns, metric, baseline=baseline) if ax is None else None
    except StudyError as error:
        note += f" No differences: {error}" if len(names) > 1 else ""
    width = room(width, figure)
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
