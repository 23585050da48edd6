"""Rollouts without a model: texts of one token a character, and random signals.

Shapes as in ``segcredit.types``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.objective.returns import token_rewards
from segcredit.segmentation import Segmentation
from segcredit.types import RolloutBatch

PIECES = (
    "a",
    " ",
    "12",
    "+",
    "-",
    " = ",
    ", ",
    "\n",
    "\n\n",
    ". ",
    "$x$",
    "#### ",
    "So ",
    "Wait, ",
    "Step 2: ",
)
"""Pieces of random texts: whatever a text segmenter might look for."""
ALPHABET = "".join(sorted({*"".join(PIECES)}))
PAD_ID = 0
END_ID = 1
_FIRST_ID = 2


def random_text(pieces: int, seed: int) -> str:
    """Returns a text of so many random pieces; the same for the same arguments."""
    return "".join(random.Random(seed).choices(PIECES, k=pieces))


def make_rollouts(
    texts: Sequence[str] | int = 6,
    *,
    group_size: int = 2,
    holes: Mapping[int, Sequence[int]] | None = None,
    truncated: Sequence[int] = (),
    token_values: bool = False,
    width: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> RolloutBatch:
    """Makes rollouts of given or random texts, one token a character and an end token without any.

    Args:
        texts: over ``ALPHABET``, one a row; or how many rows of random text.
        group_size: consecutive rows that share a prompt.
        holes: row -> token positions that the policy did not choose.
        truncated: rows without an end token. With the text "" such a row has no token at all.
        token_values: give random values too.
        width: T; None = the longest row's.
        seed: of texts, log-probs, entropies, rewards and values.
        dtype: of the floating-point fields.

    Returns:
        Rollouts whose padding holds random numbers. Rewards are between 0 and 1.

    Raises:
        ShapeError: a text does not fit ``width``, or holds another character.
    """
    if isinstance(texts, int):
        texts = [random_text(1 + 3 * row, seed + row) for row in range(texts)]
    ids_BT, exists_BT = _encode(texts, frozenset(truncated), width)
    action_BT = exists_BT & ~_marked(exists_BT, holes or {})
    random_source = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random_source, dtype=dtype)

    rows, columns = ids_BT.shape
    rewards_B = uniform(rows)
    group_B = torch.arange(rows) // group_size
    prompt_ids, prompt_mask = _prompts(group_B)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_keys=tuple(f"prompt-{group}" for group in map(int, group_B)),
        completion_ids=ids_BT,
        action_mask=action_BT,
        logprobs=-3 * uniform(rows, columns),
        entropies=2 * uniform(rows, columns),
        group=group_B,
        texts=tuple(texts),
        token_spans=_spans(texts, columns),
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, action_BT),
        truncated=torch.tensor([row in truncated for row in range(rows)], dtype=torch.bool),
        token_values=uniform(rows, columns) if token_values else None,
    )


def _encode(
    texts: Sequence[str], truncated: frozenset[int], width: int | None
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Returns token ids, and a mask of where there is a token."""
    rows = [
        [_id(character) for character in text] + [END_ID] * (row not in truncated)
        for row, text in enumerate(texts)
    ]
    longest = max((len(row) for row in rows), default=0)
    width = longest if width is None else width
    if longest > width:
        raise ShapeError(f"a text has {longest} tokens; expected at most the width, {width}.")
    ids = [[*row, *[PAD_ID] * (width - len(row))] for row in rows]
    ids_BT = torch.tensor(ids, dtype=torch.long).view(len(rows), width)
    lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return ids_BT, torch.arange(width) < lengths_B[:, None]


def _id(character: str) -> int:
    place = ALPHABET.find(character)
    if place < 0:
        raise ShapeError(
            f"the text holds {character!r}; expected characters of {ALPHABET!r}, one a token."
        )
    return _FIRST_ID + place


def _marked(exists_BT: Bool[Tensor, "B T"], holes: Mapping[int, Sequence[int]]) -> Tensor:
    marked_BT = torch.zeros_like(exists_BT)
    for row, positions in holes.items():
        marked_BT[row, list(positions)] = True
    return marked_BT


def _spans(texts: Sequence[str], width: int) -> Int[Tensor, "B T 2"]:
    """Returns spans: token t is character t; the end token and padding hold no character."""
    lengths_B1 = torch.tensor([len(text) for text in texts], dtype=torch.long)[:, None]
    first_1T = torch.arange(width)[None]
    return torch.stack(
        [torch.minimum(first_1T, lengths_B1), torch.minimum(first_1T + 1, lengths_B1)], dim=2
    )


