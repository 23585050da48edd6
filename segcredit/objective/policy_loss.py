"""The policy-gradient objective: surrogate, token weights, aggregation, KL. All pure.

The loss of a token is built in steps, each a choice of its own: over which tokens the importance
ratio is averaged (``importance_ratio``), how it is bounded (``ratio_clipping``), which tokens
count (``loss_masks``), and how token losses become one number (``aggregation``).

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.aggregation import Aggregation, aggregate_loss
from segcredit.objective.importance_ratio import Surrogate
from segcredit.objective.ratio_clipping import Bounded
from segcredit.segmentation import Segmentation

KL = Literal["k1", "abs", "k2", "k3", "weighted_k3"]

LOG_RATIO_LIMIT = 20.0
"""Token log-ratios are clamped to ± this before any mean, as in verl and SAPO's released code."""


def surrogate_loss(
    logprobs: Float[Tensor, "B T"],
    sampling_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    segmentation: Segmentation,
    *,
    surrogate: Surrogate,
    aggregation: Aggregation,
    token_weights: Float[Tensor, "B T"] | None = None,
    count_weights: Float[Tensor, "B T"] | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Computes the policy-gradient loss of one kind of surrogate, aggregation and token weights.

    Token log-ratios x_t = log π(y_t) − log π_sampling(y_t) are clamped to ±20 first.

    Args:
        logprobs: (B,T) nats, of the policy being trained; carries the gradient.
        sampling_logprobs: (B,T) nats, of the policy that sampled.
        advantages: (B,T) free to vary inside a segment.
        action_mask: (B,T) may have holes; nothing on masked tokens is read, NaN included.
        segmentation: over which ``SegmentRatio`` averages; unused by other levels.
        surrogate: ``Importance(ratio, bound)`` or ``Reinforce()``.
        aggregation: how token losses become one number.
        token_weights: (B,T) in [0,1]; leaves tokens out of the loss, while ratios are still
            averaged over whole segments. None = every action token counts 1.
        count_weights: (B,T) what the denominators count; None = ``token_weights``.
        denominator: see ``aggregate_loss``.

    Returns:
        The loss, and metrics, each a mean over counted tokens but for the maximum:
        ``clip_fraction`` (share of tokens whose gradient the bound removes, or whose weight it
        caps), ``dual_clip_fraction``, ``ratio_mean``, ``ratio_max``, ``kl`` (mean of −x_t, the
        k1 estimate of the step's divergence from the sampling policy).

    Raises:
        ShapeError: shapes that do not fit.
        PluginError: ratio, bound or aggregation raised, or returned something else than it must.
    """
    _require_fit(logprobs, sampling_logprobs, advantages, action_mask)
    weights_BT = _weights(token_weights, action_mask, logprobs)
    counts_BT = (
        weights_BT if count_weights is None else _weights(count_weights, action_mask, logprobs)
    )
    # Masked tokens are made harmless before any arithmetic: 0 · NaN would be NaN in the gradient.
    logprobs_BT = logprobs.masked_fill(~action_mask, 0)
    advantages_BT = advantages.masked_fill(~action_mask, 0)
    difference_BT = (logprobs - sampling_logprobs).masked_fill(~action_mask, 0)
    log_ratio_BT = difference_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_BT, bounded = surrogate(
        log_ratio_BT, advantages_BT, logprobs_BT, action_mask, segmentation
    )
    loss = aggregate_loss(
        bounded.loss,
        weights_BT,
        aggregation,
        count_weights=counts_BT,
        denominator=denominator,
    )
    return loss, _metrics(ratio_BT, log_ratio_BT, bounded, weights_BT)


def _weights(weights_BT: Tensor | None, action_mask: Tensor, like: Tensor) -> Tensor:
    """Returns weights of the log-probs' type, 0 outside the mask; 1 inside where none are given."""
    inside_BT = action_mask.to(like.dtype)
    return inside_BT if weights_BT is None else inside_BT * weights_BT.masked_fill(~action_mask, 0)


def kl_divergence(
    logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    kind: KL,
    *,
    limit: float = 10.0,
    sampling_logprobs: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """Computes an estimate of KL(π ‖ π_ref) from each sampled token, in nats.

    With x = log π − log π_ref: k1 = x; abs = |x|; k2 = x²/2; k3 = exp(−x) − 1 + x. In
    expectation over π's tokens k1 and k3 have the divergence's value exactly, k2 to second order;
    abs is a distance of its own. weighted_k3 = ρ k3, with ρ = π/π_old of the token: over π_old's
    tokens its value, and its gradient, are the divergence's, which those of k3 are not once π has
    moved; k3's gradient is not even before.

    Args:
        logprobs: (B,T) nats, of the policy; carries the gradient where it is a loss.
        reference_logprobs: (B,T) nats.
        kind: the estimate.
        limit: k3 is clamped to ± this; infinity = not at all.
        sampling_logprobs: (B,T) nats, of π_old, for weighted_k3; None = ``logprobs`` of now.

    Source:
        Schulman, "Approximating KL divergence" (2020). The weight: DeepSeek-V3.2, arXiv 2512.02556,
        as TRL's ``use_bias_correction_kl``; always of the token here. The clamp of k3's exponent to
        ±20 and of its value to ±10 is verl's; TRL has none.
    """
    difference_BT = logprobs - reference_logprobs
    if kind == "k1":
        return difference_BT
    if kind == "abs":
        return difference_BT.abs()
    if kind == "k2":
        return difference_BT.square() / 2
    if kind in ("k3", "weighted_k3"):
        inverse_BT = (-difference_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        estimate_BT = (inverse_BT.exp() - 1 - inverse_BT).clamp(-limit, limit)
        if kind == "k3":
            return estimate_BT
        before_BT = logprobs.detach() if sampling_logprobs is None else sampling_logprobs
        moved_BT = (logprobs - before_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return moved_BT.exp() * estimate_BT
    raise ShapeError(
        f"KL estimate {kind!r} does not exist; expected k1, abs, k2, k3 or weighted_k3."
    )


def _metrics(
    ratio_BT: Tensor,
    log_ratio_BT: Tensor,
    bounded: Bounded,
    weights_BT: Tensor,
) -> dict[str, Tensor]:
    """Computes means over counted tokens, as detached tensors: nothing waits for the device."""
    ratio_BT, log_ratio_BT = ratio_BT.detach(), log_ratio_BT.detach()
    count = weights_BT.sum().clamp(min=1e-8)

    def mean(x_BT: Tensor | None) -> Tensor:
        return torch.zeros_like(count) if x_BT is None else (x_BT * weights_BT).sum() / count

    largest = ratio_BT.masked_fill(weights_BT == 0, 0).amax() if ratio_BT.numel() else count * 0
    return {
        "clip_fraction": mean(bounded.clipped),
        "dual_clip_fraction": mean(bounded.dual_clipped),
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
