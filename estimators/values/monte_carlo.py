"""The mean reward of fresh continuations from each segment's anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from annotated_types import Interval, Le
from torch import Tensor, nn

from segcredit import (
    Anchor,
    RolloutBatch,
    Segmentation,
    Simulator,
    SupportsResume,
    ValueEstimator,
)


@dataclass(frozen=True, slots=True)
class MonteCarlo(ValueEstimator):
    """V(s_m) = the mean reward of K continuations of the current policy from segment m's anchor.

    V(s_m) = 1/K Σ_k R(s_m, y_k) with y_k drawn from the policy: unbiased for the state's value.
    With ``max_states`` some states are not continued, and ``rest`` says what they are worth. A
    gap is what lies between two estimated states, or behind the last one:

    - ``interpolate``: linear in the segment number from one estimated state to the next, behind
      the last one towards the verifier's reward of the completion itself. Under ``td`` all
      segments of a gap get the same share of what changed across it, none silently 0.
    - ``hold``: the last estimated value. Under ``td`` a gap's last segment gets all of it.
    - ``return``: the completion's own reward-to-go. Under ``td`` the first segment of the gap
      behind the last estimated state gets all of it, those after it 0. For ``choose="first"``.

    The shares are those of an outcome reward; a KL penalty stays with the segment that pays it.
    Whatever the choice, Σ_m A_m = return − V(s_0) under ``td`` with γ = 1, and the first state is
    always estimated. As a baseline (``full_return``) values leave the gradient unbiased if they
    depend on what comes before their state alone. So they do where all states are estimated, and
    with ``hold`` under ``choose="first"``; ``interpolate`` and ``return`` look ahead, and under a
    cap ``even`` depends on the number of segments still to come. Under ``td`` only the estimate of
    all states is unbiased.

    Assumption: sampling can resume at any token. Degenerate case: where all continuations earn
    the same, only the last segment has an advantage. Cost: K continuations of each distinct state,
    by far the most of a training step.

    Args:
        continuations: K, of each state.
        penalty: what a truncated continuation is worth, in reward units; None = what the verifier
            gave it.
        anchor: the state that a segment's value is of, see ``Segmentation.anchors``.
        max_states: most states of a completion that are continued; None = all.
        choose: which, where there are more: the ``first``, or evenly spread over the segments
            (``even``), the first always among them.
        rest: what the other states are worth, as above.
        share: continue a state once for all rows that share it: the prompt, from which a whole
            group starts, and the inner nodes of a tree of rollouts. Each value has the same
            expectation and variance for less sampling; but the rows' errors become one, which no
            longer averages out over them.

    Source:
        VinePPO, Kazemnejad et al. 2024, arXiv 2410.01679 (K = 9); SPO-chain, Guo et al. 2025,
        arXiv 2505.23564, over other segments. Differences: VinePPO's code caps at the first states
        with the fill ``return`` (N of its ``max_step_for_value_estimation`` are N + 1 states),
        continues a group's prompt once a row (``share=False``), and samples continuations with a
        temperature and top-p of their own.
    """

    continuations: Annotated[int, Le(10**5)] = 9
    penalty: Annotated[float, Interval(ge=-1e6, le=1e6)] | None = 0.0
    anchor: Anchor = "start"
    max_states: Annotated[int, Le(10**9)] | None = None
    choose: Literal["first", "even"] = "even"
    rest: Literal["interpolate", "hold", "return"] = "interpolate"
    share: bool = True

    def __post_init__(self) -> None:
        for name, value in (("continuations", self.continuations), ("max_states", self.max_states)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number of at least 1.")

    @property
    def needs(self) -> tuple[type, ...]:
        """The capability to continue from a segment's anchor."""
        return (SupportsResume,)

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) mean rewards of continuations, and what fills the states between."""
        chosen_BS = self._chosen(segmentation)
        # The chosen states in reading order: the row and the position of each.
        rows_N = chosen_BS.nonzero()[:, 0]
        positions_N = segmentation.anchors(self.anchor)[chosen_BS]
        values_BS = torch.zeros_like(chosen_BS, dtype=rollouts.token_rewards.dtype)
        if len(rows_N):
            values_BS[chosen_BS] = self._continued(rollouts, rows_N, positions_N, simulator)
        if self.max_states is None:
            return values_BS
        filled_BS = self._filled(values_BS, chosen_BS, rollouts, segmentation)
        return torch.where(chosen_BS, values_BS, filled_BS).masked_fill(~segmentation.mask, 0)

    def _chosen(self, segmentation: Segmentation) -> Tensor:
        """Marks (B,S) the states that are continued: min(max_states, count) of each row."""
        if self.max_states is None:
            return segmentation.mask
        places_S = torch.arange(segmentation.width, device=segmentation.counts.device)
        if self.choose == "first":
            return segmentation.mask & (places_S < self.max_states)
        counts_B1 = segmentation.counts.clamp(min=1)[:, None]
        wanted_B1 = counts_B1.clamp(max=self.max_states)
        # The segments ⌊i count / wanted⌋, i = 0..wanted−1, in whole numbers.
        return segmentation.mask & (-places_S * wanted_B1 % counts_B1 < wanted_B1)

    def _continued(
        self, rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor, simulator: Simulator
    ) -> Tensor:
        """Returns (N,) mean rewards, each distinct state continued once if shared."""
        if not self.share:
            return self._sampled(rollouts, rows_N, positions_N, simulator)
        states_2N = _states(rollouts, rows_N, positions_N)
        owner_N = cast(Tensor, torch.unique(states_2N, dim=1, return_inverse=True)[1])  # pyright: ignore[reportUnknownMemberType]
        # Any row that holds the state can stand for it; the first one does.
        order_N = torch.arange(len(rows_N), device=rows_N.device)
        first_N = torch.full_like(order_N, len(rows_N))
        first_N = first_N.scatter_reduce(0, owner_N, order_N, "amin")
        first_M = first_N[first_N < len(rows_N)]
        means_M = self._sampled(rollouts, rows_N[first_M], positions_N[first_M], simulator)
        return means_M[owner_N]

    def _sampled(
        self, rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor, simulator: Simulator
    ) -> Tensor:
        """Returns (N,) mean rewards of K continuations a state."""
        outcomes = simulator.resume(rollouts, rows_N, positions_N, self.continuations)
        rewards_NK = outcomes.rewards.to(rollouts.token_rewards)
        if self.penalty is not None:
            rewards_NK = rewards_NK.masked_fill(outcomes.truncated, self.penalty)
        return rewards_NK.mean(1)

    def _filled(
        self,
        values_BS: Tensor,
        chosen_BS: Tensor,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
    ) -> Tensor:
        """Returns (B,S) the values of the states that were not continued."""
        if self.rest == "return":
            rewards_BS = segmentation.reduce(rollouts.token_rewards, "sum")
            return rewards_BS.flip(1).cumsum(1).flip(1)
        places_S = torch.arange(segmentation.width, device=chosen_BS.device)
        places_BS = places_S.expand_as(chosen_BS)
        before_BS = places_BS.masked_fill(~chosen_BS, 0).cummax(1).values
        held_BS = values_BS.gather(1, before_BS)
        if self.rest == "hold":
            return held_BS
        # Behind the last state there is one more, the end, worth what was earned there.
        ends_BS = torch.minimum(_following(places_BS, chosen_BS), segmentation.counts[:, None])
        rewards_B1 = rollouts.rewards.to(values_BS)[:, None]
        met_BS = torch.where(
            ends_BS < segmentation.counts[:, None],
            values_BS.gather(1, ends_BS.clamp(max=segmentation.width - 1)),
            rewards_B1,
        )
        share_BS = (places_BS - before_BS) / (ends_BS - before_BS).clamp(min=1).to(values_BS.dtype)
        return held_BS + share_BS * (met_BS - held_BS)


def _states(rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor) -> Tensor:
    """Returns (2,N) ids of states: the node of the token before, or else the prompt's group."""
    inside_N = positions_N > 0
    nodes_N = rollouts.node_ids[rows_N, (positions_N - 1).clamp(min=0)]
    return torch.stack([inside_N.long(), torch.where(inside_N, nodes_N, rollouts.group[rows_N])])


def _following(places_BS: Tensor, chosen_BS: Tensor) -> Tensor:
    """Returns (B,S) the first chosen segment from each one on; the width where there is none."""
    later_BS = places_BS.masked_fill(~chosen_BS, places_BS.shape[1])
    return later_BS.flip(1).cummin(1).values.flip(1)
