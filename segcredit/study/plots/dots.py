"""Dots with their intervals, a row of them for each of several things."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from segcredit.study.plots.sheet import new_axes
from segcredit.study.plots.style import look, wrapped

MOST_KINDS = 14
"""Kinds of dots that can be told apart without colour: by marker, filled or open."""
_SPREAD, _APART = 0.76, 0.3
"""The share of a row that its dots take, and the most that two of them lie apart."""
_BEYOND, _USUAL = 0.5, 2.0
"""Stretch of the axis to each side by intervals, at most: a share of the range of the dots, or
widths of the median interval, whichever is more."""
_LETTERS = 20
"""In a line of a row's name."""
_TITLE = 13
"""Letters an inch of a panel's title."""
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

    @property
    def ends(self) -> list[float]:
        """Finite ends of the interval."""
        return [end for end in (self.low, self.high) if math.isfinite(end)]


def dot_of(row: Mapping[str, Any], place: int, kind: int) -> Dot:
    """Returns one row of an audit's table, as the dot of a kind in a row of the figure."""
    return Dot(place, kind, *(float(row[name]) for name in ("value", "low", "high")))


def dot_style(kind: int) -> dict[str, Any]:
    """Returns ``look`` with whole lines, since intervals are short; the marker tells apart."""
    return look(kind) | {"linestyle": "-", "linewidth": 1.0}


def draw_panels(
    sheet: Figure, panels: Mapping[str, Sequence[Dot]], names: Sequence[str], kinds: int, **how: Any
) -> bool:
    """Draws a panel of dots for each title, all on one scale, with a row for each name.

    Args:
        sheet: as ``new_sheet`` makes it.
        panels: by title.
        names: of the rows, from above.
        kinds: how many dots a row may have.
        how: ``mark``, the number at which a thin line is; ``across``, panels beside each other;
            ``axis``, what the numbers are.

    Returns:
        Whether some interval goes on beyond the frame.
    """
    across = min(len(panels), int(how["across"]))
    panes = new_axes(sheet, -(-len(panels) // across), across, sharex=True, sharey=True)
    letters = int(sheet.get_figwidth() * _TITLE / across)
    everything = [dot for dots in panels.values() for dot in dots]
    shown = limits(everything, how["mark"])
    for axes, (title, dots) in zip(panes, panels.items(), strict=False):
        _draw_rows(axes, names, how["mark"])
        _number_axis(axes, shown)
        draw_dots(axes, dots, kinds)
        axes.set_title(wrapped(title, letters), size=7)
    for number, axes in enumerate(panes):
        if number >= len(panels):
            axes.remove()
        elif number + across >= len(panels):
            axes.set_xlabel(wrapped(how["axis"], letters), size=7)
            axes.tick_params(labelbottom=True)
    return any(dot.low < shown[0] or dot.high > shown[1] for dot in everything)


def panels_height(panels: int, across: int, rows: int, kinds: int) -> float:
    """Returns the height of the panels in inches."""
    return -(-panels // across) * (rows * max(0.19, 0.11 * kinds + 0.06) + 0.55)


def draw_dots(axes: Axes, dots: Sequence[Dot], kinds: int) -> None:
    """Draws dots and intervals, kinds one below the other; their labels are _dot and _interval.

    Args:
        axes: with its horizontal limits set, to which an endless interval is drawn.
        dots: NaN values are left out.
        kinds: how many a row may have.
    """
    apart = min(_SPREAD / max(kinds, 1), _APART)
    left, right = axes.get_xlim()
    for dot in dots:
        if math.isnan(dot.value):
            continue
        y = dot.row + (dot.kind - (kinds - 1) / 2) * apart
        style = dot_style(dot.kind)
        if not math.isnan(dot.low + dot.high):
            ends = [max(dot.low, left - (right - left)), min(dot.high, right + (right - left))]
            line: Any = {"color": style["color"], "linewidth": style["linewidth"]}
            axes.plot(ends, [y, y], **line, label="_interval", solid_capstyle="butt")
        axes.plot([dot.value], [y], **style, label="_dot", zorder=3)


def _draw_rows(axes: Axes, names: Sequence[str], mark: float) -> None:
    """Names the rows, from above, parts them, and marks a number by a thin line."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [wrapped(name, _LETTERS) for name in names])
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color="0.9", linewidth=0.5, label="_part", zorder=0)
    axes.axvline(mark, color="0.4", linewidth=0.6, label="_mark", zorder=1)


def limits(dots: Sequence[Dot], mark: float) -> tuple[float, float]:
    """Returns an axis's limits: every dot and the mark whole, of wide intervals what is near."""
    values = [mark, *(dot.value for dot in dots if math.isfinite(dot.value))]
    low, high = min(values), max(values)
    ends = [end for dot in dots for end in dot.ends if not math.isnan(dot.value)]
    widths = [dot.high - dot.low for dot in dots if len(dot.ends) == 2]
    usual = median(widths) if widths else 0.0
    beyond = max(_BEYOND * (high - low), _USUAL * usual) or math.inf
    low = max(low - beyond, min([low, *ends]))
    high = min(high + beyond, max([high, *ends]))
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _number_axis(axes: Axes, shown: tuple[float, float]) -> None:
    """Puts few and short numbers on the axis."""
    axes.set_xlim(*shown)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if max(map(abs, shown)) >= _LARGE:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
