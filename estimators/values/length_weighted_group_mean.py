"""The mean return of a prompt's completions, each weighed by its length."""

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
class LengthWeightedGroupMean(ValueEstimator):
    """V = Σ n_i r_i / Σ n_i over the group's rows of n_i action tokens, at every segment.

    A return r_i is the sum of a row's token rewards, KL penalties included.

    Assumption: a completion's squared gradient grows with its length; then this is the baseline
    of least variance. Since the mean includes the row's own return, expected gradients shrink, as
    with ``group_mean``. Degenerate case: rows without action tokens have no weight, and a group
    of such rows alone has V = 0. Cost: none beyond the group's completions.

    Args:
        singleton: what a group of one row gets: ``zero`` advantage (the row's own return as
            baseline), or its ``reward`` as advantage (no baseline), as verl does.

    Source:
        OPO, Hao et al. 2025, arXiv 2505.23585. Only the baseline: OPO's exact on-policy update is
        a matter of the loss.
    """

    singleton: Literal["zero", "reward"] = "zero"

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the group's length-weighted mean return in every column."""
        returns_B = rollouts.token_rewards.masked_fill(~rollouts.action_mask, 0).sum(1)
        lengths_B = rollouts.action_mask.sum(1).to(returns_B.dtype)
        weight_B = group_mean(lengths_B, rollouts.group)
        means_B = group_mean(lengths_B * returns_B, rollouts.group)
        # Without any token the sum above is 0, whatever it is divided by.
        means_B = means_B / torch.where(weight_B > 0, weight_B, 1)
        if self.singleton == "reward":
            means_B = means_B.masked_fill(group_size(rollouts.group) == 1, 0)
        return means_B[:, None] * segmentation.mask
