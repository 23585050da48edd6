"""Tables of runs that are written, packed, cut, begun anew or removed while they are read."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from segcredit.errors import RecordError, StudyError
from segcredit.records import step_tables
from segcredit.records.run_directory import RunRecords, read_metrics
from segcredit.records.step_tables import STEPS, pack_metrics
from segcredit.records.tables import consistent_read, parquet, read_runs, run_settings, step_metrics

STEPS_OF_RUN = 6


def make_run(path: Path, steps: int = STEPS_OF_RUN) -> RunRecords:
    run = RunRecords.create(path, {"seed": 1}, {})
    for step in range(1, steps + 1):
        record(run, step)
    return run


def record(run: RunRecords, step: int) -> None:
    run.table("completions", step, {"prompt": ["p", "q"], "reward": [float(step), -1.0]})
    run.metrics({"step": step, "loss": float(step)})


def once_after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, do: Callable[[], object]):
    """Calls ``do`` when a function of a module has returned for the first time."""
    function, done = getattr(module, name), []

    def wrapped(*arguments: Any) -> Any:
        found = function(*arguments)
        if not done:
            done.append(True)
            do()
        return found

    monkeypatch.setattr(module, name, wrapped)
    return done


def steps_of(frame: pd.DataFrame) -> list[int]:
    return frame["step"].tolist()


EACH_TWICE = [step for step in range(1, STEPS_OF_RUN + 1) for _ in range(2)]


def test_step_files_packed_after_they_were_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    done = once_after(monkeypatch, parquet, "table_files", run.finish)
    assert steps_of(read_runs(tmp_path).completions) == EACH_TWICE
    assert done


def test_step_files_packed_while_they_were_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing met only the files that had not been removed yet."""
    run = make_run(tmp_path)
    whole = step_tables._step_files

    def partly(folder: Path) -> dict[int, Path]:
        found = whole(folder)
        pack_tables_once()
        return {step: file for step, file in found.items() if step > 3}

    def pack_tables_once() -> None:
        monkeypatch.setattr(step_tables, "_step_files", whole)
        run.finish()

    monkeypatch.setattr(step_tables, "_step_files", partly)
    assert steps_of(read_runs(tmp_path).completions) == EACH_TWICE


def test_a_packed_table_cut_after_it_was_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    run.finish()
    once_after(monkeypatch, parquet, "table_files", lambda: run.cut_after(4))
    assert steps_of(read_runs(tmp_path).completions) == EACH_TWICE[:8]


def test_files_removed_while_others_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is whole by itself, but no longer what the run holds."""
    run = make_run(tmp_path)
    once_after(monkeypatch, parquet, "_read", lambda: run.cut_after(4))
    assert steps_of(read_runs(tmp_path).completions) == EACH_TWICE[:8]


def test_a_cut_that_was_stopped_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    unlink, removed = Path.unlink, []

    def stopped(file: Path, missing_ok: bool = False) -> None:
        if len(removed) == 2:
            raise OSError("killed")
        if file.name.startswith("step_"):
            removed.append(file)
        unlink(file, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", stopped)
    with pytest.raises(RecordError):
        run.cut_after(1)
    monkeypatch.undo()
    assert steps_of(read_runs(tmp_path).completions) == EACH_TWICE[:8]


def test_metrics_that_a_run_cuts_after_it_was_seen_to_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run that is found damaged goes on: its packed metrics disappear."""
    run = make_run(tmp_path)
    run.finish()
    pack_metrics(tmp_path, read_metrics(tmp_path))

    def go_on() -> None:
        (tmp_path / "status.json").write_text('{"status": "running"}')
        run.cut_after(3)

    done = once_after(monkeypatch, step_metrics, "_files", go_on)
    assert steps_of(read_runs(tmp_path).steps) == [1, 2, 3]
    assert done
    assert not (tmp_path / STEPS).exists()


def test_a_run_removed_after_it_was_found_is_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "a").finish()
    make_run(tmp_path / "b").finish()
    runs = read_runs(tmp_path)
    shutil.rmtree(tmp_path / "a")
    assert list(runs.runs["run"]) == ["b"]
    assert set(runs.steps["run"]) == {"b"}
    assert steps_of(runs.completions) == EACH_TWICE


def test_a_run_being_made_anew_is_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    runs = read_runs(tmp_path)
    for file in (tmp_path / "a").iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    (tmp_path / "a" / "config.toml").write_text("seed = 2\n")
    assert list(runs.runs["run"]) == ["b"]
    assert set(runs.steps["run"]) == {"b"}


def test_a_state_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    whole = (tmp_path / "status.json").read_bytes()
    (tmp_path / "status.json").write_bytes(b"{")
    calls = []

    def read(path: Path) -> dict[str, Any]:
        calls.append(path)
        try:
            return original(path)
        finally:
            if len(calls) == 2:
                (tmp_path / "status.json").write_bytes(whole)

    original = run_settings.read_ending
    monkeypatch.setattr(run_settings, "read_ending", read)
    assert list(read_runs(tmp_path).runs["status"]) == ["running"]


def test_files_that_never_rest_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistent_read, "_WAIT", 0)
    numbers = iter(range(1000))

    def listed() -> list[Path]:
        return [Path(f"{next(numbers)}"), Path("b")]

    with pytest.raises(StudyError, match="changed 10 times while they were read"):
        consistent_read.settled(Path("run"), listed, lambda files: files)


def test_what_fails_on_files_that_rest_is_raised(tmp_path: Path) -> None:
    calls = []

    def fail(files: Any) -> None:
        calls.append(files)
        raise RecordError("damaged")

    with pytest.raises(RecordError, match="damaged"):
        consistent_read.settled(tmp_path, lambda: [tmp_path], fail)
    assert len(calls) == 2  # once more, since what it met may have been passing


def test_reading_beside_a_writer_shows_whole_steps_without_gaps(tmp_path: Path) -> None:
    """The writer records, packs, restarts from a checkpoint, again and again."""
    run = make_run(tmp_path)
    ended = threading.Event()

    def write() -> None:
        try:
            for cycle in range(12):
                run.finish()
                run.begin()
                run.cut_after(cycle % 4 + 1)
                for step in range(cycle % 4 + 2, STEPS_OF_RUN + 1):
                    record(run, step)
        finally:
            ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[int] = set()
    while not ended.is_set():
        runs = read_runs(tmp_path)
        frame, steps = runs.completions, runs.steps
        last = int(frame["step"].max())
        assert steps_of(frame) == EACH_TWICE[: 2 * last]
        assert frame["reward"].tolist()[::2] == [float(step) for step in range(1, last + 1)]
        assert steps_of(steps) == list(range(1, len(steps) + 1))
        seen.add(last)
    writer.join()
    assert len(seen) > 1
