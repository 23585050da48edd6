"""Plan of a truth that is to be measured, and the measurement of one part of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from segcredit import registry
from segcredit.config import RunConfig
from segcredit.credit_audit.truth.identity import Identity, hash_of, identity
from segcredit.credit_audit.truth.measure import measure
from segcredit.credit_audit.truth.parts import Part, part_rows
from segcredit.episodes import complete
from segcredit.errors import StudyError, blame
from segcredit.protocols import Policy, Prompt, Task, checked_prompts
from segcredit.rng import stream
from segcredit.training.rollouts.completions import as_rollouts

PROMPTS_A_PART = 8
"""Each part has streams of its own, so that another number makes another truth."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of a truth that is to be measured."""

    config: RunConfig
    prompts: list[Prompt]
    completions: int
    continuations: float
    splits: int
    identity: Identity

    @property
    def parts(self) -> int:
        """Number of its files."""
        return -(-len(self.prompts) // PROMPTS_A_PART)

    def numbers(self, part: int) -> range:
        """Returns the numbers of a part's prompts."""
        first = part * PROMPTS_A_PART
        return range(first, min(first + PROMPTS_A_PART, len(self.prompts)))


def plan_truth(
    config: RunConfig,
    prompts: int,
    completions: int,
    continuations: float,
    splits: int,
) -> Plan:
    """Plans a truth: its prompts and its identity; the policy is not yet needed.

    Raises:
        StudyError: a number is too small, or an answer cannot be stored.
    """
    if min(prompts, completions) < 1 or not continuations > 0 or splits < 2:
        raise StudyError(
            f"prompts are {prompts}, completions {completions}, continuations {continuations} and"
            f" splits {splits}; expected at least 1, 1, more than 0 and at least 2. There is"
            " nothing to audit without prompts, and no square without two independent values."
        )
    task = registry.tasks.from_table(config.task)
    with blame("task", config.task["name"], task):
        found = list(checked_prompts("evaluation", task.evaluation(prompts), 0))
    if len(found) < prompts:
        raise StudyError(
            f"the task {config.task['name']!r} has {len(found)} evaluation prompts; expected the"
            f" {prompts} that are asked for. Ask for fewer."
        )
    _require_plain_answers(found, config)
    settings = {
        "prompts": prompts,
        "completions": completions,
        "continuations": float(continuations),
        "halves": splits,
        "prompts_a_part": PROMPTS_A_PART,
    }
    named = identity(config, found, settings)
    return Plan(config, found, completions, continuations, splits, named)


def _require_plain_answers(prompts: Sequence[Prompt], config: RunConfig) -> None:
    for prompt in prompts:
        try:
            json.dumps(prompt.answer)
        except (TypeError, ValueError) as error:
            raise StudyError(
                f"the answer of prompt {prompt.key!r} of the task {config.task['name']!r} cannot"
                f" be stored ({error}); expected text, numbers, lists and tables, as JSON holds"
                " them. Let the task keep a name in the answer and look the rest up in 'verify'."
            ) from error


def measure_part(plan: Plan, policy: Policy, task: Task, number: int) -> Part:
    """Samples and values the completions of a part, from its own random generators."""
    started, config = time.process_time(), plan.config
    numbers = [place for place in plan.numbers(number) for _ in range(plan.completions)]
    prompts = [plan.prompts[place] for place in numbers]
    completions = complete(
        policy,
        task,
        prompts,
        params=config.rollouts.sampling(),
        generator=stream(config.seed, "truth/completions", number),
    )
    rollouts = as_rollouts(completions, policy, micro_tokens=config.train.micro_tokens)
    measured = measure(
        policy,
        task,
        prompts,
        rollouts,
        continuations=plan.continuations,
        splits=plan.splits,
        max_new_tokens=config.rollouts.max_new_tokens,
        stop=config.rollouts.stop,
        micro_tokens=config.train.micro_tokens,
        generator=stream(config.seed, "truth/continuations", number),
    )
    return Part(
        number=number,
        truth=hash_of(plan.identity),
        tokens=measured.tokens,
        completion_tokens=int(rollouts.action_mask.sum()),
        cpu_seconds=time.process_time() - started,
        rows=part_rows(rollouts, measured, numbers),
    )
