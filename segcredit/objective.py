"""The policy-gradient objective: ratio level, bound, token weights, aggregation, KL. All pure.

The loss of a token is built in three steps, each a choice of its own: over which tokens the
importance ratio is averaged, how it is bounded, and how token losses become one number.

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.segmentation import Segmentation

Ratio = Literal["none", "token", "segment", "sequence"]
Aggregate = Literal[
    "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "sequence_sum_norm"
]
Bound = Literal["clip"]
KL = Literal["k1", "k2", "k3"]

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
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    aggregate: Aggregate,
    token_weights: Float[Tensor, "B T"] | None = None,
    norm_length: float | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
    bound: Bound = "clip",
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The clipped policy-gradient surrogate, with the importance ratio at a chosen level.

    With token log-ratios x_t = log π(y_t) − log π_sampling(y_t), clamped to ±20, and N(t) the
    tokens over which token t's ratio is averaged::

        ρ_t = exp( 1/|N(t)| Σ_{u ∈ N(t)} x_u )
        loss_t = max(−A_t ρ_t, −A_t clip(ρ_t, 1 − clip_low, 1 + clip_high))
        loss_t = min(loss_t, −A_t dual_clip)        where A_t < 0 and dual_clip is given

    ``ratio="token"``: N(t) = {t}, PPO. ``"segment"``: the action tokens of t's segment, SAPO.
    ``"sequence"``: all action tokens of the row, GSPO with a plain sequence ratio.
    ``"none"``: loss_t = −A_t log π(y_t), REINFORCE, neither ratio nor bound.

    Args:
        logprobs: (B,T) nats, of the policy being trained; carries the gradient.
        sampling_logprobs: (B,T) nats, of the policy that sampled.
        advantages: (B,T) free to vary inside a segment.
        action_mask: (B,T) may have holes; nothing on masked tokens is read, NaN included.
        segmentation: over which ``ratio="segment"`` averages; unused by other levels.
        ratio: level of the importance ratio.
        clip_low: distance of the lower bound below 1, >= 0.
        clip_high: distance of the upper bound above 1, >= 0.
        dual_clip: bound > 1 on the loss of negative advantages, in units of −A; None = none.
        aggregate: see ``aggregate_loss``.
        token_weights: (B,T) in [0,1]; leaves tokens out of loss and count, while ratios are
            still averaged over whole segments. None = every action token counts 1.
        norm_length: see ``aggregate_loss``.
        denominator: see ``aggregate_loss``.
        bound: how the ratio is bounded; ``clip`` as above.

    Returns:
        The loss, and metrics, each a mean over counted tokens but for the maximum:
        ``clip_fraction`` (share of tokens whose gradient the bound removes),
        ``dual_clip_fraction``, ``ratio_mean``, ``ratio_max``, ``kl`` (mean of −x_t, the k1
        estimate of the step's divergence from the sampling policy).

    Raises:
        ShapeError: unknown mode, a negative clip range, or shapes that do not fit.

    Source:
        PPO: arXiv 1707.06347, eq. 7. Segment ratio: SAPO, arXiv 2605.01327, eqs. 8-9 and 13.
        Sequence ratio: GSPO, arXiv 2507.18071. Dual clip: arXiv 1912.09729, eq. 5.
    """
    _require_fit(logprobs, sampling_logprobs, advantages, action_mask)
    _require_bounds(clip_low, clip_high, dual_clip, bound)
    weights_BT = action_mask.to(logprobs.dtype)
    if token_weights is not None:
        weights_BT = weights_BT * token_weights.masked_fill(~action_mask, 0)
    # Masked tokens are made harmless before any arithmetic: 0 · NaN would be NaN in the gradient.
    difference_BT = (logprobs - sampling_logprobs).masked_fill(~action_mask, 0)
    advantages_BT = advantages.masked_fill(~action_mask, 0)
    log_ratio_BT = difference_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if ratio == "none":
        loss_BT = -advantages_BT * logprobs.masked_fill(~action_mask, 0)
        ratio_BT, clipped_BT, dual_BT = log_ratio_BT.exp(), None, None
    else:
        ratio_BT = _average(log_ratio_BT, action_mask, segmentation, ratio).exp()
        loss_BT, clipped_BT, dual_BT = _clip(
            ratio_BT, advantages_BT, clip_low, clip_high, dual_clip
        )
    loss = aggregate_loss(
        loss_BT, weights_BT, aggregate, norm_length=norm_length, denominator=denominator
    )
    return loss, _metrics(ratio_BT, log_ratio_BT, clipped_BT, dual_BT, weights_BT)


def _average(
    log_ratio_BT: Tensor, action_mask: Tensor, segmentation: Segmentation, ratio: Ratio
) -> Tensor:
    """The mean log-ratio over the tokens that share a ratio."""
    if ratio == "token":
        return log_ratio_BT
    if ratio == "segment":
        return segmentation.spread(segmentation.reduce(log_ratio_BT, "mean"))
    if ratio == "sequence":
        tokens_B1 = action_mask.sum(1, keepdim=True).clamp(min=1)
        return (log_ratio_BT.sum(1, keepdim=True) / tokens_B1).expand_as(log_ratio_BT)
    raise ShapeError(f"ratio {ratio!r} does not exist; expected none, token, segment or sequence.")


