"""Values from a tree of rollouts: the mean over the children, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from segcredit import Anchor, RolloutBatch, Segmentation, Simulator, ValueEstimator


@dataclass(frozen=True, slots=True)
class Tree(ValueEstimator):
    """V(state) = the mean of V over the state's distinct children; a leaf is a row's own return.

    A state is the node (``rollouts.node_ids``) of the token before it, or the prompt, which a
    group shares. Its children are the distinct tokens that rows go on with; a row that ends where
    others go on is a child of its own. In closed form, with c(s) children of state s::

        V(s) = Σ_b W_b(s) R_b        W_b(s) = Π_s' 1 / c(s')

    over the rows b through s, and over the states s' of row b from s to its end.

    R_b is the sum of the row's token rewards, KL penalties included; from V at a row's anchor what
    that row earned before it is taken off, so that V is what is still to come. Where the reward
    comes at the end, there is nothing to take off. A plain mean over the leaves would differ: in
    it a child with many leaves outweighs its siblings.

    Assumption: rollouts were sampled as a tree, children independently of each other. Biased as a
    baseline: the mean holds the row's own future, so that expected gradients at a fork of n
    children shrink by (n − 1)/n, as with ``group_mean``. Degenerate case: for independent rollouts
    the first state has the group's mean return and each later one the row's own, so that ``td``
    credits the first segment alone. Cost: one sort of the batch's tokens; nothing is sampled.

    Args:
        anchor: the state that a segment's value is of, see ``Segmentation.anchors``.

    Source:
        SPO-tree, Guo et al. 2025, arXiv 2505.23564: a node is worth the mean of its children.
        Differences: there a node ends a segment of fixed length and a level has one number of
        children; here rows may fork after any token, and those that the policy did not choose
        are nodes like others. There rewards come at the leaves alone.
    """

    anchor: Anchor = "start"

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) values of the anchors' states, less what was earned before them."""
        rewards_BT = rollouts.token_rewards.masked_fill(~rollouts.action_mask, 0)
        states_BT, children_BT, live_BT = _edges(rollouts)
        forks_N = _count_children(states_BT[live_BT], children_BT[live_BT], states_BT.numel())
        forks_BT = torch.where(live_BT, forks_N[states_BT], 1).to(rewards_BT.dtype)
        leaves_BT = forks_BT.reciprocal().flip(1).cumprod(1).flip(1) * rewards_BT.sum(1)[:, None]
        values_N = rewards_BT.new_zeros(states_BT.numel())
        values_N = values_N.index_add(0, states_BT[live_BT], leaves_BT[live_BT])
        anchors_BS = segmentation.anchors(self.anchor)
        earned_BT = torch.cat([rewards_BT.new_zeros(len(rewards_BT), 1), rewards_BT.cumsum(1)], 1)
        values_BS = values_N[states_BT.gather(1, anchors_BS)] - earned_BT.gather(1, anchors_BS)
        return values_BS.masked_fill(~segmentation.mask, 0)


def _edges(rollouts: RolloutBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (B,T+1) the state before each token, the token, and whether the row comes so far.

    A row ends behind its last action token; its end is a token that no other row has. All are
    numbered below B(T+1): nodes first, then prompts (as states) and ends (as tokens).
    """
    action_BT = rollouts.action_mask
    rows, width = action_BT.shape
    nodes_BT = _number(rollouts.node_ids)
    prompts_B1 = _number(rollouts.group)[:, None] + rows * width
    ends_B1 = torch.arange(rows, device=action_BT.device)[:, None] + rows * width
    columns_T = torch.arange(width + 1, device=action_BT.device)
    places_BT = torch.cat([torch.zeros_like(ends_B1), action_BT * columns_T[1:]], 1)
    lengths_B1 = places_BT.amax(1, keepdim=True)
    states_BT = torch.cat([prompts_B1, nodes_BT], 1)
    children_BT = torch.where(columns_T == lengths_B1, ends_B1, torch.cat([nodes_BT, ends_B1], 1))
    return states_BT, children_BT, columns_T <= lengths_B1


def _count_children(states_N: Tensor, children_N: Tensor, size: int) -> Tensor:
    """Returns (size,) how many distinct children each state has."""
    # Rows that share a token share all before it: whichever row writes, the parent is the same.
    parents_N = states_N.new_full((size,), size)
    parents_N[children_N] = states_N
    return torch.bincount(parents_N, minlength=size + 1)[:size]


def _number(ids: Tensor) -> Tensor:
    """Numbers the distinct ids from 0, in the same shape."""
    unique = cast(tuple[Tensor, Tensor], torch.unique(ids, return_inverse=True))  # pyright: ignore[reportUnknownMemberType]
    return unique[1].view(ids.shape)
