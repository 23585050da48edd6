"""Process rewards less what the group's other completions earn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segcredit import ProcessReward, RolloutBatch, Segmentation, group_mean, group_size


@dataclass(frozen=True, slots=True)
class LeaveOneOutCentered(ProcessReward):
    """The inner process reward less the mean that the other rows of the group earn.

    With row i's inner rewards p_im, its segments' action tokens n_im, and j over the group's other
    rows (those with action tokens)::

        token:     r_im = p_im − n_im · (Σ_j Σ_m p_jm) / (Σ_j Σ_m n_jm)
        segment:   r_im = p_im − mean over j of (mean over m of p_jm)

    Assumption: rows of a prompt are comparable, per token or per segment. Over a ``min_form``,
    whose sum does not grow with the segments, a positive mean per segment favours rows with fewer
    of them (why the source went over to tokens), and a mean per token those with fewer tokens.
    Degenerate case: a row without another one to compare it with, see ``singleton``. Cost: nothing
    beside the inner one.

    Args:
        inner: the process reward that is centered, normally ``min_form``.
        per: what the baseline is a mean over: ``token``, as the source's main setting, or
            ``segment``.
        singleton: what a row gets whose group has no other row with action tokens: ``zero``, its
            own mean as the baseline, so that its rewards add up to 0; or its ``reward``, no
            baseline.

    Source:
        PURE, Cheng et al. 2025, arXiv 2504.15275, main branch of the released code. Differences:
        separators between steps are action tokens like the others here, where the source leaves
        them out of n_im but not out of the divisor; the source has no answer for singletons (it
        divides by 0). The verl branch, whose divisor is the padded width, is not followed: here
        padding is never read. Verifier rewards, which the source centers beside these, are the
        value estimator's affair (``leave_one_out``).
    """

    inner: ProcessReward
    per: Literal["token", "segment"] = "token"
    singleton: Literal["zero", "reward"] = "zero"

    def __post_init__(self) -> None:
        if self.per not in ("token", "segment"):
            raise ValueError(f"per is {self.per!r}; expected 'token' or 'segment'.")
        if self.singleton not in ("zero", "reward"):
            raise ValueError(f"singleton is {self.singleton!r}; expected 'zero' or 'reward'.")

    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor:
        """Returns (B,S) centered process rewards; 0 where there is no segment."""
        mask_BS = segmentation.mask
        inner_BS = self.inner.reward(rollouts, segmentation).masked_fill(~mask_BS, 0)
        sizes_BS = (segmentation.lengths if self.per == "token" else mask_BS).to(inner_BS.dtype)
        earned_B, sizes_B = inner_BS.sum(1), sizes_BS.sum(1)
        own_B = earned_B / sizes_B.clamp(min=1)
        if self.per == "segment":
            # Each row counts once, however many segments it has.
            earned_B, sizes_B = own_B, sizes_B.clamp(max=1)
        # Rounded, since a mean times a count misses whole numbers.
        others_B = _others(sizes_B, rollouts.group).round()
        baseline_B = _others(earned_B, rollouts.group) / others_B.clamp(min=1)
        alone_B = own_B if self.singleton == "zero" else torch.zeros_like(own_B)
        baseline_B = torch.where(others_B > 0, baseline_B, alone_B)
        return inner_BS - baseline_B[:, None] * sizes_BS


def _others(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Returns (B,) the sum over the other rows of each row's group."""
    return group_mean(x_B, group_B) * group_size(group_B) - x_B
