"""The exact truth of the toy policy, by enumeration: what measured ones are held against."""

from __future__ import annotations

import torch

from segcredit.credit_audit.truth.valued_completions import ValuedCompletions
from segcredit.protocols import Prompt
from segcredit.testing.toy import ToySimulator
from segcredit.types import RolloutBatch


def exact_truth(
    simulator: ToySimulator, rollouts: RolloutBatch, *, splits: int = 2
) -> ValuedCompletions:
    """Computes the values of the toy policy's completions, in the form of measured ones.

    Args:
        simulator: of the policy; its rewards are those of ``rollouts``.
        rollouts: whole completions, as ``simulator.sample`` gives them.
        splits: how often the same values are repeated.

    Returns:
        Equal splits, errors of 0, no continuations. Prompts are the different keys of
        ``rollouts``, in the order of their first completions.
    """
    rows, width = rollouts.completion_ids.shape
    before_BT = simulator.values(rollouts.replace(logprobs=rollouts.logprobs.double()))
    values_BE = torch.cat([before_BT, rollouts.rewards.double()[:, None]], 1)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(rollouts.prompt_keys))}
    return ValuedCompletions(
        rollouts=rollouts,
        prompts=[Prompt(key=key, text=key, answer=None) for key in numbers],
        prompt_numbers=torch.tensor([numbers[key] for key in rollouts.prompt_keys]).long(),
        values=values_BE[:, None].repeat(1, splits, 1),
        errors=torch.zeros(rows, splits, width + 1, dtype=torch.float64),
        jump_errors=torch.zeros(rows, splits, width, dtype=torch.float64),
        counts=torch.zeros(rows, splits, width, dtype=torch.long),
        tokens=0,
        logit_gradients=simulator.policy.logit_gradients(rollouts, micro_tokens=rows * width),
    )
