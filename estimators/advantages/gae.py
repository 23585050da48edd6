"""Generalised advantage estimation over segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, Clock, SegmentValues, lambda_returns


@dataclass(frozen=True, slots=True)
class GAE(AdvantageScheme):
    """A_m = δ_m + γ λ A_{m+1} over segments; over tokens with the segmenter ``per_token``.

    Contains ``full_return`` (lambda 1) and ``td`` (lambda 0). With ``length_scale`` α, λ is that
    of the row's n action tokens::

        λ = clamp(1 − 1/(α n), 0, 1)

    so that the weights 1, λ, λ², ... of one-step differences sum to α n.

    Assumption: errors of the values are smaller than the chance in the rewards that λ < 1 leaves
    out. Degenerate case: values of 0 everywhere leave λ-weighted rewards-to-go; rows of at most
    1/α tokens have λ = 0. Cost: one walk over the segments.

    Args:
        gamma: discount in [0,1].
        lam: λ in [0,1]; not used if ``length_scale`` is given.
        clock: what a tick of the discount is, see ``segcredit.lambda_returns``.
        lam_clock: what a tick of λ is. ``token`` gives every definition of segments one horizon;
            ``segment``, as published, a longer one to longer segments.
        length_scale: α above 0, the share of a row that credit reaches back over; None = ``lam``
            for all rows. VAPO's is 0.05.

    Source:
        Schulman et al. 2016, arXiv 1506.02438; over segments SAPO, arXiv 2605.01327, eqs. 6-7.
        The length-adaptive λ is VAPO's, Yue et al. 2025, arXiv 2504.05118; the clamp is ours, for
        rows too short for the formula. n counts tokens with every segmenter, as there; over
        segments the sum of weights is therefore α n segments, not tokens. Over segments that end
        at improbable tokens (``probability``) it is, at their first tokens, GAE over tokens with λ
        at boundaries and 1 inside, which is how we read the abstract of SAE, arXiv 2601.07320; the
        paper's own recurrence and numbers were not to be had.
    """

    gamma: float = 1.0
    lam: float = 0.95
    clock: Clock = "segment"
    lam_clock: Clock = "segment"
    length_scale: Annotated[float, Interval(ge=1e-9, le=1e9)] | None = None

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("lam", self.lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a number between 0 and 1.")
        if self.length_scale is not None and self.length_scale <= 0:
            raise ValueError(
                f"length_scale is {self.length_scale}; expected a number above 0, such as 0.05, or"
                " None for the same lam in every row."
            )

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) advantages."""
        returns_BS = lambda_returns(
            values,
            gamma=self.gamma,
            lam=self._lam(values),
            clock=self.clock,
            lam_clock=self.lam_clock,
        )
        return returns_BS - values.values

    def _lam(self, values: SegmentValues) -> float | Tensor:
        """Returns one λ for all, or (B,) one a row."""
        if self.length_scale is None:
            return self.lam
        tokens_B = values.lengths.sum(1).clamp(min=1).to(values.values.dtype)
        return (1 - 1 / (self.length_scale * tokens_B)).clamp(0, 1)
