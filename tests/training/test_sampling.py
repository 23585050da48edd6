"""Step 1 of the loop: which prompts, which groups are kept, what they cost, what they earn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcredit import ValueEstimator, load_config, read_runs, registry, train
from segcredit.credit_audit.policy_gradients import reference_gradient
from segcredit.credit_audit.truth.plan import measure_part, plan_truth
from segcredit.errors import ConfigError, PluginError
from segcredit.objective.returns import overlong
from segcredit.policy.samplers.generate import Generate
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.rng import stream
from segcredit.study.evaluation import evaluate_policy, evaluated_policy
from segcredit.training.build import Run, build, run_hash
from segcredit.training.rollouts.sampling import _prompts, sample
from segcredit.types import SamplingParams
from small import SMALL

POOL = ["rollouts.prompt_choice=weighted", "rollouts.prompt_pool=40"]


@pytest.fixture(scope="module")
def small() -> Run:
    return build(load_config("grpo", SMALL))


def changed(run: Run, *, task: Task | None = None, **sizes: Any) -> Run:
    rollouts = run.config.rollouts.model_copy(update=sizes)
    config = run.config.model_copy(update={"rollouts": rollouts})
    task = task or run.task
    streams = {"prompts": task.stream(0), "further_prompts": task.stream(1)}
    return dataclasses.replace(run, config=config, task=task, **streams)


def with_estimator(run, estimator):
    return dataclasses.replace(run, method=dataclasses.replace(run.method, estimator=estimator))


@dataclass(frozen=True, slots=True)
class Rigged(Task):
    """Long sums whose reward is one number for some prompts, and depends on the text for others."""

    inner: Task
    unvaried: int = 2
    """Of so many prompts, one less is varied; 1 = none is, 0 = all are."""
    reward: float = 0.1
    asked: list[list[str]] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        found = self.inner.prompts(count, generator)
        self.asked.append([prompt.key for prompt in found])
        return found

    def evaluation(self, count: int) -> Sequence[Prompt]:
        return []

    def varies(self, key: str) -> bool:
        return not self.unvaried or sha256(key.encode()).digest()[0] % self.unvaried != 0

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        self.judged.append(prompt.key)
        place = len(self.judged) % 2 if self.varies(prompt.key) else 0
        return Verdict(self.reward + place, False)


@pytest.fixture(scope="module")
def sums() -> Task:
    return registry.tasks.build("arithmetic", min_steps=4, max_steps=6)


def spent(run: Run, step: int, rounds: int) -> int:
    """Tokens of so many rounds, sampled one by one by other means."""
    total = 0
    sizes = run.config.rollouts
    for round_ in range(rounds):
        name = f"/{round_}" if round_ else ""
        prompts = run.task.prompts(sizes.prompts, stream(0, f"prompts{name}", step))
        texts = [prompt.text for prompt in prompts for _ in range(sizes.completions)]
        made = run.actor.generate(
            *run.actor.encode(texts),
            params=SamplingParams(max_new_tokens=sizes.max_new_tokens),
            generator=stream(0, f"sampling{name}", step),
        )
        total += int(made.mask.sum())
    return total


def groups(rollouts: Any) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for key, reward in zip(rollouts.prompt_keys, rollouts.rewards.tolist(), strict=True):
        found.setdefault(key, []).append(reward)
    return found


@pytest.mark.parametrize("step", [1, 2, 3])
def test_varied_groups_are_kept_until_there_are_enough(small: Run, sums: Task, step: int) -> None:
    task = Rigged(sums)
    run = changed(small, task=task, dynamic_sampling=True, dynamic_sampling_rounds=12)
    found = sample(run, step)
    rewards = groups(found.rollouts)
    assert len(rewards) == 4
    assert all(len(set(own)) > 1 for own in rewards.values())
    wanted = [key for asked in task.asked for key in dict.fromkeys(asked) if task.varies(key)]
    assert list(rewards) == list(dict.fromkeys(wanted))[:4]
    assert 1 < found.rounds == len(task.asked) <= 12
    # No round too many: before the last one there were too few.
    before = [key for asked in task.asked[:-1] for key in asked if task.varies(key)]
    assert len(set(before)) < 4
    assert found.tokens == spent(changed(run, task=sums), step, found.rounds)
    assert [prompt.key for prompt in found.prompts] == list(found.rollouts.prompt_keys)
    nodes = found.rollouts.node_ids[found.rollouts.action_mask]
    assert len(nodes.unique()) == len(nodes)
    assert found.tokens > len(nodes)


def test_the_first_round_is_that_of_keeping_all(small: Run, sums: Task) -> None:
    plain, varied = Rigged(sums, unvaried=0), Rigged(sums, unvaried=0)
    everything = sample(changed(small, task=plain), 3)
    kept = sample(changed(small, task=varied, dynamic_sampling=True), 3)
    assert kept.rounds == everything.rounds == 1
    assert varied.asked == plain.asked
    assert torch.equal(kept.rollouts.completion_ids, everything.rollouts.completion_ids)
    assert torch.equal(kept.rollouts.rewards, everything.rollouts.rewards)
    assert kept.tokens == everything.tokens


@pytest.mark.parametrize(("reward", "completions"), [(0.0, 4), (0.1, 7), (0.3, 6)])
def test_where_no_group_varies_the_first_round_is_used(
    small: Run, sums: Task, reward: float, completions: int
) -> None:
    # Fractions add up inexactly: equal rewards must be seen to be equal all the same.
    task = Rigged(sums, unvaried=1, reward=reward)
    run = changed(
        small, task=task, dynamic_sampling=True, dynamic_sampling_rounds=3, completions=completions
    )
    found = sample(run, 1)
    assert found.rounds == len(task.asked) == 3
    assert [prompt.key for prompt in found.prompts[::completions]] == task.asked[0]
    assert len(found.rollouts) == 4 * completions
    assert found.tokens == spent(changed(run, task=sums), 1, 3)


def test_rounds_are_limited_and_what_was_found_is_used(small: Run, sums: Task) -> None:
    task = Rigged(sums, unvaried=2)
    found = sample(changed(small, task=task, dynamic_sampling=True, dynamic_sampling_rounds=1), 1)
    varied = [key for key in task.asked[0] if task.varies(key)]
    assert 0 < len(varied) < 4
    assert list(groups(found.rollouts)) == varied
    assert found.rounds == 1


def test_a_run_that_keeps_varied_groups_trains(tmp_path: Any) -> None:
    own = ["rollouts.dynamic_sampling=true", "rollouts.dynamic_sampling_rounds=3", "train.steps=2"]
    config = load_config("grpo", [*SMALL, *own])
    runs = read_runs(train(config, tmp_path / "run"))
    assert np.isfinite(runs.steps.loss[1:]).all()
    assert runs.steps.sampling_rounds[1:].between(1, 3).all()
    assert runs.steps.sampling_rounds.max() > 1
    again = read_runs(train(config, tmp_path / "again"))
    assert again.steps.reward.equals(runs.steps.reward)


# Prompts chosen by the estimator's weights.


@dataclass(frozen=True, slots=True)
class Favourites(ValueEstimator):
    """Weighs the pool's first prompts, and others with ``otherwise``."""

    weights: tuple[float, ...]
    otherwise: float = 0.0

    def estimate(
        self, state: nn.Module, rollouts: Any, segmentation: Any, simulator: Any
    ) -> Tensor:
        return torch.zeros(segmentation.mask.shape)

    def prompt_weights(self, state: nn.Module, prompt_keys: Sequence[str]) -> Tensor:
        rest = [self.otherwise] * (len(prompt_keys) - len(self.weights))
        return torch.tensor([*self.weights, *rest])


