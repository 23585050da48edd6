"""Every action token as a segment of its own."""

from __future__ import annotations

from dataclasses import dataclass

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class PerToken(Segmenter):
    """One segment a token: the credit unit of PPO.

    Source:
        The token-level decision process of Ouyang et al. 2022, arXiv 2203.02155.
    """

    @property
    def causal(self) -> bool:
        """Boundaries stand at every token, whatever it is."""
        return True

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Nothing: every token is a segment."""
        return frozenset()

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts before each action token."""
        return Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)
