"""Another segmenter's number of segments, with the boundaries dealt at random."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class Shuffled(Segmenter):
    """Each completion keeps its c segments; which c − 1 of its n − 1 inner places is random.

    All choices of places are equally likely. The draws derive from ``seed``, the prompt's key and
    the completion's ids: the same rollout is cut alike in any batch.

    Assumption: none; it is the control of ``inner`` at exactly its own number of segments, where
    ``random`` has one share for all completions. Degenerate case: whatever has one segment, or a
    segment a token, stays as it is. Cost: one sort a row beside the inner segmenter's.

    Args:
        inner: whose segments are counted.
        seed: another one gives other boundaries.

    Source:
        A control of ours.
    """

    inner: Segmenter
    seed: int = 0

    @property
    def causal(self) -> bool:
        """The number of boundaries, and the draws, depend on the whole completion."""
        return False

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Parts that the inner segmenter reads, and ids, which seed the draws."""
        return self.inner.reads | frozenset[SegmenterReading]({"ids"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts before the tokens with the lowest noise, as many as the inner segmenter does."""
        mask_BT = rollouts.action_mask
        cuts_B1 = self.inner.segment(rollouts).counts[:, None] - 1
        inside_BT = mask_BT & (mask_BT.cumsum(1) > 1)
        noise_BT = self._noise(rollouts).masked_fill(~inside_BT, torch.inf)
        ranks_BT = noise_BT.argsort(1).argsort(1)
        return Segmentation.from_starts(inside_BT & (ranks_BT < cuts_B1), mask_BT)

    def _noise(self, rollouts: RolloutBatch) -> Tensor:
        """Draws (B,T) uniform in [0,1), from seed, prompt, completion and place."""
        keys = [zlib.crc32(f"{self.seed}:{key}".encode()) for key in rollouts.prompt_keys]
        prompts_B1 = torch.tensor(keys, device=rollouts.completion_ids.device)[:, None]
        places_BT = rollouts.action_mask.cumsum(1)
        marks_BT = _mix(rollouts.completion_ids * 0x9E3779B1 + places_BT)
        rows_B1 = _mix(prompts_B1 + (marks_BT * rollouts.action_mask).sum(1, keepdim=True))
        bits_BT = _mix(rows_B1 + places_BT * 0x9E3779B97F4A7C1) >> 11
        return (bits_BT & 0xFFFFFFFFFF).double() / 0x10000000000


def _mix(x: Tensor) -> Tensor:
    """Scrambles 64-bit integers, as the finaliser of splitmix64 does; overflow wraps."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)
