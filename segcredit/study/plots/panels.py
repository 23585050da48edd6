"""Several metrics over training side by side, with one legend."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from matplotlib.axes import Axes

from segcredit.study.plots.curves import Curve
from segcredit.study.plots.drawing import draw_curve, label_axes, scale
from segcredit.study.plots.groups import Group
from segcredit.study.plots.sheet import nothing


def draw_panel(
    axes: Axes, metric: str, curves: Sequence[Curve], failed: Collection[str], *, seeds: bool = True
) -> None:
    """Draws one metric's curves, or a word where no run recorded it."""
    label_axes(axes, metric)
    for curve in curves:
        # Without the seeds the panels are many and small.
        draw_curve(axes, curve, failed, seeds=seeds, size=1.0 if seeds else 0.75)
    if curves:
        scale(axes, curves, metric, seeds=seeds)
    else:
        nothing(axes, "not recorded")


def fullest(panels: Iterable[Sequence[Curve]]) -> list[Curve]:
    """Returns a curve of each group in some panel, that of the most runs, for the legend."""
    best: dict[Group, Curve] = {}
    for curve in (curve for curves in panels for curve in curves):
        found = best.setdefault(curve.group, curve)
        if len(curve.values.columns) > len(found.values.columns):
            best[curve.group] = curve
    return sorted(best.values(), key=lambda curve: curve.group.number)
