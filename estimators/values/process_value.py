"""Values from a process reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor, nn

from segcredit import ProcessReward, RolloutBatch, Segmentation, Simulator, ValueEstimator


@dataclass(frozen=True, slots=True)
class ProcessValue(ValueEstimator):
    """V before a segment is what a process reward says of the segment before it.

    With process rewards p_1 ... p_S of a row: V_1 = ``first``, V_m = p_{m−1}. A model trained on
    whether completions through a step end right (Monte-Carlo labels) foretells success, which is a
    value and not a reward: as differences under ``td`` it cannot pay for many steps, as a sum of
    rewards it does.

    Assumption: p is in units of the outcome's reward, a forecast from the prefix. Biased under
    ``td`` by as much as p is not V; with ``full_return`` it is a baseline alone, and exact
    whatever it says where it reads the prefix alone. Degenerate case: one segment a row is
    REINFORCE with a constant baseline. Cost: that of the process reward.

    Args:
        reward: whose word is the value, such as ``step_model``.
        first: the value of the prompt, which no step stands before.

    Source:
        Ours in this form. Labels that make it a value: Math-Shepherd, Wang et al. 2023,
        arXiv 2312.08935.
    """

    reward: ProcessReward
    first: Annotated[float, Interval(ge=-1e9, le=1e9)] = 0.5

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) what was said one segment before; 0 where there is no segment."""
        told_BS = self.reward.reward(rollouts, segmentation)
        values_BS = told_BS.roll(1, 1)
        values_BS[:, :1] = self.first
        return values_BS.masked_fill(~segmentation.mask, 0)
