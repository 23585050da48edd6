"""Credit for the best of k completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from segcredit import AdvantageScheme, SegmentValues, group_place, group_size


@dataclass(frozen=True, slots=True)
class PassAtK(AdvantageScheme):
    """The inner scheme over rewards whose expected sum is that of the best of k completions.

    The return R_i of row i of a group of n becomes, earned at the row's last segment::

        s_i = Σ_{I ∋ i, |I| = k} max_{j ∈ I} R_j / C(n, k)

    over the sets I of k rows of the group. With returns of 0 and 1, c of them 1, that is k/n for a
    row that is right and (k/n) ρ(n − 1, c, k − 1) for one that is wrong, where
    ρ(n, c, k) = 1 − C(n − c, k)/C(n, k) is the estimate of pass@k. A wrong row is paid for what
    others of its sets earn.

    Assumption: k answers are drawn, and the best one counts. With a baseline that leaves gradients
    alone (``zero``, ``leave_one_out``) the expected gradient of Σ_i s_i log π is that of the
    expected best of k. The estimator's values are of the rewards as they were. Degenerate case: k
    = 1 gives R_i/n; a group of fewer than k rows is one set. Cost: a sort of the batch's rows.

    Args:
        inner: the scheme that reads these rewards.
        k: rows in a set.

    Source:
        PKPO, arXiv 2505.15201, for returns of 0 and 1. Other returns follow from the sum over sets
        above. Its baselines, which leave rows out of the sets, are not made.
    """

    inner: AdvantageScheme
    k: Annotated[int, Interval(ge=1, le=10_000)] = 4

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) the inner scheme's advantages, 0 outside the mask."""
        mask_BS = values.mask
        best_B = self._best(values.rewards.sum(1), values.group)
        last_BS = mask_BS & (mask_BS.flip(1).cumsum(1).flip(1) == 1)
        changed = values.replace(rewards=last_BS * best_B[:, None])
        return self.inner(changed).masked_fill(~mask_BS, 0)

    def _best(self, returns_B: Tensor, group_B: Tensor) -> Tensor:
        """Returns (B,) the sum over sets.

        With i counting a group's returns upwards from 1, row i is the best of C(i − 1, k − 1) sets,
        and the best of C(i − 2, k − 2) sets with a given lower one.
        """
        order_B = returns_B.argsort(stable=True)
        order_B = order_B[group_B[order_B].argsort(stable=True)]
        sizes_B, ranks_B = group_size(group_B[order_B]), group_place(group_B[order_B]) + 1
        k_B, earned_B = sizes_B.clamp(max=self.k), returns_B[order_B].double()
        every_B = _log_choices(sizes_B, k_B)
        own_B = (_log_choices(ranks_B - 1, k_B - 1) - every_B).exp() * earned_B
        higher_B = ((_log_choices(ranks_B - 2, k_B - 2) - every_B).exp() * earned_B).cumsum(0)
        last_B = torch.arange(len(order_B), device=order_B.device) + sizes_B - ranks_B
        best_B = (own_B + higher_B[last_B] - higher_B).to(returns_B.dtype)
        return torch.empty_like(returns_B).scatter(0, order_B, best_B)


def _log_choices(n_B: Tensor, k_B: Tensor) -> Tensor:
    """Computes the logarithm of the binomial coefficient, -inf where it is 0."""
    n_B, k_B = n_B.double(), k_B.double()
    logs_B = torch.lgamma(n_B + 1) - torch.lgamma(k_B + 1) - torch.lgamma(n_B - k_B + 1)
    return logs_B.masked_fill((k_B < 0) | (k_B > n_B), -torch.inf)
