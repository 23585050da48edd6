"""Moments that metrics are made of: products of splits, boundaries, and sums over segments.

Letters as in ``segcredit.credit_audit.metrics.arrays``; ``S`` segments, ``N`` any number of places.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics.arrays import Bools, Floats, Ints, Truth
from segcredit.credit_audit.metrics.estimates import Combine, Estimate, estimate
from segcredit.errors import StudyError

Fork = Literal["end", "start"]
"""Side of a boundary that its token is on: it ends a segment, or starts the next."""


def product(first_BHN: Floats, second_BHN: Floats) -> Floats:
    """Computes (B,N) the mean of first_h × second_g over all pairs of different splits h ≠ g.

    Unbiased for the product of the two truths, since the noise of different splits is
    independent::

        (Σ_h x_h · Σ_h y_h − Σ_h x_h y_h) / (H (H − 1))
    """
    splits = first_BHN.shape[1]
    mixed = first_BHN.sum(1) * second_BHN.sum(1) - (first_BHN * second_BHN).sum(1)
    return mixed / (splits * (splits - 1))


def square(x_BHN: Floats) -> Floats:
    """Computes (B,N) the true square, without bias; may be below 0 where noise is large."""
    return product(x_BHN, x_BHN)


def begins(ids_BT: Ints) -> Bools:
    """Marks (B,T) the first token of each segment."""
    before_BT = np.concatenate([np.full((len(ids_BT), 1), -1), ids_BT[:, :-1]], axis=1)
    return (ids_BT >= 0) & (ids_BT != before_BT)


def finishes(ids_BT: Ints) -> Bools:
    """Marks (B,T) the last token of each segment."""
    after_BT = np.concatenate([ids_BT[:, 1:], np.full((len(ids_BT), 1), -1)], axis=1)
    return (ids_BT >= 0) & (ids_BT != after_BT)


def candidates(truth: Truth, fork: Fork) -> Bools:
    """Marks (B,T) the tokens at which a definition may choose to cut.

    The last token of a completion ends a segment, and the first starts one, whatever the
    definition: they are no choice.
    """
    places_T = np.arange(truth.mask.shape[1])
    if fork == "end":
        return truth.mask & (places_T < truth.lengths[:, None] - 1)
    if fork == "start":
        return truth.mask & (places_T > 0)
    raise StudyError(f"the fork is {fork!r}; expected 'end' or 'start', the side of its token.")


def boundaries(truth: Truth, ids_BT: Ints, fork: Fork) -> Bools:
    """Marks (B,T) the tokens at which the definition chose to cut: n − 1 of n segments."""
    return (finishes(ids_BT) if fork == "end" else begins(ids_BT)) & candidates(truth, fork)


def ids_from(truth: Truth, boundaries_BT: Bools, fork: Fork) -> Ints:
    """Returns (B,T) segment ids with cuts at these tokens; −1 off the mask."""
    starts_BT = boundaries_BT & candidates(truth, fork)
    if fork == "end":
        starts_BT = np.concatenate([np.zeros((len(starts_BT), 1), bool), starts_BT[:, :-1]], axis=1)
    return np.where(truth.mask, starts_BT.cumsum(1), -1)


def segment_sums(x_BT: Floats, ids_BT: Ints) -> Floats:
    """Computes (B,S) the sum over each segment; S = T, 0 where there is none."""
    rows, width = ids_BT.shape
    cells = (np.arange(rows)[:, None] * width + ids_BT)[ids_BT >= 0]
    sums = np.bincount(cells, x_BT[ids_BT >= 0], minlength=rows * width)
    return sums.astype(np.float64).reshape(rows, width)


def segment_lengths(ids_BT: Ints) -> Floats:
    """Counts (B,S) the tokens of each segment; 0 where there is none."""
    return segment_sums(np.ones(ids_BT.shape), ids_BT)


def segment_gains(truth: Truth, ids_BT: Ints) -> Floats:
    """Computes (B,H,S) V after each segment less V before it; 0 where there is no segment."""
    gains = [segment_sums(x_BT, ids_BT) for x_BT in np.moveaxis(truth.advantages, 1, 0)]
    return np.stack(gains, axis=1)


def of(truth: Truth, combine: Combine, *moments: ArrayLike) -> Estimate:
    """Makes the estimate of some moments (B,) or (B,N); the latter are summed over N."""
    columns = [np.asarray(x, dtype=np.float64) for x in moments]
    moments_BK = np.stack([x if x.ndim == 1 else x.sum(1) for x in columns], axis=1)
    return estimate(
        truth.prompts, moments_BK, combine, weights=truth.weights, resampling=truth.resampling
    )
