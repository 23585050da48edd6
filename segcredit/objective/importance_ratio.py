"""Importance ratios: over which tokens one is averaged, and whose log-probs move it. Pure.

With token log-ratios x_t and N(t) the tokens that share token t's ratio::

    ρ_t = exp( 1/|N(t)| Σ_{u ∈ N(t)} x_u )

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError, blame, require_type
from segcredit.objective.ratio_clipping import Bound, Bounded
from segcredit.segmentation import Segmentation
from segcredit.types import require_shape

RatioGradient = Literal["full", "own_token"]


class Ratio(ABC):
    """A level of the importance ratio."""

    reads_segments: ClassVar[bool] = True
    """False where ``average`` does without the segmentation."""

    @abstractmethod
    def average(
        self,
        log_ratio: Float[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        segmentation: Segmentation,
    ) -> Float[Tensor, "B T"]:
        """Computes the mean log-ratio, in nats, of the tokens that share each token's ratio.

        Args:
            log_ratio: (B,T) nats, 0 on masked tokens.
            action_mask: (B,T).
            segmentation: of the same tokens.
        """


@dataclass(frozen=True, slots=True)
class TokenRatio(Ratio):
    """A ratio for each token, as in PPO."""

    reads_segments: ClassVar[bool] = False

    def average(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation) -> Tensor:
        """Returns the log-ratios as they are."""
        return log_ratio


@dataclass(frozen=True, slots=True)
class SegmentRatio(Ratio):
    """A ratio for each segment, the geometric mean of its tokens'.

    Args:
        gradient: ``full``: every token of the segment moves it; ``own_token``: its value is kept
            and its gradient flows through token t's own log-prob alone.

    Source:
        SAPO, arXiv 2605.01327, eqs. 8-9 and 13.
    """

    gradient: RatioGradient = "full"

    def __post_init__(self) -> None:
        _require_gradient(self.gradient)

    def average(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation) -> Tensor:
        """Computes the mean over each token's segment."""
        mean_BT = segmentation.spread(segmentation.reduce(log_ratio, "mean"))
        return _moved_by(self.gradient, mean_BT, log_ratio)


@dataclass(frozen=True, slots=True)
class SequenceRatio(Ratio):
    """A ratio for each completion, the geometric mean of its action tokens'.

    Args:
        gradient: as in ``SegmentRatio``; ``own_token`` is GSPO-token.

    Source:
        GSPO, arXiv 2507.18071.
    """

    reads_segments: ClassVar[bool] = False
    gradient: RatioGradient = "full"

    def __post_init__(self) -> None:
        _require_gradient(self.gradient)

    def average(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation) -> Tensor:
        """Computes the mean over each row's action tokens."""
        tokens_B1 = action_mask.sum(1, keepdim=True).clamp(min=1)
        mean_BT = (log_ratio.sum(1, keepdim=True) / tokens_B1).expand_as(log_ratio)
        return _moved_by(self.gradient, mean_BT, log_ratio)


@dataclass(frozen=True, slots=True)
class SequenceProduct(Ratio):
    """A ratio for each completion, the product of its action tokens': its exact importance weight.

    Its logarithm is held within [log 1e-8, 20] nats. Its variance grows with the completion's
    length, so that it wants a bound that lets go of what is far from 1, such as ``gamma_weight``.

    Args:
        gradient: as in ``SegmentRatio``.

    Source:
        VESPO, arXiv 2602.10693; the limits are those of its code, FloyedShen/VESPO aa1f304.
    """

    reads_segments: ClassVar[bool] = False
    gradient: RatioGradient = "full"

    def __post_init__(self) -> None:
        _require_gradient(self.gradient)

    def average(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation) -> Tensor:
        """Computes the sum over each row's action tokens."""
        total_BT = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
        return _moved_by(self.gradient, total_BT.clamp(math.log(1e-8), 20.0), log_ratio)


