"""Cutpoint: the n-th low-probability tokens, against a loop over tokens, and its causality."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, registry
from segcredit.testing import ToyPolicy, ToySimulator, check_segmenter, make_rollouts
from strategies import masks


def cutpoint(**options: Any) -> Any:
    return registry.segmenters.build("cutpoint", **options)


def rollouts_of(logprobs_BT: Tensor, mask_BT: Tensor) -> RolloutBatch:
    rows, width = mask_BT.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    return blank.replace(action_mask=mask_BT, logprobs=logprobs_BT)


def segment_ids(
    row: list[float], mask: list[bool], below: float, every: int, fork: str, first: str
) -> list[int]:
    """Slow oracle: walk along one row's probabilities and count."""
    ids, segment, low, fresh = [], 0, 0, True
    for probability, action in zip(row, mask, strict=True):
        if not action:
            ids.append(-1)
            continue
        cut = False
        if probability < below:
            cut = low % every == 0 and not (first == "join" and low == 0 and fork == "starts")
            low += 1
        if fork == "starts" and cut and not fresh:
            segment += 1
        ids.append(segment)
        fresh = False
        if fork == "ends" and cut:
            segment += 1
    return ids


@given(
    mask_BT=masks(),
    seed=st.integers(0, 2**16),
    below=st.sampled_from([0.5, 0.9, 1.0]),
    every=st.integers(1, 4),
    fork=st.sampled_from(["starts", "ends"]),
    first=st.sampled_from(["segment", "join"]),
)
def test_it_agrees_with_a_walk_along_the_row(
    mask_BT: Tensor, seed: int, below: float, every: int, fork: str, first: str
) -> None:
    source = torch.Generator().manual_seed(seed)
    shares_BT = torch.rand(mask_BT.shape, generator=source, dtype=torch.float64)
    # What stands in holes is not read: NaN there would otherwise count, or shift the counting.
    logprobs_BT = shares_BT.log().masked_fill(~mask_BT, math.nan)
    logprobs_BT[:, ::2].masked_fill_(~mask_BT[:, ::2], -9.0)
    segmenter = cutpoint(below=below, every=every, fork=fork, first=first)
    found = segmenter.segment(rollouts_of(logprobs_BT, mask_BT)).segment_ids.tolist()
    assert found == [
        segment_ids(row, mask, below, every, fork, first)
        for row, mask in zip(shares_BT.tolist(), mask_BT.tolist(), strict=True)
    ]


def starts_of(shares: list[float], **options: Any) -> list[int]:
    mask_BT = torch.ones(1, len(shares), dtype=torch.bool)
    logprobs_BT = torch.tensor([shares], dtype=torch.float64).log()
    found: Segmentation = cutpoint(**options).segment(rollouts_of(logprobs_BT, mask_BT))
    return found.starts[0].nonzero()[:, 0].tolist()


SHARES = [0.95, 0.5, 0.99, 0.2, 0.9, 0.3, 0.95]  # low at 1, 3 and 5; 0.9 is not below 0.9


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"every": 1}, [0, 1, 3, 5]),
        ({"every": 2}, [0, 1, 5]),
        ({}, [0, 1]),
        ({"every": 2, "first": "join"}, [0, 5]),
        ({"first": "join"}, [0]),
        ({"every": 2, "fork": "ends"}, [0, 2, 6]),
        ({"every": 2, "fork": "ends", "first": "join"}, [0, 2, 6]),
        ({"every": 1, "below": 0.25}, [0, 3]),
        ({"every": 1, "below": 0.1}, [0]),
    ],
)
def test_an_example_by_hand(options: dict[str, Any], wanted: list[int]) -> None:
    assert starts_of(SHARES, **options) == wanted


def test_a_first_token_that_is_a_cutpoint_has_nothing_before_it() -> None:
    shares = [0.1, 0.95, 0.1, 0.95]
    assert starts_of(shares, every=1) == starts_of(shares, every=1, first="join") == [0, 2]


def boundary_depends_on_the_future(segmentation: Segmentation, ids_BT: Tensor) -> bool:
    """Whether two completions that agree before token t disagree on a boundary before it."""
    seen: dict[tuple[int, ...], bool] = {}
    for row, starts in zip(ids_BT.tolist(), segmentation.starts.tolist(), strict=True):
        for t, start in enumerate(starts):
            if seen.setdefault(tuple(row[:t]), start) != start:
                return True
    return False


@pytest.mark.parametrize("fork", ["starts", "ends"])
def test_it_is_causal_exactly_when_it_says_so(fork: str) -> None:
    segmenter = cutpoint(below=0.4, every=2, fork=fork)
    rollouts = ToySimulator(ToyPolicy(length=5).double()).enumerate()
    found = segmenter.segment(rollouts)
    assert found.width > 2
    assert boundary_depends_on_the_future(found, rollouts.completion_ids) is not segmenter.causal


@pytest.mark.parametrize("fork", ["starts", "ends"])
@pytest.mark.parametrize("first", ["segment", "join"])
def test_it_keeps_the_contract(fork: str, first: str) -> None:
    check_segmenter(cutpoint(every=2, fork=fork, first=first), causal=fork == "ends")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"below": 0.0}, "below is 0.0; expected a probability"),
        ({"below": math.nan}, "below is nan; expected a probability"),
        ({"below": 90.0}, "below is 90.0; expected a probability"),
        ({"every": 0}, "every is 0; expected at least 1"),
        ({"fork": "opens"}, "fork is 'opens'; expected one of 'starts', 'ends'"),
        ({"first": "drop"}, "first is 'drop'; expected one of 'segment', 'join'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        type(cutpoint())(**options)
