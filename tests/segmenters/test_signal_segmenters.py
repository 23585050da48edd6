"""Turns, Probability, SurpriseChange, ValueJump: against loops, by hand, and their causality."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from segcredit import RolloutBatch, Segmentation, Segmenter, registry
from segcredit.testing import (
    ToyPolicy,
    ToySimulator,
    check_segmenter,
    make_rollouts,
    segmenter_rules,
)
from segmenters.probability import Probability
from segmenters.surprise_change import SurpriseChange
from segmenters.turns import Turns
from segmenters.value_jump import ValueJump
from strategies import masks, normal


def rollouts_of(mask_BT: Tensor, **signals: Tensor) -> RolloutBatch:
    rows, width = mask_BT.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    return blank.replace(action_mask=mask_BT, **signals)


def solid(row: list[float]) -> tuple[Tensor, Tensor]:
    """One row of numbers, and a mask without holes."""
    row_1T = torch.tensor([row], dtype=torch.float64)
    return row_1T, torch.ones_like(row_1T, dtype=torch.bool)


def boundary_depends_on_the_future(segmentation: Segmentation, ids_BT: Tensor) -> bool:
    """Whether two completions that agree before token t disagree on a boundary before it."""
    seen: dict[tuple[int, ...], bool] = {}
    for row, starts in zip(ids_BT.tolist(), segmentation.starts.tolist(), strict=True):
        for t, start in enumerate(starts):
            if seen.setdefault(tuple(row[:t]), start) != start:
                return True
    return False


@given(masks())
def test_turns_are_the_runs_of_the_mask(mask_BT: Tensor) -> None:
    found = Turns().segment(rollouts_of(mask_BT)).segment_ids.tolist()
    for mask, ids in zip(mask_BT.tolist(), found, strict=True):
        runs = "".join("x" if action else " " for action in mask).split()
        lengths = [ids.count(segment) for segment in range(len(runs))]
        assert lengths == [len(run) for run in runs]
        assert [segment >= 0 for segment in ids] == mask


def test_turns_by_hand() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 1, 0], [1] * 8 + [0, 0]]).bool()
    assert Turns().segment(rollouts_of(mask)).segment_ids.tolist() == [
        [-1, 0, 0, -1, -1, 1, -1, 2, 2, -1],
        [0] * 8 + [-1, -1],
    ]


def low_tokens(
    row: list[float], mask: list[bool], fraction: float, below: float | None
) -> list[bool]:
    """Slow oracle: which of one row's tokens are of low probability."""
    if below is None:
        return oracles.top_fraction([-x for x in row], mask, fraction)
    return [action and math.exp(x) < below for x, action in zip(row, mask, strict=True)]


def probability_ids(low: list[bool], mask: list[bool], tokens: int, fork: str) -> list[int]:
    """Slow oracle: fill one segment after the other."""
    ids, segment, held = [], 0, 0
    for marked, action in zip(low, mask, strict=True):
        if fork == "starts" and marked and held == tokens:
            segment, held = segment + 1, 0
        ids.append(segment if action else -1)
        held += marked
        if fork == "ends" and marked and held == tokens:
            segment, held = segment + 1, 0
    return ids


