"""The policy-gradient loop: the one loop under every method.

1. sample prompts x completions, verify, score            (``ahead.Ahead.sample``)
2. segment, value, credit                                 (``credit_assignment.assign``)
3. epochs x minibatches of policy and value losses        (``update.improve``)
4. record, evaluate, checkpoint                           (here)

It never learns the name of a method or of a plug-in.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segcredit.config import RunConfig, Source, load_config, load_run
from segcredit.errors import (
    LostProcessError,
    PluginError,
    RecordError,
    StorageError,
    TrainingError,
    told,
)
from segcredit.objective.returns import explained_variance, lambda_returns
from segcredit.records import checkpoint, sharded_tensors
from segcredit.records.recovery import damage, last_good_state
from segcredit.records.run_directory import Records, RunRecords, SilentRecords
from segcredit.records.run_lock import run_lock
from segcredit.records.trackers import tracking
from segcredit.registry import plugin_fault
from segcredit.rng import stream
from segcredit.training.build import Run, build, environment, run_hash, started_processes
from segcredit.training.credit_assignment import TrainingBatch, assign, collect
from segcredit.training.distributed.processes import Processes, stoppable
from segcredit.training.evaluate import evaluate
from segcredit.training.out_of_memory import memory_advice
from segcredit.training.pretraining import Watch, pretrain
from segcredit.training.rollouts.ahead import Ahead
from segcredit.training.step_rows import images, tables
from segcredit.training.update import improve
from segcredit.types import LARGE_ADVANTAGE

Row = dict[str, float]


def train(
    config: RunConfig | Source,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    **keys: Any,
) -> Path:
    """Runs a config to its end and returns the run directory.

        segcredit.train("grpo", "runs/first", train__steps=20)

    Args:
        config: complete, as ``load_config`` gives it; or what that takes: a method's name, a TOML
            file, or a mapping as such a file holds it.
        output: the run directory; None = ``runs/HASH``, named by config and plug-in code.
        resume: continue from the last checkpoint found there. Without it, a directory that holds
            a finished run of the same config is left as it is.
        overrides: ``"dotted.key=value"``, laid over the config.
        **keys: the same from Python, as ``load_config`` has them.

    Raises:
        SegcreditError: whatever stops the run; recorded in ``status.json`` before it is raised.
    """
    if not isinstance(config, RunConfig):
        checked = load_run(config, overrides, **keys)
    elif overrides or keys:
        checked = load_config(config.model_dump(), overrides, **keys)
    else:
        checked = config
    directory = run_directory(checked, output)
    for _ in iterate(checked, directory, resume=resume):
        pass
    return directory


def run_directory(config: RunConfig, output: str | Path | None = None) -> Path:
    """Returns the directory in which a run of a config is recorded."""
    return Path(output) if output is not None else Path("runs") / run_hash(config)


def iterate(
    config: RunConfig, directory: Path, *, resume: bool = False, watch: Watch | None = None
) -> Iterator[Row]:
    """Runs a config and yields each step's row of metrics once it is recorded, step 0 first.

    Where several processes were started, each of them calls this; process 0 alone writes.

    Args:
        config: complete, as ``load_config`` gives it.
        directory: the run directory.
        resume: continue from the last checkpoint found there.
        watch: called while the value estimator is pretrained, before step 0.

    Raises:
        SegcreditError: whatever stops the run; recorded in ``status.json`` before it is raised.
    """
    processes = started_processes(config)
    with ExitStack() as held:
        with processes.error_barrier():
            records = _records(config, directory, processes, held)
        if not processes.from_first(records.finished):
            held.enter_context(stoppable(processes))
            yield from _iterate(config, records, processes, resume=resume, watch=watch)


def _records(config: RunConfig, directory: Path, processes: Processes, held: ExitStack) -> Records:
    """Opens the run directory, locked for as long as ``held`` is; only process 0 writes there."""
    if not processes.first:
        return SilentRecords(directory)
    held.enter_context(run_lock(directory))
    found = environment(config) | {"processes": processes.count}
    records = RunRecords.create(directory, config.identity(), found, config.carriers())
    # A run that counts as finished, but whose files were damaged since, is run again.
    if records.finished and damage(directory, config.train.steps):
        records.begin()
    return records


def _iterate(
    config: RunConfig,
    records: Records,
    processes: Processes,
    *,
    resume: bool,
    watch: Watch | None,
) -> Iterator[Row]:
    trackers = config.record.trackers if processes.first else ()
    shown = tracking(trackers, records.path, config.identity())
    with _recorded_failure(records), shown as show:
        run = build(config, processes)
        row = _restore(run, records, resume=resume)
        if row is None:
            row = _begin(run, watch)
            state = _state(run, row, Ahead(run), records.checkpoints)
            with processes.error_barrier():
                _record(records, row, state, run.config.checkpoint.keep)
                show(row)
            yield row
        unvaried, batches = 0, Ahead(run)
        for step in range(int(row["step"]) + 1, config.train.steps + 1):
            started = time.process_time()
            batch = assign(run, batches.sample(step), step)
            batches.begin(step + 1)
            losses = improve(run, batch, step, before_sync=batches.wait)
            before, row = row, _row(run, batch, losses, row, step, started)
            if processes.first:
                _warn_of_large_credit(row, before)
            due = step % config.record.every == 0 or step == config.train.steps
            found = tables(run, batch, step) if due else {}
            # On every process, which writes its shards; process 0 then writes the rest alone.
            state = _state(run, row, batches, records.checkpoints)
            with processes.error_barrier():
                for image in images(run, batch) if due else ():
                    records.image(image)  # first: no table names a missing file
                for name, columns in found.items():
                    records.table(name, step, columns)
                _record(records, row, state, config.checkpoint.keep)
                show(row)
            unvaried = _require_signal(run, batch, step, unvaried)
            yield row
        with processes.error_barrier():
            records.finish()


def _begin(run: Run, watch: Watch | None) -> Row:
    """Does step 0: evaluates the starting policy, then pretrains and warms up the value estimator.

    What the warm-up costs is counted as the run's. What the pretraining cost is told apart, since
    it serves other runs as well.
    """
    costs = {"tokens_sampled": 0, "tokens_simulated": 0, "cpu_seconds": 0.0}
    row: Row = {"step": 0, **costs, **_evaluation(run, 0)}
    learns = any(own.state.optimizer is not None for own in run.credits)
    return row | warm_up(run, watch) if learns else row


def warm_up(run: Run, watch: Watch | None = None, folder: Path | None = None) -> Row:
    """Trains the value estimators before the first step: pretraining, then warm-up iterations.

    Args:
        run: one of whose estimators has parameters.
        watch: called before each batch of the pretraining.
        folder: of the pretraining's checkpoints, where there is one credit; see
            ``pretraining.pretrain``.

    Returns:
        What it took: tokens and CPU-seconds, over all processes.
    """
    row: Row = {}
    made = [cost for own in run.credits if (cost := pretrain(own, watch, folder)) is not None]
    if made:
        row |= {
            "pretraining_tokens": sum(cost.tokens for cost in made),
            "pretraining_cpu_seconds": sum(cost.cpu_seconds for cost in made),
        }
    started, tokens, simulated = time.process_time(), 0, 0
    for iteration in range(1, run.config.train.value.warmup_iterations + 1):
        # Negative steps name random generators of their own, so that every method meets the same
        # prompts at the same step.
        batch = collect(run, -iteration)
        improve(run, batch, -iteration, policy=False)
        tokens += batch.sampled.tokens
        simulated += batch.simulated_tokens
    return row | _costs(run, tokens, simulated, time.process_time() - started)


def _costs(run: Run, tokens: int, simulated: int, seconds: float) -> Row:
    """Sums costs over processes; tokens sampled for estimators count as sampled, too."""
    shares = run.processes.gather((tokens + simulated, simulated, seconds))
    names = ("tokens_sampled", "tokens_simulated", "cpu_seconds")
    return {name: sum(of) for name, of in zip(names, zip(*shares, strict=True), strict=True)}


def _row(
    run: Run, batch: TrainingBatch, losses: Row, before: Row, step: int, started: float
) -> Row:
    """Builds the step's metrics; costs count from the start of the run, without evaluations."""
    sampled = batch_metrics(run, batch)
    spent = _costs(
        run,
        batch.sampled.tokens,
        batch.simulated_tokens,
        time.process_time() - started,
    )
    costs = {name: before[name] + more for name, more in spent.items()}
    row: Row = {"step": step, "sampling_rounds": batch.sampled.rounds}
    row |= costs | {name: float(value) for name, value in sampled.items()} | losses
    last = step == run.config.train.steps
    return row | (_evaluation(run, step) if last or step % run.config.evaluate.every == 0 else {})


