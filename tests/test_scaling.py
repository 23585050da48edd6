"""Group scaling, whitening and the length-adaptive lambda against plain loops."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from segcredit import load_config, registry
from segcredit.errors import RegistryError
from segcredit.objective.returns import segment_values
from segcredit.segmentation import Segmentation
from segcredit.testing import make_rollouts
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.types import SegmentValues
from small import SMALL
from strategies import cuts, normal


def values_of(
    starts: Tensor, mask: Tensor, seed: int, *, groups: int = 2, weights: Tensor | None = None
) -> SegmentValues:
    """Random values and rewards over segments, rows in groups of any size."""
    rows, width = mask.shape
    segmentation = Segmentation.from_starts(starts, mask)
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    source = torch.Generator().manual_seed(seed)
    rollouts = blank.replace(
        action_mask=mask,
        token_rewards=normal((rows, width), seed + 1).masked_fill(~mask, 0),
        group=torch.randint(groups, (rows,), generator=source) * 5 - 2,
    )
    random_BS = normal((rows, segmentation.width), seed)
    return segment_values(rollouts, segmentation, random_BS, token_weights=weights)


def spread(returns: Sequence[float], ddof: int, floor: float) -> float:
    """The standard deviation as documented: 1 for one row, its square never under the floor."""
    if len(returns) == 1:
        return 1.0
    variance = statistics.variance(returns) if ddof else statistics.pvariance(returns)
    return max(variance, floor) ** 0.5


@given(
    cuts(),
    st.integers(0, 99),
    st.integers(1, 3),
    st.sampled_from(["group", "batch"]),
    st.sampled_from([0, 1]),
    st.sampled_from([(1e-6, 0.0), (0.5, 0.0), (0.0, 0.7), (1e-4, 0.7)]),
)
def test_scaling_agrees_with_its_definition(
    cut: tuple[Tensor, Tensor],
    seed: int,
    groups: int,
    over: str,
    ddof: int,
    guards: tuple[float, float],
) -> None:
    values = values_of(*cut, seed, groups=groups)
    eps, floor = guards
    inner = registry.advantages.build("gae", lam=0.7)
    options = {"over": over, "ddof": ddof, "eps": eps, "variance_floor": floor}
    found = registry.advantages.build("group_scaled", inner=inner, **options)(values)
    returns, group = values.rewards.sum(1).tolist(), values.group.tolist()
    plain = inner(values)
    sizes = plain.abs().amax(1).tolist()
    for row in range(len(group)):
        mates = [m for m in range(len(group)) if over == "batch" or group[m] == group[row]]
        own = [returns[m] for m in mates]
        unit = spread(own, ddof, floor) + eps
        if max(sizes[m] for m in mates) > 2 * (max(own) - min(own)):
            unit = max(unit, 1)
        want = plain[row] / unit
        assert found[row].tolist() == pytest.approx(want.tolist(), rel=1e-9, abs=1e-12)


def rows_of(returns: Sequence[float], group: Sequence[int]) -> SegmentValues:
    """One segment of two tokens a row, V = 0."""
    mask = torch.ones(len(returns), 2, dtype=torch.bool)
    values = values_of(torch.zeros_like(mask), mask, 0)
    rewards_B1 = torch.tensor(returns, dtype=torch.float64)[:, None]
    return values.replace(
        values=torch.zeros_like(rewards_B1), rewards=rewards_B1, group=torch.tensor(group)
    )


def test_scaling_by_hand() -> None:
    values = rows_of([1, 3, 8], [0, 0, 1])

    def scaled(**options: object) -> list[float]:
        scheme = registry.advantages.build("group_scaled", inner="full_return", **options)
        return scheme(values)[:, 0].tolist()

    # Returns 1 and 3: variance 2 (unbiased), 1 (population). The third row is alone: divided by 1.
    assert scaled(eps=0.5) == pytest.approx([1 / (2**0.5 + 0.5), 3 / (2**0.5 + 0.5), 8 / 1.5])
    assert scaled(eps=0.5, ddof=0) == pytest.approx([1 / 1.5, 3 / 1.5, 8 / 1.5])
    # Floor and eps both count, as in verl's vectorised GRPO; a row alone has no variance to floor.
    assert scaled(eps=0.5, variance_floor=9.0) == pytest.approx([1 / 3.5, 3 / 3.5, 8 / 1.5])
    # All three: mean 4, squares 9 + 1 + 16 = 26, variance 13.
    assert scaled(eps=0.5, over="batch") == pytest.approx([x / (13**0.5 + 0.5) for x in (1, 3, 8)])
    one = values.select([2])
    for over in ("group", "batch"):
        scheme = registry.advantages.build("group_scaled", inner="full_return", over=over, eps=1.0)
        assert scheme(one).tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("group_scaled", {}),
        ("group_scaled", {"over": "batch", "ddof": 0}),
        ("group_scaled", {"variance_floor": 1e-6}),
        ("sibling_scaled", {}),
        ("whitened", {"center": False}),
    ],
)
def test_a_value_that_no_return_explains_is_not_divided_by_their_spread(
    name: str, options: dict[str, Any]
) -> None:
    def scaled(rewards: Sequence[float], value: float) -> list[float]:
        values = rows_of(rewards, [0] * len(rewards))
        values = values.replace(values=torch.full_like(values.rewards, value))
        scheme = registry.advantages.build(name, inner="full_return", **options)
        return scheme(values)[:, 0].tolist()

    for rewards in ([1, 1, 1, 1], [0, 0, 0, 0], [0.99, 1, 1, 1], [1, 1 - 1e-15, 1, 1]):
        for value in (0.4, -3.0, 700.0):
            plain = [reward - value for reward in rewards]
            assert scaled(rewards, value) == pytest.approx(plain, rel=1e-9)
    # Within what the returns explain, the spread is the unit, however small.
    apart = scaled([0.99, 1, 1, 1], 0.9975)
    assert apart[1:] == pytest.approx([apart[0] / -3] * 3, rel=1e-9)
    assert 0.49 < apart[1] < 0.6
    # A group that was told apart is in units of its std whatever its baseline's error.
    assert max(scaled([1, 1, 1, 0], 0.0)) > 1.9


@given(
    cuts(),
    st.integers(0, 99),
    st.sampled_from([0.05, 0.2, 0.5, 3.0]),
    st.sampled_from([0.9, 1.0]),
    st.sampled_from(["segment", "token"]),
)
def test_length_adaptive_lambda(
    cut: tuple[Tensor, Tensor], seed: int, scale: float, gamma: float, clock: str
) -> None:
    values = values_of(*cut, seed)
    options = {"gamma": gamma, "clock": clock, "length_scale": scale}
    found = registry.advantages.build("gae", lam=0.3, **options)(values)
    for row, count in enumerate(values.mask.sum(1).tolist()):
        tokens = int(cut[1][row].sum())
        lam = min(max(1 - 1 / (scale * tokens), 0.0), 1.0) if tokens else 0.0
        own = values.values[row, :count].tolist()
        want = oracles.lambda_returns(
            own,
            values.rewards[row, :count].tolist(),
            values.lengths[row, :count].tolist(),
            gamma=gamma,
            lam=lam,
            clock=clock,
        )
        expected = [g - v for g, v in zip(want, own, strict=True)]
        assert found[row, :count].tolist() == pytest.approx(expected, abs=1e-10)
        assert found[row, count:].tolist() == [0.0] * (found.shape[1] - count)


def test_length_scale_takes_the_place_of_lam() -> None:
    mask = torch.ones(3, 60, dtype=torch.bool)
    mask[1, 30:], mask[2, 3:] = False, False
    values = values_of(mask, mask, 0)

    def credit(**options: float) -> Tensor:
        return registry.advantages.build("gae", **options)(values)

    adaptive = credit(length_scale=0.05)
    assert torch.equal(adaptive, credit(length_scale=0.05, lam=0.1))
    # 0.05 x 60 = 3 tokens: lambda 2/3. 0.05 x 30 = 1.5: 1/3. 0.05 x 3 is below 1: 0.
    for row, lam in ((0, 2 / 3), (1, 1 / 3), (2, 0.0)):
        assert torch.allclose(adaptive[row], credit(lam=lam)[row], rtol=0, atol=1e-12)
    assert torch.allclose(credit(length_scale=1e9), credit(lam=1.0), rtol=0, atol=1e-6)
    assert not torch.allclose(adaptive, credit())


@given(cuts(), st.integers(0, 99), st.sampled_from([0, 1]), st.sampled_from(["token", "segment"]))
def test_whitening_agrees_with_a_list_of_tokens(
    cut: tuple[Tensor, Tensor], seed: int, ddof: int, weight: str
) -> None:
    mask = cut[1]
    counted = (normal(tuple(mask.shape), seed + 3) > -0.5).double() * mask
    values = values_of(*cut, seed, weights=counted)
    inner = registry.advantages.build("gae")
    scheme = registry.advantages.build("whitened", inner=inner, weight=weight, ddof=ddof)
    found, plain = scheme(values), inner(values)
    times = values.weights if weight == "token" else values.mask
    table = zip(plain.flatten().tolist(), times.flatten().tolist(), strict=True)
    numbers = [a for a, count in table for _ in range(round(count))]
    mean = sum(numbers) / max(len(numbers), 1)
    variance = 0.0
    if len(numbers) > 1:
        variance = statistics.variance(numbers) if ddof else statistics.pvariance(numbers)
    # Without variance, what is not counted has no unit.
    unit = (variance + 1e-8) ** 0.5 if len(set(numbers)) > 1 else 1
    want = (plain - mean) / unit
    assert torch.allclose(found, want.masked_fill(~values.mask, 0), rtol=1e-7, atol=1e-6)


def test_segments_that_the_loss_does_not_count_are_whitened_by_the_others() -> None:
    values = rows_of([0, 2, 10], [0, 1, 2])
    values = values.replace(weights=torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64))
    scheme = registry.advantages.build("whitened", inner="full_return", ddof=0)
    # 0 and 2: mean 1, variance 1. The third is 9 above their mean.
    assert scheme(values)[:, 0].tolist() == pytest.approx([-1, 1, 9], abs=1e-6)


def test_a_token_shared_in_a_tree_counts_once() -> None:
    """Three rows share a token of advantage 4, weighed a third each; they end in 1, 2 and 9."""
    mask = torch.ones(3, 2, dtype=torch.bool)
    thirds = torch.tensor([[1 / 3, 1.0]] * 3, dtype=torch.float64)
    values = values_of(mask, mask, 0, weights=thirds)
    credit = torch.tensor([[4.0, 1.0], [4.0, 2.0], [4.0, 9.0]], dtype=torch.float64)
    # At lambda 0 and V = 0 the advantage is the segment's reward.
    values = values.replace(values=torch.zeros_like(credit), rewards=credit)
    for ddof, spread_of in ((0, statistics.pstdev), (1, statistics.stdev)):
        scheme = registry.advantages.build("whitened", inner="td", ddof=ddof)
        want = (credit - 4) / spread_of([4, 1, 2, 9])
        assert torch.allclose(scheme(values), want, atol=1e-6)


def test_less_than_one_token_in_all_still_has_a_mean() -> None:
    values = rows_of([0, 2], [0, 0])
    values = values.replace(weights=torch.full((2, 1), 0.25, dtype=torch.float64))
    scheme = registry.advantages.build("whitened", inner="full_return")
    assert scheme(values)[:, 0].tolist() == pytest.approx([-1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("group_scaled", {"over": "row"}, "over"),
        ("group_scaled", {"ddof": 2}, "ddof"),
        ("group_scaled", {"eps": -1.0}, "expected neither to be negative"),
        ("group_scaled", {"variance_floor": -1.0}, "expected neither to be negative"),
        ("group_scaled", {"eps": 0.0}, "one to be above 0"),
        ("whitened", {"weight": "row"}, "weight"),
        ("whitened", {"ddof": 2}, "ddof"),
        ("whitened", {"eps": 0.0}, "eps. is 0.0; .*1e-30"),
        ("whitened", {"clamp": 0.0}, "clamp is 0.0; expected a number above 0"),
        ("gae", {"length_scale": 0.0}, "length_scale. is 0.0; .*1e-09"),
        ("gae", {"gamma": 1.5}, "gamma is 1.5; expected a number between 0 and 1"),
    ],
)
def test_senseless_options_are_refused(name: str, options: dict, sentence: str) -> None:
    inner = {} if name == "gae" else {"inner": "full_return"}
    with pytest.raises(RegistryError, match=sentence):
        registry.advantages.build(name, **inner, **options)


def test_a_clamp_tells_what_it_cut_off():
    """Of squared credit, weighted as the loss weighs it; schemes without a bound have none."""
    for clamp in (0.5, 100.0):
        white = f"advantage={{name='whitened', clamp={clamp}, inner={{name='td'}}}}"
        batch = collect(build(load_config("grpo", [*SMALL, "segmenter=newline", white])), 1)
        bare = registry.advantages.build("whitened", inner={"name": "td"})(batch.values)
        weights = batch.values.weights * batch.values.mask
        kept = (bare.clamp(-clamp, clamp).square() * weights).sum()
        want = float(1 - kept / (bare.square() * weights).sum())
        assert want > 0.1 if clamp < 1 else want == 0
        assert float(batch.clamped_share) == pytest.approx(want, abs=1e-6)
    assert collect(build(load_config("grpo", SMALL)), 1).clamped_share is None
