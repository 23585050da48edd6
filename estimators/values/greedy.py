"""The reward of a prompt's greedy completion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segcredit import RolloutBatch, Segmentation, Simulator, ValueEstimator


@dataclass(frozen=True, slots=True)
class Greedy(ValueEstimator):
    """V = the reward of the prompt's greedy completion, the same at every segment.

    Assumption: all states of a prompt are worth what the most likely completion earns. The
    baseline depends on the prompt alone and leaves the expected gradient as it is. Degenerate
    case: a policy whose greedy completion always fails has V = 0, and the method is REINFORCE
    without a baseline. Cost: one more completion for each distinct prompt of the step.

    Source:
        ReMax, Li et al. 2023, arXiv 2310.10505. As in verl, the baseline is the verifier's
        reward, without the KL penalties that a return may hold.
    """

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the reward of the prompt's greedy completion in every column."""
        # Sorted, so that the batch's order changes nothing in what is asked for.
        keys = sorted(set(rollouts.prompt_keys))
        number = {key: place for place, key in enumerate(keys)}
        index_B = torch.tensor([number[key] for key in rollouts.prompt_keys])
        likeliest = replace(simulator.params, greedy=True)
        rewards_P = simulator.sample(keys, 1, params=likeliest).rewards.to(rollouts.rewards)
        return rewards_P[index_B.to(rewards_P.device)][:, None] * segmentation.mask
