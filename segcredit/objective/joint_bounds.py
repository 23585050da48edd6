"""Bounds that decide over several tokens at once: a segment, a completion, the batch. Pure.

Shapes: ``B`` completions, ``T`` tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.importance_ratio import prefix_sums
from segcredit.objective.ratio_clipping import Bound, Bounded, pessimistic
from segcredit.segmentation import Segmentation

PROBABILITY_FLOOR = 1e-8
"""Added to the probability of all other tokens before its logarithm is taken, as in verl."""


class JointBound(Bound):
    """A bound that needs to know which tokens are actions, and whose segments they are of."""

    @abstractmethod
    def over(
        self,
        ratio: Float[Tensor, "B T"],
        log_ratio: Float[Tensor, "B T"],
        advantages: Float[Tensor, "B T"],
        logprobs: Float[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        segmentation: Segmentation,
    ) -> Bounded:
        """Computes the loss of each token; the others' log-ratios and advantages are 0."""

    def among(self, action_mask: Tensor, segmentation: Segmentation) -> Bound:
        """Returns the bound of just these tokens."""
        return _Placed(self, action_mask, segmentation)

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the loss as if all tokens were actions, and each row one segment."""
        mask_BT = torch.ones_like(ratio, dtype=torch.bool)
        whole = Segmentation.from_starts(torch.zeros_like(mask_BT), mask_BT)
        return self.over(ratio, log_ratio, advantages, logprobs, mask_BT, whole)


@dataclass(frozen=True, slots=True, eq=False)
class _Placed(Bound):
    """A joint bound over the tokens of one batch."""

    bound: JointBound
    action_mask: Tensor
    segmentation: Segmentation

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Bounded:
        """Computes the loss of each token."""
        return self.bound.over(
            ratio, log_ratio, advantages, logprobs, self.action_mask, self.segmentation
        )


@dataclass(frozen=True, slots=True)
class DivergenceMask(JointBound):
    """A weight without gradient, −sg[min(ρ, cap)] A log π; 0 where the policy has moved too far.

    A token is left out where its divergence is above ``high`` and it rose while A > 0, or above
    ``low`` and it fell while A ≤ 0. ``tv``: |π − q| of the sampled token, q its probability when
    sampled. ``kl``: KL(q ‖ π) of the two outcomes, this token or another. A rare token may move by
    a large factor within both; the cap bounds what that weighs. Left out, it still counts in the
    denominators.

    Args:
        divergence: what is measured.
        low: the most of it for tokens that fall, at least 0.
        high: the most of it for tokens that rise, at least 0.
        cap: the largest weight, at least 1; None = none.
        moves: ``away``: only those are left out whose advantage would move them further;
            ``either``: all.
        per: ``segment`` decides once for all tokens of a segment: by the ``pooled`` divergence of
            its tokens, and the sign of the sum of their log-ratios. A segment of one token is that
            token.
        pooled: a segment's divergence, as the sum, mean or largest of its tokens'.

    Raises:
        ShapeError: an option is out of range.

    Source:
        DPPO, arXiv 2602.04879, as in verl 1dda039 (``dppo_tv`` with .15, ``dppo_kl`` with .05).
        There and here q is the trainer's own probability before the step; the paper's is the
        sampler's.
        ``either`` is prime-rl 559b447's type ``ipo``. The segment is ours.
    """

    divergence: Literal["tv", "kl"] = "tv"
    low: Annotated[float, Interval(ge=0, le=1e9)] = 0.15
    high: Annotated[float, Interval(ge=0, le=1e9)] = 0.15
    cap: Annotated[float, Interval(ge=1, le=1e9)] | None = None
    moves: Literal["away", "either"] = "away"
    per: Literal["token", "segment"] = "token"
    pooled: Literal["sum", "mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if not (self.low >= 0 and self.high >= 0):
            raise ShapeError(
                f"divergence_mask: low is {self.low} and high is {self.high}; expected divergences,"
                " both at least 0, such as 0.15."
            )
        if self.cap is not None and not self.cap >= 1:
            raise ShapeError(f"cap is {self.cap}; expected at least 1, such as 20.0, or None.")

    @property
    def reads_segments(self) -> bool:
        """Tells whether segments decide."""
        return self.per == "segment"

    def over(
        self,
        ratio: Tensor,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> Bounded:
        """Computes the weighted log-likelihood loss of what is left."""
        apart_BT = _divergence(self.divergence, logprobs.detach(), log_ratio.detach())
        moved_BT = log_ratio.detach()
        if self.per == "segment":
            apart_BT = segmentation.spread(segmentation.reduce(apart_BT, self.pooled))
            moved_BT = segmentation.spread(segmentation.reduce(moved_BT, "sum"))
        rising_BT = advantages > 0
        further_BT = torch.where(rising_BT, moved_BT > 0, moved_BT < 0) | (self.moves == "either")
        most_BT = torch.where(rising_BT, ratio.new_tensor(self.high), ratio.new_tensor(self.low))
        out_BT = further_BT & (apart_BT > most_BT)
        weight_BT = ratio.detach().clamp(max=self.cap or torch.inf)
        loss_BT = -weight_BT * advantages * logprobs
        return Bounded(loss_BT.masked_fill(out_BT, 0), out_BT | (weight_BT != ratio.detach()))


@dataclass(frozen=True, slots=True)
class GrowingClip(JointBound):
    """PPO's pessimistic loss within bounds that widen along the completion.

    exp(−low tᵖ) ≤ ρ ≤ exp(high tᵖ), and at most −A exp(dual tᵖ) where A < 0, with t = 1, 2, ... the
    action tokens. For ``prefix`` ratios: the logarithm of a product of t ratios spreads as √t, and
    that of their geometric mean as 1/√t.

    Args:
        low: of the lower bound, at least 0.
        high: of the upper bound, at least 0.
        dual: of the ceiling, above 0; None = none.
        power: p; 1/2 for products, −1/2 for geometric means.
        since: where t is 1, as in the ratio.

    Raises:
        ShapeError: an option is out of range.

    Source:
        CTPO's length-adaptive form, arXiv 2605.07331; numbers of its code, horizon-llm/CTPO
        acc4021, which fails at p = 0. Counting from the segment's start is ours.
    """

    low: Annotated[float, Interval(ge=0, le=20)] = 0.025
    high: Annotated[float, Interval(ge=0, le=20)] = 0.05
    dual: Annotated[float, Interval(ge=1e-6, le=20)] | None = 0.05
    power: Annotated[float, Interval(ge=-1, le=1)] = 0.5
    since: Literal["start", "segment"] = "start"

    def __post_init__(self) -> None:
        if not (self.low >= 0 and self.high >= 0):
            raise ShapeError(
                f"growing_clip: low is {self.low} and high is {self.high}; expected log-ratios at"
                " the first token, in nats, both at least 0, such as 0.05."
            )

    @property
    def reads_segments(self) -> bool:
        """Tells whether segments decide."""
        return self.since == "segment"

    def over(
        self,
        ratio: Tensor,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> Bounded:
        """Computes the pessimistic loss within each position's own bounds."""
        ones_BT = action_mask.to(ratio)
        t_BT = prefix_sums(ones_BT, segmentation, since=self.since, until="token").clamp(min=1)
        wide_BT = t_BT**self.power
        low_BT, high_BT = (-self.low * wide_BT).exp(), (self.high * wide_BT).exp()
        most_BT = None if self.dual is None else (self.dual * wide_BT).clamp(max=50).exp()
        return pessimistic(ratio, advantages, low_BT, high_BT, most_BT)


