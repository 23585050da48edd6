"""Drawing of curves: line, band and seeds, and the axes that they need."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)
from numpy.typing import NDArray

from segcredit.study.plots.curves import Curve, Floats
from segcredit.study.plots.style import label, look, wrapped

_DECADES = 30.0
"""Largest over smallest value from which an axis is logarithmic: a decade and a half."""
_BEYOND = 0.3
"""Stretch of an axis by a band, at most, as a share of the range of the lines."""
_LABEL_WIDTH = 17
"""Letters in a line of a vertical label: the height of a small panel."""
_MARKS = 7
"""About how many markers a line carries."""


def draw_curve(
    axes: Axes,
    curve: Curve,
    failed: Collection[str] = (),
    *,
    seeds: bool = True,
    size: float = 1.0,
    drawstyle: Literal["default", "steps-post"] = "default",
) -> None:
    """Draws the mean, the band of its interval and, thin, the seeds; × ends a failed one.

    Each artist's label says which it is: _mean, _interval, _lone interval, _seed or _failed.

    Args:
        axes: where.
        curve: what.
        failed: names of the runs that failed.
        seeds: whether the runs are drawn one by one, too.
        size: of line and markers, against the usual.
        drawstyle: "steps-post" for values that hold until the next.
    """
    style = look(curve.group.number)
    style |= {name: style[name] * size for name in ("linewidth", "markersize")}
    colour: Any = {"color": style["color"]}
    for run in curve.values.columns if seeds else ():
        values = curve.values[run].dropna()
        places = curve.places.loc[values.index, run]
        thin: Any = {"linewidth": 0.4, "alpha": 0.45, "drawstyle": drawstyle}
        axes.plot(places, values, **colour, **thin, label="_seed")
        if run in failed:
            axes.plot(places[-1:], values[-1:], "x", **colour, markersize=4, label="_failed")
    step = "post" if drawstyle == "steps-post" else None
    band: Any = {**colour, "label": "_interval", "alpha": 0.13, "linewidth": 0, "step": step}
    axes.fill_between(curve.place, curve.low, curve.high, **band)
    alone = _without_neighbours(~np.isnan(curve.low))
    if alone.any():  # a band without width is invisible
        place, low, high = (ends[alone] for ends in (curve.place, curve.low, curve.high))
        axes.vlines(place, low, high, **colour, linewidth=0.8, label="_lone interval")
    style |= {"markevery": _marks(curve, drawstyle), "drawstyle": drawstyle}
    axes.plot(curve.place, curve.mean, **style, zorder=3, label="_mean")


def _without_neighbours(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks the known values that stand between unknown ones."""
    padded = np.pad(known, 1)
    return known & ~padded[:-2] & ~padded[2:]


def _marks(curve: Curve, drawstyle: str) -> tuple[float, float]:
    """Returns the points of a line that carry a marker: the first, and the distance to the next.

    Shifted from group to group, lest markers of lines that lie together cover each other.
    """
    shift = curve.group.number / 5 % 1
    if drawstyle == "steps-post":  # shares of the picture, since lengths are far from even
        return shift / _MARKS, 1 / _MARKS
    every = max(1, len(curve.place) // _MARKS)
    return int(shift * every), every


def scale(axes: Axes, curves: Sequence[Curve], metric: str, *, seeds: bool = True) -> None:
    """Makes a vertical axis logarithmic where the means span decades, and sets its limits."""
    means = np.concatenate([curve.mean for curve in curves])
    if spans_decades(means):
        axes.set_yscale("log")
        number_decades(axes.yaxis, means)
    elif metric == "explained_variance" and means.min() < -_DECADES:
        # At most 1, without a lower bound: one bad critic would flatten all others.
        axes.set_yscale("symlog", linthresh=1)
    runs = [curve.values.to_numpy().ravel() for curve in curves] if seeds else []
    _limit(axes, np.concatenate([means, *runs]), curves)


def _limit(axes: Axes, lines: Floats, curves: Sequence[Curve]) -> None:
    """Shows every line whole, and of wide bands what is near: those of two seeds flatten all."""
    there = axes.yaxis.get_transform()
    drawn, ends = (
        there.transform(values[~np.isnan(values)])
        for values in (
            lines,
            np.concatenate([end for curve in curves for end in (curve.low, curve.high)]),
        )
    )
    low, high = drawn.min(), drawn.max()
    beyond = _BEYOND * (high - low)
    low = max(low - beyond, np.append(ends, low).min())
    high = min(high + beyond, np.append(ends, high).max())
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(*there.inverted().transform(np.array([low - margin, high + margin])))


def spans_decades(values: Floats) -> bool:
    """Tells whether an axis should be logarithmic: all positive, over a decade and a half."""
    return bool(values.min() > 0 and values.max() / values.min() > _DECADES)


def number_decades(axis: Axis, values: Floats) -> None:
    """Puts plain numbers on a logarithmic axis, and enough of them where the decades are few."""
    few = values.max() / values.min() < 1e3
    axis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,), numticks=7))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_axes(axes: Axes, metric: str, per: str = "step") -> None:
    """Names both axes."""
    axes.set(xlabel=label(per), ylabel=wrapped(label(metric), _LABEL_WIDTH))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if per != "step":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
