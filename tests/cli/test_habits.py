"""What all commands share: --json, names of runs, exit status; and `runs` and `compare`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from segcredit import read_runs
from segcredit.cli import main
from segcredit.errors import StudyError
from segcredit.records.run_directory import RunRecords
from segcredit.records.run_lock import run_lock
from segcredit.records.tables import named_path
from segcredit.study.segmenting.cut import chosen_segmenters
from segcredit.study.statistics import compare, summarise
from small import SMALL


def call(*arguments: Any) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def make_run(
    path: Path, segmenter: str, seed: int, accuracy: float, *, steps: int = 5, fork: str = "ends"
) -> RunRecords:
    table = {"name": segmenter} | ({"fork": fork} if segmenter == "entropy" else {})
    config = {"method": "mine", "seed": seed, "segmenter": table, "train": {"steps": steps}}
    run = RunRecords.create(path, config, {})
    for step, value in ((0, 0.1), (5, accuracy)):
        run.metrics({"step": step, "accuracy": value, "tokens_sampled": 9.0, "cpu_seconds": 1.0})
    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two segmenters, three seeds each, below ``runs``; and where it is, the current folder."""
    for number, segmenter in enumerate(("whole", "entropy")):
        for seed in range(3):
            accuracy = 0.3 + 0.1 * number + 0.01 * seed * (1 + number)
            make_run(
                tmp_path / "runs" / "study" / f"{number}{seed}a", segmenter, seed, accuracy
            ).finish()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> Any:
    """The document that a command printed, and nothing else."""
    assert call(*arguments, "--json") == code
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))


def test_runs_says_how_far_each_has_come(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / "runs" / "study"
    make_run(place / "failed", "whole", 7, 0.2, steps=9).fail("TrainingError", "no\nmore", "")
    (place / "dead" / "gone").mkdir(parents=True)
    make_run(place / "killed", "whole", 8, 0.2, steps=9)
    (place / "killed" / ".lock").touch()
    alive = make_run(place / "alive", "entropy", 9, 0.2, steps=25)
    begun = time.time() - 100
    status = json.loads((place / "alive" / "status.json").read_text())
    monkeypatch.setattr(
        "segcredit.records.tables.progress.read_status",
        lambda path: {**status, "started": "1970-01-01T00:00:00+00:00"},
    )
    alive.checkpoints.mkdir()
    (alive.checkpoints / "step_000000.pt").touch()
    os.utime(alive.checkpoints / "step_000000.pt", (begun, begun))
    os.utime(place / "alive" / "metrics.jsonl", (begun + 50, begun + 50))
    with run_lock(place / "alive"):
        rows = {row["run"]: row for row in document(capsys, "runs")["runs"]}
        assert list(rows["study/alive"]) == list(read_runs("runs").progress.columns)
        assert call("runs", "runs") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert rows["study/alive"]["status"] == "running"
    # Five steps in 50 seconds, and twenty to go.
    assert rows["study/alive"]["seconds_left"] == pytest.approx(200, abs=0.1)
    assert "study/alive entropy 9 running 5/25 3 min" in shown
    assert "failed study/failed: TrainingError: no" in shown
    assert "more" not in shown
    assert rows["study/killed"]["status"] == "interrupted"
    assert rows["study/killed"]["seconds_left"] is None
    assert "1 failed, 6 finished, 1 interrupted, 1 running; 28 policy steps to do" in shown


def test_how_far_an_audit_has_come_is_not_told_in_steps(tmp_path: Path) -> None:
    RunRecords.create(tmp_path / "a", {"audit": {"prompts": 3}, "train": {"steps": 9}}, {})
    make_run(tmp_path / "b", "whole", 1, 0.2)
    assert list(read_runs(tmp_path).progress["steps"].isna()) == [True, False]


SIDES = [
    ("segmenter=whole", "segmenter=entropy"),
    ("segmenter=whole method=mine", "segmenter.fork=ends"),
    ("whole", "entropy"),
]


@pytest.mark.parametrize("sides", SIDES, ids=[side for side, _ in SIDES])
def test_compare_pairs_over_seeds(
    folder: Path, capsys: pytest.CaptureFixture[str], sides: tuple[str, str]
) -> None:
    expected = compare(read_runs("runs"), ["segmenter"], "accuracy", baseline="whole")
    if "=" not in sides[0]:
        for run in sorted(folder.glob("runs/study/*")):
            place = folder / sides[int(run.name[0])]
            place.mkdir(exist_ok=True)
            run.rename(place / run.name)
    found = document(capsys, "compare", *sides)
    (row,) = found["comparison"]
    assert list(row) == list(expected.columns)
    for name in ("difference", "low", "high", "p", "shared_seeds"):
        assert row[name] == expected[name].item()
    assert (row["a"], row["b"]) == sides
    assert found["settings"] == [
        {"key": "segmenter", "a": "whole", "b": "entropy"},
        {"key": "segmenter.fork", "a": "none", "b": "ends"},
    ]
    assert call("compare", *sides) == 0
    shown = capsys.readouterr().out
    assert f"{sides[1]} minus {sides[0]} is +0.11" in shown
    assert shown.index("shared seeds") < shown.index("config keys that differ")
    assert "and 1 of their options" in shown  # segmenter.fork


def test_compare_of_two_runs_by_the_beginnings_of_their_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("compare", "01", "study/11") == 0
    assert "is +0.11 for the one shared seed, which says nothing of chance" in (
        capsys.readouterr().out
    )


WRONG = [
    (["runs", "0"], "'0' begins the names of 3 runs: runs/study/00a, runs/study/01a"),
    (["report", "stdy"], "did you mean 'study'?"),
    (["results", "runs/studi"], "did you mean 'runs/study'?"),
    (["save-policy", "x9", "out"], "is no directory, and begins no run's name"),
    (["evaluate", "sapoo"], "did you mean 'sapo'?"),
    (["train", "0", "--resume"], "begins the names of 3 runs"),
    (["compare", "0", "1"], "begins the names of 3 runs"),
    (["compare", "00a", "00"], "runs/study/00a is on both sides"),
    (["compare", "segmentr=whole", "10"], "did you mean 'segmenter'?"),
    (["compare", "segmenter=hole", "10"], "did you mean 'whole'?"),
    (["compare", "segmenter=whole segmenter.fork=ends", "10"], "no run in runs has all of"),
    (["compare", "00", "10", "--metric", "acuracy"], "did you mean 'accuracy'?"),
    (["compare", "00", "10", "--measure", "lst"], "did you mean 'last'?"),
    (["grid", "gird.toml"], "did you mean 'grid.toml'?"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_name_is_status_1_and_a_sentence_with_the_nearest(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (folder / "grid.toml").touch()
    (folder / "study").mkdir()
    assert call(*arguments) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["resutls"], ["results", "runs", "--bye", "x"], ["compare", "a"], ["train"]]
)
def test_a_command_line_that_is_not_understood_is_status_2(arguments: list[str]) -> None:
    assert call(*arguments) == 2


def test_what_exists_is_taken_before_the_beginning_of_a_name(folder: Path) -> None:
    (folder / "00").mkdir()
    assert named_path("00") == Path("00")
    assert named_path("01") == Path("runs/study/01a")
    assert named_path(folder / "runs" / "study" / "12") == folder / "runs" / "study" / "12a"
    with pytest.raises(StudyError, match="3 runs"):
        named_path("study/1")


def test_results_and_list_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "results", "runs", "--by", "segmenter,segmenter.fork", "--compare")
    expected = summarise(read_runs("runs"), ["segmenter", "segmenter.fork"], "accuracy")
    assert [list(row) for row in found["summary"]] == [list(expected.columns)] * 2
    assert found["summary"][1]["segmenter.fork"] is None  # NaN in the table
    assert [row["mean"] for row in found["summary"]] == list(expected["mean"])
    assert len(found["comparison"]) == 1
    plugins = document(capsys, "list")["plugins"]
    assert {"segmenter", "command"} <= {row["kind"] for row in plugins}


def test_segments_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "segment", "2+2=4\nSo 4.", "-s", "newline", "-s", "paragraph")
    assert [row["text"] for row in found["segments"]] == ["2+2=4\n", "So 4.", "2+2=4\nSo 4."]
    assert [row["segmenter"] for row in found["summary"]] == list(
        chosen_segmenters(["newline", "paragraph"], policy=False)
    )
    assert found["summary"][0]["tokens_per_segment"] is None


