"""A stranger's run directory: the code that its config names is not run unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit import load_config
from segcredit.cli import main
from segcredit.errors import ConfigError
from segcredit.records.run_directory import RunRecords
from segcredit.study.stored_policy import stored_config

DATASET = {"name": "dataset", "source": "own.jsonl", "verifier": "stranger:judge"}
HF = {"name": "hf", "model": "theirs", "trust_remote_code": True}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which the code of a stranger lies ready."""
    (tmp_path / "stranger.py").write_text("open('it ran', 'w')\ndef judge(*_): return 1.0\n")
    (tmp_path / "own.jsonl").write_text('{"question": "1+1", "answer": 2}\n' * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def strangers_run(folder: Path, **keys: Any) -> Path:
    config = load_config({"method": "grpo", **keys})
    records = RunRecords.create(folder / "run", config.identity(), {})
    parts = ("policy", "estimator", "prompts", "further_prompts")
    state = {"row": {"step": 1}, **{part: {"module": {"w": torch.ones(1)}} for part in parts}}
    records.checkpoint(1, state, keep=1)
    return folder / "run"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"task": DATASET}, "task.verifier = 'stranger:judge'"),
        ({"task": {"name": "instructed", "inner": DATASET}}, "task.inner.verifier = 'stranger:ju"),
        ({"policy": HF}, "policy.trust_remote_code = True"),
        (
            {"environment": {"name": "trl", "factory": "stranger:World"}},
            "environment.factory = 'stranger:World'",
        ),
        (
            {"task": DATASET, "policy": HF},
            "task.verifier = 'stranger:judge', policy.trust_remote_code = True",
        ),
    ],
)
def test_no_command_runs_what_a_stored_config_names(
    folder: Path, keys: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = strangers_run(folder, **keys)
    for command in (["evaluate", str(run)], ["save-policy", str(run), "new"]):
        with pytest.raises(SystemExit):
            main(command)
        said = " ".join(capsys.readouterr().err.split())
        assert "names code that would be run: " in said
        assert named in said
        assert "--trust" in said
    assert not (folder / "it ran").exists()


def test_trust_is_given_again_for_all_or_by_the_key(folder: Path) -> None:
    run = strangers_run(folder, task=DATASET, policy=HF)
    assert stored_config(run, trust=True).policy["trust_remote_code"] is True
    keys = ["policy.trust_remote_code=true", "task.verifier=stranger:judge"]
    assert stored_config(run, keys).task["verifier"] == "stranger:judge"
    with pytest.raises(ConfigError, match=r"run: task.verifier"):
        stored_config(run, keys[:1])
    without = ["policy.trust_remote_code=false", "task.verifier=exact"]
    assert stored_config(run, without).task["verifier"] == "exact"
    assert not (folder / "it ran").exists()


def test_a_foreign_checkpoint_of_a_run_is_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = strangers_run(folder, policy={"name": "tiny", "steps": 0})
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--prompts", "2"])
    said = " ".join(capsys.readouterr().err.split())
    assert "differ in 'model.lm_head.weight' and 21 more names" in said