def _prompts(group_B: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B Tp"], Bool[Tensor, "B Tp"]]:
    """Makes prompts of one to three tokens, left-padded."""
    mask_BP = torch.arange(3) >= 2 - group_B[:, None] % 3
    ids_B1 = _FIRST_ID + group_B[:, None] % len(ALPHABET)
    return torch.where(mask_BP, ids_B1, PAD_ID), mask_BP


def pad_rollouts(rollouts: RolloutBatch, columns: int, *, seed: int = 0) -> RolloutBatch:
    """Returns the same rollouts with more padding on the right, and other numbers in all of it."""
    source = torch.Generator().manual_seed(seed)
    later_BT = rollouts.action_mask.flip(1).cumsum(1).flip(1)
    padding_BT = _widen(later_BT == 0, columns, True)

    def noisy(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        wide = torch.cat([x, x.new_zeros(len(x), columns, *x.shape[2:])], dim=1)
        noise = 1000 * torch.randn(wide.shape, generator=source, dtype=x.dtype)
        return torch.where(padding_BT if x.ndim == 2 else padding_BT[..., None], noise, wide)

    ids_BT = _widen(rollouts.completion_ids, columns, PAD_ID)
    highest = int(ids_BT.max()) if ids_BT.numel() else 0
    other_BT = torch.randint(highest + 1, ids_BT.shape, generator=source)
    return rollouts.replace(
        completion_ids=torch.where(padding_BT, other_BT, ids_BT),
        action_mask=_widen(rollouts.action_mask, columns, False),
        logprobs=noisy(rollouts.logprobs),
        entropies=noisy(rollouts.entropies),
        reference_logprobs=noisy(rollouts.reference_logprobs),
        reference_entropies=noisy(rollouts.reference_entropies),
        reference_hidden=noisy(rollouts.reference_hidden),
        token_values=noisy(rollouts.token_values),
        token_rewards=_widen(rollouts.token_rewards, columns, 0),
        token_spans=torch.stack(
            [_widen(rollouts.token_spans[..., side], columns, 0) for side in (0, 1)], dim=2
        ),
        node_ids=_widen_nodes(rollouts.node_ids, columns),
    )


def _widen(x_BT: Tensor, columns: int, fill: float) -> Tensor:
    return torch.cat([x_BT, x_BT.new_full((len(x_BT), columns), fill)], dim=1)


def _widen_nodes(nodes_BT: Tensor, columns: int) -> Tensor:
    """Adds columns, whose nodes are shared with no token."""
    first = int(nodes_BT.max()) + 1 if nodes_BT.numel() else 0
    fresh = torch.arange(first, first + len(nodes_BT) * columns).view(len(nodes_BT), columns)
    return torch.cat([nodes_BT, fresh], dim=1)


def segments_of_two(rollouts: RolloutBatch) -> Segmentation:
    """Cuts before every second action token."""
    place_BT = rollouts.action_mask.cumsum(1)
    return Segmentation.from_starts(place_BT % 2 == 1, rollouts.action_mask)


def change_from(rollouts: RolloutBatch, position: int, *, seed: int = 0) -> RolloutBatch:
    """Replaces the tokens from a position on, and whatever follows from them.

    Ids, log-probs, texts and spans change from the position on. Entropies and values change only
    behind it: the distribution that token t is drawn from is settled before it is drawn. Rewards,
    and on which row the limit of length fell, change for every row.

    Args:
        rollouts: made by ``make_rollouts``, one token a character.
        position: of the first token that changes.
        seed: of the new tokens.
    """
    texts = [
        text[:position] + random_text(1 + (seed + row) % 4, 977 * seed + row)
        for row, text in enumerate(rollouts.texts)
    ]
    holes = {
        row: [t for t in _holes_of(rollouts, row) if t < position] for row in range(len(texts))
    }
    cut = [row for row in range(len(texts)) if (row + seed) % 3 == 0]
    fresh = make_rollouts(
        texts, holes=holes, truncated=cut, seed=seed, token_values=rollouts.token_values is not None
    )

    values = rollouts.token_values
    return fresh.replace(
        prompt_ids=rollouts.prompt_ids,
        prompt_mask=rollouts.prompt_mask,
        prompt_keys=rollouts.prompt_keys,
        group=rollouts.group,
        logprobs=_keep(rollouts.logprobs, fresh.logprobs, position),
        entropies=_keep(rollouts.entropies, fresh.entropies, position + 1),
        token_values=None if values is None else _keep(values, fresh.token_values, position + 1),
    )


def _holes_of(rollouts: RolloutBatch, row: int) -> list[int]:
    inside = ~rollouts.action_mask[row, : len(rollouts.texts[row])]
    return [int(t) for t in inside.nonzero()]


def _keep(old_BT: Tensor, new_BT: Tensor | None, count: int) -> Tensor:
    """Returns the first columns of the old signal, then the new one's."""
    if new_BT is None:
        return old_BT
    kept = min(count, old_BT.shape[1], new_BT.shape[1])
    return torch.cat([old_BT[:, :kept], new_BT[:, kept:]], dim=1)
