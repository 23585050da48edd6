"""Follows pointers between letters, which have to be asked for one by one.

From c three hops are asked for; each turn is a line here, with what it is answered:

    qrtc3:
    ?c.  f;
    ?f.  a;
    ?a.  d;
    =d.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from segcredit.environments import turns_of
from segcredit.errors import TaskError
from segcredit.protocols import Environment, Prompt, Transition, Verdict
from segcredit.tasks.data.drawn_problems import DrawnProblems

_LETTERS = "abcdefgh"
_FREE = "qrstuvwxyz"
_GREETING = 3
"""Free letters of a prompt, which make problems that differ of few starts."""
_SPARE = 2
"""Turns beyond those that are needed."""
_QUERY = re.compile(rf"\?([{_LETTERS}])\.")
_ANSWER = re.compile(rf"=([{_LETTERS}])\.")


@dataclass(frozen=True, slots=True)
class Pointer(DrawnProblems):
    """Chains of pointers through a hidden cycle of eight letters; a turn asks for one.

    The turn ``?c.`` is answered by the letter that c points to, ``=d.`` answers and ends the
    episode, and anything else is answered ``x;``. Every hop has to be asked for: by default a guess
    after one query fewer is right once in five times.

    The tutor answers a hop too early with ``tutor_bug`` from every second letter. Above one half
    that is the likeliest after imitation, so that learning has to turn a mode over. In each turn
    it writes another letter with ``tutor_error``, and goes on from what it is answered.

    The prompt, such as ``qrtc3:``, has three free letters, start and hops; the cycle follows
    from it by a checksum. One in ten, by another, is for evaluation and never for training.

    Source: METHODS_2026.md, section 6 ("pointer chase"), but for the free letters, and for a
    cycle in place of any permutation.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    hops: int = 3
    """Pointers from the start to the answer, at most 7; an episode has two turns to spare."""
    tutor_error: float = 0.04
    """Probability a turn that another letter is asked for, or answered."""
    tutor_bug: float = 0.7
    """Probability of an answer one hop too early, from the letters b, d, f and h."""

    def __post_init__(self) -> None:
        ranges = {
            "hops": (self.hops, 1, len(_LETTERS) - 1),
            "tutor_error": (self.tutor_error, 0, 1),
            "tutor_bug": (self.tutor_bug, 0, 1),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise TaskError(
                    f"task.{name} of the pointer task is {found}; expected a number from {low} to"
                    f" {high}."
                )

    def environment(self) -> Environment:
        """Returns what answers queries."""
        return _Pointers(self.hops)

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to the true answer in the last turn of a text."""
        said = _ANSWER.fullmatch(turns_of(text, (".",))[-1])
        correct = not truncated and said is not None and said[1] == prompt.answer[self.hops]
        return Verdict(float(correct), correct, answer="" if said is None else said[1])

    def alphabet(self) -> str:
        """Returns the letters, the free ones, and the marks of prompts, turns and observations."""
        return f"{_LETTERS}{_FREE}123456789:?=.;"

    def draw(self, chance: random.Random) -> str:
        """Draws free letters and a start."""
        return "".join(chance.choices(_FREE, k=_GREETING)) + chance.choice(_LETTERS)

    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of a problem; its answer is the letters from the start on."""
        start, others = problem[-1], [letter for letter in _LETTERS if letter != problem[-1]]
        random.Random(f"pointer {problem}").shuffle(others)
        return Prompt(key=problem, text=f"{problem}{self.hops}:", answer=start + "".join(others))

    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns turns that end with an answer, consistent with their own mistakes."""
        prompt = self.prompt(problem)
        bugged = _LETTERS.index(problem[-1]) % 2 and chance.random() < self.tutor_bug
        at, turns = problem[-1], ""
        for _ in range(self.hops - bool(bugged)):
            letter = self._written(at, chance)
            turns += f"?{letter}."
            at = _next(prompt.answer, letter)
        return f"{turns}={self._written(at, chance)}."

    def _written(self, letter: str, chance: random.Random) -> str:
        """Returns the letter that the tutor writes where it means another."""
        return chance.choice(_LETTERS) if chance.random() < self.tutor_error else letter


@dataclass(frozen=True, slots=True)
class _Asked:
    """The queries so far."""

    cycle: str
    """The letters in the order of their pointers, the start first."""
    asked: str = ""
    """Letters that were asked for, in order."""
    answered: str = ""
    """The last letter that was answered."""
    astray: bool = False
    """True once a turn was neither query nor answer."""


@dataclass(frozen=True, slots=True)
class _Pointers(Environment):
    """Answers queries until an answer comes."""

    hops: int

    @property
    def max_turns(self) -> int:
        """The queries, the answer, and what is to spare."""
        return self.hops + 1 + _SPARE

    @property
    def stop(self) -> tuple[str, ...]:
        """The full stop."""
        return (".",)

    @property
    def turn_tokens(self) -> int:
        """The characters of a query or an answer."""
        return 3

    def start(self, prompt: Prompt) -> tuple[_Asked, str]:
        """Returns the hidden cycle, with nothing asked."""
        return _Asked(prompt.answer), ""

    def step(self, state: _Asked, text: str) -> Transition:
        """Answers a query by the letter that is pointed to; an answer ends the episode."""
        if said := _ANSWER.fullmatch(text):
            correct = said[1] == state.cycle[self.hops]
            needed = state.asked == state.cycle[: self.hops] and not state.astray
            return Transition(
                state=state,
                reward=float(correct),
                done=True,
                correct=correct,
                process_correct=correct and needed,
                answer=said[1],
            )
        if query := _QUERY.fullmatch(text):
            found = _next(state.cycle, query[1])
            state = replace(state, asked=state.asked + query[1], answered=found)
        else:
            state = replace(state, astray=True)
        return Transition(
            state=state,
            observation=f"{state.answered if query else 'x'};",
            anchor=f"{''.join(sorted({*state.asked}))}>{state.answered}",
        )


def _next(cycle: str, letter: str) -> str:
    """Returns the letter that another points to."""
    return cycle[(cycle.index(letter) + 1) % len(cycle)]
