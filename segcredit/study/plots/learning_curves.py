"""Learning curves."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from segcredit.records.tables import Runs
from segcredit.study.plots.captions import curve_note, legend_entries
from segcredit.study.plots.curves import IntervalKind, curves_of, require_curves
from segcredit.study.plots.drawing import draw_curve, label_axes, scale
from segcredit.study.plots.groups import failed_runs, groups_of
from segcredit.study.plots.sheet import finish, new_axes, new_sheet
from segcredit.study.plots.style import PAGE, STYLE, label
from segcredit.study.statistics.groups import columns_of


def learning_curves(
    runs: Runs,
    *,
    metric: str = "accuracy",
    by: Sequence[str] | str = ("method", "segmenter"),
    per: str = "step",
    interval: IntervalKind = "student",
    width: float = PAGE,
) -> Figure:
    """Draws a metric over training: a line a group, a band over its seeds, a thin line a seed.

    The line is the mean over the runs that recorded the metric at that step, the band the 95%
    interval of that mean (the unit is the run, normally a seed), absent where there is one run. It
    may leave the picture where few seeds make it much wider than the runs lie apart. Where runs
    are of different lengths, the number of runs behind a line changes along it; the legend then
    gives its range. Failed runs count as far as they got, and end in a cross.

    Over a cost, a point of the line stands at the mean cost and the mean value of the same runs at
    the same step: nothing is interpolated, and the band is that of the values alone. What came
    before step 0, such as a critic's warm-up, is in the cost, so that such lines begin later.

    Args:
        runs: as ``read_runs`` returns them.
        metric: a column of ``runs.steps``.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        per: the horizontal axis: "step", "tokens_sampled" or "cpu_seconds".
        interval: "student" (mean ± t · standard error) or "bootstrap" (percentiles of the mean;
            too narrow below some ten seeds), as in the tables.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: the metric, a column or the cost is unknown, or nothing was recorded.
    """
    columns = columns_of(runs, by)
    curves = curves_of(runs, groups_of(runs, columns), metric, per, interval=interval)
    wanted = f"'{metric}'" if per == "step" else f"'{metric}' together with '{per}'"
    require_curves(runs, curves, "learning curves", wanted)
    with matplotlib.rc_context(STYLE):
        title = f"Learning curves: {label(metric)} over {label(per)} by {', '.join(columns)}"
        figure = new_sheet(width, 1.0 + 0.3 * width, title)
        (axes,) = new_axes(figure)
        for curve in curves:
            draw_curve(axes, curve, failed_runs(runs))
        label_axes(axes, metric, per)
        scale(axes, curves, metric)
        finish(figure, curve_note(runs, curves), legend_entries(curves), ", ".join(columns))
    return figure
