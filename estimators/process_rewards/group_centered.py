"""Process rewards less the group's mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segcredit import ProcessReward, RolloutBatch, Segmentation, group_mean, group_size


@dataclass(frozen=True, slots=True)
class GroupCentered(ProcessReward):
    """The inner process reward less the group's mean, in the unit of a leave-one-out advantage.

    With row i's inner rewards p_im, over the n rows of the group that have segments::

        r_im = n/(n − 1) · (p_im − mean over j of (mean over m of p_jm))

    Assumption: rows of a prompt are comparable a segment. For rows of one segment this is p less
    the mean of the other rows; for longer ones it is not, as the factor is on every segment.
    Biased as a baseline: the mean holds the row's own rewards. Degenerate case: a row that no
    other can be compared with earns 0. Cost: nothing beside the inner one.

    Args:
        inner: the process reward that is centered.

    Source:
        PRIME, Cui et al. 2025, arXiv 2502.01456, for its implicit rewards of tokens:
        ``masked_rloo`` of its code in verl-recipe, where a group is rows that follow one another.
    """

    inner: ProcessReward

    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor:
        """Returns (B,S) centered process rewards; 0 where there is no segment."""
        mask_BS, group_B = segmentation.mask, rollouts.group
        inner_BS = self.inner.reward(rollouts, segmentation).masked_fill(~mask_BS, 0)
        counts_B = mask_BS.sum(1)
        some_B = (counts_B > 0).to(inner_BS.dtype)
        # Sums, as rows without segments are none.
        rows_B = (group_mean(some_B, group_B) * group_size(group_B)).round()
        own_B = inner_BS.sum(1) / counts_B.clamp(min=1)
        mean_B = group_mean(own_B, group_B) * group_size(group_B) / rows_B.clamp(min=1)
        unit_B = (rows_B > 1) * rows_B / (rows_B - 1).clamp(min=1)
        return ((inner_BS - mean_B[:, None]) * unit_B[:, None]).masked_fill(~mask_BS, 0)
