"""Ragged batches with holes and empty rows, for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """(B,T) action masks: any pattern of holes, rows of length 0 included."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    cells = draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    mask_BT = torch.tensor(cells).view(rows, width)
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    solid = draw(st.booleans())
    inside_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    return inside_BT if solid else mask_BT & inside_BT


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(B,T) marks anywhere, and an action mask."""
    mask_BT = draw(masks())
    cells = draw(st.lists(st.booleans(), min_size=mask_BT.numel(), max_size=mask_BT.numel()))
    return torch.tensor(cells).view(mask_BT.shape), mask_BT


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64)
