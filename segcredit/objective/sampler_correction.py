"""Corrections where another distribution sampled than the policy that trains. Pure.

An inference engine rounds in other ways than the trainer, or is some updates behind. With x_t the
trainer's log-prob less the sampler's, both of the policy before the step, a correction turns x into
factors of the tokens' losses. Where sampler and trainer agree every factor is 1.

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.importance_ratio import Surrogate
from segcredit.objective.ratio_clipping import Bounded
from segcredit.segmentation import Segmentation
from segcredit.types import require_shape

Level = Literal["token", "segment", "sequence"]
"""Tokens that share a weight."""
Average = Literal["product", "geometric"]
"""The weight of several tokens: the product of their ratios, or its root by their number."""

LOG_WEIGHT_LIMIT = 20.0
"""Log-weights are clamped to ± this before they are exponentiated, as in verl."""


class Correction(ABC):
    """A way from ratios of trainer to sampler to factors of the tokens' losses."""

    @abstractmethod
    def __call__(
        self,
        log_ratio: Float[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        segmentation: Segmentation,
    ) -> Float[Tensor, "B T"]:
        """Computes each token's factor, at least 0; what masked tokens get is not read.

        Args:
            log_ratio: (B,T) nats, log π_trainer − log π_sampler, 0 on masked tokens.
            action_mask: (B,T) may have holes.
            segmentation: of the same tokens, that of the loss's ratio.
        """


@dataclass(frozen=True, slots=True)
class Truncate(Correction):
    """Truncated importance sampling: min(w, high).

    Args:
        level: whether a token, a segment or a completion has a weight of its own.
        average: of weights of several tokens. The product is the exact weight of what they are,
            given what stands before them; its variance grows with their number. The geometric mean
            is close to 1 for any number, and no importance weight.
        high: the largest weight, at least 1.

    Raises:
        ShapeError: an option is out of range.

    Source:
        Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training";
        2.0 is verl's default. The segment's product is ours.
    """

    level: Level = "token"
    average: Average = "product"
    high: Annotated[float, Interval(ge=1, le=1e9)] = 2.0

    def __post_init__(self) -> None:
        _require_options(self.level, self.average, 1.0, self.high)

    def __call__(
        self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation
    ) -> Tensor:
        """Computes the weights, none above ``high``."""
        weights_BT = _weights(log_ratio, action_mask, segmentation, self.level, self.average)
        return weights_BT.clamp(max=self.high)


@dataclass(frozen=True, slots=True)
class Mask(Correction):
    """Importance weights inside a band, and 0 outside of it.

    Args:
        level: as in ``Truncate``.
        average: as in ``Truncate``.
        low: the smallest weight that is kept, in [0,1].
        high: the largest, at least 1.

    Raises:
        ShapeError: an option is out of range.

    Source:
        IcePop, Ling team 2025, arXiv 2510.18855: tokens, .5 to 5. Denominators go on counting the
        tokens left out, as in verl and TRL.
    """

    level: Level = "token"
    average: Average = "product"
    low: Annotated[float, Interval(ge=0, le=1)] = 0.5
    high: Annotated[float, Interval(ge=1, le=1e9)] = 5.0

    def __post_init__(self) -> None:
        _require_options(self.level, self.average, self.low, self.high)

    def __call__(
        self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation
    ) -> Tensor:
        """Computes the weights, 0 below ``low`` and above ``high``."""
        weights_BT = _weights(log_ratio, action_mask, segmentation, self.level, self.average)
        return weights_BT * ((weights_BT >= self.low) & (weights_BT <= self.high))


@dataclass(frozen=True, slots=True)
class Reject(Correction):
    """Factors 1 inside a band of weights, and 0 outside of it: whole tokens, segments or rows.

    Args:
        level: as in ``Truncate``.
        average: as in ``Truncate``. What a segment's product keeps is exact given the segment's
            prefix; that of a geometric mean is a measure of distance, the same at every length.
        low: the smallest weight that is kept, in [0,1].
        high: the largest, at least 1.
        inner: factors of what is kept; None = 1. With ``truncate`` of tokens under the geometric
            mean of rows, .999 to 1.002, it is seq-mask-TIS.

    Raises:
        ShapeError: an option is out of range.

    Source:
        Rows: verl 1dda039's ``rollout_rs``; OpenRLHF 3c3be62's ``seq-mask-tis``, whose token
        weights are not truncated. verl's ``k1`` bounds are those of 1/w. Denominators go on
        counting.
    """

    level: Level = "sequence"
    average: Average = "geometric"
    low: Annotated[float, Interval(ge=0, le=1)] = 0.999
    high: Annotated[float, Interval(ge=1, le=1e9)] = 1.002
    inner: Correction | None = None

    def __post_init__(self) -> None:
        _require_options(self.level, self.average, self.low, self.high)

    def __call__(
        self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation
    ) -> Tensor:
        """Computes the factors of the inner correction, 0 where the weight is outside."""
        weights_BT = _weights(log_ratio, action_mask, segmentation, self.level, self.average)
        kept_BT = (weights_BT >= self.low) & (weights_BT <= self.high)
        return _kept(kept_BT, self.inner, log_ratio, action_mask, segmentation)


@dataclass(frozen=True, slots=True)
class RejectDivergent(Correction):
    """Factors 1 where sampler and trainer are close, and 0 where they are not.

    Close is by an estimate of their divergence, KL(sampler ‖ trainer), from each token's log-ratio
    x: k2 = x²/2, k3 = exp(x) − 1 − x.

    Args:
        level: the tokens that are kept or left out together.
        pooled: over several tokens: the sum, mean or largest of the estimates.
        estimate: k2 or k3.
        high: the most that is kept, at least 0.
        inner: as in ``Reject``.

    Raises:
        ShapeError: an option is out of range.

    Source:
        verl 1dda039's ``rollout_rs``; AReaL 4aef98d's ``rejection_sampling``, of rows and tokens.
    """

    level: Level = "token"
    pooled: Literal["sum", "mean", "max"] = "mean"
    estimate: Literal["k2", "k3"] = "k3"
    high: Annotated[float, Interval(ge=0, le=1e9)] = 0.05
    inner: Correction | None = None

    def __post_init__(self) -> None:
        _require_options(self.level, "product", 1.0, 1.0)
        if not self.high >= 0:
            raise ShapeError(f"high is {self.high}; expected nats, at least 0, such as 0.05.")

    def __call__(
        self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation
    ) -> Tensor:
        """Computes the factors of the inner correction, 0 where the divergence is above."""
        x_BT = log_ratio.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT)
        apart_BT = x_BT.square() / 2 if self.estimate == "k2" else x_BT.expm1() - x_BT
        if self.level != "token":
            cut = segmentation
            if self.level == "sequence":
                cut = Segmentation.from_starts(torch.zeros_like(action_mask), action_mask)
            apart_BT = cut.spread(cut.reduce(apart_BT, self.pooled))
        return _kept(apart_BT <= self.high, self.inner, log_ratio, action_mask, segmentation)


