"""Figures of training: curves of what was measured, shapes of segments, maps of two settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, setting_text
from segcredit.study.plots.curves import (
    MOST_SPREADS,
    Curve,
    Group,
    curve_note,
    curve_of,
    curves_of,
    draw_curve,
    draw_panel,
    failed_runs,
    fullest,
    groups_of,
    label_axes,
    names_of,
    number_decades,
    require_curves,
    scale,
    spans_decades,
    unit_of,
)
from segcredit.study.plots.sheet import Canvas, nothing, room, sheet
from segcredit.study.plots.style import COLUMN, PAGE, colour_of, label, letters, wrapped
from segcredit.study.statistics import FEWEST, headline, sentences, summarise
from segcredit.study.statistics.groups import columns_of, varying

STABILITY = (
    "entropy",
    "kl",
    "clip_fraction",
    "completion_length",
    "gradient_norm",
    "explained_variance",
)
"""The panels of ``stability``, in reading order."""
_POINTS = 25
"""About how many points a line has where the caller names no window."""
_MOST_MARKED = 12
"""Points up to which a line in a panel of its own has a marker at each."""
_GREY = {"color": "0.78", "linewidth": 0.7, "zorder": 1.9, "label": "_other"}
LENGTHS = "segment lengths"
"""Name of the panel of lengths, which are over no steps."""
_MOST_LENGTHS = 200
"""Most lengths at which a distribution is drawn; where more occur, these are spread evenly over
their ranks."""
_WIDTHS, _HEIGHT = (0.88, 1.5), 0.5
"""The least and the most width of a field, and its height, in inches: three lines to read."""
_NAMES = 1.0
"""Inches for the names of the rows."""
_NAME_LETTERS = 13
"""In a line of a row's or column's name."""
_SHADES = LinearSegmentedColormap.from_list("blues", ["#EAF2FA", "#6BAED6", "#08306B"])
_DARK = 0.7
"""The shade from which text on it is white."""


def learning_curves(
    runs: Runs,
    *,
    metric: str = "accuracy",
    by: Sequence[str] | str = ("method", "segmenter"),
    per: str = "step",
    width: float = PAGE,
    figure: Canvas | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws a metric over training: a panel a group, its mean bold, its seeds thin, others grey.

    The line is the mean over the runs that recorded the metric at that step; the band is the 95%
    interval of that mean (the unit is the run, normally a seed) from five runs on, the range of two
    to four, and absent of one. Where runs are of different lengths, the number of runs behind a
    line changes along it; its name then gives the range. Failed runs count as far as they got, and
    end in a cross. The title says which groups end highest and lowest, and what the seeds separate.

    Over a cost, a point of the line stands at the mean cost and the mean value of the same runs at
    the same step: nothing is interpolated, and the band is that of the values alone. What came
    before step 0, such as a critic's warm-up, is in the cost, so that such lines begin later.

    Args:
        runs: as ``read_runs`` returns them.
        metric: a column of ``runs.steps``.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        per: the horizontal axis: "step", "tokens_sampled" or "cpu_seconds".
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".
        ax: one panel for all groups, with a legend and no note; of more than three the means alone,
            since bands would cover each other.

    Raises:
        StudyError: the metric, a column or the cost is unknown, or nothing was recorded.
    """
    columns = columns_of(runs, by)
    curves = curves_of(runs, groups_of(runs, columns), metric, per)
    wanted = f"'{metric}'" if per == "step" else f"'{metric}' together with '{per}'"
    require_curves(runs, curves, "learning curves", wanted)
    names, failed = names_of(runs, curves, noted=ax is None), failed_runs(runs)
    title = headline(runs, columns, metric, label(metric))
    width = room(width, figure)
    across = min(len(curves), 2 if width < 1.5 * COLUMN else 3 if len(curves) in (5, 6, 9) else 4)
    last = (len(curves) - 1) // across * across
    height = min(2.6, max(1.35, 0.66 * width / across)) * (last // across + 1)
    named = f"Learning curves: {label(metric)} over {label(per)} by {', '.join(columns)}"
    with sheet(width, height, named, figure=figure, ax=ax) as page:
        if ax is not None:
            draw_panel(ax, metric, curves, failed, per=per)
            page.finish(title, "", names)
            return page.figure
        panes = page.panels(len(curves), across, sharex=True, sharey=True)
        for number, (axes, curve) in enumerate(zip(panes, curves, strict=True)):
            for other in curves:
                if other is not curve:
                    draw_curve(axes, other, spread=False, style=_GREY)
            mark = {"marker": "o" if len(curve.place) <= _MOST_MARKED else "", "markevery": 1}
            bold = {"color": colour_of(curve.group.number), "linewidth": 1.7, **mark}
            draw_curve(axes, curve, failed, style=bold)
            label_axes(axes, metric if number % across == 0 else "", per if number >= last else "")
            axes.set_title(wrapped(names[curve.group.number], letters(width / across, 1.1)))
        scale(panes[0], curves, metric)
        grey = ["grey: means of the others"] if len(curves) > 1 else []
        page.finish(title, curve_note(runs, curves, *grey))
    return page.figure


def stability(
    runs: Runs,
    *,
    by: Sequence[str] | str = ("method", "segmenter"),
    window: int | None = None,
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws six metrics over training, a panel each, a line a group.

    Entropy, KL, clip fraction, completion length, gradient norm and explained variance; lines and
    bands as in ``learning_curves``, of more than three groups the means alone: for one metric with
    its seeds use ``learning_curves(metric=...)``. An axis is logarithmic where its means span more
    than a decade and a half; that of the explained variance, which is at most 1 and has no lower
    bound, is so below −1 where one is below −30. A panel that no run recorded says so.

    Args:
        runs: as ``read_runs`` returns them.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        window: how many steps make one point, the mean of what a run recorded in them; by default
            as many as leave some 25 points. A window calms many groups, but flattens what happens
            in one step.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: a column is unknown, the window is below 1, or no run recorded any of the
            metrics.
    """
    columns = columns_of(runs, by)
    groups, window = groups_of(runs, columns), _window(runs, window)
    panels = {metric: curves_of(runs, groups, metric, window=window) for metric in STABILITY}
    require_curves(runs, fullest(panels.values()), "stability", f"any of {', '.join(STABILITY)}")
    named = f"Stability of training by {', '.join(columns)}: {', '.join(STABILITY)} over steps"
    return _metrics_figure(runs, panels, columns, named, width, figure, window)


def value_consistency(
    runs: Runs,
    *,
    by: Sequence[str] | str = ("method",),
    window: int | None = None,
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws value loss and explained variance over training, a line a group, as ``stability`` does.

    Only groups that record a value loss are drawn: the others learn no value.

    Read the losses of methods with different segmenters with care. A value loss is a mean over the
    states at which values are learned, and those differ in number and in kind: one before each
    token for PPO and VC-PPO, one before each segment for SAPO. Its targets differ as well (each
    estimator's own lambda), and targets that vary less are met more closely by any critic. A lower
    line is thus not yet a better critic. The explained variance is of realised returns for every
    method, relative to how much these vary; but it, too, is over each method's own states.

    Args:
        runs: as ``read_runs`` returns them.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        window: as in ``stability``.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: a column is unknown, the window is below 1, or no run recorded a value loss.

    Source:
        Segment-Aligned Policy Optimization, 2026, arXiv 2605.01327, Figure 6: the value loss of
        SAPO against that of VC-PPO. Deliberate differences: any groups, intervals over seeds, and
        the explained variance beside it.
    """
    columns = columns_of(runs, by)
    groups, window = groups_of(runs, columns), _window(runs, window)
    losses = curves_of(runs, groups, "value_loss", window=window)
    require_curves(runs, losses, "value consistency", "'value_loss'")
    learning = [curve.group for curve in losses]
    explained = curves_of(runs, learning, "explained_variance", window=window)
    panels = {"value_loss": losses, "explained_variance": explained}
    named = f"Value loss and explained variance over steps by {', '.join(columns)}"
    return _metrics_figure(runs, panels, columns, named, width, figure, window)


def segment_shapes(
    runs: Runs,
    *,
    by: Sequence[str] | str = ("segmenter",),
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws segments a completion over training, and the distribution of segment lengths.

    The first panel is as in ``stability``, without windows. The second shows, for each length, the
    share of segments that are at most as long: taken in each run over all segments of all recorded
    steps, each counting once, then averaged over runs, with the band of that mean (the unit is the
    run, normally a seed, not the segment). A length is ``end`` − ``start``, so that tool or
    environment tokens inside a segment count. Axes are logarithmic where they span more than a
    decade and a half.

    Args:
        runs: as ``read_runs`` returns them; of ``.segments`` two columns are read.
        by: the columns of ``runs.runs`` whose values tell the groups apart.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: a column is unknown, or the runs recorded neither number nor lengths.
    """
    columns = columns_of(runs, by)
    groups, metric = groups_of(runs, columns), "segments_per_completion"
    panels = {metric: curves_of(runs, groups, metric), LENGTHS: _length_curves(runs, groups)}
    require_curves(runs, fullest(panels.values()), "segment shapes", "segments")
    named = f"Segments a completion over steps, and their lengths, by {', '.join(columns)}"
    return _metrics_figure(runs, panels, columns, named, width, figure)


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
    table: Any = summarise(runs, [rows, columns], metric)
    require_curves(runs, table["mean"].dropna().tolist(), "heat map", f"'{metric}'")
    fields = table.to_dict("records")
    keys: Any = runs.runs[[rows, columns]].map(setting_text)
    sizes = Counter(keys.itertuples(index=False, name=None))
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


def _window(runs: Runs, window: int | None) -> int:
    """Returns the window that was asked for, or one that leaves ``_POINTS`` of the longest run."""
    longest: Any = np.nan_to_num(runs.steps["step"].max())
    return max(1, round(longest / _POINTS)) if window is None else window


def _metrics_figure(
    runs: Runs,
    panels: Mapping[str, Sequence[Curve]],
    columns: Sequence[str],
    named: str,
    width: float,
    figure: Canvas | None,
    window: int = 1,
) -> Figure:
    """Draws a panel a metric, with title, note and legend; the title is of the first recorded."""
    is_wide, drawn = room(width, figure) >= 1.5 * COLUMN, fullest(panels.values())
    few = len(panels) == 2
    across = (2 if is_wide else 1) if few else (3 if is_wide else 2)
    height = (2.1 if is_wide else 1.8) if few else 1.3
    with sheet(width, height * len(panels) / across, named, figure=figure) as page:
        panes = page.panels(len(panels), across)
        for number, (axes, (metric, curves)) in enumerate(zip(panes, panels.items(), strict=True)):
            if metric == LENGTHS:
                _draw_lengths(axes, curves)
            else:
                below = few or number >= len(panels) - across
                draw_panel(axes, metric, curves, failed_runs(runs), per="step" if below else "")
        first = next(metric for metric, curves in panels.items() if curves)
        means = {curve.group.name: float(curve.mean[-1]) for curve in panels[first]}
        title = sentences.title(label(first), means, 0, 0) if first != LENGTHS else ""
        points = [f"a point: {window} steps"] if window > 1 else []
        note = curve_note(runs, drawn, *points, spread=len(drawn) <= MOST_SPREADS)
        names, by = names_of(runs, drawn), ", ".join(varying(runs, columns))
        page.finish(title, note, names, by, beside=few)
    return page.figure


def _length_curves(runs: Runs, groups: Sequence[Group]) -> list[Curve]:
    """Returns each group's curve of the share of segments of at most each length, from 0."""
    segments = runs.read("segments", columns=["start", "end"])
    counts = pd.crosstab(segments["end"] - segments["start"], segments["run"])
    counts.columns = counts.columns.astype(str)
    curves: list[Curve] = []
    for group in groups:
        members = [run for run in group.runs if run in counts.columns]
        if not members:
            continue
        shares = counts[members].cumsum() / counts[members].sum()
        none = pd.DataFrame(0.0, index=[min(shares.index) - 1], columns=shares.columns)
        shares = pd.concat([none, shares])
        kept = np.linspace(0, len(shares) - 1, min(len(shares), _MOST_LENGTHS)).round().astype(int)
        shares = shares.iloc[kept]
        places = shares.apply(lambda column: column.index.astype("float64"))
        curves.append(curve_of(group, shares, places, (0.0, 1.0)))
    return curves


def _draw_lengths(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws steps, since lengths are whole numbers."""
    axes.set(xlabel="segment length (tokens)", ylabel="share at most as long", ylim=(-0.04, 1.04))
    for curve in curves:
        draw_curve(axes, curve, spread=len(curves) <= MOST_SPREADS, drawstyle="steps-post")
    if not curves:
        nothing(axes, "not recorded")
        return
    lengths = np.concatenate([curve.place[1:] for curve in curves])
    if spans_decades(lengths):
        axes.set_xscale("log")
        number_decades(axes.xaxis, lengths)
        axes.set_xlim(lengths.min() / 1.2, lengths.max() * 1.2)


def _draw_names(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draws rows from above, columns from the left, hatched as long as nothing lies on them."""
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [wrapped(name, _NAME_LETTERS) for name in columns])
    axes.set_yticks(range(len(rows)), [wrapped(name, _NAME_LETTERS) for name in rows])
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