@pytest.fixture(scope="module")
def weighted() -> Run:
    return build(load_config("grpo", [*SMALL, *POOL]))


def keys(run: Run, step: int) -> list[str]:
    return list(sample(run, step).rollouts.prompt_keys[::4])


def test_the_pool_holds_each_prompt_once_and_decides_what_is_drawn(weighted: Run) -> None:
    pool = [prompt.key for prompt in weighted.pool]
    assert len(set(pool)) == len(pool) > 30
    drawn = [keys(weighted, step) for step in range(1, 6)]
    for step in drawn:
        assert len(set(step)) == 4
        assert set(step) <= set(pool)
    assert len({tuple(step) for step in drawn}) == 5
    assert drawn == [keys(weighted, step) for step in range(1, 6)]
    other = build(load_config("sapo", [*SMALL, *POOL]))
    assert [prompt.key for prompt in other.pool] == pool


def test_extreme_weights_are_followed(weighted: Run) -> None:
    pool = [prompt.key for prompt in weighted.pool]
    run = with_estimator(weighted, Favourites((0, 1, 0, 1, 1, 0, 1)))
    assert sorted(keys(run, 1)) == sorted(pool[i] for i in (1, 3, 4, 6))
    run = with_estimator(weighted, Favourites((1e6,) * 3, otherwise=1.0))
    for step in range(1, 50):
        found = [prompt.key for prompt in _prompts(run, run.prompts, stream(0, "prompts", step))]
        assert set(pool[:3]) < set(found)
        assert len(set(found)) == 4


