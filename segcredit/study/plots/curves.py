"""A metric of groups of runs over training: mean, interval and seeds, computed and drawn."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
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

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_known
from segcredit.study.plots.sheet import nothing
from segcredit.study.plots.style import LOOKS, label, look, wrapped
from segcredit.study.statistics import (
    known_metric,
    limits_of,
    stated_ends,
    student_intervals,
)
from segcredit.study.statistics.groups import columns_of, group_name, varying
from segcredit.study.statistics.groups import groups_of as grouped

Floats = NDArray[np.float64]

COSTS = ("step", "tokens_sampled", "cpu_seconds")
"""Horizontal axes that a curve may be drawn over."""
BAND_FROM = 5
"""Seeds from which a band is an interval; of fewer it is their range, which is all they show."""
MOST_SPREADS = 3
"""Groups in one panel whose bands and seeds can be seen; of more the means are drawn alone."""

_DECADES = 30.0
"""Largest over smallest value from which an axis is logarithmic: a decade and a half."""
_LABEL_WIDTH = 17
"""Letters in a line of a vertical label: the height of a small panel."""
_MARKS = 7
"""About how many markers a line carries."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that share the settings a figure tells apart."""

    name: str
    """The settings' values, joined by commas; without those that all groups share."""
    number: int
    """Its place among all groups of the runs, drawn or not: what its look follows."""
    runs: tuple[str, ...]
    """Names of the group's runs, as in the column ``run``."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One group's metric over training.

    Its frames have a row a step (or window of steps) and a column a run; NaN where unrecorded.
    """

    group: Group
    values: pd.DataFrame
    places: pd.DataFrame
    """Place of each value on the horizontal axis: its step, or the cost up to it."""
    place: Floats
    """Means of ``places`` over the runs that have a value at the step."""
    mean: Floats
    low: Floats
    high: Floats
    """Ends of the 95% interval over runs; of 2 to 4 their range, of one NaN."""

    @property
    def seeds(self) -> str:
        """The number of runs behind the means: '5', or '2–5' where it changes along the line."""
        counts = self.values.notna().sum(axis=1)
        return "–".join(map(str, dict.fromkeys((int(counts.min()), int(counts.max())))))


def groups_of(runs: Runs, by: Sequence[str] | str, *, most: int | None = LOOKS) -> list[Group]:
    """Returns the groups that the values of some config columns make, in the order of those values.

    Raises:
        StudyError: ``by`` is empty or names no config column, or makes more than ``most`` groups,
            which by default are as many as can be told apart.
    """
    columns = columns_of(runs, by)
    named = varying(runs, columns)
    unmeasured = pd.DataFrame({"run": pd.Series(dtype=str), "value": pd.Series(dtype=float)})
    groups = [
        Group(group_name({name: one.settings[name] for name in named}), n, tuple(one.runs["run"]))
        for n, one in enumerate(grouped(runs, columns, unmeasured))
    ]
    if most is not None and len(groups) > most:
        raise StudyError(
            f"The columns {', '.join(columns)} make {len(groups)} groups of the {len(runs)} runs;"
            f" expected at most {most}, which can be told apart. Usually a column that differs in"
            " every run, such as 'seed', is among them: name fewer, or read fewer runs."
        )
    return groups


def unit_of(runs: Runs, groups: Iterable[Iterable[str]]) -> str:
    """Names the unit of an interval: 'seed', or 'run' where runs of a group differ in more."""
    if "seed" not in runs.runs.columns:
        return "run"
    seeds = runs.runs.set_index(runs.runs["run"].astype(str))["seed"].astype(object)
    each = [seeds.loc[list(group)] for group in groups]
    return "run" if any(one.isna().any() or one.duplicated().any() for one in each) else "seed"


def failed_runs(runs: Runs) -> set[str]:
    """Returns the names of the runs that failed."""
    return set(runs.runs.loc[runs.runs["status"] == "failed", "run"].astype(str))


