"""Masks and weights of the tokens in the loss, by what the sampling policy thought of them. Pure.

Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.group_statistics import group_size
from segcredit.segmentation import top_batch_fraction


def low_probability(
    logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], below: float
) -> Bool[Tensor, "B T"]:
    """Marks the action tokens whose probability was less than ``below``.

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
    """Marks the ``share`` of the batch's action tokens with the highest entropies.

    See ``segcredit.top_batch_fraction``.

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
    return top_batch_fraction(entropies, action_mask, share, among=among)


def action_entropies(
    entropies: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "N"]:
    """Returns the entropies as ``high_entropy`` takes them as ``among``: inf where no action is."""
    return entropies.masked_fill(~action_mask, torch.inf).flatten()


def shared_token_weights(
    node_ids: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Returns 1/n on a token that n rows share, as in a tree; 0 outside the action mask.

    Counted over the whole batch, before minibatches are cut, so that a sampled token has the same
    weight wherever its rows end up.
    """
    if not node_ids.numel():
        return action_mask.float()
    counted_BT = node_ids.masked_fill(~action_mask, -1)
    return action_mask / group_size(counted_BT.flatten()).view(node_ids.shape)
