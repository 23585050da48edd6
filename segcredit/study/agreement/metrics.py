"""Metrics of the agreement of two segmentations of one document, from their boundaries.

A document of length N has N units: the characters of a text, or the tokens of a completion. A
boundary is the position of the unit that begins a segment, 1..N−1; the beginning of the first
segment is none. Boundaries come in any order. 0, N and repeated positions are left out, since they
separate nothing; positions beyond the document are refused.

Where both segmentations are one segment, they agree perfectly: precision, recall, F1 and boundary
similarity are 1, P_k and WindowDiff 0. The same holds of documents too short for a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcredit.errors import StudyError


def inner_boundaries(boundaries: Sequence[int], length: int) -> list[int]:
    """Returns the boundaries that separate something: ascending, each once, in 1..length−1.

    Raises:
        StudyError: a position is negative or beyond ``length``.
    """
    positions = sorted(set(map(int, boundaries)))
    if positions and (positions[0] < 0 or positions[-1] > length):
        outside = positions[0] if positions[0] < 0 else positions[-1]
        raise StudyError(
            f"A boundary is at {outside} in a document of length {length}; expected positions from"
            f" 0 to {length}. Usually boundaries and documents are in different orders, or bytes"
            " or tokens were counted in one of them and characters in the other."
        )
    first, last = int(positions[:1] == [0]), len(positions) - (positions[-1:] == [length])
    return positions[first:last]


@dataclass(frozen=True, slots=True)
class Matches:
    """Boundaries of two segmentations that stand for each other, and all of theirs.

    Add them to pool documents: ``sum(matches, Matches(0, 0, 0)).f1`` is the micro-average.
    """

    matches: int
    """Pairs of one boundary of each, within the tolerance; no boundary is in two pairs."""
    reference: int
    """Boundaries of the reference."""
    other: int
    """Boundaries of the segmentation that is compared with it."""

    def __add__(self, more: Matches) -> Matches:
        return Matches(
            self.matches + more.matches, self.reference + more.reference, self.other + more.other
        )

    def swapped(self) -> Matches:
        """Returns the matches with the two sides in each other's place."""
        return Matches(self.matches, self.other, self.reference)

    @property
    def precision(self) -> float:
        """Matches / other, in [0,1]; without other boundaries 1 if the reference has none, or 0."""
        return self.matches / self.other if self.other else float(not self.reference)

    @property
    def recall(self) -> float:
        """Matches / reference, in [0,1]; without any in the reference 1 if other has none, or 0."""
        return self.matches / self.reference if self.reference else float(not self.other)

    @property
    def f1(self) -> float:
        """2 matches / (reference + other), in [0,1]; 1 where neither has a boundary."""
        boundaries = self.reference + self.other
        return 2 * self.matches / boundaries if boundaries else 1.0


def match_boundaries(
    reference: Sequence[int], other: Sequence[int], length: int, tolerance: int = 0
) -> Matches:
    """Finds the largest number of one-to-one pairs of boundaries within a tolerance.

    |r − o| ≤ tolerance for each pair (r, o). Boundaries are walked through in ascending order, and
    the first of each side that are near enough become a pair; the tolerance being the same for
    all, no other choice gives more pairs.

    Args:
        reference: boundaries, as described above.
        other: likewise.
        length: of the document.
        tolerance: in units; 0 asks for the same position.

    Returns:
        Counts, with precision, recall and F1. Swapping the two sides swaps precision and recall.

    Raises:
        StudyError: the tolerance is negative, or a boundary is outside the document.
    """
    if tolerance < 0:
        raise StudyError(f"The tolerance is {tolerance}; expected 0 units or more, such as 5.")
    ours, theirs = inner_boundaries(reference, length), inner_boundaries(other, length)
    if not tolerance:  # the same by a faster way
        return Matches(len(set(ours).intersection(theirs)), len(ours), len(theirs))
    pairs = i = j = 0
    while i < len(ours) and j < len(theirs):
        gap = ours[i] - theirs[j]
        if abs(gap) <= tolerance:
            pairs += 1
        # The earlier one of an unequal pair is too early for all that follow on the other side.
        i += gap <= tolerance
        j += -gap <= tolerance
    return Matches(pairs, len(ours), len(theirs))


