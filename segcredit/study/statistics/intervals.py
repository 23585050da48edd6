"""Intervals of a mean: Student's, and the percentile bootstrap; for one row of values or many.

Which covers how often with how few seeds: the table in docs/explain/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from segcredit.records.tables import require_interval

Floats = NDArray[np.float64]

FEWEST = 3
"""Seeds, prompts or documents from which an interval is made."""
_DRAWS_AT_ONCE = 4_000_000
"""Bounds the memory of one batch of resamples, in drawn values."""


def bootstrap_interval(
    values: Iterable[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes the percentile bootstrap interval of the mean.

    The unit that is resampled is one value: give one a seed, not one a completion, since
    completions of one run share their seed. With few seeds it is far too narrow (three give at
    most 75%, for whatever confidence); there, use ``student_interval``.

    Args:
        values: one a seed, in any unit; NaN is left out.
        confidence: the share that the interval is to cover, in (0, 1).
        resamples: how many means are drawn.
        seed: of the draws.

    Returns:
        The lower and the upper end, in the unit of ``values``; both NaN for fewer than two values.

    Raises:
        StudyError: ``confidence`` is not in (0, 1) or ``resamples`` is below 1.

    Source:
        Efron, 1979, "Bootstrap methods: another look at the jackknife".
    """
    low, high = bootstrap_intervals(
        [list(values)], confidence=confidence, resamples=resamples, seed=seed
    )
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    matrix: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Computes ``bootstrap_interval`` of each row, with the same draws for every row.

    Args:
        matrix: rows (such as steps) x units (seeds); NaN where one is absent.
        confidence: the share that each interval is to cover, in (0, 1).
        resamples: how many means are drawn for each row.
        seed: of the draws.

    Returns:
        The lower and the upper ends, one a row; NaN for rows of fewer than two values.

    Raises:
        StudyError: as ``bootstrap_interval``.
    """
    require_interval(confidence, resamples)
    rows = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    ends = np.full((2, len(rows)), math.nan)
    for where, present in _patterns(~np.isnan(rows)):
        if present.sum() > 1:
            means = _resampled_means(rows[np.ix_(where, present)], resamples, seed)
            ends[:, where] = percentiles(means, confidence)
    return ends[0], ends[1]


def student_interval(values: Iterable[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Computes Student's t interval of the mean: m ± t_{n−1} s / √n.

    Exact for normal values, however few; past the ends of the metric's range (below 0 for an
    accuracy) where the seeds are too few to tell, and not cut there. Skewed or two-peaked values,
    such as those of a method that sometimes collapses, are covered less often than asked.

    Args:
        values: one a seed, in any unit; NaN is left out.
        confidence: the share that the interval is to cover, in (0, 1).

    Returns:
        The lower and the upper end, in the unit of ``values``; both NaN for fewer than two values.

    Raises:
        StudyError: ``confidence`` is not in (0, 1).

    Source:
        Student, 1908, "The probable error of a mean".
    """
    low, high = student_intervals([list(values)], confidence=confidence)
    return float(low[0]), float(high[0])


def student_intervals(matrix: ArrayLike, *, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Computes ``student_interval`` of each row.

    Args:
        matrix: rows (such as steps) x units (seeds); NaN where one is absent.
        confidence: the share that each interval is to cover, in (0, 1).

    Returns:
        The lower and the upper ends, one a row; NaN for rows of fewer than two values.

    Raises:
        StudyError: ``confidence`` is not in (0, 1).
    """
    require_interval(confidence)
    rows = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    present = ~np.isnan(rows)
    n = np.where(present.sum(axis=1) > 1, present.sum(axis=1), math.nan)
    mean = np.where(present, rows, 0).sum(axis=1) / n
    deviations = np.where(present, rows - mean[:, None], 0)
    error = np.sqrt((deviations**2).sum(axis=1) / (n - 1) / n)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * error
    return mean - half, mean + half


def stated_ends(
    low: ArrayLike,
    high: ArrayLike,
    matrix: ArrayLike,
    limits: tuple[float, float] | None = None,
    *,
    fewest: int = FEWEST,
) -> tuple[Floats, Floats]:
    """Returns the ends of intervals as tables and figures state them.

    Fewer than ``fewest`` values make no interval: their range stands in its place. No end is beyond
    what the metric can be, which takes nothing from how often the true value is inside.

    Args:
        low: the lower ends, one a row.
        high: the upper ends.
        matrix: the values, rows x units; NaN where one is absent.
        limits: of the metric, such as (0, 1) for a share; None = it has none.
        fewest: values from which an interval is made.
    """
    rows = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    lower, upper = (np.array(ends, dtype=np.float64, ndmin=1) for ends in (low, high))
    count = (~np.isnan(rows)).sum(axis=1)
    few = (count > 1) & (count < fewest)
    if few.any():
        lower[few], upper[few] = np.nanmin(rows[few], axis=1), np.nanmax(rows[few], axis=1)
    if limits is not None:
        lower, upper = lower.clip(*limits), upper.clip(*limits)
    return lower, upper


def percentiles(draws: Floats, confidence: float) -> Floats:
    """Returns the two ends (2 x rows) between which that share of each row of draws lies."""
    tail = (1 - confidence) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=-1)


def present_values(values: ArrayLike) -> Floats:
    """Returns one array of what was measured: without NaN."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def _patterns(present: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Yields rows that have the same values present: their numbers, and which values."""
    patterns, numbers = np.unique(present, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        yield np.flatnonzero(numbers.ravel() == number), pattern


def _resampled_means(rows: Floats, resamples: int, seed: int) -> Floats:
    """Computes (rows x resamples) means by a product with draw counts, faster than gathering."""
    generator = np.random.default_rng(seed)
    n = rows.shape[1]
    at_once = max(1, _DRAWS_AT_ONCE // n)
    sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    means = [rows @ _draw_counts(generator, size, n).T / n for size in sizes]
    return np.concatenate(means, axis=1)


def _draw_counts(generator: np.random.Generator, size: int, n: int) -> Floats:
    """Draws how often each of n values is in each of ``size`` resamples (size x n)."""
    drawn = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
