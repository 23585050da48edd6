"""A learned value function, trained and read at segment boundaries only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from segcredit import (
    Anchor,
    Clock,
    Policy,
    RolloutBatch,
    Segmentation,
    SegmentValues,
    Simulator,
    SupportsBackbone,
    TokenScores,
    ValueEstimator,
    capability,
    lambda_returns,
)


class BackboneCritic(nn.Module):
    """A copy of the policy's backbone with a linear output that begins at 0."""

    def __init__(self, policy: SupportsBackbone) -> None:
        super().__init__()
        self.backbone = policy.backbone()
        self.output = _zero_output(policy.hidden_size)

    def forward(self, rollouts: RolloutBatch, scores: TokenScores | None) -> Tensor:
        """Returns (B,T) the value before each token."""
        # A view could be changed in place, which FSDP2 warns of.
        return self.output(self.backbone(rollouts)).squeeze(-1).clone()


class HeadCritic(nn.Module):
    """A small network on the policy's own hidden states; no gradient reaches the policy."""

    def __init__(self, policy: Policy, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(policy.hidden_size)
        self.hidden = nn.Linear(policy.hidden_size, width)
        self.output = _zero_output(width)

    def forward(self, rollouts: RolloutBatch, scores: TokenScores) -> Tensor:
        """Returns (B,T) the value before each token."""
        states_BTH = self.norm(scores.hidden.detach().to(self.output.weight.dtype))
        return self.output(torch.relu(self.hidden(states_BTH))).squeeze(-1)


def _zero_output(width: int) -> nn.Linear:
    output = nn.Linear(width, 1)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return output


@dataclass(frozen=True, slots=True)
class Critic(ValueEstimator):
    """V from a network, regressed on lambda-returns at the segments' anchors.

    loss = (V_m − G_m)², or with ``value_clip`` c the larger of it and
    (V_old + clip(V − V_old, ±c) − G_m)². Not halved.

    Assumption: outcomes can be foretold from a prefix. Degenerate case: an untrained critic is 0
    everywhere, and the method is REINFORCE without a baseline. Cost: ``backbone`` doubles the
    training cost, ``head`` adds next to nothing.

    Args:
        network: ``backbone``, a copy of the policy's network under its output layer (``trunk`` is
            an older name of it), or ``head``, a small network on the policy's detached hidden
            states.
        width: hidden units of ``head``.
        gamma, lam, clock: of the regression targets, see ``segcredit.lambda_returns``. Other
            than the advantage's, they decouple the two (VC-PPO, arXiv 2503.01491).
        anchor: the state that a segment's value is of, see ``Segmentation.anchors``.
        value_clip: how far from the sampled value the clipped loss follows; None = no clipping.

    Source:
        SAPO, arXiv 2605.01327, section 4.1 and eq. 10: boundaries only, no clipping. Clipping:
        PPO's reference code, Schulman et al. 2017, arXiv 1707.06347.
    """

    network: Literal["backbone", "head", "trunk"] = "backbone"
    width: Annotated[int, Interval(ge=1, le=10**5)] = 128
    gamma: Annotated[float, Interval(ge=0, le=1)] = 1.0
    lam: Annotated[float, Interval(ge=0, le=1)] = 1.0
    clock: Clock = "segment"
    anchor: Anchor = "start"
    value_clip: Annotated[float, Interval(gt=0, le=1e9)] | None = None

    @property
    def needs(self) -> tuple[type, ...]:
        """The capability to copy the backbone, unless the critic is a head."""
        return () if self.network == "head" else (SupportsBackbone,)

    def start(self, policy: Policy) -> nn.Module:
        """Builds the network, its output 0."""
        if self.network == "head":
            return HeadCritic(policy, self.width)
        return BackboneCritic(capability(policy, SupportsBackbone, "a critic"))

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the network's value at each anchor."""
        # The backbone reads tokens; only the head needs the policy's states, a pass of its own.
        scores = simulator.score(rollouts) if self.network == "head" else None
        return self._values(state, rollouts, segmentation, scores)

    def targets(self, values: SegmentValues) -> Tensor:
        """Computes (B,S) lambda-returns with the critic's own lambda."""
        return lambda_returns(values, gamma=self.gamma, lam=self.lam, clock=self.clock)

    def loss(
        self,
        state: nn.Module,
        minibatch: RolloutBatch,
        segmentation: Segmentation,
        scores: TokenScores,
        values: SegmentValues,
        targets_BS: Tensor,
    ) -> Tensor:
        """Computes (B,S) the squared error of each segment's value, clipped if asked."""
        values_BS = self._values(state, minibatch, segmentation, scores)
        errors_BS = (values_BS - targets_BS).square()
        if self.value_clip is None:
            return errors_BS
        moved_BS = (values_BS - values.values).clamp(-self.value_clip, self.value_clip)
        return torch.maximum(errors_BS, (values.values + moved_BS - targets_BS).square())

    def _values(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        scores: TokenScores | None,
    ) -> Tensor:
        values_BT = state(rollouts, scores)
        anchors_BS = segmentation.anchors(self.anchor)
        return values_BT.gather(1, anchors_BS).masked_fill(~segmentation.mask, 0)
