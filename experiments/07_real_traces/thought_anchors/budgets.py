"""Definitions compared at equal numbers of boundaries, in expectation and without draws.

A way to choose boundaries is the probability of each place to be one, ``weights`` (B,T): zeros and
ones for a definition, fractions for a control that is random, or for a definition of which some
boundaries are drawn. The expected share of the squared change on boundaries is linear in them.

Letters as in ``segcredit.credit_audit.metrics.arrays``; ``R`` draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics import Estimate, Truth
from segcredit.credit_audit.metrics.arrays import Bools, Floats, Ints, require_shape
from segcredit.credit_audit.metrics.estimates import quotient
from segcredit.credit_audit.metrics.moments import Fork, candidates, of, square
from segcredit.errors import StudyError


def weighted_share(truth: Truth, weights: ArrayLike, *, fork: Fork = "end") -> Estimate:
    """The expected share of the true squared change on boundaries: Σ w_t D_t² / Σ D_t².

    With zeros and ones it is ``share_on_boundaries``.
    """
    squares_BT = square(truth.advantages) * candidates(truth, fork)
    return of(truth, quotient, squares_BT * _fitting(truth, weights), squares_BT)


def weighted_ratio(
    truth: Truth, weights: ArrayLike, others: ArrayLike, *, fork: Fork = "end"
) -> Estimate:
    """The expected squared change on boundaries over that of other weights: Σ w D² / Σ w' D²."""
    squares_BT = square(truth.advantages) * candidates(truth, fork)
    first_BT, second_BT = _fitting(truth, weights), _fitting(truth, others)
    return of(truth, quotient, squares_BT * first_BT, squares_BT * second_BT)


def budget(truth: Truth, fraction: float, *, fork: Fork = "end") -> Ints:
    """(B,) that fraction of a completion's places, rounded up.

    Raises:
        StudyError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise StudyError(f"the fraction is {fraction}; expected one above 0 and at most 1.")
    # Less a rounding error: .1 of 30 places are 3.
    return np.ceil(candidates(truth, fork).sum(1) * fraction - 1e-9).astype(np.int64)


def uniform_places(truth: Truth, counts: ArrayLike, *, fork: Fork = "end") -> Floats:
    """Returns (B,T) the weights of uniform draws: c of n places, each with probability c / n."""
    return sized_places(truth, counts, np.ones(truth.mask.shape), fork=fork)


def sized_places(
    truth: Truth, counts: ArrayLike, sizes: ArrayLike, *, fork: Fork = "end"
) -> Floats:
    """Returns (B,T) the weights of draws by size: c places, likelier in proportion to their size.

    A place that would have more than 1 is chosen for certain, and the others share the rest.

    Args:
        truth: whose candidates are the places.
        counts: (B,) c; no more places than there are.
        sizes: (B,T) above 0, such as the characters of sentences.
        fork: see ``share_on_boundaries``.

    Source:
        Sampling proportional to size without replacement: Horvitz and Thompson, 1952.
    """
    sizes_BT = np.asarray(sizes, dtype=np.float64)
    require_shape("sizes", sizes_BT, truth.mask.shape)
    places_BT = candidates(truth, fork)
    weights_BT = np.zeros(truth.mask.shape)
    for row, count in enumerate(np.minimum(_counts(truth, counts), places_BT.sum(1))):
        weights_BT[row, places_BT[row]] = _proportional(sizes_BT[row, places_BT[row]], int(count))
    return weights_BT


def _proportional(sizes_N: Floats, count: int) -> Floats:
    """(N,) min(1, λ · size), with the sum ``count``."""
    certain_N = np.zeros(len(sizes_N), dtype=bool)
    while not certain_N.all():
        rest = (count - certain_N.sum()) / sizes_N[~certain_N].sum()
        # A rounding error above 1 is 1, and the loop ends.
        above_N = ~certain_N & (sizes_N * rest >= 1)
        if not above_N.any():
            return np.where(certain_N, 1.0, sizes_N * rest)
        certain_N |= above_N
    return np.ones(len(sizes_N))


def at_budget(
    truth: Truth, boundaries: ArrayLike, counts: ArrayLike, *, fork: Fork = "end"
) -> Floats:
    """(B,T) a definition that is held to c boundaries in each completion.

    Where it has more, c of them are drawn: each stays with probability c / its own number. Where
    it has fewer, the rest is drawn among the other places.

    Args:
        truth: whose candidates are the places.
        boundaries: (B,T) True at the definition's boundaries; elsewhere than at places not looked
            at.
        counts: (B,) c; no more than there are places.
        fork: see ``share_on_boundaries``.
    """
    chosen_BT = np.asarray(boundaries, dtype=bool)
    require_shape("boundaries", chosen_BT, truth.mask.shape)
    places_BT = candidates(truth, fork)
    own_BT, other_BT = chosen_BT & places_BT, ~chosen_BT & places_BT
    own_B1, other_B1 = own_BT.sum(1, keepdims=True), other_BT.sum(1, keepdims=True)
    wanted_B1 = np.minimum(_counts(truth, counts)[:, None], own_B1 + other_B1)
    stay_B1 = np.minimum(wanted_B1 / np.maximum(own_B1, 1), 1.0)
    fill_B1 = np.maximum(wanted_B1 - own_B1, 0) / np.maximum(other_B1, 1)
    return own_BT * stay_B1 + other_BT * fill_B1


def strongest(truth: Truth, signal: ArrayLike, counts: ArrayLike, *, fork: Fork = "end") -> Bools:
    """(B,T) the c places of each completion at which a signal is highest; of equals the earlier."""
    signal_BT = np.asarray(signal, dtype=np.float64)
    require_shape("signal", signal_BT, truth.mask.shape)
    places_BT = candidates(truth, fork)
    # Places before others, whatever the signal; both sorts are stable.
    order_BT = np.lexsort((-signal_BT, ~places_BT), axis=1)
    ranks_BT = np.argsort(order_BT, axis=1, kind="stable")
    return places_BT & (ranks_BT < _counts(truth, counts)[:, None])


def drawn_shares(
    truth: Truth, counts: ArrayLike, *, fork: Fork = "end", draws: int = 2000, seed: int = 0
) -> Floats:
    """(R,) the share on boundaries of c places in each completion that are drawn at random.

    Their mean is known without draws (``uniform_places``); this is how far they lie about it.
    """
    generator = np.random.default_rng(seed)
    squares_BT = square(truth.advantages)
    places_BT = candidates(truth, fork)
    caught_R = np.zeros(draws)
    for row, count in enumerate(_counts(truth, counts)):
        squares_N = squares_BT[row, places_BT[row]]
        shuffled_RN = generator.permuted(np.tile(squares_N, (draws, 1)), axis=1)
        caught_R += shuffled_RN[:, :count].sum(1)
    return caught_R / (squares_BT * places_BT).sum()


def _counts(truth: Truth, counts: ArrayLike) -> Ints:
    counts_B = np.asarray(counts, dtype=np.int64)
    require_shape("counts", counts_B, truth.rewards.shape)
    return counts_B


def _fitting(truth: Truth, weights: ArrayLike) -> Floats:
    weights_BT = np.asarray(weights, dtype=np.float64)
    require_shape("weights", weights_BT, truth.mask.shape)
    return weights_BT
