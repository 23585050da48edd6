"""The rules of the plug-in contract, each a check that names the plug-in and the rule it broke.

A check raises ``PluginError``; scikit-learn's ``parametrize_with_checks`` is the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from segcredit.errors import PluginError
from segcredit.objective.aggregation import Aggregation
from segcredit.objective.importance_ratio import Ratio
from segcredit.objective.ratio_clipping import Bound
from segcredit.objective.sampler_correction import Correction
from segcredit.protocols import (
    AdvantageScheme,
    Environment,
    Policy,
    ProcessReward,
    Prompt,
    Sampler,
    Segmenter,
    Task,
    ValueEstimator,
)
from segcredit.testing.advantage_rules import ADVANTAGE_RULES
from segcredit.testing.checked_plugin import CheckedPlugin, Rule
from segcredit.testing.environment_rules import (
    ENVIRONMENT_RULES,
    CheckedEnvironment,
)
from segcredit.testing.estimator_rules import ESTIMATOR_RULES
from segcredit.testing.loss_rules import (
    AGGREGATION_RULES,
    BOUND_RULES,
    CORRECTION_RULES,
    RATIO_RULES,
)
from segcredit.testing.policy_rules import (
    CAPABILITY_RULES,
    DEFAULT_PROMPTS,
    POLICY_RULES,
    CheckedPolicy,
)
from segcredit.testing.process_reward_rules import PROCESS_REWARD_RULES
from segcredit.testing.sampler_rules import SAMPLER_RULES
from segcredit.testing.segmenter_rules import CAUSALITY, SEGMENTER_RULES
from segcredit.testing.task_rules import TASK_RULES

Check = tuple[str, Callable[[], None]]


def check_segmenter(plugin: Segmenter, causal: bool | None = None) -> None:
    """Runs every check of ``segmenter_checks``.

    Raises:
        PluginError: the first rule that the segmenter breaks.
    """
    _run(segmenter_checks(plugin, causal))


def check_estimator(plugin: ValueEstimator) -> None:
    """Runs every check of ``estimator_checks``.

    Raises:
        PluginError: the first rule that the value estimator breaks.
    """
    _run(estimator_checks(plugin))


def check_advantage(plugin: AdvantageScheme) -> None:
    """Runs every check of ``advantage_checks``.

    Raises:
        PluginError: the first rule that the advantage scheme breaks.
    """
    _run(advantage_checks(plugin))


def check_process_reward(plugin: ProcessReward) -> None:
    """Runs every check of ``process_reward_checks``.

    Raises:
        PluginError: the first rule that the process reward breaks.
    """
    _run(process_reward_checks(plugin))


def check_task(plugin: Task) -> None:
    """Runs every check of ``task_checks``.

    Raises:
        PluginError: the first rule that the task breaks.
    """
    _run(task_checks(plugin))


def check_environment(
    plugin: Environment, prompts: Sequence[Prompt] = DEFAULT_PROMPTS, turns: Sequence[str] = ()
) -> None:
    """Runs every check of ``environment_checks``.

    Raises:
        PluginError: the first rule that the environment breaks.
    """
    _run(environment_checks(plugin, prompts, turns))


def check_loss(plugin: Ratio | Bound | Correction | Aggregation) -> None:
    """Runs every check of ``loss_checks``.

    Raises:
        PluginError: the first rule that the part of a loss breaks.
    """
    _run(loss_checks(plugin))


def check_sampler(plugin: Sampler) -> None:
    """Runs every check of ``sampler_checks``.

    Raises:
        PluginError: the first rule that the sampler breaks.
    """
    _run(sampler_checks(plugin))


def check_policy(plugin: Policy, prompts: Sequence[Prompt] = DEFAULT_PROMPTS) -> None:
    """Runs every check of ``policy_checks``.

    Raises:
        PluginError: the first rule that the policy breaks.
    """
    _run(policy_checks(plugin, prompts))


def segmenter_checks(plugin: Segmenter, causal: bool | None = None) -> list[Check]:
    """Returns the rules for segmenters, each with a name.

    Args:
        plugin: the segmenter.
        causal: whether to hold it to causality; None = if it claims to be causal.
    """
    held = plugin.causal if causal is None else causal
    rules = [*SEGMENTER_RULES, CAUSALITY] if held else SEGMENTER_RULES
    return _checks("segmenter", plugin, rules)


def estimator_checks(plugin: ValueEstimator) -> list[Check]:
    """Returns the rules for value estimators, each with a name."""
    return _checks("value estimator", plugin, ESTIMATOR_RULES)


def advantage_checks(plugin: AdvantageScheme) -> list[Check]:
    """Returns the rules for advantage schemes, each with a name."""
    return _checks("advantage scheme", plugin, ADVANTAGE_RULES)


def process_reward_checks(plugin: ProcessReward) -> list[Check]:
    """Returns the rules for process rewards, each with a name."""
    return _checks("process reward", plugin, PROCESS_REWARD_RULES)


def task_checks(plugin: Task) -> list[Check]:
    """Returns the rules for tasks, each with a name."""
    return _checks("task", plugin, TASK_RULES)


def environment_checks(
    plugin: Environment, prompts: Sequence[Prompt] = DEFAULT_PROMPTS, turns: Sequence[str] = ()
) -> list[Check]:
    """Returns the rules for environments, each with a name.

    Args:
        plugin: the environment.
        prompts: at least one that it can be started on.
        turns: an episode that it understands, such as calls of a tool. Without them it meets texts
            alone that it has to answer as malformed.
    """
    checked = CheckedEnvironment("environment", plugin, tuple(prompts), tuple(turns))
    return [(rule.__name__.lstrip("_"), partial(rule, checked)) for rule in ENVIRONMENT_RULES]


def loss_checks(plugin: Ratio | Bound | Correction | Aggregation) -> list[Check]:
    """Returns the rules for a part of a loss, each with a name."""
    if isinstance(plugin, Ratio):
        return _checks("importance ratio", plugin, RATIO_RULES)
    if isinstance(plugin, Bound):
        return _checks("bound", plugin, BOUND_RULES)
    if isinstance(plugin, Correction):
        return _checks("correction of the sampler", plugin, CORRECTION_RULES)
    return _checks("aggregation", plugin, AGGREGATION_RULES)


def sampler_checks(plugin: Sampler) -> list[Check]:
    """Returns the rules for samplers, each with a name."""
    return _checks("sampler", plugin, SAMPLER_RULES)


def policy_checks(plugin: Policy, prompts: Sequence[Prompt] = DEFAULT_PROMPTS) -> list[Check]:
    """Returns the rules for policies and for the capabilities of this one, each with a name.

    Args:
        plugin: a policy as its source loads it, on the CPU.
        prompts: at least two that it can read, of unequal lengths; with images if it needs them.
    """
    offered = [rules for kind, rules in CAPABILITY_RULES.items() if isinstance(plugin, kind)]
    checked = CheckedPolicy("policy", plugin, prompts)
    return [
        (rule.__name__.lstrip("_"), partial(rule, checked))
        for rules in (POLICY_RULES, *offered)
        for rule in rules
    ]


def parametrize_with_checks(plugins: Sequence[object]) -> Callable[[Any], Any]:
    """Decorates a test that takes ``check`` and calls it: one named test for each rule.

    Args:
        plugins: instances of any kinds that the kit has rules for, mixed as you like.
    """
    import pytest  # only for those who test with it

    cases = [
        pytest.param(check, id=f"{type(plugin).__name__}-{name}")
        for plugin in plugins
        for name, check in _checks_of(plugin)
    ]
    return pytest.mark.parametrize("check", cases)


def _checks_of(plugin: object) -> list[Check]:
    for protocol, checks in _KINDS.items():
        if isinstance(plugin, protocol):
            return checks(plugin)
    raise PluginError(
        f"{plugin!r} is no plug-in that the kit knows; expected an instance of a segmenter, a value"
        " estimator, an advantage scheme, a process reward, a task, an environment, a sampler, a"
        " policy, an importance ratio, a bound, a correction or an aggregation. Give instances"
        " rather than classes, and name the protocol as base."
    )


def _checks(kind: str, plugin: object, rules: Sequence[Rule]) -> list[Check]:
    checked = CheckedPlugin(kind, plugin)
    return [(rule.__name__.lstrip("_"), partial(rule, checked)) for rule in rules]


def _run(checks: Sequence[Check]) -> None:
    for _, check in checks:
        check()


_KINDS: dict[type, Callable[[Any], list[Check]]] = {
    Segmenter: segmenter_checks,
    ValueEstimator: estimator_checks,
    ProcessReward: process_reward_checks,
    Task: task_checks,
    Environment: environment_checks,
    Sampler: sampler_checks,
    Policy: policy_checks,
    Ratio: loss_checks,
    Bound: loss_checks,
    Correction: loss_checks,
    Aggregation: loss_checks,
    # Last, since whatever can be called looks like one.
    AdvantageScheme: advantage_checks,
}
