"""Another segmenter's segments, short ones joined with what follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Le
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class MinLength(Segmenter):
    """The inner boundaries, less those that would close a segment of fewer than n action tokens.

    From the left: a boundary is kept if at least ``tokens`` action tokens lie between it and the
    last one kept, or the row's beginning.

    Causal where the inner segmenter is, with ``last="keep"``: whether a boundary is kept depends
    on those before it. With ``join`` it depends on where the row ends.

    Assumption: a short segment is the beginning of the next. Degenerate case: a row of fewer than
    2 · tokens is one segment, or with ``keep`` may end in a short one. Cost: a search and a few
    gathers over the segments, as many as the width has binary digits.

    Args:
        inner: whose segments are joined.
        tokens: fewest action tokens of a segment, at least 1; at 1 nothing changes.
        last: the last segment of a row may be shorter (``keep``) or then joins the one before it
            (``join``).

    Source:
        A wrapper of ours.
    """

    inner: Segmenter
    tokens: Annotated[int, Le(10**9)] = 8
    last: Literal["keep", "join"] = "keep"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; expected at least 1, such as 8.")
        if self.last not in ("keep", "join"):
            raise ValueError(
                f"last is {self.last!r}; expected 'keep' or 'join', for example last='keep'."
            )

    @property
    def causal(self) -> bool:
        """The boundaries kept so far decide about the next; the row's end does only to join."""
        return self.inner.causal and self.last == "keep"

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Parts that the inner segmenter reads."""
        return self.inner.reads

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Drops the boundaries that come too soon."""
        segmentation = self.inner.segment(rollouts)
        lengths_BS = segmentation.lengths
        firsts_BS = lengths_BS.cumsum(1) - lengths_BS
        kept_BS = _reached(_successors(firsts_BS, segmentation.counts, self.tokens))
        if self.last == "join":
            after_BS = lengths_BS.sum(1, keepdim=True) - firsts_BS
            kept_BS = kept_BS & (after_BS >= self.tokens)
        starts_BT = segmentation.starts & segmentation.spread(kept_BS)
        return Segmentation.from_starts(starts_BT, rollouts.action_mask)


def _successors(firsts_BS: Tensor, counts_B: Tensor, tokens: int) -> Tensor:
    """Returns (B,S+1) the first segment at least ``tokens`` after each; S where there is none.

    Column S leads to itself.
    """
    width = firsts_BS.shape[1]
    beyond_BS = torch.arange(width, device=firsts_BS.device) >= counts_B[:, None]
    places_BS = firsts_BS.masked_fill(beyond_BS, torch.iinfo(torch.long).max)
    found_BS = torch.searchsorted(places_BS, firsts_BS + tokens)
    return torch.cat([found_BS, found_BS.new_full((len(found_BS), 1), width)], dim=1)


def _reached(next_BN: Tensor) -> Tensor:
    """Returns (B,S) the segments on the way from segment 0 along the successors.

    A path of length 2^k is known after k doublings, so that no walk over segments is needed.
    """
    reached_BN = torch.zeros_like(next_BN)
    reached_BN[:, 0] = 1
    for _ in range(next_BN.shape[1].bit_length()):
        reached_BN = reached_BN.scatter_reduce(1, next_BN, reached_BN, "amax")
        next_BN = next_BN.gather(1, next_BN)
    return reached_BN[:, :-1] > 0
