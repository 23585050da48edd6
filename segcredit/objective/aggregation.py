"""One number from the losses of tokens, or of segments. Pure.

==========================  ==============================================  ===============
aggregation                 numerator                                       denominator
==========================  ==============================================  ===============
token_mean                  Σ w l over everything                           Σ c
sequence_mean_token_mean    Σ over rows of (Σ w l / Σ c)                    rows
sequence_mean_token_sum     Σ w l over everything                           rows
sequence_mean_token_norm    Σ w l over everything / ``norm_length``         rows
sequence_sum_norm           Σ w l over everything / ``norm_length``         1
==========================  ==============================================  ===============

Losses l, weights w, counts c. Rows that count no token are not counted. Another aggregation is a
subclass of ``Aggregation``. Shapes: ``B`` completions, ``N`` tokens or segments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from segcredit.errors import ShapeError, blame
from segcredit.types import require_shape


class Aggregation(ABC):
    """A way from losses to one number, the numerator over the denominator.

    The two are asked for apart, since a minibatch comes in pieces, micro-batches and the shares of
    processes: each piece adds its numerator, over the denominator of the whole minibatch.
    """

    @abstractmethod
    def numerator(
        self, weighted: Float[Tensor, "B N"], counts: Float[Tensor, "B N"]
    ) -> Float[Tensor, ""]:
        """Computes what these rows add.

        Args:
            weighted: (B,N) losses times their weights in [0,1].
            counts: (B,N) in [0,1], how far each is counted; tokens may count without a loss.
        """

    @abstractmethod
    def denominator(self, counts: Float[Tensor, "B N"]) -> Float[Tensor, ""] | None:
        """Counts what these rows add to the denominator; None = it is 1, whatever the rows."""

    def for_length(self, longest: float) -> Aggregation:
        """Returns the same with a constant length, in tokens, where it lacks one that it uses."""
        del longest
        return self


@dataclass(frozen=True, slots=True)
class TokenMean(Aggregation):
    """The mean over all tokens of the minibatch.

    Source:
        DAPO, arXiv 2503.14476.
    """

    def numerator(self, weighted: Tensor, counts: Tensor) -> Tensor:
        """Computes the sum of the losses."""
        return weighted.sum()

    def denominator(self, counts: Tensor) -> Tensor:
        """Counts tokens."""
        return counts.sum()


@dataclass(frozen=True, slots=True)
class SequenceMeanTokenMean(Aggregation):
    """The mean over rows of the mean over a row's tokens.

    Source:
        GRPO, arXiv 2402.03300.
    """

    def numerator(self, weighted: Tensor, counts: Tensor) -> Tensor:
        """Computes the sum of the rows' means."""
        per_row_B = counts.sum(1)
        return (weighted.sum(1) / torch.where(per_row_B > 0, per_row_B, 1)).sum()

    def denominator(self, counts: Tensor) -> Tensor:
        """Counts rows."""
        return _rows(counts)


@dataclass(frozen=True, slots=True)
class SequenceMeanTokenSum(Aggregation):
    """The mean over rows of the sum over a row's tokens."""

    def numerator(self, weighted: Tensor, counts: Tensor) -> Tensor:
        """Computes the sum of the losses."""
        return weighted.sum()

    def denominator(self, counts: Tensor) -> Tensor:
        """Counts rows."""
        return _rows(counts)


@dataclass(frozen=True, slots=True)
class _ByLength(Aggregation):
    """The sum over everything, divided by one constant length.

    Args:
        norm_length: tokens, above 0; None = the longest completion allowed.

    Raises:
        ShapeError: ``norm_length`` is not above 0.
    """

    norm_length: Annotated[float, Interval(ge=1e-6, le=1e12)] | None = None

    def __post_init__(self) -> None:
        if self.norm_length is not None and not self.norm_length > 0:
            raise ShapeError(
                f"norm_length is {self.norm_length}; expected a number of tokens above 0, or None"
                " for the longest completion allowed."
            )

    def for_length(self, longest: float) -> Aggregation:
        """Returns the same with a length."""
        return self if self.norm_length is not None else replace(self, norm_length=longest)

    def numerator(self, weighted: Tensor, counts: Tensor) -> Tensor:
        """Computes the sum of the losses, over the length."""
        padded = max(weighted.shape[1], 1)
        return weighted.sum() / (padded if self.norm_length is None else self.norm_length)


@dataclass(frozen=True, slots=True)
class SequenceMeanTokenNorm(_ByLength):
    """The mean over rows of the sum over a row's tokens, divided by one constant length.

    Source:
        Dr. GRPO, arXiv 2503.20783.
    """

    def denominator(self, counts: Tensor) -> Tensor:
        """Counts rows."""
        return _rows(counts)


@dataclass(frozen=True, slots=True)
class SequenceSumNorm(_ByLength):
    """The sum over everything, divided by one constant length and not by the rows.

    Source:
        verl's ``seq-mean-token-sum-norm``.
    """

    def denominator(self, counts: Tensor) -> None:
        """Counts nothing: the length is all that the sum is divided by."""


def aggregate_loss(
    loss: Float[Tensor, "B N"],
    weights: Float[Tensor, "B N"],
    aggregation: Aggregation,
    *,
    count_weights: Float[Tensor, "B N"] | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Computes one number from the losses of tokens, or of segments.

    With nothing to count the loss is 0.

    Args:
        loss: (B,N) one a token or segment; not read where the weight is 0.
        weights: (B,N) w in [0,1].
        aggregation: such as ``TokenMean()``; one that lacks the length that it divides by takes N,
            which depends on padding.
        count_weights: (B,N) c in [0,1], what the denominators count; None = the weights. Other
            than they, tokens may be left out of the loss and still count.
        denominator: replaces the aggregation's own, so that micro-batches and processes add up to
            the loss of the whole minibatch: ``loss_count`` of it.
    """
    counts = weights if count_weights is None else count_weights
    weighted = (loss * weights).masked_fill(weights <= 0, 0)
    with blame("aggregation", type(aggregation).__name__, aggregation):
        total = aggregation.numerator(weighted, counts)
        require_shape("numerator", total, ())
    if denominator is not None:
        return total / denominator
    own = loss_count(counts, aggregation)
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
        aggregation: the aggregation.
        sum_up: adds a number up over those who hold parts of the minibatch.
    """
    with blame("aggregation", type(aggregation).__name__, aggregation):
        own = aggregation.denominator(weights)
        if own is not None:
            require_shape("denominator", own, ())
    return weights.new_ones(()) if own is None else sum_up(own)


def _rows(counts: Tensor) -> Tensor:
    return (counts.sum(1) > 0).sum().to(counts.dtype)
