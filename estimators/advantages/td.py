"""One-step temporal difference: the change of value over a segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, Clock, SegmentValues, lambda_returns


@dataclass(frozen=True, slots=True)
class TD(AdvantageScheme):
    """A_k = r_k + γ V_{k+1} − V_k, with V = 0 after the last segment.

    The lambda = 0 end of ``gae``. With exact values this is the true advantage; with a poor
    critic it credits the critic's errors.

    Args:
        gamma: discount in [0,1].
        clock: what a tick of the discount is, see ``segcredit.lambda_returns``.

    Source:
        Sutton 1988; over Monte-Carlo values of steps: VinePPO, Kazemnejad et al. 2024,
        arXiv 2410.01679, section 4.
    """

    gamma: Annotated[float, Interval(ge=0, le=1)] = 1.0
    clock: Clock = "segment"

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) advantages."""
        return lambda_returns(values, gamma=self.gamma, lam=0.0, clock=self.clock) - values.values
