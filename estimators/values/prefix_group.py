"""The mean return of a prompt's completions that begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from segcredit import (
    RolloutBatch,
    Segmentation,
    Simulator,
    ValueEstimator,
    group_mean,
    group_size,
)


@dataclass(frozen=True, slots=True)
class PrefixGroup(ValueEstimator):
    """V(prefix) = the mean return of the group's rows that share the prefix, less what was earned.

    A prefix is all tokens before a segment's anchor, those of an environment included; rows share
    it where these are equal, in a tree or by chance. With ``td``, A = V(s_{t+1}) − V(s_t) is not 0
    only where rows part, and a row's advantages add up to its return less the group's mean.

    Assumption: rows that share a prefix are samples of what follows it. Biased as a baseline: the
    mean holds the row's own return. Degenerate case: what no other row shares has the row's own
    return for its value, so that the segment at which it parts has all that is left, and later
    ones nothing; free text parts at its first tokens, and then all credit stands there. Cost: a
    sort of the batch's rows, and memory for a number a token.

    Args:
        rows: ``all`` rows that share the prefix, or the ``others``: V of what no other row shares
            is then the row's own return still, so that only that place is biased.
        prefix: ``own``, as above; or that of the row's ``first`` segment, at all segments: the
            mean over a tree whose trunk that segment is.

    Source:
        TEMPO, arXiv 2509.18314, of which the abstract and a summary were read: the value of a
        prefix in the group's own tree, used with ``td`` beside a group's advantage. ``others`` is
        ours. ``first``: the trees of Tree-GRPO, arXiv 2509.21240.
    """

    rows: Literal["all", "others"] = "all"
    prefix: Literal["own", "first"] = "own"

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the mean over rows that share each anchor's prefix."""
        mask_BT = rollouts.action_mask
        rewards_BT = rollouts.token_rewards.masked_fill(~mask_BT, 0)
        anchors_BS = places_BS = segmentation.anchors(self.anchor)
        if self.prefix == "first":
            ends_BS = segmentation.anchors("last_token") + 1
            places_BS = (ends_BS[:, :1] * segmentation.mask[:, :1]).expand_as(anchors_BS)
        ids_N = _prefixes(rollouts).flatten()
        returns_B = rewards_BT.sum(1)
        returns_BT = returns_B[:, None].expand(-1, mask_BT.shape[1] + 1)
        means_BT = group_mean(returns_BT.flatten(), ids_N).view(returns_BT.shape)
        if self.rows == "others":
            sizes_BT = group_size(ids_N).view(returns_BT.shape)
            others_BT = (means_BT * sizes_BT - returns_BT) / (sizes_BT - 1).clamp(min=1)
            means_BT = torch.where(sizes_BT == 1, returns_BT, others_BT)
        earned_BT = torch.cat([rewards_BT.new_zeros(len(rewards_BT), 1), rewards_BT.cumsum(1)], 1)
        values_BS = means_BT.gather(1, places_BS) - earned_BT.gather(1, anchors_BS)
        return values_BS.masked_fill(~segmentation.mask, 0)


def _prefixes(rollouts: RolloutBatch) -> Tensor:
    """Returns (B,T+1) numbers, equal where rows of a group share all tokens before a place.

    In sorted rows those that share a prefix follow one another. After its last action token a row
    shares its places with those that end there too.
    """
    mask_BT = rollouts.action_mask
    live_BT = mask_BT.flip(1).cumsum(1).flip(1) > 0
    ids_BT = rollouts.completion_ids.masked_fill(~live_BT, -1)
    rows_BT = torch.cat([rollouts.group[:, None], ids_BT], 1)
    found = cast(tuple[Tensor, Tensor], torch.unique(rows_BT, dim=0, return_inverse=True))  # pyright: ignore[reportUnknownMemberType]
    sorted_CT, row_B = found
    before_CT = torch.cat([sorted_CT[:1], sorted_CT[:-1]])
    parted_CT = (sorted_CT != before_CT).cumsum(1) > 0
    places_T = torch.arange(sorted_CT.shape[1], device=mask_BT.device)
    return (parted_CT.cumsum(0) * sorted_CT.shape[1] + places_T)[row_B]
