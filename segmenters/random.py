"""Boundaries at random, as many as asked: the control of every other segmenter."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading, top_fraction


@dataclass(frozen=True, slots=True)
class Random(Segmenter):
    """max(ceil(fraction n), 1) of a completion's n action tokens, drawn at random, end segments.

    The draws derive from ``seed``, the prompt's key and the completion's ids: the same rollout is
    cut alike in any batch.

    Args:
        fraction: share of the action tokens selected, in (0,1].
        seed: another one gives other boundaries.

    Source:
        A control of ours; the selection is that of ``entropy`` with noise for entropies.
    """

    fraction: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"fraction is {self.fraction}; expected a share above 0 and at most 1."
            )

    @property
    def causal(self) -> bool:
        """The number of boundaries, and the draws, depend on the whole completion."""
        return False

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Ids, which seed the draws with the prompt's key."""
        return frozenset({"ids"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts after the tokens with the highest noise."""
        mask_BT = rollouts.action_mask
        noise_BT = _noise(self._row_seeds(rollouts)[:, None], mask_BT.cumsum(1))
        return Segmentation.from_ends(top_fraction(noise_BT, mask_BT, self.fraction), mask_BT)

    def _row_seeds(self, rollouts: RolloutBatch) -> Tensor:
        """Returns (B,) a number that names seed, prompt and completion."""
        keys = [zlib.crc32(f"{self.seed}:{key}".encode()) for key in rollouts.prompt_keys]
        prompts_B = torch.tensor(keys, device=rollouts.completion_ids.device)
        place_BT = rollouts.action_mask.cumsum(1)
        marks_BT = _mix(rollouts.completion_ids * 0x9E3779B1 + place_BT)
        return _mix(prompts_B + (marks_BT * rollouts.action_mask).sum(1))


def _mix(x: Tensor) -> Tensor:
    """Scrambles 64-bit integers, as the finaliser of splitmix64 does; overflow wraps."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


def _noise(row: Tensor, place: Tensor) -> Tensor:
    """Draws a uniform number in [0,1) for each row's token."""
    return ((_mix(row + place * 0x9E3779B97F4A7C1) >> 11) & 0xFFFFFF).float() / 0x1000000