def batch_metrics(run: Run, batch: TrainingBatch) -> dict[str, Tensor]:
    """Computes metrics of the rollouts of all processes, before anything is learned from them."""
    rollouts, processes = batch.rollouts, run.processes
    # A standard deviation needs the rows; of all else the sums do.
    rewards_B = processes.all_gather(rollouts.rewards)
    sums = (
        rollouts.action_mask.sum().float(),
        rollouts.entropies.sum(),
        rollouts.truncated.sum().float(),
        batch.segmentation.counts.sum().float(),
        (batch.token_weights > 0).sum().float(),
        rewards_B.new_tensor(batch.sampled.timeouts),
    )
    tokens, entropy, truncated, segments, loss_tokens, late = processes.sum(torch.stack(sums))
    counted_BT = batch.token_weights > 0
    largest = batch.advantages.per_token.abs().masked_fill(~counted_BT, 0).amax()
    returns = lambda_returns(batch.whole)
    # The same on every process: schemes see the whole batch.
    cut = {} if batch.clamped_share is None else {"clamped_share": batch.clamped_share}
    return {
        **cut,
        **_sizes(run, batch),
        **_mismatch(run, batch),
        "advantage_max": processes.all_gather(largest[None]).amax(),
        "loss_tokens": loss_tokens / tokens,
        "reward": rewards_B.mean(),
        "reward_std": rewards_B.std(correction=0),
        "entropy": entropy / tokens,
        "completion_length": tokens / len(rewards_B),
        "truncated": truncated / len(rewards_B),
        "segments_per_completion": segments / len(rewards_B),
        "verifier_timeouts": late,
        "explained_variance": explained_variance(batch.whole, returns),
        "token_explained_variance": explained_variance(batch.whole, returns, by_token=True),
    }


