"""Advantages among the completions of one tree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues


@dataclass(frozen=True, slots=True)
class WithinTrees(AdvantageScheme):
    """The inner scheme with trees in the place of groups.

    A tree is the rows of a prompt that share their first segment, its trunk: those with the same
    node of its last token. For values of the tree take ``prefix_group`` with ``prefix="first"``.

    Assumption: rollouts are sampled as trees, whose trunks end where the first segment does.
    Degenerate case: among independent completions each row is a tree, alone in it; so is a row
    without segments. Cost: none.

    Args:
        inner: the scheme that reads groups, such as ``group_scaled``.

    Source:
        Tree-GRPO, arXiv 2509.21240: its advantage in the tree, which is added to that in the
        group. The released mode ``tree_2norm`` divides the group's advantage by its spread in the
        tree: but for ``eps`` this scheme over ``group_scaled`` where a tree has two leaves, and
        the group's advantage where it has one.
    """

    inner: AdvantageScheme

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) the inner scheme's advantages."""
        alone_B1 = -1 - torch.arange(len(values.mask), device=values.mask.device)[:, None]
        # Padded, as a batch may have no column.
        nodes_BS = torch.cat([values.node_ids.masked_fill(~values.mask, -1), alone_B1], 1)
        trunks_B = torch.where(nodes_BS[:, 0] < 0, alone_B1[:, 0], nodes_BS[:, 0])
        return self.inner(values.replace(group=trunks_B))
