"""Accuracy on held-out prompts, sampled at the training temperature and greedy.

In two steps, so that several processes can each judge a share of the prompts: ``judge`` gives
verdicts, ``metrics`` computes accuracy, pass@k and maj@k of the verdicts of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch

from segcredit.episodes import complete
from segcredit.protocols import Policy, Prompt, Task
from segcredit.training.distributed.processes import ALONE, Processes
from segcredit.training.pass_at_k import maj_at_k, pass_at_k, powers_of_two
from segcredit.types import SamplingParams


class Judged(NamedTuple):
    """One completion of a held-out prompt and the task's verdict on it, in plain values."""

    prompt: str
    """The prompt's key."""
    completion: int
    """Number of the completion among the prompt's sampled ones; -1 for the greedy one."""
    correct: bool
    process_correct: bool | None
    answer: str | None
    reward: float
    truncated: bool
    tokens: int
    text: str

    @property
    def greedy(self) -> bool:
        """True where every token is the likeliest one."""
        return self.completion == GREEDY


GREEDY = -1


def evaluate(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    stop: tuple[str, ...] = (),
    completions: int = 1,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Samples completions of every prompt, and a greedy one, and computes their metrics.

    Args:
        policy: samples.
        task: verifies.
        prompts: held out.
        max_new_tokens: limit of a completion.
        generator: this process's own.
        stop: strings that end a completion.
        completions: sampled of each prompt.
        processes: those that share the prompts out; each returns the metrics of all.

    Returns:
        See ``metrics``.

    Raises:
        TaskError: the verifier raised; says on which prompt and completion.
        TrainingError: another process failed; gives its sentence.
    """
    judged: list[Judged] = []
    with processes.error_barrier():
        if own := processes.share(prompts):
            judged = judge(
                policy,
                task,
                own,
                max_new_tokens=max_new_tokens,
                stop=stop,
                generator=generator,
                completions=completions,
            )
    return metrics(chain.from_iterable(processes.gather(judged)))


def judge(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    stop: tuple[str, ...] = (),
    completions: int = 1,
) -> list[Judged]:
    """Judges ``completions`` sampled completions of every prompt, and a greedy one.

    As many rows are sampled at a time as there are prompts.

    Raises:
        TaskError: the verifier raised; says on which prompt and completion.
    """
    judged: list[Judged] = []
    params = SamplingParams(max_new_tokens=max_new_tokens, stop=stop)
    for number in (*range(completions), GREEDY):
        found = complete(
            policy,
            task,
            prompts,
            params=replace(params, greedy=number == GREEDY),
            generator=generator,
        )
        told = zip(found.verdicts, found.texts, _plain(found.truncated), strict=True)
        judged += [
            Judged(
                prompt=prompt.key,
                completion=number,
                correct=verdict.correct,
                process_correct=verdict.process_correct,
                answer=verdict.answer,
                reward=verdict.reward,
                truncated=bool(truncated),
                tokens=tokens,
                text=text,
            )
            for prompt, tokens, (verdict, text, truncated) in zip(
                prompts, _plain(found.mask.sum(1)), told, strict=True
            )
        ]
    return judged


def metrics(judged: Iterable[Judged]) -> dict[str, float]:
    """Computes the mean over prompts of each metric of ``by_prompt``; NaN where none is known."""
    return {name: mean(values) for name, values in by_prompt(judged).items()}


def by_prompt(judged: Iterable[Judged], ks: Sequence[int] | None = None) -> dict[str, list[float]]:
    """Computes the metrics of each prompt, in the order in which the prompts come.

    Args:
        judged: with as many sampled completions of each prompt.
        ks: of pass@k; None = the powers of two from 2 up to the number of completions.

    Returns:
        ``accuracy`` (share of right completions), ``accuracy_greedy``, ``process_correct`` (share
        of completions whose every step is true; NaN where the task cannot tell); where there are
        several completions of a prompt also ``pass_at_K`` for each k, and ``majority`` (maj@k of
        all its completions; NaN where the task does not tell answers). All in [0,1].

    Raises:
        ShapeError: a k is larger than the number of completions.
    """
    sampled: dict[str, list[Judged]] = {}
    greedy: dict[str, bool] = {}
    for one in judged:
        rows = sampled.setdefault(one.prompt, [])
        if one.greedy:
            greedy[one.prompt] = one.correct
        else:
            rows.append(one)
    groups = list(sampled.values())
    found = {
        "accuracy": [mean([one.correct for one in group]) for group in groups],
        "accuracy_greedy": [float(greedy.get(prompt, math.nan)) for prompt in sampled],
        "process_correct": [
            mean([math.nan if x.process_correct is None else x.process_correct for x in g])
            for g in groups
        ],
    }
    most = min(map(len, groups), default=0)
    for k in powers_of_two(most)[1:] if ks is None else ks:
        found[f"pass_at_{k}"] = [_pass_at_k(group, k) for group in groups]
    if most > 1:
        found["majority"] = [_maj_at_k(group) for group in groups]
    return found


def mean(values: Iterable[float]) -> float:
    """Computes the mean of the values that are not NaN; NaN where all are."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _pass_at_k(group: Sequence[Judged], k: int) -> float:
    return pass_at_k(len(group), sum(one.correct for one in group), k)


def _maj_at_k(group: Sequence[Judged]) -> float:
    answers = [one.answer for one in group if one.answer is not None]
    if len(answers) < len(group):  # the task tells no answers
        return math.nan
    return maj_at_k(answers, [one.correct for one in group])


def _plain(x: torch.Tensor) -> list[int]:
    return x.cpu().numpy().tolist()
