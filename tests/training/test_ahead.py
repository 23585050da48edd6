"""Completions drawn one step ahead: what they were drawn with, and when."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segcredit
from segcredit import SampledTokens, Sampler, load_config, registry
from segcredit.errors import ConfigError, PluginError
from segcredit.policy.samplers.lean import Lean
from segcredit.training.build import build, run_hash
from segcredit.training.credit_assignment import assign, collect
from segcredit.training.distributed.processes import Processes
from segcredit.training.rollouts.ahead import Ahead
from segcredit.training.rollouts.completions import score
from segcredit.training.update import improve
from small import SMALL

AHEAD = [*SMALL, "rollouts.ahead=1", "record.tokens=false"]


def test_completions_ahead_are_those_of_the_policy_before_the_update() -> None:
    config = load_config("grpo", AHEAD)
    run, other = build(config), build(config)
    batches = Ahead(run)
    first = assign(run, batches.sample(1), 1)
    assert torch.equal(first.rollouts.completion_ids, collect(other, 1).rollouts.completion_ids)
    assert torch.equal(first.rollouts.sampler_logprobs, first.rollouts.logprobs)  # drawn just now
    batches.begin(2)
    improve(run, first, 1, before_sync=batches.wait)
    second = batches.sample(2).rollouts
    # The other run has not been updated: what it draws and scores is what was drawn ahead.
    want = collect(other, 2).rollouts
    assert torch.equal(second.completion_ids, want.completion_ids)
    assert second.sampler_logprobs is not None
    torch.testing.assert_close(second.sampler_logprobs, want.logprobs)
    now = score(run.actor, second, micro_tokens=4096).logprobs
    torch.testing.assert_close(second.logprobs.detach(), now)
    assert not torch.allclose(now, second.sampler_logprobs, atol=1e-4)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").open()]


def test_a_run_ahead_records_how_old_its_completions_are(tmp_path: Path) -> None:
    settings = [*AHEAD, "loss.correction=truncate", "train.steps=3"]
    path = segcredit.train("grpo", tmp_path / "run", overrides=settings)
    plain = segcredit.train("grpo", tmp_path / "plain", overrides=[*SMALL, "train.steps=3"])
    found, others = rows(path), rows(plain)
    same = ("reward", "loss", "gradient_norm", "accuracy")
    assert [found[1].get(name) for name in same] == [others[1].get(name) for name in same]
    assert found[2]["reward"] != others[2]["reward"] or found[2]["loss"] != others[2]["loss"]
    assert found[1]["sampler_kl"] == 0
    assert all(row["sampler_ratio_max"] > 1.001 for row in found[2:])


class Engine(Sampler):
    """Has weights of its own, tells its log-probs (wrong ones), and takes its time."""

    in_process = False
    tells = True

    def __init__(self) -> None:
        self.events: list[str] = []
        self.own: nn.Module | None = None

    def sample(self, model: nn.Module, *args: Any, **options: Any) -> SampledTokens:
        self.events.append(f"begin in {current_thread().name}")
        own = self.own if self.own is not None else model
        time.sleep(0.2)
        drawn = Lean().sample(own, *args, **options)
        self.events.append("end")
        told: Tensor | None = torch.full(drawn.ids.shape, -0.5) if self.tells else None
        return SampledTokens(drawn.ids, told)

    def sync(self, model: nn.Module) -> None:
        self.events.append("sync")
        self.own = copy.deepcopy(model)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that is registered; the same object for every run."""
    only = Engine()

    class Its(Engine):
        def __new__(cls) -> Any:
            return only

    monkeypatch.setitem(registry.samplers._local, "its", Its)
    return only


def test_an_engine_draws_beside_the_update_and_then_gets_the_weights(engine: Engine) -> None:
    run = build(load_config("grpo", [*AHEAD, "sampler=its"]))
    batches = Ahead(run)
    batch = assign(run, batches.sample(1), 1)
    engine.events.clear()
    batches.begin(2)
    improve(run, batch, 1, before_sync=batches.wait)
    assert engine.events == ["begin in rollouts ahead", "end", "sync"]
    told = batches.sample(2).rollouts.sampler_logprobs
    assert told is not None
    assert set(told.unique().tolist()) == {-0.5, 0.0}
    assert len(engine.events) == 3  # it was not asked again


def test_an_engine_that_fails_ends_the_run_by_its_sentence(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = engine.sample

    def gone(*args: Any, **options: Any) -> SampledTokens:
        if current_thread().name == "rollouts ahead" and engine.events.count("sync") == 2:
            raise PluginError("the server at http://127.0.0.1:1 is gone.")
        return draws(*args, **options)

    monkeypatch.setattr(engine, "sample", gone)
    settings = [*AHEAD, "sampler=its", "checkpoint.every=1"]
    with pytest.raises(PluginError, match="is gone"):
        segcredit.train("grpo", tmp_path / "run", overrides=settings)
    monkeypatch.setattr(engine, "sample", draws)
    path = segcredit.train("grpo", tmp_path / "run", overrides=settings, resume=True)
    assert [row["step"] for row in rows(path)] == [0, 1, 2, 3, 4]


def test_an_engine_must_tell_what_it_drew_with(engine: Engine) -> None:
    engine.tells = False
    run = build(load_config("grpo", [*AHEAD, "sampler=its"]))
    batches = Ahead(run)
    batches.begin(1)
    with pytest.raises(PluginError, match=r"sampler 'its' tells no log-probs.*rollouts\.ahead"):
        batches.sample(1)


def test_a_resumed_run_meets_the_same_prompts(tmp_path: Path) -> None:
    """Under the policy that it has then: sampling ahead is not resumed to the bit."""
    settings = [*AHEAD, "record.every=1", "checkpoint.every=1", "train.schedule=constant"]
    whole = segcredit.train("grpo", tmp_path / "whole", overrides=settings)
    cut = segcredit.train("grpo", tmp_path / "cut", overrides=settings)
    for name in ("step_000004.pt", "step_000003.pt"):
        for file in (cut / "checkpoints").glob(f"{name}*"):
            file.unlink()
    (cut / "status.json").unlink()
    segcredit.train("grpo", cut, overrides=settings, resume=True)
    keys = [segcredit.read_runs(path).completions["prompt"].tolist() for path in (whole, cut)]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) > 4


def test_sampling_ahead_is_of_one_process_and_of_no_tree() -> None:
    config = load_config("grpo", AHEAD)
    with pytest.raises(ConfigError, match=r"rollouts\.ahead is 1 and 2 processes"):
        build(config, Processes(rank=0, count=2, device=torch.device("cpu")))
    with pytest.raises(ConfigError, match="ahead is 1 and layout is 'tree'"):
        load_config("spo_tree", ["rollouts.ahead=1"])


def test_runs_from_before_there_was_the_key_keep_their_name() -> None:
    without, off = load_config("grpo", SMALL), load_config("grpo", [*SMALL, "rollouts.ahead=0"])
    assert "ahead" not in without.model_dump()["rollouts"]
    assert run_hash(without) == run_hash(off) != run_hash(load_config("grpo", AHEAD))
