"""The rules for segmenters."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NoReturn, get_args

import torch

from segcredit.protocols import SegmenterReading
from segcredit.segmentation import Segmentation
from segcredit.testing.checked_plugin import CheckedPlugin, Rule, shuffled
from segcredit.testing.rollouts import change_from, make_rollouts, pad_rollouts
from segcredit.types import RolloutBatch

_HISTORY = 12
"""Positions, beside the first six, from which the causality check changes the tokens."""
_FUTURES = 3
"""Other endings tried at each of them."""


def _ragged() -> RolloutBatch:
    """Rows of one token and of many, two with holes, one truncated, one without tokens."""
    return make_rollouts(
        ["1", *make_rollouts(5).texts, "", "a + 12\n\nWait, a. Step 2: 12 = a\n#### 12", ""],
        holes={3: [1, 2], 7: [0, 4, 5]},
        truncated=[4, 6],
        token_values=True,
    )


def _segment(
    checked: CheckedPlugin, rollouts: RolloutBatch, what: str = "ragged rollouts"
) -> Segmentation:
    with checked.using(what):
        segmentation = checked.plugin.segment(rollouts)
    if not isinstance(segmentation, Segmentation):
        checked.broke(
            "segment() returns a Segmentation",
            found=f"{type(segmentation).__name__} on {what}",
            expected="a segcredit.Segmentation",
            cause="ids returned bare; build them with Segmentation.from_starts",
        )
    if not torch.equal(segmentation.action_mask, rollouts.action_mask):
        _broken_mask(checked, segmentation, rollouts, what)
    return segmentation


def _broken_mask(
    checked: CheckedPlugin, segmentation: Segmentation, rollouts: RolloutBatch, what: str
) -> NoReturn:
    shapes = tuple(segmentation.segment_ids.shape), tuple(rollouts.action_mask.shape)
    if shapes[0] == shapes[1]:
        wrong_BT = segmentation.action_mask != rollouts.action_mask
        row, token = (int(place) for place in wrong_BT.nonzero()[0])
        inside = bool(rollouts.action_mask[row, token])
        found = (
            f"token {token} of completion {row}, {'an action' if inside else 'no action'},"
            f" with segment {int(segmentation.segment_ids[row, token])}, on {what}"
        )
    else:
        found = f"ids of shape {shapes[0]} for an action mask of {shapes[1]}, on {what}"
    checked.broke(
        "every action token, and no other token, has a segment",
        found=found,
        expected="-1 exactly where rollouts.action_mask is False (padding and holes)",
        cause="a mask computed from ids, texts or lengths instead of rollouts.action_mask",
    )


def _segments_action_tokens(checked: CheckedPlugin) -> None:
    _segment(checked, _ragged())


def _segmenter_is_pure(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    before = copy.deepcopy(rollouts)
    _segment(checked, rollouts)
    checked.require_untouched(before, rollouts, "segment()")


def _segmenter_is_deterministic(checked: CheckedPlugin) -> None:
    first = _segment(checked, _ragged())
    torch.rand(3)
    again = _segment(checked, _ragged())
    if not torch.equal(first.segment_ids, again.segment_ids):
        checked.broke(
            "the same rollouts are always cut alike",
            found="other segments at the second call",
            expected="the same segments",
            cause="a random draw from a global generator; derive it from a seed, the prompt's key"
            " and the completion's ids",
        )


def _segmenter_ignores_batch_order(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    whole = _segment(checked, rollouts)
    orders = [shuffled(len(rollouts)), [2], [5, 1, 2]]
    for order in orders:
        part = _segment(checked, rollouts.select(order), f"the rows {order} alone")
        same = (part.segment_ids == whole.segment_ids[order]).all(1)
        if not bool(same.all()):
            row = order[int((~same).nonzero()[0])]
            checked.broke(
                "a completion's segments do not depend on the rest of the batch",
                found=f"other segments for completion {row} when the batch is the rows {order}",
                expected="those of the whole batch",
                cause="a statistic over the batch, or draws taken in the order of the rows",
            )


def _segmenter_ignores_padding(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    width = rollouts.completion_ids.shape[1]
    narrow = _segment(checked, rollouts)
    for seed in (1, 2):
        padded = pad_rollouts(rollouts, 3 * seed, seed=seed)
        wide = _segment(checked, padded, f"rollouts with {3 * seed} more columns of padding")
        same = (wide.segment_ids[:, :width] == narrow.segment_ids).all(1)
        if not bool(same.all()):
            checked.broke(
                "padding is not read",
                found=f"other segments for completion {int((~same).nonzero()[0])} after"
                f" {3 * seed} columns of padding were added",
                expected="the same segments at any width of padding, whatever stands in it",
                cause="the width of the batch used as a length, or a statistic taken without the"
                " action mask",
            )


def _segmenter_reads_what_it_names(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    with checked.using("asking for what it reads"):
        reads = checked.plugin.reads
    known = frozenset(get_args(SegmenterReading))
    if not isinstance(reads, frozenset) or not reads <= known:
        checked.broke(
            "reads names parts of rollouts",
            found=f"{reads!r}",
            expected=f"a frozenset of names among {', '.join(sorted(known))}",
            cause="a list, or a misspelt name",
        )
    first = _segment(checked, rollouts)
    for part in sorted(known - reads):
        other = rollouts.replace(**_other(rollouts, part))
        if torch.equal(_segment(checked, other, f"other {part}").segment_ids, first.segment_ids):
            continue
        checked.broke(
            "what reads does not name is not read",
            found=f"other segments when the rollouts' {part} were others",
            expected=f"the same segments, or {part!r} in reads",
            cause=f"segment() reads {part}, and reads was not told",
        )


def _other(rollouts: RolloutBatch, part: SegmenterReading) -> dict[str, Any]:
    """Returns fields of rollouts in which one part is another, and everything still fits."""
    generator = torch.Generator().manual_seed(7)
    shape = rollouts.completion_ids.shape
    match part:
        case "text":
            # As long as before, so that the tokens' places stay inside.
            return {"texts": tuple(text[::-1] for text in rollouts.texts)}
        case "ids":
            return {
                "completion_ids": torch.randint(2, 20, shape, generator=generator),
                "prompt_keys": tuple(f"{key}, another" for key in rollouts.prompt_keys),
            }
        case "token_values":
            return {"token_values": torch.rand(shape, generator=generator)}
        case "logprobs":
            return {"logprobs": -4 * torch.rand(shape, generator=generator)}
        case "entropies":
            return {"entropies": 4 * torch.rand(shape, generator=generator)}


def _segmenter_survives_short_rows(checked: CheckedPlugin) -> None:
    short = partial(make_rollouts, token_values=True)
    _segment(checked, short([""]), "a single completion of one token")
    _segment(checked, short(["12 + a"]), "a batch of one row")
    _segment(checked, short(["", ""], truncated=[0, 1]), "completions of width 0")
    _segment(checked, short(["", ""], truncated=[0, 1], width=3), "empty completions")
    _segment(checked, short(["a", "1"], holes={0: [0, 1]}), "a row of holes only")


def _segmenter_pickles(checked: CheckedPlugin) -> None:
    again = checked.unpickled()
    ids_BT = _segment(checked, _ragged()).segment_ids
    again_BT = _segment(again, _ragged()).segment_ids
    checked.require_same_unpickled(again_BT, ids_BT, "segments")


def _segmenter_is_causal(checked: CheckedPlugin) -> None:
    rollouts = make_rollouts(8, holes={5: [2, 3]}, token_values=True)
    whole = _segment(checked, rollouts)
    longest = rollouts.completion_ids.shape[1]
    positions = sorted({round(k * (longest - 1) / _HISTORY) for k in range(_HISTORY + 1)})
    for position in [*range(min(6, longest)), *(p for p in positions if p >= 6)]:
        for future in range(_FUTURES):
            other = change_from(rollouts, position, seed=1 + future)
            changed = _segment(checked, other, "rollouts with another ending")
            _compare_past(checked, whole, changed, position)


def _compare_past(
    checked: CheckedPlugin, whole: Segmentation, changed: Segmentation, position: int
) -> None:
    """Requires the same boundaries up to the position, where both rows have the token."""
    kept = min(position + 1, whole.starts.shape[1], changed.starts.shape[1])
    both = whole.action_mask[:, :kept] & changed.action_mask[:, :kept]
    # A row that ended before the position has another past: its end token was replaced.
    places_T = torch.arange(1, whole.starts.shape[1] + 1)
    lengths_B1 = (whole.action_mask * places_T).amax(1, keepdim=True)
    same_past = both & (lengths_B1 > position)
    moved = same_past & (whole.starts[:, :kept] != changed.starts[:, :kept])
    if not bool(moved.any()):
        return
    row, token = (int(place) for place in moved.nonzero()[0])
    checked.broke(
        "a causal segmenter decides on a boundary from the tokens before it alone",
        found=f"that the boundary before token {token} of completion {row}"
        f" {'vanished' if bool(whole.starts[row, token]) else 'appeared'} when the tokens from"
        f" {position} on were changed",
        expected="the same boundaries up to there",
        cause="a rule that looks at the token after the boundary (a marker that starts a segment),"
        " or ranks tokens over the whole completion. Return False from `causal`, or close segments"
        " after what is already there",
    )


SEGMENTER_RULES: tuple[Rule, ...] = (
    _segments_action_tokens,
    _segmenter_is_pure,
    _segmenter_is_deterministic,
    _segmenter_ignores_batch_order,
    _segmenter_ignores_padding,
    _segmenter_reads_what_it_names,
    _segmenter_survives_short_rows,
    _segmenter_pickles,
)
CAUSALITY: Rule = _segmenter_is_causal
"""For the segmenters that claim to be causal."""
