"""Figure of the number of segments in a completion, and of their lengths."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segcredit.records.tables import Runs
from segcredit.study.plots.captions import curve_note, legend_entries
from segcredit.study.plots.curves import Curve, IntervalKind, curves_of, intervals, require_curves
from segcredit.study.plots.drawing import draw_curve, number_decades, spans_decades
from segcredit.study.plots.groups import Group, failed_runs, groups_of
from segcredit.study.plots.panels import draw_panel, fullest
from segcredit.study.plots.sheet import finish, new_axes, new_sheet, nothing
from segcredit.study.plots.style import PAGE, STYLE
from segcredit.study.statistics.groups import columns_of

_LENGTHS = 200
"""Most lengths at which a distribution is drawn; where more occur, these are spread evenly over
their ranks."""


def segment_shapes(
    runs: Runs,
    *,
    by: Sequence[str] | str = ("segmenter",),
    interval: IntervalKind = "student",
    width: float = PAGE,
) -> Figure:
    """Draws segments a completion over training, and the distribution of segment lengths.

    The first panel is as in ``learning_curves``. The second shows, for each length, the share of
    segments that are at most as long: taken in each run over all segments of all recorded steps,
    each counting once, then averaged over runs, with the 95% interval of that mean (the unit is
    the run, normally a seed, not the segment). A length is ``end`` − ``start``, so that tool or
    environment tokens inside a segment count. Axes are logarithmic where they span more than a
    decade and a half.

    Args:
        runs: as ``read_runs`` returns them; of ``.segments`` two columns are read.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        interval: "student" (mean ± t · standard error) or "bootstrap" (percentiles of the mean;
            too narrow below some ten seeds), as in the tables.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: a column is unknown, or the runs recorded neither number nor lengths.
    """
    columns = columns_of(runs, by)
    groups = groups_of(runs, columns)
    counts = curves_of(runs, groups, "segments_per_completion", interval=interval)
    lengths = _length_curves(runs, groups, interval)
    drawn = fullest([counts, lengths])
    require_curves(runs, drawn, "segment shapes", "segments")
    with matplotlib.rc_context(STYLE):
        beside = width > 4
        title = f"Segments a completion over steps, and their lengths, by {', '.join(columns)}"
        figure = new_sheet(width, 2.1 if beside else 3.6, title)
        left, right = new_axes(figure, *((1, 2) if beside else (2, 1)))
        draw_panel(left, "segments_per_completion", counts, failed_runs(runs))
        _draw_lengths(right, lengths)
        finish(figure, curve_note(runs, drawn), legend_entries(drawn), ", ".join(columns))
    return figure


def _length_curves(runs: Runs, groups: Sequence[Group], interval: IntervalKind) -> list[Curve]:
    """Returns each group's curve of the share of segments of at most each length."""
    segments = runs.read("segments", columns=["start", "end"])
    counts = pd.crosstab(segments["end"] - segments["start"], segments["run"])
    counts.columns = counts.columns.astype(str)
    return [
        _length_curve(group, counts.loc[:, members], interval)
        for group in groups
        if (members := [run for run in group.runs if run in counts.columns])
    ]


def _length_curve(group: Group, counts: pd.DataFrame, interval: IntervalKind) -> Curve:
    """Makes a curve from counts, lengths by runs; it begins at a share of 0."""
    shares = counts.cumsum() / counts.sum()
    none = pd.DataFrame(0.0, index=[min(shares.index) - 1], columns=shares.columns)
    shares = pd.concat([none, shares])
    kept = np.linspace(0, len(shares) - 1, min(len(shares), _LENGTHS)).round().astype(int)
    shares = shares.iloc[kept]
    place = shares.index.to_numpy(dtype=np.float64)
    places = pd.DataFrame(dict.fromkeys(shares, place), index=shares.index)
    low, high = intervals(shares, interval, (0.0, 1.0))
    mean = shares.mean(axis=1).to_numpy()
    return Curve(group, shares, places, place, mean, low, high, interval)


def _draw_lengths(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws steps, since lengths are whole numbers."""
    axes.set(xlabel="segment length (tokens)", ylabel="share at most as long", ylim=(-0.04, 1.04))
    for curve in curves:
        draw_curve(axes, curve, drawstyle="steps-post")
    if not curves:
        nothing(axes, "not recorded")
        return
    lengths = np.concatenate([curve.place[1:] for curve in curves])
    if spans_decades(lengths):
        axes.set_xscale("log")
        number_decades(axes.xaxis, lengths)
        axes.set_xlim(lengths.min() / 1.2, lengths.max() * 1.2)