def _sizes(run: Run, batch: TrainingBatch) -> dict[str, Tensor]:
    """Computes the mean size of each credit of a sum, times its weight; nothing for one alone."""
    if not batch.further:
        return {}
    weights = (1.0, *(abs(each.weight) for each in run.further))
    credits_BT = [w * x for w, x in zip(weights, batch.each_credit(), strict=True)]
    counted_BT = (batch.token_weights > 0).float()
    sums = [(x.abs() * counted_BT).sum() for x in (*credits_BT, counted_BT)]
    *sizes, tokens = run.processes.sum(torch.stack(sums))
    return {f"credit_{place}": size / tokens.clamp(min=1) for place, size in enumerate(sizes)}


def _mismatch(run: Run, batch: TrainingBatch) -> dict[str, Tensor]:
    """Computes how far the sampler's distribution is from the policy's; nothing where untold."""
    rollouts, counted_BT = batch.rollouts, batch.token_weights > 0
    if run.processes.any(rollouts.sampler_logprobs is None) or rollouts.sampler_logprobs is None:
        return {}
    mask_BT = rollouts.action_mask
    x_BT = (rollouts.logprobs - rollouts.sampler_logprobs).masked_fill(~mask_BT, 0)
    factors_BT = torch.ones_like(x_BT) if batch.corrections is None else batch.corrections
    sums = (-x_BT.sum(), mask_BT.sum(), (counted_BT & (factors_BT == 0)).sum(), counted_BT.sum())
    kl, tokens, masked, counted = run.processes.sum(torch.stack([each.float() for each in sums]))
    largest = run.processes.all_gather(x_BT.abs().amax()[None]).amax()
    return {
        "sampler_kl": kl / tokens,
        "sampler_ratio_max": largest.exp(),
        "sampler_masked": masked / counted.clamp(min=1),
    }


