"""Another segmenter's segments, joined until there are few enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Le

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class MaxSegments(Segmenter):
    """At most n segments a row: neighbours are joined where the inner segmenter has more.

    ``evenly``: of c > n segments, 0 to c − 1, segment k goes to floor(k n / c), so that exactly n
    are left, each of floor(c/n) or ceil(c/n) old ones: the cuts stay dense where they were dense.
    ``first``: the first n − 1 stay and the rest is one.

    Causal with ``first`` where the inner segmenter is: the number of boundaries so far decides.
    Not with ``evenly``, which depends on how many segments come later.

    Assumption: one boundary of the inner segmenter is worth as much as another; tokens are not
    weighed, ``min_length`` does that. Degenerate case: n = 1 is ``whole``. Cost: elementwise,
    beside the inner segmenter's. It bounds what is paid for each segment, such as Monte-Carlo
    continuations.

    Args:
        inner: whose segments are joined.
        segments: most segments of a row, at least 1.
        join: ``evenly`` or ``first``.

    Source:
        A wrapper of ours. VinePPO's released code has a limit of states to value after whose last
        the steps earn nothing; with ``first`` they are one segment, credited as any is.
    """

    inner: Segmenter
    segments: Annotated[int, Le(10**9)] = 16
    join: Literal["evenly", "first"] = "evenly"

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments is {self.segments}; expected at least 1, such as 16.")
        if self.join not in ("evenly", "first"):
            raise ValueError(
                f"join is {self.join!r}; expected 'evenly' or 'first', for example join='evenly'."
            )

    @property
    def causal(self) -> bool:
        """True where the rest is joined and the inner segmenter is causal; a count looks ahead."""
        return self.inner.causal and self.join == "first"

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Parts that the inner segmenter reads."""
        return self.inner.reads

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Numbers the segments anew."""
        segmentation = self.inner.segment(rollouts)
        ids_BT, counts_B1 = segmentation.segment_ids, segmentation.counts[:, None]
        if self.join == "first":
            return Segmentation(ids_BT.clamp(max=self.segments - 1))
        joined_BT = ids_BT * self.segments // counts_B1.clamp(min=self.segments)
        return Segmentation(joined_BT.masked_fill(ids_BT < 0, -1))
