"""Chained arithmetic modulo 10, taught by a tutor who makes slips and has one wrong rule.

An expression ``9-3+2`` is worked out a line a step, each restating the value so far:

    9-3=6
    6+2=8
    #8
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Le

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Verdict
from segcredit.tasks.data.drawn_problems import DrawnProblems

_FILLER = "abcdefgh"
_STEP = re.compile(r"([+-])(\d)")
_Step = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Arithmetic(DrawnProblems):
    """Chains of additions and subtractions modulo 10, with a warm start that is wrong on purpose.

    The tutor slips anywhere with ``tutor_error``, and with ``tutor_bug`` is off by one whenever
    a step passes 9 or 0. Above one half the wrong answer is the likeliest one after imitation,
    so that learning has to turn a mode over rather than to sharpen it. A wrong chain ends at the
    right value once in ten times: ``reward`` is 1 for these too, and ``process_correct`` tells them
    apart.

    With the defaults a completion has 27 to 51 tokens, its end token included. One prompt in
    ten, by a checksum of its expression, is for evaluation and never for training.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    min_steps: int = 4
    """Operations of the shortest expression; the number of them is drawn uniformly."""
    max_steps: Annotated[int, Le(1000)] = 8
    max_operand: int = 3
    """Operands are drawn from 1 to this, at most 9; tables beyond 3 take far longer to learn."""
    tutor_error: float = 0.06
    """Probability of a slip a step: half of them a wrong result, a quarter each a wrong operator
    or operand, with which the line itself is then right."""
    tutor_bug: float = 0.55
    """Probability that the result of a step that wraps is off by one, further along its way."""
    filler: bool = False
    """Random letter at the head of each step's line, which decides nothing: uncertain tokens
    that no credit is due to."""

    def __post_init__(self) -> None:
        ranges = {
            "min_steps": (self.min_steps, 1, self.max_steps),
            "max_operand": (self.max_operand, 1, 9),
            "tutor_error": (self.tutor_error, 0, 1),
            "tutor_bug": (self.tutor_bug, 0, 1),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise TaskError(
                    f"task.{name} of the arithmetic task is {found}; expected a number from {low}"
                    f" to {high}. Check it against the task's other options."
                )

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to a text that ends with its one answer line, which states the true value.

        ``process_correct`` is whether the text is the whole true working, letter for letter but for
        the filler.
        """
        *working, last = text.split("\n")
        said = last.removeprefix("#") if last.startswith("#") and not truncated else ""
        correct = not truncated and last == f"#{prompt.answer}" and text.count("#") == 1
        shown = [self._without_filler(line) for line in working]
        process_correct = correct and shown == _working(prompt.key)
        return Verdict(float(correct), correct, process_correct, said)

    def alphabet(self) -> str:
        """Returns the digits, operators and line end, and the filler's letters where it is on."""
        return "0123456789+-=#\n" + (_FILLER if self.filler else "")

    def draw(self, chance: random.Random) -> str:
        """Draws an expression."""
        operands = range(1, self.max_operand + 1)
        steps = [f"{sign}{operand}" for sign in "+-" for operand in operands]
        lengths = range(self.min_steps, self.max_steps + 1)
        start = chance.choice("0123456789")
        return start + "".join(chance.choices(steps, k=chance.choice(lengths)))

    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of an expression; its answer is the true value, a digit."""
        answer = int(problem[0])
        for sign, operand in _steps(problem):
            answer += operand if sign == "+" else -operand
        return Prompt(key=problem, text=f"{problem}=", answer=str(answer % 10))

    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns a completion, consistent with its own mistakes."""
        value = int(problem[0])
        lines: list[str] = []
        for step in _steps(problem):
            (sign, operand), result = self._tutor_step(value, step, chance)
            letter = chance.choice(_FILLER) if self.filler else ""
            lines.append(f"{letter}{value}{sign}{operand}={result}")
            value = result
        return "\n".join([*lines, f"#{value}"])

    def _tutor_step(self, value: int, step: _Step, chance: random.Random) -> tuple[_Step, int]:
        """Returns the step that the tutor writes, and the result."""
        off = 0
        if chance.random() < self.tutor_error:
            step, off = self._slip(step, chance)
        sign, operand = step
        way = 1 if sign == "+" else -1
        exact = value + way * operand
        if not 0 <= exact <= 9 and chance.random() < self.tutor_bug:
            off += way
        return step, (exact + off) % 10

    def _slip(self, step: _Step, chance: random.Random) -> tuple[_Step, int]:
        """Returns a misread step, or the error of its result."""
        sign, operand = step
        others = [other for other in range(1, self.max_operand + 1) if other != operand]
        kind = chance.random()
        if kind < 0.25:
            return ("-" if sign == "+" else "+", operand), 0
        if kind < 0.5 and others:
            return (sign, chance.choice(others)), 0
        return step, chance.choice((-1, 1))

    def _without_filler(self, line: str) -> str:
        return line[1:] if self.filler and line[:1] in _FILLER else line


def _working(expression: str) -> list[str]:
    """Returns the true lines, without the answer's."""
    value = int(expression[0])
    lines: list[str] = []
    for sign, operand in _steps(expression):
        result = (value + (operand if sign == "+" else -operand)) % 10
        lines.append(f"{value}{sign}{operand}={result}")
        value = result
    return lines


def _steps(expression: str) -> list[_Step]:
    return [(sign, int(operand)) for sign, operand in _STEP.findall(expression)]