def _warn_of_large_credit(row: Row, before: Row) -> None:
    """Warns where advantages have grown beyond ``LARGE_ADVANTAGE`` since the step before."""
    if before.get("advantage_max", 0.0) <= LARGE_ADVANTAGE < row["advantage_max"]:
        warnings.warn(
            f"step {row['step']:g} has an advantage of {row['advantage_max']:.3g} in size; credit"
            f" is normally below {LARGE_ADVANTAGE}. Usual causes are rewards on a large scale, a"
            " critic that diverged, or an advantage scheme that divides by a spread of nearly 0."
            " Look at the column advantage of the recorded segments.",
            RuntimeWarning,
            stacklevel=2,
        )


def _evaluation(run: Run, step: int) -> Row:
    return evaluate(
        run.actor,
        run.task,
        run.held_out,
        max_new_tokens=run.config.rollouts.max_new_tokens,
        stop=run.config.rollouts.stop,
        generator=stream(run.config.seed, run.processes.named("evaluation"), step),
        completions=run.config.evaluate.completions,
        processes=run.processes,
    )


def _state(run: Run, row: Row, batches: Ahead, folder: Path) -> dict[str, Any] | None:
    """Builds the state that a resumed run needs; None where the step is not one to keep.

    Shards are written at once, by every process, and the state lists their files.
    """
    step = int(row["step"])
    if step % run.config.checkpoint.every and step != run.config.train.steps:
        return None
    state = {
        "row": row,
        **{name: part.state_dict() for name, part in run.trained_parts.items()},
        **batches.prompt_states(),
    }
    return _without_shards(run, state, step, folder) if run.sharded else state


def _without_shards(run: Run, state: dict[str, Any], step: int, folder: Path) -> dict[str, Any]:
    """Writes the shards of a state beside its checkpoint, and returns what is left of it."""
    processes = run.processes
    with processes.error_barrier():
        if processes.first:
            checkpoint.make_room(folder, step)
    plain, tensors = sharded_tensors.split(state)
    shards = checkpoint.shards_of(checkpoint.file_of(folder, step))
    with processes.exchanging():
        sharded_tensors.write(shards, tensors)
    with processes.error_barrier():
        own = sharded_tensors.checksums(shards, processes.rank)
    files = {name: of for share in processes.gather(own) for name, of in share.items()}
    return {**plain, checkpoint.SHARDS: {"files": files, "places": [*map(list, tensors)]}}


def _record(records: Records, row: Row, state: dict[str, Any] | None, keep: int) -> None:
    """Writes a step's metrics, and its checkpoint where there is one."""
    # Metrics first: a checkpoint never knows of a step that the records do not.
    records.metrics(row)  # pyright: ignore[reportArgumentType]
    if state is not None:
        records.checkpoint(int(row["step"]), state, keep=keep)


def _restore(run: Run, records: Records, *, resume: bool) -> Row | None:
    """Takes a run back to its last good checkpoint, and returns its row; None without one.

    Raises:
        RecordError: there is one, and ``resume`` is False.
    """
    state = None
    with run.processes.error_barrier():
        if run.processes.first:
            state = _last_state(records, resume=resume)
    state = run.processes.from_first(state)
    if state is None:
        return None
    _load_state(run, state, records.checkpoints)
    return state["row"]


