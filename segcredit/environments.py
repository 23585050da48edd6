"""Tools round an environment: a task put into it, observations cut, episodes played."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segcredit.protocols import (
    Environment,
    Prompt,
    PromptStream,
    Task,
    Transition,
    Verdict,
    asked,
    judged,
    opened,
)


@dataclass(frozen=True, slots=True)
class InEnvironment(Task):
    """Another task, its completions made in an environment that is not its own.

    Prompts, demonstrations and data are the inner task's, and so is the verdict on an episode
    whose environment leaves it to the task.
    """

    inner: Task
    within: Environment
    """The environment that the inner task's prompts are worked on in."""

    def environment(self) -> Environment:
        """Returns the environment."""
        return self.within

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns the inner task's training prompts."""
        return self.inner.prompts(count, generator)

    def stream(self, seed: int) -> PromptStream:
        """Returns the inner task's stream."""
        return self.inner.stream(seed)

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the inner task's held-out prompts."""
        return self.inner.evaluation(count)

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Returns the inner task's verdict; a fault of it names that task."""
        return judged(self.inner, prompt, text, truncated)

    def judges(self) -> int:
        """Returns how many completions the inner task verifies at once."""
        return self.inner.judges()

    def data_files(self) -> Sequence[Path]:
        """Returns those of the inner task."""
        return self.inner.data_files()

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        """Returns the inner task's demonstrations."""
        return self.inner.demonstrations(count, generator)

    def alphabet(self) -> str:
        """Returns the inner task's characters."""
        return self.inner.alphabet()


@dataclass(frozen=True, slots=True)
class LimitedObservations(Environment):
    """Another environment, its longer observations cut."""

    inner: Environment
    limit: int
    """Characters that are left of an observation, before the mark of the cut."""

    @property
    def max_turns(self) -> int:
        """The inner environment's limit of turns."""
        return self.inner.max_turns

    @property
    def stop(self) -> tuple[str, ...]:
        """The inner environment's strings that end a turn."""
        return self.inner.stop

    @property
    def turn_tokens(self) -> int | None:
        """The inner environment's limit of the tokens of a turn."""
        return self.inner.turn_tokens

    @property
    def workers(self) -> int:
        """Number of steps that the inner environment bears at once."""
        return self.inner.workers

    def start(self, prompt: Prompt) -> tuple[Any, str]:
        """Returns the inner environment's first state and text."""
        return opened(self.inner, prompt)

    def step(self, state: Any, text: str) -> Transition:
        """Returns the inner environment's answer, its observation cut."""
        answer = asked(self.inner, state, text)
        return dataclasses.replace(
            answer, observation=cut_observation(answer.observation, self.limit)
        )


def cut_observation(text: str, limit: int) -> str:
    """Returns at most ``limit`` characters of an observation, and a mark where it was cut."""
    cut = len(text) - limit
    return f"{text[:limit]} ... [{cut:,} characters cut]" if cut > 0 else text


def turns_of(text: str, stop: Sequence[str]) -> list[str]:
    """Returns the turns of a demonstration: each ends with a stop string, but perhaps the last."""
    if not stop:
        return [text]
    ends = [each.end() for each in re.finditer("|".join(map(re.escape, stop)), text)]
    pieces = [text[i:j] for i, j in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece] or [""]


def played(environment: Environment, prompt: Prompt, turns: Sequence[str]) -> Iterator[Transition]:
    """Yields an environment's answers to turns one after the other, until the episode ends.

    Raises:
        TaskError: as ``opened`` and ``asked``.
    """
    state, _ = opened(environment, prompt)
    for turn in turns[: environment.max_turns]:
        answer = asked(environment, state, turn)
        yield answer
        if answer.done:
            return
        state = answer.state
