"""Step 4 of the loop: epochs x minibatches of policy and value losses over one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from segcredit.errors import TrainingError, blame
from segcredit.protocols import readable, whole_tensor
from segcredit.rng import stream
from segcredit.training.batch_loss import LossCounts, policy_loss, value_loss
from segcredit.training.build import Run
from segcredit.training.credit_assignment import TrainingBatch
from segcredit.training.distributed.all_gather import all_rows
from segcredit.training.distributed.processes import Processes
from segcredit.training.optimizer import Trained
from segcredit.training.rollouts.completions import micro_batches
from segcredit.training.rollouts.simulator import SharedSimulator
from segcredit.types import RolloutBatch, TokenScores


class Meter:
    """Weighted means and maxima of metrics, kept as tensors and read once.

    Every process adds its own; a metric of all of them may be added by each.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._weights: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))

    def add(self, name: str, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Adds a value with its weight; names that end in ``_max`` keep the largest."""
        value = value.detach()
        self._put(name, value if _is_maximum(name) else value * weight, weight)

    def read(self, processes: Processes) -> dict[str, float]:
        """Returns every metric, over all processes, as a number.

        Raises:
            LostProcessError: another process is gone.
        """
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


def improve(
    run: Run,
    batch: TrainingBatch,
    step: int,
    *,
    policy: bool = True,
    before_sync: Callable[[], None] = lambda: None,
    passes_made: int = 0,
) -> dict[str, float]:
    """Trains on one batch; the policy is left alone in value warm-up.

    Args:
        run: gives losses and optimizers.
        batch: is trained on.
        step: names the random generators.
        policy: whether the policy is trained.
        before_sync: called once the policy has been updated, before its sampler gets the weights.
        passes_made: passes over the batch that another trainer made; the others are left.

    Returns:
        Means over all minibatches: ``loss, value_loss, clip_fraction, ratio_max, kl,
        gradient_norm, ...``.

    Raises:
        TrainingError: a loss or a gradient is not finite; nothing was stepped along it. Or
            another process failed.
    """
    meter = Meter()
    policy_epochs = run.policy.epochs if policy else 0
    credits = [*zip(run.credits, (batch, *batch.further), strict=True)]
    if policy:
        for _, each in credits:
            each.simulator.known = None  # the policy's scores until now
    value_epochs = max(own.state.epochs for own, _ in credits)
    for epoch in range(passes_made, max(policy_epochs, value_epochs)):
        train_policy, train_value = epoch < policy_epochs, epoch < value_epochs
        pieces = run.config.train.minibatches
        for rows in minibatches(run, len(batch.rollouts), pieces, f"minibatches/{epoch}", step):
            train_minibatch(run, batch, rows, meter, step, policy=train_policy, value=train_value)
    if policy:
        before_sync()
        run.sync()
    for own, each in credits:
        _update_estimator(own, each)
    if policy:
        run.policy.next_rate()
        for own, _ in credits:
            own.state.next_rate()
    return meter.read(run.processes)


def train_minibatch(
    run: Run,
    batch: TrainingBatch,
    rows: Tensor,
    meter: Meter,
    step: int,
    *,
    policy: bool,
    value: bool,
) -> None:
    """Takes one optimizer step along the losses of a minibatch.

    Args:
        run: gives the losses, the optimizers and the other processes.
        batch: of which the rows are.
        rows: (n,) this process's rows of the minibatch; there may be none.
        meter: takes the metrics.
        step: named in errors.
        policy: whether the policy is trained.
        value: whether the value estimator is.

    Raises:
        TrainingError: see ``improve``.
    """
    counts = LossCounts.of(run, batch, rows)
    with _accumulating(run):
        losses = _accumulate(run, batch, rows, counts, meter, policy, value)
    for name, loss in losses.items():
        meter.add(name, run.processes.sum(loss))
    if policy:
        meter.add("gradient_norm", apply_gradients(run, run.policy, "loss", step))
    for place, own in _in_training(run).items() if value else ():
        norm = apply_gradients(run, own.state, "value loss", step)
        meter.add(f"value_gradient_norm{_suffix(place)}", norm)


def _in_training(run: Run) -> dict[int, Run]:
    """Returns the credits whose estimators are trained, by their places."""
    found = enumerate(run.credits)
    return {place: own for place, own in found if own.state.optimizer is not None}


def _suffix(place: int) -> str:
    """Returns what a metric of a credit ends in: nothing for the method's own."""
    return f"_{place}" if place else ""


def _accumulating(run: Run) -> AbstractContextManager[None]:
    """Guards the passes of one minibatch against errors of other processes."""
    # Where parameters are sharded, passes wait for one another: a process that fails leaves the
    # others waiting, and they learn of it by the lost connection alone.
    return run.processes.exchanging() if run.sharded else run.processes.error_barrier()


def _update_estimator(run: Run, batch: TrainingBatch) -> None:
    """Gives the estimator the step's rollouts, to keep in its state what it likes.

    Raises:
        PluginError: the estimator raised; names it.
    """
    # Hidden states are many, and no estimator needs them here.
    rollouts = batch.rollouts.replace(reference_hidden=None)
    # Without a state there is nothing to keep the same on all processes: no rows need be sent.
    if run.state.module.state_dict():
        rollouts = all_rows(run.processes, rollouts)
    name, estimator = run.config.estimator["name"], run.method.estimator
    rollouts = readable(rollouts, estimator.reads)
    with torch.no_grad(), blame("estimator", name, estimator):
        simulator = SharedSimulator(batch.simulator, run.processes)
        estimator.update(run.state.module, rollouts, simulator)


def minibatches(run: Run, rows: int, pieces: int, name: str, step: int) -> Iterator[Tensor]:
    """Cuts a batch at random into pieces equal up to one row; yields this process's rows of each.

    The batch is that of all processes, and a piece may leave one of them without rows.

    Args:
        run: gives the seed and the processes.
        rows: of the batch on this process.
        pieces: how many; fewer where there are fewer rows.
        name: of the random generator.
        step: of it.
    """
    counts = run.processes.gather(rows)
    begin, every = sum(counts[: run.processes.rank]), sum(counts)
    # The same on every process, and the same however many there are.
    order = torch.randperm(every, generator=stream(run.config.seed, name, step))
    for piece in order.tensor_split(min(pieces, every)):
        own = piece[(piece >= begin) & (piece < begin + rows)] - begin
        yield own.to(run.processes.device)


def _accumulate(
    run: Run,
    batch: TrainingBatch,
    rows: Tensor,
    counts: LossCounts,
    meter: Meter,
    train_policy: bool,
    train_value: bool,
) -> Mapping[str, Tensor]:
    """Sums the gradients of this process's rows of a minibatch, over its micro-batches.

    Returns:
        This process's parts of the losses by name, 0 where it has none.
    """
    trains = _in_training(run) if train_value else {}
    names = ["loss"] * train_policy + [f"value_loss{_suffix(place)}" for place in trains]
    totals = {name: torch.zeros((), device=rows.device) for name in names}
    for chosen, weight in _pieces(run, batch, rows):
        own_meter = meter if weight else Meter()  # what a pass of weight 0 adds is thrown away
        scores = _scores(run, batch, chosen, train_policy)
        parts: dict[str, Tensor] = {}
        if train_policy:
            parts["loss"], metrics = policy_loss(run, batch, chosen, scores, counts)
            for name, metric in metrics.items():
                own_meter.add(name, metric, batch.token_weights[chosen].sum())
        for place, own in trains.items():
            credit = (batch, *batch.further)[place]
            loss = value_loss(own, credit, chosen, scores, counts, credit=place)
            parts[f"value_loss{_suffix(place)}"] = loss
        for name, part in parts.items():
            _backward(part * weight)
            totals[name] = totals[name] + part.detach() * weight
    return totals


def _scores(run: Run, batch: TrainingBatch, rows: Tensor, gradients: bool) -> TokenScores:
    """Scores a micro-batch under the current policy, with or without gradients."""
    # The pass that scored the rollouts is this one, where there is only one.
    kept, known = batch.sampled.scores, batch.simulator.known
    if gradients and kept is not None and kept.logprobs.requires_grad:
        return kept.select(rows)
    reads = {one for each in run.credits for one in each.method.estimator.reads}
    if not gradients and reads.isdisjoint(("hidden", "logprobs")):
        return _unread(run, batch.rollouts.select(rows))
    if known is not None:
        return known[1].select(rows)
    with torch.set_grad_enabled(gradients):
        return run.policy.module(batch.rollouts.select(rows))


def _unread(run: Run, rollouts: RolloutBatch) -> TokenScores:
    """Builds scores for an estimator that reads none: NaN, and no pass of the policy."""
    nothing_BT = torch.full_like(rollouts.rewards, torch.nan)[:, None]
    nothing_BT = nothing_BT.expand_as(rollouts.completion_ids)
    hidden_BTH = nothing_BT[..., None].expand(*nothing_BT.shape, run.actor.hidden_size)
    return TokenScores(logprobs=nothing_BT, entropies=nothing_BT, hidden=hidden_BTH)


def _pieces(run: Run, batch: TrainingBatch, rows: Tensor) -> list[tuple[Tensor, float]]:
    """Lists the rows of each micro-batch with its weight: 1, or 0 for one that only keeps step.

    Where parameters are sharded, every process must run as many passes as the others.
    """
    mask_BT, budget = batch.rollouts.action_mask[rows], run.config.train.micro_tokens
    own = [rows[piece] for piece in micro_batches(mask_BT, budget)]
    idle = run.processes.most(len(own)) - len(own) if run.sharded else 0
    first = torch.zeros(1, dtype=torch.long, device=rows.device)
    return [(chosen, 1.0) for chosen in own] + [(first, 0.0)] * idle


def _backward(loss: Tensor) -> None:
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def apply_gradients(run: Run, trained: Trained[object], what: str, step: int) -> Tensor:
    """Sums gradients over processes, clips them, and steps along them.

    Returns:
        The norm of the gradient before it was clipped.

    Raises:
        TrainingError: it is not finite; nothing was stepped.
    """
    run.processes.sum_gradients(trained.parameters)
    norm = whole_tensor(nn.utils.clip_grad_norm_(trained.parameters, trained.gradient_clip))
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
