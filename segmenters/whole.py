"""The whole completion as one segment."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class Whole(Segmenter):
    """One segment a completion: the credit unit of REINFORCE, RLOO and GRPO.

    Source:
        The sequence-level action of GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.
    """

    @property
    def causal(self) -> bool:
        """True: no boundary depends on anything."""
        return True

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Nothing: there is no boundary."""
        return frozenset()

    @property
    def spans_turns(self) -> bool:
        """True: a completion is one segment, however many turns it has."""
        return True

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Puts all action tokens of a row into segment 0."""
        mask_BT = rollouts.action_mask
        return Segmentation.from_starts(torch.zeros_like(mask_BT), mask_BT)