def test_a_trained_run_by_its_beginning_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text('method = "grpo"\n[grid]\nseeds = 1\n')
    (cell,) = document(capsys, "grid", "grid.toml", *SMALL)["cells"]
    assert cell["state"] == "finished"
    found = document(capsys, "evaluate", Path(cell["directory"]).name[:4])["evaluation"]
    assert found[0]["step"] == 4
    assert {"name", "value", "low", "high", "prompts"} < set(found[0])
    assert call("train", Path(cell["directory"]).name[:4], "--resume") == 0
    assert call("save-policy", Path(cell["directory"]).name[:4], "policy") == 0
    assert (tmp_path / "policy").is_dir()


def completed(folder: Path, line: str) -> list[str]:
    """What bash is given to complete the last word of a line."""
    words = line.split(" ")
    said = {
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "_SEGCREDIT_COMPLETE": "complete_bash",
    }
    program = "import sys; sys.argv = ['segcredit']; from segcredit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env={**os.environ, **said},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("segcredit comp", ["compare"]),
        ("segcredit train reinforce_pp_", ["reinforce_pp_baseline"]),
        ("segcredit train sapo segmenter=newl", ["segmenter=newline"]),
        ("segcredit train sapo loss.bound = trunc", ["truncated_is"]),
        ("segcredit segment x -s newl", ["newline"]),
        ("segcredit results runs --metric accuracy_", ["accuracy_greedy"]),
        ("segcredit report study/1", ["study/10a", "study/11a", "study/12a"]),
        ("segcredit compare 00 runs/study/02", ["runs/study/02a"]),
    ],
)
def test_the_shell_completes(folder: Path, line: str, offered: list[str]) -> None:
    assert completed(folder, line) == offered
