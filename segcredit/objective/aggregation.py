"""One number from the losses of tokens, or of segments. Pure.

Shapes: ``B`` completions, ``N`` tokens or segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from segcredit.errors import ShapeError

Aggregate = Literal[
    "token_mean",
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "sequence_mean_token_norm",
    "sequence_sum_norm",
]


_NORM_MODES = ("sequence_mean_token_norm", "sequence_sum_norm")


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A mode of ``aggregate_loss``, with the constant length of the two that divide by one.

    Args:
        mode: of ``aggregate_loss``.
        norm_length: tokens, above 0; for the ``norm`` modes alone. None = the padded length there.

    Raises:
        ShapeError: the mode does not exist, or ``norm_length`` is not one that it can use.
    """

    mode: Aggregate
    norm_length: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Aggregate):
            raise ShapeError(
                f"aggregation {self.mode!r} does not exist; expected one of"
                f" {', '.join(get_args(Aggregate))}."
            )
        if self.norm_length is None:
            return
        if self.mode not in _NORM_MODES or not self.norm_length > 0:
            raise ShapeError(
                f"norm_length is {self.norm_length} with aggregation {self.mode!r}; expected a"
                f" length above 0, with {' or '.join(_NORM_MODES)} alone, or None."
            )

    def for_length(self, longest: float) -> Aggregation:
        """Returns the same with ``longest`` tokens as its length, where it lacks one it uses."""
        if self.mode in _NORM_MODES and self.norm_length is None:
            return replace(self, norm_length=longest)
        return self


def aggregate_loss(
    loss: Float[Tensor, "B N"],
    weights: Float[Tensor, "B N"],
    aggregation: Aggregation,
    *,
    count_weights: Float[Tensor, "B N"] | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Computes one number from the losses of tokens, or of segments.

    ==========================  ==============================================  ===============
    mode                        numerator                                       own denominator
    ==========================  ==============================================  ===============
    token_mean                  Σ w l over everything                           Σ c
    sequence_mean_token_mean    Σ over rows of (Σ w l / Σ c)                    rows
    sequence_mean_token_sum     Σ w l over everything                           rows
    sequence_mean_token_norm    Σ w l over everything / ``norm_length``         rows
    sequence_sum_norm           Σ w l over everything / ``norm_length``         1
    ==========================  ==============================================  ===============

    Rows that count no token are not counted. With nothing to count the loss is 0.

    Args:
        loss: (B,N) one a token or segment; not read where the weight is 0.
        weights: (B,N) w in [0,1].
        aggregation: the mode, and its length; without one N is taken, which depends on padding.
        count_weights: (B,N) c in [0,1], what the denominators count; None = the weights. Other
            than they, tokens may be left out of the loss and still count.
        denominator: replaces the own denominator, so that micro-batches and processes add up to
            the loss of the whole minibatch: its Σ c for ``token_mean``, its rows otherwise.

    Source:
        The first two: DAPO (arXiv 2503.14476) and GRPO (arXiv 2402.03300). ``token_norm``:
        Dr. GRPO (arXiv 2503.20783). ``sequence_sum_norm``: verl's ``seq-mean-token-sum-norm``,
        which does not divide by the rows.
    """
    counts = weights if count_weights is None else count_weights
    weighted = (loss * weights).masked_fill(weights <= 0, 0)
    per_row_B = counts.sum(1)
    rows = (per_row_B > 0).sum()
    length = aggregation.norm_length or max(loss.shape[1], 1)
    if aggregation.mode == "token_mean":
        total, own = weighted.sum(), per_row_B.sum()
    elif aggregation.mode == "sequence_mean_token_mean":
        safe_B = torch.where(per_row_B > 0, per_row_B, 1)
        total, own = (weighted.sum(1) / safe_B).sum(), rows
    elif aggregation.mode == "sequence_mean_token_sum":
        total, own = weighted.sum(), rows
    else:  # both divide by a length, and differ in whether they divide by the rows
        total = weighted.sum() / length
        own = rows if aggregation.mode == "sequence_mean_token_norm" else torch.ones_like(rows)
    if denominator is not None:
        return total / denominator
    return total / torch.where(own > 0, own, 1)


def _as_it_is(count: Tensor) -> Tensor:
    return count


def loss_count(
    weights: Float[Tensor, "B N"],
    aggregation: Aggregation,
    *,
    sum_up: Callable[[Tensor], Tensor] = _as_it_is,
) -> Float[Tensor, ""]:
    """Computes what ``aggregate_loss`` takes as ``denominator`` for a whole minibatch.

    Args:
        weights: (B,N) of the minibatch: its ``count_weights`` where those are given.
        aggregation: the mode.
        sum_up: adds a number up over those who hold parts of the minibatch.
    """
    if aggregation.mode == "token_mean":
        return sum_up(weights.sum())
    if aggregation.mode == "sequence_sum_norm":
        return weights.new_ones(())
    return sum_up((weights.sum(1) > 0).sum().to(weights.dtype))
