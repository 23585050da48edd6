"""Step 4 of the loop: epochs x minibatches of policy and value losses over one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcredit.errors import TrainingError, blame
from segcredit.objective.aggregation import Aggregation, aggregate_loss, loss_count
from segcredit.objective.policy_loss import kl_divergence, surrogate_loss
from segcredit.rng import stream
from segcredit.training.build import Run
from segcredit.training.credit_assignment import TrainingBatch
from segcredit.training.distributed.all_gather import everyones
from segcredit.training.distributed.fsdp import full
from segcredit.training.distributed.processes import Processes
from segcredit.training.optimizer import Trained
from segcredit.training.rollouts.completions import micro_batches
from segcredit.training.rollouts.simulator import SharedSimulator
from segcredit.types import TokenScores


class Meter:
    """Weighted means and maxima of figures, kept as tensors and read once.

    Every process adds its own; a figure of all of them may be added by each.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._weights: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))

    def add(self, name: str, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """One more value; names that end in ``_max`` keep the largest."""
        value = value.detach()
        self._put(name, value if _is_maximum(name) else value * weight, weight)

    def read(self, processes: Processes) -> dict[str, float]:
        """Every figure of all processes as a number."""
        own = {name: (x.cpu(), self._weights[name].cpu()) for name, x in self._sums.items()}
        every = Meter()
        for share in processes.gather(own):
            for name, (total, weight) in share.items():
                every._put(name, total, weight)
        return {name: float(every._sums[name] / every._weights[name]) for name in every._sums}

    def _put(self, name: str, total: Tensor, weight: Tensor | float) -> None:
        if _is_maximum(name):
            self._sums[name] = torch.maximum(self._sums[name].to(total), total)
            self._weights[name] = torch.ones_like(total)
        else:
            self._sums[name] = self._sums[name].to(total) + total
            self._weights[name] = self._weights[name].to(total) + weight


def _is_maximum(name: str) -> bool:
    return name.endswith("_max")


def improve(run: Run, batch: TrainingBatch, step: int, *, policy: bool = True) -> dict[str, float]:
    """Trains on one batch; the policy is left alone in value warm-up.

    Returns:
        Means over all minibatches: ``loss, value_loss, clip_fraction, ratio_max, kl,
        gradient_norm, ...``.

    Raises:
        TrainingError: a loss or a gradient is not finite; nothing was stepped along it.
    """
    meter = Meter()
    policy_epochs = run.policy.epochs if policy else 0
    for epoch in range(max(policy_epochs, run.state.epochs)):
        train_policy, train_value = epoch < policy_epochs, epoch < run.state.epochs
        for rows in _minibatches(run, len(batch.rollouts), step, epoch):
            counts = _Counts.of(run, batch, rows)
            with _accumulating(run):
                losses = _accumulate(run, batch, rows, counts, meter, train_policy, train_value)
            for name in ("loss",) * train_policy + ("value_loss",) * train_value:
                meter.add(name, run.processes.sum(losses[name]))
            if train_policy:
                meter.add("gradient_norm", _apply(run, run.policy, "loss", step))
            if train_value:
                meter.add("value_gradient_norm", _apply(run, run.state, "value loss", step))
    _update_estimator(run, batch)
    if policy:
        run.policy.next_rate()
        run.state.next_rate()
    return meter.read(run.processes)


def _accumulating(run: Run) -> AbstractContextManager[None]:
    """Where parameters are spread, passes wait for one another: who fails leaves, untold."""
    return run.processes.exchanging() if run.sharded else run.processes.error_barrier()


def _update_estimator(run: Run, batch: TrainingBatch) -> None:
    """With the rollouts of all processes, where the estimator has a state to keep them in."""
    rollouts = batch.rollouts
    if run.state.module.state_dict():
        rollouts = everyones(run.processes, rollouts)
    with run.whole(), torch.no_grad(), blame("estimator", run.config.estimator["name"]):
        simulator = SharedSimulator(batch.simulator, run.processes)
        run.method.estimator.update(run.state.module, rollouts, simulator)


def _minibatches(run: Run, rows: int, step: int, epoch: int) -> Iterator[Tensor]:
    """The batch in random pieces of equal size, up to one row; of each piece this process's rows.

    The batch is that of all processes, and a piece may leave one of them without rows.
    """
    counts = run.processes.gather(rows)
    begin, every = sum(counts[: run.processes.rank]), sum(counts)
    generator = stream(run.config.seed, f"minibatches/{epoch}", step)
    order = torch.randperm(every, generator=generator)
    for piece in order.tensor_split(min(run.config.train.minibatches, every)):
        own = piece[(piece >= begin) & (piece < begin + rows)] - begin
        yield own.to(run.processes.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Counts:
    """Denominators of a minibatch, which its micro-batches share; 1 where there is nothing."""

    tokens: Tensor
    imitated: Tensor
    segments: Tensor

    @classmethod
    def of(cls, run: Run, batch: TrainingBatch, rows: Tensor) -> _Counts:
        """Of the given rows of an batch, and of the other processes' rows."""
        sum_up = run.processes.sum
        imitated_BT = batch.token_weights[rows] * (batch.rollouts.rewards[rows] > 0)[:, None]
        found = (
            loss_count(
                batch.count_weights[rows],
                Aggregation(run.config.loss.aggregate),
                sum_up=sum_up,
            ),
            loss_count(imitated_BT, Aggregation("token_mean"), sum_up=sum_up),
            loss_count(
                batch.values.mask[rows].float(),
                Aggregation(run.config.train.value.aggregate),
                sum_up=sum_up,
            ),
        )
        return cls(*(torch.where(count > 0, count, 1) for count in found))


def _accumulate(
    run: Run,
    batch: TrainingBatch,
    rows: Tensor,
    counts: _Counts,
    meter: Meter,
    train_policy: bool,
    train_value: bool,
) -> Mapping[str, Tensor]:
    """Gradients of this process's rows of a minibatch, summed over micro-batches.

    Returns:
        Its parts of the losses by name, 0 where it has none.
    """
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=rows.device))
    for chosen, weight in _pieces(run, batch, rows):
        figures = meter if weight else Meter()
        scores = _scores(run, batch, chosen, train_policy)
        parts: dict[str, Tensor] = {}
        if train_policy:
            parts["loss"] = _policy_loss(run, batch, chosen, scores, counts, figures)
        if train_value:
            parts["value_loss"] = _value_loss(run, batch, chosen, scores, counts.segments)
        for name, part in parts.items():
            _backward(part * weight)
            totals[name] = totals[name] + part.detach() * weight
    return totals