@dataclass(frozen=True, slots=True)
class PrefixRatio(Ratio):
    """A ratio of what stands before: of the tokens up to each one, or up to its segment's end.

    The product over the prefix is the exact importance weight of reaching and choosing a token, and
    the mean its geometric mean. With ``until = "segment"`` the tokens of a segment share the ratio
    at its end; with ``since = "segment"`` a prefix begins with its segment: exact given what stands
    before the segment, and its variance grows with the segment's length and not with the
    completion's. Both together with the product are the weight of the segment. Over segments of one
    token ``since = "segment"`` is ``token``; over ``whole``, ``until = "segment"`` with the mean is
    ``sequence``.

    Args:
        form: of the prefix's ratios, their product or their geometric mean.
        until: where a prefix ends.
        since: where it begins.
        gradient: as in ``SegmentRatio``.
        limit: the largest log-ratio of a prefix, in nats; CTPO's 10.

    Source:
        CTPO, arXiv 2605.07331: both averages, from the start to the token, ``own_token``; its code,
        horizon-llm/CTPO acc4021. The segment as an end or a beginning is ours.
    """

    form: Literal["product", "geometric"] = "product"
    until: Literal["token", "segment"] = "token"
    since: Literal["start", "segment"] = "start"
    gradient: RatioGradient = "own_token"
    limit: Annotated[float, Interval(ge=0, le=20)] = 10.0

    def __post_init__(self) -> None:
        _require_gradient(self.gradient)
        given = (self.form, self.until, self.since)
        allowed = (("product", "geometric"), ("token", "segment"), ("start", "segment"))
        for value, names in zip(given, allowed, strict=True):
            if value not in names:
                raise ShapeError(f"{value!r} does not exist; expected {names[0]} or {names[1]}.")

    def average(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Segmentation) -> Tensor:
        """Computes the sum or mean over each token's prefix."""
        total_BT = prefix_sums(log_ratio, segmentation, since=self.since, until=self.until)
        if self.form == "geometric":
            ones_BT = action_mask.to(log_ratio)
            counts_BT = prefix_sums(ones_BT, segmentation, since=self.since, until=self.until)
            total_BT = total_BT / counts_BT.clamp(min=1)
        return _moved_by(self.gradient, total_BT.clamp(max=self.limit), log_ratio)


class Surrogate(ABC):
    """A token's policy loss: ``Reinforce``, or ``Importance`` with its ratio and bound."""

    @abstractmethod
    def __call__(
        self,
        log_ratio: Float[Tensor, "B T"],
        advantages: Float[Tensor, "B T"],
        logprobs: Float[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        segmentation: Segmentation,
    ) -> tuple[Float[Tensor, "B T"], Bounded]:
        """Computes the (B,T) ratios that metrics are taken of, and each token's loss."""


@dataclass(frozen=True, slots=True)
class Reinforce(Surrogate):
    """The loss −A log π, with neither ratio nor bound."""

    def __call__(
        self,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> tuple[Tensor, Bounded]:
        """Computes the loss; the ratios are the tokens' own."""
        return log_ratio.exp(), Bounded(-advantages * logprobs)


@dataclass(frozen=True, slots=True)
class Importance(Surrogate):
    """The loss of an importance ratio under a bound."""

    ratio: Ratio
    bound: Bound

    def __call__(
        self,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> tuple[Tensor, Bounded]:
        """Computes the ratios at their level, and the bounded loss."""
        bound, ratio = type(self.bound).__name__, type(self.ratio).__name__
        with blame("bound", bound, self.bound):
            held_BT = self.bound.before_mean(log_ratio, advantages)
            require_shape("before_mean", held_BT, log_ratio.shape)
        with blame("importance ratio", ratio, self.ratio):
            mean_BT = self.ratio.average(held_BT, action_mask, segmentation)
            require_shape("average", mean_BT, log_ratio.shape)
        ratio_BT = mean_BT.exp()
        with blame("bound", bound, self.bound):
            placed = self.bound.among(action_mask, segmentation)
            bounded = placed(ratio_BT, log_ratio, advantages, logprobs)
            require_type("its call", bounded, Bounded)
            require_shape("the loss of its call", bounded.loss, log_ratio.shape)
        return ratio_BT, bounded


def prefix_sums(
    x: Float[Tensor, "B T"], segmentation: Segmentation, *, since: str, until: str
) -> Float[Tensor, "B T"]:
    """Computes the sum over each token's prefix; masked tokens of ``x`` are 0."""
    total_BT = x.cumsum(1)
    before_BT = torch.zeros_like(x)
    if since == "segment":
        before_BT = segmentation.spread(segmentation.reduce(total_BT - x, "first"))
    if until == "segment":
        total_BT = segmentation.spread(segmentation.reduce(total_BT, "last"))
    return total_BT - before_BT


def _moved_by(gradient: RatioGradient, mean_BT: Tensor, log_ratio_BT: Tensor) -> Tensor:
    if gradient == "full":
        return mean_BT
    return mean_BT.detach() + (log_ratio_BT - log_ratio_BT.detach())


def _require_gradient(gradient: str) -> None:
    if gradient not in ("full", "own_token"):
        raise ShapeError(f"gradient {gradient!r} does not exist; expected full or own_token.")