def curves_of(
    runs: Runs, groups: Sequence[Group], metric: str, per: str = "step", *, window: int = 1
) -> list[Curve]:
    """Returns the curves of those groups in which some run recorded the metric; may be none.

    A point is the mean of what a run recorded in ``window`` steps, the runs of which are then
    averaged; its place is the mean of their steps, or of their cost so far (``per``).

    Raises:
        StudyError: the metric or the cost is unknown, or the window is below 1.
    """
    if window < 1:
        raise StudyError(f"The window is {window} steps; expected at least 1, which is no window.")
    metric = known_metric(runs, metric)
    require_known("cost to draw over", [per], COSTS)
    ordered = runs.steps.sort_values(["run", "step"], kind="stable")
    # A row without its cost has had at least the cost of the row before.
    costs = ordered.groupby("run", observed=True)[per].ffill() if per != "step" else ordered["step"]
    names = ordered["run"].astype(str)
    step, value = ordered["step"], ordered[metric]
    rows = pd.DataFrame({"run": names, "step": step, "value": value, "place": costs}).dropna()
    rows = rows.drop_duplicates(["run", "step"], keep="last")
    # Windows: steps 1 to ``window``, then as many again; 0 alone.
    number = (rows["step"] + window - 1) // window
    means: Any = rows.groupby(["run", number])[["value", "place"]].mean()
    points = means.reset_index()
    found: list[Curve] = []
    for group in groups:
        own = points.loc[points["run"].isin(group.runs), :]
        if len(own):
            values, places = (
                own.pivot(index="step", columns="run", values=name).astype("float64")
                for name in ("value", "place")
            )
            found.append(curve_of(group, values, places, limits_of(metric)))
    return found


def curve_of(
    group: Group, values: pd.DataFrame, places: pd.DataFrame, limits: tuple[float, float] | None
) -> Curve:
    """Returns a curve of values and their places (points x runs) that lie inside ``limits``."""
    ends = stated_ends(*student_intervals(values), values, limits, fewest=BAND_FROM)
    place, mean = (frame.mean(axis=1).to_numpy() for frame in (places, values))
    return Curve(group, values, places, place, mean, *ends)


def require_curves(runs: Runs, curves: Collection[object], figure: str, what: str) -> None:
    """Raises where there is nothing to draw: says which figure lacks what.

    Raises:
        StudyError: ``curves`` is empty.
    """
    if not curves:
        raise StudyError(
            f"The figure '{figure}' cannot be drawn: none of the {len(runs)} runs in {runs.path}"
            f" recorded {what} ({len(failed_runs(runs))} of them failed). Usually the runs stopped"
            " before they were evaluated, or their method or config records no such thing: see"
            " the columns 'status' and 'error' of .runs."
        )


def draw_curve(
    axes: Axes,
    curve: Curve,
    failed: Collection[str] = (),
    *,
    spread: bool = True,
    style: Mapping[str, Any] | None = None,
    drawstyle: Literal["default", "steps-post"] = "default",
) -> None:
    """Draws the mean, the band of its interval and, thin, the seeds; × ends a failed one.

    Each artist's label says which it is: _mean, _interval, _lone interval, _seed or _failed. Band
    and runs are left out without ``spread``. ``style`` is of the mean, where it is not the group's
    look; ``drawstyle`` "steps-post" is for values that hold until the next.
    """
    style = dict(look(curve.group.number) if style is None else style)
    colour: Any = {"color": style["color"]}
    for run in curve.values.columns if spread else ():
        values = curve.values[run].dropna()
        places = curve.places.loc[values.index, run]
        thin: Any = {"linewidth": 0.5, "alpha": 0.55, "drawstyle": drawstyle}
        axes.plot(places, values, **colour, **thin, label="_seed")
        if run in failed:
            axes.plot(places[-1:], values[-1:], "x", **colour, markersize=4, label="_failed")
    if spread:
        step = "post" if drawstyle == "steps-post" else None
        band: Any = {**colour, "label": "_interval", "alpha": 0.15, "linewidth": 0, "step": step}
        band |= {"zorder": 0.9}  # below all lines
        axes.fill_between(curve.place, curve.low, curve.high, **band)
        known = np.pad(~np.isnan(curve.low), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]
        if alone.any():  # a band without width is invisible
            place, low, high = (ends[alone] for ends in (curve.place, curve.low, curve.high))
            axes.vlines(place, low, high, **colour, linewidth=0.8, label="_lone interval")
    how: Any = {"markevery": _marks(curve, drawstyle), "drawstyle": drawstyle, "label": "_mean"}
    axes.plot(curve.place, curve.mean, **({"zorder": 3} | how | style))


