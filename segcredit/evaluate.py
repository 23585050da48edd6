"""Accuracy on held-out prompts, sampled at the training temperature and greedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch

from segcredit.completions import complete
from segcredit.processes import ALONE, Processes
from segcredit.protocols import Policy, Prompt, Task, Verdict


def evaluate(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """One sampled and one greedy completion of every prompt.

    Args:
        policy: samples.
        task: verifies.
        prompts: held out.
        max_new_tokens: limit of a completion.
        generator: this process's own.
        processes: those that share the prompts out; each returns the figures of all.

    Returns:
        ``accuracy`` and ``faithful`` (share of completions whose every step is true; NaN where
        the task cannot tell) of the sampled ones, ``accuracy_greedy``; all in [0,1].
    """
    own = processes.share(prompts)

    def verdicts(greedy: bool) -> tuple[Verdict, ...]:
        if not own:
            return ()
        return complete(
            policy,
            task,
            own,
            max_new_tokens=max_new_tokens,
            greedy=greedy,
            generator=generator,
        ).verdicts

    with processes.together():
        found = verdicts(False), verdicts(True)
    shares = processes.gather(found)
    sampled, greedy = (tuple(chain.from_iterable(part)) for part in zip(*shares, strict=True))
    told = [verdict.faithful for verdict in sampled if verdict.faithful is not None]
    return {
        "accuracy": _mean([verdict.correct for verdict in sampled]),
        "accuracy_greedy": _mean([verdict.correct for verdict in greedy]),
        "faithful": _mean(told),
    }


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan
