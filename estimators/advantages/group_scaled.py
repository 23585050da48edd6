"""Advantages in units of the standard deviation of returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Le
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_size, group_std, measured_by_std


@dataclass(frozen=True, slots=True)
class GroupScaled(AdvantageScheme):
    """A / (s + eps), with s² = max(variance of the returns, variance_floor).

    Assumption: returns of different prompts are comparable only in units of their std; prompts
    that are almost always or almost never solved then count for more. Degenerate case: where an
    advantage of the group is above twice the range of its returns (less rounding, 1e-5 of them in
    float32), the std is no unit for it, and A is divided by max(s + eps, 1), thus left as it is at
    the usual scale. No |A| is then larger than unscaled, or than 2 √(2 (n − 1)), n being the
    group's rows (2 √(2 n) with ddof 0). A baseline that is an average of the group's returns never
    comes near; one that is not (a critic, 0) always does where they are all equal. One row alone
    has no std, and s is 1. Cost: none.

    Args:
        inner: the scheme that is scaled.
        over: whose returns are compared: each ``group``'s, or those of the whole ``batch``.
        ddof: 1 for the unbiased variance, 0 for the population's.
        eps: added to the standard deviation, in reward units.
        variance_floor: least variance, in squared reward units; 0 = none.

    Source:
        GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2, which has neither eps nor floor,
        and a group's mean as its only baseline. The exception above is ours.
        verl: the defaults; its vectorised GRPO had ``variance_floor`` = eps as well, until verl's
        pull request 6348 removed the floor. TRL: eps 1e-4; its scaling by the batch is
        ``over="batch"``. SPO-tree's code: ddof 0, eps 1e-8.
    """

    inner: AdvantageScheme
    over: Literal["group", "batch"] = "group"
    ddof: Literal[0, 1] = 1
    eps: Annotated[float, Le(1e6)] = 1e-6
    variance_floor: Annotated[float, Le(1e6)] = 0.0

    def __post_init__(self) -> None:
        if min(self.eps, self.variance_floor) < 0 or self.eps == self.variance_floor == 0:
            raise ValueError(
                f"eps is {self.eps} and variance_floor is {self.variance_floor}; expected neither"
                " to be negative and one to be above 0, such as eps=1e-6, since the returns of a"
                " group may all be equal."
            )

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) scaled advantages."""
        returns_B = values.rewards.sum(1)
        pool_B = values.group if self.over == "group" else torch.zeros_like(values.group)
        std_B = group_std(returns_B, pool_B, ddof=self.ddof).clamp(min=self.variance_floor**0.5)
        unit_B = std_B.masked_fill(group_size(pool_B) == 1, 1) + self.eps
        advantages_BS = self.inner(values).masked_fill(~values.mask, 0)
        # Padded, as a batch may have no column.
        size_B = F.pad(advantages_BS.abs(), (0, 1)).amax(1)
        measured_B = measured_by_std(size_B, returns_B, pool_B)
        return advantages_BS / torch.where(measured_B, unit_B, unit_B.clamp(min=1))[:, None]
