"""Ctrl-C ends a command with one line that says how to go on; going on, nothing is lost."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segcredit import read_runs
from segcredit.cli import main
from segcredit.records.run_directory import read_ending
from segcredit.study.grid import plan
from small import SMALL

LONG = [*SMALL, "train.steps=30", "evaluate.every=100", "record.every=100"]
GRID = """
method = "grpo"
[grid]
seeds = 2
"""
AUDIT = ["audit.prompts=400", "audit.completions=4", "audit.gradient_samples=20000"]


def interrupted(arguments: list[str], sign: Path, folder: Path) -> tuple[int, str, str]:
    """Status and output of a command that gets SIGINT once a file of its has appeared."""
    command = [sys.executable, "-m", "segcredit", *arguments]
    # What ran the tests may ignore the signal, which children inherit.
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        command, cwd=folder, preexec_fn=heard, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        until = time.monotonic() + 120
        while not sign.exists() or not sign.stat().st_size:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_training_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first = ["train", "grpo", *LONG, "--output", "run"]
    code, _, err = interrupted(first, run / "metrics.jsonl", tmp_path)
    assert code == 130
    assert err == "stopped. What was recorded is intact; to go on: segcredit train run --resume\n"
    assert read_ending(run)["status"] == "interrupted"
    assert read_runs(run).progress["steps_done"].item() < 30
    # What it says is what goes on, from wherever the run is seen.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(shlex.split(err.rpartition("segcredit ")[2]))
    assert list(read_runs(run).steps["step"]) == list(range(31))


def test_a_grid_says_the_command_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    arguments = ["grid", "grid.toml", *LONG, "--output", "out", "--workers", "2"]
    first = plan(tmp_path / "grid.toml", tmp_path / "out", LONG)[0].directory
    code, out, err = interrupted(arguments, first / "metrics.jsonl", tmp_path)
    assert code == 130
    assert "2 cells, all checked: 2 new" in out
    assert err.endswith(f"to go on: {shlex.join(['segcredit', *arguments])}\n")
    assert err.count("\n") == 1
    assert set(read_runs(tmp_path / "out").runs["status"]) == {"interrupted"}


def test_an_audit_says_the_command_that_goes_on(tmp_path: Path) -> None:
    arguments = ["audit", "grpo", *SMALL, *AUDIT, "--output", "audit"]
    code, _, err = interrupted(arguments, tmp_path / "audit" / "status.json", tmp_path)
    assert code == 130
    assert err.endswith(f"to go on: {shlex.join(['segcredit', *arguments])}\n")
    assert err.count("\n") == 1
    assert read_ending(tmp_path / "audit")["status"] == "interrupted"


def test_a_command_of_a_plug_in_is_no_exception(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segmenters.learned.corpus.read_corpus", stopped)
    with pytest.raises(SystemExit, match="130"):
        main(["fit-boundaries", "texts.jsonl", "--output", str(tmp_path / "model.skops")])
    said = capsys.readouterr()
    assert "to go on: segcredit fit-boundaries texts.jsonl" in said.err
