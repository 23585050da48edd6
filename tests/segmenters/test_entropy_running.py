"""EntropyRunning: against exact fractions, its numerical safety, its causality, its default."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, registry
from segcredit.testing import ToyPolicy, ToySimulator, check_segmenter, make_rollouts
from strategies import masks, normal


def entropy_running(**options: Any) -> Any:
    return registry.segmenters.build("entropy_running", **options)


def rollouts_of(entropies_BT: Tensor, mask_BT: Tensor) -> RolloutBatch:
    rows, width = mask_BT.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width)
    return blank.replace(action_mask=mask_BT, entropies=entropies_BT)


def segments(entropies_BT: Tensor, mask_BT: Tensor | None = None, **options: Any) -> Segmentation:
    mask_BT = torch.ones_like(entropies_BT, dtype=torch.bool) if mask_BT is None else mask_BT
    return entropy_running(**options).segment(rollouts_of(entropies_BT, mask_BT))


def is_fork(seen: list[float], deviations: float) -> bool:
    """Slow oracle: whether the last of the numbers exceeds their threshold, in exact arithmetic."""
    exact = [Fraction(x) for x in seen]
    mean = sum(exact) / len(exact)
    variance = sum((x - mean) ** 2 for x in exact) / len(exact)
    above, needed = exact[-1] - mean, Fraction(deviations) ** 2 * variance
    if deviations >= 0:
        return above > 0 and above**2 > needed
    return above > 0 or above**2 < needed or (above == 0 and needed > 0)


def forks(row: list[float], mask: list[bool], deviations: float) -> list[bool]:
    found, seen = [], []
    for entropy, action in zip(row, mask, strict=True):
        seen += [entropy] * action
        found.append(action and is_fork(seen, deviations))
    return found


def ids_from(forks: list[bool], mask: list[bool], fork: str) -> list[int]:
    """Slow oracle: segment numbers of one row, counted along its action tokens."""
    ids, segment, fresh = [], 0, True
    for marked, action in zip(forks, mask, strict=True):
        if not action:
            ids.append(-1)
            continue
        segment += fork == "starts" and marked and not fresh
        ids.append(segment)
        fresh = False
        segment += fork == "ends" and marked
    return ids


@given(
    mask_BT=masks(),
    seed=st.integers(0, 2**16),
    deviations=st.sampled_from([-0.5, 0.0, 0.2, 1.0]),
    fork=st.sampled_from(["ends", "starts"]),
    offset=st.sampled_from([0.0, 12.0]),
)
def test_it_agrees_with_exact_fractions(
    mask_BT: Tensor, seed: int, deviations: float, fork: str, offset: float
) -> None:
    shape = (len(mask_BT), mask_BT.shape[1])
    # Around 12 nats the spread is a hundred-thousandth: what a sum of squares would lose.
    entropies_BT = offset + normal(shape, seed).abs() * (1e-5 if offset else 1.0)
    noisy_BT = entropies_BT.masked_fill(~mask_BT, math.nan)
    found = segments(noisy_BT, mask_BT, deviations=deviations, fork=fork).segment_ids.tolist()
    for row, mask, ids in zip(entropies_BT.tolist(), mask_BT.tolist(), found, strict=True):
        seen = [x for x, action in zip(row, mask, strict=True) if action]
        # Two tokens one deviation apart tie; which side rounding puts them on is not promised.
        if deviations == 1.0 and len(seen) > 1 and seen[1] > seen[0]:
            continue
        assert ids == ids_from(forks(row, mask, deviations), mask, fork)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("entropy", [0.0, 0.1, 1e-7, 11.9])
@pytest.mark.parametrize("deviations", [-0.2, 0.0, 0.2])
def test_equal_entropies_have_no_fork(
    dtype: torch.dtype, entropy: float, deviations: float
) -> None:
    row = torch.full((1, 3000), entropy, dtype=dtype)
    assert segments(row, deviations=deviations).width == 1


def test_holes_enter_no_statistic() -> None:
    row = torch.tensor([[math.nan, 1.0, 50.0, 0.5, math.inf, 1.5, 0.2]])
    mask = torch.tensor([[False, True, False, True, False, True, True]])
    alone = segments(row[mask][None])
    assert alone.segment_ids.tolist() == [[0, 0, 0, 1]]
    assert segments(row, mask).segment_ids.tolist() == [[-1, 0, -1, 0, -1, 0, 1]]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # The means up to each token are 1, 2, 1.33, 2 and 2: 3 and 4 exceed theirs.
        ({}, [0, 0, 1, 1, 2]),
        ({"fork": "starts"}, [0, 1, 1, 2, 2]),
        ({"deviations": 1.2}, [0, 0, 0, 0, 1]),
        ({"threshold": 1.5}, [0, 0, 1, 1, 2]),
        ({"threshold": 1.5, "deviations": 9.0, "fork": "starts"}, [0, 1, 1, 2, 3]),
        ({"threshold": 3.0}, [0, 0, 0, 0, 1]),
        ({"threshold": 0.0}, [0, 1, 2, 2, 3]),
        ({"threshold": 4.0}, [0, 0, 0, 0, 0]),
    ],
)
def test_an_example_by_hand(options: dict[str, Any], wanted: list[int]) -> None:
    row = torch.tensor([[1.0, 3.0, 0.0, 4.0, 2.0]])
    assert segments(row, **options).segment_ids.tolist() == [wanted]


@pytest.mark.parametrize(("length", "wanted"), [(50, 0.325), (500, 0.305)])
def test_the_default_marks_three_in_ten_exponential_entropies(length: int, wanted: float) -> None:
    source = torch.Generator().manual_seed(0)
    shares = torch.rand(200, length, generator=source, dtype=torch.float64)
    rows = -(1 - shares).log()
    found = segments(rows, fork="starts")
    assert float(found.starts[:, 1:].double().mean()) == pytest.approx(wanted, abs=0.012)


def boundary_depends_on_the_future(segmentation: Segmentation, ids_BT: Tensor) -> bool:
    """Whether two completions that agree before token t disagree on a boundary before it."""
    seen: dict[tuple[int, ...], bool] = {}
    for row, starts in zip(ids_BT.tolist(), segmentation.starts.tolist(), strict=True):
        for t, start in enumerate(starts):
            if seen.setdefault(tuple(row[:t]), start) != start:
                return True
    return False


@pytest.mark.parametrize("fork", ["ends", "starts"])
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_it_is_causal(fork: str, threshold: float | None) -> None:
    """Over every completion of the toy: the past alone settles each boundary, and it matters."""
    segmenter = entropy_running(fork=fork, threshold=threshold)
    rollouts = ToySimulator(ToyPolicy(length=6).double()).enumerate()
    found = segmenter.segment(rollouts)
    assert len({tuple(row) for row in found.segment_ids.tolist()}) > 5
    assert not boundary_depends_on_the_future(found, rollouts.completion_ids)
    assert segmenter.causal
    check_segmenter(segmenter, causal=True)


def test_the_top_fraction_of_the_row_is_not_causal() -> None:
    """The question asked above can be answered with yes."""
    rollouts = ToySimulator(ToyPolicy(length=6).double()).enumerate()
    found = registry.segmenters.build("entropy").segment(rollouts)
    assert boundary_depends_on_the_future(found, rollouts.completion_ids)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": -0.1}, "threshold is -0.1; expected nats of at least 0"),
        ({"threshold": math.nan}, "threshold is nan; expected nats of at least 0"),
        ({"deviations": math.inf}, "deviations is inf; expected a finite number"),
        ({"fork": "opens"}, "fork is 'opens'; expected 'ends' or 'starts'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        type(entropy_running())(**options)