@dataclass(frozen=True, slots=True)
class BoundaryEdits:
    """Edits that turn one set of boundaries into another: the boundary edit distance in parts."""

    matches: int
    """Boundaries at the same position in both."""
    moves: tuple[int, ...]
    """Distances in units of the boundaries that were moved (transpositions: near misses)."""
    additions: int
    """Boundaries of either that were added or removed (full misses)."""
    n_t: int
    """Moves are of less than so many units."""

    @property
    def distance(self) -> float:
        """Additions + Σ d / n_t over the moves: at least 0."""
        return self.additions + sum(self.moves) / self.n_t

    @property
    def similarity(self) -> float:
        """1 − distance / (additions + moves + matches), in [0,1]; 1 where there is nothing."""
        places = self.additions + len(self.moves) + self.matches
        return 1 - self.distance / places if places else 1.0


def boundary_edits(
    reference: Sequence[int], other: Sequence[int], length: int, n_t: int = 2
) -> BoundaryEdits:
    """Computes the boundary edit distance of two segmentations with boundaries of one kind.

    Boundaries at the same position match. A boundary of one side alone and a boundary of the other
    side alone, d < n_t units apart, are one boundary that was moved; the shortest moves are taken
    first, of equal ones the earlier, and no boundary moves twice. The others were added or removed.

    Args:
        reference: boundaries, as described above.
        other: likewise; swapping the two changes nothing.
        length: of the document.
        n_t: a move spans at most so many positions, its ends included: 2 allows for neighbours
            alone (the paper's default), 1 for no move.

    Raises:
        StudyError: ``n_t`` is below 1, or a boundary is outside the document.

    Source:
        Fournier, 2013, "Evaluating text segmentation using boundary edit distance", ACL, in the
        form of the author's package segeval 2.0.11: a move of d costs d / n_t, and moves are
        chosen greedily. For n_t = 2 no other choice costs less; for larger ones some may (0 and 3
        against 2 and 5 with n_t = 4: one move of 1 and two additions, not two moves of 2).
    """
    if n_t < 1:
        raise StudyError(f"n_t is {n_t}; expected 1 or more positions, such as the usual 2.")
    ours, theirs = set(inner_boundaries(reference, length)), set(inner_boundaries(other, length))
    matches = len(ours & theirs)
    ours, theirs = ours - theirs, theirs - ours
    moves: list[int] = []
    for d in range(1, n_t):
        # The left ends of all possible moves of d, found from the side with fewer boundaries.
        few, many = sorted((ours, theirs), key=len)
        lefts = {p for p in few if p + d in many} | {p - d for p in few if p - d in many}
        for left in sorted(lefts):
            for here, there in ((ours, theirs), (theirs, ours)):
                if left in here and left + d in there:
                    here.remove(left)
                    there.remove(left + d)
                    moves.append(d)
    return BoundaryEdits(matches, tuple(moves), len(ours) + len(theirs), n_t)


def boundary_similarity(
    reference: Sequence[int], other: Sequence[int], length: int, n_t: int = 2
) -> float:
    """Computes boundary similarity B = 1 − (A + Σ d/n_t) / (A + T + M), in [0,1]; 1 is agreement.

    M boundaries match, T were moved by d each, A were added or removed (``boundary_edits``, where
    arguments, errors and source are). Symmetric. With n_t = 1 it is the Jaccard index of the two
    sets of boundaries; a single move of one unit is worth half a match if n_t is 2.
    """
    return boundary_edits(reference, other, length, n_t).similarity


def default_window(reference: Sequence[int], length: int) -> int:
    """Returns half the mean segment length of the reference, length / (2 segments), at least 1.

    Rounded half to even; at most length − 1, the longest distance between two units.

    Source:
        Beeferman, Berger and Lafferty, 1999, and Pevzner and Hearst, 2002. Rounding and limits
        are ours.
    """
    segments = len(inner_boundaries(reference, length)) + 1
    return max(1, min(round(length / (2 * segments)), length - 1))


