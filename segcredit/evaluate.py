"""Accuracy on held-out prompts, sampled at the training temperature and greedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from segcredit.completions import complete
from segcredit.protocols import Policy, Prompt, Task, Verdict


def evaluate(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """One sampled and one greedy completion of every prompt.

    Returns:
        ``accuracy`` and ``faithful`` (share of completions whose every step is true; NaN where
        the task cannot tell) of the sampled ones, ``accuracy_greedy``; all in [0,1].
    """

    def verdicts(greedy: bool) -> tuple[Verdict, ...]:
        return complete(
            policy,
            task,
            prompts,
            max_new_tokens=max_new_tokens,
            greedy=greedy,
            generator=generator,
        ).verdicts

    sampled, greedy = verdicts(False), verdicts(True)
    told = [verdict.faithful for verdict in sampled if verdict.faithful is not None]
    return {
        "accuracy": _mean([verdict.correct for verdict in sampled]),
        "accuracy_greedy": _mean([verdict.correct for verdict in greedy]),
        "faithful": _mean(told),
    }


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan
