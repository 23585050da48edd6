"""Union, Intersection, MinLength, MaxSegments, SnapTo: against sets and loops over one row."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, registry
from segcredit.errors import PluginError
from segcredit.registry import Registry
from segcredit.testing import ToyPolicy, ToySimulator, check_segmenter, make_rollouts
from segmenters.intersection import Intersection
from segmenters.max_segments import MaxSegments
from segmenters.min_length import MinLength
from segmenters.snap_to import SnapTo
from segmenters.union import Union


def build(name: str, **options: Any) -> Any:
    return registry.segmenters.build(name, **options)


FIRST = build("entropy", rule="threshold", threshold=0.5, fork="starts")
"""Begins a segment where the rollouts below mark the entropy."""
SECOND = build("cutpoint", below=0.5, every=1)
"""Begins a segment where they mark the probability."""
Marked = tuple[Tensor, Tensor, Tensor]
Row = tuple[int, set[int], set[int]]
"""A row's action tokens, and the marks of both, as numbers of action tokens; 0 is no mark."""


@st.composite
def marked(draw: st.DrawFn) -> Marked:
    """An action mask, and marks of two kinds on any tokens, holes and padding too."""
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 24))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    density = st.sampled_from([0.1, 0.3, 0.8])
    lengths_B1 = torch.randint(0, shape[1] + 1, (shape[0], 1), generator=source)
    mask_BT = torch.arange(shape[1]) < lengths_B1
    if draw(st.booleans()):
        mask_BT = mask_BT & (torch.rand(shape, generator=source) < 0.8)
    first_BT, second_BT = (torch.rand(shape, generator=source) < draw(density) for _ in range(2))
    return mask_BT, first_BT, second_BT


def rollouts_of(mask_BT: Tensor, first_BT: Tensor, second_BT: Tensor) -> RolloutBatch:
    rows, width = mask_BT.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width)
    return blank.replace(
        action_mask=mask_BT, entropies=first_BT.float(), logprobs=-2.0 * second_BT.float()
    )


def rows_of(rollouts: RolloutBatch) -> list[Row]:
    found: list[Row] = []
    for mask, entropies, logprobs in zip(
        rollouts.action_mask, rollouts.entropies, rollouts.logprobs, strict=True
    ):
        first, second = entropies[mask] > 0, logprobs[mask] < 0
        found.append(
            (int(mask.sum()), *(set(x.nonzero()[:, 0].tolist()) - {0} for x in (first, second)))
        )
    return found


def boundaries(segmentation: Segmentation, rollouts: RolloutBatch) -> list[set[int]]:
    """Numbers of the action tokens before which there is a boundary, but for the row's first."""
    starts = segmentation.starts
    return [
        set(row[mask].nonzero()[:, 0].tolist()) - {0}
        for row, mask in zip(starts, rollouts.action_mask, strict=True)
    ]


def agrees(segmenter: Segmenter, rollouts: RolloutBatch, wanted: list[set[int]]) -> None:
    found = segmenter.segment(rollouts)
    assert torch.equal(found.action_mask, rollouts.action_mask)
    assert boundaries(found, rollouts) == wanted


@given(marked())
def test_union_and_intersection_are_those_of_sets(marks: Marked) -> None:
    rollouts = rollouts_of(*marks)
    rows = rows_of(rollouts)
    agrees(Union(FIRST, SECOND), rollouts, [first | second for _, first, second in rows])
    agrees(Union(SECOND, FIRST), rollouts, [first | second for _, first, second in rows])
    agrees(Intersection(FIRST, SECOND), rollouts, [first & second for _, first, second in rows])
    agrees(Intersection(SECOND, FIRST), rollouts, [first & second for _, first, second in rows])


def long_enough(count: int, cuts: set[int], tokens: int, last: str) -> set[int]:
    """Slow oracle: walk from the left, keep what is far enough from what was kept."""
    kept, begin = [], 0
    for cut in sorted(cuts):
        if cut - begin >= tokens:
            kept.append(cut)
            begin = cut
    if last == "join" and kept and count - kept[-1] < tokens:
        kept.pop()
    return set(kept)


@pytest.mark.parametrize("last", ["keep", "join"])
@given(marks=marked(), tokens=st.integers(1, 5))
def test_min_length_agrees_with_a_walk(marks: Marked, tokens: int, last: Any) -> None:
    rollouts = rollouts_of(*marks)
    wanted = [long_enough(count, cuts, tokens, last) for count, cuts, _ in rows_of(rollouts)]
    agrees(MinLength(FIRST, tokens, last), rollouts, wanted)


