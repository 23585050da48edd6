"""Which tokens the loss counts, by what the policy thought of them when it sampled. Pure.

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.group_statistics import group_size


def low_probability(
    logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], below: float
) -> Bool[Tensor, "B T"]:
    """Action tokens whose probability was less than ``below``.

    Source:
        The probability mask of SPO-chain, arXiv 2505.23564; 0.9 there.
    """
    if not 0 < below <= 1:
        raise ShapeError(f"below is {below}; expected a probability above 0, such as 0.9.")
    return action_mask & (logprobs.masked_fill(~action_mask, 0).exp() < below)


def high_entropy(
    entropies: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    share: float,
    *,
    among: Float[Tensor, "N"] | None = None,
) -> Bool[Tensor, "B T"]:
    """The ``share`` of the batch's action tokens with the highest entropies.

    Those at least as high as the (1 − share)-quantile over the whole batch, linear between
    neighbours; ties with it are all in.

    Args:
        entropies: (B,T) in nats.
        action_mask: (B,T) bool.
        share: in (0,1].
        among: (N,) entropies of the whole batch's action tokens, inf in other places, where these
            rows are a part of it; None = these rows are the batch.

    Source:
        Wang et al. 2025, arXiv 2506.01939; 0.2 there. Over a batch, not over each completion, as
        there; of the policy that sampled, where TRL takes the one being trained at each pass.
    """
    if not 0 < share <= 1:
        raise ShapeError(f"share is {share}; expected a share above 0 and at most 1, such as 0.2.")
    if not entropies.numel():
        return action_mask
    every_N = action_entropies(entropies, action_mask) if among is None else among
    sorted_N = every_N.sort().values
    place = (1 - share) * (sorted_N.isfinite().sum() - 1).clamp(min=0).to(sorted_N.dtype)
    below = sorted_N.gather(0, place.floor().long()[None])
    above = sorted_N.gather(0, place.ceil().long()[None])
    return action_mask & (entropies >= torch.lerp(below, above, place - place.floor()))


def action_entropies(
    entropies: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "N"]:
    """What ``high_entropy`` takes as ``among``: one a token, inf where it is no action."""
    return entropies.masked_fill(~action_mask, torch.inf).flatten()


def shared_token_weights(
    node_ids: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """1/n on a token that n rows of the batch share, as in a tree; 0 outside the action mask.

    Counted over the whole batch, before minibatches are cut, so that a sampled token has the same
    weight wherever its rows end up.
    """
    if not node_ids.numel():
        return action_mask.float()
    counted_BT = node_ids.masked_fill(~action_mask, -1)
    return action_mask / group_size(counted_BT.flatten()).view(node_ids.shape)
