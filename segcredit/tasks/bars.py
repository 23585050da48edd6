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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.rng import python_random
from segcredit.tasks.data.drawing import chance, file_of, painted
from segcredit.tasks.data.prompt_streams import is_held_out

QUESTION = "="
_NAMES = "ABCDEFGH"
_HIGHEST = 9
_PITCH = 16
"""Pixels from bar to bar."""
_UNIT = 6
"""Pixels of height a unit."""
_PATIENCE = 100
"""Draws for each evaluation prompt, after which there are taken to be no more."""


@dataclass(frozen=True, slots=True)
class Bars(Task):
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

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training prompts, independently of each other."""
        charts = self._charts(python_random(generator), evaluation=False)
        return [_prompt(next(charts)) for _ in range(count)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the first ``count`` of one fixed list of held-out prompts, all different.

        Raises:
            TaskError: there are fewer of them.
        """
        charts = self._charts(random.Random(0), evaluation=True)
        found: dict[str, None] = {}
        for _ in range(_PATIENCE * count):
            if len(found) == count:
                break
            found[next(charts)] = None
        else:
            raise TaskError(
                f"the bars task has about {len(found)} different evaluation prompts with"
                f" {self.bars} bars; {count} were asked for. Lower the number of evaluation"
                " prompts, or raise task.bars."
            )
        return [_prompt(chart) for chart in found]

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

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        """Draws training prompts with completions by an imperfect tutor."""
        draws = python_random(generator)
        charts = self._charts(draws, evaluation=False)
        drawn = [next(charts) for _ in range(count)]
        return [(_prompt(chart), self._tutor(chart, draws)) for chart in drawn]

    def alphabet(self) -> str:
        """Returns the digits, names of bars, operators and line end."""
        return "0123456789+=#\n" + _NAMES[: self.bars]

    def _charts(self, draws: random.Random, *, evaluation: bool) -> Iterator[str]:
        """Yields endless heights, as digits, of one side of the split."""
        while True:
            chart = "".join(draws.choices("123456789", k=self.bars))
            if is_held_out(chart) == evaluation:
                yield chart

    def _tutor(self, chart: str, draws: random.Random) -> str:
        """Returns a completion, consistent with its own mistakes."""
        read = [self._read(int(height), draws) for height in chart]
        sums = [read[0]]
        for height in read[1:]:
            sums.append(self._added(sums[-1], height, draws))
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


def _prompt(chart: str) -> Prompt:
    """Makes the prompt of a chart; its key is the heights, its answer their sum."""
    heights = [int(height) for height in chart]
    return Prompt(chart, QUESTION, str(sum(heights)), (_picture(chart, heights),))


def _picture(chart: str, heights: Sequence[int]) -> bytes:
    """Draws bars on a common ground, each in a column of its own."""
    draws = chance(chart)
    high = _PITCH * 4
    columns: list[NDArray[np.float64]] = []
    for height in heights:
        covered = np.zeros((high, _PITCH))
        covered[high - 2 - _UNIT * height : high - 2, 3:-3] = 1.0
        columns.append(painted(covered, draws))
    return file_of(np.hstack(columns), draws)


def _working(heights: Sequence[int], sums: Sequence[int]) -> str:
    """Returns the text that reads these heights and has these running sums."""
    read = [f"{name}{height}" for name, height in zip(_NAMES, heights, strict=False)]
    steps = zip(sums, heights[1:], sums[1:], strict=False)
    added = [f"{total}+{height}={result}" for total, height, result in steps]
    return "\n".join([*read, *added, f"#{sums[-1]}"])