@pytest.mark.parametrize("width", [1, 2, 3, 63, 64, 65, 500])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_min_length_reaches_the_end_of_long_rows(width: int, tokens: int) -> None:
    source = torch.Generator().manual_seed(width)
    shape = (4, width)
    mask = torch.rand(shape, generator=source) < 0.9
    marks = torch.rand(shape, generator=source) < torch.tensor([[0.1], [0.5], [0.9], [1.1]])
    rollouts = rollouts_of(mask, marks, marks)
    wanted = [long_enough(count, cuts, tokens, "keep") for count, cuts, _ in rows_of(rollouts)]
    agrees(MinLength(FIRST, tokens), rollouts, wanted)
    lengths = MinLength(FIRST, tokens, "join").segment(rollouts).lengths
    assert all(min(filter(None, row)) >= tokens for row in lengths.tolist() if sum(row) >= tokens)


def few_enough(cuts: set[int], segments: int) -> set[int]:
    """Slow oracle: hand the old segments out, one new segment a time, and cut where it changes."""
    inner = [0, *sorted(cuts)]
    if len(inner) <= segments:
        return cuts
    taken = [k * segments // len(inner) for k in range(len(inner))]
    return {inner[taken.index(new)] for new in range(1, segments)}


@given(marked(), st.integers(1, 6))
def test_max_segments_thins_out_evenly(marks: Marked, segments: int) -> None:
    rollouts = rollouts_of(*marks)
    segmenter = MaxSegments(FIRST, segments)
    wanted = [few_enough(cuts, segments) for _, cuts, _ in rows_of(rollouts)]
    agrees(segmenter, rollouts, wanted)
    for (_, cuts, _), kept in zip(
        rows_of(rollouts), boundaries(segmenter.segment(rollouts), rollouts), strict=True
    ):
        assert kept <= cuts
        assert len(kept) == min(len(cuts), segments - 1)
        # How many old segments each new one is made of.
        edges = [0, *(sorted(cuts).index(cut) + 1 for cut in sorted(kept)), len(cuts) + 1]
        sizes = [late - early for early, late in itertools.pairwise(edges)]
        assert max(sizes) - min(sizes) <= 1


@given(marked(), st.integers(1, 6))
def test_max_segments_keeps_the_first(marks: Marked, segments: int) -> None:
    rollouts = rollouts_of(*marks)
    wanted = [set(sorted(cuts)[: segments - 1]) for _, cuts, _ in rows_of(rollouts)]
    agrees(MaxSegments(FIRST, segments, "first"), rollouts, wanted)


def snapped(
    cuts: set[int], goals: set[int], within: int, otherwise: str, direction: str
) -> set[int]:
    """Slow oracle: look for each boundary's place by itself."""
    found = set()
    for cut in cuts:
        open_to = [goal for goal in goals if direction == "nearest" or goal >= cut]
        near = [goal for goal in open_to if abs(goal - cut) <= within]
        if near:
            found.add(min(near, key=lambda goal: (abs(goal - cut), goal)))
        elif otherwise == "keep":
            found.add(cut)
    return found


@pytest.mark.parametrize("otherwise", ["drop", "keep"])
@pytest.mark.parametrize("direction", ["nearest", "later"])
@given(marks=marked(), within=st.sampled_from([0, 1, 2, 5]))
def test_snap_to_agrees_with_a_search(
    marks: Marked, within: int, otherwise: Any, direction: Any
) -> None:
    rollouts = rollouts_of(*marks)
    wanted = [
        snapped(first, second, within, otherwise, direction)
        for _, first, second in rows_of(rollouts)
    ]
    agrees(SnapTo(FIRST, SECOND, within, otherwise, direction), rollouts, wanted)
    if within == 0 and otherwise == "drop":
        agrees(Intersection(FIRST, SECOND), rollouts, wanted)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # Boundaries at 2, 5, 6 and 11 of 14 tokens; places at 4, 7 and 9. 2 is as near to the
        # row's beginning, which is no place.
        ({"within": 2}, {4, 7, 9}),
        ({"within": 1}, {4, 7}),
        ({"within": 1, "otherwise": "keep"}, {2, 4, 7, 11}),
        ({"within": 2, "direction": "later"}, {4, 7}),
        ({"within": 1, "direction": "later", "otherwise": "keep"}, {2, 5, 7, 11}),
        ({"within": 9, "direction": "later"}, {4, 7}),
    ],
)
def test_snap_to_by_hand(options: dict[str, Any], wanted: set[int]) -> None:
    def at(*places: int) -> Tensor:
        return (torch.arange(14)[None, :, None] == torch.tensor(places)).any(2)

    rollouts = rollouts_of(torch.ones(1, 14, dtype=torch.bool), at(2, 5, 6, 11), at(4, 7, 9))
    agrees(SnapTo(FIRST, SECOND, **options), rollouts, [wanted])


