"""One file of a stored truth: some prompts' completions and their values, a row a completion.

Lists have an entry a token, those of values one more; what belongs to a split is a list a split.
Completions of several turns have columns of their own, and entries for observations as well.
"""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from segcredit.credit_audit.checksummed_parquet import read_checksummed, write_checksummed
from segcredit.credit_audit.truth.measure import MeasuredValues, lengths
from segcredit.errors import StudyError
from segcredit.objective.returns import token_rewards
from segcredit.protocols import Prompt
from segcredit.types import RolloutBatch

_SPLITS = pa.list_(pa.list_(pa.float64()))
_SCHEMA = pa.schema(
    {
        "prompt_number": pa.int64(),
        "prompt": pa.string(),
        "text": pa.string(),
        "reward": pa.float32(),
        "truncated": pa.bool_(),
        "prompt_ids": pa.list_(pa.int64()),
        "token_ids": pa.list_(pa.int64()),
        "starts": pa.list_(pa.int64()),
        "ends": pa.list_(pa.int64()),
        "logprobs": pa.list_(pa.float32()),
        "entropies": pa.list_(pa.float32()),
        "values": _SPLITS,
        "errors": _SPLITS,
        "jump_errors": _SPLITS,
        "counts": pa.list_(pa.list_(pa.int64())),
    }
)
_TURNS = {
    "turn_ids": pa.list_(pa.int64()),
    "anchor_ids": pa.list_(pa.int64()),
    "token_rewards": pa.list_(pa.float32()),
}
"""Columns of completions of several turns, beside the others."""


@dataclass(frozen=True, slots=True)
class Part:
    """Content of a file: its label and its rows."""

    number: int
    truth: str
    """The hash of the truth that it is a part of."""
    tokens: int
    """Tokens sampled for its values."""
    completion_tokens: int
    cpu_seconds: float
    rows: list[dict[str, Any]]


def part_rows(
    rollouts: RolloutBatch, measured: MeasuredValues, prompt_numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns a row a completion, as the file holds it."""
    lengths_B = lengths(rollouts.action_mask).tolist()
    numbered = enumerate(zip(prompt_numbers, lengths_B, strict=True))
    return [_row(rollouts, measured, row, number, n) for row, (number, n) in numbered]


def _row(
    rollouts: RolloutBatch, measured: MeasuredValues, row: int, prompt_number: int, n: int
) -> dict[str, Any]:
    def cut(x: Tensor, length: int = n) -> Any:
        return x[row][..., :length].cpu().numpy().tolist()

    several = {name: getattr(rollouts, name) for name in _TURNS}
    turns = {} if rollouts.turn_ids is None else {name: cut(x) for name, x in several.items()}
    return turns | {
        "prompt_number": prompt_number,
        "prompt": rollouts.prompt_keys[row],
        "text": rollouts.texts[row],
        "reward": float(rollouts.rewards[row]),
        "truncated": bool(rollouts.truncated[row]),
        "prompt_ids": rollouts.prompt_ids[row][rollouts.prompt_mask[row]].cpu().numpy().tolist(),
        "token_ids": cut(rollouts.completion_ids),
        "starts": cut(rollouts.token_spans[..., 0]),
        "ends": cut(rollouts.token_spans[..., 1]),
        "logprobs": cut(rollouts.logprobs),
        "entropies": cut(rollouts.entropies),
        "values": cut(measured.values, n + 1),
        "errors": cut(measured.errors, n + 1),
        "jump_errors": cut(measured.jump_errors),
        "counts": cut(measured.counts),
    }


def write_part(path: Path, part: Part) -> None:
    """Writes a part's file, which appears whole or not at all.

    Raises:
        StorageError: the disk refuses it.
    """
    label = {name: getattr(part, name) for name in Part.__slots__ if name != "rows"}
    more = {name: kind for name, kind in _TURNS.items() if name in part.rows[0]}
    schema = pa.schema([*_SCHEMA, *pa.schema(more)])
    write_checksummed(path, part.rows, schema, label)


def read_part(path: Path, number: int, truth: str) -> Part | None:
    """Reads a part; None where there is none, or another than is asked for, or a damaged one."""
    try:
        label, rows = read_checksummed(path)
        part = Part(**label, rows=rows)
    except (StudyError, TypeError):
        return None
    known = set(_SCHEMA.names), {*_SCHEMA.names, *_TURNS}
    same_columns = all(set(row) in known for row in rows)
    return part if (part.number, part.truth, same_columns) == (number, truth, True) else None


def rollouts_of(rows: Sequence[dict[str, Any]], prompts: Sequence[Prompt]) -> RolloutBatch:
    """Rebuilds the completions as they were sampled; ids of padding are 0."""
    lengths_B = torch.tensor([len(row["token_ids"]) for row in rows])
    there_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    turn_BT = anchor_BT = None
    if "turn_ids" in rows[0]:
        turn_BT, anchor_BT = (
            padded(rows, name, torch.long).masked_fill(~there_BT, -1)
            for name in ("turn_ids", "anchor_ids")
        )
    mask_BT = there_BT if turn_BT is None else turn_BT >= 0
    rewards_B = torch.tensor([row["reward"] for row in rows], dtype=torch.float32)
    numbers = [int(row["prompt_number"]) for row in rows]
    first = {number: place for place, number in reversed(list(enumerate(numbers)))}
    starts_BT, ends_BT = (padded(rows, name, torch.long) for name in ("starts", "ends"))
    # Padding begins and ends where the text of its row does.
    last_B1 = ends_BT.amax(1, keepdim=True)
    spans_BT2 = torch.stack(
        [starts_BT.where(there_BT, last_B1), ends_BT.where(there_BT, last_B1)], dim=2
    )
    prompt_ids = padded(rows, "prompt_ids", torch.long, left=True)
    prompt_lengths = torch.tensor([len(row["prompt_ids"]) for row in rows])
    width = prompt_ids.shape[1]
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=torch.arange(width) >= width - prompt_lengths[:, None],
        prompt_keys=tuple(prompts[number].key for number in numbers),
        completion_ids=padded(rows, "token_ids", torch.long),
        action_mask=mask_BT,
        logprobs=padded(rows, "logprobs", torch.float32),
        entropies=padded(rows, "entropies", torch.float32),
        group=torch.tensor([first[number] for number in numbers]),
        texts=tuple(str(row["text"]) for row in rows),
        token_spans=spans_BT2,
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, mask_BT)
        if turn_BT is None
        else padded(rows, "token_rewards", torch.float32),
        turn_ids=turn_BT,
        anchor_ids=anchor_BT,
        truncated=torch.tensor([bool(row["truncated"]) for row in rows]),
    )


def by_split(rows: Sequence[dict[str, Any]], name: str, fill: float = torch.nan) -> Tensor:
    """Returns (B,H,·) a column of the splits, padded on the right."""
    kind = torch.long if name == "counts" else torch.float64
    width = max(len(split) for row in rows for split in row[name])
    return torch.tensor(
        [[[*split, *[fill] * (width - len(split))] for split in row[name]] for row in rows],
        dtype=kind,
    )


def padded(
    rows: Sequence[dict[str, Any]], name: str, kind: torch.dtype, *, left: bool = False
) -> Tensor:
    """Returns (B,·) a column of lists, padded with 0."""
    entries = [torch.tensor(row[name], dtype=kind) for row in rows]
    side = "left" if left else "right"
    return torch.nn.utils.rnn.pad_sequence(entries, batch_first=True, padding_side=side)
