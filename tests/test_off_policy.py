"""The samplers and tables of experiments/13_off_policy."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import segcredit
from segcredit import load_config
from segcredit.register import load_code
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.training.update import improve
from small import SMALL

FOLDER = Path(__file__).parents[1] / "experiments" / "13_off_policy"
ONE_UPDATE = ["train.epochs=1", "train.minibatches=1", "sampler=lean"]
CELL = [*SMALL, *ONE_UPDATE, "segmenter=newline", "record.tokens=false", "train.learning_rate=1e-3"]
WEIGHTS = ["token", "segment", "sequence"]


@pytest.fixture(autouse=True)
def behind() -> None:
    load_code([str(FOLDER / "samplers.py")])


def sampler(**options: Any) -> str:
    told = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return f'sampler={{name = "behind", {told}}}'


def script(name: str) -> Any:
    """Returns a script of the folder as a module; the folder's name is no Python name."""
    spec = importlib.util.spec_from_file_location(f"off_policy_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").open()]


def test_a_sampler_that_is_never_behind_is_the_ordinary_one(tmp_path: Path) -> None:
    plain = rows(segcredit.train("rloo", tmp_path / "plain", overrides=CELL))
    found = rows(segcredit.train("rloo", tmp_path / "own", overrides=[*CELL, sampler(every=1)]))
    for ours, theirs in zip(found, plain, strict=True):
        for name in ("reward", "loss", "gradient_norm", "entropy", "accuracy_greedy"):
            assert ours.get(name) == theirs.get(name)
        assert abs(ours.get("sampler_kl", 0)) < 1e-5


def test_a_sampler_is_behind_by_the_updates_since_it_took_the_weights() -> None:
    run = build(load_config("rloo", [*CELL, sampler(every=2)]))
    for step, behind in ((1, False), (2, True), (3, False), (4, True)):
        batch = collect(run, step)
        told, now = batch.rollouts.sampler_logprobs, batch.rollouts.logprobs
        assert told is not None
        assert (not torch.allclose(told, now, atol=1e-4)) == behind
        improve(run, batch, step)


@pytest.mark.parametrize(
    "options", [{"every": 2}, {"bfloat16": True}, {"warmer": 1.5}], ids=lambda x: next(iter(x))
)
def test_each_correction_weighs_what_another_distribution_drew(options: dict[str, Any]) -> None:
    losses: list[float] = []
    for level in (None, *WEIGHTS):
        chosen = f'{{name = "truncate", level = "{level}"}}' if level else "none"
        settings = [*CELL, sampler(**options), f"loss.correction={chosen}"]
        run = build(load_config("rloo", settings))
        for step in (1, 2):
            batch = collect(run, step)
            found = improve(run, batch, step)
        losses.append(found["gradient_norm"])
        assert (batch.corrections is None) == (level is None)
    assert len({*losses}) == len(losses)


def test_what_the_table_of_biases_calls_exact() -> None:
    """On a shorter toy: two segments of two tokens."""
    bias = script("bias")
    world = bias.World.of(4)
    credit = world.credit("td")
    arms = {arm.name: arm for arm in bias.ARMS}
    drawn = bias.samplers(world)
    for arm in bias.ARMS:
        assert bias.measure(world, arm, drawn["same"], credit).bias < 1e-10
    far = {name: bias.measure(world, arm, drawn["far"], credit) for name, arm in arms.items()}
    unbiased = {name for name, found in far.items() if found.bias < 1e-10}
    assert unbiased == {"sequence product", "prefix to the segment's end"}
    assert [name for name, x in far.items() if x.given_prefix < 1e-10] == ["segment product"]
