"""Lift: how much more often the value jumps where a signal, such as entropy, is high.

Letters as in ``segcredit.credit_audit.metrics.arrays``; ``N`` tokens of all completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics.arrays import Bools, Floats, Truth, require_shape
from segcredit.credit_audit.metrics.estimates import Estimate
from segcredit.credit_audit.metrics.moments import of, square
from segcredit.errors import StudyError


def lift(
    truth: Truth,
    signal: ArrayLike,
    quantiles: Sequence[float],
    *,
    threshold: float | None = None,
) -> dict[float, Estimate]:
    """Computes Lift(A, D) = P(D | A) / P(D) of jumps D and tokens A with a high signal.

    A are the tokens with a signal above its q-quantile over all tokens. D is a jump |V(t+1) − V(t)|
    of at least ``threshold`` in the mean of the splits; without a threshold tokens count by their
    true squared change instead, so that Lift is E[D_t² | A] / E[D_t²], which noise in the truth
    does not bias. 1 is chance. That the quantile is itself of the prompts drawn is in the interval.

    Args:
        truth: of the completions.
        signal: (B,T) such as entropies.
        quantiles: each in [0, 1).
        threshold: in reward units, above 0. Noise makes jumps: those of a truth whose V has the
            standard error s need a threshold well above 2s, and even then noise in D draws Lift
            towards 1.

    Returns:
        By quantile; NaN where no token is above it, or none jumps.

    Raises:
        StudyError: a quantile or the threshold is out of range.

    Source:
        SAPO, arXiv 2605.01327, eq. 12, where the threshold is not given and completions are
        resampled; here prompts are. The form without a threshold is ours.
    """
    signal_BT = np.asarray(signal, dtype=np.float64)
    require_shape("signal", signal_BT, truth.mask.shape)
    if not all(0 <= q < 1 for q in quantiles) or (threshold is not None and threshold <= 0):
        raise StudyError(
            f"quantiles are {list(quantiles)} and the threshold is {threshold}; expected quantiles"
            " from 0 to below 1, and a threshold above 0 or None."
        )
    jumps_BT = square(truth.advantages)
    if threshold is not None:
        jumps_BT = (np.abs(truth.advantages.mean(1)) >= threshold).astype(np.float64)
    return {q: _lift(truth, signal_BT, jumps_BT, q) for q in quantiles}


def _lift(truth: Truth, signal_BT: Floats, jumps_BT: Floats, q: float) -> Estimate:
    """Computes Lift at one quantile.

    Drawing other prompts moves the quantile. To first order that exchanges tokens at the quantile,
    which jump at the rate ``edge``, until the share of A is again what it was::

        (Σ_A D − edge (|A| − share · |all|)) / (share · Σ D)
    """
    weights_BT = truth.mask * truth.weights[:, None]
    cut = _quantile(signal_BT[truth.mask], weights_BT[truth.mask], q)
    high_BT = truth.mask & (signal_BT > cut)
    total = weights_BT.sum()
    share = (weights_BT * high_BT).sum() / total if total else np.nan
    edge = _edge_rate(truth, signal_BT, jumps_BT, cut, high_BT)

    def combine(moments: Floats) -> Floats:
        jumped, high, everything, jumps = np.moveaxis(moments, -1, 0)
        return (jumped - edge * (high - share * everything)) / (share * jumps)

    jumps_BT = jumps_BT * truth.mask
    return of(truth, combine, jumps_BT * high_BT, high_BT, truth.mask, jumps_BT)


def _quantile(signal_N: Floats, weights_N: Floats, q: float) -> float:
    """Returns the smallest signal that the share q of the weight is not above; −∞ for q = 0."""
    if q == 0 or not signal_N.size:
        return -np.inf
    order = np.argsort(signal_N, kind="stable")
    below_N = weights_N[order].cumsum()
    return float(signal_N[order][np.searchsorted(below_N, q * below_N[-1] * (1 - 1e-12))])


def _edge_rate(
    truth: Truth, signal_BT: Floats, jumps_BT: Floats, cut: float, high_BT: Bools
) -> float:
    """Returns how much the tokens nearest the quantile jump: n^(2/3) of n, by rank, at least 5.

    Where more than these have just the quantile's signal, it does not move with the draw, and the
    share of A does: the rate of A then gives the ratio's own error.
    """
    signal_N, jumps_N = signal_BT[truth.mask], jumps_BT[truth.mask]
    weights_N = (truth.mask * truth.weights[:, None])[truth.mask]
    window = max(5, round(signal_N.size ** (2 / 3)))
    if (signal_N == cut).sum() >= window or not np.isfinite(cut):
        near_N = high_BT[truth.mask]
    else:
        order = np.argsort(signal_N, kind="stable")
        place = int(np.searchsorted(signal_N[order], cut))
        near_N = order[max(0, place - window // 2) : place + window // 2 + 1]
    weight = weights_N[near_N].sum()
    return float((weights_N[near_N] * jumps_N[near_N]).sum() / weight) if weight else 0.0
