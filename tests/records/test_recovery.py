"""Damaged run directories: nothing half is taken for whole, and the run comes out the same."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segcredit import load_config, read_runs, train
from segcredit.atomic_files import require_writable
from segcredit.errors import BusyError, RecordError, StorageError
from segcredit.records import checkpoint
from segcredit.records.recovery import damage
from segcredit.records.run_directory import RunRecords, read_status
from segcredit.records.run_lock import run_lock
from segcredit.study.evaluation import evaluate_policy, evaluated_policy
from segcredit.study.export_policy import save_policy
from segcredit.study.report import write_report
from segcredit.training.loop import iterate
from small import SMALL
from tables import assert_same

CONFIG = load_config("ppo", SMALL)
STEPS = CONFIG.train.steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(CONFIG, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that was stopped after step 3; its last checkpoint is that of step 2."""
    rows = iterate(CONFIG, tmp_path / "run")
    for row in rows:
        if row["step"] == 3:
            break
    rows.close()  # pyright: ignore[reportAttributeAccessIssue]
    return tmp_path / "run"


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garble(file: Path) -> None:
    file.write_bytes(b"\x00" * file.stat().st_size)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [halve, empty, garble])
@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "status.json",
        "environment.json",
        "config.toml",
        "steps.parquet",
        "completions/all.parquet",
        "tokens/all.parquet",
        "checkpoints/step_000004.pt",
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_finished_run_with_a_damaged_file_comes_out_the_same(
    finished: Path, whole: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(finished / name)
    train(CONFIG, finished, resume=True)
    assert read_status(finished)["status"] == "finished"
    assert not damage(finished, STEPS)
    assert_same(finished, whole)


@pytest.mark.parametrize("harm", [halve, empty, garble])
@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "status.json",
        "config.toml",
        "completions/step_000001.parquet",
        "segments/step_000002.parquet",
        "tokens/step_000003.parquet",
        "checkpoints/step_000000.pt",
        "checkpoints/step_000002.pt",
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_stopped_run_with_a_damaged_file_comes_out_the_same(
    stopped: Path, whole: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(stopped / name)
    train(CONFIG, stopped, resume=True)
    assert_same(stopped, whole)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("checkpoints/step_000002.pt", flip),
        ("metrics.jsonl", flip),
        ("segments/step_000001.parquet", flip),
        ("segments/step_000002.parquet", Path.unlink),
        ("manifest.json", Path.unlink),
    ],
)
def test_a_stopped_run_with_a_flipped_or_missing_file_comes_out_the_same(
    stopped: Path, whole: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(stopped / name)
    train(CONFIG, stopped, resume=True)
    assert_same(stopped, whole)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "harm"), [("tokens/all.parquet", Path.unlink), ("manifest.json", flip)]
)
def test_a_finished_run_with_a_flipped_or_missing_file_is_run_again(
    finished: Path, whole: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(finished / name)
    assert damage(finished, STEPS)
    train(CONFIG, finished, resume=True)
    assert not damage(finished, STEPS)
    assert_same(finished, whole)


def test_a_finished_run_whose_last_checkpoint_is_gone_is_not_taken_for_its_earlier_policy(
    finished: Path, whole: Path, tmp_path: Path
) -> None:
    last, earlier = (finished / f"checkpoints/step_00000{step}.pt" for step in (4, 2))
    last.unlink()
    for use in (
        lambda: evaluated_policy(str(finished)),
        lambda: save_policy(finished, tmp_path / "model"),
    ):
        with pytest.raises(
            RecordError, match=r"step_000004.pt is missing; expected .* step_000002"
        ):
            use()
    assert evaluated_policy(str(finished), saved=earlier).step == 2
    train(CONFIG, finished, resume=True)
    assert last.exists()
    assert_same(finished, whole)


def test_a_finished_run_without_checkpoints_is_whole(finished: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    assert not damage(finished, STEPS)
    train(CONFIG, finished, resume=True)
    assert not (finished / "checkpoints").exists()


USES: dict[str, Callable[[Path, Path], Any]] = {
    "evaluate": lambda run, out: repr(evaluate_policy(evaluated_policy(str(run), output=out))),
    "save-policy": lambda run, out: content(save_policy(run, out)),
}


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("harm", [Path.unlink, halve, flip])
def test_whatever_reads_a_policy_names_a_harmed_file_or_does_as_without_the_harm(
    whole: Path, tmp_path: Path, use: Callable[[Path, Path], Any], harm: Callable[[Path], None]
) -> None:
    expected, refused = use(whole, tmp_path / "expected"), set[str]()
    for name in sorted(name for name, there in content(whole).items() if there):
        run = Path(shutil.copytree(whole, tmp_path / "harmed" / name / "run"))
        harm(run / name)
        before, said = content(run), ""
        try:
            assert use(run, tmp_path / "made" / name) == expected, name
        except RecordError as error:
            said = str(error)
            refused.add(name)
        assert not said or name in said
        assert content(run) == before
    assert refused == {"config.toml", "checkpoints/step_000004.pt"}


def test_what_a_kill_leaves_beside_the_files_is_removed(stopped: Path, whole: Path) -> None:
    for name in ("checkpoints/.step_000004.pt.7.tmp", "tokens/.step_000003.parquet.7.tmp"):
        (stopped / name).write_bytes(b"half")
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "rewa')
    train(CONFIG, stopped, resume=True)
    assert not list(stopped.rglob(".*.tmp"))
    assert_same(stopped, whole)


def test_an_unreadable_config_is_kept_beside_the_new_one(finished: Path) -> None:
    (finished / "config.toml").write_text("mine = = precious")
    (finished / "status.json").unlink()
    train(CONFIG, finished, resume=True)
    assert (finished / "config.toml.damaged").read_text() == "mine = = precious"


def test_the_resumed_run_says_what_it_removed(stopped: Path) -> None:
    halve(stopped / "tokens/step_000001.parquet")
    with pytest.warns(RuntimeWarning, match=r"tokens/step_000001.parquet has \d+ bytes inst"):
        train(CONFIG, stopped, resume=True)


def test_a_full_disk_stops_the_run_and_the_next_call_goes_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    for row in iterate(CONFIG, path):
        if row["step"] == 3:
            monkeypatch.setattr(os, "fsync", _full)
            break
    with pytest.raises(StorageError, match=r"The disk or the quota is full: free some space"):
        train(CONFIG, path, resume=True)
    monkeypatch.undo()
    train(CONFIG, path, resume=True)
    assert_same(path, whole)


def test_a_disk_that_was_full_for_a_moment_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(*_: Any) -> None:
        monkeypatch.undo()
        _full()

    path = tmp_path / "run"
    rows = iterate(CONFIG, path)
    next(rows)
    monkeypatch.setattr(os, "fsync", once)
    with pytest.raises(StorageError):
        next(rows)
    status = read_status(path)
    assert status["status"] == "interrupted"
    assert "is full" in status["message"]


def test_a_keyboard_interrupt_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segcredit.training.loop.assign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "run")
    assert read_status(tmp_path / "run")["status"] == "interrupted"


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_one_process_writes_a_run(finished: Path) -> None:
    holder = _hold(finished)
    try:
        with pytest.raises(BusyError, match="is being written by another process"):
            train(CONFIG, finished, resume=True)
        assert len(read_runs(finished).steps) == STEPS + 1  # reading asks for no lock
    finally:
        holder.kill()
        holder.wait()
    with run_lock(finished):  # free although the holder was killed
        pass


def _hold(path: Path) -> subprocess.Popen[str]:
    program = (
        "import sys, time, pathlib; from segcredit.records.run_lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_place_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="choose another --output"):
        train(CONFIG, tmp_path / "file" / "run")


def test_a_run_that_is_told_to_stop_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("segcredit.training.loop.assign", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        train(CONFIG, tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert status["status"] == "interrupted"
    assert "stopped by SIGTERM" in status["message"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_killed_run_is_told_by_its_lock(tmp_path: Path) -> None:
    run = RunRecords.create(tmp_path, {"seed": 1}, {})
    assert list(read_runs(tmp_path).runs["status"]) == ["running"]  # without a lock: a copy
    with run_lock(tmp_path):
        assert list(read_runs(tmp_path).runs["status"]) == ["running"]
    assert list(read_runs(tmp_path).runs["status"]) == ["interrupted"]
    assert "its process is gone" in read_runs(tmp_path).runs["error"][0]
    run.finish()
    assert list(read_runs(tmp_path).runs["status"]) == ["finished"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml", "status.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    run = RunRecords.create(tmp_path, {"seed": 1}, {})
    run.metrics({"step": 1})
    (tmp_path / name).unlink()
    make = {"pipe": os.mkfifo, "device": lambda file: file.symlink_to("/dev/zero")}
    make.get(kind, Path.mkdir)(tmp_path / name)
    runs = read_runs(tmp_path)
    damaged = list(runs.runs["status"]) == ["damaged"]
    assert damaged == (name in ("config.toml", "status.json"))
    if not damaged:
        with pytest.raises(RecordError, match=r"no plain file|is no file"):
            runs.steps  # noqa: B018


def test_a_pipe_for_a_checkpoint_or_a_table_is_not_waited_for(tmp_path: Path) -> None:
    run = RunRecords.create(tmp_path, {"seed": 1}, {})
    run.table("segments", 1, {"prompt": ["p"]})
    for name in ("segments/step_000001.parquet", "step_000002.pt"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
    with pytest.raises(RecordError, match="no plain file"):
        checkpoint.load(tmp_path / "step_000002.pt")
    with pytest.raises(RecordError, match="no plain file"):
        read_runs(tmp_path).segments  # noqa: B018


@pytest.mark.parametrize("place", ["/proc/report.html", "/dev/null/report.html", "pipe"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="could not be written"):
        require_writable(tmp_path / place)
    RunRecords.create(tmp_path / "run", {"seed": 1}, {})
    with pytest.raises(StorageError, match="could not be written"):
        write_report(tmp_path, tmp_path / place)
    require_writable(tmp_path / "new" / "folder" / "file")
    assert not (tmp_path / "new").exists()
