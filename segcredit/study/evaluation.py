"""The evaluation of a policy, trained or not: pass@k and maj@k, with intervals over prompts.

segcredit evaluate runs/mine --completions 16 --k 1,4,16
"""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from segcredit.atomic_files import require_writable, write_atomically
from segcredit.config import RunConfig, load_config
from segcredit.errors import RecordError, StudyError
from segcredit.records import checkpoint
from segcredit.rng import stream
from segcredit.study.export_tables import write_table
from segcredit.study.statistics import bootstrap_interval
from segcredit.study.stored_policy import last_checkpoint, stored_config, stored_run
from segcredit.training.build import Run, build, environment
from segcredit.training.evaluate import Judged, by_prompt, judge, mean
from segcredit.training.loop import run_directory

TABLE, SUMMARY = "evaluation.parquet", "evaluation.json"
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class EvaluatedPolicy:
    """A policy to be evaluated, and its prompts."""

    config: RunConfig
    """With the evaluation's numbers of prompts and completions."""
    checkpoint: Path | None
    """None for the policy before any training."""
    step: int
    output: Path
    """Directory that the evaluation is written to."""


@dataclass(frozen=True, slots=True)
class MetricEstimate:
    """A metric with its interval over prompts: of two their range, NaN where they do not differ."""

    name: str
    value: float
    low: float
    high: float
    prompts: int
    """Those for which it is known."""


def evaluated_policy(
    source: str,
    overrides: Iterable[str] = (),
    *,
    prompts: int | None = None,
    completions: int | None = None,
    saved: Path | None = None,
    output: Path | None = None,
    trust: bool = False,
) -> EvaluatedPolicy:
    """Returns a run's policy at its last checkpoint, or a config's before training.

    Args:
        source: a run directory or the beginning of a run's name, a preset's name or a TOML file.
        overrides: ``"dotted.key=value"``.
        prompts: how many are held out; None = as in the config.
        completions: sampled ones of each; None = as in the config.
        saved: another checkpoint than the run's last.
        output: None = ``evaluation/step_N`` in the run's directory.
        trust: whether code that a run's stored config names may be run.

    Raises:
        RecordError: the run has no checkpoint, or lacks its last.
        SegcreditError: the config cannot be read.
    """
    given = {"evaluate.prompts": prompts, "evaluate.completions": completions}
    more = [f"{key}={value}" for key, value in given.items() if value is not None]
    run = stored_run(source)
    if run is not None:
        config = stored_config(run, [*overrides, *more], trust=trust)
    else:
        config = load_config(source, [*overrides, *more])
    found = saved or (None if run is None else last_checkpoint(run))
    step = 0 if found is None else int(checkpoint.load_run(found, whole=False)["row"]["step"])
    directory = run or run_directory(config)
    return EvaluatedPolicy(
        config, found, step, output or directory / "evaluation" / f"step_{step:06d}"
    )


def evaluate_policy(
    chosen: EvaluatedPolicy,
    *,
    ks: Sequence[int] | None = None,
    batch: int | None = None,
    overwrite: bool = False,
) -> list[MetricEstimate]:
    """Samples, judges and writes: a row a completion, and the metrics.

    Args:
        chosen: which policy on what.
        ks: of pass@k; None = the powers of two from 2 up to the number of completions.
        batch: prompts that are sampled at a time; None = all, with which a run's own evaluation
            at that step is repeated to the letter.
        overwrite: whether what the output directory holds may be replaced.

    Raises:
        RecordError: the output directory holds an evaluation, or the checkpoint cannot be read.
        StudyError: a k is larger than the number of completions.
    """
    _require_possible(chosen, ks)
    _require_free(chosen.output, overwrite)
    require_writable(chosen.output / TABLE)
    run = build(chosen.config)
    if chosen.checkpoint is not None:
        with checkpoint.fitting(chosen.checkpoint):
            run.policy.load_state_dict(checkpoint.load_run(chosen.checkpoint)["policy"])
    judged = _judged(run, chosen.step, batch or len(run.held_out))
    found = summary(judged, ks)
    write_table(_table(judged, chosen.step), chosen.output / TABLE)
    write_atomically(chosen.output / SUMMARY, _summary(chosen, found).encode())
    return found


def summary(judged: Sequence[Judged], ks: Sequence[int] | None = None) -> list[MetricEstimate]:
    """Computes each metric with a bootstrap interval whose unit is a prompt.

    The completions of a prompt share its difficulty, so that they are no units of their own.

    Args:
        judged: of all prompts.
        ks: as in ``by_prompt``.
    """
    return [_estimate(name, values) for name, values in by_prompt(judged, ks).items()]


def _estimate(name: str, values: list[float]) -> MetricEstimate:
    known = [value for value in values if not math.isnan(value)]
    # Equal values say nothing of how much others would differ.
    differ = len(set(known)) > 1
    # Of two prompts the percentiles are their range.
    low, high = bootstrap_interval(known, confidence=CONFIDENCE) if differ else (math.nan, math.nan)
    return MetricEstimate(name, mean(known), low, high, len(known))


def _judged(run: Run, step: int, batch: int) -> list[Judged]:
    generator = stream(run.config.seed, "evaluation", step)
    return [
        one
        for first in range(0, len(run.held_out), batch)
        for one in judge(
            run.actor,
            run.task,
            run.held_out[first : first + batch],
            max_new_tokens=run.config.rollouts.max_new_tokens,
            stop=run.config.rollouts.stop,
            generator=generator,
            completions=run.config.evaluate.completions,
        )
    ]


def _require_possible(chosen: EvaluatedPolicy, ks: Sequence[int] | None) -> None:
    most = chosen.config.evaluate.completions
    wrong = [k for k in ks or () if not 1 <= k <= most]
    if wrong:
        raise StudyError(
            f"pass@{wrong[0]} was asked for with {most} completions of each prompt; expected a k"
            f" from 1 to {most}. Raise --completions, or lower --k."
        )


def _require_free(output: Path, overwrite: bool) -> None:
    there = [name for name in (TABLE, SUMMARY) if (output / name).exists()]
    if there and not overwrite:
        raise RecordError(
            f"{output} already holds {' and '.join(there)}; expected a directory without an"
            " evaluation. Choose another --output, or replace it with --overwrite."
        )


def _table(judged: Sequence[Judged], step: int) -> pd.DataFrame:
    frame = pd.DataFrame(judged, columns=list(Judged._fields))
    frame["process_correct"] = frame["process_correct"].astype("boolean")
    frame["answer"] = frame["answer"].astype("string")
    frame.insert(0, "step", step)
    return frame


def _summary(chosen: EvaluatedPolicy, found: Sequence[MetricEstimate]) -> str:
    config = chosen.config
    content = {
        "checkpoint": None if chosen.checkpoint is None else str(chosen.checkpoint),
        "step": chosen.step,
        "prompts": config.evaluate.prompts,
        "completions": config.evaluate.completions,
        "confidence": CONFIDENCE,
        "interval": "percentile bootstrap over prompts",
        "figures": {
            one.name: {
                "value": _known(one.value),
                "low": _known(one.low),
                "high": _known(one.high),
                "prompts": one.prompts,
            }
            for one in found
        },
        "config": config.identity(),
        "environment": environment(config),
    }
    return json.dumps(content, indent=1, default=str, allow_nan=False) + "\n"


def _known(value: float) -> float | None:
    """Returns None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value
