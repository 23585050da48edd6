"""The chained arithmetic of ``arithmetic``, with the expression given as an image.

Only the prompt differs: completions, rewards and the wrong tutor are the same, so that what is
measured on text can be measured on images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Le

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.tasks.data.drawing import chance, file_of, glyph, painted

QUESTION = "="


@dataclass(frozen=True, slots=True)
class Picture(Task):
    """Chains of additions and subtractions modulo 10, drawn one symbol a square.

    The squares fill the smallest square image row by row; those that are left over stay blank. A
    prompt's colours and noise are always the same. The text of every prompt is ``=``.

    Assumption: the policy sees squares of ``square`` pixels, or parts of them, so that no symbol
    lies across an edge. Symbols that are shifted take far longer to learn.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    min_steps: int = 6
    """Operations of the shortest expression."""
    max_steps: Annotated[int, Le(1000)] = 6
    """Operations of the longest; up to 7 fit into 4 x 4 squares."""
    max_operand: int = 3
    tutor_error: float = 0.06
    tutor_bug: float = 0.55
    square: Annotated[int, Le(256)] = 16
    """Pixels of a symbol's side."""

    def __post_init__(self) -> None:
        self._chains()
        if self.square < 8:
            raise TaskError(
                f"task.square of the picture task is {self.square}; expected at least 8 pixels,"
                " since a digit cannot be told in less. Leave it at 16 if in doubt."
            )

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training prompts, independently of each other."""
        return [self._drawn(prompt) for prompt in self._chains().prompts(count, generator)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the first ``count`` of one fixed list of held-out prompts, all different."""
        return [self._drawn(prompt) for prompt in self._chains().evaluation(count)]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Judges as ``arithmetic`` does, from the expression, which is the prompt's key."""
        return self._chains().verify(prompt, text, truncated=truncated)

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        """Draws training prompts with completions by an imperfect tutor."""
        pairs = self._chains().demonstrations(count, generator)
        return [(self._drawn(prompt), text) for prompt, text in pairs]

    def alphabet(self) -> str:
        """Returns the digits, operators and line end."""
        return self._chains().alphabet()

    def _chains(self) -> Arithmetic:
        return Arithmetic(
            self.min_steps, self.max_steps, self.max_operand, self.tutor_error, self.tutor_bug
        )

    def _drawn(self, prompt: Prompt) -> Prompt:
        side = math.ceil(math.sqrt(1 + 2 * self.max_steps))
        draws = chance(prompt.key)
        blank = np.zeros((self.square, self.square))
        squares = [
            painted(glyph(prompt.key[n], self.square) if n < len(prompt.key) else blank, draws)
            for n in range(side * side)
        ]
        rows = [np.hstack(squares[n : n + side]) for n in range(0, side * side, side)]
        return replace(prompt, text=QUESTION, images=(file_of(np.vstack(rows), draws),))
