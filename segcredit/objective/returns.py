"""From rewards and values to credit: token rewards, segment values, and the one recursion.

Shapes as in ``segcredit.types``.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.segmentation import Segmentation
from segcredit.types import Advantages, RolloutBatch, SegmentValues, require_shape

Clock = Literal["segment", "token"]


def lambda_returns(
    values: SegmentValues,
    *,
    gamma: float = 1.0,
    lam: float | Float[Tensor, "B"] = 1.0,
    clock: Clock = "segment",
    lam_clock: Clock = "segment",
) -> Float[Tensor, "B S"]:
    """Computes lambda-returns over segments: G_m = A_m + V_m with the generalised advantage A_m.

    With ``clock="segment"``::

        δ_m = r_m + γ V_{m+1} − V_m        A_m = δ_m + γ λ A_{m+1}

    With ``clock="token"``, a semi-Markov decision process in which a segment of n_m tokens takes
    n_m ticks and r_m is earned at its last::

        δ_m = γ^(n_m−1) r_m + γ^(n_m) V_{m+1} − V_m        A_m = δ_m + γ^(n_m) λ A_{m+1}

    V after the last segment is 0. λ = 1 gives the discounted reward-to-go, λ = 0 the one-step
    target r_m + γ V_{m+1}; one segment a token gives token-level GAE. The clocks agree at γ = 1.

    With ``lam_clock="token"``, λ is λ^(n_m) in the recursion: what happens a given number of tokens
    later counts the same however the tokens are cut, so that definitions of segments share one
    horizon. Counted in segments, coarser ones look farther ahead at an equal λ.

    Args:
        values: of a batch; entries outside the mask are 0.
        gamma: discount in [0,1].
        lam: λ in [0,1], one for all or one a row.
        clock: what a tick of the discount is.
        lam_clock: what a tick of λ is.

    Returns:
        (B,S) returns in reward units; 0 outside the mask.

    Source:
        Schulman et al. 2016, arXiv 1506.02438, eq. 16; segments: SAPO, arXiv 2605.01327,
        eqs. 6-7 (clock "segment") and appendix C, eq. 18 (clock "token"). λ by tokens is ours.
    """
    # (S,B): the walk then reads and writes contiguous memory.
    values_SB = values.values.T.contiguous()
    next_SB = torch.cat([values_SB[1:], torch.zeros_like(values_SB[:1])])
    rewards_SB = values.rewards.T
    if clock == "token" and gamma != 1.0:
        lengths_SB = values.lengths.T.to(values_SB.dtype)
        discount_SB = gamma**lengths_SB
        rewards_SB = rewards_SB * gamma ** (lengths_SB - 1).clamp(min=0)
    else:
        discount_SB = torch.full_like(values_SB[:1], gamma).expand_as(values_SB)
    for name in (clock, lam_clock):
        if name not in ("segment", "token"):
            raise ShapeError(f"clock {name!r} does not exist; expected 'segment' or 'token'.")
    decay_SB = discount_SB * lam
    if lam_clock == "token":
        # 0^0 is 1, but a place without a segment has nothing to hand on.
        base = torch.as_tensor(lam, dtype=values_SB.dtype, device=values_SB.device)
        decay_SB = discount_SB * base ** values.lengths.T.to(values_SB.dtype)
    deltas_SB = torch.where(
        values.mask.T, rewards_SB + discount_SB * next_SB - values_SB, torch.zeros_like(values_SB)
    )
    return (_discounted_sums(deltas_SB, decay_SB) + values_SB).T.contiguous()


def _discounted_sums(
    deltas_SB: Float[Tensor, "S B"], decay_SB: Float[Tensor, "S B"]
) -> Float[Tensor, "S B"]:
    """Computes A_m = δ_m + decay_m A_{m+1}: a walk over segments, vectorised over the batch.

    Never by dividing through cumulative products of the decay: they underflow.
    """
    sums_SB = deltas_SB.clone()
    for m in range(len(sums_SB) - 2, -1, -1):
        sums_SB[m].addcmul_(decay_SB[m], sums_SB[m + 1])
    return sums_SB


def token_rewards(
    rewards: Float[Tensor, "B"],
    action_mask: Tensor,
    penalty: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """Places the verifier's reward on the last action token, less a penalty on each.

    Args:
        rewards: (B,) of each completion; a completion without action tokens keeps nothing.
        action_mask: (B,T) bool, with or without holes.
        penalty: (B,T) such as β (log π − log π_ref), in reward units.
    """
    later_BT = action_mask.flip(1).cumsum(1).flip(1)
    last_BT = action_mask & (later_BT == 1)
    placed_BT = last_BT * rewards[:, None]
    return placed_BT if penalty is None else placed_BT - penalty.masked_fill(~action_mask, 0)


def overlong(lengths: Int[Tensor, "B"], limit: int, buffer: int) -> Float[Tensor, "B"]:
    """Computes the share, 0 to 1, of the last ``buffer`` tokens before the limit that are used.

    Source:
        The soft overlong punishment of DAPO, arXiv 2503.14476, eq. 13, without its sign.
    """
    return ((lengths - (limit - buffer)) / buffer).clamp(0, 1)


def segment_values(
    rollouts: RolloutBatch,
    segmentation: Segmentation,
    values_BS: Float[Tensor, "B S"],
    *,
    process_rewards_BS: Float[Tensor, "B S"] | None = None,
    token_weights: Float[Tensor, "B T"] | None = None,
) -> SegmentValues:
    """Joins an estimator's values with the rewards and sizes of the segments.

    Args:
        rollouts: whose ``token_rewards`` are summed within segments.
        segmentation: of these rollouts.
        values_BS: what a value estimator returned; entries without a segment are dropped.
        process_rewards_BS: added to the segments' rewards.
        token_weights: (B,T) in [0,1], how far the loss counts each token; None = all.

    Raises:
        ShapeError: the values do not have one column a segment.
    """
    mask_BS = segmentation.mask
    require_shape("the value estimator", values_BS, mask_BS.shape)
    lengths_BS = segmentation.lengths
    rewards_BS = segmentation.reduce(rollouts.token_rewards, "sum")
    anchors_BS = rollouts.anchor_ids
    if anchors_BS is not None:
        anchors_BS = segmentation.reduce(anchors_BS, "first").masked_fill(~mask_BS, -1)
    if process_rewards_BS is not None:
        rewards_BS = (rewards_BS + process_rewards_BS).masked_fill(~mask_BS, 0)
    return SegmentValues(
        values=values_BS.masked_fill(~mask_BS, 0),
        rewards=rewards_BS,
        lengths=lengths_BS,
        weights=lengths_BS.to(rewards_BS.dtype)
        if token_weights is None
        else segmentation.reduce(token_weights, "sum"),
        mask=mask_BS,
        group=rollouts.group,
        node_ids=segmentation.reduce(rollouts.node_ids, "last"),
        anchor_ids=anchors_BS,
    )


def advantages(
    segmentation: Segmentation, values: SegmentValues, per_segment: Float[Tensor, "B S"]
) -> Advantages:
    """Returns credit for tokens: each takes its segment's advantage.

    Raises:
        ShapeError: the scheme did not return one advantage a segment.
    """
    require_shape("the advantage scheme", per_segment, values.mask.shape)
    kept_BS = per_segment.masked_fill(~values.mask, 0)
    return Advantages(per_segment=kept_BS, per_token=segmentation.spread(kept_BS))


def explained_variance(
    values: SegmentValues, targets_BS: Float[Tensor, "B S"], *, by_token: bool = False
) -> Float[Tensor, ""]:
    """Computes 1 − Var(target − value) / Var(target) over the batch's segments; NaN if undefined.

    The loop's targets are realised returns, not bootstrapped ones, which the values explain in
    part by construction.
    Computed over the whole batch: the mean over minibatches is another, wrong number.

    Args:
        values: of the batch.
        targets_BS: what they should be.
        by_token: weigh segments by their tokens, each of which has the value of its segment, so
            that definitions of segments can be compared; else all count the same.
    """
    weight_BS = (values.lengths if by_token else values.mask).to(targets_BS.dtype)
    residual = _variance(targets_BS - values.values, weight_BS)
    total = _variance(targets_BS, weight_BS)
    # Targets that are all the same differ from their mean by its rounding.
    square = (targets_BS.square() * weight_BS).sum() / weight_BS.sum().clamp(min=1)
    rounding = (16 * torch.finfo(targets_BS.dtype).eps) ** 2 * square
    return torch.where(total > rounding, 1 - residual / total, torch.nan)


def _variance(x: Tensor, weight: Tensor) -> Tensor:
    count = weight.sum().clamp(min=1)
    mean = (x * weight).sum() / count
    return ((x - mean).square() * weight).sum() / count
