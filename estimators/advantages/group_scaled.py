"""Advantages in units of the group's spread of returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_size, group_std


@dataclass(frozen=True, slots=True)
class GroupScaled(AdvantageScheme):
    """A / (std of the group's returns + eps).

    Degenerate case: a group whose returns are all equal has advantages of 0 under a group
    baseline, and stays at 0. A group of one row is left as it is.

    Args:
        inner: the scheme that is scaled.
        ddof: 1 for the unbiased variance, 0 for the population's.
        eps: added to the standard deviation, in reward units.

    Source:
        GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2; ddof and eps as in verl.
    """

    inner: AdvantageScheme
    ddof: Literal[0, 1] = 1
    eps: float = 1e-6

    def __call__(self, values: SegmentValues) -> Tensor:
        """(B,S) scaled advantages."""
        returns_B = values.rewards.sum(1)
        spread_B = group_std(returns_B, values.group, ddof=self.ddof) + self.eps
        alone_B = group_size(values.group) == 1
        return self.inner(values) / torch.where(alone_B, 1.0, spread_B)[:, None]
