"""The prompt tracker against its formulae in plain Python, over steps of a moving policy."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segcredit import load_config, registry
from segcredit.errors import RegistryError
from segcredit.records import checkpoint
from segcredit.segmentation import Segmentation
from segcredit.testing import ToyPolicy, ToySimulator, pad_rollouts, toy_rollouts
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.types import RolloutBatch, SamplingParams, TokenScores
from small import SMALL

HALF_LIFE, LOW, HIGH = 0.06, 0.875, 0.96


class Watched(ToySimulator):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__(ToyPolicy(seed=1).double())
        self.drawn: list[tuple[tuple[str, ...], int]] = []
        self.scored: list[RolloutBatch] = []

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        self.drawn.append((tuple(prompt_keys), count))
        return super().sample(prompt_keys, count, params=params)

    def score(self, rollouts: RolloutBatch) -> TokenScores:
        self.scored.append(rollouts)
        return super().score(rollouts)


def tracker(**options: Any) -> tuple[Any, nn.Module]:
    estimator = registry.estimators.build("tracker", **options)
    return estimator, estimator.start(ToyPolicy())


def whole(rollouts: RolloutBatch) -> Segmentation:
    mask = rollouts.action_mask
    return Segmentation.from_starts(mask.cumsum(1) % 2 == 1, mask)


def step_of(source: ToySimulator, keys: Sequence[str], seed: int) -> RolloutBatch:
    """Two ragged completions of each prompt under the policy now, one with a hole."""
    rollouts = toy_rollouts(source).select(
        [2 * int(key) + place for key in keys for place in (0, 1)]
    )
    source_of_ids = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 4, rollouts.completion_ids.shape, generator=source_of_ids)
    rollouts = rollouts.replace(completion_ids=ids)
    rewards = torch.rand(len(ids), generator=source_of_ids, dtype=torch.float64)
    with torch.no_grad():
        logprobs = source.policy(rollouts).logprobs
    dirty = logprobs.masked_fill(~rollouts.action_mask, torch.nan)
    return rollouts.replace(rewards=rewards, logprobs=dirty)


def nudge(source: ToySimulator, size: float, seed: int) -> None:
    """Move the policy."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in source.policy.parameters():
            part.add_(size * torch.randn(part.shape, generator=draws, dtype=part.dtype))


