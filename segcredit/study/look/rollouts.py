"""Rollouts and segmentations in memory, as completions to look at.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.segmentation import Segmentation
from segcredit.study.look.completions import BEGINS, CONTINUES, OBSERVED, Completion, Cut, Turn
from segcredit.types import Advantages, RolloutBatch, SegmentValues

Credit = Tensor | Advantages
"""Credit of tokens or of segments: (B,T) or (B,S), or what a scheme's credit is held in."""
Values = Tensor | SegmentValues
"""Values of the states before tokens or segments: (B,T) or (B,S), or what holds them."""
Array = NDArray[Any]

_BARE = "·"
"""Stands for a token of which nothing but its segment is known."""


@dataclass(frozen=True, slots=True)
class _Row:
    """The tokens of one completion as far as they are known, without padding."""

    pieces: list[str]
    """Characters of each token."""
    action_T: Array


def of_rollouts(
    rollouts: RolloutBatch,
    segmentations: Mapping[str, Segmentation],
    credit: Mapping[str, Credit],
    values: Mapping[str, Values],
    rows: Sequence[int],
    *,
    prompts: Sequence[str] = (),
    images: Sequence[Sequence[str]] = (),
) -> Iterator[Completion]:
    """Yields some rows of a batch as completions.

    Args:
        rollouts: the batch.
        segmentations: of it, by name; empty for none.
        credit: by the names of the segmentations.
        values: likewise.
        rows: which, in this order.
        prompts: the text of each row's; empty leaves them to their keys.
        images: of each row's prompt, as ``data:`` addresses.

    Raises:
        ShapeError: a segmentation, credit or value is not of this batch.
    """
    for found in segmentations.values():
        found.require_covers(rollouts.action_mask)
    named = _spread(segmentations, credit, values, rollouts.action_mask, rollouts.token_values)
    ids_BT, spans_BT2 = _array(rollouts.completion_ids), _array(rollouts.token_spans)
    action_BT = _array(rollouts.action_mask)
    rewards_B, truncated_B = _array(rollouts.rewards), _array(rollouts.truncated)
    earned_BT = _array(rollouts.token_rewards)
    turn_BT = None if rollouts.turn_ids is None else _array(rollouts.turn_ids)
    for number in rows:
        text = rollouts.texts[number]
        row = _tokens(text, ids_BT[number], spans_BT2[number], action_BT[number])
        yield Completion(
            text="".join(row.pieces),
            cuts={name: _cut(row, *arrays, number) for name, arrays in named.items()},
            prompt=prompts[number] if prompts else "",
            images=images[number] if images else (),
            source=f"prompt {rollouts.prompt_keys[number]}",
            place=f"row {number}",
            facts=_facts(row),
            reward=float(rewards_B[number]),
            truncated=bool(truncated_B[number]),
            turns=() if turn_BT is None else _turns(row, turn_BT[number], earned_BT[number]),
        )


def of_segmentations(
    segmentations: Mapping[str, Segmentation],
    credit: Mapping[str, Credit],
    values: Mapping[str, Values],
    rows: Sequence[int],
) -> Iterator[Completion]:
    """Yields rows of which nothing but the segments is known: a dot a token.

    Raises:
        ShapeError: the segmentations are of different batches, or credit or values of another.
    """
    mask_BT = next(iter(segmentations.values())).action_mask
    for found in segmentations.values():
        found.require_covers(mask_BT)
    named = _spread(segmentations, credit, values, mask_BT, None)
    action_BT = _array(mask_BT)
    for number in rows:
        length = _length(action_BT[number])
        row = _Row([_BARE] * length, action_BT[number, :length])
        yield Completion(
            text=_BARE * length,
            cuts={name: _cut(row, *arrays, number) for name, arrays in named.items()},
            place=f"row {number}",
            facts=_facts(row),
        )


_Arrays = tuple[Array, Array | None, Array | None]
"""(B,T) segment ids, credit and values."""


def _spread(
    segmentations: Mapping[str, Segmentation],
    credit: Mapping[str, Credit],
    values: Mapping[str, Values],
    mask_BT: Tensor,
    token_values_BT: Tensor | None,
) -> dict[str, _Arrays]:
    """Gives every token its segment's id, credit and value, by segmentation."""
    if not segmentations:
        # One piece, but for what tools or the environment wrote.
        segmentations = {"": Segmentation.from_starts(torch.zeros_like(mask_BT), mask_BT)}
    found: dict[str, _Arrays] = {}
    for name, cut in segmentations.items():
        given = _by_token(cut, "value", values.get(name))
        if given is None and token_values_BT is not None:
            given = _array(token_values_BT)
        found[name] = (_array(cut.segment_ids), _by_token(cut, "credit", credit.get(name)), given)
    return found


