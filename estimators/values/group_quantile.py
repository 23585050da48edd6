"""A quantile of the returns of a prompt's completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from segcredit import (
    RolloutBatch,
    Segmentation,
    Simulator,
    ValueEstimator,
    group_place,
    group_size,
)


@dataclass(frozen=True, slots=True)
class GroupQuantile(ValueEstimator):
    """V = the least return of the group that a share of its returns is not above.

    With returns of 0 and 1 and p of them 1: V = 0 where p ≤ 1 − share, so that of a hard prompt
    only what is right has an advantage, and V = 1 above, where only what is wrong has one.

    Assumption: all states of a prompt are worth the same. Biased as a baseline: the quantile may be
    the completion's own return. Degenerate case: equal returns, or one row alone, have no
    advantage. Cost: a sort of the batch's rows.

    Args:
        share: of the group's returns, above 0.

    Source:
        The quantile baseline of QAE, arXiv 2509.22611, of which only a summary was read; its 0.4
        is from memory.
    """

    share: Annotated[float, Interval(ge=1e-6, le=1)] = 0.4

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the group's quantile in every column."""
        returns_B = rollouts.token_rewards.masked_fill(~rollouts.action_mask, 0).sum(1)
        order_B = returns_B.argsort(stable=True)
        order_B = order_B[rollouts.group[order_B].argsort(stable=True)]
        group_B = rollouts.group[order_B]
        # Less a little, as 0.1 times 30 is more than 3.
        steps_B = (self.share * group_size(group_B).double() - 1e-9).ceil().long() - 1
        rows_B = torch.arange(len(order_B), device=order_B.device)
        first_B = rows_B - group_place(group_B)
        quantile_B = returns_B[order_B[first_B + steps_B.clamp(min=0)]]
        values_B = torch.empty_like(returns_B).scatter(0, order_B, quantile_B)
        return values_B[:, None] * segmentation.mask
