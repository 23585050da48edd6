"""Problems that are drawn rather than read, their held-out tenth, and a tutor who works them out.

A problem is a text that names it, its prompt's key: what is drawn, split by checksum and taught.
"""

from __future__ import annotations

import functools
import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Task
from segcredit.rng import python_random
from segcredit.tasks.data.prompt_streams import is_held_out

_PATIENCE = 5000
"""Draws without a new evaluation prompt after which there are taken to be no more."""


class DrawnProblems(Task):
    """A task of endless drawn problems, of which a tenth is for evaluation and never for training.

    A subclass writes ``draw``, ``prompt`` and ``tutor``, besides ``verify`` and ``alphabet``.
    """

    __slots__ = ()

    @abstractmethod
    def draw(self, chance: random.Random) -> str:
        """Draws a problem, of either side of the split."""
        ...

    @abstractmethod
    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of a problem, whose key is the problem."""
        ...

    @abstractmethod
    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns a completion to imitate, which may be wrong."""
        ...

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training prompts, independently of each other."""
        problems = self._problems(python_random(generator), evaluation=False)
        return [self.prompt(next(problems)) for _ in range(count)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the first ``count`` of one fixed list of held-out prompts, all different.

        Raises:
            TaskError: the options allow fewer of them.
        """
        return list(_evaluation(self, count))

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        """Draws training prompts with completions by an imperfect tutor."""
        chance = python_random(generator)
        problems = self._problems(chance, evaluation=False)
        drawn = [next(problems) for _ in range(count)]
        return [(self.prompt(problem), self.tutor(problem, chance)) for problem in drawn]

    def _problems(self, chance: random.Random, *, evaluation: bool) -> Iterator[str]:
        """Yields endless problems of one side of the split."""
        while True:
            problem = self.draw(chance)
            if is_held_out(problem) == evaluation:
                yield problem


@functools.lru_cache(maxsize=8)
def _evaluation(task: DrawnProblems, count: int) -> tuple[Prompt, ...]:
    """Returns the held-out prompts; cached, since every evaluation asks for the same list."""
    problems = task._problems(random.Random(0), evaluation=True)  # pyright: ignore[reportPrivateUsage]
    found: dict[str, None] = {}
    misses = 0
    while len(found) < count:
        before = len(found)
        found[next(problems)] = None
        misses = misses + 1 if len(found) == before else 0
        if misses > _PATIENCE:
            raise TaskError(
                f"the {type(task).__name__.lower()} task has about {len(found)} different"
                f" evaluation prompts; {count} were asked for. Lower the number of evaluation"
                " prompts, or set the task's options to longer problems."
            )
    return tuple(map(task.prompt, found))
