"""The mean return of a prompt's completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class GroupMean(ValueEstimator):
    """V = the mean of the group's returns, the same at every segment of the group.

    A return is the sum of a row's token rewards, KL penalties included.

    Assumption: all states of a prompt are worth the same. Since the mean includes the row's own
    return, expected gradients shrink by the factor (G − 1)/G. Degenerate case: a group of equal
    returns has no advantage; a group of one row, see ``singleton``. Cost: none beyond the group's
    completions.

    Args:
        singleton: what a group of one row gets: ``zero`` advantage (the row's own return as
            baseline), or its ``reward`` as advantage (no baseline), as verl does.

    Source:
        GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2.
    """

    singleton: Literal["zero", "reward"] = "zero"

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the group's mean return in every column."""
        returns_B = rollouts.token_rewards.masked_fill(~rollouts.action_mask, 0).sum(1)
        means_B = group_mean(returns_B, rollouts.group)
        if self.singleton == "reward":
            means_B = means_B.masked_fill(group_size(rollouts.group) == 1, 0)
        return means_B[:, None] * segmentation.mask
