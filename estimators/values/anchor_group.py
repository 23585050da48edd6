"""The mean return from states that an environment named alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from segcredit import (
    Match,
    RolloutBatch,
    Segmentation,
    SegmentValues,
    Simulator,
    ValueEstimator,
    compared_segments,
    group_mean,
    group_size,
    lambda_returns,
    turn_starts,
)


@dataclass(frozen=True, slots=True)
class AnchorGroup(ValueEstimator):
    """V = the mean return R_k over the prompt's turns that began in the same state.

    States are the same where ``rollouts.anchor_ids`` are equal, in whichever completion and at
    whichever turn; each visit counts. R_k = Σ_{j≥k} γ^(j−k) r_j over the turns from k to the last,
    r_j being the sum of a turn's token rewards. Segments inside a turn have the turn's value. Take
    segmenter ``turns`` and ``full_return`` with the same gamma: A_k = R_k − V.

    Assumption: what came before a state does not matter to what follows it. Since the mean includes
    a turn's own return, expected gradients shrink, as with ``group_mean``. Degenerate cases: a
    state that no other turn began in has V = R_k, hence no advantage, see ``singleton``; without
    anchors the first turns of a prompt are one state and all others have no like; a completion of
    one turn, or without turn ids, has the value that ``group_mean`` gives. Cost: none beyond the
    group's completions.

    Args:
        match: ``anchor`` compares turns by their states, as above; ``turn`` by their place in the
            completion; ``prompt`` compares all turns of a prompt with one another, so that a
            completion counts as often as it has turns.
        gamma: discount of R_k in [0,1], a turn a tick.
        singleton: what a turn that is compared with no other gets: ``zero`` advantage, or its
            ``reward`` as advantage.
        history: with ``anchor``: also compares turns by their last 2, 3, ..., history + 1 anchors.
            V is then a mean of these means, those of no other turn and of too few turns left out.
        history_weight: α in the weight (k + 1)^α of the mean over equal last k anchors.

    Source:
        GiGPO, Feng et al. 2025, arXiv 2505.10978, eqs. 5-8 with F_norm = 1, and its released code.
        That code's episode statistics run over turns, not over completions: ``match="prompt"`` with
        ``reward_source = "outcome"`` and ``singleton="reward"``. ``history``: HGPO, arXiv
        2602.22817, without its ``base_group``, and without its scaling where history is above 0.
        Difference: states are named by the environment; the code's choice of texts that are
        alike to 95 % depends on the order of rows, and is left out.
    """

    match: Match = "anchor"
    gamma: Annotated[float, Interval(ge=0, le=1)] = 1.0
    singleton: Literal["zero", "reward"] = "zero"
    history: Annotated[int, Interval(ge=0, le=100)] = 0
    history_weight: Annotated[float, Interval(ge=0, le=100)] = 1.0

    def __post_init__(self) -> None:
        if self.history and self.match != "anchor":
            raise ValueError(
                f"history is {self.history} and match is {self.match!r}; expected match = 'anchor',"
                " since nothing else tells the turns before apart."
            )

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the value of the turn that each segment begins in."""
        mask_BT, turn_ids = rollouts.action_mask, rollouts.turn_ids
        begins_BT = torch.zeros_like(mask_BT) if turn_ids is None else turn_starts(turn_ids)
        turns = Segmentation.from_starts(begins_BT, mask_BT)
        returns_BK = self._returns(rollouts, turns)
        means_BK, weights_BK = torch.zeros_like(returns_BK), torch.zeros_like(returns_BK)
        for length, ids_BK in enumerate(self._states(rollouts, turns), 1):
            ids_N = ids_BK.flatten()
            shared_BK = (group_size(ids_N) > 1).view(ids_BK.shape)
            weight_BK = shared_BK * (length + 1.0) ** self.history_weight
            mean_BK = group_mean(returns_BK.flatten(), ids_N).view(ids_BK.shape)
            means_BK, weights_BK = means_BK + weight_BK * mean_BK, weights_BK + weight_BK
        alone_BK = returns_BK if self.singleton == "zero" else torch.zeros_like(returns_BK)
        values_BK = torch.where(weights_BK > 0, means_BK / weights_BK, alone_BK)
        anchors_BS = segmentation.anchors(self.anchor)
        if not mask_BT.shape[1]:  # no token to look at
            return torch.zeros_like(anchors_BS, dtype=returns_BK.dtype)
        return turns.spread(values_BK).gather(1, anchors_BS).masked_fill(~segmentation.mask, 0)

    def _returns(self, rollouts: RolloutBatch, turns: Segmentation) -> Tensor:
        """Returns (B,K) the discounted return from each turn."""
        rewards_BK = turns.reduce(rollouts.token_rewards, "sum")
        values = SegmentValues(
            values=torch.zeros_like(rewards_BK),
            rewards=rewards_BK,
            lengths=turns.lengths,
            weights=turns.lengths.to(rewards_BK.dtype),
            mask=turns.mask,
            group=rollouts.group,
        )
        return lambda_returns(values, gamma=self.gamma)

    def _states(self, rollouts: RolloutBatch, turns: Segmentation) -> list[Tensor]:
        """Lists (B,K) numbers, equal where turns are compared, one for each length of history."""
        mask_BK, anchors_BT = turns.mask, rollouts.anchor_ids
        anchors_BK = None if anchors_BT is None else turns.reduce(anchors_BT, "first")
        found = [compared_segments(rollouts.group, mask_BK, self.match, anchors_BK)]
        for length in range(1, self.history + 1):
            # -1 where a row has not so many turns before: such a turn is compared with no other.
            before_BK = F.pad(found[0], (length, 0), value=-1)[:, : mask_BK.shape[1]]
            # Equal where both the anchors until now and the one before them are.
            joint_N1 = compared_segments(
                found[-1].flatten(), mask_BK.reshape(-1, 1), "anchor", before_BK.reshape(-1, 1)
            )
            found.append(joint_N1.view(mask_BK.shape))
        return found
