"""The policy-gradient loop: the one loop under every method.

1. sample prompts x completions, verify, score            (``experience.collect``)
2. segment, value, credit                                 (``experience.collect``)
3. epochs x minibatches of policy and value losses        (``update.improve``)
4. record, evaluate, checkpoint                           (here)

It never learns the name of a method or of a plug-in.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segcredit import checkpoint
from segcredit.build import Run, build, environment, run_hash
from segcredit.config import RunConfig
from segcredit.credit import explained_variance, lambda_returns
from segcredit.errors import RecordError, StorageError, TrainingError
from segcredit.evaluate import evaluate
from segcredit.exclusive import exclusive
from segcredit.experience import Experience, collect
from segcredit.memory import memory_advice
from segcredit.recording import images, tables
from segcredit.records import RunRecords
from segcredit.recovery import damage, last_good_state
from segcredit.streams import stream
from segcredit.trackers import tracking
from segcredit.update import improve

Row = dict[str, float]


def train(config: RunConfig, output: str | Path | None = None, *, resume: bool = False) -> Path:
    """Run a config to its end and return the run directory.

    Args:
        config: complete, as ``load_config`` gives it.
        output: the run directory; None = ``runs/HASH``, named by config and plug-in code.
        resume: continue from the last checkpoint found there. Without it, a directory that holds
            a finished run of the same config is left as it is.

    Raises:
        SegcreditError: whatever stops the run; recorded in ``status.json`` before it is raised.
    """
    directory = run_directory(config, output)
    for _ in iterate(config, directory, resume=resume):
        pass
    return directory


def run_directory(config: RunConfig, output: str | Path | None = None) -> Path:
    """Where a run of this config is recorded."""
    return Path(output) if output is not None else Path("runs") / run_hash(config)


def iterate(config: RunConfig, directory: Path, *, resume: bool = False) -> Iterator[Row]:
    """Run a config and yield each step's row of metrics once it is recorded, step 0 first."""
    with exclusive(directory):
        yield from _iterate(config, directory, resume=resume)


def _iterate(config: RunConfig, directory: Path, *, resume: bool) -> Iterator[Row]:
    records = RunRecords.create(directory, config.identity(), environment(config))
    if records.finished:
        if not damage(directory, config.train.steps):
            return
        records.begin()
    shown = tracking(config.record.trackers, directory, config.identity())
    with _recorded_failure(records), shown as show:
        run = build(config)
        row = _restore(run, records, resume=resume)
        if row is None:
            row = _begin(run)
            _record(run, records, row)
            show(row)
            yield row
        unvaried = 0
        for step in range(int(row["step"]) + 1, config.train.steps + 1):
            started = time.process_time()
            experience = collect(run, step)
            figures = improve(run, experience, step)
            row = _row(run, experience, figures, row, step, started)
            if step % config.record.every == 0 or step == config.train.steps:
                for image in images(run, experience):  # first: no table names a missing file
                    records.image(image)
                for name, columns in tables(run, experience, step).items():
                    records.table(name, step, columns)
            _record(run, records, row)
            show(row)
            unvaried = _require_signal(run, experience, step, unvaried)
            yield row
        records.finish()


def _begin(run: Run) -> Row:
    """Step 0: the starting policy's evaluation, then the value estimator's warm-up.

    Warm-up iterations have streams of their own, so that every method meets the same prompts at
    the same step; what they cost is counted.
    """
    costs = {"tokens_sampled": 0, "tokens_simulated": 0, "cpu_seconds": 0.0}
    row: Row = {"step": 0, **costs, **_evaluation(run, 0)}
    if run.state.optimizer is None:
        return row
    started, tokens, simulated = time.process_time(), 0, 0
    for iteration in range(1, run.config.train.value.warmup_iterations + 1):
        experience = collect(run, -iteration)
        improve(run, experience, -iteration, policy=False)
        tokens += experience.sampled.tokens
        simulated += experience.simulator.tokens
    return row | {
        "tokens_sampled": tokens + simulated,
        "tokens_simulated": simulated,
        "cpu_seconds": time.process_time() - started,
    }


