"""A metric of a group of runs over training: mean, interval and seeds."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_known
from segcredit.study.plots.groups import Group, failed_runs
from segcredit.study.statistics import (
    IntervalKind,
    bootstrap_intervals,
    known_metric,
    limits_of,
    stated_ends,
    student_intervals,
)

Floats = NDArray[np.float64]

INTERVALS = {"student": "95% Student interval", "bootstrap": "95% bootstrap interval"}
"""Intervals of ``segcredit.study.statistics`` and their names in figures."""

COSTS = ("step", "tokens_sampled", "cpu_seconds")
"""Horizontal axes that a curve may be drawn over."""

_ROWS_AT_ONCE = 250
"""Bounds the memory of a bootstrap: 10,000 resampled means a row."""


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
    """Ends of the 95% interval over runs; of two their range, of fewer NaN."""
    interval: IntervalKind
    """Its kind."""

    @property
    def seeds(self) -> tuple[int, int]:
        """The smallest and the largest number of runs behind one of the means."""
        counts = self.values.notna().sum(axis=1)
        return int(counts.min()), int(counts.max())


def recorded(runs: Runs, metric: str, per: str = "step") -> pd.DataFrame:
    """Returns a row a recorded value of a metric: run, step, value and place, in order.

    Raises:
        StudyError: the metric or the cost is unknown.
    """
    metric = known_metric(runs, metric)
    require_known("cost to draw over", [per], COSTS)
    ordered = runs.steps.sort_values(["run", "step"], kind="stable")
    place = ordered["step"]
    if per != "step":
        # A row without its cost has had at least the cost of the row before.
        place = ordered.groupby("run", observed=True)[per].ffill()
    names = ordered["run"].astype(str)
    rows = pd.DataFrame(
        {"run": names, "step": ordered["step"], "value": ordered[metric], "place": place}
    )
    return rows.dropna().drop_duplicates(["run", "step"], keep="last")


def curves_of(
    runs: Runs,
    groups: Sequence[Group],
    metric: str,
    per: str = "step",
    *,
    interval: IntervalKind = "student",
    window: int = 1,
) -> list[Curve]:
    """Returns the curves of those groups in which some run recorded the metric; may be none.

    Args:
        runs: as ``read_runs`` returns them.
        groups: as ``groups_of`` makes them.
        metric: a column of ``runs.steps``.
        per: one of ``COSTS``.
        interval: one of ``INTERVALS``.
        window: how many steps make one point: the mean of what a run recorded in them.

    Raises:
        StudyError: the metric, the cost or the interval is unknown, or the window is below 1.
    """
    values = _windowed(recorded(runs, metric, per), window)
    return [
        _curve(group, rows, interval, limits_of(metric))
        for group in groups
        if len(rows := values.loc[values["run"].isin(group.runs), :])
    ]


def intervals(
    values: pd.DataFrame, kind: IntervalKind, limits: tuple[float, float] | None
) -> tuple[Floats, Floats]:
    """Returns the lower and upper ends of each row's 95% interval, as ``stated_ends`` has them.

    Args:
        values: rows x runs.
        kind: one of ``INTERVALS``.
        limits: of the metric, such as (0, 1) for a share.

    Raises:
        StudyError: the kind of interval is unknown.
    """
    require_known("interval", [kind], INTERVALS)
    matrix = values.to_numpy(dtype=np.float64)
    rows = [matrix[row : row + _ROWS_AT_ONCE] for row in range(0, len(matrix), _ROWS_AT_ONCE)]
    function = student_intervals if kind == "student" else bootstrap_intervals
    low, high = (np.concatenate(ends) for ends in zip(*map(function, rows), strict=True))
    return stated_ends(low, high, matrix, limits)


def require_curves(runs: Runs, curves: Collection[object], figure: str, what: str) -> None:
    """Raises where there is nothing to draw.

    Raises:
        StudyError: ``curves`` is empty; says which figure lacks what, and how many runs failed.
    """
    if not curves:
        raise StudyError(
            f"The figure '{figure}' cannot be drawn: none of the {len(runs)} runs in {runs.path}"
            f" recorded {what} ({len(failed_runs(runs))} of them failed). Usually the runs stopped"
            " before they were evaluated, or their method or config records no such thing: see"
            " the columns 'status' and 'error' of .runs."
        )


def _windowed(rows: pd.DataFrame, window: int) -> pd.DataFrame:
    """Averages each run over windows: steps 1 to ``window``, then as many again; 0 alone."""
    if window < 1:
        raise StudyError(f"The window is {window} steps; expected at least 1, which is no window.")
    number = (rows["step"] + window - 1) // window
    means: Any = rows.groupby(["run", number])[["value", "place"]].mean()
    return means.reset_index()


def _curve(
    group: Group, rows: pd.DataFrame, interval: IntervalKind, limits: tuple[float, float] | None
) -> Curve:
    values, places = (
        rows.pivot(index="step", columns="run", values=name).astype("float64")
        for name in ("value", "place")
    )
    low, high = intervals(values, interval, limits)
    place, mean = (frame.mean(axis=1).to_numpy() for frame in (places, values))
    return Curve(group, values, places, place, mean, low, high, interval)
