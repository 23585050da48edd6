"""Training in environments of several turns, with the real loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from segcredit import episodes, load_config, read_runs, train
from segcredit.protocols import Transition, asked
from segcredit.segmentation import Segmentation
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from small import SMALL

POINTER = [*SMALL, 'task={name="pointer"}', 'segmenter={name="turns"}']


@pytest.mark.parametrize("method", ["grpo", "sapo", "ppo", "vineppo", "spo_tree", "reinforce_pp"])
def test_a_run_in_turns_is_recorded_whole_and_finite(method: str, tmp_path: Path) -> None:
    tree = ["rollouts.branches=[2,2]"] if method == "spo_tree" else []
    path = train(load_config(method, [*POINTER, *tree]), tmp_path / "run")
    runs = read_runs(path)
    assert runs.runs.status.tolist() == ["finished"]
    assert np.isfinite(runs.steps.loss[1:]).all()
    assert runs.completions.segments.sum() == len(runs.segments)
    assert runs.segments.groupby(["step", "prompt", "completion"]).size().max() > 1
    # Segments hold what the policy said; observations stand between them.
    said = runs.segments.groupby(["step", "prompt", "completion"]).text.agg(list)
    texts = runs.completions.set_index(["step", "prompt", "completion"]).text
    for key, pieces in said.items():
        place = 0
        for piece in pieces:
            place = texts[key].index(piece, place) + len(piece)
    lengths = runs.tokens.groupby(["step", "prompt", "completion"]).size()
    assert (lengths == runs.completions.set_index(lengths.index.names).tokens).all()


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("method", ["grpo", "vineppo", "sapo"])
def test_a_run_killed_inside_an_episode_resumes_to_the_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(*given: Any) -> Transition:
        calls.append(given[2])
        return asked(*given)

    config = load_config(method, POINTER)
    monkeypatch.setattr(episodes, "asked", counted)
    whole = train(config, tmp_path / "whole")
    last = len(calls) * 3 // 4
    calls.clear()

    def killed(*given: Any) -> Transition:
        if len(calls) == last:
            raise Killed
        return counted(*given)

    with monkeypatch.context() as patch:
        patch.setattr(episodes, "asked", killed)
        with pytest.raises(Killed):
            train(config, tmp_path / "cut")
    assert 0 < len(read_runs(tmp_path / "cut").steps) < 5
    resumed = train(config, tmp_path / "cut", resume=True)
    for name in ("steps", "segments", "completions", "tokens"):
        one, other = (getattr(read_runs(path), name) for path in (whole, resumed))
        dropped = ["run", *(["cpu_seconds"] if name == "steps" else [])]
        pd.testing.assert_frame_equal(
            one.drop(columns=dropped), other.drop(columns=dropped), check_exact=True
        )


@pytest.fixture(scope="module")
def batch() -> Any:
    return collect(build(load_config("vineppo", [*POINTER, "policy.steps=100"])), 1)


def test_credit_of_turns(batch: Any) -> None:
    rollouts = batch.rollouts
    assert torch.equal(batch.segmentation.action_mask, rollouts.action_mask)
    turns = batch.segmentation.reduce(rollouts.turn_ids, "first")
    numbers = torch.arange(turns.shape[1]).expand_as(turns)
    assert torch.equal(turns[batch.segmentation.mask], numbers[batch.segmentation.mask])
    assert not batch.advantages.per_token[~rollouts.action_mask].any()


def test_monte_carlo_continues_from_turns(batch: Any) -> None:
    rollouts, simulator = batch.rollouts, batch.simulator
    cuts: Segmentation = batch.segmentation
    rows, columns = cuts.mask.nonzero(as_tuple=True)
    found = simulator.resume(rollouts, rows, cuts.anchors()[rows, columns], 64)
    # Where the answer stands in the last observation, the value is what copying it makes of it.
    assert found.rewards.shape == (len(rows), 64)
    assert 0 < float(found.rewards.mean()) < 1
    first = found.rewards[columns == 0].mean(1)
    again = simulator.sample(list(simulator.prompts), 256)
    means = again.rewards.view(len(simulator.prompts), -1).mean(1)
    keys = list(simulator.prompts)
    want = torch.stack([means[keys.index(key)] for key in rollouts.prompt_keys])
    assert float((first - want).abs().max()) < 5 * (0.25 / 64 + 0.25 / 256) ** 0.5


def test_a_value_is_of_the_rewards_still_to_come() -> None:
    # The key's reward is paid once: behind it, what is left is the door's.
    world = 'task={name="grid_world", columns=3, rows=3, max_distance=4, key_reward=0.5}'
    settings = [*SMALL, world, 'segmenter={name="turns"}', "policy.steps=150", "evaluate.prompts=4"]
    found = collect(build(load_config("vineppo", [*settings, "rollouts.max_new_tokens=40"])), 1)
    rollouts, cuts = found.rollouts, found.segmentation
    rows, columns = cuts.mask.nonzero(as_tuple=True)
    positions = cuts.anchors()[rows, columns]
    earned = (rollouts.token_rewards > 0) & (rollouts.turn_ids >= 0)
    before = torch.stack([earned[r, :p].any() for r, p in zip(rows, positions, strict=True)])
    assert 0 < int(before.sum()) < len(before)
    values = found.simulator.resume(rollouts, rows, positions, 8).rewards
    assert set(values[before].flatten().tolist()) <= {0.0, 1.0}
    assert {0.5, 1.5} & set(values[~before].flatten().tolist())
    # Greedily from every state of a likeliest episode, it is exactly what that has still earned.
    params = replace(found.simulator.params, greedy=True)
    greedy = found.simulator.sample(list(found.simulator.prompts), 2, params=params)
    rows, positions = greedy.action_mask.nonzero(as_tuple=True)
    again = found.simulator.resume(greedy, rows, positions, 1, params=params).rewards[:, 0]
    to_go = greedy.token_rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(again, to_go[rows, positions])
