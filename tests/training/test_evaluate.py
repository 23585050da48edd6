"""Evaluation: figures of verdicts, columns of a run, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from segcredit import load_config, read_runs, train
from segcredit.cli import main
from segcredit.study.evaluation import evaluated_policy, summary
from segcredit.training.evaluate import GREEDY, Judged, by_prompt, metrics
from small import SMALL


def judged(prompt: str, completion: int, correct: bool, answer: str | None = None) -> Judged:
    return Judged(prompt, completion, correct, None, answer, float(correct), False, 1, "text")


def answers(prompt: str, said: str, true: str) -> list[Judged]:
    rows = [judged(prompt, n, one == true, one) for n, one in enumerate(said)]
    return [*rows, judged(prompt, GREEDY, said[0] == true, said[0])]


def test_figures_are_means_over_prompts() -> None:
    found = [*answers("p", "4453", "4"), *answers("q", "1233", "1"), *answers("r", "9999", "9")]
    shares = by_prompt(found)
    assert list(shares) == [
        *("accuracy", "accuracy_greedy", "process_correct", "pass_at_2", "pass_at_4", "majority")
    ]
    assert shares["accuracy"] == [0.5, 0.25, 1.0]
    assert shares["pass_at_2"] == pytest.approx([5 / 6, 0.5, 1.0])
    assert shares["majority"] == [1.0, 0.0, 1.0]
    assert metrics(found)["accuracy"] == pytest.approx(1.75 / 3)
    assert math.isnan(metrics(found)["process_correct"])
    assert metrics(found[::-1]) == pytest.approx(metrics(found), nan_ok=True)
    assert list(by_prompt(found, [1, 3]))[3:] == ["pass_at_1", "pass_at_3", "majority"]


def test_one_completion_says_nothing_of_several_and_silence_is_no_vote() -> None:
    one = [judged("p", 0, True, "4"), judged("p", GREEDY, False, "3")]
    assert list(metrics(one)) == ["accuracy", "accuracy_greedy", "process_correct"]
    silent = [judged("p", 0, True), judged("p", 1, True), judged("p", GREEDY, True)]
    assert math.isnan(metrics(silent)["majority"])
    nothing = [judged("p", 0, False, ""), judged("p", 1, False, ""), judged("p", GREEDY, False)]
    assert metrics(nothing)["majority"] == 0.0
    assert all(math.isnan(value) for value in metrics([]).values())


def test_the_unit_of_an_interval_is_a_prompt() -> None:
    """Ten copies of every completion say no more than one."""
    few = [one for n in range(20) for one in answers(f"p{n}", "1" if n % 3 else "2", "1")]
    many = [one for n in range(20) for one in answers(f"p{n}", ("1" if n % 3 else "2") * 10, "1")]
    narrow, wide = summary(few)[0], summary(many)[0]
    assert (narrow.low, narrow.high) == pytest.approx((wide.low, wide.high))
    assert narrow.low < narrow.value < narrow.high
    assert math.isnan(summary(answers("p", "11", "1"))[0].low)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    return train(load_config("grpo", [*SMALL, "evaluate.completions=4"]), path)


def test_a_run_records_pass_at_k_and_the_vote(run: Path) -> None:
    steps = read_runs(run).steps
    evaluated = steps[steps.accuracy.notna()]
    assert evaluated.step.tolist() == [0, 2, 4]
    assert (evaluated.pass_at_4 >= evaluated.pass_at_2).all()
    assert (evaluated.pass_at_2 >= evaluated.accuracy).all()
    assert evaluated.majority.between(0, 1).all()
    assert "pass_at_1" not in steps


def call(*arguments: Any) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def test_the_command_repeats_the_runs_own_evaluation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", run) == 0
    folder = run / "evaluation" / "step_000004"
    shown = json.loads((folder / "evaluation.json").read_text())
    last = read_runs(run).steps.iloc[-1]
    said = capsys.readouterr().out
    for name, figure in shown["figures"].items():
        assert figure["value"] == pytest.approx(float(last[name]), abs=1e-9), name
        assert name in said
    rows: Any = pd.read_parquet(folder / "evaluation.parquet")
    assert len(rows) == 8 * 5
    sampled = rows[rows.completion != GREEDY]
    assert sampled.correct.mean() == pytest.approx(shown["figures"]["accuracy"]["value"])
    assert call("evaluate", run) == 1
    assert "already holds evaluation.parquet and evaluation.json" in capsys.readouterr().err
    assert call("evaluate", run, "--overwrite", "--k", "1,3", "--batch", "3") == 0
    assert "pass_at_3" in json.loads((folder / "evaluation.json").read_text())["figures"]
    first = run / "checkpoints" / "step_000002.pt"
    more = ["--checkpoint", first, "--output", tmp_path / "two", "--completions", "1"]
    assert call("evaluate", run, "--prompts", "3", *more) == 0
    assert len(pd.read_parquet(tmp_path / "two" / "evaluation.parquet")) == 6


def test_the_policy_before_training(run: Path, tmp_path: Path) -> None:
    assert call("evaluate", "grpo", *SMALL, "--completions", "4", "--output", tmp_path / "new") == 0
    shown = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    first = read_runs(run).steps.iloc[0]
    assert shown["checkpoint"] is None
    assert shown["figures"]["pass_at_4"]["value"] == pytest.approx(float(first["pass_at_4"]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "5"], "pass@5 was asked for with 4 completions of each prompt"),
        (["--k", "many"], "--k is 'many'; expected whole numbers"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt cannot be read"),
    ],
)
def test_what_is_refused(
    run: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", run, "--output", tmp_path / "new", *more) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


def test_a_run_without_a_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    assert call("evaluate", tmp_path) == 1
    assert "has no checkpoint" in capsys.readouterr().err


def test_a_run_without_its_config_is_told_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", tmp_path) == 1
    assert f"{tmp_path / 'config.toml'} cannot be read" in capsys.readouterr().err
    assert call("train", tmp_path) == 1
    assert "give the config.toml" in capsys.readouterr().err


def test_a_folder_may_bear_the_name_of_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grpo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert evaluated_policy("grpo").checkpoint is None
