"""Segments between the tokens that changed the value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading, top_fraction


@dataclass(frozen=True, slots=True)
class ValueJump(Segmenter):
    """Boundaries after the tokens that change the value most.

    Token t changes the value by |V_{t'} − V_t|, where V_t = ``rollouts.token_values`` is of the
    state before token t and t' is the next action token: what the environment says between them is
    part of the change. The last action token has no next value, and needs no boundary after it.
    Selected are the max(ceil(top_fraction m), 1) largest of the row's m changes, of equals the
    earlier; or, where ``threshold`` is given, those above it. A token that changes nothing is
    never selected.

    Causal with ``threshold``: the boundary before t' looks at V_{t'}, of the state before t', and
    no further. A row's largest depend on later tokens.

    Assumption: credit is due where the value moves; the values are good enough to tell. Degenerate
    case: constant values are one segment. Cost: one selection a row, no forward pass; who measures
    the values pays for them.

    Args:
        top_fraction: share of the changes selected, in (0,1].
        threshold: in reward units, at least 0; None = by ``top_fraction``, which is ignored
            otherwise.

    Raises:
        ValueError: wrong options; or, from ``segment``, rollouts without ``token_values``.

    Source:
        The tokens at which |V_t − V_{t+1}| is large are those that SAPO, arXiv 2605.01327, eq. 12,
        compares its entropy boundaries with; its threshold is not given there. To cut at them is
        ours.
    """

    top_fraction: float = 0.1
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.top_fraction <= 1:
            raise ValueError(
                f"top_fraction is {self.top_fraction}; expected a share above 0 and at most 1,"
                " such as 0.1 for 10 %."
            )
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(
                f"threshold is {self.threshold}; expected reward units of at least 0, such as 0.1,"
                " or None to take a share of each completion."
            )

    @property
    def causal(self) -> bool:
        """True for a threshold; the largest changes of a row depend on all of its tokens."""
        return self.threshold is not None

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Values of the states before the tokens."""
        return frozenset({"token_values"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts after the tokens with the largest changes."""
        if rollouts.token_values is None:
            raise ValueError(
                "value_jump cuts where rollouts.token_values jumps, but these rollouts have none."
                " Whoever has measured the value of the state before each token, with a critic or"
                " by Monte-Carlo continuations, sets them by rollouts.replace(token_values=...), of"
                " shape (B,T). Without values choose a segmenter that reads the policy alone, such"
                " as 'entropy'."
            )
        mask_BT = rollouts.action_mask
        jumps_BT, counted_BT = _jumps(rollouts.token_values.detach(), mask_BT)
        if self.threshold is None:
            chosen_BT = top_fraction(jumps_BT, counted_BT, self.top_fraction) & (jumps_BT > 0)
        else:
            chosen_BT = jumps_BT > self.threshold
        return Segmentation.from_ends(chosen_BT, mask_BT)


def _jumps(values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (B,T) |change| from each action token to the row's next, and where there is one."""
    width = mask_BT.shape[1]
    if not mask_BT.numel():
        return torch.zeros_like(values_BT), mask_BT
    columns_BT = torch.arange(width, device=mask_BT.device).expand_as(mask_BT)
    nearest_BT = columns_BT.masked_fill(~mask_BT, width).flip(1).cummin(1).values.flip(1)
    none_B1 = nearest_BT.new_full((len(mask_BT), 1), width)
    next_BT = torch.cat([nearest_BT[:, 1:], none_B1], dim=1)
    counted_BT = mask_BT & (next_BT < width)
    changes_BT = values_BT.gather(1, next_BT.clamp(max=width - 1)) - values_BT
    return changes_BT.abs().masked_fill(~counted_BT, 0), counted_BT
