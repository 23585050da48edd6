"""segcredit under another trainer's loop: what an adapter needs, in the order of a step.

``build`` makes a run around a task and a policy that are there already; ``scored`` and ``assign``
lead from verified ``Completions`` to a batch with its credit; ``policy_loss`` and ``value_loss``,
by the denominators of ``LossCounts.of``, lead from scores to losses with everything that the method
adds. ``require_readings`` refuses a method that reads what the other trainer cannot provide. Where
that trainer steps the policy, ``build(..., train_policy=False)``. The value estimator is trained
here all the same: ``warm_up`` before the first step, ``apply_gradients`` along ``value_loss``, and
``improve(..., policy=False)`` for the passes that it makes beyond the policy's.

    run = build(config, processes, task=task, policy=policy, train_policy=False)
    batch = assign(run, scored(run, completions, step, tokens=count), step)
    counts = LossCounts.of(run, batch, rows)
    loss, metrics = policy_loss(run, batch, rows, scores, counts)
"""

from __future__ import annotations

from collections.abc import Set

from segcredit.config import RunConfig
from segcredit.episodes import Completions
from segcredit.errors import ConfigError
from segcredit.protocols import SegmenterReading
from segcredit.training.batch_loss import LossCounts, policy_loss, value_loss
from segcredit.training.build import Run, build, started_processes, task_of
from segcredit.training.credit_assignment import TrainingBatch, assign
from segcredit.training.loop import batch_metrics, warm_up
from segcredit.training.rollouts.sampling import Sampled, scored
from segcredit.training.update import Meter, apply_gradients, improve

__all__ = [
    "Completions",
    "LossCounts",
    "Meter",
    "Run",
    "Sampled",
    "TrainingBatch",
    "apply_gradients",
    "assign",
    "batch_metrics",
    "build",
    "improve",
    "policy_loss",
    "require_readings",
    "scored",
    "several_turns",
    "started_processes",
    "value_loss",
    "warm_up",
]


def require_readings(run: Run, given: Set[SegmenterReading], where: str) -> None:
    """Refuses segmenters that read what another trainer does not provide.

    Args:
        run: whose segmenters of credit and of the importance ratio are asked.
        given: what there is.
        where: the other trainer, as messages name it, such as "verl's advantage function".

    Raises:
        ConfigError: one reads more; names it and what is missing.
    """
    asked = {
        "segmenter": (run.config.segmenter, run.method.segmenter),
        "loss.ratio_segmenter": (run.config.loss.ratio_segmenter, run.method.ratio_segmenter),
    }
    for key, (table, segmenter) in asked.items():
        if table is None or segmenter is None or not (missing := segmenter.reads - given):
            continue
        raise ConfigError(
            f"{key} = {table['name']!r} reads {', '.join(sorted(missing))}; {where} gives"
            f" {', '.join(sorted(given)) or 'none of a segmenter’s readings'}. A segmenter that"
            " reads nothing of that kind, such as 'fixed_length', works there, or choose a way in"
            " that provides it. A segmenter of your own says in its `reads` what it reads; one"
            " that does not say is taken to read everything."
        )


def several_turns(config: RunConfig) -> str:
    """Returns what of a config makes completions of several turns; '' where nothing does.

    Another trainer has turns of its own, which it decides on: it says so rather than ignore this.
    """
    if task_of(config).environment().max_turns == 1:
        return ""
    if config.environment is None:
        return f"task {config.task['name']!r} has an environment of several turns"
    return f"environment is {config.environment['name']!r}"
