"""One segmenter's boundaries, moved to the nearest of another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Le
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading
from segcredit.errors import require_one_of


@dataclass(frozen=True, slots=True)
class SnapTo(Segmenter):
    """The boundaries of ``inner``, moved to boundaries of ``to`` that are at most n tokens away.

    ``nearest`` moves to either side, of two equally near to the earlier; ``later`` moves to the
    first at or behind the place. Boundaries that meet become one. Distances count action tokens.
    A row's beginning and end are no boundaries to move to.

    Causal with ``later`` and ``otherwise="drop"`` where both segmenters are: there is a boundary
    before token t if ``to`` has one there, and ``inner`` one in reach at or before it, but after
    the last of ``to``. ``nearest`` moves a boundary to where a later token sends it, and whether
    one is kept depends on what follows in reach.

    Assumption: a model's signal says that a step begins or ends hereabouts, and the text where.
    Degenerate case: with a ``to`` that never cuts, one segment a row, or with ``keep`` the inner
    segmenter. Cost: a few cumulative maxima, beside the cost of both.

    Args:
        inner: whose boundaries are moved, such as ``entropy``.
        to: where they may go, such as ``newline``.
        within: farthest move, in action tokens, at least 0; at 0 it is their ``intersection``.
        otherwise: a boundary without a place in reach is dropped (``drop``) or stays (``keep``).
        direction: ``nearest`` or ``later``.

    Source:
        A wrapper of ours.
    """

    inner: Segmenter
    to: Segmenter
    within: Annotated[int, Le(10**9)] = 8
    otherwise: Literal["drop", "keep"] = "drop"
    direction: Literal["nearest", "later"] = "nearest"

    def __post_init__(self) -> None:
        if self.within < 0:
            raise ValueError(f"within is {self.within}; expected at least 0 tokens, such as 8.")
        require_one_of("otherwise", self.otherwise, ("drop", "keep"))
        require_one_of("direction", self.direction, ("nearest", "later"))

    @property
    def causal(self) -> bool:
        """A boundary that only moves to where the row has come by then looks at nothing later."""
        both = self.inner.causal and self.to.causal
        return both and self.direction == "later" and self.otherwise == "drop"

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Parts that either segmenter reads."""
        return self.inner.reads | self.to.reads

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Moves each boundary to its place."""
        mask_BT = rollouts.action_mask
        if not mask_BT.numel():
            return self.inner.segment(rollouts)
        place_BT = mask_BT.cumsum(1) - 1
        moved_BT = self.inner.segment(rollouts).starts & (place_BT > 0)
        goals_BT = self.to.segment(rollouts).starts & (place_BT > 0)
        goal_BT, away_BT = self._goals(goals_BT, place_BT)
        reached_BT = moved_BT & (away_BT <= self.within)
        starts_BT = torch.zeros_like(place_BT).scatter_add(1, goal_BT, reached_BT.long()) > 0
        if self.otherwise == "keep":
            starts_BT = starts_BT | (moved_BT & ~reached_BT)
        return Segmentation.from_starts(starts_BT, mask_BT)

    def _goals(self, goals_BT: Tensor, place_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B,T) the column of each token's goal, and how many action tokens it is away."""
        width = goals_BT.shape[1]
        columns_BT = torch.arange(width, device=goals_BT.device).expand_as(goals_BT)
        after_BT = columns_BT.masked_fill(~goals_BT, width).flip(1).cummin(1).values.flip(1)
        later_BT = after_BT.clamp(max=width - 1)
        ahead_BT = (place_BT.gather(1, later_BT) - place_BT).masked_fill(after_BT == width, _FAR)
        if self.direction == "later":
            return later_BT, ahead_BT
        before_BT = columns_BT.masked_fill(~goals_BT, -1).cummax(1).values
        earlier_BT = before_BT.clamp(min=0)
        back_BT = (place_BT - place_BT.gather(1, earlier_BT)).masked_fill(before_BT < 0, _FAR)
        earlier = back_BT <= ahead_BT
        return torch.where(earlier, earlier_BT, later_BT), torch.minimum(back_BT, ahead_BT)


_FAR = torch.iinfo(torch.long).max
"""Farther than any boundary."""