def _clip(
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pessimistic clipped loss of each token, and where either bound took the gradient away."""
    free_BT = -advantages_BT * ratio_BT
    held_BT = -advantages_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    clipped_BT = held_BT > free_BT
    loss_BT = torch.maximum(free_BT, held_BT)
    if dual_clip is None:
        return loss_BT, clipped_BT, None
    ceiling_BT = -advantages_BT * dual_clip
    dual_BT = (advantages_BT < 0) & (ceiling_BT < loss_BT)
    return torch.where(dual_BT, ceiling_BT, loss_BT), clipped_BT, dual_BT


def aggregate_loss(
    loss: Float[Tensor, "B N"],
    weights: Float[Tensor, "B N"],
    aggregate: Aggregate,
    *,
    norm_length: float | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """One number from the losses of tokens, or of segments.

    ==========================  ==============================================  ===============
    ``aggregate``               numerator                                       own denominator
    ==========================  ==============================================  ===============
    token_mean                  Σ w l over everything                           Σ w
    sequence_mean_token_mean    Σ over rows of (Σ w l / Σ w)                    rows
    sequence_mean_token_sum     Σ w l over everything                           rows
    sequence_sum_norm           Σ w l over everything / ``norm_length``         1
    ==========================  ==============================================  ===============

    Rows that count no token are not counted. With nothing to count the loss is 0.

    Args:
        loss: (B,N) one a token or segment; not read where the weight is 0.
        weights: (B,N) in [0,1].
        aggregate: the mode.
        norm_length: constant of ``sequence_sum_norm``; None = N, which depends on padding.
        denominator: replaces the own denominator, so that micro-batches and processes add up to
            the loss of the whole minibatch: its Σ w for ``token_mean``, its rows otherwise.
    """
    counted = weights > 0
    weighted = (loss * weights).masked_fill(~counted, 0)
    per_row_B = weights.sum(1)
    if aggregate == "token_mean":
        total, own = weighted.sum(), per_row_B.sum()
    elif aggregate == "sequence_mean_token_mean":
        safe_B = torch.where(per_row_B > 0, per_row_B, 1)
        total, own = (weighted.sum(1) / safe_B).sum(), (per_row_B > 0).sum()
    elif aggregate == "sequence_mean_token_sum":
        total, own = weighted.sum(), (per_row_B > 0).sum()
    elif aggregate == "sequence_sum_norm":
        length = loss.shape[1] if norm_length is None else norm_length
        total, own = weighted.sum() / max(length, 1e-8), None
    else:
        raise ShapeError(
            f"aggregate {aggregate!r} does not exist; expected token_mean,"
            " sequence_mean_token_mean, sequence_mean_token_sum or sequence_sum_norm."
        )
    if denominator is not None:
        return total / denominator
    return total if own is None else total / torch.where(own > 0, own, 1)


def loss_count(weights: Float[Tensor, "B N"], aggregate: Aggregate) -> Float[Tensor, ""]:
    """What ``aggregate_loss`` takes as ``denominator`` for a whole minibatch with these weights."""
    if aggregate == "token_mean":
        return weights.sum()
    return (weights.sum(1) > 0).sum().to(weights.dtype)


def kl_divergence(
    logprobs: Float[Tensor, "B T"], reference_logprobs: Float[Tensor, "B T"], kind: KL
) -> Float[Tensor, "B T"]:
    """An estimate of KL(π ‖ π_ref) from each sampled token, in nats.

    With x = log π − log π_ref: k1 = x; k2 = x²/2; k3 = exp(−x) − 1 + x. All three have the
    divergence's value in expectation to second order (k1 and k3 exactly).

    Source:
        Schulman, "Approximating KL divergence" (2020). The clamp of k3's exponent to ±20 and of
        its value to ±10 is verl's.
    """
    difference_BT = logprobs - reference_logprobs
    if kind == "k1":
        return difference_BT
    if kind == "k2":
        return difference_BT.square() / 2
    if kind == "k3":
        inverse_BT = (-difference_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return (inverse_BT.exp() - 1 - inverse_BT).clamp(-10, 10)
    raise ShapeError(f"KL estimate {kind!r} does not exist; expected k1, k2 or k3.")


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


def _require_bounds(clip_low: float, clip_high: float, dual_clip: float | None, bound: str) -> None:
    if clip_low < 0 or clip_high < 0:
        raise ShapeError(
            f"clip_low is {clip_low} and clip_high is {clip_high}; expected distances from 1, both"
            " at least 0, such as 0.2."
        )
    if dual_clip is not None and dual_clip <= 1:
        raise ShapeError(f"dual_clip is {dual_clip}; expected more than 1, such as 3.0, or None.")
    if bound != "clip":
        raise ShapeError(f"bound {bound!r} does not exist; expected clip.")
