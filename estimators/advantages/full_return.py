"""Full-return advantage: the return still earned, less the value expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, Clock, SegmentValues, lambda_returns


@dataclass(frozen=True, slots=True)
class FullReturn(AdvantageScheme):
    """A_k = Σ_{j≥k} γ^(j−k) r_j − V_k: the discounted reward-to-go against the value.

    The lambda = 1 end of ``gae``. Unbiased if V is a baseline; the most variance.

    Args:
        gamma: discount in [0,1].
        clock: what a tick of the discount is, see ``segcredit.lambda_returns``.

    Source:
        REINFORCE with a baseline, Williams 1992; GRPO, arXiv 2402.03300, without its scaling.
    """

    gamma: Annotated[float, Interval(ge=0, le=1)] = 1.0
    clock: Clock = "segment"

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) advantages."""
        return lambda_returns(values, gamma=self.gamma, lam=1.0, clock=self.clock) - values.values
