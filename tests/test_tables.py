"""Run directories as tidy tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from segcredit.errors import StudyError
from segcredit.records import RunRecords
from segcredit.step_tables import TABLES
from segcredit.study.tables import STEP_COLUMNS, flatten, read_runs


def make_run(path: Path, seed: int = 1, **config: Any) -> RunRecords:
    run = RunRecords.create(path, {"method": "sapo", "seed": seed, **config}, {})
    run.metrics({"step": 0, "accuracy": 0.1})
    run.metrics({"step": 1, "accuracy": None, "loss": 2.0, "mine": 7})
    columns = {"prompt": ["p", "p"], "response": [0, 1], "reward": [0.0, 1.0]}
    run.table("responses", 1, {**columns, "truncated": [False, True]})
    return run


def test_flatten_collapses_a_plug_in_to_its_name_at_its_own_key() -> None:
    config = {
        "segmenter": {
            "name": "min_length",
            "tokens": 8,
            "inner": {"name": "entropy", "top_fraction": 0.3},
        },
        "loss": {"ratio": "segment", "clip_low": 0.2},
        "policy": {"stop": ["a", "b"]},
        "seed": 1,
    }
    assert flatten(config) == {
        "segmenter": "min_length",
        "segmenter.tokens": 8,
        "segmenter.inner": "entropy",
        "segmenter.inner.top_fraction": 0.3,
        "loss.ratio": "segment",
        "loss.clip_low": 0.2,
        "policy.stop": '["a", "b"]',
        "seed": 1,
    }


def test_runs_are_found_at_any_depth_and_others_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "b", seed=2).finish()
    make_run(tmp_path / "deep" / "er" / "a").fail("TrainingError", "nan", "...")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.toml").write_text("this is = = no toml")
    (tmp_path / "foreign" / "status.json").write_text("{}")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.toml").write_text("seed = 1")
    runs = read_runs(tmp_path)
    assert len(runs) == 2
    table = runs.runs.set_index("run")
    assert list(table.index) == ["b", "deep/er/a"]
    assert list(table["seed"]) == [2, 1]
    assert list(table["status"]) == ["finished", "failed"]
    assert list(table["error"]) == ["", "TrainingError: nan"]


def test_a_run_directory_itself_is_called_dot(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert list(read_runs(tmp_path).runs["run"]) == ["."]


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_path_without_runs_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="expected at least one directory with a config"):
        read_runs(tmp_path / name)


def test_steps_have_every_column_and_nan_where_nothing_was_measured(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    steps = read_runs(tmp_path).steps
    assert list(steps.columns) == ["run", "step", *STEP_COLUMNS, "mine"]
    assert list(steps["step"]) == [0, 1, 0, 1]
    assert steps["accuracy"][0] == 0.1
    assert math.isnan(steps["accuracy"][1])
    assert steps["kl"].isna().all()
    assert steps["kl"].dtype == "float64"


def test_tables_are_read_alike_before_and_after_packing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.table("responses", 2, {"prompt": ["q"], "response": [0], "mine": [3]})
    before = read_runs(tmp_path).responses
    run.finish()
    after = read_runs(tmp_path).responses
    assert before.equals(after)
    assert list(before["step"]) == [1, 1, 2]
    assert list(before.columns) == ["run", *TABLES["responses"].names, "mine"]
    assert set(before["run"]) == {"a"}


def test_missing_tables_are_empty_with_the_right_columns(tmp_path: Path) -> None:
    RunRecords.create(tmp_path, {"seed": 1}, {})
    runs = read_runs(tmp_path)
    assert runs.tokens.empty
    assert list(runs.tokens.columns) == ["run", *TABLES["tokens"].names]
    assert runs.tokens["value"].dtype == "float32"
    assert list(runs.steps.columns) == ["run", "step", *STEP_COLUMNS]


def test_read_projects_columns_and_fills_what_a_run_lacks(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    extra = make_run(tmp_path / "b")
    extra.table("responses", 2, {"prompt": ["q"], "mine": [3.5]})
    found = read_runs(tmp_path).read("responses", columns=["mine", "run"])
    assert list(found.columns) == ["run", "mine"]
    assert list(found["run"]) == ["a", "a", "b", "b", "b"]
    assert list(found["mine"].dropna()) == [3.5]


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    make_run(tmp_path)
    runs = read_runs(tmp_path)
    with pytest.raises(StudyError, match="did you mean 'reward'"):
        runs.read("responses", columns=["rewards"])
    with pytest.raises(StudyError, match="did you mean 'tokens'"):
        runs.read("token")  # pyright: ignore[reportArgumentType]


def test_tables_are_read_once(tmp_path: Path) -> None:
    make_run(tmp_path)
    runs = read_runs(tmp_path)
    assert runs.responses is runs.responses
