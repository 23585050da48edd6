"""Segments between the tokens at which the policy was least certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segcredit import RolloutBatch, Segmentation, Segmenter, top_fraction


@dataclass(frozen=True, slots=True)
class Entropy(Segmenter):
    """Boundaries at the top fraction of each completion's token entropies.

    max(ceil(top_fraction n), 1) of a row's n action tokens are selected; of equal entropies the
    earlier token is.

    Assumption: where the policy hesitates, the outcome is decided. Degenerate case: equal
    entropies select the first tokens of the row. Cost: one selection a row, no forward pass.

    Args:
        top_fraction: share of the action tokens selected, in (0,1]; the paper's is 0.3.
        fork: a selected token ``ends`` its segment (SAPO) or ``starts`` the next.

    Source:
        SAPO, arXiv 2605.01327, section 4.2 and eq. 11. The last action token always ends a
        segment, as there. The paper's "top k %" is a fraction here.
    """

    top_fraction: float = 0.3
    fork: Literal["ends", "starts"] = "ends"

    def __post_init__(self) -> None:
        if not 0 < self.top_fraction <= 1:
            raise ValueError(
                f"top_fraction is {self.top_fraction}; expected a share above 0 and at most 1,"
                " such as 0.3 for 30 %."
            )

    @property
    def causal(self) -> bool:
        """Whether a token is among a row's highest depends on the tokens after it."""
        return False

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cut at the row's highest entropies."""
        mask_BT = rollouts.action_mask
        forks_BT = top_fraction(rollouts.entropies, mask_BT, self.top_fraction)
        if self.fork == "ends":
            return Segmentation.from_ends(forks_BT, mask_BT)
        return Segmentation.from_starts(forks_BT, mask_BT)
