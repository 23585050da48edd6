"""Advantages in units of the standard deviation among a state's children."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_std, measured_by_std


@dataclass(frozen=True, slots=True)
class SiblingScaled(AdvantageScheme):
    """A_m / (std of q over the distinct children of the state before segment m + eps).

    q_m = r_m + V_{m+1}, with V = 0 after the last segment. Rows share a state where they share
    the node of the segment before, or at the first segment their group; they share a child where
    they share the node of the segment's last token as well. A child counts once however many
    rows go through it, its q being the mean of theirs. Nodes are compared, not columns: rows may
    come to the same state after different numbers of segments.

    Assumption: values are those of a tree's nodes (``tree``). Degenerate case: where a state has
    one child, or children whose q do not differ (by more than rounding), or by less than half of
    an |A| there, the std is no unit for A, which is divided by max(std + eps, 1) instead: left as
    it is at the usual scale, as ``group_scaled`` leaves it. With ``tree`` and ``td`` it is 0 where
    q do not differ. Independent rollouts share their prompt alone: the first segment is scaled by
    the group's std, and no other. Cost: one sort of the batch's segments.

    Args:
        inner: the scheme that is scaled.
        ddof: 0 for the population's variance, 1 for the unbiased one.
        eps: added to the standard deviation, in reward units.

    Source:
        SPO-tree, Guo et al. 2025, arXiv 2505.23564: the group-scaled variant of its released code
        with its ddof and eps. Difference: it divides by eps where the children do not differ, and
        by their std whatever the size of A.
    """

    inner: AdvantageScheme
    ddof: Literal[0, 1] = 0
    eps: Annotated[float, Interval(ge=0, le=1e6)] = 1e-8

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) scaled advantages, 0 outside the mask."""
        mask_BS = values.mask
        advantages_BS = self.inner(values).masked_fill(~mask_BS, 0)
        following_BS = torch.cat([values.values[:, 1:], torch.zeros_like(values.values[:, :1])], 1)
        q_N = (values.rewards + following_BS)[mask_BS]
        edges_N = _edges(values)
        edges_C, child_N = _distinct(edges_N)
        # One number a child, the mean over its rows, and with it the state that it is a child of.
        q_C = torch.zeros_like(edges_C, dtype=q_N.dtype).index_add(0, child_N, q_N)
        q_C = q_C / torch.bincount(child_N, minlength=len(edges_C))
        states_C = edges_C // values.mask.numel()
        size_N = advantages_BS[mask_BS].abs()
        size_C = torch.zeros_like(q_C).scatter_reduce(0, child_N, size_N.to(q_C.dtype), "amax")
        measured_C = measured_by_std(size_C, q_C, states_C)
        # A single child's std is NaN with ddof 1, and no unit.
        unit_C = group_std(q_C, states_C, ddof=self.ddof).nan_to_num() + self.eps
        divisors_C = torch.where(measured_C, unit_C, unit_C.clamp(min=1))
        divisors_BS = torch.ones_like(advantages_BS)
        divisors_BS[mask_BS] = divisors_C[child_N].to(advantages_BS.dtype)
        return advantages_BS / divisors_BS


def _edges(values: SegmentValues) -> Tensor:
    """Returns (N,) ids of the batch's segments: state before it × (B S) + its last node.

    States below B S are nodes, those above prompts.
    """
    rows, width = values.mask.shape
    nodes_BS = _distinct(values.node_ids)[1]
    prompts_B1 = _distinct(values.group)[1][:, None] + rows * width
    states_BS = torch.cat([prompts_B1, nodes_BS[:, :-1]], 1)
    return (states_BS * (rows * width) + nodes_BS)[values.mask]


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct ids, and the place among them of each id given."""
    found, places = cast(tuple[Tensor, Tensor], torch.unique(ids, return_inverse=True))  # pyright: ignore[reportUnknownMemberType]
    return found, places.view(ids.shape)
