"""Baselines of a prompt against plain loops, and what they do to the expected gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from segcredit import registry
from segcredit.errors import RegistryError
from segcredit.objective.returns import segment_values
from segcredit.segmentation import Segmentation
from segcredit.testing import ToyPolicy, ToySimulator, make_rollouts, toy_rollouts
from segcredit.types import RolloutBatch, SamplingParams
from strategies import masks, normal

SINGLETONS = ["zero", "reward"]
GROUPED = ["group_mean", "leave_one_out", "length_weighted_group_mean"]


def estimate(
    name: str,
    rollouts: RolloutBatch,
    segmentation: Segmentation,
    simulator: ToySimulator | None = None,
    **options: str,
) -> Tensor:
    """(B,S) values of an estimator without state."""
    simulator = simulator or ToySimulator()
    estimator = registry.estimators.build(name, **options)
    return estimator.estimate(estimator.start(simulator.policy), rollouts, segmentation, simulator)


def rollouts_of(mask: Tensor, seed: int, groups: int) -> RolloutBatch:
    """Rewards on all action tokens, NaN on all others, rows in groups of any size."""
    rows, width = mask.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    source = torch.Generator().manual_seed(seed)
    group = torch.randint(groups, (rows,), generator=source) * 7 - 3
    rewards = normal((rows, width), seed).masked_fill(~mask, torch.nan)
    return blank.replace(action_mask=mask, token_rewards=rewards, group=group)


def pairs(mask: Tensor) -> Segmentation:
    return Segmentation.from_starts(mask.cumsum(1) % 2 == 1, mask)


def expected_baseline(
    name: str,
    row: int,
    group: Sequence[int],
    returns: Sequence[float],
    lengths: Sequence[int],
    singleton: str,
) -> float:
    """The baseline of one row, from its definition."""
    mates = [other for other in range(len(group)) if group[other] == group[row]]
    if len(mates) == 1:
        alone = 0.0 if lengths[row] == 0 else returns[row]
        return alone if singleton == "zero" else 0.0
    if name == "leave_one_out":
        others = [returns[other] for other in mates if other != row]
        return sum(others) / len(others)
    if name == "group_mean":
        return sum(returns[other] for other in mates) / len(mates)
    tokens = sum(lengths[other] for other in mates)
    weighed = sum(lengths[other] * returns[other] for other in mates)
    return weighed / tokens if tokens else 0.0


@pytest.mark.parametrize("singleton", SINGLETONS)
@pytest.mark.parametrize("name", GROUPED)
@given(masks(), st.integers(0, 99), st.integers(1, 3))
def test_baselines_agree_with_their_definitions(
    name: str, singleton: str, mask: Tensor, seed: int, groups: int
) -> None:
    rollouts, segmentation = rollouts_of(mask, seed, groups), pairs(mask)
    found = estimate(name, rollouts, segmentation, singleton=singleton)
    assert found.dtype == torch.float64
    cells = zip(rollouts.token_rewards.tolist(), mask.tolist(), strict=True)
    returns = [sum(x for x, action in zip(*row, strict=True) if action) for row in cells]
    lengths, group = mask.sum(1).tolist(), rollouts.group.tolist()
    for row, count in enumerate(segmentation.counts.tolist()):
        want = expected_baseline(name, row, group, returns, lengths, singleton)
        assert found[row, :count].tolist() == pytest.approx([want] * count, abs=1e-12)
        assert found[row, count:].tolist() == [0.0] * (found.shape[1] - count)


@pytest.mark.parametrize("name", GROUPED)
def test_groups_without_any_token_give_no_nan(name: str) -> None:
    rollouts = rollouts_of(torch.zeros(4, 3, dtype=torch.bool), 0, 1)
    rollouts = rollouts.replace(group=torch.tensor([0, 0, 1, 2]))
    found = estimate(name, rollouts, pairs(rollouts.action_mask))
    assert found.shape[0] == 4
    assert not bool(found.any())


def test_length_weights_by_hand() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    rewards = torch.zeros(3, 4, dtype=torch.float64)
    rewards[0, 3], rewards[1, 0] = 1, 6
    blank = make_rollouts([""] * 3, truncated=range(3), width=4, dtype=torch.float64)
    group = torch.zeros(3, dtype=torch.long)
    rollouts = blank.replace(action_mask=mask, token_rewards=rewards, group=group)
    found = estimate("length_weighted_group_mean", rollouts, pairs(mask))
    # (4 tokens x 1 + 1 token x 6 + none) / 5 tokens, where the plain mean is 7/3.
    assert found[0].tolist() == pytest.approx([2, 2])
    assert estimate("leave_one_out", rollouts, pairs(mask))[1].tolist() == pytest.approx([0.5, 0])


def pairs_of_completions(source: ToySimulator) -> tuple[RolloutBatch, Tensor]:
    """Every pair of completions of a prompt as a group, and each row's share of an expectation.

    A group counts with the probability of its pair, a row with half of its group's.
    """
    everything = source.enumerate()
    shares = everything.logprobs.sum(1).exp()
    couples = list(itertools.product(range(len(everything)), repeat=2))
    rollouts = everything.select([row for couple in couples for row in couple])
    weights = torch.stack([shares[a] * shares[b] / 2 for a, b in couples]).repeat_interleave(2)
    return rollouts.replace(group=torch.arange(len(couples)).repeat_interleave(2)), weights


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradients])


@pytest.mark.parametrize(
    ("name", "factor"),
    [("leave_one_out", 1.0), ("greedy", 1.0), ("group_mean", 0.5)],
)
def test_what_a_baseline_does_to_the_expected_gradient(name: str, factor: float) -> None:
    """By enumeration of all groups of two: unbiased, or shrunk by (G − 1)/G."""
    source = ToySimulator(ToyPolicy(length=2, prompts=1, seed=3).double())
    rollouts, weights = pairs_of_completions(source)
    mask = rollouts.action_mask
    segmentation = Segmentation.from_starts(torch.zeros_like(mask), mask)
    values = segment_values(rollouts, segmentation, estimate(name, rollouts, segmentation, source))
    credit = registry.advantages.build("full_return")(values)[:, 0]
    parameters = list(source.policy.parameters())
    logprobs = source.policy(rollouts).logprobs.sum(1)
    found = flat(torch.autograd.grad((weights * credit * logprobs).sum(), parameters))
    everything = source.enumerate()
    earned = source.policy(everything).logprobs.sum(1).exp() @ everything.rewards
    exact = flat(torch.autograd.grad(earned, parameters))
    assert float(exact.norm()) > 0.01
    assert float((found - factor * exact).norm() / exact.norm()) < 1e-10


class Asked(ToySimulator):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[str, ...], int, bool]] = []

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        self.asked.append((tuple(prompt_keys), count, params is not None and params.greedy))
        return super().sample(prompt_keys, count, params=params)


def greedy_reward(source: ToySimulator, prompt: str) -> float:
    """Of all completions, keep those with the most likely next token, one place after another."""
    left = source.enumerate(prompt)
    for t in range(source.policy.length):
        best = left.logprobs[:, t].max()
        left = left.select((left.logprobs[:, t] >= best - 1e-6).nonzero()[:, 0])
    assert len(left) == 1
    return float(left.rewards[0])


def test_the_greedy_baseline_is_the_greedy_completions_reward() -> None:
    source = Asked()
    rollouts = toy_rollouts(source).select([5, 2, 0, 4, 1, 3])
    source.asked.clear()
    segmentation = pairs(rollouts.action_mask)
    found = estimate("greedy", rollouts, segmentation, source)
    assert source.asked == [(("0", "1", "2"), 1, True)]
    want = {key: greedy_reward(source, key) for key in ("0", "1", "2")}
    assert len(set(want.values())) == 3
    for row, count in enumerate(segmentation.counts.tolist()):
        expected = [want[rollouts.prompt_keys[row]]] * count + [0.0] * (found.shape[1] - count)
        assert found[row].tolist() == pytest.approx(expected)
    wide = rollouts.replace(rewards=rollouts.rewards.double())
    assert estimate("greedy", wide, segmentation, source).dtype == torch.float64


@pytest.mark.parametrize("name", GROUPED)
def test_another_singleton_is_refused(name: str) -> None:
    with pytest.raises(RegistryError, match=r"singleton.*'zero' or 'reward'"):
        registry.estimators.build(name, singleton="mean")


@pytest.mark.parametrize("name", [*GROUPED, "greedy"])
def test_the_state_is_empty(name: str) -> None:
    state = registry.estimators.build(name).start(ToyPolicy())
    assert isinstance(state, nn.Module)
    assert not state.state_dict()