def pk(
    reference: Sequence[int], other: Sequence[int], length: int, window: int | None = None
) -> float:
    """Computes P_k, the share of pairs of units k apart that one side alone puts in one segment.

    P_k = Σ_{i=0}^{N−k−1} [δ_ref(i, i+k) ≠ δ_other(i, i+k)] / (N − k), where δ(i, j) is whether the
    units i and j are in the same segment. In [0,1]; 0 is agreement, and so is the absence of any
    pair of units (N below 2). Not symmetric unless k is given.

    Args:
        reference: boundaries, as described above; k is taken from it.
        other: likewise.
        length: N.
        window: k, in units; by default ``default_window``. A larger k than the document allows is
            taken as N − 1.

    Raises:
        StudyError: the window is below 1, or a boundary is outside the document.

    Source:
        Beeferman, Berger and Lafferty, 1999, "Statistical models for text segmentation", Machine
        Learning 34.
    """
    return _window_errors_of_two(reference, other, length, window)[0]


def window_diff(
    reference: Sequence[int], other: Sequence[int], length: int, window: int | None = None
) -> float:
    """Computes WindowDiff, the share of windows with different numbers of boundaries.

    WD = Σ_{i=0}^{N−k−1} [b_ref(i, i+k) ≠ b_other(i, i+k)] / (N − k), where b(i, j) is the number of
    boundaries after unit i and up to unit j. In [0,1]; 0 is agreement. Never below P_k; equal to
    it for k = 1. Arguments, edges and errors as for ``pk``.

    Source:
        Pevzner and Hearst, 2002, "A critique and improvement of an evaluation metric for text
        segmentation", Computational Linguistics 28(1).
    """
    return _window_errors_of_two(reference, other, length, window)[1]


def segment_ranks(segmentations: Sequence[Sequence[int]], length: int) -> NDArray[np.int32]:
    """Returns (D,N) the segment of each unit, from 0, under each of D sets of boundaries."""
    ranks_DN = np.zeros((len(segmentations), length), dtype=np.int32)
    for row, boundaries in enumerate(segmentations):
        ranks_DN[row, inner_boundaries(boundaries, length)] = 1
    return ranks_DN.cumsum(axis=1, dtype=np.int32)


def window_errors(
    ranks_DN: NDArray[np.int32], reference: int, window: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes P_k and WindowDiff of D segmentations of one document against one of them.

    Args:
        ranks_DN: as ``segment_ranks`` gives them.
        reference: the row of the reference.
        window: k, as for ``pk``.

    Returns:
        (D,) each; 0 in the reference's own row.

    Raises:
        StudyError: the window is below 1.
    """
    if window is not None and window < 1:
        raise StudyError(f"The window is {window}; expected at least 1 unit, or None.")
    rows, length = ranks_DN.shape
    if length < 2:
        return np.zeros(rows), np.zeros(rows)
    if window is None:
        window = default_window(np.diff(ranks_DN[reference]).nonzero()[0] + 1, length)
    k = min(window, length - 1)
    inside_DW = ranks_DN[:, k:] - ranks_DN[:, :-k]
    parted_DW = inside_DW > 0
    differs_D = (parted_DW != parted_DW[reference]).mean(axis=1)
    return differs_D, (inside_DW != inside_DW[reference]).mean(axis=1)


def segment_lengths(
    boundaries: Sequence[int], length: int, units: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Returns the length of every segment, in the document's units or in larger ones of it.

    Args:
        boundaries: as described above.
        length: of the document; one of length 0 has no segments.
        units: the position at which each larger unit begins, ascending, such as the first
            character of each token. One belongs to the segment in which it begins.

    Returns:
        One a segment, in order. Without ``units`` at least 1 each and ``length`` in all; with them
        0 for segments in which none begins, and ``len(units)`` in all.
    """
    if not length:
        return np.zeros(0, dtype=np.int64)
    starts = np.asarray([0, *inner_boundaries(boundaries, length)], dtype=np.int64)
    if units is None:
        return np.diff(starts, append=length)
    # What stands at the very end, such as an end token, belongs to the last segment.
    return np.diff(np.searchsorted(np.asarray(units), starts), append=len(units))


def _window_errors_of_two(
    reference: Sequence[int], other: Sequence[int], length: int, window: int | None
) -> tuple[float, float]:
    differs_D, counts_differ_D = window_errors(segment_ranks([reference, other], length), 0, window)
    return float(differs_D[1]), float(counts_differ_D[1])
