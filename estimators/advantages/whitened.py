"""Advantages with mean 0 and variance 1 over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval, Le
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, measured_by_std


@dataclass(frozen=True, slots=True)
class Whitened(AdvantageScheme):
    """(A − mean) / sqrt(var + eps) over all segments of the batch, then an optional clamp.

    With weights w and N = Σ w over the batch::

        mean = Σ w A / N        var = Σ w (A − mean)² / (N − ddof)

    Segments without weight are transformed as all others are. In a tree, where each of n rows
    weighs a token that they share by 1/n, N is the number of distinct tokens, and N/(N − 1) is
    the factor that it is without a tree; where fractional weights mean something else, the factor
    is no exact correction, and ``ddof`` 0 leaves it out.

    Assumption: a step's size should not depend on the scale of the rewards. Biased by
    construction: mean and variance depend on the actions of the whole batch. Degenerate case: one
    weight's worth of data, or equal advantages, become 0. Where weighted numbers of A − mean (of
    A, if not ``center``) are above twice the range of A, or A does not vary, the variance is no
    unit for them: what would be divided is left as it is, or divided by sqrt(var + eps) if that
    is above 1. N − ddof is never below the smaller of N and 1. Cost: two sums over the batch.

    Args:
        inner: the scheme that is whitened.
        weight: ``token`` weighs each segment by the tokens that the loss counts, so that the
            statistics are those of token advantages; ``segment`` weighs all alike.
        center: subtract the mean.
        clamp: bound on the result's size, as SAPO's released code has (5); None = none.
        eps: added to the variance.
        ddof: 1 for the unbiased variance, 0 for the population's.

    Source:
        ``masked_whiten`` of the PPO code bases: unbiased variance, eps 1e-8. Without centring
        they divide equal advantages by sqrt(eps), which makes 10,000 of 1; we do not.
    """

    inner: AdvantageScheme
    weight: Literal["token", "segment"] = "token"
    center: bool = True
    clamp: Annotated[float, Le(1e9)] | None = None
    eps: Annotated[float, Interval(ge=1e-30, le=1e6)] = 1e-8
    ddof: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"eps is {self.eps}; expected a number above 0, such as 1e-8.")
        if self.clamp is not None and self.clamp <= 0:
            raise ValueError(f"clamp is {self.clamp}; expected a number above 0, such as 5.")

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) whitened advantages, 0 outside the mask."""
        white_BS = self._whitened(values)
        return white_BS if self.clamp is None else white_BS.clamp(-self.clamp, self.clamp)

    def unclamped(self, values: SegmentValues) -> Tensor | None:
        """Returns (B,S) what the clamp is applied to; None without a clamp."""
        return None if self.clamp is None else self._whitened(values)

    def _whitened(self, values: SegmentValues) -> Tensor:
        advantages_BS = self.inner(values).masked_fill(~values.mask, 0)
        weight_BS = values.weights if self.weight == "token" else values.mask
        weight_BS = weight_BS.to(advantages_BS.dtype)
        total = weight_BS.sum()
        count = torch.where(total > 0, total, 1)
        mean = (advantages_BS * weight_BS).sum() / count
        squares = ((advantages_BS - mean).square() * weight_BS).sum()
        variance = squares / torch.maximum(count - self.ddof, count.clamp(max=1))
        shifted_BS = advantages_BS - mean * self.center
        # The mean has no part in a range that it lies in; with it there is a row where none counts.
        none = torch.zeros_like(mean)[None]
        measured = measured_by_std(
            torch.cat([none, torch.where(weight_BS > 0, shifted_BS.abs(), 0).flatten()]),
            torch.cat([mean[None], torch.where(weight_BS > 0, advantages_BS, mean).flatten()]),
        )[0]
        scale = torch.rsqrt(variance + self.eps)
        white_BS = shifted_BS * torch.where(measured, scale, scale.clamp(max=1))
        return white_BS.masked_fill(~values.mask, 0)
