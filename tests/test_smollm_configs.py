"""The configs of experiments/09_smollm are whole, without the package that holds the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcredit.study.grid.cells import plan
from segcredit.tasks.reasoning_gym import ReasoningGym

pytest.importorskip("reasoning_gym")
FOLDER = Path(__file__).parents[1] / "experiments" / "09_smollm"
WORKED = "{0} + {1} = {3}\n{3} + {2} = {4}\nAnswer: {4}"


@pytest.mark.parametrize(
    ("name", "cells"),
    [("demo", {("grpo", 0)}), ("grid", {(m, s) for m in ("grpo", "sapo") for s in (1, 2, 3)})],
)
def test_every_cell_of_the_grids_resolves(name: str, cells: set[tuple[str, int]]) -> None:
    planned = plan(FOLDER / f"{name}.toml", Path("nowhere"))
    assert {(cell.config.method, cell.config.seed) for cell in planned} == cells


def test_the_demo_asks_the_same_problems_of_the_same_model() -> None:
    demo, grid = (plan(FOLDER / f"{n}.toml", Path("nowhere"))[0].config for n in ("demo", "grid"))
    for part in ("task", "policy", "sampler"):
        assert getattr(demo, part) == getattr(grid, part)


def test_answers_in_the_form_of_the_worked_examples_are_judged() -> None:
    task = _task()
    for prompt in task.evaluation(4):
        question = prompt.text.rpartition("Calculate ")[2].partition(".")[0]
        first, second, third = map(int, question.split(" + "))
        right = WORKED.format(first, second, third, first + second, int(str(prompt.answer)))
        assert task.verify(prompt, right, truncated=False).reward == 1.0
        assert not task.verify(prompt, right, truncated=True).correct
        for wrong in (str(prompt.answer), right + "0", right + "\nAnswer: 99", ""):
            assert not task.verify(prompt, wrong, truncated=False).correct


def test_the_worked_examples_are_true_and_in_that_form() -> None:
    text = _task().evaluation(1)[0].text
    for question, solution in (((2, 9, 6), 17), ((8, 7, 9), 24)):
        first, second, third = question
        assert WORKED.format(*question, first + second, solution) in text
        assert first + second + third == solution
        assert f"Calculate {first} + {second} + {third}." in text


def _task() -> ReasoningGym:
    table = plan(FOLDER / "demo.toml", Path("nowhere"))[0].config.task
    options = {key: value for key, value in table.items() if key != "name"}
    return ReasoningGym(**options)
