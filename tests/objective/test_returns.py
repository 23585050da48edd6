"""Rewards, values and the recursion against plain loops, and the worked example by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from segcredit.errors import ShapeError
from segcredit.objective.group_statistics import group_mean, group_size, group_std
from segcredit.objective.returns import (
    advantages,
    explained_variance,
    lambda_returns,
    segment_values,
    token_rewards,
)
from segcredit.segmentation import Segmentation
from segcredit.testing import make_rollouts
from segcredit.types import RolloutBatch, SegmentValues
from strategies import cuts, masks, normal

GAMMAS = st.sampled_from([0.0, 0.5, 0.9, 1.0])


def rollouts_with(mask: Tensor, rewards: Tensor) -> RolloutBatch:
    """Rollouts of this mask and these token rewards."""
    rows, width = mask.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    return blank.replace(action_mask=mask, token_rewards=rewards.masked_fill(~mask, 0))


def values_with(starts: Tensor, mask: Tensor, seed: int) -> tuple[Segmentation, SegmentValues]:
    """Random values and rewards over a segmentation."""
    segmentation = Segmentation.from_starts(starts, mask)
    random_BS = normal((len(mask), segmentation.width), seed)
    rollouts = rollouts_with(mask, normal(tuple(mask.shape), seed + 1))
    return segmentation, segment_values(rollouts, segmentation, random_BS)


CLOCKS = st.sampled_from(["segment", "token"])


@given(cuts(), st.integers(0, 99), GAMMAS, GAMMAS, CLOCKS, CLOCKS)
def test_lambda_returns_agree_with_the_recursion(
    cut: tuple[Tensor, Tensor], seed: int, gamma: float, lam: float, clock: str, lam_clock: str
) -> None:
    _, values = values_with(*cut, seed)
    found = lambda_returns(values, gamma=gamma, lam=lam, clock=clock, lam_clock=lam_clock)
    assert bool((found[~values.mask] == 0).all())
    for b, count in enumerate(values.mask.sum(1).tolist()):
        want = oracles.lambda_returns(
            values.values[b, :count].tolist(),
            values.rewards[b, :count].tolist(),
            values.lengths[b, :count].tolist(),
            gamma=gamma,
            lam=lam,
            clock=clock,
            lam_clock=lam_clock,
        )
        assert found[b, :count].tolist() == pytest.approx(want, abs=1e-10)


@given(masks(), st.integers(0, 99), GAMMAS, GAMMAS)
def test_a_segment_a_token_is_token_gae_across_holes(
    mask: Tensor, seed: int, gamma: float, lam: float
) -> None:
    segmentation = Segmentation.from_starts(mask, mask)
    values_BT, rewards_BT = normal(tuple(mask.shape), seed), normal(tuple(mask.shape), seed + 1)
    rollouts = rollouts_with(mask, rewards_BT)
    values = segment_values(rollouts, segmentation, segmentation.reduce(values_BT, "first"))
    returns = lambda_returns(values, gamma=gamma, lam=lam)
    found = advantages(segmentation, values, returns - values.values).per_token
    for b in range(len(mask)):
        row = (values_BT[b].tolist(), rewards_BT[b].tolist(), mask[b].tolist())
        want = oracles.token_gae(*row, gamma=gamma, lam=lam)
        assert found[b].tolist() == pytest.approx(want, abs=1e-10)


@given(cuts(), st.integers(0, 99), GAMMAS)
def test_lambda_at_boundaries_and_one_inside_is_gae_over_segments(
    cut: tuple[Tensor, Tensor], seed: int, lam: float
) -> None:
    """Token GAE that is cut back only where a segment ends, at the first token of each segment."""
    segmentation = Segmentation.from_starts(*cut)
    mask = cut[1]
    values_BT, rewards_BT = normal(tuple(mask.shape), seed), normal(tuple(mask.shape), seed + 1)
    rollouts = rollouts_with(mask, rewards_BT)
    values = segment_values(rollouts, segmentation, segmentation.reduce(values_BT, "first"))
    found_BT = segmentation.spread(lambda_returns(values, lam=lam) - values.values)
    for b in range(len(mask)):
        following = next_value = 0.0
        for t in reversed(mask[b].nonzero()[:, 0].tolist()):
            one_step = float(rewards_BT[b, t]) + next_value - float(values_BT[b, t])
            following = one_step + (lam if segmentation.ends[b, t] else 1.0) * following
            next_value = float(values_BT[b, t])
            if segmentation.starts[b, t]:
                assert float(found_BT[b, t]) == pytest.approx(following, abs=1e-10)


@given(masks(), st.integers(0, 99))
def test_lambda_by_tokens_gives_every_definition_one_horizon(mask: Tensor, seed: int) -> None:
    """Where the value moves at no token but the last, how a row is cut before it cannot matter."""
    everywhere = Segmentation.from_starts(mask, mask)
    values_BT = torch.zeros(mask.shape, dtype=torch.float64)
    rewards_BT = normal(tuple(mask.shape), seed)
    last_BT = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    rollouts = rollouts_with(mask, torch.where(last_BT, rewards_BT, 0.0))
    coarse = Segmentation.from_starts(mask.cumsum(1) % 3 == 1, mask)
    found = []
    for cut in (everywhere, coarse):
        values = segment_values(rollouts, cut, cut.reduce(values_BT, "first"))
        returns_BS = lambda_returns(values, lam=0.8, lam_clock="token")
        # Of each segment's first token; the last segment earns the reward at once.
        found.append((cut, cut.spread(returns_BS)))
    fine_BT, coarse_BT = (x_BT for _, x_BT in found)
    starts_BT = coarse.starts & (coarse.segment_ids < coarse.counts[:, None] - 1)
    rest_B = coarse.lengths.gather(1, (coarse.counts - 1).clamp(min=0)[:, None])[:, 0]
    late_BT = fine_BT * (0.8 ** -(rest_B.double() - 1))[:, None]
    assert torch.allclose(coarse_BT[starts_BT], late_BT[starts_BT], atol=1e-10)


@given(cuts(), st.integers(0, 99))
def test_a_lambda_for_each_row(cut: tuple[Tensor, Tensor], seed: int) -> None:
    _, values = values_with(*cut, seed)
    lam = torch.linspace(0, 1, len(values.mask), dtype=torch.float64)
    together = lambda_returns(values, gamma=0.9, lam=lam)
    for b in range(len(lam)):
        alone = lambda_returns(values.select([b]), gamma=0.9, lam=float(lam[b]))
        assert torch.allclose(together[b : b + 1], alone, atol=1e-12)


def test_thousands_of_segments_neither_overflow_nor_drift() -> None:
    values = SegmentValues(
        values=torch.zeros(1, 20_000, dtype=torch.float64),
        rewards=torch.ones(1, 20_000, dtype=torch.float64),
        lengths=torch.ones(1, 20_000, dtype=torch.long),
        weights=torch.ones(1, 20_000, dtype=torch.float64),
        mask=torch.ones(1, 20_000, dtype=torch.bool),
        group=torch.zeros(1, dtype=torch.long),
    )
    # A geometric series: 1 / (1 - 0.95 * 0.9), far from the end.
    assert float(lambda_returns(values, gamma=0.95, lam=0.9)[0, 0]) == pytest.approx(1 / 0.145)
    assert float(lambda_returns(values, gamma=1.0, lam=1.0)[0, 0]) == pytest.approx(20_000)


# Six action tokens, segments {1,2,3} and {4,5,6}, gamma 1, the reward R on token 6.
#
# (a) V = .5 .5 .5 .5 .5 .9, R = 1: the value jumps inside the second segment.
#   start:      V = (V1, V4) = (.5, .5).  delta = (.5 - .5, 1 - .5) = (0, .5).
#               lambda 0: (0, .5).        lambda 1: (0 + .5, .5) = (.5, .5).
#   last_token: V = (V3, V6) = (.5, .9).  delta = (.9 - .5, 1 - .9) = (.4, .1).
#               lambda 0: (.4, .1).       lambda 1: (.4 + .1, .1) = (.5, .1).
# (b) V = .5 .9 .9 .9 .9 .9, R = .9: the value jumps inside the first segment.
#   start:      V = (.5, .9).  delta = (.9 - .5, .9 - .9) = (.4, 0).  lambda 1: (.4, 0).
#   last_token: V = (.9, .9).  delta = (0, 0).                        lambda 1: (0, 0).
JUMP_LATE = [0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
JUMP_EARLY = [0.5, 0.9, 0.9, 0.9, 0.9, 0.9]
WORKED = [
    (JUMP_LATE, 1.0, "start", [0.5, 0.5], [0.0, 0.5], [0.5, 0.5]),
    (JUMP_LATE, 1.0, "last_token", [0.5, 0.9], [0.4, 0.1], [0.5, 0.1]),
    (JUMP_EARLY, 0.9, "start", [0.5, 0.9], [0.4, 0.0], [0.4, 0.0]),
    (JUMP_EARLY, 0.9, "last_token", [0.9, 0.9], [0.0, 0.0], [0.0, 0.0]),
]


@pytest.mark.parametrize(("values_T", "reward", "anchor", "anchored", "td", "mc"), WORKED)
def test_worked_example_of_the_two_anchors(
    values_T: list[float],
    reward: float,
    anchor: str,
    anchored: list[float],
    td: list[float],
    mc: list[float],
) -> None:
    segmentation = Segmentation(torch.tensor([[0, 0, 0, 1, 1, 1]]))
    values_BT = torch.tensor([values_T], dtype=torch.float64)
    values_BS = values_BT.gather(1, segmentation.anchors(anchor))
    assert values_BS[0].tolist() == pytest.approx(anchored)
    mask = segmentation.action_mask
    rewards_BT = token_rewards(torch.tensor([reward], dtype=torch.float64), mask)
    assert rewards_BT[0].tolist() == [0, 0, 0, 0, 0, reward]
    values = segment_values(rollouts_with(mask, rewards_BT), segmentation, values_BS)
    for lam, want in ((0.0, td), (1.0, mc)):
        found = advantages(segmentation, values, lambda_returns(values, lam=lam) - values.values)
        assert found.per_segment[0].tolist() == pytest.approx(want, abs=1e-12)
        spread = [want[0]] * 3 + [want[1]] * 3
        assert found.per_token[0].tolist() == pytest.approx(spread, abs=1e-12)


@given(masks(), st.integers(0, 99))
def test_the_reward_stands_on_the_last_action_token(mask: Tensor, seed: int) -> None:
    rewards = normal((len(mask),), seed)
    penalty = normal(tuple(mask.shape), seed + 1)
    dirty = penalty.masked_fill(~mask, torch.nan)
    found = token_rewards(rewards, mask, dirty)
    for b, row in enumerate(mask.tolist()):
        last = max((t for t, action in enumerate(row) if action), default=-1)
        want = [
            float(rewards[b]) * (t == last) - (float(penalty[b, t]) if action else 0.0)
            for t, action in enumerate(row)
        ]
        assert found[b].tolist() == pytest.approx(want, abs=1e-12)


@given(cuts(), st.integers(0, 99))
def test_segment_values_add_up(cut: tuple[Tensor, Tensor], seed: int) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    rollouts = rollouts_with(mask, normal(tuple(mask.shape), seed))
    dirty_BS = normal((len(mask), segmentation.width), seed).masked_fill(
        ~segmentation.mask, torch.nan
    )
    weights = normal(tuple(mask.shape), seed + 2).abs()
    extra = torch.ones(len(mask), segmentation.width, dtype=torch.float64)
    values = segment_values(
        rollouts, segmentation, dirty_BS, process_rewards_BS=extra, token_weights=weights
    )
    for table in (values.values, values.rewards, values.lengths, values.weights):
        assert bool((table[~values.mask] == 0).all())
    total = rollouts.token_rewards.sum(1) + segmentation.counts
    assert torch.allclose(values.rewards.sum(1), total)
    assert torch.equal(values.lengths.sum(1), mask.sum(1))
    assert torch.allclose(values.weights.sum(1), (weights * mask).sum(1))
    plain = segment_values(rollouts, segmentation, dirty_BS)
    assert torch.equal(plain.weights, plain.lengths.double())


def test_groups_by_hand() -> None:
    x = torch.tensor([1.0, 10.0, 3.0, 5.0, 8.0], dtype=torch.float64)
    group = torch.tensor([7, -2, 7, 7, -2])
    # Group 7 holds 1, 3, 5: mean 3, squares 4 + 0 + 4, so std 2 with n - 1, sqrt(8/3) with n.
    # Group -2 holds 10, 8: mean 9, squares 1 + 1, so std sqrt(2) with n - 1, 1 with n.
    assert group_mean(x, group).tolist() == [3, 9, 3, 3, 9]
    assert group_size(group).tolist() == [3, 2, 3, 3, 2]
    unbiased = [2, 2**0.5, 2, 2, 2**0.5]
    assert group_std(x, group).tolist() == pytest.approx(unbiased)
    population = [(8 / 3) ** 0.5, 1, (8 / 3) ** 0.5, (8 / 3) ** 0.5, 1]
    assert group_std(x, group, ddof=0).tolist() == pytest.approx(population)
    assert torch.isnan(group_std(x[:1], group[:1])).all()
    assert group_std(x[:1], group[:1], ddof=0).tolist() == [0]


@pytest.mark.parametrize("returns", [0.3, 0.7, 1e-6, 123.4])
@pytest.mark.parametrize("count", [3, 77, 1000])
def test_returns_that_are_all_the_same_leave_nothing_to_explain(returns: float, count: int) -> None:
    _, values = values_with(*(torch.ones(5, count, dtype=torch.bool),) * 2, seed=0)
    for dtype in (torch.float32, torch.float64):
        targets = torch.full((5, count), returns, dtype=dtype)
        assert torch.isnan(explained_variance(values, targets))
        targets[2, 1] *= 1.01
        assert torch.isfinite(explained_variance(values, targets))


def test_explained_variance_by_hand() -> None:
    _, values = values_with(*(torch.ones(2, 3, dtype=torch.bool),) * 2, seed=0)
    targets = normal((2, 3), 5)
    want = 1 - float((targets - values.values).var() / targets.var())
    assert float(explained_variance(values, targets)) == pytest.approx(want)
    assert torch.isnan(explained_variance(values, torch.ones_like(targets)))


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes_are_sentences() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    segmentation, values = values_with(mask, mask, seed=0)
    rollouts = rollouts_with(mask, torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"value estimator returned shape \(2, 1\); .*\(2, 3\)"):
        segment_values(rollouts, segmentation, torch.zeros(2, 1, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"advantage scheme returned shape \(2, 1\)"):
        advantages(segmentation, values, torch.zeros(2, 1, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"SegmentValues\.rewards has shape"):
        values.replace(rewards=torch.zeros(1, 1))
    with pytest.raises(ShapeError, match=r"RolloutBatch\.logprobs has shape"):
        rollouts.replace(logprobs=torch.zeros(1, 1))