def _scores(run: Run, batch: TrainingBatch, rows: Tensor, gradients: bool) -> TokenScores:
    """Of a micro-batch, under the current policy."""
    kept = batch.sampled.scores
    if kept is not None and gradients:
        return kept.select(rows)
    with torch.set_grad_enabled(gradients):
        return run.policy.module(batch.rollouts.select(rows))


def _pieces(run: Run, batch: TrainingBatch, rows: Tensor) -> list[tuple[Tensor, float]]:
    """Rows of each micro-batch, and how far it counts: 1, or 0 for one that only keeps step.

    Where parameters are spread, every process must run as many passes as the others.
    """
    mask_BT, budget = batch.rollouts.action_mask[rows], run.config.train.micro_tokens
    own = [rows[piece] for piece in micro_batches(mask_BT, budget)]
    idle = run.processes.most(len(own)) - len(own) if run.sharded else 0
    first = torch.zeros(1, dtype=torch.long, device=rows.device)
    return [(chosen, 1.0) for chosen in own] + [(first, 0.0)] * idle


def _backward(loss: Tensor) -> None:
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def _policy_loss(
    run: Run,
    batch: TrainingBatch,
    rows: Tensor,
    scores: TokenScores,
    counts: _Counts,
    meter: Meter,
) -> Tensor:
    """Surrogate, KL and imitation loss of a micro-batch, over the minibatch's denominators."""
    config, rollouts = run.config.loss, batch.rollouts.select(rows)
    aggregation = config.aggregation(run.config.rollouts.max_new_tokens)
    weights_BT = batch.token_weights[rows]
    total, figures = surrogate_loss(
        scores.logprobs,
        rollouts.logprobs,
        batch.advantages.per_token[rows],
        rollouts.action_mask,
        batch.ratio_segmentation.select(rows),
        surrogate=config.surrogate(),
        aggregation=aggregation,
        token_weights=weights_BT,
        count_weights=batch.count_weights[rows],
        denominator=counts.tokens,
    )
    tokens = weights_BT.sum()
    if config.kl_loss > 0 and rollouts.reference_logprobs is not None:
        kl_BT = kl_divergence(
            scores.logprobs,
            rollouts.reference_logprobs,
            config.kl_estimator,
            limit=config.kl_limit,
        )
        kl = aggregate_loss(
            kl_BT,
            weights_BT,
            aggregation,
            count_weights=batch.count_weights[rows],
            denominator=counts.tokens,
        )
        meter.add("reference_kl", (kl_BT * weights_BT).sum() / tokens.clamp(min=1), tokens)
        total = total + config.kl_loss * kl
    if config.imitation > 0:
        imitated_BT = weights_BT * (rollouts.rewards > 0)[:, None]
        total = total + config.imitation * aggregate_loss(
            -scores.logprobs, imitated_BT, Aggregation("token_mean"), denominator=counts.imitated
        )
    for name, figure in figures.items():
        meter.add(name, figure, tokens)
    return total


def _value_loss(
    run: Run, batch: TrainingBatch, rows: Tensor, scores: TokenScores, count: Tensor
) -> Tensor:
    """The estimator's loss over a micro-batch's segments, over the minibatch's denominator."""
    values = batch.values.select(rows)
    with blame("estimator", run.config.estimator["name"]):
        loss_BS = run.method.estimator.loss(
            run.state.module,
            batch.rollouts.select(rows),
            batch.segmentation.select(rows),
            scores,
            values,
            batch.targets[rows],
        )
    aggregation = Aggregation(run.config.train.value.aggregate)
    return aggregate_loss(loss_BS, values.mask.to(loss_BS.dtype), aggregation, denominator=count)


def _apply(run: Run, trained: Trained[object], what: str, step: int) -> Tensor:
    """Sum over processes, clip, step, clear; refuse to step on a gradient that is not finite."""
    run.processes.sum_gradients(trained.parameters)
    norm = full(nn.utils.clip_grad_norm_(trained.parameters, trained.gradient_clip))
    # One read a minibatch: parameters once spoilt by NaN cannot be mended.
    if not bool(norm.isfinite()):
        trained.forget_gradients()
        raise TrainingError(
            f"the {what} of step {step} is not finite (gradient norm {norm}). The usual cause is a"
            " learning rate that is too high, a reward that is NaN, or log-probs of tokens that"
            " the policy cannot produce. Lower the learning rate, or look at the last completions."
        )
    trained.step()
    return norm
