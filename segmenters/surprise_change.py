"""Segments between the points at which the policy's uncertainty changes its level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Interval, Le

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading, errors

Row = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class SurpriseChange(Segmenter):
    """Boundaries at the change points of the entropy, or of the surprisal −log-prob.

    Of all cuts of a row's n action tokens into segments of at least ``min_size`` the one that is
    least in

        Σ_segments Σ_t (x_t − mean of the segment)² + penalty · σ² · ln n · (segments)

    with σ² the row's variance: piecewise constant levels. Tokens in holes are passed over.

    Not causal: where a level begins is known from the tokens after it.

    Assumption: a stretch of equal certainty is one thought, whatever its single tokens. Degenerate
    case: constant signals, and rows of fewer than 2 · min_size action tokens, are one segment.
    Cost: one call of the library a row, quadratic in its tokens at worst; no forward pass.

    Args:
        signal: ``entropy`` (what might have come) or ``surprisal`` (what did come).
        penalty: what a boundary costs, above 0, in units of σ² ln n: 2 is the Bayesian information
            criterion were σ² the variance of the noise alone. On noise without any level (gamma
            distribution of shape 0.3, a skew like that of entropies, rows of 500 tokens) 1 leaves
            6.8 segments a row, 2 leaves 2.3.
        min_size: fewest action tokens of a segment, at least 1.

    Source:
        Optimal partitioning with pruning, Killick et al. 2012, arXiv 1101.1438, as the library
        ruptures implements it (Truong et al. 2020, arXiv 1801.00718; its linear kernel is the
        squared error). Its use on a policy's uncertainty, and the penalty in units of the row's own
        variance, so that boundaries outlive a policy that grows certain, are ours.
    """

    signal: Literal["entropy", "surprisal"] = "entropy"
    penalty: Annotated[float, Interval(ge=1e-9, le=1e9)] = 1.0
    min_size: Annotated[int, Le(10**9)] = 4

    def __post_init__(self) -> None:
        errors.require_package("ruptures", "changepoint", "segmenter 'surprise_change'")
        if self.signal not in ("entropy", "surprisal"):
            raise ValueError(
                f"signal is {self.signal!r}; expected 'entropy' or 'surprisal', for example"
                " signal='entropy'."
            )
        if not 0 < self.penalty < math.inf:
            raise ValueError(
                f"penalty is {self.penalty}; expected a finite number above 0, such as 1.0."
            )
        if self.min_size < 1:
            raise ValueError(f"min_size is {self.min_size}; expected at least 1 token, such as 4.")

    @property
    def causal(self) -> bool:
        """A change of level is seen once it has happened."""
        return False

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """The signal alone."""
        return frozenset({"entropies" if self.signal == "entropy" else "logprobs"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts before the first token of each new level."""
        mask_BT = rollouts.action_mask
        signal = rollouts.entropies if self.signal == "entropy" else -rollouts.logprobs
        actions_BT = mask_BT.cpu().numpy()
        signal_BT = signal.detach().double().cpu().numpy()
        starts_BT = torch.zeros(mask_BT.shape, dtype=torch.bool)
        table_BT = starts_BT.numpy()  # the same memory
        # The library takes one signal at a time.
        for starts_T, actions_T, signal_T in zip(table_BT, actions_BT, signal_BT, strict=True):
            places = np.flatnonzero(actions_T)
            starts_T[places[self._changes(signal_T[places])]] = True
        return Segmentation.from_starts(starts_BT.to(mask_BT.device), mask_BT)

    def _changes(self, row: Row) -> list[int]:
        """Returns the places where new levels begin, without the first level's."""
        if len(row) < 2 * self.min_size or row.min() == row.max():
            return []
        # In units of its own spread: then neither its size nor its offset costs digits.
        standard = (row - row.mean()) / row.std()
        import ruptures  # takes a second: for those who use it

        finder = cast(Any, ruptures).KernelCPD(kernel="linear", min_size=self.min_size)
        found = finder.fit(standard[:, None]).predict(pen=self.penalty * math.log(len(row)))
        return [int(end) for end in found[:-1]]
