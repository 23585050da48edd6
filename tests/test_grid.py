"""Which cells a grid has, checked before any of them runs."""

import pytest

from segcredit.errors import ConfigError, RegistryError, StudyError
from segcredit.study.grid import combinations, plan


def test_cases_are_crossed_with_lists():
    grid = {"seed": [0, 1], "case": [{"method": "grpo"}, {"method": "ppo"}]}
    assert list(combinations(grid)) == [
        {"method": "grpo", "seed": 0},
        {"method": "grpo", "seed": 1},
        {"method": "ppo", "seed": 0},
        {"method": "ppo", "seed": 1},
    ]


def test_cells_do_not_write_into_one_another(tmp_path):
    random = {"name": "random", "fraction": 0.1}
    source = {
        "method": "sapo",
        "train": {"steps": 7},
        "grid": {
            "seed": [0, 1],
            "case": [
                {"train.epochs": 5, "segmenter": random, "segmenter.seed": 9},
                {"segmenter": random},
            ],
        },
    }
    cells = plan(source, tmp_path)
    assert [cell.config.train.epochs for cell in cells] == [5, 5, 2, 2]
    assert [cell.config.segmenter["seed"] for cell in cells] == [9, 9, 0, 0]
    assert {cell.config.train.steps for cell in cells} == {7}
    assert source["train"] == {"steps": 7}
    assert random == {"name": "random", "fraction": 0.1}
    assert len({cell.directory for cell in cells}) == 4


def test_equal_cells_are_one(tmp_path):
    assert len(plan({"method": "sapo", "grid": {"seed": [0, 0, 1]}}, tmp_path)) == 2


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ({}, StudyError, r"no \[grid\] table"),
        ({"seed": 3}, ConfigError, "grid.seed: is 3; expected a list"),
        ({"seed": [0, "x"]}, ConfigError, "cell seed=x: seed: "),
        ({"segmenter": ["newline", "lines"]}, RegistryError, "cell segmenter=lines: "),
        ({"trian.steps": [1]}, ConfigError, "did you mean 'train'"),
    ],
)
def test_a_wrong_cell_is_named_before_anything_runs(grid, error, words, tmp_path):
    with pytest.raises(error, match=words):
        plan({"method": "sapo", "grid": grid}, tmp_path)
