"""Segmentation against plain loops: over holes, empty rows, padding and garbage on it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from segcredit.errors import ShapeError
from segcredit.segmentation import Segmentation, top_fraction
from strategies import cuts, masks, normal

HOWS = ("sum", "mean", "first", "last", "max")


@given(cuts())
def test_from_starts_agrees_with_the_loop(cut: tuple[Tensor, Tensor]) -> None:
    starts, mask = cut
    want = [
        oracles.segment_ids_from_starts(*row)
        for row in zip(starts.tolist(), mask.tolist(), strict=True)
    ]
    assert Segmentation.from_starts(starts, mask).segment_ids.tolist() == want
    assert Segmentation.from_starts(starts.int() * 7, mask.int()).segment_ids.tolist() == want


@given(cuts())
def test_from_ends_agrees_with_the_loop(cut: tuple[Tensor, Tensor]) -> None:
    ends, mask = cut
    want = [
        oracles.segment_ids_from_ends(*row)
        for row in zip(ends.tolist(), mask.tolist(), strict=True)
    ]
    assert Segmentation.from_ends(ends, mask).segment_ids.tolist() == want


@given(masks(), st.integers(0, 99))
def test_from_char_starts_agrees_with_the_loop(mask: Tensor, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 4, mask.shape, generator=source)
    lasts = sizes.cumsum(1)
    spans = torch.stack([lasts - sizes, lasts], dim=2)
    offsets = [
        sorted(torch.randint(0, int(row[-1]) + 1, (3,), generator=source).tolist())[: seed % 4]
        for row in lasts
    ]
    want = [
        oracles.segment_ids_from_chars(*row)
        for row in zip(offsets, spans[..., 0].tolist(), mask.tolist(), strict=True)
    ]
    assert Segmentation.from_char_starts(offsets, spans, mask).segment_ids.tolist() == want


@given(cuts())
def test_derived_tables_agree_with_the_ids(cut: tuple[Tensor, Tensor]) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    ids = segmentation.segment_ids.tolist()
    assert torch.equal(segmentation.action_mask, mask)
    assert segmentation.counts.tolist() == [max([*row, -1]) + 1 for row in ids]
    assert segmentation.width == max(max(max([*row, -1]) + 1 for row in ids), 1)
    for b, row in enumerate(ids):
        for segment in range(segmentation.width):
            inside = [t for t, number in enumerate(row) if number == segment]
            assert bool(segmentation.mask[b, segment]) == bool(inside)
            assert int(segmentation.lengths[b, segment]) == len(inside)
            first, last = (inside[0], inside[-1]) if inside else (0, 0)
            assert int(segmentation.anchors("start")[b, segment]) == first
            assert int(segmentation.anchors("last_token")[b, segment]) == last
        begins = [t for t in range(len(row)) if row[t] >= 0 and row[t] not in row[:t]]
        closes = [t for t in range(len(row)) if row[t] >= 0 and row[t] not in row[t + 1 :]]
        assert segmentation.starts[b].nonzero()[:, 0].tolist() == begins
        assert segmentation.ends[b].nonzero()[:, 0].tolist() == closes


@pytest.mark.parametrize("how", HOWS)
@given(cut=cuts(), seed=st.integers(0, 99))
def test_reduce_and_spread_agree_with_the_loops(
    how: str, cut: tuple[Tensor, Tensor], seed: int
) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    x = normal(tuple(mask.shape), seed)
    reduced = segmentation.reduce(x.masked_fill(~mask, torch.nan), how)
    for b, row in enumerate(segmentation.segment_ids.tolist()):
        want = oracles.reduce(x[b].tolist(), row, how, segmentation.width)
        assert reduced[b].tolist() == pytest.approx(want, abs=1e-12)
        shown = segmentation.spread(reduced)[b].tolist()
        assert shown == pytest.approx(oracles.spread(want, row), abs=1e-12)


@pytest.mark.parametrize("how", HOWS)
@given(cut=cuts(), seed=st.integers(0, 99))
def test_garbage_on_masked_tokens_reaches_no_gradient(
    how: str, cut: tuple[Tensor, Tensor], seed: int
) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    clean = normal(tuple(mask.shape), seed).requires_grad_()
    dirty = clean.detach().masked_fill(~mask, torch.nan).requires_grad_()
    upstream = normal((len(mask), segmentation.width), seed + 1)
    for x in (clean, dirty):
        (segmentation.spread(segmentation.reduce(x, how) * upstream).square()).sum().backward()
    assert clean.grad is not None
    assert dirty.grad is not None
    assert torch.equal(clean.grad, dirty.grad)
    assert bool((dirty.grad[~mask] == 0).all())


@given(cuts())
def test_select_keeps_rows_as_they_are(cut: tuple[Tensor, Tensor]) -> None:
    segmentation = Segmentation.from_starts(*cut)
    order = list(reversed(range(len(cut[1]))))
    assert torch.equal(segmentation.select(order).segment_ids, segmentation.segment_ids[order])


@given(masks(), st.integers(0, 99), st.sampled_from([0.0, 0.07, 0.1, 0.3, 0.5, 0.99, 1.0]))
def test_top_fraction_agrees_with_sorting(mask: Tensor, seed: int, fraction: float) -> None:
    x = (normal(tuple(mask.shape), seed) * 2).round() / 2  # ties on purpose
    dirty = x.masked_fill(~mask, torch.nan)
    chosen = top_fraction(dirty, mask, fraction)
    for row in range(len(mask)):
        want = oracles.top_fraction(x[row].tolist(), mask[row].tolist(), fraction)
        assert chosen[row].tolist() == want


@pytest.mark.parametrize("fraction", [0.07, 0.1, 0.2, 0.29, 0.3, 0.57, 0.7, 1.0])
@pytest.mark.parametrize("tokens", [1, 2, 10, 50, 100, 200])
def test_top_fraction_of_a_product_that_is_not_exact(fraction: float, tokens: int) -> None:
    mask = torch.ones(1, tokens, dtype=torch.bool)
    x = normal((1, tokens), tokens)
    want = oracles.top_fraction(x[0].tolist(), mask[0].tolist(), fraction)
    assert top_fraction(x, mask, fraction)[0].tolist() == want


def test_sizes_of_zero() -> None:
    for shape in ((0, 4), (3, 0), (0, 0)):
        blank = torch.zeros(shape, dtype=torch.bool)
        segmentation = Segmentation.from_starts(blank, blank)
        assert segmentation.width == 1
        assert tuple(segmentation.reduce(blank.double()).shape) == (shape[0], 1)
        for how in HOWS:
            reduced = segmentation.reduce(blank.double(), how)
            assert tuple(segmentation.spread(reduced).shape) == shape
        assert tuple(top_fraction(blank.double(), blank, 0.3).shape) == shape
        assert tuple(segmentation.ends.shape) == shape
        none = Segmentation.from_char_starts([[]] * shape[0], torch.zeros(*shape, 2).long(), blank)
        assert none.width == 1


def test_half_precision_sums_are_accumulated_in_float32() -> None:
    mask = torch.ones(1, 3000, dtype=torch.bool)
    segmentation = Segmentation.from_starts(torch.zeros_like(mask), mask)
    total = segmentation.reduce(torch.ones(1, 3000, dtype=torch.bfloat16), "sum")
    assert total.dtype == torch.bfloat16
    assert float(total) == pytest.approx(3000, rel=0.01)  # bfloat16 alone would stop at 256
    mean = segmentation.reduce(torch.ones(1, 3000, dtype=torch.bfloat16), "mean")
    assert float(mean) == pytest.approx(1.0, rel=0.01)


FAULTS = [
    ([[0, 0, 2]], "a gap in completion 0: token 2 has segment 2 after segment 0"),
    ([[0], [1]], "no segment 0 in completion 1: token 0, its first, has segment 1"),
    ([[0, 1, 0]], "a decrease in completion 0: token 2 has segment 0 after segment 1"),
    ([[0, 1, -1, 3]], "a gap in completion 0: token 3 has segment 3 after segment 1"),
    ([[0, -2, 1]], "a negative id in completion 0: token 1 has segment -2"),
    ([[-1, -1, 1]], "no segment 0 in completion 0: token 2, its first, has segment 1"),
]


@pytest.mark.parametrize(("ids", "sentence"), FAULTS)
def test_wrong_ids_are_named(ids: list[list[int]], sentence: str) -> None:
    with pytest.raises(ShapeError) as caught:
        Segmentation(torch.tensor(ids))
    assert sentence in str(caught.value)
    assert "Segmentation.from_starts" in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_sentences() -> None:
    segmentation = Segmentation(torch.tensor([[0, 0, 1]]))
    with pytest.raises(ShapeError, match=r"expected \(1, 2\), one value for each segment"):
        segmentation.spread(torch.zeros(1, 5))
    with pytest.raises(ShapeError, match=r"x has shape \(1, 5\)"):
        segmentation.reduce(torch.zeros(1, 5))
    with pytest.raises(ShapeError, match="expected a share between 0 and 1"):
        top_fraction(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 30.0)
    with pytest.raises(ShapeError, match="one list of character offsets for each completion"):
        Segmentation.from_char_starts([], torch.zeros(1, 3, 2).long(), torch.ones(1, 3))
    with pytest.raises(ShapeError, match=r"starts has shape \(1, 2\)"):
        Segmentation.from_starts(torch.zeros(1, 2), torch.ones(1, 3))
