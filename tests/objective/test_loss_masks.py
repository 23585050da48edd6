"""Which tokens the loss takes: against NumPy's quantile, by hand, and counted once in trees."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.loss_masks import high_entropy, low_probability, shared_token_weights
from strategies import masks, normal

SHARES = st.sampled_from([0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 0.77, 1.0])


def exact_quantile(values: list[float], share: float) -> float:
    """Returns the (1 − share)-quantile, its rank in exact arithmetic; linear between neighbours."""
    ordered = sorted(values)
    place = (len(values) - 1) * (1 - Fraction(str(share)))
    below, part = ordered[math.floor(place)], float(place - math.floor(place))
    above = ordered[math.ceil(place)]
    return below if below == above else below + part * (above - below)


@given(mask=masks(), share=SHARES, seed=st.integers(0, 99), tied=st.booleans())
def test_high_entropy_is_what_reaches_the_quantile(
    mask: Tensor, share: float, seed: int, tied: bool
) -> None:
    entropies = normal(tuple(mask.shape), seed).abs()
    entropies = entropies.round() if tied else entropies
    found = high_entropy(entropies.masked_fill(~mask, torch.nan), mask, share)
    inside = entropies[mask].numpy()
    if not len(inside):
        assert not found.any()
        return
    assert found[mask].tolist() == [x >= exact_quantile(inside.tolist(), share) for x in inside]
    assert not found[~mask].any()
    assert found.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.35, 0.6, 0.9])
def test_high_entropy_takes_exactly_its_share_of_many(share: float, dtype: torch.dtype) -> None:
    # With n - 1 tokens a multiple of 20, the quantile is one of them, and it is in.
    entropies = torch.randperm(20_001, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = torch.ones(3, 6667, dtype=torch.bool)
    found = high_entropy(entropies.view(3, 6667), mask, share)
    assert int(found.sum()) == round(share * 20_000) + 1


def test_high_entropy_by_hand() -> None:
    entropies = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.2, math.nan]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # Sorted: .1 .2 .5 .5 .9; the 0.6-quantile is at place 2.4, between the two that tie.
    picked = [[False, True, True], [True, False, False]]
    assert high_entropy(entropies, mask, 0.4).tolist() == picked
    assert high_entropy(entropies, mask, 0.01).tolist() == [[False, True, False], [False] * 3]
    assert torch.equal(high_entropy(entropies, mask, 1.0), mask)


def test_nothing_to_choose_from() -> None:
    for shape in ((2, 3), (0, 3), (2, 0)):
        blank = torch.full(shape, math.nan)
        mask = torch.zeros(shape, dtype=torch.bool)
        assert high_entropy(blank, mask, 0.2).tolist() == mask.tolist()
        assert low_probability(blank, mask, 0.9).tolist() == mask.tolist()
        weights = shared_token_weights(torch.zeros(shape, dtype=torch.long), mask)
        assert weights.tolist() == mask.float().tolist()


def test_low_probability_is_strict() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.75, math.nan, 1.0]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True, False, True]])
    assert low_probability(logprobs, mask, 0.5).tolist() == [[False, True, False, False, False]]
    assert low_probability(logprobs, mask, 0.75).tolist() == [[True, True, False, False, False]]
    assert low_probability(logprobs, mask, 1.0).tolist() == [[True, True, True, False, False]]


@given(mask=masks(), seed=st.integers(0, 99), nodes=st.integers(1, 20))
def test_shared_tokens_count_once_together(mask: Tensor, seed: int, nodes: int) -> None:
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(nodes, tuple(mask.shape), generator=source)
    weights = shared_token_weights(ids, mask)
    distinct = ids[mask].unique()
    assert float(weights.sum()) == pytest.approx(len(distinct), abs=1e-4)
    for node in distinct.tolist():
        rows = mask & (ids == node)
        torch.testing.assert_close(weights[rows], torch.full_like(weights[rows], 1 / rows.sum()))
    assert weights[~mask].eq(0).all()


@given(mask=masks(), node=st.integers(0, 5))
def test_what_padding_says_of_nodes_does_not_matter(mask: Tensor, node: int) -> None:
    ids = torch.arange(mask.numel()).view(mask.shape)
    assert torch.equal(shared_token_weights(ids, mask), mask.float())
    assert torch.equal(shared_token_weights(ids.masked_fill(~mask, node), mask), mask.float())


def test_a_tree_by_hand() -> None:
    # Three rows begin with token 5; two of them go on with token 6.
    ids = torch.tensor([[5, 6, 7], [5, 6, 8], [5, 9, 5]])
    mask = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    third, half = 1 / 3, 1 / 2
    expected = [[third, half, 1], [third, half, 1], [third, 1, 0]]
    torch.testing.assert_close(shared_token_weights(ids, mask), torch.tensor(expected))


def test_impossible_shares_are_sentences() -> None:
    x, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    for wrong in (0.0, -0.1, 1.1):
        with pytest.raises(ShapeError, match=rf"fraction is {wrong}; expected a share above 0"):
            high_entropy(x, mask, wrong)
        with pytest.raises(ShapeError, match=rf"below is {wrong}; expected a probability"):
            low_probability(x, mask, wrong)
