"""Figure of the stability of training: signs of collapse, drift and explosion over steps."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from segcredit.records.tables import Runs
from segcredit.study.plots.captions import curve_note, legend_entries
from segcredit.study.plots.curves import IntervalKind, curves_of, require_curves
from segcredit.study.plots.groups import failed_runs, groups_of
from segcredit.study.plots.panels import draw_panel, fullest
from segcredit.study.plots.sheet import finish, new_axes, new_sheet
from segcredit.study.plots.style import COLUMN, PAGE, STYLE
from segcredit.study.statistics.groups import columns_of

METRICS = (
    "entropy",
    "kl",
    "clip_fraction",
    "completion_length",
    "gradient_norm",
    "explained_variance",
)
"""The panels of ``stability``, in reading order."""


def stability(
    runs: Runs,
    *,
    by: Sequence[str] | str = ("method", "segmenter"),
    window: int = 1,
    interval: IntervalKind = "student",
    width: float = PAGE,
) -> Figure:
    """Draws six metrics over training, a panel each: a line a group, a band over its seeds.

    Entropy, KL, clip fraction, completion length, gradient norm and explained variance; lines and
    bands as in ``learning_curves``, without the seeds' own lines. An axis is logarithmic where its
    means span more than a decade and a half; that of the explained variance, which is at most 1
    and has no lower bound, is so below −1 where one is below −30. A panel that no run recorded
    says so.

    Args:
        runs: as ``read_runs`` returns them.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        window: how many steps make one point, the mean of what a run recorded in them; more than
            one calms many groups, but flattens what happens in one step.
        interval: "student" (mean ± t · standard error) or "bootstrap" (percentiles of the mean;
            too narrow below some ten seeds), as in the tables.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: a column is unknown, the window is below 1, or no run recorded any of the
            metrics.
    """
    columns = columns_of(runs, by)
    groups = groups_of(runs, columns)
    chosen: Any = {"interval": interval, "window": window}
    panels = {metric: curves_of(runs, groups, metric, **chosen) for metric in METRICS}
    drawn = fullest(panels.values())
    require_curves(runs, drawn, "stability", f"any of {', '.join(METRICS)}")
    across = 2 if width < 1.5 * COLUMN else 3
    down = len(METRICS) // across
    with matplotlib.rc_context(STYLE):
        title = f"Stability of training by {', '.join(columns)}: {', '.join(METRICS)} over steps"
        figure = new_sheet(width, 1.3 * down, title)
        panes = new_axes(figure, down, across)
        for axes, (metric, curves) in zip(panes, panels.items(), strict=True):
            draw_panel(axes, metric, curves, failed_runs(runs), seeds=False)
        for axes in panes[:-across]:
            axes.set_xlabel("")
        note = curve_note(runs, drawn, seeds=False, window=window)
        finish(figure, note, legend_entries(drawn), ", ".join(columns), beside=False)
    return figure
