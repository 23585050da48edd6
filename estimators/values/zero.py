"""No baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcredit import RolloutBatch, Segmentation, Simulator, ValueEstimator


@dataclass(frozen=True, slots=True)
class Zero(ValueEstimator):
    """V = 0 everywhere: the advantage is the return.

    Unbiased with every segmentation, and the variance that baselines are there to reduce.

    Source:
        REINFORCE, Williams 1992, without a baseline.
    """

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) zeros."""
        return torch.zeros_like(segmentation.mask, dtype=rollouts.rewards.dtype)
