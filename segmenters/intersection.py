"""The boundaries that two segmenters share."""

from __future__ import annotations

from dataclasses import dataclass

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class Intersection(Segmenter):
    """A boundary wherever two segmenters both have one, before the very same token.

    Assumption: what two rules agree on is a boundary indeed. Degenerate case: rules that never
    meet leave one segment a row; ``snap_to`` forgives a few tokens between them. Cost: that of
    both.

    Args:
        first: a segmenter.
        second: another; for three, one of them is an ``intersection`` itself.

    Source:
        The finest partition into intervals that both refine; ours as a segmenter.
    """

    first: Segmenter
    second: Segmenter

    @property
    def causal(self) -> bool:
        """True where both are: what their boundaries share depends on no later token."""
        return self.first.causal and self.second.causal

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Parts that either reads."""
        return self.first.reads | self.second.reads

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts where both cut."""
        first, second = self.first.segment(rollouts), self.second.segment(rollouts)
        return Segmentation.from_starts(first.starts & second.starts, rollouts.action_mask)
