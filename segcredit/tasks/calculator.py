"""Works out chains of sums with a calculator, which has to be called step by step.

Each turn is a line here, with what it is answered:

    12+30-17:
    ?12+30.  42;
    ?42-17.  25;
    =25.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass, replace

from segcredit.environments import turns_of
from segcredit.errors import TaskError
from segcredit.protocols import Environment, Prompt, Transition, Verdict
from segcredit.tasks.data.drawn_problems import DrawnProblems

_SPARE = 2
"""Turns beyond those that are needed."""
_LONGEST = 6
"""Digits of the longest number that the calculator takes."""
_NUMBER = rf"-?\d{{1,{_LONGEST}}}"
_CALL = re.compile(rf"\?({_NUMBER})([+-])(\d{{1,{_LONGEST}}})\.", re.ASCII)
_ANSWER = re.compile(rf"=({_NUMBER})\.", re.ASCII)
_STEP = re.compile(r"([+-])(\d+)")


@dataclass(frozen=True, slots=True)
class Calculator(DrawnProblems):
    """Chains of additions and subtractions whose results a calculator gives.

    The turn ``?12+30.`` is answered ``42;``, ``=25.`` answers and ends the episode, and anything
    else is answered ``x;``. What is to be learned is to copy: the next call begins with the result
    of the last. ``process_correct`` tells answers that the chain's own calls led to.

    The tutor calls for a sum where a difference is due with ``tutor_bug``. Above one half that is
    the likeliest after imitation, so that learning has to turn a mode over. In each turn it
    writes one digit wrong with ``tutor_error``, and goes on from what it is answered.

    One prompt in ten, by a checksum of its expression, is for evaluation and never for training.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    min_steps: int = 2
    """Operations of the shortest chain; the number of them is drawn uniformly."""
    max_steps: int = 3
    """Operations of the longest chain, at most 20; an episode has two turns to spare."""
    digits: int = 2
    """Digits of the numbers in prompts, at most 4."""
    tutor_error: float = 0.04
    """Probability a turn of a wrong digit."""
    tutor_bug: float = 0.55
    """Probability a subtraction that it is made an addition."""

    def __post_init__(self) -> None:
        ranges = {
            "min_steps": (self.min_steps, 1, self.max_steps),
            "max_steps": (self.max_steps, 1, 20),
            "digits": (self.digits, 1, 4),
            "tutor_error": (self.tutor_error, 0, 1),
            "tutor_bug": (self.tutor_bug, 0, 1),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise TaskError(
                    f"task.{name} of the calculator task is {found}; expected a number from {low}"
                    f" to {high}. Check it against the task's other options."
                )

    def environment(self) -> Environment:
        """Returns the calculator."""
        return _Calls(self.max_steps + 1 + _SPARE, 2 * self.digits + 6)

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to the true answer in the last turn of a text."""
        said = _ANSWER.fullmatch(turns_of(text, (".",))[-1])
        correct = not truncated and said is not None and said[1] == str(prompt.answer[-1][-1])
        return Verdict(float(correct), correct, answer="" if said is None else said[1])

    def alphabet(self) -> str:
        """Returns the digits, the operators, and the marks of prompts, turns and observations."""
        return "0123456789+-:?=.;x"

    def draw(self, chance: random.Random) -> str:
        """Draws an expression."""
        steps = chance.randint(self.min_steps, self.max_steps)
        numbers = [str(chance.randint(1, 10**self.digits - 1)) for _ in range(steps + 1)]
        return numbers[0] + "".join(chance.choice("+-") + number for number in numbers[1:])

    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of an expression; its answer is each call that is due and its result."""
        calls: list[tuple[str, int]] = []
        first, steps = _parsed(problem)
        for sign, number in steps:
            value = calls[-1][1] if calls else first
            calls.append((f"{value}{sign}{number}", _result(value, sign, number)))
        return Prompt(key=problem, text=f"{problem}:", answer=tuple(calls))

    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns turns that end with an answer, consistent with their own mistakes."""
        value, steps = _parsed(problem)
        turns = ""
        for sign, number in steps:
            if sign == "-" and chance.random() < self.tutor_bug:
                sign = "+"
            value = self._written(value, chance)
            turns += f"?{value}{sign}{number}."
            value = _result(value, sign, number)
        return f"{turns}={self._written(value, chance)}."

    def _written(self, value: int, chance: random.Random) -> int:
        """Returns the number that the tutor writes where it means another."""
        if chance.random() >= self.tutor_error:
            return value
        digits = str(abs(value))
        place = chance.randrange(len(digits))
        wrong = int(digits[:place] + chance.choice("0123456789") + digits[place + 1 :])
        return wrong if value >= 0 else -wrong


@dataclass(frozen=True, slots=True)
class _Called:
    """The calls so far."""

    due: tuple[tuple[str, int], ...]
    """Each call of the chain and its result."""
    calls: tuple[str, ...] = ()
    """The calls that were made, in order."""
    result: str = ""
    """The last result."""
    astray: bool = False
    """True once a turn was neither call nor answer."""


@dataclass(frozen=True, slots=True)
class _Calls(Environment):
    """Answers calls until an answer comes."""

    turns: int
    tokens: int

    @property
    def max_turns(self) -> int:
        """The calls of the longest chain, the answer, and what is to spare."""
        return self.turns

    @property
    def stop(self) -> tuple[str, ...]:
        """The full stop."""
        return (".",)

    @property
    def turn_tokens(self) -> int:
        """The characters of a call of the longest numbers that come in the chains."""
        return self.tokens

    def start(self, prompt: Prompt) -> tuple[_Called, str]:
        """Returns the chain, with nothing called."""
        return _Called(prompt.answer), ""

    def step(self, state: _Called, text: str) -> Transition:
        """Answers a call by its result; an answer ends the episode."""
        if said := _ANSWER.fullmatch(text):
            correct = said[1] == str(state.due[-1][1])
            needed = state.calls == tuple(call for call, _ in state.due) and not state.astray
            return Transition(
                state=state,
                reward=float(correct),
                done=True,
                correct=correct,
                process_correct=correct and needed,
                answer=said[1],
            )
        if call := _CALL.fullmatch(text):
            result = str(_result(int(call[1]), call[2], int(call[3])))
            state = replace(state, calls=(*state.calls, text[1:-1]), result=result)
        else:
            state = replace(state, astray=True)
        return Transition(
            state=state,
            observation=f"{state.result if call else 'x'};",
            anchor=f"{','.join(sorted({*state.calls}))}>{state.result}",
        )


def _parsed(expression: str) -> tuple[int, list[tuple[str, int]]]:
    """Returns the first number of an expression, and its operations."""
    first = "".join(itertools.takewhile(str.isdigit, expression))
    found = _STEP.findall(expression[len(first) :])
    return int(first), [(sign, int(number)) for sign, number in found]


def _result(value: int, sign: str, number: int) -> int:
    return value + number if sign == "+" else value - number
