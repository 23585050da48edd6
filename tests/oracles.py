"""Slow and obvious versions of the core's formulae, written from the papers as plain loops.

Rows are Python lists or tensors of a single row; nothing here shares code with ``segcredit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def segment_ids_from_starts(starts: Sequence[bool], mask: Sequence[bool]) -> list[int]:
    """A mark in a hole waits for the next action token; the first action token always begins."""
    ids, current, pending = [], -1, False
    for start, action in zip(starts, mask, strict=True):
        pending = pending or bool(start)
        if action:
            if current < 0 or pending:
                current += 1
            pending = False
        ids.append(current if action else -1)
    return ids


def segment_ids_from_ends(ends: Sequence[bool], mask: Sequence[bool]) -> list[int]:
    """Cut after a marked token, wherever the next action token is."""
    starts = [False, *list(ends)[:-1]] if len(ends) else []
    return segment_ids_from_starts(starts, mask)


def segment_ids_from_chars(
    offsets: Sequence[int], firsts: Sequence[int], mask: Sequence[bool]
) -> list[int]:
    """The segment of a token's first character, numbered by the segments that have a token."""
    ids, current, last = [], -1, None
    for first, action in zip(firsts, mask, strict=True):
        piece = sum(1 for offset in offsets if offset <= first)
        if action and piece != last:
            current, last = current + 1, piece
        ids.append(current if action else -1)
    return ids


def reduce(x: Sequence[float], ids: Sequence[int], how: str, width: int) -> list[float]:
    """One number a segment, 0 where there is none."""
    table = []
    for segment in range(width):
        inside = [float(value) for value, number in zip(x, ids, strict=True) if number == segment]
        if not inside:
            table.append(0.0)
        elif how == "sum":
            table.append(sum(inside))
        elif how == "mean":
            table.append(sum(inside) / len(inside))
        elif how == "max":
            table.append(max(inside))
        else:
            table.append(inside[0] if how == "first" else inside[-1])
    return table


def spread(x: Sequence[float], ids: Sequence[int]) -> list[float]:
    """Each token takes its segment's number, 0 outside."""
    return [float(x[number]) if number >= 0 else 0.0 for number in ids]


def lambda_returns(
    values: Sequence[float],
    rewards: Sequence[float],
    lengths: Sequence[int],
    *,
    gamma: float,
    lam: float,
    clock: str,
    lam_clock: str = "segment",
) -> list[float]:
    """A + V of one row's segments by the recursion, last segment first."""
    returns, following, next_value = [], 0.0, 0.0
    for value, reward, length in reversed(list(zip(values, rewards, lengths, strict=True))):
        ticks = length if clock == "token" else 1
        delta = gamma ** (ticks - 1) * reward + gamma**ticks * next_value - value
        kept = lam**length if lam_clock == "token" else lam
        following = delta + gamma**ticks * kept * following
        returns.append(following + value)
        next_value = value
    return returns[::-1]


def token_gae(
    values: Sequence[float],
    rewards: Sequence[float],
    mask: Sequence[bool],
    *,
    gamma: float,
    lam: float,
) -> list[float]:
    """Token-level GAE that carries value and advantage across holes; 0 on masked tokens."""
    advantages = [0.0] * len(values)
    following = next_value = 0.0
    for t in range(len(values) - 1, -1, -1):
        if not mask[t]:
            continue
        delta = rewards[t] + gamma * next_value - values[t]
        following = delta + gamma * lam * following
        next_value = values[t]
        advantages[t] = following
    return advantages


def top_fraction(x: Sequence[float], mask: Sequence[bool], fraction: float) -> list[bool]:
    """The max(ceil(fraction n), 1) largest; of equals the earlier."""
    places = [t for t, action in enumerate(mask) if action]
    count = min(max(math.ceil(round(fraction * len(places), 9)), 1), len(places))
    ranked = sorted(places, key=lambda t: (-x[t], t))
    return [t in set(ranked[:count]) for t in range(len(x))]


def surrogate_loss(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    ids: Sequence[Sequence[int]],
    *,
    ratio: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    aggregate: str,
    token_weights: Tensor | None = None,
    norm_length: float | None = None,
    denominator: float | None = None,
) -> Tensor:
    """The surrogate token by token, with autograd through plain scalars."""
    rows = []
    for b, row in enumerate(ids):
        places = [t for t, number in enumerate(row) if number >= 0]
        losses, weights = [], []
        for t in places:
            shared = {
                "none": [t],
                "token": [t],
                "segment": [u for u in places if row[u] == row[t]],
                "sequence": places,
            }[ratio]
            losses.append(
                _token_loss(
                    logprobs[b],
                    sampling_logprobs[b],
                    advantages[b, t],
                    t,
                    shared,
                    ratio,
                    (clip_low, clip_high, dual_clip),
                )
            )
            weights.append(1.0 if token_weights is None else float(token_weights[b, t]))
        rows.append((losses, weights))
    return aggregate_loss(
        rows, aggregate, width=logprobs.shape[1], norm_length=norm_length, denominator=denominator
    )


def _token_loss(
    new: Tensor,
    old: Tensor,
    advantage: Tensor,
    t: int,
    shared: Sequence[int],
    ratio: str,
    clip: tuple[float, float, float | None],
) -> Tensor:
    if ratio == "none":
        return -advantage * new[t]
    total = sum((torch.clamp(new[u] - old[u], -20, 20) for u in shared), torch.zeros(()).double())
    rho = torch.exp(total / len(shared))
    low, high, dual = clip
    loss = torch.max(-advantage * rho, -advantage * torch.clamp(rho, 1 - low, 1 + high))
    if dual is not None and advantage < 0:
        loss = torch.min(loss, -advantage * dual)
    return loss


def aggregate_loss(
    rows: Sequence[tuple[Sequence[Tensor], Sequence[float]]],
    aggregate: str,
    *,
    width: int,
    norm_length: float | None = None,
    denominator: float | None = None,
) -> Tensor:
    """One number from the rows' token losses and their weights."""
    nothing = torch.zeros(()).double()
    sums = [
        sum((w * x for x, w in zip(losses, ws, strict=True) if w > 0), nothing)
        for losses, ws in rows
    ]
    weights = [sum(ws) for _, ws in rows]
    counted = [b for b, weight in enumerate(weights) if weight > 0]
    if aggregate == "token_mean":
        total, own = sum(sums, nothing), sum(weights)
    elif aggregate == "sequence_mean_token_mean":
        total, own = sum((sums[b] / weights[b] for b in counted), nothing), len(counted)
    elif aggregate == "sequence_mean_token_sum":
        total, own = sum(sums, nothing), len(counted)
    else:
        length = width if norm_length is None else norm_length
        total, own = sum(sums, nothing) / length, 1
    return total / (denominator if denominator is not None else own or 1)
