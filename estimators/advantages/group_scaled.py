"""Advantages in units of the standard deviation of returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Le
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_size, group_std


@dataclass(frozen=True, slots=True)
class GroupScaled(AdvantageScheme):
    """A / (s + eps), with s² = max(variance of the returns, variance_floor).

    Assumption: returns of different prompts are comparable only in units of their std; prompts
    that are almost always or almost never solved then count for more. Degenerate case: a group
    whose returns are all equal has advantages of 0 under a group baseline, and stays at 0. One
    row alone has no std, and s is 1. Cost: none.

    Args:
        inner: the scheme that is scaled.
        over: whose returns are compared: each ``group``'s, or those of the whole ``batch``.
        ddof: 1 for the unbiased variance, 0 for the population's.
        eps: added to the standard deviation, in reward units.
        variance_floor: least variance, in squared reward units; 0 = none.

    Source:
        GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2, which has neither eps nor floor.
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
        std_B = std_B.masked_fill(group_size(pool_B) == 1, 1)
        return self.inner(values) / (std_B + self.eps)[:, None]
