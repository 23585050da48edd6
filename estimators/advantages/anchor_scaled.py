"""Advantages in units of their standard deviation among segments that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor

from segcredit import (
    AdvantageScheme,
    Match,
    SegmentValues,
    compared_segments,
    group_size,
    group_std,
    measured_by_std,
)


@dataclass(frozen=True, slots=True)
class AnchorScaled(AdvantageScheme):
    """A / (std of A over the segments that it is compared with + eps).

    Those are segments of the same prompt that began in the same state, at the same place, or all:
    ``match``, as in the estimator ``anchor_group``, whose values are constant where segments are
    compared, so that the std of A is that of returns. Made for the segmenter ``turns``.

    Assumption: differences between returns from different states are comparable only in units of
    their std. Degenerate case: a segment alone is left as it is (less eps); where an advantage is
    above twice the range of those it is compared with, the std is no unit for it, and A is divided
    by max(std + eps, 1), as in ``group_scaled``. Cost: two sorts of the batch's segments.

    Args:
        inner: the scheme that is scaled.
        match: what makes two segments of a prompt the same, see ``anchor_group``.
        ddof: 1 for the unbiased variance, 0 for the population's.
        eps: added to the standard deviation, in reward units.

    Source:
        GiGPO, Feng et al. 2025, arXiv 2505.10978, F_norm = std in eqs. 3 and 7; its code's
        ``mean_std_norm``, with its ddof and eps. ``match="turn"`` normalises MT-GRPO's turn
        rewards, arXiv 2505.11821. The exception above is ours.
    """

    inner: AdvantageScheme
    match: Match = "anchor"
    ddof: Literal[0, 1] = 1
    eps: Annotated[float, Interval(ge=1e-12, le=1e6)] = 1e-6

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) scaled advantages, 0 outside the mask."""
        advantages_BS = self.inner(values).masked_fill(~values.mask, 0)
        ids_BS = compared_segments(values.group, values.mask, self.match, values.anchor_ids)
        own_N, ids_N = advantages_BS.flatten(), ids_BS.flatten()
        std_N = group_std(own_N, ids_N, ddof=self.ddof)
        unit_N = std_N.masked_fill(group_size(ids_N) == 1, 1) + self.eps
        measured_N = measured_by_std(own_N.abs(), own_N, ids_N)
        unit_N = unit_N.where(measured_N, unit_N.clamp(min=1))
        return advantages_BS / unit_N.view(advantages_BS.shape)
