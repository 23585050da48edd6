"""Statistics over groups against a loop, and what rounding must not do to equal numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segcredit.objective.group_statistics import group_mean, group_size, group_std

ROWS = st.lists(
    st.tuples(st.integers(-3, 40), st.floats(-10, 10, allow_subnormal=False)), max_size=60
)


@given(rows=ROWS, ddof=st.sampled_from([0, 1]))
def test_statistics_agree_with_a_loop(rows: list[tuple[int, float]], ddof: int) -> None:
    group = torch.tensor([key for key, _ in rows], dtype=torch.long)
    x = torch.tensor([value for _, value in rows], dtype=torch.float64)
    mean, std, size = group_mean(x, group), group_std(x, group, ddof=ddof), group_size(group)
    assert mean.shape == std.shape == size.shape == (len(rows),)
    assert mean.dtype == std.dtype == torch.float64
    for row, (key, _) in enumerate(rows):
        own = [value for other, value in rows if other == key]
        average = sum(own) / len(own)
        assert int(size[row]) == len(own)
        assert float(mean[row]) == pytest.approx(average, abs=1e-12)
        if len(own) <= ddof:
            assert math.isnan(std[row])
        else:
            squares = sum((value - average) ** 2 for value in own)
            expected = math.sqrt(squares / (len(own) - ddof))
            assert float(std[row]) == pytest.approx(expected, abs=1e-9)


@given(rows=ROWS)
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[int, float]]) -> None:
    group = torch.tensor([key for key, _ in rows], dtype=torch.long)
    x = torch.tensor([value for _, value in rows], dtype=torch.float64)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    moved = group_mean(x[order], group[order])
    torch.testing.assert_close(group_mean(x, group)[order], moved, rtol=1e-12, atol=1e-12)
    assert torch.equal(group_size(group)[order], group_size(group[order]))


def test_thousands_of_unsorted_groups() -> None:
    source = torch.Generator().manual_seed(0)
    group = torch.randint(10**12, (3000,), generator=source)
    group = torch.cat([group, group[:1000], group[:500]])[torch.randperm(4500, generator=source)]
    values, index, counts = group.unique(return_inverse=True, return_counts=True)
    x = torch.rand(4500, generator=source, dtype=torch.float64)
    sums = torch.zeros(len(values), dtype=torch.float64).index_add(0, index, x)
    assert torch.equal(group_size(group), counts[index])
    torch.testing.assert_close(group_mean(x, group), (sums / counts)[index])


def test_one_row_and_none() -> None:
    one = torch.tensor([2.5])
    key = torch.tensor([7])
    assert group_mean(one, key).tolist() == [2.5]
    assert group_std(one, key, ddof=0).tolist() == [0]
    assert group_std(one, key).isnan().all()
    assert group_mean(one[:0], key[:0]).shape == (0,)
    assert group_std(one[:0], key[:0]).shape == (0,)
    assert group_size(key[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_numbers_have_their_mean_and_no_deviation(dtype: torch.dtype) -> None:
    # 0.1 seven times adds up to a little more than 0.7 in float32.
    for value in (0.1, 0.3, 0.7, 1 / 3, 1e6 + 0.1):
        for rows in range(2, 12):
            x = torch.full((2 * rows,), value, dtype=dtype)
            group = torch.arange(2 * rows) % 2
            assert torch.equal(group_mean(x, group), x)
            assert group_std(x, group, ddof=0).eq(0).all()
