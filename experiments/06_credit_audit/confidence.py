"""A critic that reads the policy's confidence alone, beside one that reads states and tokens.

Used by sharpening.toml; the command is in the README.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import segcredit
from segcredit import (
    Policy,
    Reading,
    RolloutBatch,
    Segmentation,
    SegmentValues,
    Simulator,
    TokenScores,
    ValueEstimator,
    lambda_returns,
)


class Network(nn.Module):
    """A GRU over what is known before each token, and a small network on its states."""

    def __init__(self, hidden_size: int, *, confident: bool) -> None:
        super().__init__()
        self.confident = confident
        self.norm, self.token = nn.LayerNorm(hidden_size), nn.Embedding(64, 16)
        self.gru = nn.GRU(2 if confident else 16 + hidden_size, 48, batch_first=True)
        self.mid, self.output = nn.Linear(48, 48), nn.Linear(48, 1)
        nn.init.zeros_(self.output.weight)

    def forward(self, rollouts: RolloutBatch, hidden_BTH: Tensor) -> Tensor:
        """Returns (B,T) the value before each token, in (0, 1)."""
        if self.confident:
            past_BT = rollouts.logprobs.clamp(min=-5) * rollouts.action_mask
            past_BT = nn.functional.pad(past_BT, (1, 0))[:, :-1]
            features = torch.stack([past_BT, rollouts.entropies], -1)
        else:
            ids_BT = nn.functional.pad(rollouts.completion_ids.clamp(max=63), (1, 0))[:, :-1]
            features = torch.cat([self.token(ids_BT), self.norm(hidden_BTH.detach())], -1)
        states = self.gru(features)[0]
        return torch.sigmoid(self.output(torch.relu(self.mid(states)))[..., 0])


@segcredit.register.estimator("gru")
@dataclass(frozen=True, slots=True)
class Gru(ValueEstimator):
    """V by cross-entropy with the completion's reward, which is 0 or 1, at every anchor.

    Args:
        features: ``confidence``, the log-prob of the token before and the entropy at this one;
            ``states``, the token before and the policy's hidden state.
    """

    features: Literal["confidence", "states"]

    @property
    def reads(self) -> frozenset[Reading]:
        """Log-probs and entropies of the current policy, or its hidden states."""
        return frozenset({"logprobs" if self.features == "confidence" else "hidden"})

    def start(self, policy: Policy) -> nn.Module:
        """Builds the network."""
        return Network(policy.hidden_size, confident=self.features == "confidence")

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the value at each segment's first token."""
        return segmentation.reduce(state(rollouts, simulator.score(rollouts).hidden), "first")

    def targets(self, values: SegmentValues) -> Tensor:
        """Computes (B,S) what the completion earned from each segment on."""
        return lambda_returns(values, gamma=1.0, lam=1.0)

    def loss(
        self,
        state: nn.Module,
        minibatch: RolloutBatch,
        segmentation: Segmentation,
        scores: TokenScores,
        values: SegmentValues,
        targets_BS: Tensor,
    ) -> Tensor:
        """Computes (B,S) the cross-entropy."""
        found_BS = segmentation.reduce(state(minibatch, scores.hidden), "first").clamp(1e-4, 0.9999)
        return -(targets_BS * found_BS.log() + (1 - targets_BS) * (1 - found_BS).log())
