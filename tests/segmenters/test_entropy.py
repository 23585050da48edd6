"""Entropy: each rule against loops, each fork, and causality over every completion of the toy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import find_peaks
from torch import Tensor

import oracles
from segcredit import RolloutBatch, Segmentation, registry
from segcredit.errors import PluginError
from segcredit.objective.loss_masks import high_entropy
from segcredit.testing import (
    ToyPolicy,
    ToySimulator,
    check_segmenter,
    make_rollouts,
    pad_rollouts,
    segmenter_checks,
)
from strategies import masks, normal

RULES = ("top_fraction", "batch_fraction", "threshold", "peaks")
FORKS = ("ends", "starts", "isolate")


def entropy(**options: Any) -> Any:
    return registry.segmenters.build("entropy", **options)


def rollouts_of(entropies_BT: Tensor, mask_BT: Tensor) -> RolloutBatch:
    rows, width = mask_BT.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width)
    return blank.replace(action_mask=mask_BT, entropies=entropies_BT)


def segments(entropies_BT: Tensor, mask_BT: Tensor | None = None, **options: Any) -> Segmentation:
    mask_BT = torch.ones_like(entropies_BT, dtype=torch.bool) if mask_BT is None else mask_BT
    return entropy(**options).segment(rollouts_of(entropies_BT, mask_BT))


def ids_of(forks: Sequence[bool], mask: Sequence[bool], fork: str) -> list[int]:
    """Slow oracle: segment numbers of one row whose forks are known."""
    if fork == "ends":
        return oracles.segment_ids_from_ends(forks, mask)
    if fork == "starts":
        return oracles.segment_ids_from_starts(forks, mask)
    ids, segment, previous = [], -1, True
    for marked, action in zip(forks, mask, strict=True):
        if action:
            segment += marked or previous
            previous = marked
        ids.append(segment if action else -1)
    return ids


def batch_quantile(rows: list[list[float]], masks: list[list[bool]], share: float) -> float:
    """Slow oracle: numpy's quantile of all action tokens."""
    everything = [
        x
        for row, mask in zip(rows, masks, strict=True)
        for x, on in zip(row, mask, strict=True)
        if on
    ]
    return float(np.quantile(everything, 1 - share)) if everything else math.inf


def is_peak(x: list[float], t: int, window: int, threshold: float, prominence: float) -> bool:
    """Slow oracle: one token of a row without holes."""
    before, after = x[max(t - window, 0) : t], x[t + 1 : t + 1 + window]
    sides = [min(side) for side in (before, after) if side]
    return (
        x[t] > threshold
        and all(x[t] > other for other in before)
        and all(x[t] >= other for other in after)
        and (not sides or x[t] - max(sides) >= prominence)
    )


def peaks(
    row: list[float], mask: list[bool], window: int, threshold: float, prominence: float
) -> list[bool]:
    places = [t for t, action in enumerate(mask) if action]
    dense = [row[t] for t in places]
    found = {t for k, t in enumerate(places) if is_peak(dense, k, window, threshold, prominence)}
    return [t in found for t in range(len(row))]


