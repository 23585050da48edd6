"""Advantages with mean 0 and variance 1 over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues


@dataclass(frozen=True, slots=True)
class Whitened(AdvantageScheme):
    """(A − mean) / sqrt(var + eps) over all segments of the batch, then an optional clamp.

    Biased by construction: mean and variance depend on the actions of the whole batch.
    Degenerate case: fewer than two weights' worth of data, or no variance, gives 0 / sqrt(eps).

    Args:
        inner: the scheme that is whitened.
        weight: ``token`` weighs each segment by the tokens that the loss counts, so that the
            statistics are those of token advantages; ``segment`` weighs all alike.
        center: subtract the mean.
        clamp: bound on the result's size, as SAPO's released code has (5); None = none.
        eps: added to the variance.

    Source:
        ``masked_whiten`` of the PPO code bases: unbiased variance N/(N−1), eps 1e-8.
    """

    inner: AdvantageScheme
    weight: Literal["token", "segment"] = "token"
    center: bool = True
    clamp: float | None = None
    eps: float = 1e-8

    def __call__(self, values: SegmentValues) -> Tensor:
        """(B,S) whitened advantages, 0 outside the mask."""
        advantages_BS = self.inner(values).masked_fill(~values.mask, 0)
        weight_BS = values.weights if self.weight == "token" else values.mask
        weight_BS = weight_BS.to(advantages_BS.dtype)
        count = weight_BS.sum().clamp(min=1)
        mean = (advantages_BS * weight_BS).sum() / count
        squares = ((advantages_BS - mean).square() * weight_BS).sum()
        variance = squares / (count - 1).clamp(min=1)
        white_BS = (advantages_BS - mean * self.center) * torch.rsqrt(variance + self.eps)
        if self.clamp is not None:
            white_BS = white_BS.clamp(-self.clamp, self.clamp)
        return white_BS.masked_fill(~values.mask, 0)
