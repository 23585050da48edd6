"""Rows of all processes as one batch, and back: padded to one width, groups and nodes kept apart.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from segcredit.training.distributed.processes import Processes
from segcredit.types import RolloutBatch, SegmentValues

Rows = TypeVar("Rows", RolloutBatch, SegmentValues)

_NONE = ("turn_ids", "anchor_ids")
"""Fields whose entry for no token is -1 rather than 0."""


def all_rows(processes: Processes, rows: Rows) -> Rows:
    """Gathers the rows of all processes, process 0's first; with one process the same object.

    ``group`` and ``node_ids`` are numbered on, so that no two processes share one.
    """
    if processes.count == 1:
        return rows
    shares = processes.gather(rows.to(torch.device("cpu")))
    return join_rows(shares).to(rows.group.device)


def join_rows(shares: Sequence[Rows]) -> Rows:
    """Joins batches one under the other, padded to the widest; prompts are padded on the left.

    No two batches share a group or a node id in the result, whatever they had before.

    Args:
        shares: at least one.
    """
    apart = _apart(shares)
    names = [field.name for field in dataclasses.fields(apart[0])]
    fields = {name: [getattr(share, name) for share in apart] for name in names}
    return dataclasses.replace(
        apart[0],
        **{
            name: _cat(values, name.startswith("prompt_"), fill=-1 if name in _NONE else 0)
            for name, values in fields.items()
        },
    )


def own_rows(processes: Processes, x: Tensor, rows: int) -> Tensor:
    """Returns this process's rows of a tensor of all processes' rows.

    Args:
        processes: who holds how many.
        x: (B,...) of all processes.
        rows: how many this process has.
    """
    counts = processes.gather(rows)
    begin = sum(counts[: processes.rank])
    return x[begin : begin + rows]


def _apart(shares: Sequence[Rows]) -> list[Rows]:
    """Renumbers groups and node ids, so that no two shares have one in common."""
    groups = _begins([share.group for share in shares])
    nodes = _begins([share.node_ids for share in shares])
    return [
        share.replace(group=share.group + group, node_ids=share.node_ids + node)
        for share, group, node in zip(shares, groups, nodes, strict=True)
    ]


def _begins(numbers: Sequence[Tensor]) -> list[int]:
    """Returns a first number for each share, beyond all of those of the shares before it."""
    sizes = [int(x.max()) + 1 if x.numel() else 0 for x in numbers]
    return list(accumulate(sizes, initial=0))[:-1]


def _cat(values: Sequence[Any], left: bool, fill: int) -> Any:
    """Joins tensors, padded to one width, or tuples, one after the other; None stays."""
    first = values[0]
    if isinstance(first, tuple):
        return tuple(chain.from_iterable(values))
    if not isinstance(first, Tensor):
        return first
    if first.ndim == 1:
        return torch.cat(list(values))
    width = max(x.shape[1] for x in values)
    return torch.cat([_wide(x, width, left, fill) for x in values])


def _wide(x: Tensor, width: int, left: bool, fill: int) -> Tensor:
    gap = width - x.shape[1]
    return pad(x, (0, 0) * (x.ndim - 2) + ((gap, 0) if left else (0, gap)), value=fill)