def test_of_two_places_equally_near_the_earlier_is_taken() -> None:
    marks = torch.zeros(3, 1, 9, dtype=torch.bool)
    marks[1, 0, 5] = marks[2, 0, 3] = marks[2, 0, 7] = True
    rollouts = rollouts_of(~marks[0], marks[1], marks[2])
    agrees(SnapTo(FIRST, SECOND, 2), rollouts, [{3}])
    agrees(SnapTo(FIRST, SECOND, 2, direction="later"), rollouts, [{7}])


def test_entropy_snaps_to_lines() -> None:
    text = "a + a\n12 - 1\na = 2"
    rollouts = make_rollouts([text])
    forks = torch.zeros_like(rollouts.entropies)
    forks[0, [4, 14]] = 1.0
    found = SnapTo(FIRST, build("newline"), 3).segment(rollouts.replace(entropies=forks))
    assert found.starts[0].nonzero()[:, 0].tolist() == [0, 6, 13]


newline, entropy, running = build("newline"), build("entropy"), build("entropy_running")
low = build("cutpoint", below=0.4, every=1, fork="ends")
PLUGINS: list[Segmenter] = [
    Union(newline, entropy),
    Union(newline, running),
    Union(Union(newline, low), running),
    Intersection(newline, entropy),
    Intersection(low, running),
    MinLength(low, 2),
    MinLength(entropy, 2),
    MaxSegments(low, 3),
    MaxSegments(low, 3, "first"),
    MaxSegments(entropy, 3, "first"),
    SnapTo(running, newline, 2),
    SnapTo(running, newline, 2, direction="later"),
    SnapTo(running, newline, 2, "keep", "later"),
    SnapTo(entropy, newline, 2, direction="later"),
]


@pytest.mark.parametrize("plugin", [*PLUGINS, MinLength(entropy, 3, "join")], ids=repr)
def test_they_keep_the_contract(plugin: Segmenter) -> None:
    check_segmenter(plugin)


def boundary_depends_on_the_future(segmentation: Segmentation, ids_BT: Tensor) -> bool:
    """Whether two completions that agree before token t disagree on a boundary before it."""
    seen: dict[tuple[int, ...], bool] = {}
    for row, starts in zip(ids_BT.tolist(), segmentation.starts.tolist(), strict=True):
        for t, start in enumerate(starts):
            if seen.setdefault(tuple(row[:t]), start) != start:
                return True
    return False


@pytest.mark.parametrize("plugin", PLUGINS, ids=repr)
def test_they_are_causal_exactly_when_they_say_so(plugin: Segmenter) -> None:
    rollouts = ToySimulator(ToyPolicy(length=6).double()).enumerate()
    found = plugin.segment(rollouts)
    assert len({tuple(row) for row in found.segment_ids.tolist()}) > 3
    assert boundary_depends_on_the_future(found, rollouts.completion_ids) is not plugin.causal


def test_joining_the_last_segment_looks_at_the_rows_end() -> None:
    """Which the toy, whose rows are all of one length, cannot show."""
    windows = build("fixed_length", tokens=3)
    plugin = MinLength(windows, 3, "join")
    assert not plugin.causal
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(plugin, causal=True)
    check_segmenter(MinLength(windows, 3, "keep"), causal=True)


def test_a_config_nests_them_as_tables() -> None:
    here: Registry[Segmenter] = Registry("segmenter", "segcredit.segmenters", "Segmenter")
    for plugin in (Union, Intersection, MinLength, MaxSegments, SnapTo):
        here.add(f"my_{plugin.__name__}", plugin)
    found = here.build("my_Union", first="newline", second={"name": "entropy", "fork": "starts"})
    assert found == Union(newline, build("entropy", fork="starts"))
    assert here.build("my_MinLength", inner="newline", tokens=3) == MinLength(newline, 3)
    table = here.resolve("my_SnapTo", {"inner": "entropy", "to": {"name": "newline"}})
    assert table["to"] == {"name": "newline", "blank_lines": "before", "whole": True}
    assert table["inner"]["top_fraction"] == 0.3
    assert table["direction"] == "nearest"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("plugin", "options", "sentence"),
    [
        (MinLength, {"inner": newline, "tokens": 0}, "tokens is 0; expected at least 1"),
        (MinLength, {"inner": newline, "last": "drop"}, "last is 'drop'; expected 'keep' or"),
        (MaxSegments, {"inner": newline, "segments": 0}, "segments is 0; expected at least 1"),
        (MaxSegments, {"inner": newline, "join": "best"}, "join is 'best'; expected 'evenly' or"),
        (SnapTo, {"inner": entropy, "to": newline, "within": -1}, "within is -1; expected at"),
        (SnapTo, {"inner": entropy, "to": newline, "otherwise": "move"}, "otherwise is 'move'"),
        (SnapTo, {"inner": entropy, "to": newline, "direction": "back"}, "direction is 'back'"),
    ],
)
def test_wrong_options_are_refused(plugin: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plugin(**options)
