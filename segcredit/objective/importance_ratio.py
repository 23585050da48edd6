"""Importance ratios: over which tokens one is averaged, and whose log-probs move it. Pure.

With token log-ratios x_t and N(t) the tokens that share token t's ratio::

    ρ_t = exp( 1/|N(t)| Σ_{u ∈ N(t)} x_u )

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

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
            bounded = self.bound(ratio_BT, log_ratio, advantages, logprobs)
            require_type("its call", bounded, Bounded)
            require_shape("the loss of its call", bounded.loss, log_ratio.shape)
        return ratio_BT, bounded


def _moved_by(gradient: RatioGradient, mean_BT: Tensor, log_ratio_BT: Tensor) -> Tensor:
    if gradient == "full":
        return mean_BT
    return mean_BT.detach() + (log_ratio_BT - log_ratio_BT.detach())


def _require_gradient(gradient: str) -> None:
    if gradient not in ("full", "own_token"):
        raise ShapeError(f"gradient {gradient!r} does not exist; expected full or own_token.")
