"""Segments between the tokens at which the policy was less certain than it had been so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval, Le
from torch import Tensor

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading


@dataclass(frozen=True, slots=True)
class EntropyRunning(Segmenter):
    """Boundaries where the entropy rises above a threshold made of the row's own past.

    Token t is a fork if H_t > mean(H_1..H_t) + deviations · std(H_1..H_t), over the row's action
    tokens and with the population's standard deviation; or if H_t > ``threshold``, where one is
    given.

    Causal with either ``fork``: H_t is the entropy of the distribution that token t is drawn from,
    so it is settled by the tokens before t. A boundary right before token t may depend on it, and
    one right after token t all the more.

    Assumption: where the policy hesitates more than before, the outcome is decided. Degenerate
    case: equal entropies have no fork, and a row's first token is never one; either way the row
    stays one segment. Cost: three cumulative sums, no forward pass.

    Args:
        threshold: nats, at least 0, the same for every token; None = the running one.
        deviations: how many standard deviations above the running mean. By simulation (200 rows,
            float64) 0.2 marks 31 % of exponentially distributed entropies in rows of 500 tokens
            and 33 % in rows of 50; 25 % and 23 % in rows of 50 and 500 of the more skewed gamma
            distribution of shape 0.3, for which 0 marks 30 % and 28 %. Ignored where
            ``threshold`` is given.
        fork: a fork ``ends`` its segment (SAPO) or ``starts`` the next.

    Source:
        A causal counterpart of ours to the top fraction of SAPO, arXiv 2605.01327, section 4.2,
        whose boundaries depend on the tokens after them. The share of tokens selected is not
        fixed here: an outlier raises the threshold of what follows.
    """

    threshold: Annotated[float, Le(1000)] | None = None
    deviations: Annotated[float, Interval(ge=-1000, le=1000)] = 0.2
    fork: Literal["ends", "starts"] = "ends"

    def __post_init__(self) -> None:
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(
                f"threshold is {self.threshold}; expected nats of at least 0, such as 0.7, or None"
                " for a running threshold."
            )
        if not math.isfinite(self.deviations):
            raise ValueError(
                f"deviations is {self.deviations}; expected a finite number, such as 0.2."
            )
        if self.fork not in ("ends", "starts"):
            raise ValueError(f"fork is {self.fork!r}; expected 'ends' or 'starts'.")

    @property
    def causal(self) -> bool:
        """True: no entropy after token t, nor token from t on, moves the boundary before t."""
        return True

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Entropies alone."""
        return frozenset({"entropies"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts where the entropy exceeds the threshold."""
        mask_BT = rollouts.action_mask
        # A masked token's entropy, which may be NaN, enters neither sums nor comparisons.
        entropies_BT = rollouts.entropies.double().masked_fill(~mask_BT, 0)
        if self.threshold is None:
            forks_BT = mask_BT & _exceeds_its_past(entropies_BT, mask_BT, self.deviations)
        else:
            forks_BT = mask_BT & (entropies_BT > self.threshold)
        if self.fork == "ends":
            return Segmentation.from_ends(forks_BT, mask_BT)
        return Segmentation.from_starts(forks_BT, mask_BT)


def _exceeds_its_past(entropies_BT: Tensor, mask_BT: Tensor, deviations: float) -> Tensor:
    """Returns (B,T) whether x > mean + deviations · std of the row's unmasked x up to there."""
    counts_BT = mask_BT.cumsum(1)
    first_B1 = (entropies_BT * (mask_BT & (counts_BT == 1))).sum(1, keepdim=True)
    # Relative to the row's first: a row of equal entropies is then one of exact zeros, and the
    # squares are of the size of the spread, so that little is lost when they are subtracted.
    above_BT = (entropies_BT - first_B1).masked_fill(~mask_BT, 0)
    seen_BT = counts_BT.clamp(min=1)
    mean_BT = above_BT.cumsum(1) / seen_BT
    variance_BT = above_BT.square().cumsum(1) / seen_BT - mean_BT.square()
    return above_BT > mean_BT + deviations * variance_BT.clamp(min=0).sqrt()
