"""Turns of a dialogue with tools or an environment as segments."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading, turn_starts


@dataclass(frozen=True, slots=True)
class Turns(Segmenter):
    """One segment for each turn: what the policy says between two answers of the environment.

    Turns are those of ``rollouts.turn_ids``. Where nothing tells them they are runs of action
    tokens: token t begins a segment where t is an action token and t − 1 is none.

    Causal: that the environment has answered is settled before the policy goes on.

    Assumption: a turn is one decision, judged as a whole. Degenerate case: a completion of one turn
    is one segment, as with ``whole``; without turn ids, two turns with no token of the environment
    between them are one. Cost: elementwise, no forward pass.

    Source:
        The turn-level segments of ROLL's released agentic trainer, which takes rewards-to-go and
        importance ratios over runs of generated tokens. Its discount is γ a segment: that is
        ``clock="segment"`` of the advantage scheme here, no matter of the segmenter.
    """

    @property
    def causal(self) -> bool:
        """The tokens of the environment stand before the boundary."""
        return True

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Nothing: turn ids, or the action mask, say where a turn begins."""
        return frozenset()

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts before each turn, or else where the action mask becomes True."""
        mask_BT = rollouts.action_mask
        if rollouts.turn_ids is not None:
            return Segmentation.from_starts(turn_starts(rollouts.turn_ids), mask_BT)
        begins_BT = mask_BT.clone()
        begins_BT[:, 1:] = torch.logical_and(mask_BT[:, 1:], ~mask_BT[:, :-1])
        return Segmentation.from_starts(begins_BT, mask_BT)