def test_weights_are_proportions(weighted: Run) -> None:
    run = changed(weighted, prompts=1)
    run = with_estimator(run, Favourites((1.0, 3.0)))
    drawn = [_prompts(run, run.prompts, stream(0, "prompts", step))[0].key for step in range(2000)]
    share = drawn.count(run.pool[1].key) / 2000
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
    assert drawn.count(run.pool[0].key) == 2000 - drawn.count(run.pool[1].key)


@pytest.mark.parametrize(
    ("weights", "found"),
    [((1, 1, 1), 3), ((1, 1, 1, 1, -1), 4), ((1, 1, 1, 1, float("nan")), 4), ((), 0)],
)
def test_weights_that_cannot_be_drawn_from_are_a_sentence(
    weighted: Run, weights: tuple[float, ...], found: int
) -> None:
    run = with_estimator(weighted, Favourites(weights))
    with pytest.raises(PluginError, match=rf"estimator 'group_mean' gave {found} of the pool's"):
        sample(run, 1)


def test_an_estimator_that_fails_to_weigh_is_named(weighted: Run) -> None:
    run = with_estimator(weighted, Favourites(("heavy",)))
    with pytest.raises(PluginError, match=r"'group_mean' \(.*in prompt_weights\) raised"):
        sample(run, 1)


def test_a_weighted_run_trains(tmp_path: Any) -> None:
    own = ["estimator={name='tracker',warm_samples=2}", "train.steps=2"]
    config = load_config("grpo", [*SMALL, *POOL, *own])
    runs = read_runs(train(config, tmp_path / "run"))
    assert np.isfinite(runs.steps.loss[1:]).all()
    assert runs.completions.groupby("step").prompt.nunique().eq(4).all()


# What a length costs.


def test_the_overlong_penalty_by_hand() -> None:
    lengths = torch.tensor([0, 4, 16, 17, 20, 24, 30])
    expected = [0, 0, 0, 0.125, 0.5, 1, 1]
    assert overlong(lengths, 24, 8).tolist() == expected


def test_length_is_priced_and_the_verifiers_reward_is_kept(small: Run, sums: Task) -> None:
    task = Rigged(sums, unvaried=0)
    run = changed(small, task=task, overlong_buffer=20, overlong_penalty=0.5)
    rollouts = sample(run, 1).rollouts
    plain = sample(changed(small, task=Rigged(sums, unvaried=0)), 1).rollouts
    assert torch.equal(rollouts.completion_ids, plain.completion_ids)
    assert torch.equal(rollouts.rewards, plain.rewards)
    assert sorted(set(rollouts.rewards.tolist())) == pytest.approx([0.1, 1.1])
    lengths = rollouts.action_mask.sum(1).tolist()
    assert len(set(lengths)) > 2
    for row, length in enumerate(lengths):
        penalty = 0.5 * min(max(length - 4, 0) / 20, 1)
        placed = rollouts.token_rewards[row].tolist()
        expected = float(rollouts.rewards[row]) - penalty
        assert placed[length - 1] == pytest.approx(expected, abs=1e-6)
        assert not any(placed[: length - 1] + placed[length:])


def test_a_penalised_run_records_the_verifiers_rewards(tmp_path: Any) -> None:
    own = ["rollouts.overlong_buffer=20", "rollouts.overlong_penalty=3.0", "train.steps=2"]
    runs = read_runs(train(load_config("grpo", [*SMALL, *own]), tmp_path / "run"))
    assert set(runs.completions.reward) <= {0.0, 1.0}
    assert runs.segments.reward.min() < 0


