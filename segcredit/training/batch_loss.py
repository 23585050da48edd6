"""The losses of some rows of a batch, whole: for our loop and for others.

Everything that a method adds to its loss is in here, so that an engine with a loop of its own
trains what ours trains.

Shapes: ``B`` rows of the batch, ``n`` rows of them, ``T`` completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segcredit.errors import blame
from segcredit.objective.aggregation import TokenMean, aggregate_loss, loss_count
from segcredit.objective.policy_loss import kl_divergence, surrogate_loss
from segcredit.objective.sampler_correction import Corrected
from segcredit.protocols import readable, readable_scores
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run
from segcredit.training.credit_assignment import TrainingBatch
from segcredit.types import Advantages, RolloutBatch, SegmentValues, TokenScores, require_shape


class PolicyLossRows(Protocol):
    """The part of a ``TrainingBatch`` that the policy's loss reads.

    An engine whose loss is computed elsewhere than its credit carries these alone.
    """

    @property
    def rollouts(self) -> RolloutBatch: ...  # noqa: D102
    @property
    def advantages(self) -> Advantages: ...  # noqa: D102
    @property
    def ratio_segmentation(self) -> Segmentation: ...  # noqa: D102
    @property
    def token_weights(self) -> Tensor: ...  # noqa: D102
    @property
    def count_weights(self) -> Tensor: ...  # noqa: D102
    @property
    def corrections(self) -> Tensor | None: ...  # noqa: D102


class ValueLossRows(Protocol):
    """The part of a ``TrainingBatch`` that the value estimator's loss reads."""

    @property
    def rollouts(self) -> RolloutBatch: ...  # noqa: D102
    @property
    def states(self) -> Segmentation: ...  # noqa: D102
    @property
    def state_values(self) -> SegmentValues: ...  # noqa: D102
    @property
    def targets(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, slots=True, eq=False)
class LossCounts:
    """Denominators of a minibatch's losses, which its micro-batches and all processes share."""

    tokens: Float[Tensor, ""]
    """Count of surrogate and KL, as the method's aggregation counts."""
    imitated: Float[Tensor, ""]
    """Tokens of completions with a positive reward."""
    segments: Float[Tensor, ""]
    """Count of the value estimator's loss, as its aggregation counts."""
    further_segments: tuple[Float[Tensor, ""], ...] = ()
    """The same of the further credits' estimators."""

    @classmethod
    def of(cls, run: Run, batch: TrainingBatch, rows: Int[Tensor, "n"]) -> LossCounts:
        """Counts over rows of a batch, and over the other processes' rows.

        Args:
            run: gives the aggregations and the processes.
            batch: of which the rows are.
            rows: (n,) this process's rows of the minibatch; there may be none.
        """
        sum_up = run.processes.sum
        imitated_BT = batch.token_weights[rows] * (batch.rollouts.rewards[rows] > 0)[:, None]
        found = (
            loss_count(batch.count_weights[rows], run.method.aggregation, sum_up=sum_up),
            loss_count(imitated_BT, TokenMean(), sum_up=sum_up),
            *(
                loss_count(
                    each.state_values.mask[rows].float(),
                    run.method.value_aggregation,
                    sum_up=sum_up,
                )
                for each in (batch, *batch.further)
            ),
        )
        # 1 where there is nothing to count: the loss is 0 there, rather than 0 / 0.
        tokens, imitated, segments, *rest = (torch.where(count > 0, count, 1) for count in found)
        return cls(tokens, imitated, segments, tuple(rest))


def policy_loss(
    run: Run,
    batch: PolicyLossRows,
    rows: Int[Tensor, "n"],
    scores: TokenScores,
    counts: LossCounts,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Computes surrogate, KL and imitation loss of some rows, by the minibatch's denominators.

    The losses of a minibatch's pieces, and of its processes, add up to the minibatch's.

    Args:
        run: gives the method and the weights of its terms.
        batch: rollouts with their credit, see ``credit_assignment.assign``.
        rows: (n,) of the batch.
        scores: of these rows under the policy in training, with gradients.
        counts: denominators of the minibatch.

    Returns:
        The loss, and metrics: those of ``surrogate_loss``, and ``reference_kl`` where the loss has
        a KL term. Each is a mean over ``batch.token_weights[rows]`` but for maxima.

    Raises:
        PluginError: ratio, bound or aggregation raised, or returned what does not fit.
    """
    config, rollouts = run.config.loss, batch.rollouts.select(rows)
    aggregation, weights_BT = run.method.aggregation, batch.token_weights[rows]
    counts_BT, surrogate = batch.count_weights[rows], run.method.surrogate
    if batch.corrections is not None:
        surrogate = Corrected(surrogate, batch.corrections[rows])
    total, metrics = surrogate_loss(
        scores.logprobs,
        rollouts.logprobs,
        batch.advantages.per_token[rows],
        rollouts.action_mask,
        batch.ratio_segmentation.select(rows),
        surrogate=surrogate,
        aggregation=aggregation,
        token_weights=weights_BT,
        count_weights=counts_BT,
        denominator=counts.tokens,
    )
    if config.kl_loss > 0 and rollouts.reference_logprobs is not None:
        kl_BT = kl_divergence(
            scores.logprobs,
            rollouts.reference_logprobs,
            config.kl_estimator,
            limit=config.kl_limit,
            sampling_logprobs=rollouts.logprobs,
        )
        metrics["reference_kl"] = (kl_BT * weights_BT).sum() / weights_BT.sum().clamp(min=1)
        total = total + config.kl_loss * aggregate_loss(
            kl_BT,
            weights_BT,
            aggregation,
            count_weights=counts_BT,
            denominator=counts.tokens,
        )
    if config.imitation > 0:
        imitated_BT = weights_BT * (rollouts.rewards > 0)[:, None]
        total = total + config.imitation * aggregate_loss(
            -scores.logprobs, imitated_BT, TokenMean(), denominator=counts.imitated
        )
    return total, metrics


def value_loss(
    run: Run,
    batch: ValueLossRows,
    rows: Int[Tensor, "n"],
    scores: TokenScores,
    counts: LossCounts,
    *,
    credit: int = 0,
) -> Float[Tensor, ""]:
    """Computes the value estimator's loss of some rows' states, by the minibatch's denominator.

    Args:
        run: gives the estimator and its state.
        batch: rollouts with their values and targets.
        rows: (n,) of the batch.
        scores: of these rows; the estimator sees of them what its ``reads`` names.
        counts: denominators of the minibatch.
        credit: the place of the estimator's credit among those of the method.

    Raises:
        PluginError: the estimator raised, or returned what does not fit; names it.
    """
    values = batch.state_values.select(rows)
    estimator = run.method.estimator
    with blame("estimator", run.config.estimator["name"], estimator):
        loss_BS = estimator.loss(
            run.state.module,
            readable(batch.rollouts.select(rows), estimator.reads),
            batch.states.select(rows),
            readable_scores(scores, estimator.reads),
            values,
            batch.targets[rows],
        )
        require_shape("loss", loss_BS, values.mask.shape)
    return aggregate_loss(
        loss_BS,
        values.mask.to(loss_BS.dtype),
        run.method.value_aggregation,
        denominator=(counts.segments, *counts.further_segments)[credit],
    )
