"""The baseline of least variance at each token of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from segcredit import (
    Reading,
    RolloutBatch,
    Segmentation,
    Simulator,
    SupportsLogitGradients,
    ValueEstimator,
    compared_segments,
    group_mean,
    group_size,
)


@dataclass(frozen=True, slots=True)
class OptimalTokenBaseline(ValueEstimator):
    """V_t = Σ_i W_it G_it / (Σ_i W_it + eps) over the group's rows with a token at place t.

    G_it is the reward still to come, and W_it = Σ_{u≤t} |e_a − p|² over the row's action tokens up
    to t: the squared norm of a log-prob's gradient by the logits is 1 − 2 p_a + Σ_v p_v², a being
    the token and p the policy's distribution. Made for the segmenter ``per_token`` with
    ``full_return``; the value of a longer segment is that of its anchor.

    Assumption: a prefix's squared gradient is the sum of its tokens' in the logits; then this is
    the baseline of least variance that is the same for all rows at a place. Biased as a baseline:
    it holds the row's own return, and W_it the token itself. Degenerate case: a token alone at its
    place has no advantage, see ``tail``; where the policy was certain all along, V = 0, and nothing
    can be learned. Cost: a pass of the policy over the rollouts (``SupportsLogitGradients``).

    Args:
        place: ``sampled`` counts a row's action tokens, so that what an environment says does not
            shift what is compared; ``column`` counts every token.
        singleton: what a group of one row gets: ``zero`` advantage (the row's own return as
            baseline), or its ``reward`` as advantage (no baseline), as verl does.
        tail: the same for a row's tokens beyond the last place of every other row.
        weigh: ``none``, or ``sampler``: a token's squared norm times the square of its importance
            weight against the sampler, whose log-probs the rollouts tell; 1 where they do not.
        eps: added to the sum of weights.

    Source:
        verl, ``compute_optimal_token_baseline_advantage`` (``place="column"``) and the one for
        several turns (``sampled``): eps 1e-8, ``singleton="reward"``; its ``handle_zero_tail`` is
        ``tail="reward"``. Differences: its tail of ``column`` begins at the column that is the
        second row's number of action tokens, also where there are holes; its weights against the
        sampler may be truncated.
    """

    place: Literal["sampled", "column"] = "sampled"
    singleton: Literal["zero", "reward"] = "zero"
    tail: Literal["zero", "reward"] = "zero"
    weigh: Literal["none", "sampler"] = "none"
    eps: Annotated[float, Interval(ge=1e-30, le=1)] = 1e-8

    @property
    def reads(self) -> frozenset[Reading]:
        """Log-probs, where there are weights against the sampler."""
        return frozenset({"logprobs"}) if self.weigh == "sampler" else frozenset()

    @property
    def needs(self) -> tuple[type, ...]:
        """The norms of log-probs' gradients."""
        return (SupportsLogitGradients,)

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the baseline at each anchor."""
        mask_BT = rollouts.action_mask
        rewards_BT = rollouts.token_rewards.masked_fill(~mask_BT, 0)
        anchors_BS = segmentation.anchors(self.anchor)
        if not mask_BT.shape[1]:  # no token to look at
            return torch.zeros_like(anchors_BS, dtype=rewards_BT.dtype)
        norms_BT = simulator.logit_gradients(rollouts).to(rewards_BT.dtype)
        if self.weigh == "sampler" and rollouts.sampler_logprobs is not None:
            norms_BT = norms_BT * (2 * (rollouts.logprobs - rollouts.sampler_logprobs)).exp()
        weights_BT = norms_BT.masked_fill(~mask_BT, 0).cumsum(1) * mask_BT
        togo_BT = rewards_BT.flip(1).cumsum(1).flip(1)
        places_BT = mask_BT if self.place == "sampled" else mask_BT.flip(1).cummax(1)[0].flip(1)
        numbers_BT = places_BT.cumsum(1)
        ids_N, size_BT = _compared(rollouts.group, mask_BT, numbers_BT)
        top_BT, bottom_BT = (
            group_mean(x_BT.flatten(), ids_N).view(mask_BT.shape) * size_BT
            for x_BT in (weights_BT * togo_BT, weights_BT)
        )
        values_BT = top_BT / (bottom_BT + self.eps)
        tail_BT = _compared(rollouts.group, places_BT, numbers_BT)[1] == 1
        alone_B1 = group_size(rollouts.group)[:, None] == 1
        for at_BT, rule in ((tail_BT & ~alone_B1, self.tail), (alone_B1, self.singleton)):
            values_BT = torch.where(at_BT, togo_BT * (rule == "zero"), values_BT)
        return values_BT.gather(1, anchors_BS).masked_fill(~segmentation.mask, 0)


def _compared(group_B: Tensor, mask_BT: Tensor, numbers_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (N,) numbers, equal at equal places of a group, and (B,T) how many are."""
    ids_N = compared_segments(group_B, mask_BT, "anchor", numbers_BT).flatten()
    return ids_N, group_size(ids_N).view(mask_BT.shape)
