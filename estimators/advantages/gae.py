"""Generalised advantage estimation over segments."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segcredit import AdvantageScheme, Clock, SegmentValues, lambda_returns


@dataclass(frozen=True, slots=True)
class GAE(AdvantageScheme):
    """A_m = δ_m + γ λ A_{m+1} over segments; over tokens with the segmenter ``per_token``.

    Contains ``full_return`` (lambda 1) and ``td`` (lambda 0).

    Args:
        gamma: discount in [0,1].
        lam: λ in [0,1].
        clock: what a tick of the discount is, see ``segcredit.lambda_returns``.

    Source:
        Schulman et al. 2016, arXiv 1506.02438; over segments SAPO, arXiv 2605.01327, eqs. 6-7.
    """

    gamma: float = 1.0
    lam: float = 0.95
    clock: Clock = "segment"

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("lam", self.lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a number between 0 and 1.")

    def __call__(self, values: SegmentValues) -> Tensor:
        """(B,S) advantages."""
        returns_BS = lambda_returns(values, gamma=self.gamma, lam=self.lam, clock=self.clock)
        return returns_BS - values.values
