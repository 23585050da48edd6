"""An estimate with its interval: a smooth function of sums over completions, resampled by prompt.

Every estimate of an audit is f(m): ``m`` are means over prompts of a few moments, f a smooth
function of them (``combine``). So intervals are made here, once for all: prompts are drawn with
replacement, and f is taken of the means of each draw. All estimates of the same prompts share their
draws, so that two estimates have a difference with an interval of its own.

Letters: ``P`` prompts, ``K`` moments, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segcredit.errors import StudyError
from segcredit.records.tables import require_interval

Floats = NDArray[np.float64]
Combine = Callable[[Floats], Floats]
"""(..., K) moments -> (...) the estimate; smooth, and the same for all multiples of the moments."""

_STEP = 1e-4
"""Step of the numerical derivative, in standard deviations of a moment's mean over prompts."""
_LEAST = 1 / 3
"""Least error of a draw, as a share of the estimate's own. Where a few prompts make an estimate,
draws without them have next to no error, and ratios that say nothing of how far off it is."""
_NOTHING = 1e-9
"""Standard errors below this share of the estimate's size are rounding."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """Confidence and draws of intervals.

    Args:
        confidence: the share that an interval is to cover, in (0, 1).
        resamples: how many times the prompts are drawn.
        seed: of the draws.
    """

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        require_interval(self.confidence, self.resamples)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A number, and the interval that holds the population's with the confidence asked for."""

    value: float
    low: float
    """NaN for fewer than two prompts."""
    high: float
    error: float
    """The standard error over prompts, by the delta method."""
    prompts: int
    """Number of prompts drawn from: the unit of the interval."""
    keys: NDArray[np.int64] = field(repr=False)
    """(P,) the prompts."""
    moments: Floats = field(repr=False)
    """(P,K) of each prompt."""
    combine: Combine = field(repr=False)
    resampling: Resampling = field(repr=False)

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimate(
    prompts: ArrayLike,
    moments: ArrayLike,
    combine: Combine,
    *,
    weights: ArrayLike | None = None,
    resampling: Resampling | None = None,
    log: bool = False,
) -> Estimate:
    """Makes an estimate from the moments of completions.

    The interval is studentised: each resample's distance from the estimate is divided by its own
    standard error (the delta method's, with the derivative of ``combine`` by central differences),
    and the quantiles of that, times the estimate's error, are laid around it. A draw's error counts
    as a third of the estimate's at least, lest one that misses the few prompts that make it throw
    an end to where no estimate can be. It is off by O(1/P) where a percentile interval is off
    by O(1/√P); coverage: docs/explain/audit_coverage.csv.

    Args:
        prompts: (B,) whole numbers, equal for completions of a prompt.
        moments: (B,K) of each completion.
        combine: of their means over prompts.
        weights: (B,) how much each completion counts; ones by default.
        resampling: confidence, number and seed of the draws.
        log: make the interval of the logarithm, for a variance, which is skewed and above 0.

    Returns:
        NaN ends for fewer than two prompts, or where fewer than nine tenths of the resamples have
        an estimate; an infinite end where the draws leave that side open.

    Source:
        Efron and Tibshirani, 1993, "An introduction to the bootstrap", section 12.5 (bootstrap-t).
    """
    resampling = Resampling() if resampling is None else resampling
    moments_BK = np.asarray(moments, dtype=np.float64)
    if weights is not None:
        moments_BK = moments_BK * np.asarray(weights, dtype=np.float64)[:, None]
    keys_P, units_B = np.unique(np.asarray(prompts, dtype=np.int64), return_inverse=True)
    moments_PK = np.zeros((len(keys_P), moments_BK.shape[1]))
    np.add.at(moments_PK, units_B.ravel(), moments_BK)
    return _estimate(keys_P, moments_PK, combine, resampling, log=log)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Computes the first estimate less the second, on the same draws of the same prompts.

    Two intervals that overlap do not say that two estimates are alike; this does: most of what
    makes estimates uncertain, which prompts were drawn, is common to both.

    Raises:
        StudyError: the estimates are of other prompts.
    """
    if not np.array_equal(first.keys, second.keys):
        raise StudyError(
            f"the estimates are of {first.prompts} and {second.prompts} prompts that are not the"
            " same; expected estimates of one truth, whose differences can be paired."
        )
    split = first.moments.shape[1]

    def combine(moments: Floats) -> Floats:
        return first.combine(moments[..., :split]) - second.combine(moments[..., split:])

    both_PK = np.concatenate([first.moments, second.moments], axis=1)
    return _estimate(first.keys, both_PK, combine, first.resampling)


def quotient(moments: Floats) -> Floats:
    """Computes the first of two moments over the second: the ``combine`` of a mean or a share."""
    return moments[..., 0] / moments[..., 1]


def _estimate(
    keys_P: NDArray[np.int64],
    moments_PK: Floats,
    combine: Combine,
    resampling: Resampling,
    *,
    log: bool = False,
) -> Estimate:
    count = len(keys_P)
    with np.errstate(all="ignore"):
        mean_K = moments_PK.mean(0) if count else np.full(moments_PK.shape[1], np.nan)
        value = float(combine(mean_K))
        error, low, high = np.nan, np.nan, np.nan
        if count < 2 or not np.isfinite(value):
            pass
        elif log and value > 0:
            error, low, high = _interval(lambda m: np.log(combine(m)), moments_PK, resampling)
            error, low, high = error * value, float(np.exp(low)), float(np.exp(high))
        else:
            error, low, high = _interval(combine, moments_PK, resampling)
    return Estimate(value, low, high, error, count, keys_P, moments_PK, combine, resampling)


def _interval(
    combine: Combine, moments_PK: Floats, resampling: Resampling
) -> tuple[float, float, float]:
    """Returns standard error, low and high end."""
    count = len(moments_PK)
    mean_K = moments_PK.mean(0)
    steps_K = _STEP * moments_PK.std(0) / np.sqrt(count)
    # The first row is what was found, the others the draws.
    drawn_RP = np.vstack([np.ones(count), _draws(count, resampling)])
    centred_PK = moments_PK - mean_K
    means_RK = mean_K + drawn_RP @ centred_PK / count
    errors_R = _errors(combine, means_RK, centred_PK, drawn_RP, steps_K)
    values_R = combine(means_RK)
    low, high = _student(values_R, errors_R, resampling.confidence)
    return float(errors_R[0]), low, high


def _errors(
    combine: Combine, means_RK: Floats, centred_PK: Floats, drawn_RP: Floats, steps_K: Floats
) -> Floats:
    """Computes (R,) the standard error in each draw: √(Σ_p w_p (∇f·(m_p − m̄))² / (P(P − 1)))."""
    count = len(centred_PK)
    shifts_K1K = np.diag(steps_K)[:, None]
    rises_KR = combine(means_RK + shifts_K1K) - combine(means_RK - shifts_K1K)
    slopes_RK = (rises_KR / np.where(steps_K > 0, 2 * steps_K, np.inf)[:, None]).T
    influences_RP = slopes_RK @ centred_PK.T
    weighed_RP = drawn_RP * influences_RP
    squares_R = np.einsum("rp,rp->r", weighed_RP, influences_RP)
    scatter_R = np.maximum(squares_R - weighed_RP.sum(1) ** 2 / count, 0.0)
    return np.sqrt(scatter_R / (count * (count - 1)))


def _student(values_R: Floats, errors_R: Floats, confidence: float) -> tuple[float, float]:
    """Returns low and high end of the first row's studentised interval, by the other draws."""
    value, error = float(values_R[0]), float(errors_R[0])
    rounding = _NOTHING * max(1.0, abs(value))
    if error <= rounding:
        return value, value
    away_R = values_R[1:] - value
    divisors_R = np.maximum(errors_R[1:], _LEAST * error)
    ratios_R = np.where(np.abs(away_R) <= rounding, 0.0, away_R / divisors_R)
    ratios_R = ratios_R[~np.isnan(ratios_R)]
    if len(ratios_R) < 0.9 * len(away_R):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    # Outwards to a ratio that was drawn: between a finite and an infinite one there is nothing.
    below = np.quantile(ratios_R, tail, method="lower")
    above = np.quantile(ratios_R, 1 - tail, method="higher")
    return float(value - above * error), float(value - below * error)


@lru_cache(maxsize=16)
def _draws(count: int, resampling: Resampling) -> Floats:
    """Draws (R,P) how often each prompt is in; the same for all estimates of as many prompts."""
    generator = np.random.default_rng(resampling.seed)
    shares_P = np.full(count, 1 / count)
    drawn_RP = generator.multinomial(count, shares_P, size=resampling.resamples)
    return drawn_RP.astype(np.float64)