def _row(
    run: Run, experience: Experience, figures: Row, before: Row, step: int, started: float
) -> Row:
    """The step's metrics; costs are counted from the start of the run, evaluations left out."""
    rollouts, segmentation = experience.rollouts, experience.segmentation
    tokens_B = rollouts.action_mask.sum(1).float()
    simulated = experience.simulator.tokens
    sampled = {
        "reward": rollouts.rewards.mean(),
        "reward_std": rollouts.rewards.std(correction=0),
        "entropy": rollouts.entropies.sum() / tokens_B.sum(),
        "response_length": tokens_B.mean(),
        "truncated": rollouts.truncated.float().mean(),
        "segments_per_response": segmentation.counts.float().mean(),
        "explained_variance": explained_variance(
            experience.values, lambda_returns(experience.values)
        ),
    }
    row: Row = {
        "step": step,
        "tokens_sampled": before["tokens_sampled"] + experience.sampled.tokens + simulated,
        "tokens_simulated": before["tokens_simulated"] + simulated,
        "sampling_rounds": experience.sampled.rounds,
        "loss_tokens": float((experience.token_weights > 0).sum() / tokens_B.sum()),
        **{name: float(value) for name, value in sampled.items()},
        **figures,
    }
    row["cpu_seconds"] = before["cpu_seconds"] + time.process_time() - started
    last = step == run.config.train.steps
    return row | (_evaluation(run, step) if last or step % run.config.evaluate.every == 0 else {})


def _evaluation(run: Run, step: int) -> Row:
    return evaluate(
        run.actor,
        run.task,
        run.held_out,
        max_new_tokens=run.config.rollouts.max_new_tokens,
        generator=stream(run.config.seed, "evaluation", step),
        completions=run.config.evaluate.completions,
    )


def _record(run: Run, records: RunRecords, row: Row) -> None:
    """Metrics first: a checkpoint never knows of a step that the records do not."""
    records.metrics(row)  # pyright: ignore[reportArgumentType]
    step, settings = int(row["step"]), run.config.checkpoint
    if step % settings.every == 0 or step == run.config.train.steps:
        state = {
            "row": row,
            "policy": run.policy.state_dict(),
            "estimator": run.state.state_dict(),
            "prompts": run.prompts.state_dict(),
            "further_prompts": run.further_prompts.state_dict(),
        }
        checkpoint.save(records.checkpoints, step, state, keep=settings.keep)


def _restore(run: Run, records: RunRecords, *, resume: bool) -> Row | None:
    """Everything as after the last good checkpoint, whose row is returned; None without one."""
    found = checkpoint.found(records.checkpoints)
    if found and not resume:
        raise RecordError(
            f"{records.path} holds an unfinished run of this config, with the checkpoint"
            f" {found[-1].name}. Continue it with --resume, or choose another --output."
        )
    state = last_good_state(records.path, records.checkpoints)
    if state is None:
        records.cut_after(-1)
        return None
    run.policy.load_state_dict(state["policy"])
    run.state.load_state_dict(state["estimator"])
    run.prompts.load_state_dict(state["prompts"])
    run.further_prompts.load_state_dict(state["further_prompts"])
    records.cut_after(int(state["row"]["step"]))
    return state["row"]


def _require_signal(run: Run, experience: Experience, step: int, unvaried: int) -> int:
    """Count the first steps whose rewards were all equal; stop when they are too many.

    Only from the start of a run: a policy that has become perfect is no fault.
    """
    rewards_B = experience.rollouts.token_rewards.sum(1)
    if unvaried != step - 1 or bool(rewards_B.amax() > rewards_B.amin()):
        return unvaried
    limit = min(run.config.train.patience, run.config.train.steps)
    if step >= limit:
        raise TrainingError(
            f"all rewards of the first {step} steps were equal (reward {float(rewards_B[0]):g}):"
            " there is nothing to learn from. The usual cause is a task that this policy never or"
            " always solves, or a verifier that rejects every format. Look at the recorded"
            " responses, or raise train.patience."
        )
    return step


@contextmanager
def _recorded_failure(records: RunRecords) -> Generator[None]:
    """What stops the run is written to its status, with the last good checkpoint, and raised."""
    try:
        yield
    except (StorageError, KeyboardInterrupt) as error:
        # A disk that refused the record may refuse the status as well; "running" is true enough.
        with suppress(RecordError):
            records.interrupt(str(error) or "interrupted from the keyboard.")
        raise
    except Exception as error:
        saved: Any = (checkpoint.found(records.checkpoints) or [None])[-1]
        advice = memory_advice(error)
        message, ours = advice or str(error), advice is not None or isinstance(error, TrainingError)
        if ours:
            where = f"The last good checkpoint is {saved}." if saved else "There is no checkpoint."
            message = f"{message} {where}"
        records.fail(type(error).__name__, message, traceback.format_exc())
        if ours:
            raise TrainingError(message) from error
        raise
