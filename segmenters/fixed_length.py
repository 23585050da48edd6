"""Windows of equally many action tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Le

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class FixedLength(Segmenter):
    """A boundary every ``tokens`` action tokens; the last segment of a row may be shorter.

    Tokens in holes are not counted.

    Source:
        The fixed windows of SPO-tree, Guo et al. 2025, arXiv 2505.23564.
    """

    tokens: Annotated[int, Le(10**9)] = 8

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; expected at least 1.")

    @property
    def causal(self) -> bool:
        """Boundaries stand where they stand, whatever the tokens are."""
        return True

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Nothing: places alone count."""
        return frozenset()

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts before action tokens 0, n, 2n, ..."""
        mask_BT = rollouts.action_mask
        place_BT = mask_BT.cumsum(1) - 1
        return Segmentation.from_starts(mask_BT & (place_BT % self.tokens == 0), mask_BT)
