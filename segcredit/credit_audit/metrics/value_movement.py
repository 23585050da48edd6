"""Moves of the value: on the boundaries of a definition, inside its segments, by kind of token.

All squares are products of different splits. Letters as in
``segcredit.credit_audit.metrics.arrays``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from segcredit.credit_audit.metrics.arrays import Floats, Ints, Truth, require_ids, require_shape
from segcredit.credit_audit.metrics.estimates import Estimate, quotient
from segcredit.credit_audit.metrics.moments import (
    Fork,
    boundaries,
    candidates,
    of,
    segment_gains,
    segment_lengths,
    square,
)
from segcredit.errors import StudyError


def share_on_boundaries(truth: Truth, segment_ids: ArrayLike, *, fork: Fork = "end") -> Estimate:
    """Computes the share of the true squared value change that falls on the tokens at boundaries.

    Σ_{t ∈ boundaries} D_t² / Σ_{t ∈ candidates} D_t² with D_t = V(t+1) − V(t). Candidates are all
    tokens but the last (fork "end") or the first ("start"), where there is a boundary whatever the
    definition: ``per_token`` has 1, ``whole`` 0.

    Args:
        truth: of the completions.
        segment_ids: (B,T) of the definition.
        fork: whether the token at a boundary is the one that ends a segment or that starts one.

    Returns:
        A share; noise of the truth can carry it out of [0,1].
    """
    squares_BT = square(truth.advantages)
    chosen_BT = boundaries(truth, require_ids(truth, segment_ids), fork)
    return of(truth, quotient, squares_BT * chosen_BT, squares_BT * candidates(truth, fork))


def random_share_on_boundaries(
    truth: Truth, segment_ids: ArrayLike, *, fork: Fork = "end"
) -> Estimate:
    """Computes ``share_on_boundaries`` in expectation, of each completion's cuts dealt at random.

    Exact, without draws: c cuts among n candidates take the share c / n of the completion's change.
    """
    squares_BT = square(truth.advantages) * candidates(truth, fork)
    expected_BT = squares_BT * _cut_rate(truth, segment_ids, fork)
    return of(truth, quotient, expected_BT, squares_BT)


def boundary_ratio(truth: Truth, segment_ids: ArrayLike, *, fork: Fork = "end") -> Estimate:
    """Computes ``share_on_boundaries`` over that of as many random boundaries in each completion.

    1 is chance, for any number of segments; NaN for a definition that never cuts.
    """
    squares_BT = square(truth.advantages) * candidates(truth, fork)
    chosen_BT = boundaries(truth, require_ids(truth, segment_ids), fork)
    expected_BT = squares_BT * _cut_rate(truth, segment_ids, fork)
    return of(truth, quotient, squares_BT * chosen_BT, expected_BT)


def share_within(truth: Truth, segment_ids: ArrayLike) -> Estimate:
    """Computes the share of the squared value change that credit constant in segments cannot show.

    Σ_t (D_t − D̄_k)² / Σ_t D_t², D̄_k being the mean of the token's segment. The share kept between
    segments, 1 less this, is Σ_k Δ_k² / n_k / Σ_t D_t² with Δ_k the change of V over segment k of
    n_k tokens; its root bounds the correlation of any such credit with the true advantages.
    ``per_token`` has 0.
    """
    lost_B, all_B = _within(truth, require_ids(truth, segment_ids))
    return of(truth, quotient, lost_B, all_B)


def random_share_within(truth: Truth, segment_ids: ArrayLike) -> Estimate:
    """Computes ``share_within`` in expectation, of each completion's cuts dealt at random.

    Exact, without draws: the change over every run of tokens, times the probability that c cuts in
    the n − 1 places between n tokens make just that run a segment. Cost: O(T²) a completion.
    """
    ids_BT = require_ids(truth, segment_ids)
    _, all_B = _within(truth, ids_BT)
    return of(truth, quotient, all_B - _random_kept(truth, ids_BT), all_B)


def share_by_class(
    truth: Truth, classes: ArrayLike, names: Sequence[str]
) -> dict[str, tuple[Estimate, Estimate]]:
    """Computes the share of the true squared value change on each kind of token.

    Args:
        truth: of the completions.
        classes: (B,T) the number of each token's class, an index into ``names``; −1 for none.
        names: of the classes.

    Returns:
        By name: the class' share of the change, and that share over its share of the tokens (1 is
        a class that moves the value no more than others).

    Raises:
        StudyError: a class has no name.
    """
    classes_BT = np.asarray(classes, dtype=np.int64)
    require_shape("classes", classes_BT, truth.mask.shape)
    if truth.mask.any() and not -1 <= classes_BT[truth.mask].max() < len(names):
        raise StudyError(
            f"a token is of class {classes_BT[truth.mask].max()}, but there are {len(names)} names;"
            " expected a name for each class."
        )
    squares_BT = square(truth.advantages)
    found: dict[str, tuple[Estimate, Estimate]] = {}
    for number, name in enumerate(names):
        inside_BT = truth.mask & (classes_BT == number)
        moments = squares_BT * inside_BT, squares_BT, inside_BT, truth.mask
        found[name] = of(truth, quotient, *moments[:2]), of(truth, _enrichment, *moments)
    return found


def _enrichment(moments: Floats) -> Floats:
    """Computes (change in class / change) / (tokens in class / tokens)."""
    inside, everywhere, tokens, all_tokens = np.moveaxis(moments, -1, 0)
    return inside * all_tokens / (everywhere * tokens)


def _cut_rate(truth: Truth, segment_ids: ArrayLike, fork: Fork) -> Floats:
    """Computes (B,1) cuts over candidates of each completion."""
    ids_BT = require_ids(truth, segment_ids)
    places_B1 = candidates(truth, fork).sum(1, keepdims=True)
    return boundaries(truth, ids_BT, fork).sum(1, keepdims=True) / np.maximum(places_B1, 1)


def _within(truth: Truth, ids_BT: Ints) -> tuple[Floats, Floats]:
    """Computes (B,) the squared change that segment means leave, and all of it."""
    all_B = square(truth.advantages).sum(1)
    gains_BS = square(segment_gains(truth, ids_BT))
    kept_B = (gains_BS / np.maximum(segment_lengths(ids_BT), 1)).sum(1)
    return all_B - kept_B, all_B


def _random_kept(truth: Truth, ids_BT: Ints) -> Floats:
    """Computes (B,) the expected Σ_k Δ_k² / n_k of as many cuts at random."""
    lengths_B1 = truth.lengths[:, None]
    cuts_B1 = ids_BT.max(1, keepdims=True, initial=0)
    ways_B1 = _log_choose(np.maximum(lengths_B1 - 1, 0), cuts_B1)
    kept_B = np.zeros(len(ids_BT))
    values = np.nan_to_num(truth.values)
    for run in range(1, ids_BT.shape[1] + 1):
        first_1N = np.arange(ids_BT.shape[1] - run + 1)[None]
        inside_BN = first_1N + run <= lengths_B1
        gains_BN = square(values[:, :, run:] - values[:, :, :-run])
        ends_BN = (first_1N > 0).astype(int) + (first_1N + run < lengths_B1)
        # Of the n − 1 places, run − 1 lie inside and stay whole, those at its ends are cut.
        log_BN = _log_choose(lengths_B1 - run - ends_BN, cuts_B1 - ends_BN)
        chance_BN = np.exp(log_BN - ways_B1)
        kept_B += np.where(inside_BN, gains_BN * chance_BN, 0.0).sum(1) / run
    return kept_B


def _log_choose(places: Ints, cuts: Ints) -> Floats:
    """Computes the logarithm of the binomial coefficient, −∞ where it is 0."""
    possible = (cuts >= 0) & (cuts <= places)
    places, cuts = np.where(possible, places, 0), np.where(possible, cuts, 0)
    log = gammaln(places + 1) - gammaln(cuts + 1) - gammaln(places - cuts + 1)
    return np.where(possible, log, -np.inf)
