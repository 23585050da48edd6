"""Value pretraining: cached, shared, resumed exactly, and outside of what the steps draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit import load_config, train
from segcredit.objective.returns import lambda_returns
from segcredit.records import checkpoint
from segcredit.training import pretraining
from segcredit.training.build import build
from segcredit.training.credit_assignment import assign, collect
from segcredit.training.loop import iterate
from segcredit.training.pretraining import PretrainingProgress, pretrain
from segcredit.training.rollouts.sampling import sample
from small import SMALL

READER = [
    *SMALL,
    "estimator={name='critic', network='reader'}",
    "train.value.warmup_iterations=0",
    "train.value.pretraining={completions=48, epochs=2, rows=8}",
]
HEAD = [*READER, "estimator={name='critic', network='head'}"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for values; policies keep the tests' own, which takes time to make."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(pretraining, "cache_folder", lambda: folder)
    return folder


def state_of(*changes: str, watch: Any = None) -> dict[str, torch.Tensor]:
    run = build(load_config("ppo", [*READER, *changes]))
    pretrain(run, watch)
    return run.state.module.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def stages(*changes: str) -> list[str]:
    told: list[PretrainingProgress] = []
    state_of(*changes, watch=told.append)
    return [f"{one.stage} {one.done}/{one.total}" for one in told]


def test_all_definitions_of_segments_share_one_state(cache: Path) -> None:
    assert stages() == [
        *(f"sampling {done}/3" for done in range(3)),
        *(f"fitting {done}/6" for done in range(6)),
    ]
    assert len(list(cache.iterdir())) == 1
    first = state_of()
    for changes in (["segmenter=newline"], ["loss.kl_penalty=0.1"], ["train.steps=9"]):
        assert stages(*changes) == []
        assert same(first, state_of(*changes))
    for changes in (
        ["seed=1"],
        ["estimator.width=8"],
        ["policy.steps=41"],
        ["train.value.pretraining.rows=16"],
        ["rollouts.temperature=0.9"],
    ):
        assert stages(*changes) != []
        assert changes[0].startswith("estimator") or not same(first, state_of(*changes))


def test_seeds_may_start_from_one_policy_and_one_critic() -> None:
    """And draw their steps apart; without the key nothing is another."""
    whole = load_config("ppo", READER)
    assert "start_seed" not in whole.model_dump()
    runs = [build(load_config("ppo", [*READER, f"seed={seed}", "start_seed=0"])) for seed in (1, 2)]
    pretrain(lone := build(whole))
    for run in runs:
        pretrain(run)
        assert same(lone.policy.module.state_dict(), run.policy.module.state_dict())
        assert same(lone.state.module.state_dict(), run.state.module.state_dict())
    ids = [sample(run, 1).rollouts.prompt_keys for run in runs]
    assert ids[0] != ids[1]
    assert stages("seed=3", "start_seed=0") == []


def test_a_critic_at_anchors_is_pretrained_for_its_segmenter() -> None:
    wanted = ["estimator={name='critic', network='head'}"]
    assert stages(*wanted) != []
    assert stages(*wanted, "segmenter=newline") != []
    assert stages(*wanted, "segmenter=newline") == []


def test_process_rewards_of_segments_are_learned_with_the_segments() -> None:
    rewarded = ["process_reward=equations", "segmenter=newline"]
    first = state_of(*rewarded)
    assert stages(*rewarded) == []
    assert stages("process_reward=equations", "segmenter=whole") != []
    assert not same(first, state_of())


def test_a_stopped_fit_goes_on_with_the_same_state(cache: Path) -> None:
    whole = state_of()
    for folder in cache.iterdir():
        for file in folder.iterdir():
            file.unlink()

    def stop(told: PretrainingProgress) -> None:
        if told.stage == "fitting" and told.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state_of(watch=stop)
    assert [file.name for file in checkpoint.found(next(cache.iterdir()))] == ["step_000001.pt"]
    assert stages()[3:] == ["fitting 3/6", "fitting 4/6", "fitting 5/6"]
    assert same(whole, state_of())


def test_a_damaged_state_is_made_again(cache: Path) -> None:
    whole = state_of()
    (file,) = checkpoint.found(next(cache.iterdir()))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"(?s)checksum.*pretrained anew"):
        assert same(whole, state_of())
    assert stages() == []


def test_steps_draw_what_they_would_have_drawn(tmp_path: Path) -> None:
    with_it = collect(built := build(load_config("ppo", READER)), 1).rollouts
    pretrain(built)
    plain = build(load_config("ppo", READER[:-1]))
    again = build(load_config("ppo", READER))
    pretrain(again)
    for run in (plain, again):
        found = collect(run, 1).rollouts
        assert found.prompt_keys == with_it.prompt_keys
        assert torch.equal(found.completion_ids, with_it.completion_ids)


def test_a_run_tells_what_the_state_cost_whoever_made_it(tmp_path: Path) -> None:
    rows = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (
            train(load_config("ppo", [*READER, f"segmenter={name}"]), tmp_path / name)
            for name in ("per_token", "newline")
        )
    ]
    first, second = (run[0] for run in rows)
    assert first["pretraining_tokens"] == second["pretraining_tokens"] > 48
    assert first["pretraining_cpu_seconds"] == second["pretraining_cpu_seconds"] > 0
    assert first["cpu_seconds"] < first["pretraining_cpu_seconds"]
    assert first["tokens_sampled"] == 0


@pytest.mark.parametrize("config", [READER, HEAD])
def test_a_pretrained_run_resumes_exactly(config: list[str], tmp_path: Path) -> None:
    settings = load_config("ppo", config)
    train(settings, tmp_path / "whole")
    for row in iterate(settings, tmp_path / "cut"):
        if row["step"] == 3:
            break
    train(settings, tmp_path / "cut", resume=True)
    whole, cut = (
        checkpoint.load_run(checkpoint.found(tmp_path / name / "checkpoints")[-1])
        for name in ("whole", "cut")
    )
    for part in ("policy", "estimator"):
        assert same(whole[part]["module"], cut[part]["module"])


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_targets_are_the_returns_that_came(lam: float) -> None:
    run = build(load_config("ppo", [*READER, f"estimator.lam={lam}", "segmenter=newline"]))
    batch = assign(run, sample(run, -1), -1, in_hindsight=True)
    want = batch.rollouts.rewards[:, None] * batch.states.mask
    assert torch.allclose(batch.targets, want)
    assert torch.allclose(batch.state_values.values, want)
    assert torch.allclose(lambda_returns(batch.values), batch.segment_targets)


def test_pretraining_is_left_alone_where_nothing_is_trained(tmp_path: Path) -> None:
    settings = ["train.value.pretraining={completions=48}", *SMALL]
    rows = list(iterate(load_config("grpo", settings), tmp_path / "run"))
    assert "pretraining_tokens" not in rows[0]


@pytest.mark.slow
def test_a_reader_knows_far_more_after_pretraining() -> None:
    """Beyond chance: a pretrained reader explains returns of completions that it has not seen."""
    changes = ["policy.steps=400", "task.max_steps=4", "rollouts.prompts=32"]
    changes += ["rollouts.max_new_tokens=64", "train.value.pretraining.completions=4000"]
    run = build(load_config("ppo", [*READER, *changes, "train.value.pretraining.rows=64"]))
    pretrain(run)
    batch = collect(run, 1)
    returns = lambda_returns(batch.whole)
    residual = (returns - batch.whole.values)[batch.whole.mask].var()
    assert float(1 - residual / returns[batch.whole.mask].var()) > 0.2
