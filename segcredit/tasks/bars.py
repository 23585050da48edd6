"""A small bar chart, read bar by bar and added up; the tutor misreads, and loses a ten.

A2
B9
C7
D9
2+9=11
11+7=18
18+9=27
#27
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Verdict
from segcredit.tasks.data import drawing
from segcredit.tasks.data.drawn_problems import DrawnProblems

QUESTION = "="
_NAMES = "ABCDEFGH"
_HIGHEST = 9
_PITCH = 16
"""Pixels from bar to bar."""
_UNIT = 6
"""Pixels of height a unit."""


@dataclass(frozen=True, slots=True)
class Bars(DrawnProblems):
    """Bars of 1 to 9 units, whose sum is asked for.

    The tutor misreads a bar by one with ``misread``, loses ten with ``lost_ten`` where the running
    sum passes 20, and else is off by one with ``slip``. Above one half the wrong sum is the
    likeliest after imitation, so that learning has to turn a mode over.

    Misread bars can make up for each other, and later mistakes for earlier ones: ``reward`` is 1
    for these too, and ``process_correct`` tells them apart. Where most rewards are won by such
    luck, as from an unfinished imitation, learning from them makes the readings worse: watch
    ``process_correct``.

    One prompt in ten, by a checksum of its heights, is for evaluation and never for training.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    bars: int = 4
    """Number of bars, 2 to 8."""
    misread: float = 0.03
    slip: float = 0.04
    lost_ten: float = 0.55

    def __post_init__(self) -> None:
        ranges = {
            "bars": (self.bars, 2, len(_NAMES)),
            "misread": (self.misread, 0, 1),
            "slip": (self.slip, 0, 1),
            "lost_ten": (self.lost_ten, 0, 1),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise TaskError(
                    f"task.{name} of the bars task is {found}; expected a number from {low} to"
                    f" {high}. Lower it, or raise it."
                )

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to a text that ends with its one answer line, which states the true sum.

        ``process_correct`` is whether the text is the whole true working, letter for letter.
        """
        last = text.split("\n")[-1]
        said = last.removeprefix("#") if last.startswith("#") and not truncated else ""
        correct = not truncated and last == f"#{prompt.answer}" and text.count("#") == 1
        heights = [int(height) for height in prompt.key]
        process_correct = correct and text == _working(heights, list(itertools.accumulate(heights)))
        return Verdict(float(correct), correct, process_correct, said)

    def alphabet(self) -> str:
        """Returns the digits, names of bars, operators and line end."""
        return "0123456789+=#\n" + _NAMES[: self.bars]

    def draw(self, chance: random.Random) -> str:
        """Draws heights, as digits."""
        return "".join(chance.choices("123456789", k=self.bars))

    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of a chart; its key is the heights, its answer their sum."""
        heights = [int(height) for height in problem]
        return Prompt(problem, QUESTION, str(sum(heights)), (_picture(problem, heights),))

    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns a completion, consistent with its own mistakes."""
        read = [self._read(int(height), chance) for height in problem]
        sums = [read[0]]
        for height in read[1:]:
            sums.append(self._added(sums[-1], height, chance))
        return _working(read, sums)

    def _read(self, height: int, draws: random.Random) -> int:
        if draws.random() >= self.misread:
            return height
        return min(max(height + draws.choice((-1, 1)), 1), _HIGHEST)

    def _added(self, total: int, height: int, draws: random.Random) -> int:
        exact = total + height
        if total < 20 <= exact and draws.random() < self.lost_ten:
            return exact - 10
        return exact + (draws.choice((-1, 1)) if draws.random() < self.slip else 0)


def _picture(chart: str, heights: Sequence[int]) -> bytes:
    """Draws bars on a common ground, each in a column of its own."""
    draws = drawing.chance(chart)
    high = _PITCH * 4
    columns: list[NDArray[np.float64]] = []
    for height in heights:
        covered = np.zeros((high, _PITCH))
        covered[high - 2 - _UNIT * height : high - 2, 3:-3] = 1.0
        columns.append(drawing.painted(covered, draws))
    return drawing.file_of(np.hstack(columns), draws)


def _working(heights: Sequence[int], sums: Sequence[int]) -> str:
    """Returns the text that reads these heights and has these running sums."""
    read = [f"{name}{height}" for name, height in zip(_NAMES, heights, strict=False)]
    steps = zip(sums, heights[1:], sums[1:], strict=False)
    added = [f"{total}+{height}={result}" for total, height, result in steps]
    return "\n".join([*read, *added, f"#{sums[-1]}"])