@dataclass(frozen=True, slots=True)
class CovariancePenalty(JointBound):
    """The loss −A ρ, with a penalty on how far those tokens move that shrink the entropy most.

    Those are the ``share`` of the batch's tokens with the largest (A − mean A)(log π − mean log π),
    as far as it is above 0: each of them has coefficient |x| added, x its log-ratio. No ratio is
    clipped.

    Args:
        share: of the tokens, in (0,1]; at least one token.
        coefficient: of the penalty, at least 0.

    Raises:
        ShapeError: an option is out of range.

    Source:
        KL-Cov, arXiv 2505.22617, as in verl 1dda039, where the recipe's ``k_percent`` is a
        percentage and this share a fraction, the coefficient .1 in one place and 1 in others.
        Differences:
        log-ratios are clamped to ± 20 here; a token without positive covariance is left alone. As
        there, the batch is what one forward pass holds.
    """

    share: Annotated[float, Interval(gt=0, le=1)] = 2e-4
    coefficient: Annotated[float, Interval(ge=0, le=1e9)] = 1.0

    @property
    def reads_batch(self) -> bool:
        """Is true: shares are of the tokens of a forward pass."""
        return True

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.coefficient >= 0):
            raise ShapeError(
                f"share is {self.share} and coefficient {self.coefficient}; expected a share above"
                " 0 and at most 1, such as 2e-4, and a coefficient of at least 0."
            )

    def over(
        self,
        ratio: Tensor,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> Bounded:
        """Computes the loss, penalised on the tokens of largest covariance."""
        covariance_BT = covariances(logprobs, advantages, action_mask)
        ordered = covariance_BT.masked_fill(~action_mask, -torch.inf).flatten()
        ranks_BT = ordered.argsort(descending=True, stable=True).argsort().view(ratio.shape)
        most = (action_mask.sum() * self.share).floor().clamp(min=1)
        chosen_BT = action_mask & (ranks_BT < most) & (covariance_BT > 0)
        penalty_BT = self.coefficient * log_ratio.abs()
        return Bounded(-advantages * ratio + torch.where(chosen_BT, penalty_BT, 0))


@dataclass(frozen=True, slots=True)
class StrayedRows(JointBound):
    """A bound, and none of the loss of bad completions that the policy has strayed from.

    A token is left out where A < 0 and the mean of its completion's −x is above ``delta``. Left
    out, it still counts in the denominators.

    Args:
        inner: the bound of what is left.
        delta: nats a token. Below 0 it leaves out completions that have not moved at all.
        per: ``segment`` takes the mean over each segment instead; ours.

    Source:
        Off-policy sequence masking, DeepSeek-V3.2, arXiv 2512.02556, as in slime 624b824.
    """

    inner: Bound
    delta: Annotated[float, Interval(ge=-20, le=20)] = 1e-4
    per: Literal["sequence", "segment"] = "sequence"

    @property
    def reads_batch(self) -> bool:
        """Tells whether the inner bound compares completions."""
        return self.inner.reads_batch

    def before_mean(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns what the inner bound makes of the log-ratios."""
        return self.inner.before_mean(log_ratio, advantages)

    @property
    def reads_segments(self) -> bool:
        """Tells whether segments decide."""
        return self.per == "segment" or self.inner.reads_segments

    def over(
        self,
        ratio: Tensor,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> Bounded:
        """Computes the inner bound's loss of what is left."""
        x_BT = log_ratio.detach()
        mean_BT = x_BT.sum(1, keepdim=True) / action_mask.sum(1, keepdim=True).clamp(min=1)
        if self.per == "segment":
            mean_BT = segmentation.spread(segmentation.reduce(x_BT, "mean"))
        out_BT = (advantages < 0) & (-mean_BT > self.delta)
        placed = self.inner.among(action_mask, segmentation)
        bounded = placed(ratio, log_ratio, advantages, logprobs)
        clipped_BT = out_BT if bounded.clipped is None else out_BT | bounded.clipped
        return replace(bounded, loss=bounded.loss.masked_fill(out_BT, 0), clipped=clipped_BT)


@dataclass(frozen=True, slots=True)
class FutureWeight(JointBound):
    """A bound whose advantages are weighed by how the policy has moved on what came after.

    A_t f_t, with f_t = exp Σ_{k ≥ t} 2^{−(k − t)/half_life} x_k held within [low, high]. Tokens
    with ρ > ``most`` are left out of the sum; where A < 0 and ρ > ``safe``, f is held within
    [.8, 1]. f is of the policy being trained, and without gradient: 1 in the first pass over a
    batch, so that one minibatch a step is the inner bound alone. Any advantage scheme is weighed.

    Costs a product with a table of T × T.

    Args:
        inner: the bound of the weighed advantages.
        low: the smallest f, in [0,1].
        high: the largest, at least 1.
        half_life: tokens after which a move counts half, above 0.
        most: the largest ratio of a token in the sums.
        safe: the ratio above which a bad token's f is at most 1.

    Raises:
        ShapeError: the band does not hold 1.

    Source:
        FIPO, arXiv 2603.19835; numbers of its script, code FIPO 3ef4104. Difference: there rows
        with more than one dual-clipped token leave the loss and its denominator; here they stay.
    """

    inner: Bound
    low: Annotated[float, Interval(ge=0, le=1)] = 1.0
    high: Annotated[float, Interval(ge=1, le=1e9)] = 1.2
    half_life: Annotated[float, Interval(ge=1e-3, le=1e9)] = 32.0
    most: Annotated[float, Interval(ge=1, le=1e9)] = 10.0
    safe: Annotated[float, Interval(ge=1, le=1e9)] = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.low <= 1 <= self.high):
            raise ShapeError(
                f"the band of weights is {self.low} to {self.high}; expected it to hold 1, which is"
                " the weight of a policy that has not moved."
            )

    @property
    def reads_batch(self) -> bool:
        """Tells whether the inner bound compares completions."""
        return self.inner.reads_batch

    def before_mean(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Returns what the inner bound makes of the log-ratios; weights do not turn a sign."""
        return self.inner.before_mean(log_ratio, advantages)

    @property
    def reads_segments(self) -> bool:
        """Tells whether segments decide."""
        return self.inner.reads_segments

    def over(
        self,
        ratio: Tensor,
        log_ratio: Tensor,
        advantages: Tensor,
        logprobs: Tensor,
        action_mask: Tensor,
        segmentation: Segmentation,
    ) -> Bounded:
        """Computes the inner bound's loss of the weighed advantages."""
        weights_BT = self.weights(log_ratio.detach(), advantages)
        placed = self.inner.among(action_mask, segmentation)
        return placed(ratio, log_ratio, advantages * weights_BT, logprobs)

    def weights(
        self, log_ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Computes f of each token; masked tokens have log-ratio 0."""
        own_BT = log_ratio.exp()
        places_T = torch.arange(log_ratio.shape[1], device=log_ratio.device)
        apart_TT = places_T[:, None] - places_T  # [k, t]
        decay_TT = torch.exp2(-apart_TT.clamp(min=0).to(log_ratio) / self.half_life)
        kept_BT = log_ratio.masked_fill(own_BT > self.most, 0)
        moved_BT = kept_BT @ decay_TT.masked_fill(apart_TT < 0, 0)
        held_BT = moved_BT.clamp(max=50).exp().clamp(self.low, self.high)
        careful_BT = (advantages < 0) & (own_BT > self.safe)
        return torch.where(careful_BT, held_BT.clamp(0.8, 1.0), held_BT)


def covariances(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Computes (A − mean A)(log π − mean log π) over the action tokens, 0 elsewhere; no gradient.

    Source:
        Clip-Cov and KL-Cov, arXiv 2505.22617.
    """
    tokens = action_mask.sum().clamp(min=1)

    def apart(x_BT: Tensor) -> Tensor:
        x_BT = x_BT.detach().masked_fill(~action_mask, 0)
        return (x_BT - x_BT.sum() / tokens).masked_fill(~action_mask, 0)

    return apart(advantages) * apart(logprobs)


def _divergence(kind: str, logprobs_BT: Tensor, log_ratio_BT: Tensor) -> Tensor:
    """Computes how far the policy has moved from the one that sampled, by the sampled token."""
    now_BT, before_BT = logprobs_BT.exp(), (logprobs_BT - log_ratio_BT).exp()
    if kind == "tv":
        return (now_BT - before_BT).abs()
    others_BT = (1 - before_BT + PROBABILITY_FLOOR) / (1 - now_BT + PROBABILITY_FLOOR)
    return (1 - before_BT) * others_BT.log() - before_BT * log_ratio_BT