def _by_token(cut: Segmentation, what: str, given: Credit | Values | None) -> Array | None:
    """Returns (B,T) numbers of the tokens, which may be given by segment."""
    if given is None:
        return None
    if isinstance(given, Advantages):
        given = given.per_token
    elif isinstance(given, SegmentValues):
        given = cut.spread(given.values)
    shape, tokens = tuple(given.shape), tuple(cut.segment_ids.shape)
    by_segment = (len(cut.counts), cut.width)
    if shape not in (tokens, by_segment):
        raise ShapeError(
            f"the {what} has shape {shape}; expected {tokens}, one a token, or {by_segment}, one"
            " a segment of this segmentation. Usually they are of another batch or segmentation."
        )
    return _array(given if shape == tokens else cut.spread(given))


def _tokens(text: str, ids_T: Array, spans_T2: Array, action_T: Array) -> _Row:
    """Returns each token's characters; of one that has none, its id."""
    length = max(_length(action_T), _length(spans_T2[:, 1] > spans_T2[:, 0]))
    pieces: list[str] = []
    seen = 0
    for token, (first, beyond) in zip(ids_T[:length], spans_T2[:length].tolist(), strict=True):
        # A character whose bytes are several tokens is the first one's.
        pieces.append(text[max(first, seen) : beyond] if beyond > first else f"⟨{token}⟩")
        seen = max(seen, beyond)
    return _Row(pieces, action_T[:length])


def _cut(
    row: _Row, ids_BT: Array, credit_BT: Array | None, values_BT: Array | None, number: int
) -> Cut:
    """Joins neighbouring tokens of one segment, credit and value."""
    length = len(row.pieces)
    if not length:
        return Cut(sizes=[], kinds=[])
    ids_T = ids_BT[number, :length]
    known = [x[number, :length] for x in (credit_BT, values_BT) if x is not None]
    differs_T = np.ones(length, dtype=bool)
    differs_T[1:] = ids_T[1:] != ids_T[:-1]
    for x_T in known:
        differs_T[1:] |= (x_T[1:] != x_T[:-1]) & row.action_T[1:]
    starts_N = np.flatnonzero(differs_T)
    characters_T = np.cumsum([0, *map(len, row.pieces)])
    edges = characters_T[np.append(starts_N, length)]
    before_T = np.maximum.accumulate(np.concatenate([[-1], ids_T[:-1]]))
    kinds_T = np.where(ids_T < 0, OBSERVED, np.where(ids_T > before_T, BEGINS, CONTINUES))

    def at(x_BT: Array | None) -> list[float]:
        if x_BT is None:
            return []
        x_N = x_BT[number, starts_N].astype(np.float64)
        return np.where(ids_T[starts_N] < 0, np.nan, x_N).tolist()

    return Cut(
        sizes=np.diff(edges).tolist(),
        kinds=kinds_T[starts_N].tolist(),
        credit=at(credit_BT),
        values=at(values_BT),
    )


def _turns(row: _Row, turn_T: Array, earned_T: Array) -> list[Turn]:
    """Returns the places of turns among the characters, with their rewards."""
    length = len(row.pieces)
    turn_T, characters_T = turn_T[:length], np.cumsum([0, *map(len, row.pieces)])
    found: list[Turn] = []
    for number in range(int(turn_T.max(initial=-1)) + 1):
        places = np.flatnonzero(turn_T == number)
        if len(places):
            start, end = characters_T[[places[0], places[-1] + 1]].tolist()
            reward = f"{earned_T[places].sum():.4g}".replace("-", "−")
            found.append(Turn(start, end, f"reward {reward}"))
    return found


def _facts(row: _Row) -> str:
    count, observed = int(row.action_T.sum()), int((~row.action_T).sum())
    said = f"{count:,} token{'s' * (count != 1)}"
    return f"{said} and {observed:,} observed" if observed else said


def _length(marked_T: Array) -> int:
    """Returns the place behind the last marked token."""
    places = np.flatnonzero(marked_T)
    return int(places[-1]) + 1 if len(places) else 0


def _array(x: Tensor) -> Array:
    found = x.detach().cpu()
    return (found.float() if found.dtype == torch.bfloat16 else found).numpy()