@pytest.mark.parametrize("rule", RULES)
@given(
    mask_BT=masks(),
    seed=st.integers(0, 2**16),
    fork=st.sampled_from(FORKS),
    share=st.sampled_from([0.1, 0.3, 0.7, 1.0]),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
    window=st.integers(1, 4),
    prominence=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_it_agrees_with_loops(
    mask_BT: Tensor,
    seed: int,
    rule: str,
    fork: str,
    share: float,
    threshold: float,
    window: int,
    prominence: float,
) -> None:
    # Quarters: ties on purpose, and differences that are exact.
    entropies_BT = (normal(tuple(mask_BT.shape), seed).abs() * 4).round() / 4
    options = {"top_fraction": share, "threshold": threshold}
    noisy_BT = entropies_BT.masked_fill(~mask_BT, math.nan)
    found = segments(
        noisy_BT, mask_BT, rule=rule, fork=fork, window=window, prominence=prominence, **options
    )
    rows, actions = entropies_BT.tolist(), mask_BT.tolist()
    least = batch_quantile(rows, actions, share)
    for row, mask, ids in zip(rows, actions, found.segment_ids.tolist(), strict=True):
        forks = {
            "top_fraction": oracles.top_fraction(row, mask, share),
            # A tie with a quantile that lies between two numbers is none of rounding.
            "batch_fraction": [x >= least - 1e-9 for x in row],
            "threshold": [x > threshold for x in row],
            "peaks": peaks(row, mask, window, threshold, prominence),
        }[rule]
        marked = [chosen and action for chosen, action in zip(forks, mask, strict=True)]
        assert ids == ids_of(marked, mask, fork)


def test_the_default_is_the_papers() -> None:
    row = torch.tensor([[0.1, 2.0, 0.3, 1.5, 0.2, 1.0, 0.4]])
    assert segments(row).segment_ids.tolist() == [[0, 0, 1, 1, 2, 2, 3]]
    spelled = segments(row, top_fraction=0.3, fork="ends", rule="top_fraction")
    assert torch.equal(spelled.segment_ids, segments(row).segment_ids)


ROW = [1.0, 3.0, 0.0, 4.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"rule": "threshold", "threshold": 2.5}, [0, 0, 1, 1, 2, 3]),
        ({"rule": "threshold", "threshold": 2.5, "fork": "starts"}, [0, 1, 1, 2, 3, 3]),
        ({"rule": "threshold", "threshold": 2.5, "fork": "isolate"}, [0, 1, 2, 3, 4, 5]),
        ({"rule": "threshold", "threshold": 3.0, "fork": "isolate"}, [0, 0, 0, 1, 2, 3]),
        # Of the two 4s the earlier is the peak.
        ({"rule": "peaks", "window": 1}, [0, 0, 1, 1, 2, 2]),
        ({"rule": "peaks", "window": 1, "fork": "isolate"}, [0, 1, 2, 3, 4, 4]),
        ({"rule": "peaks", "window": 2}, [0, 0, 0, 0, 1, 1]),
        ({"rule": "peaks", "window": 1, "threshold": 3.5}, [0, 0, 0, 0, 1, 1]),
        # 3 stands 2 above the 1 on its left, 4 only 0 above the 4 on its right, 2 at window 2.
        ({"rule": "peaks", "window": 1, "prominence": 1.0}, [0, 0, 1, 1, 1, 1]),
        ({"rule": "peaks", "window": 2, "prominence": 2.0}, [0, 0, 0, 0, 1, 1]),
        ({"rule": "peaks", "window": 2, "prominence": 2.5}, [0, 0, 0, 0, 0, 0]),
        ({"rule": "batch_fraction", "top_fraction": 0.5}, [0, 0, 1, 1, 2, 3]),
    ],
)
def test_an_example_by_hand(options: dict[str, Any], wanted: list[int]) -> None:
    assert segments(torch.tensor([ROW]), **options).segment_ids.tolist() == [wanted]


def test_isolated_forks_are_alone_and_the_rest_is_not_cut_further() -> None:
    row = normal((1, 200), 3).abs()
    found = segments(row, fork="isolate", rule="threshold", threshold=1.5)
    alone = found.segment_ids[row > 1.5].tolist()
    assert len(alone) == len(set(alone)) > 5
    assert all(int(found.lengths[0, segment]) == 1 for segment in alone)
    both = segments(row, fork="ends", rule="threshold", threshold=1.5).starts
    both = both | segments(row, fork="starts", rule="threshold", threshold=1.5).starts
    assert torch.equal(found.starts, both)


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("prominence", [0.0, 0.8])
def test_peaks_inside_a_row_are_those_of_scipy(window: int, prominence: float) -> None:
    row = normal((1, 400), window).abs()
    found = segments(
        row, rule="peaks", window=window, prominence=prominence, threshold=0.9, fork="starts"
    ).starts[0]
    # Its peaks exceed their two neighbours; ours are those of them that exceed the whole window.
    places, _ = find_peaks(
        row[0].numpy(), height=0.9, prominence=prominence or None, wlen=2 * window + 1
    )
    largest = [t for t in places if row[0, t] == row[0, max(t - window, 0) : t + window + 1].max()]
    inside = [t for t in found.nonzero()[:, 0].tolist() if 0 < t < 399]
    assert inside == largest
    assert len(inside) > 5


