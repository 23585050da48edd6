"""Precision, recall and F1 of boundaries, with bootstrap intervals over documents.

Letters: ``D`` documents, ``3`` the counts hit, predicted and given, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .features import Floats
from .tokens import Ints

RESAMPLES = 2000


def counts_of(predicted: Sequence[Ints], given: Sequence[Ints]) -> Ints:
    """Returns (D,3) boundaries hit exactly, predicted, and given, of each document."""
    rows = [
        (len(np.intersect1d(ours, theirs)), len(ours), len(theirs))
        for ours, theirs in zip(predicted, given, strict=True)
    ]
    return np.asarray(rows, np.int64).reshape(-1, 3)


def measures(counts_3: Ints) -> tuple[float, float, float]:
    """Computes F1, precision and recall of summed counts; 0 where nothing is to divide by."""
    hit, predicted, given = (float(count) for count in counts_3)
    return (
        2 * hit / max(predicted + given, 1.0),
        hit / max(predicted, 1.0),
        hit / max(given, 1.0),
    )


def intervals(counts_D3: Ints, *, seed: int = 0) -> Floats:
    """Computes (3,2) 95 % percentile intervals of F1, precision and recall."""
    totals_R3 = _resampled(counts_D3, seed)
    hit, predicted, given = totals_R3.T
    values_3R = np.stack(
        [
            2 * hit / np.maximum(predicted + given, 1),
            hit / np.maximum(predicted, 1),
            hit / np.maximum(given, 1),
        ]
    )
    return np.quantile(values_3R, [0.025, 0.975], axis=1).T


def paired_difference(ours_D3: Ints, theirs_D3: Ints, *, seed: int = 0) -> tuple[float, Floats]:
    """Computes F1 of ours less theirs on the same documents, and its 95 % interval (2,)."""
    ours_R3, theirs_R3 = _resampled(ours_D3, seed), _resampled(theirs_D3, seed)

    def f1(totals_R3: Floats) -> Floats:
        return 2 * totals_R3[:, 0] / np.maximum(totals_R3[:, 1] + totals_R3[:, 2], 1)

    found = measures(ours_D3.sum(0))[0] - measures(theirs_D3.sum(0))[0]
    return found, np.quantile(f1(ours_R3) - f1(theirs_R3), [0.025, 0.975])


def _resampled(counts_D3: Ints, seed: int) -> Floats:
    """Returns (R,3) sums over documents drawn with replacement."""
    size = len(counts_D3)
    draws_RD = np.random.default_rng(seed).multinomial(
        size, np.full(size, 1 / size), size=RESAMPLES
    )
    return draws_RD.astype(np.float64) @ counts_D3.astype(np.float64)