@dataclass(frozen=True, slots=True, eq=False)
class Corrected(Surrogate):
    """A surrogate whose losses are multiplied by factors; metrics are those of the one inside.

    Args:
        inner: the surrogate of the policy before the step.
        factors: (B,T) at least 0, such as a ``Correction`` gives; nothing on masked tokens is read.
    """

    inner: Surrogate
    factors: Float[Tensor, "B T"]

    def __call__(
        self,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> tuple[Tensor, Bounded]:
        """Computes ratios and losses, then corrects these: outside the bound, which takes none."""
        require_shape("factors", self.factors, log_ratio.shape)
        ratio_BT, bounded = self.inner(log_ratio, advantages, logprobs, action_mask, segmentation)
        factors_BT = self.factors.masked_fill(~action_mask, 0)
        return ratio_BT, replace(bounded, loss=bounded.loss * factors_BT)


def _kept(
    kept_BT: Tensor,
    inner: Correction | None,
    log_ratio: Tensor,
    action_mask: Tensor,
    segmentation: Segmentation,
) -> Tensor:
    if inner is None:
        return kept_BT.to(log_ratio)
    return inner(log_ratio, action_mask, segmentation).masked_fill(~kept_BT, 0)


def _weights(
    log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation, level: str, average: str
) -> Tensor:
    """Computes the weight that each token shares with the others of its level."""
    total_BT = log_ratio
    if level == "segment":
        how = "sum" if average == "product" else "mean"
        total_BT = segmentation.spread(segmentation.reduce(log_ratio, how))
    elif level == "sequence":
        count_B1 = action_mask.sum(1, keepdim=True).clamp(min=1)
        total_B1 = log_ratio.masked_fill(~action_mask, 0).sum(1, keepdim=True)
        total_BT = (total_B1 if average == "product" else total_B1 / count_B1).expand_as(log_ratio)
    return total_BT.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT).exp()


def _require_options(level: str, average: str, low: float, high: float) -> None:
    if level not in ("token", "segment", "sequence"):
        raise ShapeError(f"level is {level!r}; expected token, segment or sequence.")
    if average not in ("product", "geometric"):
        raise ShapeError(f"average is {average!r}; expected product or geometric.")
    if not (0 <= low <= 1 <= high < float("inf")):
        raise ShapeError(
            f"the band of weights is {low} to {high}; expected it to hold 1, which is the weight"
            " where sampler and trainer agree."
        )
