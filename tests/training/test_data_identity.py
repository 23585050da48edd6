"""Data that change under a run or a grid: told, and never mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoints import tiny_checkpoint
from segcredit import load_config, train
from segcredit.errors import RecordError
from segcredit.records.run_directory import RunRecords
from segcredit.study.grid import plan, run_grid, survey
from segcredit.tasks.dataset import Dataset
from segcredit.tasks.instructed import Instructed
from segcredit.tasks.problems import Problems
from segcredit.training.build import data_of
from segcredit.training.loop import iterate
from small import SMALL

SIZES = [*(key for key in SMALL if not key.startswith(("task.", "policy"))), "evaluate.prompts=2"]


def write(file: Path, first: int, last: int) -> None:
    rows = [{"question": f"{n}+1", "answer": n + 1} for n in range(first, last)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "own.jsonl", 0, 120)
    return tmp_path / "own.jsonl"


def keys(file: Path) -> dict[str, Any]:
    task = {"name": "dataset", "source": str(file), "verifier": "exact"}
    model = file.with_name("model")
    if not model.exists():
        tiny_checkpoint(model, steps=0)
    return {"method": "grpo", "task": task, "policy": {"name": "hf", "model": str(model)}}


def config(file: Path) -> Any:
    return load_config(keys(file), SIZES)


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(file: Path, tmp_path: Path) -> None:
    rows = iterate(config(file), tmp_path / "run")
    next(rows)
    rows.close()  # pyright: ignore[reportAttributeAccessIssue]
    before = file.read_bytes()
    write(file, 0, 160)
    for resume in (True, False):
        with pytest.raises(RecordError, match=r"own.jsonl changed since: .* 120 rows .* 160 rows"):
            train(config(file), tmp_path / "run", resume=resume)
    file.write_bytes(before)
    assert next(iterate(config(file), tmp_path / "run", resume=True))["step"] == 1


def test_a_finished_cell_of_other_data_is_not_taken_for_finished(
    file: Path, tmp_path: Path
) -> None:
    grid = {**keys(file), "grid": {"seeds": 1}}
    (cell,) = plan(grid, tmp_path / "runs", SIZES)
    recorded = {"data": data_of(cell.config)}
    RunRecords.create(cell.directory, cell.config.identity(), recorded).finish()
    survey([cell])
    write(file, 1000, 1120)
    with pytest.raises(RecordError, match=r"began with 120 rows .* 120 rows"):
        run_grid(grid, tmp_path / "runs", overrides=SIZES)


def test_rows_and_checksum_are_of_the_content(file: Path, tmp_path: Path) -> None:
    first = data_of(config(file))[str(file)]
    assert (first["rows"], first["bytes"]) == (120, file.stat().st_size)
    (tmp_path / "folder").mkdir()
    shutil.copy(file, tmp_path / "folder" / "a.jsonl")
    for name in ("folder", "none"):
        task = Dataset(source=str(tmp_path / name), verifier="exact")
        assert Instructed(inner=task).data_files() == [tmp_path / name]
    assert Problems(source=str(file)).data_files() == [file]
    assert data_of(load_config("grpo")) == {}
