"""The prompts of a run: the same after a kill, and the same for every method."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit import load_config, read_runs, train
from segcredit.policy.tiny.warm_start import character_tokenizer
from segcredit.protocols import Prompt, Verdict
from segcredit.tasks.dataset import Dataset
from segcredit.training.build import build
from segcredit.training.credit_assignment import assign, collect

ROWS = 45
SMALL = {
    "rollouts": {"prompts": 4, "completions": 2, "max_new_tokens": 3},
    "evaluate": {"prompts": 2, "every": 100},
    "train": {"steps": 14, "patience": 100, "value": {"warmup_iterations": 1}},
    "record": {"every": 1, "segments": False},
    "checkpoint": {"every": 4},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained character model on the disk."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer: Any = character_tokenizer("0123456789?#")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=1,
            num_key_value_heads=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **size,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"name": "hf", "model": str(folder)}


@pytest.fixture
def source(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"{n}?", "answer": str(n)} for n in range(ROWS)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def config(method: str, policy: dict[str, str], source: str, **task: Any) -> Any:
    table = {"name": "dataset", "source": source, "verifier": "exact", **task}
    return load_config({"method": method, "policy": policy, "task": table, **SMALL})


def override(config: Any, key: str) -> Any:
    return load_config(config.model_dump(), [key])


def prompts(path: Path) -> list[list[str]]:
    """The prompts of each step, each once."""
    rows = read_runs(path).completions
    return [list(dict.fromkeys(step["prompt"].astype(str))) for _, step in rows.groupby("step")]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def _won_at_random(_: Dataset, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
    return Verdict(zlib.crc32(f"{prompt.key}{text}".encode()) % 97 / 97, False)


@pytest.mark.parametrize("task", [{}, {"streaming": True, "buffer": 10}])
def test_a_killed_run_goes_on_with_the_prompts_that_were_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: dict[str, str],
    source: str,
    task: dict[str, Any],
) -> None:
    monkeypatch.setattr(Dataset, "verify", _won_at_random)
    wanted = config("grpo", policy, source, **task)
    whole = prompts(train(wanted, tmp_path / "whole"))

    def killed_at_seven(run: Any, sampled: Any, step: int) -> Any:
        if step == 7:
            raise Killed
        return assign(run, sampled, step)

    with monkeypatch.context() as patch:
        patch.setattr("segcredit.training.loop.assign", killed_at_seven)
        with pytest.raises(Killed):
            train(wanted, tmp_path / "cut")
    assert prompts(train(wanted, tmp_path / "cut", resume=True)) == whole
    first = [key for step in whole[:9] for key in step]
    assert len(set(first)) == len(first) == 36  # nothing comes again within a pass
    assert len({key for step in whole for key in step}) > 36


def test_warm_up_and_further_rounds_leave_the_steps_their_prompts(
    policy: dict[str, str], source: str
) -> None:
    plain = build(config("grpo", policy, source))
    expected = [set(collect(plain, step).rollouts.prompt_keys) for step in (1, 2)]
    critic = build(config("ppo", policy, source))
    before = critic.prompts.state_dict()
    collect(critic, -1)
    assert critic.prompts.state_dict() == before
    assert critic.further_prompts.state_dict() != before
    assert [set(collect(critic, step).rollouts.prompt_keys) for step in (1, 2)] == expected
    # All rewards are equal, so that further rounds are drawn.
    again = build(override(config("grpo", policy, source), "rollouts.dynamic_sampling=true"))
    sampled = collect(again, 1)
    assert sampled.sampled.rounds > 1
    collect(again, 2)
    assert again.prompts.state_dict() == plain.prompts.state_dict()
