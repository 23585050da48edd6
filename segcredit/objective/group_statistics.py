"""Statistics over the rows that share a group, without a loop and without a read of the device.

Shapes: ``B`` rows, ``S`` segments.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_mean(x: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Computes the mean of ``x`` over the rows of a group, given to each of them.

    Taken of the distances from the group's first row, so that equal numbers have exactly their
    mean: 0.1 seven times adds up to more than 0.7.
    """
    index_B, counts_B = _group_index(group)
    first_B = x[_first_rows(index_B)]
    sums_B = torch.zeros_like(x).index_add(0, index_B, x - first_B)
    return first_B + (sums_B / counts_B)[index_B]


def group_std(
    x: Float[Tensor, "B"], group: Int[Tensor, "B"], *, ddof: int = 1
) -> Float[Tensor, "B"]:
    """Computes the standard deviation of ``x`` in groups; NaN in one of ``ddof`` rows or less.

    Args:
        x: (B,) one number a row.
        group: (B,) equal for rows of one group.
        ddof: 1 divides by n − 1 (unbiased variance), 0 by n.
    """
    index_B, counts_B = _group_index(group)
    squares_B = (x - group_mean(x, group)).square()
    sums_B = torch.zeros_like(x).index_add(0, index_B, squares_B)
    freedom_B = counts_B - ddof
    variance_B = torch.where(freedom_B > 0, sums_B / freedom_B, torch.nan)
    return variance_B.sqrt()[index_B]


def measured_by_std(
    size: Float[Tensor, "B"], x: Float[Tensor, "B"], group: Int[Tensor, "B"] | None = None
) -> Bool[Tensor, "B"]:
    """Tells in which groups the standard deviation of ``x`` is a unit for numbers of a given size.

    It is where the largest of them is at most twice the range of ``x`` in its group. Differences
    of ``x`` from any average of the group are at most one range. What is far larger came from
    elsewhere, such as the error of a critic, and a quotient by a spread that is nearly 0 would be
    of any size. A range that rounding alone explains is none.

    Args:
        size: (B,) largest magnitude in each row, in the unit of ``x``.
        x: (B,) the numbers whose standard deviation is to be the unit.
        group: (B,) equal for rows of one group; None = all rows are one, of at least one row.

    Returns:
        (B,) the same for all rows of a group.

    Source:
        Ours: the methods that divide by a spread take a mean as their baseline, and say nothing of
        others.
    """
    index_B = None if group is None else _group_index(group)[0]

    def largest(y_B: Tensor) -> Tensor:
        if index_B is None:
            return y_B.amax()
        zeros_B = torch.zeros_like(y_B)
        return zeros_B.scatter_reduce(0, index_B, y_B, "amax", include_self=False)

    rounding_B = 100 * torch.finfo(x.dtype).eps * largest(x.abs())
    range_B = largest(x) + largest(-x) - rounding_B
    measured_B = largest(size) <= 2 * range_B
    return measured_B.expand_as(x) if index_B is None else measured_B[index_B]


def group_size(group: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Counts the rows that share each row's group."""
    index_B, counts_B = _group_index(group)
    return counts_B[index_B]


Match = Literal["anchor", "turn", "prompt"]
"""The segments that are compared: those of a prompt before which the environment was in the same
state, those at the same place of their rows, or all of the prompt."""


def compared_segments(
    group: Int[Tensor, "B"],
    mask: Bool[Tensor, "B S"],
    match: Match,
    anchor_ids: Int[Tensor, "B S"] | None = None,
) -> Int[Tensor, "B S"]:
    """Numbers segments, equal where they are compared with one another; others by themselves.

    Args:
        group: (B,) equal for completions of one prompt.
        mask: (B,S) True where a row has a segment.
        match: what makes two segments of a prompt the same.
        anchor_ids: (B,S) equal where the environment named the states before two segments alike,
            -1 where it named none; None = the first segments are alike, and no others.
    """
    places_BS = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    keys_BS = places_BS if match == "turn" else torch.zeros_like(places_BS)
    if match == "anchor":
        keys_BS = -places_BS.clamp(max=1) if anchor_ids is None else anchor_ids
    cells, own_BS = mask.numel(), torch.arange(mask.numel(), device=mask.device).view(mask.shape)
    # Numbers below the count of cells, so that a pair of them is one number.
    index_B, index_N = _group_index(group)[0], _group_index(keys_BS.flatten())[0]
    pairs_BS = (index_B[:, None] + 1) * cells + index_N.view(mask.shape)
    return torch.where(mask & (keys_BS >= 0), pairs_BS, own_BS)


def _first_rows(index_B: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Returns the first row of each row's group."""
    rows_B = torch.arange(len(index_B), device=index_B.device)
    first_B = torch.full_like(rows_B, len(index_B)).scatter_reduce(0, index_B, rows_B, "amin")
    return first_B[index_B]


def group_place(group: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Counts the earlier rows that share each row's group: 0 for the first of them."""
    index_B, counts_B = _group_index(group)
    order_B = index_B.argsort(stable=True)
    begins_B = counts_B.cumsum(0) - counts_B
    rank_B = torch.arange(len(group), device=group.device) - begins_B[index_B[order_B]]
    return torch.empty_like(rank_B).scatter(0, order_B, rank_B)


def _group_index(group: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Int[Tensor, "B"]]:
    """Returns a number below B for each row's group, and (B,) group sizes (1 where unused).

    By sorting rather than by ``unique``, whose size would be read back from the device.
    """
    sorted_B, order_B = group.sort(stable=True)
    begins_B = torch.ones_like(sorted_B)
    begins_B[1:] = (sorted_B[1:] != sorted_B[:-1]).to(begins_B.dtype)
    index_B = torch.empty_like(order_B).scatter(0, order_B, begins_B.cumsum(0) - 1)
    counts_B = torch.zeros_like(index_B).index_add(0, index_B, torch.ones_like(index_B))
    return index_B, counts_B.clamp(min=1)
