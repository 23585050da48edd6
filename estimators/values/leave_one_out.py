"""The mean return of a prompt's other completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from segcredit import (
    RolloutBatch,
    Segmentation,
    Simulator,
    ValueEstimator,
    group_mean,
    group_size,
)


@dataclass(frozen=True, slots=True)
class LeaveOneOut(ValueEstimator):
    """V_i = Σ_{j≠i} r_j / (G − 1): the mean return of the group's other rows, at every segment.

    A return is the sum of a row's token rewards, KL penalties included. With one segment a row
    and ``full_return`` the advantage is G/(G − 1) times that of ``group_mean``.

    Assumption: all states of a prompt are worth the same. A row's own actions do not move its
    baseline, which therefore leaves the expected gradient as it is. Degenerate case: a group of
    one row has no others, see ``singleton``. Cost: none beyond the group's completions.

    Args:
        singleton: what a group of one row gets: ``zero`` advantage (the row's own return as
            baseline), or its ``reward`` as advantage (no baseline), as verl does.

    Source:
        RLOO, Ahmadian et al. 2024, arXiv 2402.14740.
    """

    singleton: Literal["zero", "reward"] = "zero"

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the mean return of the group's other rows in every column."""
        returns_B = rollouts.token_rewards.masked_fill(~rollouts.action_mask, 0).sum(1)
        sizes_B = group_size(rollouts.group)
        sums_B = group_mean(returns_B, rollouts.group) * sizes_B
        others_B = (sums_B - returns_B) / (sizes_B - 1).clamp(min=1)
        alone_B = returns_B if self.singleton == "zero" else torch.zeros_like(returns_B)
        return torch.where(sizes_B == 1, alone_B, others_B)[:, None] * segmentation.mask
