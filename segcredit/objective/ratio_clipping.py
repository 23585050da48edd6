"""Bounds of the policy loss: how an importance ratio is kept from moving the policy too far. Pure.

A bound is a frozen object, called with (B,T) tensors of ratios, token log-ratios, advantages and
log-probs; a new one is a subclass of ``Bound``. Those that decide over several tokens at once are
in ``joint_bounds``. Shapes: ``B`` completions, ``T`` tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.segmentation import Segmentation


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """A token's loss under a bound, and where the bound took effect."""

    loss: Float[Tensor, "B T"]
    clipped: Bool[Tensor, "B T"] | None = None
    """Tokens whose gradient was removed, or whose weight was capped; None = none can be."""
    dual_clipped: Bool[Tensor, "B T"] | None = None
    """Tokens whose loss was cut off at a ceiling; None = none can be."""


class Bound(ABC):
    """A way to bound the surrogate −A ρ."""

    @property
    def reads_batch(self) -> bool:
        """Tells whether a token's loss depends on other completions than its own."""
        return False

    @property
    def reads_segments(self) -> bool:
        """Tells whether it decides by segments, those of ``loss.ratio_segmenter`` where given."""
        return False

    def before_mean(
        self, log_ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Returns the token log-ratios, in nats, that the ratio is the mean of; unchanged here."""
        del advantages
        return log_ratio

    def among(self, action_mask: Bool[Tensor, "B T"], segmentation: Segmentation) -> Bound:
        """Returns the bound of just these tokens, where it decides over several; the same here."""
        del action_mask, segmentation
        return self

    @abstractmethod
    def __call__(
        self,
        ratio: Float[Tensor, "B T"],
        log_ratio: Float[Tensor, "B T"],
        advantages: Float[Tensor, "B T"],
        logprobs: Float[Tensor, "B T"],
    ) -> Bounded:
        """Computes the loss of each token.

        Args:
            ratio: (B,T) ρ, at its level, of the log-ratios that ``before_mean`` returned.
            log_ratio: (B,T) nats, each token's own, as it was before ``before_mean``.
            advantages: (B,T).
            logprobs: (B,T) nats, of the policy being trained.
        """


@dataclass(frozen=True, slots=True)
class Clip(Bound):
    """PPO's pessimistic loss: the larger of −A ρ and −A times ρ held within [1 − low, 1 + high].

    Args:
        low: distance of the lower bound below 1, at least 0.
        high: distance of the upper bound above 1, at least 0.
        dual: ceiling > 1 on the loss of negative advantages, min(loss, −A dual), for actions
            likely by now but bad; None = none.

    Raises:
        ShapeError: a distance is negative, or ``dual`` is not above 1.

    Source:
        PPO, Schulman et al. 2017, arXiv 1707.06347, eq. 7. Dual clip: Ye et al. 2019,
        arXiv 1912.09729, eq. 5.
    """

    low: Annotated[float, Interval(ge=0, le=1e9)] = 0.2
    high: Annotated[float, Interval(ge=0, le=1e9)] = 0.2
    dual: Annotated[float, Interval(gt=1, le=1e9)] | None = None

    def __post_init__(self) -> None:
        _require_distances("clip", self.low, self.high, "1")
        _require_dual(self.dual)

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes max(−A ρ, −A clip(ρ)), and at most −A dual where A < 0."""
        return pessimistic(ratio, advantages, 1 - self.low, 1 + self.high, self.dual)


@dataclass(frozen=True, slots=True)
class LogClip(Bound):
    """Token log-ratios clipped before any mean: sgn(A) min(sgn(A) x, sgn(A) clip(x, −low, high)).

    Args:
        low: nats below 0, at least 0.
        high: nats above 0, at least 0.

    Raises:
        ShapeError: a distance is negative.

    Source:
        GMPO, Zhao et al. 2025, arXiv 2507.20673; 0.4 there.
    """

    low: Annotated[float, Interval(ge=0, le=1e9)] = 0.4
    high: Annotated[float, Interval(ge=0, le=1e9)] = 0.4

    def __post_init__(self) -> None:
        _require_distances("log_clip", self.low, self.high, "0 nats")

    def before_mean(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns the clipped log-ratios."""
        sign_BT = advantages.sign()
        held_BT = log_ratio.clamp(-self.low, self.high)
        return sign_BT * torch.minimum(sign_BT * log_ratio, sign_BT * held_BT)

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes −A ρ."""
        sign_BT = advantages.sign()
        held_BT = log_ratio.clamp(-self.low, self.high)
        return Bounded(-advantages * ratio, sign_BT * held_BT < sign_BT * log_ratio)


@dataclass(frozen=True, slots=True)
class TruncatedIS(Bound):
    """Truncated importance sampling, −sg[clip(ρ, low, high)] A log π: every token has a gradient.

    Args:
        low: smallest weight, at least 0.
        high: largest weight, above ``low``.
        outside: ``cap`` holds other weights at the nearer end; ``drop`` makes them 0, so that the
            token has no gradient, as in SkyRL a956457's ``rollout_is``.

    Raises:
        ShapeError: the two are no interval of weights.

    Source:
        CISPO, MiniMax 2025, arXiv 2506.13585. Bounds of the ratio itself, as in TRL and ScaleRL;
        verl and NeMo give distances from 1.
    """

    low: Annotated[float, Interval(ge=0, le=1e9)] = 0.0
    high: Annotated[float, Interval(ge=0, le=1e9)] = 5.0
    outside: Literal["cap", "drop"] = "cap"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ShapeError(
                f"weights are truncated to the interval [{self.low}, {self.high}]; expected low at"
                " least 0 and below high, such as [0, 5]. They are bounds of the ratio itself, not"
                " distances from 1."
            )

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the weighted log-likelihood loss."""
        weight_BT = ratio.detach().clamp(self.low, self.high)
        outside_BT = weight_BT != ratio.detach()
        if self.outside == "drop":
            weight_BT = weight_BT.masked_fill(outside_BT, 0)
        return Bounded(-weight_BT * advantages * logprobs, outside_BT)


@dataclass(frozen=True, slots=True)
class SoftGate(Bound):
    """A gradient that fades with the distance of ρ from 1, −A σ(τ (ρ − 1)) 4/τ, and never stops.

    At ρ = 1 the gradient is −A.

    Args:
        positive: τ > 0 where A > 0.
        negative: τ > 0 elsewhere.

    Raises:
        ShapeError: a τ is not above 0.

    Source:
        Soft Adaptive Policy Optimization, Gao et al. 2025, arXiv 2511.20347.
    """

    positive: Annotated[float, Interval(ge=1e-6, le=1e6)] = 1.0
    negative: Annotated[float, Interval(ge=1e-6, le=1e6)] = 1.05

    def __post_init__(self) -> None:
        if not (self.positive > 0 and self.negative > 0):
            raise ShapeError(
                f"the gate's temperatures are {self.positive} and {self.negative}; expected both"
                " above 0, such as 1.0 and 1.05: the loss is divided by them."
            )

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the gated loss."""
        steepness_BT = _either(advantages > 0, self.positive, self.negative, ratio)
        return Bounded(-advantages * torch.sigmoid(steepness_BT * (ratio - 1)) * 4 / steepness_BT)


@dataclass(frozen=True, slots=True)
class ProbabilityClip(Bound):
    """PPO's pessimistic loss with bounds that are wider for tokens of low probability.

    With q the probability of the token under the policy that sampled::

        (1 + √max(0, 1 − 4 low/q)) / 2  ≤  ρ  ≤  min((1 + √(1 + 4 high/q)) / 2, max(dual, 10))

    The lower bound is at least 1/2 for every token.

    Args:
        low: sets the lower bound, at least 0.
        high: sets the upper bound, at least 0.
        dual: as in ``Clip``; in the code that this follows it caps the upper bound, too.

    Raises:
        ShapeError: as ``Clip``.

    Source:
        DCPO, arXiv 2509.02333, the clip alone; its code, lime-RL/DCPO 01787b0.
    """

    low: Annotated[float, Interval(ge=0, le=1e9)] = 0.16
    high: Annotated[float, Interval(ge=0, le=1e9)] = 0.2
    dual: Annotated[float, Interval(gt=1, le=1e9)] | None = 10.0

    def __post_init__(self) -> None:
        _require_distances("probability_clip", self.low, self.high, "1")
        _require_dual(self.dual)

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the pessimistic loss within each token's own bounds."""
        # 1/q, held: of a token that the sampler thought impossible the upper bound is the cap.
        inverse_BT = (log_ratio - logprobs).detach().clamp(max=60).exp()
        low_BT = (1 + (1 - 4 * self.low * inverse_BT).clamp(min=0).sqrt()) / 2
        high_BT = (1 + (1 + 4 * self.high * inverse_BT).sqrt()) / 2
        high_BT = high_BT.clamp(max=max(self.dual or 0.0, 10.0))
        return pessimistic(ratio, advantages, low_BT, high_BT, self.dual)


@dataclass(frozen=True, slots=True)
class FlippedClip(Bound):
    """Clip whose weight is 1/ρ where A ≥ 0, so that tokens that have risen least rise most.

    Gradient of the loss by log π: −A w, with w = min(1/ρ, cap), 0 above 1 + high, where A ≥ 0, and
    w = min(ρ, cap), 0 below 1 − low, elsewhere.

    Args:
        low: distance of the lower bound below 1, at least 0.
        high: distance of the upper bound above 1, at least 0.
        cap: the largest weight, above 1; tokens at it keep a gradient.

    Raises:
        ShapeError: a distance is negative, or ``cap`` is not above 1.

    Source:
        ASPO, arXiv 2510.06062, and its code, wizard-III/Archer2.0 b08d963, which has two pairs of
        low and high, by the entropy of the token, and a cap for each sign; here they are one.
    """

    low: Annotated[float, Interval(ge=0, le=1e9)] = 0.2
    high: Annotated[float, Interval(ge=0, le=1e9)] = 0.2
    cap: Annotated[float, Interval(gt=1, le=1e9)] = 3.0

    def __post_init__(self) -> None:
        _require_distances("flipped_clip", self.low, self.high, "1")
        if not self.cap > 1:
            raise ShapeError(f"cap is {self.cap}; expected more than 1, such as 3.0.")

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the loss: A times 1/ρ or ρ, and A cap log π where the cap holds."""
        rising_BT = advantages >= 0
        value_BT = torch.where(rising_BT, ratio / ratio.detach().square(), ratio)
        outside_BT = torch.where(rising_BT, ratio > 1 + self.high, ratio < 1 - self.low)
        edge_BT = _either(rising_BT, 1 / (1 + self.high), 1 - self.low, ratio)
        capped_BT = value_BT > self.cap
        value_BT = torch.where(capped_BT, self.cap * logprobs, value_BT)
        loss_BT = -advantages * torch.where(outside_BT, edge_BT, value_BT)
        return Bounded(loss_BT, outside_BT, capped_BT)


@dataclass(frozen=True, slots=True)
class GammaWeight(Bound):
    """A weight that is 1 at ρ = 1 and fades to both sides, −sg[φ(ρ)] A log π.

    φ(W) = W^k exp(λ (1 − W)), the form of a Gamma density. Where λ > k it falls from ρ = k/λ on.

    Args:
        positive: k and λ where A ≥ 0, both at least 0.
        negative: k and λ elsewhere.

    Raises:
        ShapeError: a number is negative.

    Source:
        VESPO, arXiv 2602.10693, with the ratio ``sequence_product``; numbers of its code
        (FloyedShen/VESPO aa1f304), whose docstring has 2, 1.5 and 4, 2.5. The sign is each token's
        own; the code reads that of the row's first column, even where it is masked.
    """

    positive: tuple[float, float] = (2.0, 3.0)
    negative: tuple[float, float] = (3.0, 2.0)

    def __post_init__(self) -> None:
        if not min(*self.positive, *self.negative) >= 0:
            raise ShapeError(
                f"the weight's numbers are {self.positive} and {self.negative}; expected k and λ,"
                " at least 0, such as (2, 3) and (3, 2)."
            )

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the weighted log-likelihood loss."""
        held_BT, rising_BT = ratio.detach(), advantages >= 0
        (k_up, fade_up), (k_down, fade_down) = self.positive, self.negative
        k_BT = _either(rising_BT, k_up, k_down, ratio)
        fade_BT = _either(rising_BT, fade_up, fade_down, ratio)
        weight_BT = (k_BT * held_BT.log() + fade_BT * (1 - held_BT)).exp()
        return Bounded(-weight_BT * advantages * logprobs)


def pessimistic(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    lowest: float | Float[Tensor, "B T"],
    highest: float | Float[Tensor, "B T"],
    dual: float | Float[Tensor, "B T"] | None,
) -> Bounded:
    """Computes max(−A ρ, −A ρ held within the bounds), and at most −A dual where A < 0."""
    free_BT = -advantages * ratio
    # Of the ratio's own type: 0.8 in float32 is another number in float64.
    low_BT, high_BT = (torch.as_tensor(x, dtype=ratio.dtype) for x in (lowest, highest))
    held_BT = -advantages * torch.clamp(ratio, low_BT.to(ratio), high_BT.to(ratio))
    loss_BT = torch.maximum(free_BT, held_BT)
    if dual is None:
        return Bounded(loss_BT, held_BT > free_BT)
    most_BT = -advantages * dual
    dual_BT = (advantages < 0) & (most_BT < loss_BT)
    return Bounded(torch.where(dual_BT, most_BT, loss_BT), held_BT > free_BT, dual_BT)


def _either(where_BT: Tensor, here: float, there: float, like: Tensor) -> Tensor:
    """Chooses of two numbers in the type of ``like``: 1.05 in float32 is another in float64."""
    return torch.where(where_BT, like.new_tensor(here), like.new_tensor(there))


def _require_dual(dual: float | None) -> None:
    if dual is not None and not dual > 1:
        raise ShapeError(f"dual is {dual}; expected more than 1, such as 3.0, or None.")


def _require_distances(bound: str, low: float, high: float, centre: str) -> None:
    if not (low >= 0 and high >= 0):
        raise ShapeError(
            f"{bound}: low is {low} and high is {high}; expected distances from {centre}, both at"
            " least 0, such as 0.2."
        )
