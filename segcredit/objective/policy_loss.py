"""The policy-gradient objective: ratio level, bound, token weights, aggregation, KL. All pure.

The loss of a token is built in steps, each a choice of its own: over which tokens the importance
ratio is averaged, to whom its gradient flows, how it is bounded (``ratio_clipping``), which tokens
count (``loss_masks``), and how token losses become one number (``aggregation``).

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective import ratio_clipping
from segcredit.objective.aggregation import Aggregate, aggregate_loss
from segcredit.segmentation import Segmentation

Ratio = Literal["none", "token", "segment", "sequence"]
RatioGradient = Literal["full", "own_token"]
Bound = Literal["clip", "log_clip", "capped_weight", "soft_gate"]
ClipBounds = Literal["around_one", "absolute"]
KL = Literal["k1", "abs", "k2", "k3"]

LOG_RATIO_LIMIT = 20.0
"""Token log-ratios are clamped to ± this before any mean, as in verl and SAPO's released code."""


def surrogate_loss(
    logprobs: Float[Tensor, "B T"],
    sampling_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    segmentation: Segmentation,
    *,
    ratio: Ratio,
    ratio_gradient: RatioGradient = "full",
    bound: Bound = "clip",
    clip_low: float,
    clip_high: float,
    clip_bounds: ClipBounds = "around_one",
    dual_clip: float | None = None,
    gate_positive: float = 1.0,
    gate_negative: float = 1.05,
    aggregate: Aggregate,
    token_weights: Float[Tensor, "B T"] | None = None,
    count_weights: Float[Tensor, "B T"] | None = None,
    norm_length: float | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The policy-gradient surrogate, with the importance ratio at a chosen level and bound.

    With token log-ratios x_t = log π(y_t) − log π_sampling(y_t), clamped to ±20, and N(t) the
    tokens over which token t's ratio is averaged::

        ρ_t = exp( 1/|N(t)| Σ_{u ∈ N(t)} x_u )

    ``ratio="token"``: N(t) = {t}, PPO. ``"segment"``: the action tokens of t's segment, SAPO.
    ``"sequence"``: all action tokens of the row, GSPO. ``"none"``: loss_t = −A_t log π(y_t),
    REINFORCE, neither ratio nor bound. ``ratio_gradient="own_token"`` keeps the value of ρ_t and
    lets its gradient flow through token t's own log-prob alone (GSPO-token).

    ==================  =======================================================================
    ``bound``           loss_t
    ==================  =======================================================================
    clip                max(−A_t ρ_t, −A_t clip(ρ_t, low, high)), and at most −A_t dual_clip
                        where A_t < 0 and it is given
    log_clip            −A_t ρ_t, x_t replaced before the mean by
                        sgn(A_t) min(sgn(A_t) x_t, sgn(A_t) clip(x_t, −clip_low, clip_high))
    capped_weight       −sg[clip(ρ_t, low, high)] A_t log π(y_t)
    soft_gate           −A_t σ(τ (ρ_t − 1)) 4/τ, τ by the sign of A_t
    ==================  =======================================================================

    Args:
        logprobs: (B,T) nats, of the policy being trained; carries the gradient.
        sampling_logprobs: (B,T) nats, of the policy that sampled.
        advantages: (B,T) free to vary inside a segment.
        action_mask: (B,T) may have holes; nothing on masked tokens is read, NaN included.
        segmentation: over which ``ratio="segment"`` averages; unused by other levels.
        ratio: level of the importance ratio.
        ratio_gradient: whose log-probs move a ratio that is averaged.
        bound: how the ratio is bounded.
        clip_low: distance of the lower bound below 1 (below 0 nats for ``log_clip``), >= 0.
        clip_high: distance of the upper bound above 1 (above 0 nats), >= 0.
        clip_bounds: ``around_one`` reads the two as distances: [1 − clip_low, 1 + clip_high];
            ``absolute`` as the bounds of the ratio themselves: [clip_low, clip_high].
        dual_clip: bound > 1 on the loss of negative advantages, in units of −A; None = none.
        gate_positive: τ > 0 of ``soft_gate`` where A > 0.
        gate_negative: τ > 0 of ``soft_gate`` elsewhere.
        aggregate: see ``aggregate_loss``.
        token_weights: (B,T) in [0,1]; leaves tokens out of the loss, while ratios are still
            averaged over whole segments. None = every action token counts 1.
        count_weights: (B,T) what the denominators count; None = ``token_weights``.
        norm_length: see ``aggregate_loss``.
        denominator: see ``aggregate_loss``.

    Returns:
        The loss, and metrics, each a mean over counted tokens but for the maximum:
        ``clip_fraction`` (share of tokens whose gradient the bound removes, or whose weight it
        caps), ``dual_clip_fraction``, ``ratio_mean``, ``ratio_max``, ``kl`` (mean of −x_t, the
        k1 estimate of the step's divergence from the sampling policy).

    Raises:
        ShapeError: unknown mode, an impossible bound, or shapes that do not fit.

    Source:
        Segment ratio: SAPO, arXiv 2605.01327, eqs. 8-9 and 13. Sequence ratio and own-token
        gradient: GSPO, arXiv 2507.18071. Bounds: see ``segcredit.objective.ratio_clipping``.
    """
    _require_fit(logprobs, sampling_logprobs, advantages, action_mask)
    require_bounds(bound, clip_low, clip_high, clip_bounds, dual_clip)
    weights_BT = _weights(token_weights, action_mask, logprobs)
    counts_BT = (
        weights_BT if count_weights is None else _weights(count_weights, action_mask, logprobs)
    )
    # Masked tokens are made harmless before any arithmetic: 0 · NaN would be NaN in the gradient.
    logprobs_BT = logprobs.masked_fill(~action_mask, 0)
    advantages_BT = advantages.masked_fill(~action_mask, 0)
    difference_BT = (logprobs - sampling_logprobs).masked_fill(~action_mask, 0)
    log_ratio_BT = difference_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    low, high = (
        (clip_low, clip_high) if clip_bounds == "absolute" else (1 - clip_low, 1 + clip_high)
    )
    bounded_BT, clipped_BT, dual_BT = log_ratio_BT, None, None
    if bound == "log_clip" and ratio != "none":
        bounded_BT, clipped_BT = ratio_clipping.log_clip(
            log_ratio_BT, advantages_BT, clip_low, clip_high
        )
    ratio_BT = _average(bounded_BT, action_mask, segmentation, ratio, ratio_gradient).exp()
    if ratio == "none":
        loss_BT = -advantages_BT * logprobs_BT
    elif bound == "log_clip":
        loss_BT = -advantages_BT * ratio_BT
    elif bound == "capped_weight":
        loss_BT, clipped_BT = ratio_clipping.capped_weight(
            ratio_BT, advantages_BT, logprobs_BT, low, high
        )
    elif bound == "soft_gate":
        loss_BT = ratio_clipping.soft_gate(ratio_BT, advantages_BT, gate_positive, gate_negative)
    else:
        loss_BT, clipped_BT = ratio_clipping.clip(ratio_BT, advantages_BT, low, high)
        if dual_clip is not None:
            loss_BT, dual_BT = ratio_clipping.dual_clip(loss_BT, advantages_BT, dual_clip)
    loss = aggregate_loss(
        loss_BT,
        weights_BT,
        aggregate,
        count_weights=counts_BT,
        norm_length=norm_length,
        denominator=denominator,
    )
    return loss, _metrics(ratio_BT, log_ratio_BT, clipped_BT, dual_BT, weights_BT)


def _weights(weights_BT: Tensor | None, action_mask: Tensor, like: Tensor) -> Tensor:
    """Weights of the log-probs' type, 0 outside the action mask; 1 inside where none are given."""
    inside_BT = action_mask.to(like.dtype)
    return inside_BT if weights_BT is None else inside_BT * weights_BT.masked_fill(~action_mask, 0)


def _average(
    log_ratio_BT: Tensor,
    action_mask: Tensor,
    segmentation: Segmentation,
    ratio: Ratio,
    gradient: RatioGradient,
) -> Tensor:
    """The mean log-ratio over the tokens that share a ratio."""
    if gradient not in ("full", "own_token"):
        raise ShapeError(f"ratio_gradient {gradient!r} does not exist; expected full or own_token.")
    if ratio in ("none", "token"):
        return log_ratio_BT
    if ratio == "segment":
        mean_BT = segmentation.spread(segmentation.reduce(log_ratio_BT, "mean"))
    elif ratio == "sequence":
        tokens_B1 = action_mask.sum(1, keepdim=True).clamp(min=1)
        mean_BT = (log_ratio_BT.sum(1, keepdim=True) / tokens_B1).expand_as(log_ratio_BT)
    else:
        raise ShapeError(
            f"ratio {ratio!r} does not exist; expected none, token, segment or sequence."
        )
    if gradient == "full":
        return mean_BT
    return mean_BT.detach() + (log_ratio_BT - log_ratio_BT.detach())


def kl_divergence(
    logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    kind: KL,
    *,
    limit: float = 10.0,
) -> Float[Tensor, "B T"]:
    """An estimate of KL(π ‖ π_ref) from each sampled token, in nats.

    With x = log π − log π_ref: k1 = x; abs = |x|; k2 = x²/2; k3 = exp(−x) − 1 + x. In
    expectation k1 and k3 have the divergence's value exactly, k2 to second order; abs is a
    distance of its own.

    Args:
        logprobs: (B,T) nats, of the policy; carries the gradient where it is a loss.
        reference_logprobs: (B,T) nats.
        kind: the estimate.
        limit: k3 is clamped to ± this; infinity = not at all.

    Source:
        Schulman, "Approximating KL divergence" (2020). The clamp of k3's exponent to ±20 and of
        its value to ±10 is verl's; TRL has none.
    """
    difference_BT = logprobs - reference_logprobs
    if kind == "k1":
        return difference_BT
    if kind == "abs":
        return difference_BT.abs()
    if kind == "k2":
        return difference_BT.square() / 2
    if kind == "k3":
        inverse_BT = (-difference_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        estimate_BT = inverse_BT.exp() - 1 - inverse_BT
        return estimate_BT.clamp(-limit, limit)
    raise ShapeError(f"KL estimate {kind!r} does not exist; expected k1, abs, k2 or k3.")


def _metrics(
    ratio_BT: Tensor,
    log_ratio_BT: Tensor,
    clipped_BT: Tensor | None,
    dual_BT: Tensor | None,
    weights_BT: Tensor,
) -> dict[str, Tensor]:
    """Means over counted tokens, detached; tensors, so that nothing waits for the device."""
    ratio_BT, log_ratio_BT = ratio_BT.detach(), log_ratio_BT.detach()
    count = weights_BT.sum().clamp(min=1e-8)

    def mean(x_BT: Tensor | None) -> Tensor:
        return torch.zeros_like(count) if x_BT is None else (x_BT * weights_BT).sum() / count

    largest = ratio_BT.masked_fill(weights_BT == 0, 0).amax() if ratio_BT.numel() else count * 0
    return {
        "clip_fraction": mean(clipped_BT),
        "dual_clip_fraction": mean(dual_BT),
        "ratio_mean": mean(ratio_BT),
        "ratio_max": largest,
        "kl": mean(-log_ratio_BT),
    }


def _require_fit(logprobs: Tensor, *others: Tensor) -> None:
    for name, x in zip(("sampling_logprobs", "advantages", "action_mask"), others, strict=True):
        if x.shape != logprobs.shape:
            raise ShapeError(
                f"{name} has shape {tuple(x.shape)} but logprobs has {tuple(logprobs.shape)};"
                " expected both to be (B,T)."
            )


def require_bounds(
    bound: str, clip_low: float, clip_high: float, clip_bounds: str, dual_clip: float | None
) -> None:
    """Refuse options of ``surrogate_loss`` that do not go together.

    Raises:
        ShapeError: says which, and what was expected.
    """
    if bound not in ("clip", "log_clip", "capped_weight", "soft_gate"):
        raise ShapeError(
            f"bound {bound!r} does not exist; expected clip, log_clip, capped_weight or soft_gate."
        )
    if clip_low < 0 or clip_high < 0:
        raise ShapeError(
            f"clip_low is {clip_low} and clip_high is {clip_high}; expected distances from 1, or"
            " bounds of a ratio, both at least 0, such as 0.2."
        )
    if clip_bounds not in ("around_one", "absolute"):
        raise ShapeError(
            f"clip_bounds {clip_bounds!r} does not exist; expected around_one or absolute."
        )
    if clip_bounds == "absolute" and (bound == "log_clip" or clip_low >= clip_high):
        raise ShapeError(
            f"clip_bounds is 'absolute' with bound {bound!r} and the interval [{clip_low},"
            f" {clip_high}]; expected clip or capped_weight and clip_low below clip_high, such as"
            " [0, 5]. log_clip takes distances from 0 nats: leave clip_bounds at 'around_one'."
        )
    if dual_clip is not None and (dual_clip <= 1 or bound != "clip"):
        raise ShapeError(
            f"dual_clip is {dual_clip} with bound {bound!r}; expected more than 1, such as 3.0,"
            " with bound 'clip', or None."
        )
