"""Advantages made larger by the share of the batch that teaches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_mean


@dataclass(frozen=True, slots=True)
class InformativeScaled(AdvantageScheme):
    """α A / divisor, with α = the batch's rows / its informative rows.

    Assumption: an average over the batch should be one over what is informative in it. Degenerate
    case: without any informative row α is 1. Biased by construction: α depends on the rewards of
    the whole batch, and is at most its rows. Cost: none.

    Args:
        inner: the scheme that is scaled.
        count: what is informative: rows of ``groups`` whose returns differ, or rows with
            ``rewards``, whose return is not 0.
        divisor: divides all advantages.

    Source:
        GPG, arXiv 2504.02546: its released code counts groups. verl's ``gpg`` counts rows whose
        score is not 0, so that 1 right of 8 has an advantage of 7: ``count="rewards"``, and
        ``divisor`` is its ``f_norm``.
    """

    inner: AdvantageScheme
    count: Literal["groups", "rewards"] = "groups"
    divisor: Annotated[float, Interval(ge=1e-6, le=1e6)] = 1.0

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) scaled advantages, 0 outside the mask."""
        returns_B = values.rewards.sum(1)
        informative_B = (returns_B != 0).to(returns_B.dtype)
        if self.count == "groups":
            differs_B = returns_B != group_mean(returns_B, values.group)
            informative_B = group_mean(differs_B.to(returns_B.dtype), values.group).sign()
        count = informative_B.sum()
        alpha = torch.where(count > 0, len(returns_B) / count.clamp(min=1), 1.0)
        return self.inner(values).masked_fill(~values.mask, 0) * (alpha / self.divisor)