def _load_state(run: Run, state: dict[str, Any], folder: Path) -> None:
    """Sets a run's parts to the states of a checkpoint; each process reads its own shards.

    Args:
        run: carried by any number of processes, sharded or not, whoever wrote the checkpoint.
        state: as ``checkpoint.load`` gives it, its shards still in their files.
        folder: of the checkpoints.
    """
    with run.processes.error_barrier(), checkpoint.fitting(folder):
        if checkpoint.SHARDS in state:
            file = checkpoint.file_of(folder, int(state["row"]["step"]))
            places = [tuple(place) for place in state[checkpoint.SHARDS]["places"]]
            like = {
                (part, *place): x
                for part, trained in run.trained_parts.items()
                for place, x in trained.shards_like(p[1:] for p in places if p[0] == part).items()
            }
            sharded_tensors.put(state, sharded_tensors.read(checkpoint.shards_of(file), like))
    with checkpoint.fitting(folder):
        for name, part in run.trained_parts.items():
            part.load_state_dict(state[name])
        run.sync()
        run.prompts.load_state_dict(state["prompts"])
        run.further_prompts.load_state_dict(state["further_prompts"])


def _last_state(records: Records, *, resume: bool) -> dict[str, Any] | None:
    """Reads the last good checkpoint, and cuts the records to it; None without one."""
    found = checkpoint.found(records.checkpoints)
    if found and not resume:
        raise RecordError(
            f"{records.path} holds an unfinished run of this config, with the checkpoint"
            f" {found[-1].name}. Continue it with --resume, or choose another --output."
        )
    state = last_good_state(records.path, records.checkpoints)
    records.cut_after(-1 if state is None else int(state["row"]["step"]))
    return state


def _require_signal(run: Run, batch: TrainingBatch, step: int, unvaried: int) -> int:
    """Counts the first steps whose rewards were all equal, and stops when they are too many.

    Only from the start of a run: a policy that has become perfect is no fault.

    Args:
        run: of which the batch is a step.
        batch: of ``step``.
        step: from 1.
        unvaried: the count before it.

    Raises:
        TrainingError: as many as ``train.patience`` were.
    """
    rewards_B = run.processes.all_gather(batch.sampled.rollouts.token_rewards.sum(1))
    if unvaried != step - 1 or bool(rewards_B.amax() > rewards_B.amin()):
        return unvaried
    if step >= run.config.train.patience:
        raise TrainingError(
            f"all rewards of the first {step} steps were equal (reward {float(rewards_B[0]):g}):"
            " there is nothing to learn from. The usual cause is a task that this policy never or"
            " always solves, or a verifier that rejects every format. Look at the recorded"
            " completions, or raise train.patience."
        )
    return step


@contextmanager
def _recorded_failure(records: Records) -> Generator[None]:
    """Writes whatever stops the run to its status, with the last good checkpoint, and raises it."""
    try:
        yield
    except (StorageError, KeyboardInterrupt) as error:
        # A disk that refused the record may refuse the status as well; "running" is true enough.
        message = str(error) or "interrupted from the keyboard."
        if isinstance(error, KeyboardInterrupt) and error.args:  # told to stop by a signal
            message = f"{message} {_last_checkpoint(records)} Continue with --resume."
        with suppress(RecordError):
            records.interrupt(message)
        raise
    except LostProcessError as error:
        message = f"{error} {_last_checkpoint(records)} Continue with --resume."
        records.interrupt(message)
        raise LostProcessError(message) from error
    except SystemExit as error:  # of a plug-in that no narrower place names: a policy, a stream
        message = plugin_fault(error) or f"something in the run raised {told(error)}."
        records.fail("SystemExit", message, traceback.format_exc())
        raise PluginError(message) from error
    except Exception as error:
        advice = memory_advice(error)
        message, ours = advice or str(error), advice is not None or isinstance(error, TrainingError)
        if ours:
            message = f"{message} {_last_checkpoint(records)}"
        records.fail(type(error).__name__, message, traceback.format_exc())
        if ours:
            raise TrainingError(message) from error
        raise


def _last_checkpoint(records: Records) -> str:
    found = checkpoint.found(records.checkpoints)
    return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint."
