"""Tests of differences over shared seeds, their correction, and how many seeds they need."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from segcredit.errors import StudyError
from segcredit.study.statistics.intervals import Floats, present_values

_MOST_SIGNED = 14
"""Up to so many differences every choice of signs is counted."""

_SIGNINGS = 20_000
"""For more differences, so many choices of signs are drawn."""

_MANY = 1_000_000
"""Above so many seeds a number is of no use, and the normal one is exact enough."""


def sign_flip_p(differences: ArrayLike, *, seed: int = 0) -> float:
    """Computes the two-sided p of the mean difference, were each as likely of the other sign.

    The share of the 2^n choices of signs under which the mean is at least as far from 0 as it is:
    exact, whatever the distribution. n differences cannot give less than ``smallest_p(n)``; with
    more than 14, choices are drawn and p is (1 + those as far) / (1 + draws).

    Args:
        differences: one a shared seed (or other pair); NaN is left out.
        seed: of the draws.

    Returns:
        In (0, 1]; NaN where there are no differences.

    Source:
        Fisher, 1935, The Design of Experiments, section 21.
    """
    found = present_values(differences)
    if len(found) < 2:
        return 1.0 if len(found) else math.nan
    exact = len(found) <= _MOST_SIGNED
    signs = _all_signs(len(found)) if exact else _drawn_signs(len(found), seed)
    # With room for rounding: sums that are equal in exact arithmetic count as equally far.
    far = np.abs(signs @ found) >= abs(found.sum()) - 1e-12 * np.abs(found).sum()
    return float(far.mean() if exact else (1 + far.sum()) / (1 + len(far)))


def student_p(differences: ArrayLike) -> float:
    """Computes the two-sided p of Student's paired t test; NaN for fewer than two differences."""
    found = present_values(differences)
    if len(found) < 2 or not found.any():
        return math.nan if len(found) < 2 else 1.0
    if np.ptp(found) == 0:
        return 0.0  # scipy's, too, but with a warning about lost digits
    result: Any = stats.ttest_1samp(found, 0.0)
    return float(result.pvalue)


def smallest_p(seeds: int) -> float:
    """Returns the least p that ``sign_flip_p`` can give for n differences: min(1, 2^(1 − n))."""
    return min(1.0, 2.0 ** (1 - seeds)) if seeds else math.nan


def holm(p_values: ArrayLike) -> Floats:
    """Corrects p values by Holm: one false finding among all has at most that chance.

    The i-th smallest of m is multiplied by m − i + 1, kept at least as large as the one before it
    and at most 1.

    Args:
        p_values: in [0, 1]; NaN stays NaN and does not count among the m.

    Returns:
        In the order given.

    Source:
        Holm, 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    corrected = np.full(p.shape, math.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected


def seeds_needed(differences: ArrayLike, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Computes how many shared seeds a two-sided paired t test needs to find a difference.

    The smallest n ≥ 2 with P(|T| > t_{1−α/2, n−1}) ≥ power, T being noncentral t with n − 1 degrees
    of freedom and noncentrality √n |m| / s, where m and s are the mean and the standard deviation
    of the differences seen. Those are estimates: from three seeds, s alone is known to a factor of
    about two either way, and n to one of four.

    Args:
        differences: one a shared seed; NaN is left out.
        power: the chance of finding it, in (alpha, 1).
        alpha: the level of the test, in (0, 1).

    Returns:
        A whole number, at least 2; infinity where the mean difference is 0, and NaN for fewer than
        two differences.

    Raises:
        StudyError: ``power`` or ``alpha`` is impossible.

    Source:
        Cohen, 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2.
    """
    if not 0 < alpha < power < 1:
        raise StudyError(
            f"The power is {power} and alpha is {alpha}; expected 0 < alpha < power < 1, such as"
            " power=0.8 and alpha=0.05."
        )
    found = present_values(differences)
    if len(found) < 2:
        return math.nan
    mean, spread = abs(found.mean()), found.std(ddof=1)
    if mean <= 1e-12 * np.abs(found).max():  # rounding: +.1 and -.1 need not sum to 0
        return math.inf
    return _smallest_n(mean / spread, power, alpha) if spread > 0 else 2.0


def _smallest_n(effect: float, power: float, alpha: float) -> float:
    """Finds the smallest n by doubling, then halving: the power grows with n."""
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    if (z / effect) ** 2 > _MANY:
        return float(math.ceil((z / effect) ** 2))
    low, high = 1, 2
    while _power(high, effect, alpha) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, effect, alpha) >= power else (middle, high)
    return float(high)


def _power(n: int, effect: float, alpha: float) -> float:
    """Computes the power of the two-sided t test of n differences of mean ``effect`` deviations.

    T² is noncentral F: both tails at once, and scipy's noncentral t is NaN far out in a tail.
    """
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    return float(stats.ncf.sf(critical**2, 1, n - 1, n * effect**2))


@cache
def _all_signs(n: int) -> Floats:
    """Returns every choice of n signs (2^n x n)."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


def _drawn_signs(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(_SIGNINGS, n))
