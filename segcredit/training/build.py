"""From a config to live objects: the only place where config meets registry."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from segcredit import registry
from segcredit.config import RunConfig, TrainConfig, ValueConfig
from segcredit.errors import ConfigError, TrainingError
from segcredit.policy.module_copies import frozen_copy
from segcredit.protocols import (
    AdvantageScheme,
    Policy,
    ProcessReward,
    Prompt,
    PromptStream,
    Segmenter,
    Task,
    ValueEstimator,
)
from segcredit.rng import derived_seed, forked, stream
from segcredit.training.distributed.fsdp import shard, whole
from segcredit.training.distributed.processes import Processes
from segcredit.training.optimizer import Learner, learner

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Every live object of a run."""

    config: RunConfig
    processes: Processes
    task: Task
    held_out: tuple[Prompt, ...]
    pool: tuple[Prompt, ...]
    """Candidates of a weighted choice of prompts, each once; empty where it is uniform."""
    prompts: PromptStream
    """Of the steps: the same for every method with this seed."""
    further_prompts: PromptStream
    """Of warm-up iterations and further rounds of sampling, which not every method has."""
    policy: Learner
    reference: Policy | None
    """The frozen starting policy, where a KL term needs it."""
    segmenter: Segmenter
    ratio_segmenter: Segmenter | None
    estimator: ValueEstimator
    state: Learner
    """The value estimator's state."""
    advantage: AdvantageScheme
    process_reward: ProcessReward | None

    @property
    def actor(self) -> Policy:
        """The policy itself, for sampling and scoring."""
        return cast(Policy, self.policy.module)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the parameters in training."""
        return self.config.train.parallel == "sharded" and self.processes.count > 1

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every process holds all parameters; needed for whatever is not training."""
        modules = [self.policy.module, self.state.module]
        return whole(*modules, *([] if self.reference is None else [cast(Any, self.reference)]))


def build(config: RunConfig, processes: Processes | None = None) -> Run:
    """Load the model, start the estimator, prepare both for the device.

    Args:
        config: complete.
        processes: those that share the run; None = this one, which must be the only one.

    Raises:
        RegistryError, PolicyError, TaskError: something cannot be had; says what.
        TrainingError: more than one process for what is done in one; another process failed.
        ConfigError: a step has fewer prompts than there are processes.
    """
    processes = processes or _alone(config)
    _require_prompts(config, processes)
    task = _named(registry.tasks, config.task)
    policy = _policy(config, task, processes)
    train = config.train
    needs_reference = config.loss.kl_penalty > 0 or config.loss.kl_loss > 0
    reference = frozen_copy(policy) if needs_reference else None
    credit = _credit(config, processes, cast(Policy, policy))
    if reference is not None:
        reference = reference.to(processes.device)
        _spread(config, processes, reference, _USES)
    return Run(
        config=config,
        processes=processes,
        task=task,
        held_out=tuple(task.evaluation(config.evaluate.prompts)),
        pool=_pool(task, config),
        prompts=task.stream(derived_seed(config.seed, "prompts")),
        further_prompts=task.stream(derived_seed(config.seed, "further prompts")),
        policy=_learner(config, processes, policy, train, _USES),
        reference=cast("Policy | None", reference),
        **credit,
    )


_USES = ("generate", "resume", "alternatives")
"""What runs a policy's network, besides its call."""


def _learner(
    config: RunConfig,
    processes: Processes,
    module: nn.Module,
    own: TrainConfig | ValueConfig,
    uses: Sequence[str] = (),
) -> Learner:
    """A module on its device, spread over the processes where the config says so."""
    module = module.to(processes.device)
    _spread(config, processes, module, uses)
    return learner(
        processes.device, module, own.learning_rate, own.gradient_clip, own.epochs, config.train
    )


def _spread(
    config: RunConfig, processes: Processes, module: nn.Module, uses: Sequence[str]
) -> None:
    if config.train.parallel == "sharded":
        shard(module, processes, uses)


def _alone(config: RunConfig) -> Processes:
    found = started_processes(config)
    if found.count > 1:
        raise TrainingError(
            f"{found.count} processes were started for what is done in one. Only 'segcredit train'"
            " is shared by several: start other commands without torchrun."
        )
    return found


def started_processes(config: RunConfig) -> Processes:
    """The processes that were started for a run.

    Raises:
        ConfigError: the config asks for another number.
    """
    return Processes.started(config.train.processes, cpu=config.train.device == "cpu")