def test_a_penalty_and_a_divergence_are_both_paid(small: Run) -> None:
    config = load_config("grpo", [*SMALL, "loss.kl_penalty=0.5", "rollouts.overlong_buffer=20"])
    run = build(config)
    with torch.no_grad():
        for parameter in run.reference.parameters():
            parameter.mul_(0.9)
    rollouts = sample(run, 1).rollouts
    difference = 0.5 * (rollouts.logprobs - rollouts.reference_logprobs)
    assert difference.abs().max() > 0.01
    lengths = rollouts.action_mask.sum(1)
    for row, length in enumerate(lengths.tolist()):
        expected = -difference[row, :length]
        expected[-1] += rollouts.rewards[row] - min(max(length - 4, 0) / 20, 1)
        torch.testing.assert_close(rollouts.token_rewards[row, :length], expected)


# Stop strings.


def test_stop_strings_reach_whatever_samples(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[SamplingParams] = []

    def recorded(self: Generate, *args: Any, params: SamplingParams, **options: Any) -> Any:
        asked.append(params)
        return drawn(self, *args, params=params, **options)

    drawn = Generate.sample
    monkeypatch.setattr(Generate, "sample", recorded)
    own = [*SMALL, 'rollouts.stop=["=", "no such text"]', "train.steps=1", "evaluate.prompts=2"]
    tree = ["rollouts.layout=tree", "rollouts.branches=[2,2]", "estimator=tree", "advantage=td"]
    for preset, more in (("vineppo", []), ("grpo", [*tree, "segmenter=per_token"])):
        path = train(load_config(preset, [*own, *more]), tmp_path / preset)
        texts = read_runs(path).completions["text"].str
        assert texts.endswith("=").any()
        assert not texts.contains("=.", regex=True).any()
        evaluate_policy(evaluated_policy(str(path)))
    config = load_config("grpo", own)
    run = build(config)
    part = measure_part(plan_truth(config, 2, 2, 1, 2), run.actor, run.task, 0)
    assert part.tokens > part.completion_tokens
    reference_gradient(run, run.held_out[:2], 2, tmp_path / "gradient", "it")
    assert {params.stop for params in asked} == {("=", "no such text")}
    assert {params.greedy for params in asked} == {True, False}


def test_stop_strings_make_another_run_and_none_the_same() -> None:
    plain, none = load_config("grpo", SMALL), load_config("grpo", [*SMALL, "rollouts.stop=[]"])
    stopped = load_config("grpo", [*SMALL, r'rollouts.stop="\n\nQuestion:"'])
    assert stopped.rollouts.stop == ("\n\nQuestion:",)
    assert stopped.identity()["rollouts"]["stop"] == ("\n\nQuestion:",)
    assert "stop" not in plain.identity()["rollouts"]
    assert run_hash(plain) == run_hash(none) != run_hash(stopped)
    assert load_config(stopped.model_dump()) == stopped


# Configs that make no sense.


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["layout=tree", "branches=[2,3]"], r"branches are \[2, 3\]; expected numbers whose"),
        (["layout=tree"], r"branches are \[\]; expected numbers whose product is completions = 4"),
        (["layout=tree", "branches=[4,0]"], r"rollouts.branches.1: .*greater than or equal to 1"),
        (
            ["layout=tree", "branches=[2,2]", "dynamic_sampling=true"],
            "is for layout = 'independent'",
        ),
        (["dynamic_sampling=some"], "rollouts.dynamic_sampling: Input should be a valid boolean"),
        (
            ["dynamic_sampling_rounds=0"],
            r"rollouts.dynamic_sampling_rounds: .*greater than or equal to 1; found 0",
        ),
        (
            ['stop=["\\n", ""]'],
            r"rollouts.stop: a stop string is ''; expected text of at least one",
        ),
        (["stop=3"], "rollouts.stop: expected a list of strings, .*; found 3"),
        (['stop=["a", 3]'], "rollouts.stop: a stop string is 3; expected text"),
        (["overlong_penalty=-1"], r"rollouts.overlong_penalty: .*greater than or equal to 0"),
    ],
)
def test_impossible_rollouts_are_sentences(keys: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config("grpo", [*SMALL, *(f"rollouts.{key}" for key in keys)])


def test_a_pool_smaller_than_a_step_is_refused() -> None:
    small = ["rollouts.prompt_choice=weighted", "rollouts.prompt_pool=3"]
    with pytest.raises(ConfigError, match="gives 3 different prompts but a step takes 4"):
        build(load_config("grpo", [*SMALL, *small]))
