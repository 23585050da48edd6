"""Process rewards whose sum is the worst step's instead of all steps'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from segcredit import ProcessReward, RolloutBatch, Segmentation


@dataclass(frozen=True, slots=True)
class MinForm(ProcessReward):
    """Credit by the worst step: what follows a step is worth its minimum rather than its sum.

    With the inner process rewards p_1 ... p_S of a row::

        softmax:   r_m = p_m · softmax(−p / temperature)_m      so that Σ_j r_j ≈ min_j p_j
        strict:    r_m = min_{j≥m} p_j − min_{j>m} p_j          so that Σ_{j≥m} r_j = min_{j≥m} p_j

    with r_S = p_S in the strict form, where nothing follows. There each step but the last earns
    what it takes the minimum down by, never more than 0. The softmax form goes to p on the worst
    step (shared among equal ones) and 0 elsewhere as the temperature goes to 0: its reward-to-go
    is the minimum up to the worst step and 0 after it, where the strict form's is the minimum of
    what is left.

    Assumption: a chain of steps is as good as its worst one, and gamma is 1: a discount breaks up
    the sums. Degenerate case: one segment keeps its reward; equal rewards are shared equally
    (softmax) or given to the last segment (strict). Cost: nothing beside the inner one.

    Args:
        inner: the process reward whose steps are compared.
        temperature: of the softmax, in units of p; the source's is 0.1. Not read by ``strict``.
        form: ``softmax``, the source's main form, or ``strict``.

    Source:
        PURE, Cheng et al. 2025, arXiv 2504.15275, and its released code: ``softmax`` is the main
        branch, ``strict`` the "strict min-form" of its verl branch, a reverse running minimum.
        Difference: that minimum is stated here by the rewards of which it is the undiscounted
        sum, so that any advantage scheme can read them.
    """

    inner: ProcessReward
    temperature: Annotated[float, Interval(ge=1e-6, le=1e6)] = 0.1
    form: Literal["softmax", "strict"] = "softmax"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; expected a finite number above 0, such as"
                " 0.1. For the exact minimum set form='strict'."
            )
        if self.form not in ("softmax", "strict"):
            raise ValueError(f"form is {self.form!r}; expected 'softmax' or 'strict'.")

    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor:
        """Returns (B,S) the inner process rewards in min form; 0 where there is no segment."""
        mask_BS = segmentation.mask
        inner_BS = self.inner.reward(rollouts, segmentation).masked_fill(~mask_BS, 0)
        if self.form == "strict":
            return _strict(inner_BS, mask_BS)
        # The lowest number rather than −inf: a row without segments would be 0 / 0.
        lowest = torch.finfo(inner_BS.dtype).min
        logits_BS = (-inner_BS / self.temperature).masked_fill(~mask_BS, lowest)
        return inner_BS * logits_BS.softmax(1)


def _strict(inner_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Returns what each segment adds to the minimum of the segments after it."""
    open_BS = inner_BS.masked_fill(~mask_BS, torch.inf)
    least_BS = open_BS.flip(1).cummin(1).values.flip(1).masked_fill(~mask_BS, 0)
    later_BS = torch.cat([least_BS[:, 1:], torch.zeros_like(least_BS[:, :1])], dim=1)
    return least_BS - later_BS
