"""Probability that a run of one method ends above a run of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from segcredit.errors import StudyError
from segcredit.records.tables import require_interval, require_known
from segcredit.study.statistics.intervals import (
    Floats,
    percentiles,
    present_values,
)

Pair = tuple[Floats, Floats]
"""The values of x and of y in one stratum."""


def probability_of_improvement(
    x: ArrayLike,
    y: ArrayLike,
    *,
    interval: Literal["newcombe", "bootstrap"] = "newcombe",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Computes P(X > Y) + P(X = Y) / 2 for a run of each: Mann-Whitney's statistic over n_x n_y.

    Args:
        x: the values of one method: seeds, or seeds x strata (tasks), over which it is averaged;
            NaN where absent.
        y: those of the other, with as many strata; its seeds need not be as many, nor the same.
        interval: "newcombe" never shrinks to a point, also where every x exceeds every y;
            "bootstrap" (percentile; seeds of x and of y resampled apart, within strata) is
            rliable's, and does.
        confidence: the share that the interval is to cover, in (0, 1).
        resamples: how many are drawn for "bootstrap".
        seed: of the draws.

    Returns:
        The probability and the two ends of its interval, in [0, 1]; the ends are NaN where a
        stratum has fewer than two values of x or of y, and all three where one has none.

    Raises:
        StudyError: an option is impossible.

    Source:
        Agarwal et al., 2021, arXiv 2108.13264, section 4.3. "newcombe": Newcombe, 2006,
        "Confidence intervals for an effect size measure based on the Mann-Whitney statistic.
        Part 2", method 5; with several strata our extension, whose variance is their mean's under
        one common probability.
    """
    return improvement(
        _by_stratum(x, y),
        interval=interval,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def improvement(
    strata: Sequence[Pair],
    *,
    interval: str = "newcombe",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Computes ``probability_of_improvement`` of x and y given for each stratum."""
    require_interval(confidence, resamples)
    require_known("interval", [interval], ["newcombe", "bootstrap"])
    if not strata or any(len(values) == 0 for pair in strata for values in pair):
        return math.nan, math.nan, math.nan
    probability = float(np.mean([_wins(*pair).mean() for pair in strata]))
    if any(len(values) < 2 for pair in strata for values in pair):
        return probability, math.nan, math.nan
    if interval == "bootstrap":
        low, high = percentiles(_draws(strata, resamples, seed), confidence)
    else:
        low, high = _newcombe(probability, [(len(x), len(y)) for x, y in strata], confidence)
    return probability, float(low), float(high)


def _by_stratum(x: ArrayLike, y: ArrayLike) -> list[Pair]:
    columns = [np.asarray(values, dtype=np.float64) for values in (x, y)]
    columns = [values if values.ndim == 2 else values.ravel()[:, None] for values in columns]
    if columns[0].shape[1] != columns[1].shape[1]:
        raise StudyError(
            f"x and y have {columns[0].shape[1]} and {columns[1].shape[1]} columns; expected as"
            " many, one a stratum (task), with a row a seed."
        )
    xs, ys = ([present_values(column) for column in values.T] for values in columns)
    return list(zip(xs, ys, strict=True))


def _wins(x: Floats, y: Floats) -> Floats:
    """Returns 1, ½ or 0 for each x (rows) against each y (columns)."""
    return (np.sign(x[:, None] - y) + 1) / 2


def _draws(strata: Sequence[Pair], resamples: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for x, y in strata:
        # How often each value is drawn, x before y: counts weigh the table of wins.
        drawn_x, drawn_y = (
            generator.multinomial(n, np.full(n, 1 / n), size=resamples) for n in (len(x), len(y))
        )
        total += ((drawn_x @ _wins(x, y)) * drawn_y).sum(axis=1) / (len(x) * len(y))
    return total / len(strata)


def _newcombe(
    probability: float, sizes: Sequence[tuple[int, int]], confidence: float
) -> tuple[float, float]:
    """Returns the two θ that lie z standard errors, taken at θ itself, from the estimate."""
    z = float(stats.norm.ppf((1 + confidence) / 2))

    def excess(theta: float) -> float:
        variance = sum(_variance(theta, *size) for size in sizes) / len(sizes) ** 2
        return (theta - probability) ** 2 - z**2 * variance

    tiny = 1e-12  # at an estimate of 0 or 1 the excess is 0 there, and negative beside it
    low = _root(excess, 0.0, probability - tiny) if probability > 0 else 0.0
    high = _root(excess, probability + tiny, 1.0) if probability < 1 else 1.0
    return low, high


def _variance(theta: float, n_x: int, n_y: int) -> float:
    """Computes Hanley and McNeil's, the two sizes replaced by their mean as Newcombe does."""
    more = (n_x + n_y) / 2 - 1
    spread = 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return theta * (1 - theta) * spread / (n_x * n_y)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    root: Any = optimize.brentq(function, low, high)
    return float(root)