def _require_prompts(config: RunConfig, processes: Processes) -> None:
    if config.rollouts.prompts < processes.count:
        raise ConfigError(
            f"rollouts.prompts is {config.rollouts.prompts} and {processes.count} processes share"
            " them; expected at least one prompt for each, since the completions of a prompt stay"
            " together. Raise rollouts.prompts, or start fewer processes."
        )


def _policy(config: RunConfig, task: Task, processes: Processes) -> nn.Module:
    """Process 0 loads first: what it downloads or trains, the others find in the cache."""
    source, sampler = (
        _named(registry.policies, config.policy),
        _named(registry.samplers, config.sampler),
    )
    loaded: list[nn.Module] = []
    for turn in (True, False) if processes.count > 1 else (True,):
        with processes.together():
            if processes.first == turn:
                temperature = config.rollouts.temperature
                loaded = [source.load(task, sampler, temperature=temperature, seed=config.seed)]
    (policy,) = loaded
    processes.align([*policy.parameters(), *policy.buffers()])
    return policy


def with_credit(run: Run, config: RunConfig) -> Run:
    """The same policy and task with a config's plug-ins of credit, the estimator's state anew.

    Args:
        run: whose policy, task and prompts are shared, not copied.
        config: differs from that of ``run`` in plug-ins of credit, and in ``train.value``, alone.
    """
    return replace(run, config=config, **_credit(config, run.processes, run.actor))


def _credit(config: RunConfig, processes: Processes, policy: Policy) -> dict[str, Any]:
    """The fields of a run that segment, value and credit."""
    estimator = _named(registry.estimators, config.estimator)
    with forked(config.seed, "estimator"):
        state = estimator.start(policy)
    processes.align([*state.parameters(), *state.buffers()])
    return {
        "segmenter": _named(registry.segmenters, config.segmenter),
        "ratio_segmenter": _optional(registry.segmenters, config.loss.ratio_segmenter),
        "estimator": estimator,
        "state": _learner(config, processes, state, config.train.value),
        "advantage": _named(registry.advantages, config.advantage),
        "process_reward": _optional(registry.process_rewards, config.process_reward),
    }


def _pool(task: Task, config: RunConfig) -> tuple[Prompt, ...]:
    """Prompts drawn once, the same for every method with this seed."""
    sizes = config.rollouts
    if sizes.prompt_choice == "uniform":
        return ()
    drawn = task.prompts(sizes.prompt_pool, stream(config.seed, "pool"))
    pool = tuple({prompt.key: prompt for prompt in drawn}.values())
    if len(pool) < sizes.prompts:
        raise ConfigError(
            f"rollouts.prompt_pool gives {len(pool)} different prompts but a step takes"
            f" {sizes.prompts} of them; expected at least as many. Raise rollouts.prompt_pool."
        )
    return pool


def _named(plugins: registry.Registry[T], table: dict[str, Any]) -> T:
    return plugins.from_table(table)


def _optional(plugins: registry.Registry[T], table: dict[str, Any] | None) -> T | None:
    return None if table is None else plugins.from_table(table)


def run_hash(config: RunConfig) -> str:
    """Ten hexadecimal digits that name the resolved config and the code of its plug-ins."""
    content = {"config": config.identity(), "plugins": plugin_identities(config)}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def plugin_identities(config: RunConfig) -> dict[str, str]:
    """Distribution and version of every plug-in used, or a hash of its source file."""
    return identities(config.plugins())


def identities(
    plugins: Iterable[tuple[str, registry.Registry[Any], dict[str, Any]]],
) -> dict[str, str]:
    """The same of plug-ins given by dotted path, registry and table; those inside them too."""
    return {
        inner_path: kind.identity(name)
        for path, kind, table in plugins
        for inner_path, name in _names(path, table)
    }


def _names(path: str, table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A plug-in and the plug-ins inside it, by dotted path."""
    yield path, str(table["name"])
    for key, value in table.items():
        if isinstance(value, dict) and "name" in value:
            yield from _names(f"{path}.{key}", value)  # pyright: ignore[reportUnknownArgumentType]


def environment(config: RunConfig) -> dict[str, Any]:
    """What else a run's figures depend on: versions, plug-ins, revision, threads."""
    packages = ("segcredit", "torch", "transformers", "accelerate", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "plugins": plugin_identities(config),
        "git_revision": _git_revision(),
        "seed": config.seed,
        "torch_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _git_revision() -> str:
    """Of the code that runs; empty where it is not a checkout, or git is not there."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