@given(mask_BT=masks(), seed=st.integers(0, 2**16), share=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_the_batch_fraction_selects_the_tokens_of_the_loss(
    mask_BT: Tensor, seed: int, share: float
) -> None:
    entropies_BT = normal(tuple(mask_BT.shape), seed).abs()
    found = segments(entropies_BT, mask_BT, rule="batch_fraction", top_fraction=share, fork="ends")
    wanted = Segmentation.from_ends(high_entropy(entropies_BT, mask_BT, share), mask_BT)
    assert torch.equal(found.segment_ids, wanted.segment_ids)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("tokens", [11, 31, 101])
def test_the_quantile_of_a_product_that_is_not_exact(share: float, tokens: int) -> None:
    row = torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens)).double()[None]
    found = segments(row, rule="batch_fraction", top_fraction=share)
    # Numbers 0 to n − 1: those from the quantile (1 − share)(n − 1) on, a whole number here.
    wanted = row >= round((1 - share) * (tokens - 1))
    assert ids_of(wanted[0].tolist(), [True] * tokens, "ends") == found.segment_ids[0].tolist()


def test_the_batch_fraction_breaks_one_rule_of_the_contract_and_says_which() -> None:
    broken = []
    for name, check in segmenter_checks(entropy(rule="batch_fraction")):
        try:
            check()
        except PluginError as error:
            broken.append((name, str(error)))
    assert [name for name, _ in broken] == ["segmenter_ignores_batch_order"]
    assert "do not depend on the rest of the batch" in broken[0][1]
    rollouts = make_rollouts(6, holes={4: [0, 3]})
    whole = entropy(rule="batch_fraction").segment(rollouts)
    order = [3, 0, 5, 1, 4, 2]
    moved = entropy(rule="batch_fraction").segment(pad_rollouts(rollouts.select(order), 2))
    assert torch.equal(moved.segment_ids[:, :-2], whole.segment_ids[order])


@pytest.mark.parametrize("rule", ["top_fraction", "threshold", "peaks"])
@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("window", [1, 3])
def test_it_keeps_the_contract(rule: str, fork: str, window: int) -> None:
    check_segmenter(entropy(rule=rule, fork=fork, window=window, threshold=0.9))


def boundary_depends_on_the_future(segmentation: Segmentation, ids_BT: Tensor) -> bool:
    """Whether two completions that agree before token t disagree on a boundary before it."""
    seen: dict[tuple[int, ...], bool] = {}
    for row, starts in zip(ids_BT.tolist(), segmentation.starts.tolist(), strict=True):
        for t, start in enumerate(starts):
            if seen.setdefault(tuple(row[:t]), start) != start:
                return True
    return False


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize(
    "options",
    [
        {"rule": "top_fraction"},
        {"rule": "threshold"},
        {"rule": "peaks", "window": 1},
        {"rule": "peaks", "window": 1, "prominence": 0.05},
        {"rule": "peaks", "window": 2},
    ],
    ids=str,
)
def test_it_is_causal_exactly_when_it_says_so(fork: str, options: dict[str, Any]) -> None:
    segmenter = entropy(fork=fork, threshold=0.9, **options)
    rollouts = ToySimulator(ToyPolicy(length=6).double()).enumerate()
    found = segmenter.segment(rollouts)
    assert len({tuple(row) for row in found.segment_ids.tolist()}) > 3
    assert boundary_depends_on_the_future(found, rollouts.completion_ids) is not segmenter.causal


def test_the_batch_fraction_does_not_say_that_it_is_causal() -> None:
    assert not entropy(rule="batch_fraction").causal


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_fraction": 0.0}, "top_fraction is 0.0; expected a share above 0"),
        ({"top_fraction": 30.0}, "top_fraction is 30.0; expected a share above 0 and at most 1"),
        ({"fork": "opens"}, "fork is 'opens'; expected one of 'ends', 'starts', 'isolate'"),
        ({"rule": "top_k"}, "rule is 'top_k'; expected one of 'top_fraction', 'batch_fraction'"),
        ({"threshold": -0.1}, "threshold is -0.1; expected nats of at least 0"),
        ({"prominence": math.nan}, "prominence is nan; expected nats of at least 0"),
        ({"window": 0}, "window is 0; expected at least 1 token"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        type(entropy())(**options)
