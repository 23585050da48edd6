"""Dots with their intervals, a row of them for each of several things."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from segcredit.study.plots.style import COLUMN, look, wrapped

MOST_KINDS = 14
"""Kinds of dots that can be told apart without colour: by marker, filled or open."""
_SPREAD, _APART = 0.76, 0.3
"""The share of a row that its dots take, and the most that two of them lie apart."""
_BEYOND, _USUAL = 0.5, 2.0
"""Stretch of the axis to each side by intervals, at most: a share of the range of the dots, or
widths of the median interval, whichever is more."""
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
    """What the number is a mean of, to be drawn as well."""
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

    Each artist's label says which it is: _dot, _interval, _point, _mark or _part.

    Args:
        axes: where.
        dots: NaN values are left out.
        names: of the rows, from above, as ``row_names`` gives them.
        kinds: how many dots a row may have.
        mark: the number at which a thin line is; None for no line.
        scale: dots whose numbers are on the axis as well, such as those of other panels.

    Returns:
        Whether some interval goes on beyond the frame.
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
