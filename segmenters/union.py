"""The boundaries of two segmenters together."""

from __future__ import annotations

from dataclasses import dataclass

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class Union(Segmenter):
    """A boundary wherever one of two segmenters has one, or both: their common refinement.

    Assumption: either kind of boundary is worth one. Degenerate case: a segmenter joined with
    ``whole`` is itself. Cost: that of both.

    Args:
        first: a segmenter.
        second: another; for three, one of them is a ``union`` itself.

    Source:
        The join of two partitions into intervals; ours as a segmenter.
    """

    first: Segmenter
    second: Segmenter

    @property
    def causal(self) -> bool:
        """True where both are: the union of their boundaries depends on no later token."""
        return self.first.causal and self.second.causal

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Parts that either reads."""
        return self.first.reads | self.second.reads

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts where either cuts."""
        first, second = self.first.segment(rollouts), self.second.segment(rollouts)
        return Segmentation.from_starts(first.starts | second.starts, rollouts.action_mask)
