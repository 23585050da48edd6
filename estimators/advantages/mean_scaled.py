"""Advantages in units of the mean of returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_mean, group_size, measured_by_std


@dataclass(frozen=True, slots=True)
class MeanScaled(AdvantageScheme):
    """A / (mean of the group's returns + eps).

    With rewards of 0 and 1 and ``group_mean``: (1 − p)/p for what is right and −1 for what is
    wrong, p being the share that is right, so that prompts that are rarely solved count most.

    Assumption: no return is below 0. Degenerate case: a group of one row is left as it is; where a
    return of the group is negative, or an advantage is above twice the range of its returns, the
    mean is no unit for it, and A is divided by max(mean + eps, 1), thus left as it is at the usual
    scale. No |A| is then larger than unscaled, or than 2 n, n being the group's rows. A group
    that earns 0 has no advantage under an average of its returns. Cost: none.

    Args:
        inner: the scheme that is scaled.
        eps: added to the mean, in reward units.

    Source:
        MaxRL, arXiv 2602.02710: A = (r − mean)/mean. SkyRL's code: ``eps`` 1e-6, and a group of
        one row keeps its reward, which is ``singleton="reward"`` of the estimator ``group_mean``.
        The exceptions above are ours.
    """

    inner: AdvantageScheme
    eps: Annotated[float, Interval(ge=0, le=1e6)] = 0.0

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) scaled advantages, 0 outside the mask."""
        returns_B, group_B = values.rewards.sum(1), values.group
        unit_B = (group_mean(returns_B, group_B) + self.eps).masked_fill(
            group_size(group_B) == 1, 1
        )
        advantages_BS = self.inner(values).masked_fill(~values.mask, 0)
        # Padded, as a batch may have no column.
        size_B = F.pad(advantages_BS.abs(), (0, 1)).amax(1)
        negative_B = group_mean((returns_B < 0).to(returns_B.dtype), group_B) > 0
        measured_B = measured_by_std(size_B, returns_B, group_B) & ~negative_B & (unit_B > 0)
        return advantages_BS / torch.where(measured_B, unit_B, unit_B.clamp(min=1))[:, None]
