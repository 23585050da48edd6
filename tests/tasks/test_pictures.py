"""The drawn tasks: pictures show the problem, the same in every step; verdicts are strict."""

from __future__ import annotations

from io import BytesIO
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Task
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.tasks.bars import Bars
from segcredit.tasks.data.drawing import glyph
from segcredit.tasks.picture import Picture

TASKS: list[Any] = [Picture(), Bars(), Bars(bars=3), Picture(min_steps=2, max_steps=4, square=12)]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pixels(prompt: Prompt) -> np.ndarray:
    (content,) = prompt.images
    return np.asarray(Image.open(BytesIO(content)).convert("L")).astype(float)


def _read_expression(prompt: Prompt, square: int, side: int) -> str:
    """What the picture says: in each square the glyph that the brightness correlates with best."""
    pixels = _pixels(prompt)
    said = ""
    for place in range(side * side):
        top, left = place // side * square, place % side * square
        patch = pixels[top : top + square, left : left + square]
        fits = {
            c: np.corrcoef(glyph(c, square).ravel(), patch.ravel())[0, 1] for c in "0123456789+-"
        }
        best = max(fits, key=fits.__getitem__)
        said += best if fits[best] > 0.5 else " "
    return said.rstrip()


def _read_heights(prompt: Prompt, bars: int) -> str:
    """What the picture says: bright pixels in the middle of each column, six a unit."""
    middles = _pixels(prompt)[:, 8 + 16 * np.arange(bars)]
    return "".join(str(round(float(n) / 6)) for n in (middles > 165).sum(0))


@pytest.mark.parametrize("task", TASKS)
def test_the_picture_shows_the_problem_and_nothing_else_does(task: Any) -> None:
    for prompt in [*task.prompts(40, _generator()), *task.evaluation(5)]:
        assert prompt.text == "="
        if isinstance(task, Bars):
            assert _read_heights(prompt, task.bars) == prompt.key
        else:
            side = 4 if task.max_steps == 6 else 3
            assert _read_expression(prompt, task.square, side) == prompt.key


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_the_same_for_the_same_generator_and_key(task: Task) -> None:
    one, other = task.prompts(30, _generator(1)), task.prompts(30, _generator(1))
    assert list(one) == list(other)
    assert list(one) != list(task.prompts(30, _generator(2)))
    by_key = {prompt.key: prompt for prompt in one}
    assert all(by_key.get(p.key, p) == p for p in task.prompts(200, _generator(3)))


@pytest.mark.parametrize("task", TASKS)
def test_training_never_gives_an_evaluation_prompt(task: Task) -> None:
    held_out = {prompt.key for prompt in task.evaluation(5)}
    assert len(held_out) == 5
    assert held_out.isdisjoint(prompt.key for prompt in task.prompts(500, _generator()))
    assert list(task.evaluation(3)) == list(task.evaluation(5))[:3]


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_are_wrong_as_often_as_meant_and_spelt_in_the_alphabet(task: Task) -> None:
    pairs = task.demonstrations(600, _generator())
    verdicts = [task.verify(prompt, text, truncated=False) for prompt, text in pairs]
    correct = sum(verdict.correct for verdict in verdicts) / len(verdicts)
    faithful = sum(bool(verdict.process_correct) for verdict in verdicts) / len(verdicts)
    assert 0.3 < faithful < correct < 0.95
    assert {c for p, text in pairs for c in p.text + text} <= {*task.alphabet()}


def test_picture_is_arithmetic_drawn() -> None:
    written = Arithmetic(min_steps=6, max_steps=6)
    shown = Picture()
    pairs = zip(
        written.demonstrations(20, _generator(4)), shown.demonstrations(20, _generator(4)),
        strict=True,
    )  # fmt: skip
    for (one, text), (other, same) in pairs:
        assert (one.key, one.answer, text) == (other.key, other.answer, same)
        for said in (text, text[:-1] + "x", ""):
            for cut in (False, True):
                verdict = written.verify(one, said, truncated=cut)
                assert shown.verify(other, said, truncated=cut) == verdict


def _true_working(chart: str) -> str:
    heights = [int(height) for height in chart]
    sums = list(accumulate(heights))
    lines = [f"{name}{height}" for name, height in zip("ABCD", heights, strict=True)]
    added = [f"{sums[k - 1]}+{heights[k]}={sums[k]}" for k in range(1, 4)]
    return "\n".join([*lines, *added, f"#{sums[-1]}"])


def test_bars_are_judged_letter_for_letter() -> None:
    task = Bars()
    prompt = task.prompts(1, _generator())[0]
    text = _true_working(prompt.key)
    assert task.verify(prompt, text, truncated=False).process_correct
    assert not task.verify(prompt, text, truncated=True).correct
    lucky = text.replace(text.split("\n")[4], "9+9=99", 1)
    verdict = task.verify(prompt, lucky, truncated=False)
    assert (verdict.reward, verdict.correct, verdict.process_correct) == (1.0, True, False)
    for wrong in (f"{text}\n{text}", text + "0", f"#{prompt.answer}\n#{prompt.answer}", "", "#"):
        verdict = task.verify(prompt, wrong, truncated=False)
        assert (verdict.reward, verdict.correct, verdict.process_correct) == (0.0, False, False)


def test_a_faultless_tutor_of_bars_tells_the_truth() -> None:
    task = Bars(misread=0, slip=0, lost_ten=0)
    for prompt, text in task.demonstrations(50, _generator()):
        assert text == _true_working(prompt.key)


def test_a_misread_bar_stays_a_bar() -> None:
    for _, text in Bars(misread=1.0).demonstrations(200, _generator()):
        assert all(line[0] in "ABCD" and line[1] in "123456789" for line in text.split("\n")[:4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bars(bars=1), r"task\.bars of the bars task is 1; expected a number from 2"),
        (lambda: Bars(slip=1.5), r"task\.slip"),
        (lambda: Bars(bars=2).evaluation(80), "different evaluation prompts; 80 were"),
        (lambda: Picture(square=4), r"task\.square of the picture task is 4"),
        (lambda: Picture(min_steps=9), r"task\.min_steps"),
    ],
)
def test_options_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make()
