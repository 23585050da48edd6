"""Figure of the fit of learned values to returns, over training."""

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
from segcredit.study.plots.panels import draw_panel
from segcredit.study.plots.sheet import finish, new_axes, new_sheet
from segcredit.study.plots.style import PAGE, STYLE
from segcredit.study.statistics.groups import columns_of


def value_consistency(
    runs: Runs,
    *,
    by: Sequence[str] | str = ("method",),
    window: int = 1,
    interval: IntervalKind = "student",
    width: float = PAGE,
) -> Figure:
    """Draws value loss and explained variance over training: a line a group, bands, thin seeds.

    Only groups that record a value loss are drawn: the others learn no value. Lines and bands are
    as in ``learning_curves``; the axis of the loss is logarithmic where its means span more than a
    decade and a half.

    Read the losses of methods with different segmenters with care. A value loss is a mean over the
    states at which values are learned, and those differ in number and in kind: one before each
    token for PPO and VC-PPO, one before each segment for SAPO. Its targets differ as well (each
    estimator's own lambda), and targets that vary less are met more closely by any critic. A lower
    line is thus not yet a better critic. The explained variance is of realised returns for every
    method, relative to how much these vary; but it, too, is over each method's own states.

    Args:
        runs: as ``read_runs`` returns them.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        window: how many steps make one point, the mean of what a run recorded in them; more than
            one calms many groups, but flattens what happens in one step.
        interval: "student" (mean ± t · standard error) or "bootstrap" (percentiles of the mean;
            too narrow below some ten seeds), as in the tables.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: a column is unknown, the window is below 1, or no run recorded a value loss.

    Source:
        Segment-Aligned Policy Optimization, 2026, arXiv 2605.01327, Figure 6: the value loss of
        SAPO against that of VC-PPO. Deliberate differences: any groups, intervals over seeds, and
        the explained variance beside it.
    """
    columns = columns_of(runs, by)
    groups = groups_of(runs, columns)
    chosen: Any = {"interval": interval, "window": window}
    losses = curves_of(runs, groups, "value_loss", **chosen)
    require_curves(runs, losses, "value consistency", "'value_loss'")
    learning = [curve.group for curve in losses]
    explained = curves_of(runs, learning, "explained_variance", **chosen)
    panels = {"value_loss": losses, "explained_variance": explained}
    with matplotlib.rc_context(STYLE):
        title = f"Value loss and explained variance over steps by {', '.join(columns)}"
        beside = width > 4
        figure = new_sheet(width, 2.1 if beside else 3.4, title)
        shape = (1, 2) if beside else (2, 1)
        for axes, (metric, curves) in zip(new_axes(figure, *shape), panels.items(), strict=True):
            draw_panel(axes, metric, curves, failed_runs(runs))
        finish(
            figure,
            curve_note(runs, losses, window=window),
            legend_entries(losses),
            ", ".join(columns),
        )
    return figure
