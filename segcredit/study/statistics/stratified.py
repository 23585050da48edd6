"""Mean, interquartile mean and median over strata of seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from segcredit.records.tables import require_interval, require_known
from segcredit.study.statistics.intervals import (
    Floats,
    percentiles,
    present_values,
    stated_ends,
)

Statistic = Literal["mean", "iqm", "median"]
IntervalKind = Literal["student", "bootstrap"]
"""The way in which an interval is computed."""


def interquartile_mean(values: ArrayLike) -> float:
    """Computes the mean of the middle half: without the lowest and the highest quarter.

    From each end ⌊n / 4⌋ values are left out, so that it equals the mean for n below 4.

    Args:
        values: any number, one a seed (of all strata together), in any unit; NaN is left out.

    Returns:
        In the unit of ``values``; NaN where there are none.

    Source:
        Agarwal et al., 2021, arXiv 2108.13264, section 4.3.
    """
    return aggregate(values, "iqm")


def aggregate(values: ArrayLike, statistic: Statistic) -> float:
    """Returns one statistic of the values that are not NaN; NaN where there are none.

    Raises:
        StudyError: the statistic is none of mean, iqm and median.
    """
    found = present_values(values)
    require_statistic(statistic)
    return float(_STATISTICS[statistic](found)) if len(found) else math.nan


def require_statistic(statistic: str) -> None:
    """Raises a StudyError for a statistic that is none of mean, iqm and median."""
    require_known("statistic", [statistic], _STATISTICS)


def stratified_bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Statistic = "mean",
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes the percentile bootstrap of a statistic, seeds resampled within each stratum.

    A stratum is what was chosen rather than drawn by chance: normally a task, whose values are
    those of its seeds. Every resample has as many values of each stratum as there are. With one
    stratum it is the ordinary bootstrap over seeds, as narrow with few of them.

    Args:
        strata: for each its values, one a seed; NaN is left out, and so are empty strata.
        statistic: "mean", "iqm" or "median", taken over the values of all strata together, so
            that a stratum with twice the seeds has twice the weight.
        confidence: the share that the interval is to cover, in (0, 1).
        resamples: how many statistics are drawn.
        seed: of the draws.

    Returns:
        The lower and the upper end, in the unit of the values; both NaN where there are none, or
        where a stratum has one value, which says nothing of the spread over seeds.

    Raises:
        StudyError: ``confidence``, ``resamples`` or ``statistic`` is impossible.

    Source:
        Agarwal et al., 2021, arXiv 2108.13264, section 4.1. Their matrix has the same number of
        runs for every task; here the numbers may differ.
    """
    require_interval(confidence, resamples)
    found = _with_spread(strata)
    if not found:
        return math.nan, math.nan
    low, high = percentiles(_draws(found, statistic, resamples, seed), confidence)
    return float(low), float(high)


def stratified_student(
    strata: Sequence[ArrayLike],
    statistic: Statistic = "mean",
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes statistic ± t · its standard error, over seeds within strata.

    For N values in M strata, t has N − M degrees of freedom, and the standard error is that of the
    stratified bootstrap times √(N / (N − M)), since resampling n values spreads as if the variance
    were divided by n and not by n − 1. For the mean the bootstrap's error is computed without
    draws, as √(Σ_k n_k v_k) / N with v_k the variance in stratum k; with one stratum this is
    ``student_interval`` exactly.

    Args:
        strata: for each its values, one a seed; NaN is left out, and so are empty strata.
        statistic: "mean", "iqm" or "median", taken over the values of all strata together.
        confidence: the share that the interval is to cover, in (0, 1).
        resamples: how many statistics are drawn for the error of "iqm" and "median".
        seed: of the draws.

    Returns:
        The lower and the upper end, in the unit of the values; both NaN where there are none, or
        where a stratum has one value.

    Raises:
        StudyError: ``confidence``, ``resamples`` or ``statistic`` is impossible.

    Source:
        Student's t with a bootstrap standard error and its correction for few values: Hesterberg,
        2015, arXiv 1411.5279. That one pooled number of degrees of freedom serves all strata is
        ours: it takes them to spread alike.
    """
    require_interval(confidence, resamples)
    found = _with_spread(strata)
    if not found:
        return math.nan, math.nan
    total = sum(map(len, found))
    freedom = total - len(found)
    if statistic == "mean":
        error = math.sqrt(sum(len(values) * values.var() for values in found)) / total
    else:
        error = float(_draws(found, statistic, resamples, seed).std())
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error * math.sqrt(total / freedom)
    centre = aggregate(np.concatenate(found), statistic)
    return float(centre - half), float(centre + half)


def interval_of(
    strata: Sequence[ArrayLike],
    statistic: Statistic,
    interval: IntervalKind,
    confidence: float,
    limits: tuple[float, float] | None,
) -> tuple[float, float]:
    """Returns the interval of that name, "student" or "bootstrap", as ``stated_ends`` has it."""
    require_known("interval", [interval], _INTERVALS)
    ends = _INTERVALS[interval](strata, statistic, confidence=confidence)
    values = np.concatenate([np.zeros(0), *map(present_values, strata)])
    low, high = stated_ends(*ends, values[None], limits)
    return float(low[0]), float(high[0])


def _with_spread(strata: Sequence[ArrayLike]) -> list[Floats]:
    """Returns the values of each stratum that has any; none if one has a single value."""
    found = [values for values in map(present_values, strata) if len(values)]
    return found if all(len(values) > 1 for values in found) else []


def _draws(strata: list[Floats], statistic: Statistic, resamples: int, seed: int) -> Floats:
    """Computes the statistic of each resample."""
    require_statistic(statistic)
    generator = np.random.default_rng(seed)
    resampled = [
        values[generator.integers(len(values), size=(resamples, len(values)))] for values in strata
    ]
    return _STATISTICS[statistic](np.concatenate(resampled, axis=1))


def _middle_half(values: Floats) -> Any:
    return stats.trim_mean(values, 0.25, axis=-1)


def _mean(values: Floats) -> Any:
    return values.mean(axis=-1)


def _median(values: Floats) -> Any:
    return np.median(values, axis=-1)


_STATISTICS: dict[str, Callable[[Floats], Any]] = {
    "mean": _mean,
    "iqm": _middle_half,
    "median": _median,
}
_INTERVALS = {"student": stratified_student, "bootstrap": stratified_bootstrap}
