"""The oracle, which cuts where the value jumps most, and a definition's agreement with it.

The oracle cuts a completion at its largest true changes. It chooses them on some splits of the
truth and is judged on others: chosen and judged on the same noise, it would seem better than any
definition can be.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics.arrays import (
    Bools,
    Floats,
    Ints,
    Truth,
    require_ids,
    require_shape,
)
from segcredit.credit_audit.metrics.estimates import Estimate, quotient
from segcredit.credit_audit.metrics.moments import (
    Fork,
    boundaries,
    candidates,
    ids_from,
    of,
    square,
)
from segcredit.errors import StudyError


def oracle_ids(truth: Truth, cuts: ArrayLike, *, split: int = 0, fork: Fork = "end") -> Ints:
    """Cuts each completion at its largest changes of V in one split of the truth.

    Judge them on the others: ``truth.keep([1, 2])`` where split 0 chose. Squares need two splits to
    be judged on, hence a truth of three or more (unless it is exact).

    Args:
        truth: whose split chooses.
        cuts: (B,) in each completion, such as those of the definition to be compared with; as many
            as there are places where it has fewer.
        split: its number.
        fork: whether the token of a large change ends a segment or starts one.

    Returns:
        (B,T) ids, −1 off the mask.
    """
    cuts_B = np.asarray(cuts, dtype=np.int64)
    require_shape("cuts", cuts_B, truth.rewards.shape)
    return ids_from(truth, _largest(truth, cuts_B, split, fork), fork)


def oracle_share(truth: Truth, segment_ids: ArrayLike, *, fork: Fork = "end") -> Estimate:
    """Computes ``share_on_boundaries`` of the oracle with as many cuts: the most to have.

    Chosen on each split in turn, judged by products of the others. A noisy split chooses worse, so
    that this is a lower bound for the oracle with the exact truth.

    Raises:
        StudyError: fewer than three splits.
    """
    if truth.splits < 3:
        raise StudyError(
            f"the truth has {truth.splits} splits; expected at least 3: one chooses the oracle's"
            " boundaries, and judging a square needs two more. Measure with more splits; an exact"
            " truth can be repeated."
        )
    cuts_B = boundaries(truth, require_ids(truth, segment_ids), fork).sum(1)
    on_BT, all_BT = np.zeros(truth.mask.shape), np.zeros(truth.mask.shape)
    for split in range(truth.splits):
        others = [other for other in range(truth.splits) if other != split]
        squares_BT = square(truth.advantages[:, others])
        on_BT += squares_BT * _largest(truth, cuts_B, split, fork)
        all_BT += squares_BT * candidates(truth, fork)
    return of(truth, quotient, on_BT, all_BT)


def jump_agreement(
    truth: Truth, segment_ids: ArrayLike, *, fork: Fork = "end"
) -> dict[str, Estimate]:
    """Computes the share of a definition's boundaries that the oracle has too, of equally many.

    At equal numbers precision and recall are the same. Averaged over the splits that choose.

    Returns:
        ``agreement`` of the definition with the oracle; ``chance``, that of as many random
        boundaries, exact; ``ceiling``, that of the oracles of two splits with each other, 1 for an
        exact truth. Noise in the truth lowers agreement and ceiling alike, so that what counts is
        where agreement lies between the two others. NaN for a definition that never cuts.
    """
    chosen_BT = boundaries(truth, require_ids(truth, segment_ids), fork)
    cuts_B = chosen_BT.sum(1)
    oracles = [_largest(truth, cuts_B, split, fork) for split in range(truth.splits)]
    found_B = np.mean([(chosen_BT & oracle).sum(1) for oracle in oracles], axis=0)
    both_B = np.mean([(one & two).sum(1) for one, two in _pairs(oracles)], axis=0)
    chance_B = cuts_B**2 / np.maximum(candidates(truth, fork).sum(1), 1)
    return {
        "agreement": of(truth, quotient, found_B, cuts_B),
        "chance": of(truth, quotient, chance_B, cuts_B),
        "ceiling": of(truth, quotient, both_B, cuts_B),
    }


def _largest(truth: Truth, cuts_B: Ints, split: int, fork: Fork) -> Bools:
    """Marks (B,T) the candidates with the largest changes in a split; the earlier of equals."""
    sizes_BT: Floats = np.abs(truth.advantages[:, split])
    sizes_BT = np.where(candidates(truth, fork), sizes_BT, -1.0)
    ranks_BT = np.argsort(np.argsort(-sizes_BT, axis=1, kind="stable"), axis=1)
    return (ranks_BT < cuts_B[:, None]) & candidates(truth, fork)


def _pairs(oracles: list[Bools]) -> Iterator[tuple[Bools, Bools]]:
    for second in range(1, len(oracles)):
        yield from ((oracles[first], oracles[second]) for first in range(second))