def _marks(curve: Curve, drawstyle: str) -> tuple[float, float]:
    """Returns the points of a line that carry a marker: the first, and the distance to the next.

    Shifted from group to group, lest markers of lines that lie together cover each other.
    """
    shift = curve.group.number / 5 % 1
    if drawstyle == "steps-post":  # shares of the picture, since lengths are far from even
        return shift / _MARKS, 1 / _MARKS
    every = max(1, len(curve.place) // _MARKS)
    return int(shift * every), every


def draw_panel(
    axes: Axes, metric: str, curves: Sequence[Curve], failed: Collection[str], *, per: str = "step"
) -> None:
    """Draws one metric's curves, or a word where no run recorded it."""
    label_axes(axes, metric, per)
    for curve in curves:
        draw_curve(axes, curve, failed, spread=len(curves) <= MOST_SPREADS)
    if curves:
        scale(axes, curves, metric, spread=len(curves) <= MOST_SPREADS)
    else:
        nothing(axes, "not recorded")


def scale(axes: Axes, curves: Sequence[Curve], metric: str, *, spread: bool = True) -> None:
    """Makes a vertical axis logarithmic where the means span decades, and sets its limits.

    Every line is shown whole; of a band that is far wider than its lines, what is near.
    """
    means = np.concatenate([curve.mean for curve in curves])
    if spans_decades(means):
        axes.set_yscale("log")
        number_decades(axes.yaxis, means)
    elif metric == "explained_variance" and means.min() < -_DECADES:
        # At most 1, without a lower bound: one bad critic would flatten all others.
        axes.set_yscale("symlog", linthresh=1)
    drawn = [curve.values.to_numpy().ravel() for curve in curves] if spread else []
    there = axes.yaxis.get_transform()
    lines: Floats = there.transform(np.concatenate([means, *drawn]))
    low, high = np.nanmin(lines[np.isfinite(lines)]), np.nanmax(lines[np.isfinite(lines)])
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 0.05
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


def label_axes(axes: Axes, metric: str, per: str) -> None:
    """Names the axes; '' for none."""
    axes.set(xlabel=label(per), ylabel=wrapped(label(metric), _LABEL_WIDTH))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def curve_note(runs: Runs, curves: Sequence[Curve], *parts: str, spread: bool = True) -> str:
    """Returns the sentence below curves: the meaning of line and band, and the runs they are over.

    ``parts`` are what else is to be said; ``spread``, whether bands and runs are drawn.
    """
    unit = unit_of(runs, [curve.values.columns for curve in curves])
    drawn = {run for curve in curves for run in curve.values.columns}
    counts = {curve.seeds for curve in curves}
    said = ["Line: mean over " + (_counted(counts.pop(), unit) if len(counts) == 1 else f"{unit}s")]
    if spread:
        said += [f"thin: {unit}s", f"band: 95% Student interval, of 2 to {BAND_FROM - 1} the range"]
        said += ["×: where a run failed"] if drawn & failed_runs(runs) else []
    ends = runs.runs.set_index(runs.runs["run"].astype(str))["status"].loc[sorted(drawn)]
    unfinished = int((ends != "finished").sum())
    said += [f"{unfinished} of {len(runs)} runs did not finish"] if unfinished else []
    if len(drawn) < len(runs):
        said.append(f"{len(runs) - len(drawn)} of {len(runs)} runs recorded none")
    return "; ".join([*said, *parts]) + "."


def names_of(runs: Runs, curves: Sequence[Curve], *, noted: bool = True) -> dict[int, str]:
    """Returns each group's name by its number, with that of its runs where no note says it of all.

    Args:
        runs: those that were drawn.
        curves: one of each group.
        noted: the figure has a ``curve_note``, which says once what is the same in all groups.
    """
    if noted and len({curve.seeds for curve in curves}) == 1:
        return {one.group.number: one.group.name for one in curves}
    unit = unit_of(runs, [curve.values.columns for curve in curves])
    return {c.group.number: f"{c.group.name} ({_counted(c.seeds, unit)})" for c in curves}


def _counted(number: str, unit: str) -> str:
    return f"{number} {unit}{'s' * (number != '1')}"


def fullest(panels: Iterable[Sequence[Curve]]) -> list[Curve]:
    """Returns a curve of each group in some panel, that of the most runs, for the legend."""
    every = sorted(itertools.chain(*panels), key=lambda curve: len(curve.values.columns))
    best = {curve.group.number: curve for curve in every}
    return [best[number] for number in sorted(best)]