class Oracle:
    """The formulae, one prompt after another and one token after another."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[float, float]] = {}
        self.previous: dict[str, list[tuple[RolloutBatch, list[float]]]] = {}
        self.rhos: list[float] = []

    def meet(self, key: str, source: ToySimulator, samples: int) -> None:
        if key in self.counts:
            return
        if samples == 0:
            self.counts[key] = (0.5, 0.5)
            return
        rewards = ToySimulator.sample(source, [key], samples).rewards.tolist()
        pseudo = 1 / (1 - LOW)
        self.counts[key] = (
            pseudo * (sum(rewards) + 0.5) / (samples + 1),
            pseudo * (sum(1 - r for r in rewards) + 0.5) / (samples + 1),
        )

    def value(self, key: str) -> float:
        alpha, beta = self.counts[key]
        return alpha / (alpha + beta)

    def rho(self, key: str, source: ToySimulator) -> float:
        moved: list[float] = []
        for row, before in self.previous.get(key, []):
            now = ToySimulator.score(source, row).logprobs[0].tolist()
            actions = row.action_mask[0].tolist()
            moved += [
                abs(p - q) for p, q, action in zip(before, now, actions, strict=True) if action
            ]
        distance = sum(moved) / len(moved) if moved else 0.0
        return min(max(2 ** (-distance / HALF_LIFE), LOW), HIGH)

    def update(self, rollouts: RolloutBatch, source: ToySimulator) -> None:
        for key in set(rollouts.prompt_keys):
            rows = [row for row, other in enumerate(rollouts.prompt_keys) if other == key]
            reward = sum(float(rollouts.rewards[row]) for row in rows) / len(rows)
            rho = self.rho(key, source)
            self.rhos.append(rho)
            alpha, beta = self.counts[key]
            self.counts[key] = (rho * alpha + reward, rho * beta + 1 - reward)
            self.previous[key] = [
                (rollouts.select([row]), rollouts.logprobs[row].tolist()) for row in rows
            ]


@pytest.mark.parametrize("samples", [0, 8])
def test_values_follow_the_formulae(samples: int) -> None:
    source, oracle = Watched(), Oracle()
    estimator, state = tracker(warm_samples=samples)
    plan = [("012", 0.0), ("20", 0.003), ("01", 0.006), ("12", 0.5), ("012", 0.001), ("021", 0.002)]
    for step, (keys, size) in enumerate(plan):
        rollouts = step_of(source, list(keys), step)
        segmentation = whole(rollouts)
        found = estimator.estimate(state, rollouts, segmentation, source)
        assert found.dtype == torch.float64
        for key in keys:
            oracle.meet(key, source, samples)
        want = torch.tensor([oracle.value(key) for key in rollouts.prompt_keys]).double()
        assert torch.allclose(found, want[:, None] * segmentation.mask, rtol=1e-6, atol=0)
        nudge(source, size, step)
        estimator.update(state, rollouts, source)
        oracle.update(rollouts, source)
    # All three cases of the clamp were met.
    assert {LOW, HIGH} < set(oracle.rhos)
    assert sum(LOW < rho < HIGH for rho in oracle.rhos) >= 3
    last = torch.tensor([oracle.counts[key] for key in "012"], dtype=torch.float64)
    assert torch.allclose(torch.tensor([state.counts[key] for key in "012"]).double(), last)


def test_what_is_asked_of_the_simulator() -> None:
    source = Watched()
    estimator, state = tracker()
    first = step_of(source, ["2", "0"], 0)
    source.drawn.clear()
    estimator.estimate(state, first, whole(first), source)
    assert source.drawn == [(("0", "2"), 8)]
    estimator.update(state, first, source)
    assert source.scored == []
    second = step_of(source, ["1", "0"], 1)
    source.drawn.clear()
    estimator.estimate(state, second, whole(second), source)
    assert source.drawn == [(("1",), 8)]
    estimator.update(state, second, source)
    # One pass over the previous completions of the only prompt that came again.
    (past,) = source.scored
    assert past.prompt_keys == ("0", "0")
    rows = [row for row, key in enumerate(first.prompt_keys) if key == "0"]
    assert torch.equal(past.completion_ids, first.completion_ids[rows])
    assert torch.equal(past.action_mask, first.action_mask[rows])
    assert torch.equal(past.prompt_ids, first.prompt_ids[rows])
    assert not bool(past.action_mask.all())


def test_images_come_from_the_prompt_that_came_again() -> None:
    source = Watched()
    estimator, state = tracker()
    first, second = step_of(source, ["0", "1"], 0), step_of(source, ["2", "1"], 1)

    def pictured(rollouts: RolloutBatch) -> RolloutBatch:
        keys = rollouts.prompt_keys
        return rollouts.replace(extras=tuple({"image": torch.tensor([int(key)])} for key in keys))

    estimator.update(state, pictured(first), source)
    estimator.update(state, pictured(second), source)
    assert [int(extra["image"]) for extra in source.scored[0].extras] == [1, 1]


class Drawing(Watched):
    """Draws from one generator in the order asked, as a real policy does."""

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        rollouts = super().sample(prompt_keys, count, params=params)
        draws = torch.Generator().manual_seed(0)
        return rollouts.replace(rewards=torch.rand(len(rollouts), generator=draws))


def two_steps(change: Callable[[RolloutBatch], RolloutBatch]) -> tuple[nn.Module, Tensor]:
    """State and values by row of the unchanged batch, after a step on a changed batch."""
    source = Drawing()
    estimator, state = tracker()
    first, second = step_of(source, ["0", "1", "2"], 0), step_of(source, ["1", "2", "0"], 1)
    for rollouts in (first, second):
        changed = change(rollouts)
        estimator.estimate(state, changed, whole(changed), source)
        nudge(source, 0.004, 7)
        estimator.update(state, changed, source)
    return state, estimator.estimate(state, second, whole(second), source)


@pytest.mark.parametrize(
    "change",
    [lambda r: r.select([5, 1, 3, 0, 4, 2]), lambda r: pad_rollouts(r, 3, seed=2)],
    ids=["order", "padding"],
)
def test_order_and_padding_change_nothing(change: Callable[[RolloutBatch], RolloutBatch]) -> None:
    state, values = two_steps(lambda rollouts: rollouts)
    other, others = two_steps(change)
    assert torch.allclose(values, others, rtol=0, atol=1e-12)
    for key, one in state.latest.items():
        assert one["ids"].shape == other.latest[key]["ids"].shape


def test_a_steps_own_rewards_do_not_move_its_values() -> None:
    source = Watched()
    estimator, state = tracker()
    rollouts = step_of(source, ["0", "1"], 0)
    estimator.update(state, rollouts, source)
    before = estimator.estimate(state, rollouts, whole(rollouts), source)
    other = rollouts.replace(rewards=1 - rollouts.rewards)
    assert torch.equal(before, estimator.estimate(state, other, whole(other), source))


def test_prompt_weights() -> None:
    estimator, state = tracker(exploration=0.1)
    state.counts.update({"often": (9.0, 1.0), "half": (2.0, 2.0), "always": (3.0, 0.0)})
    weights = estimator.prompt_weights(state, ["half", "always", "never seen", "often"])
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([0.6, 0.1, 0.6, 0.3 + 0.1])
    assert tracker()[0].prompt_weights(state, ["always"]).tolist() == pytest.approx([0.05])


def used(state: nn.Module, source: ToySimulator) -> nn.Module:
    """The state after another step of a policy that has moved."""
    estimator, _ = tracker()
    nudge(source, 0.005, 3)
    estimator.update(state, step_of(source, ["0", "2"], 9), source)
    return state


def test_a_loaded_state_goes_on_as_the_saved_one_would(tmp_path: Path) -> None:
    source = Watched()
    estimator, state = tracker()
    estimator.update(state, step_of(source, ["0", "1", "2"], 0), source)
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    plain = torch.load(buffer, weights_only=True)
    ours = checkpoint.load(checkpoint.save(tmp_path, 1, {"estimator": state.state_dict()}))
    went_on = used(state, copy.deepcopy(source))
    for saved in (plain, ours["estimator"]):
        again = estimator.start(source.policy)
        again.load_state_dict(saved)
        again = used(again, copy.deepcopy(source))
        assert again.counts == went_on.counts
        assert again.counts.keys() == {"0", "1", "2"}


def test_a_state_dict_is_a_snapshot() -> None:
    source = Watched()
    estimator, state = tracker()
    estimator.update(state, step_of(source, ["0", "1"], 0), source)
    taken = state.state_dict()
    before = copy.deepcopy(taken)
    used(state, source)
    assert taken["_extra_state"]["counts"] == before["_extra_state"]["counts"]
    assert state.counts != taken["_extra_state"]["counts"]


def test_only_the_latest_completions_are_kept_and_no_padding() -> None:
    source = Watched()
    estimator, state = tracker()
    for seed in (0, 1, 2):
        estimator.update(state, pad_rollouts(step_of(source, ["0", "1"], seed), 50), source)
    stored = [x for one in state.latest.values() for x in one.values()]
    # Two completions of 4 tokens (ids, mask, log-probs in float64), two of at most 1 token.
    assert sum(x.untyped_storage().nbytes() for x in stored) == (2 * 4 + 2 * 1) * (4 + 1 + 8)


@pytest.mark.parametrize("reward", [1.5, -0.1, float("nan")])
def test_rewards_that_are_no_shares_are_refused(reward: float) -> None:
    source = Watched()
    estimator, state = tracker()
    rollouts = step_of(source, ["0", "1"], 0)
    rewards = rollouts.rewards.clone()
    rewards[2] = reward
    rollouts = rollouts.replace(rewards=rewards)
    for call in (
        lambda: estimator.update(state, rollouts, source),
        lambda: estimator.estimate(state, rollouts, whole(rollouts), source),
    ):
        with pytest.raises(ValueError, match=r"prompt '1' is .*expected a number between 0 and 1"):
            call()
    assert not state.counts


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"half_life": 0.0}, "half_life. is 0.0; .*1e-09"),
        ({"low": 0.97}, "low is 0.97 and high is 0.96; expected"),
        ({"low": 1.0, "high": 1.0}, "with low below 1"),
        ({"high": 1.2}, "high is 1.2; expected"),
        ({"warm_samples": -1}, "expected neither to be negative"),
        ({"exploration": -0.1}, "expected neither to be negative"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RegistryError, match=sentence):
        registry.estimators.build("tracker", **options)


def test_a_real_policy_is_tracked() -> None:
    config = load_config("sapo", [*SMALL, "policy.steps=20", "estimator=tracker"])
    run = build(config)
    experience = collect(run, 1)
    table, rollouts = run.state.module, experience.rollouts
    assert experience.simulator.tokens > 0
    run.method.estimator.update(table, rollouts, experience.simulator)
    with torch.no_grad():
        for part in run.policy.module.parameters():
            part.mul_(1.01)
    key = rollouts.prompt_keys[0]
    alpha, beta = table.counts[key]
    run.method.estimator.update(table, rollouts, experience.simulator)
    rows = [row for row, other in enumerate(rollouts.prompt_keys) if other == key]
    now = experience.simulator.score(rollouts).logprobs
    moved = (now - rollouts.logprobs)[rows][rollouts.action_mask[rows]].abs().mean()
    rho = min(max(2 ** (-float(moved) / HALF_LIFE), LOW), HIGH)
    reward = float(rollouts.rewards[rows].mean())
    want = (rho * alpha + reward, rho * beta + 1 - reward)
    assert table.counts[key] == pytest.approx(want, rel=1e-4)