@pytest.mark.parametrize("below", [None, 0.5, 0.9])
@given(
    mask_BT=masks(),
    seed=st.integers(0, 2**16),
    fraction=st.sampled_from([0.1, 0.3, 0.6, 1.0]),
    tokens=st.integers(1, 3),
    fork=st.sampled_from(["ends", "starts"]),
)
def test_probability_agrees_with_a_walk_along_the_row(
    mask_BT: Tensor, seed: int, fraction: float, below: float | None, tokens: int, fork: Any
) -> None:
    logprobs_BT = -(normal(tuple(mask_BT.shape), seed).abs() * 4).round() / 4  # ties on purpose
    noisy_BT = logprobs_BT.masked_fill(~mask_BT, math.nan)
    segmenter = Probability(fraction, below, tokens, fork)
    found = segmenter.segment(rollouts_of(mask_BT, logprobs=noisy_BT)).segment_ids.tolist()
    for row, mask, ids in zip(logprobs_BT.tolist(), mask_BT.tolist(), found, strict=True):
        low = low_tokens(row, mask, fraction, below)
        assert ids == probability_ids(low, mask, tokens, fork)
        held = [
            sum(marked for marked, at in zip(low, ids, strict=True) if at == segment)
            for segment in range(max([*ids, -1]) + 1)
        ]
        assert all(count == tokens for count in held[:-1])
        assert all(count <= tokens for count in held[-1:])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # The three lowest of seven stand at 1, 3 and 5.
        ({}, [0, 0, 1, 1, 2, 2, 3]),
        ({"tokens_per_segment": 2}, [0, 0, 0, 0, 1, 1, 1]),
        ({"fork": "starts"}, [0, 0, 0, 1, 1, 2, 2]),
        ({"fork": "starts", "tokens_per_segment": 2}, [0, 0, 0, 0, 0, 1, 1]),
        ({"fraction": 0.1}, [0, 0, 0, 0, 1, 1, 1]),
        ({"below": 0.45}, [0, 0, 0, 0, 1, 1, 2]),
        ({"below": 0.1}, [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_probability_by_hand(options: dict[str, Any], wanted: list[int]) -> None:
    shares, mask = solid([0.95, 0.5, 0.99, 0.2, 0.9, 0.3, 0.95])
    found = Probability(**options).segment(rollouts_of(mask, logprobs=shares.log()))
    assert found.segment_ids.tolist() == [wanted]


def test_probability_is_the_twin_of_entropy_and_no_cutpoint() -> None:
    rollouts = make_rollouts(8, holes={6: [1, 2]})
    twin = rollouts.replace(entropies=-rollouts.logprobs)
    ids = Probability().segment(rollouts).segment_ids
    assert torch.equal(ids, registry.segmenters.build("entropy").segment(twin).segment_ids)
    for n in (2, 3):
        mine = Probability(below=0.5, tokens_per_segment=n).segment(rollouts)
        spo = {"below": 0.5, "every": n}
        theirs = registry.segmenters.build("cutpoint", fork="ends", **spo).segment(rollouts)
        assert not torch.equal(mine.segment_ids, theirs.segment_ids)
        mine = Probability(below=0.5, tokens_per_segment=n, fork="starts").segment(rollouts)
        theirs = registry.segmenters.build("cutpoint", first="join", **spo).segment(rollouts)
        assert torch.equal(mine.segment_ids, theirs.segment_ids)


def least_cost(row: np.ndarray, penalty: float, min_size: int) -> float:
    """Slow oracle: the least of the objective over all cuts, by a recursion over prefixes."""

    @functools.cache
    def best(stop: int) -> float:
        if stop == 0:
            return 0.0
        return min(
            (
                best(start) + cost_of(row[start:stop]) + penalty
                for start in range(stop - min_size + 1)
                if best(start) < math.inf
            ),
            default=math.inf,
        )

    return best(len(row))


def cost_of(piece: np.ndarray) -> float:
    return float(((piece - piece.mean()) ** 2).sum())


def cost_found(row: np.ndarray, ids: list[int], penalty: float, min_size: int) -> float:
    pieces = [row[[k == segment for k in ids]] for segment in range(max(ids) + 1)]
    assert len(pieces) == 1 or min(map(len, pieces)) >= min_size
    return sum(cost_of(piece) + penalty for piece in pieces)


def assert_least(found: Segmentation, x_BT: Tensor, segmenter: SurpriseChange) -> None:
    """Each row's cut costs no more than the best of all cuts."""
    for row, ids in zip(x_BT.numpy(), found.segment_ids.tolist(), strict=True):
        actions = [t for t, segment in enumerate(ids) if segment >= 0]
        dense, inside = row[actions], [ids[t] for t in actions]
        if len(dense) < 2 * segmenter.min_size or np.ptp(dense) == 0:
            assert max([*ids, 0]) == 0
            continue
        penalty = segmenter.penalty * dense.var() * math.log(len(dense))
        found_cost = cost_found(dense, inside, penalty, segmenter.min_size)
        wanted = least_cost(dense, penalty, segmenter.min_size)
        assert found_cost == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(
    mask_BT=masks(),
    seed=st.integers(0, 2**16),
    penalty=st.sampled_from([0.05, 0.3, 1.0]),
    min_size=st.integers(1, 3),
)
def test_no_other_cut_is_cheaper_on_ragged_rows(
    mask_BT: Tensor, seed: int, penalty: float, min_size: int
) -> None:
    entropies_BT = (normal(tuple(mask_BT.shape), seed).abs() * 2).round() / 2
    noisy_BT = entropies_BT.masked_fill(~mask_BT, math.nan)
    segmenter = SurpriseChange(penalty=penalty, min_size=min_size)
    found = segmenter.segment(rollouts_of(mask_BT, entropies=noisy_BT))
    assert_least(found, entropies_BT, segmenter)


@pytest.mark.parametrize("min_size", [1, 2, 4, 7])
@pytest.mark.parametrize("penalty", [0.2, 1.0, 3.0])
def test_no_other_cut_is_cheaper_on_long_rows(min_size: int, penalty: float) -> None:
    x = normal((6, 70), min_size).abs() + (torch.arange(70) // 23 % 2) * 1.5
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[::2, 10:15] = False
    segmenter = SurpriseChange("surprisal", penalty, min_size)
    rollouts = rollouts_of(mask, logprobs=-x.masked_fill(~mask, math.nan))
    found = segmenter.segment(rollouts)
    assert_least(found, x, segmenter)
    assert penalty > 1 or found.width > 2


def test_a_change_of_level_is_found_where_it_is() -> None:
    noise = normal((1, 90), 0) * 0.2
    x = noise + torch.tensor([0.3] * 30 + [1.5] * 25 + [0.1] * 35)
    for row in (x, x * 1e-7, 12 + x * 1e-5):
        _, mask = solid(row[0].tolist())
        found = SurpriseChange().segment(rollouts_of(mask, entropies=row))
        assert found.starts[0].nonzero()[:, 0].tolist() == [0, 30, 55]
    holes = torch.ones(1, 95, dtype=torch.bool)
    holes[0, 30:35] = False
    wide = torch.cat([x[:, :30], torch.full((1, 5), math.nan), x[:, 30:]], dim=1)
    found = SurpriseChange().segment(rollouts_of(holes, entropies=wide))
    assert found.starts[0].nonzero()[:, 0].tolist() == [0, 35, 60]


def test_each_signal_is_its_own() -> None:
    level, mask = solid([0.5] * 10 + [2.5] * 10)
    flat = torch.full_like(level, 0.7)
    rollouts = rollouts_of(mask, entropies=flat, logprobs=-level)
    assert SurpriseChange().segment(rollouts).width == 1
    assert SurpriseChange("surprisal").segment(rollouts).width == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("entropy", [0.0, 0.1, 1e-7, 11.9])
def test_a_constant_signal_is_one_segment(entropy: float) -> None:
    level, mask = solid([entropy] * 3000)
    assert SurpriseChange(penalty=0.01).segment(rollouts_of(mask, entropies=level)).width == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_signals_are_cut_too(dtype: torch.dtype) -> None:
    level, mask = solid([0.5] * 10 + [2.5] * 10)
    rollouts = rollouts_of(mask, entropies=level.to(dtype))
    assert SurpriseChange().segment(rollouts).starts[0].nonzero()[:, 0].tolist() == [0, 10]


def jumps(row: list[float], mask: list[bool]) -> list[float | None]:
    """Slow oracle: the change at each token that has a next action token."""
    found: list[float | None] = [None] * len(row)
    places = [t for t, action in enumerate(mask) if action]
    for here, there in itertools.pairwise(places):
        found[here] = abs(row[there] - row[here])
    return found


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
@given(
    mask_BT=masks(),
    seed=st.integers(0, 2**16),
    fraction=st.sampled_from([0.1, 0.4, 1.0]),
)
def test_value_jump_agrees_with_a_walk_along_the_row(
    mask_BT: Tensor, seed: int, fraction: float, threshold: float | None
) -> None:
    values_BT = (normal(tuple(mask_BT.shape), seed) * 2).round() / 4  # ties and zeros on purpose
    # A number that stands in a hole would be a jump; NaN is none by itself.
    noisy_BT = values_BT.masked_fill(~mask_BT, math.nan)
    noisy_BT[:, ::2].masked_fill_(~mask_BT[:, ::2], 50.0)
    segmenter = ValueJump(fraction, threshold)
    found = segmenter.segment(rollouts_of(mask_BT, token_values=noisy_BT)).segment_ids.tolist()
    for row, mask, ids in zip(values_BT.tolist(), mask_BT.tolist(), found, strict=True):
        changes = jumps(row, mask)
        counted = [change is not None for change in changes]
        sizes = [change or 0.0 for change in changes]
        chosen = (
            oracles.top_fraction(sizes, counted, fraction)
            if threshold is None
            else [size > threshold for size in sizes]
        )
        ends = [picked and size > 0 for picked, size in zip(chosen, sizes, strict=True)]
        assert ids == oracles.segment_ids_from_ends(ends, mask)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # Changes: 0, .4, .1, .5, .1, none.
        ({"top_fraction": 0.4}, [0, 0, 1, 1, 2, 2]),
        ({}, [0, 0, 0, 0, 1, 1]),
        ({"top_fraction": 1.0}, [0, 0, 1, 2, 3, 4]),
        ({"threshold": 0.45}, [0, 0, 0, 0, 1, 1]),
        ({"threshold": 0.0}, [0, 0, 1, 2, 3, 4]),
        ({"threshold": 0.6}, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_value_jump_by_hand(options: dict[str, Any], wanted: list[int]) -> None:
    values, mask = solid([0.5, 0.5, 0.9, 0.8, 0.3, 0.2])
    found = ValueJump(**options).segment(rollouts_of(mask, token_values=values))
    assert found.segment_ids.tolist() == [wanted]


def test_what_the_environment_says_is_part_of_the_jump() -> None:
    values, mask = solid([0.5, 0.5, 0.9, 0.9, 0.9])
    mask[0, 2:4] = False
    found = ValueJump(threshold=0.3).segment(rollouts_of(mask, token_values=values))
    assert found.segment_ids.tolist() == [[0, 0, -1, -1, 1]]


def test_what_stands_in_a_hole_is_no_jump() -> None:
    values, mask = solid([0.5, 9.0, -9.0, 0.6, 0.7, 9.0])
    mask[0, [1, 2, 5]] = False
    for segmenter in (ValueJump(threshold=0.3), ValueJump(threshold=0.15)):
        found = segmenter.segment(rollouts_of(mask, token_values=values))
        assert found.width == 1


def test_missing_values_are_a_sentence() -> None:
    wanted = r"these rollouts have none\..*rollouts\.replace\(token_values=\.\.\.\).*'entropy'"
    with pytest.raises(ValueError, match=wanted):
        ValueJump().segment(make_rollouts(2))


PLUGINS: list[Segmenter] = [
    Turns(),
    Probability(),
    Probability(0.8, tokens_per_segment=2, fork="starts"),
    Probability(below=0.4),
    Probability(below=0.4, tokens_per_segment=2),
    Probability(below=0.4, fork="starts"),
    SurpriseChange(penalty=0.3, min_size=2),
    SurpriseChange("surprisal", penalty=0.05, min_size=1),
    ValueJump(),
    ValueJump(threshold=0.15),
]


@pytest.mark.parametrize("plugin", PLUGINS, ids=repr)
def test_they_keep_the_contract(plugin: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    with_values = functools.partial(make_rollouts, token_values=True)
    monkeypatch.setattr(segmenter_rules, "make_rollouts", with_values)
    check_segmenter(plugin)


@pytest.mark.parametrize("plugin", PLUGINS, ids=repr)
def test_they_are_causal_exactly_when_they_say_so(plugin: Segmenter) -> None:
    simulator = ToySimulator(ToyPolicy(length=6).double())
    rollouts = simulator.enumerate()
    rollouts = rollouts.replace(token_values=simulator.values(rollouts))
    found = plugin.segment(rollouts)
    assert found.width > 1 or plugin == Turns()  # the toy has no holes
    assert boundary_depends_on_the_future(found, rollouts.completion_ids) is not plugin.causal


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("plugin", "options", "sentence"),
    [
        (Probability, {"fraction": 0.0}, "fraction is 0.0; expected a share above 0"),
        (Probability, {"below": 90.0}, "below is 90.0; expected a probability above 0"),
        (Probability, {"tokens_per_segment": 0}, "tokens_per_segment is 0; expected at least 1"),
        (Probability, {"fork": "opens"}, "fork is 'opens'; expected 'ends' or 'starts'"),
        (SurpriseChange, {"signal": "values"}, "signal is 'values'; expected 'entropy' or"),
        (SurpriseChange, {"penalty": 0.0}, "penalty is 0.0; expected a finite number above 0"),
        (SurpriseChange, {"penalty": math.inf}, "penalty is inf; expected a finite number"),
        (SurpriseChange, {"min_size": 0}, "min_size is 0; expected at least 1 token"),
        (ValueJump, {"top_fraction": 10.0}, "top_fraction is 10.0; expected a share above 0"),
        (ValueJump, {"threshold": math.nan}, "threshold is nan; expected reward units"),
    ],
)
def test_wrong_options_are_refused(plugin: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plugin(**options)
