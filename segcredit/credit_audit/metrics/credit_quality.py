"""Quality of credit: advantages beside the true ones, by token, by segment, by completion.

Letters as in ``segcredit.credit_audit.metrics.arrays``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics import noise_corrected
from segcredit.credit_audit.metrics.arrays import (
    Anchor,
    Bools,
    Credit,
    Floats,
    Ints,
    Truth,
    require_ids,
)
from segcredit.credit_audit.metrics.estimates import Estimate, quotient
from segcredit.credit_audit.metrics.moments import (
    begins,
    finishes,
    of,
    product,
    segment_gains,
    segment_lengths,
    segment_sums,
    square,
)
from segcredit.credit_audit.metrics.noise_corrected import Matched
from segcredit.records.tables import require_known

Level = Literal["gradient", "token", "segment", "completion"]


def correlation(truth: Truth, credit: Credit, level: Level = "token") -> Estimate:
    """Computes Pearson's correlation of the advantages with the true ones, over all places.

    Levels: each token's advantage with V(t+1) − V(t), at "gradient" weighed by w_t, the squared
    gradient of its log-prob by the logits, at "token" all alike; each segment's with the change
    of V over it; the sum of a completion's segments' with R − V(s1). Taken about the means, since
    a constant in all advantages leaves the expected gradient alone. Free of noise in the truth.

    Returns:
        In [−1,1] but for noise; 0 for credit that does not vary.
    """
    return _matched(truth, credit, level).metric(truth, noise_corrected.correlation)


def slope(truth: Truth, credit: Credit, level: Level = "token") -> Estimate:
    """Computes by how much the advantage moves where the true one moves by 1; 0 is blind.

    cov(A, D) / var D, the straight line of E[A | D]; 1 less this is the share of the true advantage
    that credit leaves out on average (its bias). Not improved by a scale that fits the noise.
    """
    return _matched(truth, credit, level).metric(truth, noise_corrected.slope)


def noise(truth: Truth, credit: Credit, level: Level = "token") -> Estimate:
    """Computes the variance of the advantages about their line of ``slope``, in units of var D.

    0 is none. Beside the slope only: credit of 0 has none either. Divided by slope² it is what is
    left after scaling to slope 1, and equals 1 / correlation² − 1.
    """
    return _matched(truth, credit, level).metric(truth, noise_corrected.residual)


def sign_agreement(truth: Truth, credit: Credit, level: Level = "token") -> Estimate:
    """Computes how often credit has the sign of the true advantage, large ones counting more.

    E[sign(A) · D] / √E[D²]. The sign of a noisy D is biased towards a coin's; D itself is not, so
    that the numerator takes D, and the denominator the product of splits. 0 is chance, also for
    credit of 0; ``sign_ceiling`` is what a perfect sign reaches, E|D| / √E[D²], below 1 unless all
    changes are equally large. Compare definitions on one truth.
    """
    at = _matched(truth, credit, level)
    return Matched(np.sign(at.estimate), at.true, at.weights).metric(truth, _sign)


def sign_ceiling(truth: Truth, credit: Credit, level: Level = "token") -> Estimate:
    """Computes ``sign_agreement`` of the truth's own sign, chosen on one split, judged on others.

    Exact for an exact truth; otherwise a lower bound, since a noisy split gets signs wrong.
    """
    at = _matched(truth, credit, level)
    signs_BHN = np.sign(at.true)
    # Σ_{h ≠ g} sign(D_h) D_g over H (H − 1), the same product of different splits.
    there_BN = at.weights > 0
    signed_BN = at.weights * np.where(there_BN, product(signs_BHN, at.true), 0.0)
    squares_BN = at.weights * np.where(there_BN, square(at.true), 0.0)
    return of(truth, _scaled, at.weights, signed_BN, squares_BN)


def credit_noise(truth: Truth, credit: Credit) -> Estimate:
    """Computes N = E Σ_t w_t A_t² over completions: the noise that credit puts into the gradient.

    w_t = |e_a − p|² is the squared norm of the log-prob's gradient by the logits
    (``Scores.logit_gradients``), so that w_t A_t² is that of the token's term A_t ∇ log π in the
    logits; those of different states are different logits and add up. The gradient's expectation
    is the same for all unbiased credit: less is better among such, and credit of 0 has none, so
    read it beside the slope. In squared units of the advantage; compare within a scheme.
    """
    return of(truth, quotient, _energy(truth, credit.advantages), np.ones(len(truth.rewards)))


def credit_noise_ratio(truth: Truth, credit: Credit) -> Estimate:
    """Computes ``credit_noise`` over that of the same estimator and scheme, a token a segment.

    NaN without ``Credit.token_advantages``, and where the interval of their noise holds 0: such
    credit moves nothing, and a ratio to it would be any number.
    """
    base_BT = np.zeros(truth.mask.shape)
    if credit.token_advantages is not None:
        base_BT = np.where(truth.mask, credit.token_advantages, 0.0)
    return _ratio(truth, _energy(truth, credit.advantages), _energy(truth, base_BT))


def true_noise_ratio(truth: Truth, segment_ids: ArrayLike) -> Estimate:
    """Computes the ratio of credit noise that segments would have with exact values and ``td``.

    Σ_k w(k) Δ_k² / Σ_t w_t D_t², Δ_k the change of V over segment k, w(k) the sum of its tokens'
    w. Squares are products of splits. 1 for a segment a token. Above 1: credit of several
    uncertain tokens is added up, and each takes the others' chance as noise. It needs no
    estimator: how far definitions can differ for the gradient at all.
    """
    ids_BT = require_ids(truth, segment_ids)
    weights_BT = np.where(truth.mask, truth.require_scores().logit_gradients, 0.0)
    summed_BS = segment_sums(weights_BT, ids_BT) * square(segment_gains(truth, ids_BT))
    return _ratio(truth, summed_BS, weights_BT * square(truth.advantages))


def sharpening(truth: Truth, credit: Credit) -> Estimate:
    """Computes how far credit follows the token's own log-prob beyond the true advantage.

    The slope of A on l at equal D, in standard deviations of A and of l (no unit)::

        (cov(A, l) var D − cov(A, D) cov(D, l)) / (var D var l − cov(D, l)²) · √(var l / var A)

    l_t = log p(a_t) + H_t is the log-prob less its expectation, and moments are weighed by
    Σ_a p_a w_a = 1 − Σ_v p_v²: both know nothing of the past but the state. So credit of the past,
    such as a baseline's, and true advantages summed over a segment have 0 in expectation.

    Above 0, credit pays likely tokens for being likely, and the policy becomes more confident
    whatever it earns; below 0 it flattens. Credit of 0 has 0. var D is a product of splits.
    """
    scores = truth.require_scores()
    weights_BT = np.where(truth.mask, scores.expected_gradients, 0.0)
    x_BT, z_BT = credit.advantages, scores.surprises
    y_BT, squares_BT = truth.advantages.mean(1), square(truth.advantages)
    moments = np.ones_like(x_BT), x_BT, y_BT, z_BT, x_BT**2, squares_BT, z_BT**2
    moments = *moments, x_BT * y_BT, x_BT * z_BT, y_BT * z_BT
    there_BT = truth.mask
    columns = (weights_BT * np.where(there_BT, moment_BT, 0.0) for moment_BT in moments)
    return of(truth, noise_corrected.partial, *columns)


def mass_kept(truth: Truth, credit: Credit) -> Estimate:
    """Computes how much of R − V(s1) the advantages of the segments add up to.

    Σ S · (R − V(s1)) / Σ (R − V(s1))² over completions, S the sum of a completion's segments'
    advantages. 1 conserves it, as TD advantages of exact values do; 0 is credit that has nothing
    to do with what the completion earned beyond its prompt.
    """
    summed_B1, gains_BH1, _ = _completions(truth, credit)
    return of(truth, quotient, summed_B1 * gains_BH1.mean(1), square(gains_BH1))


def mass_error(truth: Truth, credit: Credit) -> Estimate:
    """Computes E (S − (R − V(s1)))² / E (R − V(s1))²: 0 conserves each completion's credit.

    Credit of 0 has 1, and credit with the whole of R in each of its segments more.
    """
    summed_B1, gains_BH1, _ = _completions(truth, credit)
    missed_B1 = summed_B1**2 - 2 * summed_B1 * gains_BH1.mean(1) + square(gains_BH1)
    return of(truth, quotient, missed_B1, square(gains_BH1))


def baseline_bias(truth: Truth, segment_ids: ArrayLike, anchor: Anchor = "start") -> Estimate:
    """Computes how far a definition's baseline depends on the very token that it is for.

    cov(V(anchor), D) / E D² over tokens, V(anchor) that of the token's segment.

    A baseline leaves the policy gradient unbiased if it does not depend on the action. With a
    boundary that looks ahead, the choice of the anchor does: V(anchor) then goes with D_t. Exact
    values and the return R − V(anchor) give tokens the slope 1 less this. 0 for a definition that
    looks at the past only (and anchors before its segments); a definition may be biased in other
    ways and have 0.

    Args:
        truth: of the completions.
        segment_ids: (B,T) of the definition.
        anchor: the state whose value is the baseline.
    """
    ids_BT = require_ids(truth, segment_ids)
    place_BS = anchors(ids_BT, anchor)
    index_BT = np.take_along_axis(place_BS, np.maximum(ids_BT, 0), axis=1)
    anchored_BHT = np.take_along_axis(truth.states, index_BT[:, None], axis=2)
    anchored_BHT = np.where(truth.mask[:, None], anchored_BHT, 0.0)
    true_BHT = truth.advantages
    mixed_BT = product(anchored_BHT, true_BHT)
    means = anchored_BHT.mean(1), true_BHT.mean(1)
    return of(truth, _covariance, truth.mask, *means, mixed_BT, square(true_BHT))


def anchors(ids_BT: Ints, anchor: Anchor) -> Ints:
    """Returns (B,S) the token before which each segment is valued; 0 where there is no segment."""
    marks_BT = begins(ids_BT) if anchor == "start" else finishes(ids_BT)
    places_BT = np.broadcast_to(np.arange(ids_BT.shape[1], dtype=np.float64), ids_BT.shape)
    return segment_sums(places_BT * marks_BT, ids_BT).astype(np.int64)


def _matched(truth: Truth, credit: Credit, level: Level) -> Matched:
    """Returns advantages beside the true ones, at the places of a level."""
    require_known("level", [level], _LEVELS)
    require_ids(truth, credit.segment_ids)
    return Matched(*_LEVELS[level](truth, credit))


def _energy(truth: Truth, advantages_BT: Floats) -> Floats:
    """Computes (B,T) w_t A_t²."""
    weights_BT = np.where(truth.mask, truth.require_scores().logit_gradients, 0.0)
    return weights_BT * advantages_BT**2


def _ratio(truth: Truth, noise: Floats, base: Floats) -> Estimate:
    """Estimates a ratio of two sums; NaN where that below is not distinguishable from 0."""
    below = of(truth, quotient, base, np.ones(len(truth.rewards)))
    return of(truth, quotient, noise, base if below.low > 0 else np.full_like(base, np.nan))


def _gradient(truth: Truth, credit: Credit) -> tuple[Floats, Floats, Floats]:
    weights_BT = np.where(truth.mask, truth.require_scores().logit_gradients, 0.0)
    return credit.advantages, truth.advantages, weights_BT


def _tokens(truth: Truth, credit: Credit) -> tuple[Floats, Floats, Bools]:
    return credit.advantages, truth.advantages, truth.mask


def _segments(truth: Truth, credit: Credit) -> tuple[Floats, Floats, Bools]:
    ids_BT = credit.segment_ids
    lengths_BS = segment_lengths(ids_BT)
    means_BS = segment_sums(credit.advantages, ids_BT) / np.maximum(lengths_BS, 1)
    return means_BS, segment_gains(truth, ids_BT), lengths_BS > 0


def _completions(truth: Truth, credit: Credit) -> tuple[Floats, Floats, Bools]:
    """Returns one place a completion: the sum over segments beside R − V(s1)."""
    means_BS, _, _ = _segments(truth, credit)
    gains_BH1 = truth.rewards[:, None, None] - truth.values[:, :, :1]
    return means_BS.sum(1, keepdims=True), gains_BH1, np.ones((len(means_BS), 1), dtype=bool)


_LEVELS = {
    "gradient": _gradient,
    "token": _tokens,
    "segment": _segments,
    "completion": _completions,
}


def _sign(moments: Floats) -> Floats:
    """Computes E[xy] / √E[y²]."""
    at = noise_corrected.Spread(moments)
    return at.xy / np.sqrt(at.yy)


def _scaled(moments: Floats) -> Floats:
    number, signed, squares = np.moveaxis(moments, -1, 0)
    return signed / np.sqrt(number * squares)


def _covariance(moments: Floats) -> Floats:
    number, x, y, xy, yy = np.moveaxis(moments, -1, 0)
    return (xy - x * y / number) / yy
