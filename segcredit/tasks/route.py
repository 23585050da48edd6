"""Walks along a line of stations, which set out the right way or the wrong one.

The stations are the letters from a to n. From f to b it is four stations downwards; each line
begins with letters that are free, and ends with the station that is left and the one reached:

    uwxfe
    zred
    qqtvdc
    swcb
    #
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Verdict
from segcredit.tasks.data.drawn_problems import DrawnProblems

_STATIONS = "abcdefghijklmn"
_FREE = "qrstuvwxyz"
_FIRST, _LAST = 3, 10
"""Stations that walks begin at, so that the wrong way too has three stations or more."""
_GREETING = 3
"""Free letters of a prompt, which make problems that differ of few walks."""


@dataclass(frozen=True, slots=True)
class Route(DrawnProblems):
    """Walks from one station to another, in which one early step decides and most tokens do not.

    The first step is the fork: who sets out the wrong way ends at the end of the line, and there is
    no turning back. With the defaults a completion has 20 to 50 tokens, its end token included; of
    those that are uncertain the free letters, two to four a line, decide nothing.

    The tutor sets out the wrong way with ``tutor_bug`` from every second station. Above one half
    that is the likeliest after imitation, so that learning has to turn a mode over. In each step it
    passes a station by with ``tutor_error``.

    The prompt, such as ``xqrfb=``, has three free letters, start and goal. One in ten, by a
    checksum, is for evaluation and never for training; the same two stations come in both.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    min_steps: int = 4
    """Stations to the nearest goal, at least 1; the number of them is drawn uniformly."""
    max_steps: int = 7
    """Stations to the farthest goal, at most 7."""
    min_letters: int = 2
    """Fewest free letters of a line; the number of them is drawn uniformly."""
    max_letters: int = 4
    """Most free letters of a line, at most 32; they decide nothing."""
    tutor_error: float = 0.04
    """Probability a step that a station is passed by."""
    tutor_bug: float = 0.75
    """Probability of the wrong way, from the stations b, d, f and so on."""

    def __post_init__(self) -> None:
        ranges = {
            "min_steps": (self.min_steps, 1, self.max_steps),
            "max_steps": (self.max_steps, 1, _LAST - _FIRST),
            "min_letters": (self.min_letters, 0, self.max_letters),
            "max_letters": (self.max_letters, 0, 32),
            "tutor_error": (self.tutor_error, 0, 1),
            "tutor_bug": (self.tutor_bug, 0, 1),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise TaskError(
                    f"task.{name} of the route task is {found}; expected a number from {low} to"
                    f" {high}. Check it against the task's other options."
                )

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to a text that walks from start to goal, station by station, and ends.

        Only free letters may stand before the two stations of a line, any number of them. Since
        there is one walk alone that ends at the goal, ``process_correct`` is the same as
        ``correct``. The answer, for votes, is the stations in order.
        """
        *walked, last = text.split("\n")
        shown = [line.lstrip(_FREE) for line in walked]
        correct = not truncated and last == "#" and shown == _lines(prompt.answer)
        return Verdict(float(correct), correct, correct, "" if truncated else " ".join(shown))

    def alphabet(self) -> str:
        """Returns the stations, the free letters, the prompt's end, the walk's and the line's."""
        return f"{_STATIONS}{_FREE}=#\n"

    def draw(self, chance: random.Random) -> str:
        """Draws free letters, a start and a goal."""
        letters = "".join(chance.choices(_FREE, k=_GREETING))
        while True:
            start = chance.randint(_FIRST, _LAST)
            steps = chance.randint(self.min_steps, self.max_steps)
            goal = start + chance.choice((-1, 1)) * steps
            if 0 <= goal < len(_STATIONS):
                return letters + _STATIONS[start] + _STATIONS[goal]

    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of a problem; its answer is the stations from start to goal."""
        start, goal = map(_STATIONS.index, problem[-2:])
        way = 1 if goal > start else -1
        walk = "".join(_STATIONS[at] for at in range(start, goal + way, way))
        return Prompt(key=problem, text=f"{problem}=", answer=walk)

    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns a walk that ends at the goal, at the end of the line, or after ``max_steps``."""
        at, goal = map(_STATIONS.index, problem[-2:])
        way = 1 if goal > at else -1
        if at % 2 and chance.random() < self.tutor_bug:
            way = -way
        ends, walk = (goal, 0, len(_STATIONS) - 1), _STATIONS[at]
        while at not in ends and len(walk) <= self.max_steps:
            at += way
            if at not in ends and chance.random() < self.tutor_error:
                at += way
            walk += _STATIONS[at]
        numbers = range(self.min_letters, self.max_letters + 1)
        letters = ["".join(chance.choices(_FREE, k=chance.choice(numbers))) for _ in walk[1:]]
        lines = [free + pair for free, pair in zip(letters, _lines(walk), strict=True)]
        return "\n".join([*lines, "#"])


def _lines(walk: str) -> list[str]:
    """Returns the lines of a walk without their free letters: each station left and reached."""
    return [left + reached for left, reached in itertools.pairwise(walk)]
