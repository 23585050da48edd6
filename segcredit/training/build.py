"""From a config to live objects: the only place where config meets registry."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from segcredit import registry
from segcredit.config import LossConfig, RunConfig, TrainConfig, ValueConfig
from segcredit.environments import InEnvironment, LimitedObservations
from segcredit.errors import ConfigError, PolicyError, TrainingError, blame, require_type
from segcredit.objective import Aggregation, Correction, Importance, Reinforce, Surrogate
from segcredit.policy.module_copies import frozen_copy
from segcredit.protocols import (
    AdvantageScheme,
    Environment,
    Policy,
    ProcessReward,
    Prompt,
    PromptStream,
    Segmenter,
    SupportsResume,
    SupportsTurns,
    Task,
    ValueEstimator,
    capability,
    checked_prompts,
    missing_members,
)
from segcredit.records.run_directory import DATA
from segcredit.records.stored_config import digest
from segcredit.rng import derived_seed, forked, stream
from segcredit.training.data_identity import identity_of
from segcredit.training.distributed.fsdp import shard, whole
from segcredit.training.distributed.processes import Processes
from segcredit.training.master_weights import MasterWeights
from segcredit.training.optimizer import Trained, trained

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """The plug-ins that decide credit and loss: where credit is cut, valued, scaled and used."""

    segmenter: Segmenter
    ratio_segmenter: Segmenter | None
    """Segments of the importance ratio, where they are not those of credit."""
    estimator: ValueEstimator
    advantage: AdvantageScheme
    process_reward: ProcessReward | None
    surrogate: Surrogate
    correction: Correction | None
    """Factors of tokens' losses where sampler and policy differ."""
    aggregation: Aggregation
    """Aggregation of the policy's loss over tokens."""
    value_aggregation: Aggregation
    """Aggregation of the value estimator's loss over segments."""
    credit_scheme: AdvantageScheme | None
    """The scheme over the sum of several credits."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The live objects of a run: task and prompts, the policy, the method, its state."""

    config: RunConfig
    processes: Processes
    task: Task
    held_out: tuple[Prompt, ...]
    pool: tuple[Prompt, ...]
    """Candidates of a weighted choice of prompts, each once; empty where it is uniform."""
    prompts: PromptStream
    """The prompts of the steps: the same for every method with this seed."""
    further_prompts: PromptStream
    """The prompts of warm-up iterations and further rounds of sampling, which few methods have."""
    policy: Trained[Policy]
    reference: Policy | None
    """The frozen starting policy, where a KL term or the estimator reads it."""
    method: Method
    state: Trained[nn.Module]
    """The value estimator's state."""
    further: tuple[FurtherCredit, ...] = ()
    """Credits that are added to the method's own."""

    @property
    def credits(self) -> tuple[Run, ...]:
        """The run of each credit: this one, then one with each further credit as its method."""
        return (self, *(each.run for each in self.further))

    @property
    def trained_parts(self) -> dict[str, Trained[Any]]:
        """The parts whose train state a checkpoint keeps, by their names there."""
        states = {f"estimator_{n}": own.state for n, own in enumerate(self.credits)}
        return {"policy": self.policy, "estimator": states.pop("estimator_0"), **states}

    @property
    def actor(self) -> Policy:
        """The policy itself, for sampling and scoring."""
        return self.policy.module

    @property
    def sharded(self) -> bool:
        """True where each process holds a part of the parameters in training."""
        return self.config.train.parallel == "sharded" and self.processes.count > 1

    def sync(self) -> None:
        """Tells the policy's sampler of new weights; no process samples before all have told it.

        A sampler in the process may read the model as it likes: sharded parameters are gathered
        for it. An engine takes them by ``segcredit.whole_weights``, one after the other.

        Raises:
            PluginError: the sampler raised; or TrainingError, where another process's did.
        """
        gathers = self.actor.samples_in_process
        with self.processes.error_barrier(), whole(*[self.policy.network] * gathers):
            self.actor.sync()


@dataclass(frozen=True, slots=True, eq=False)
class FurtherCredit:
    """A credit of ``[[credit]]``, which is added to the method's own."""

    weight: float
    """Factor of the advantages."""
    run: Run
    """The same run with this credit as its method, and with its estimator's state."""


def build(
    config: RunConfig,
    processes: Processes | None = None,
    *,
    task: Task | None = None,
    policy: nn.Module | None = None,
    train_policy: bool = True,
) -> Run:
    """Loads the model, starts the estimator, prepares both for the device.

    Args:
        config: complete. Its ``task`` and ``policy`` are names in messages and records alone where
            the object is given.
        processes: those that share the run; None = this one, which must be the only one.
        task: gives prompts and verdicts; None = as the config has it.
        policy: a ``Policy``, the same on every process; None = as the config has it.
        train_policy: whether the run steps the policy. Where another engine does, there are
            neither optimizer nor master weights here.

    Raises:
        RegistryError, PolicyError, TaskError: something cannot be had; says what.
        PluginError: a plug-in raised while the run was built, or gave what does not fit.
        TrainingError: more than one process for what is done in one; another process failed.
        ConfigError: a step has fewer prompts than there are processes.
    """
    processes = processes or _alone(config)
    _require_prompts(config, processes)
    task = task or task_of(config)
    policy = policy or _policy(config, task, processes)
    if not isinstance(policy, Policy):
        raise PolicyError(
            f"policy {config.policy['name']!r} loaded a {type(policy).__name__} that lacks"
            f" {', '.join(missing_members(policy, Policy))}; expected every member of"
            " segcredit.Policy. Usually a method was misspelt or left out."
        )
    method = _method(config)
    _require_capabilities(config, method, policy, task)
    reference = _reference(config, processes, method, policy)
    state = _state(config, processes, method.estimator, policy)
    with blame("task", config.task["name"], task):
        held_out = checked_prompts("evaluation", task.evaluation(config.evaluate.prompts), 0)
        names = ("prompts", "further prompts")
        streams = [task.stream(derived_seed(config.seed, name)) for name in names]
        require_type("stream", streams[0], PromptStream)
    found = Run(
        config=config,
        processes=processes,
        task=_with_limit(config, task),
        held_out=tuple(held_out),
        pool=_pool(task, config),
        prompts=streams[0],
        further_prompts=streams[1],
        policy=_trained(config, processes, policy, config.train, _uses(policy), steps=train_policy),
        reference=reference,
        method=method,
        state=state,
    )
    _warn_of_no_turns(found)
    return replace(found, further=_further(found))


def _warn_of_no_turns(run: Run) -> None:
    """Warns of a credit drawn from the rewards of turns where there is one turn."""
    sources = {run.config.reward_source, *(each.reward_source for each in run.config.credit)}
    if "turn" in sources and _world(run.config, run.task).max_turns == 1:
        warnings.warn(
            f"a reward_source is 'turn' and task {run.config.task['name']!r} has completions of one"
            " turn; expected several, since no turn comes before the last one: that credit is 0."
            " Usually the task is meant to have an environment.",
            UserWarning,
            stacklevel=3,
        )


def _further(run: Run) -> tuple[FurtherCredit, ...]:
    """Builds the further credits of a run's config; they share its policy and its reference."""
    found: list[FurtherCredit] = []
    for place, each in enumerate(run.config.credit):
        own = with_credit(run, run.config.of_credit(place))
        _require_capabilities(own.config, own.method, run.actor, run.task)
        run = replace(run, reference=own.reference)  # copied once, whoever reads it
        found.append(FurtherCredit(each.weight, own))
    return tuple(found)


def task_of(config: RunConfig) -> Task:
    """Builds a config's task, in the environment that the config names, if any."""
    task = registry.tasks.from_table(config.task)
    within = _optional(registry.environments, config.environment)
    return task if within is None else InEnvironment(task, within)


def _with_limit(config: RunConfig, task: Task) -> Task:
    """Returns a task whose observations are cut as the config says; itself where none come."""
    world, limit = _world(config, task), config.rollouts.observation_limit
    if world.max_turns == 1 or not limit:
        return task
    return InEnvironment(task, LimitedObservations(world, limit))


def _world(config: RunConfig, task: Task) -> Environment:
    """Returns a task's environment.

    Raises:
        PluginError: it cannot be had, or is none; names the task.
    """
    with blame("task", config.task["name"], task):
        world = task.environment()
        require_type("environment", world, Environment)
        return world


def _reference(
    config: RunConfig, processes: Processes, method: Method, policy: nn.Module
) -> Policy | None:
    """Copies the starting policy where a KL term or the estimator reads it; one copy for both."""
    kl = config.loss.kl_penalty > 0 or config.loss.kl_loss > 0
    if not kl and "reference" not in method.estimator.reads:
        return None
    reference = frozen_copy(policy)
    _shard(config, processes, reference, _USES)
    return cast(Policy, reference.to(processes.device))


def _require_capabilities(config: RunConfig, method: Method, policy: Policy, task: Task) -> None:
    """Raises a PolicyError that names who asked where the policy lacks a capability."""
    for wanted in method.estimator.needs:
        capability(policy, wanted, f"estimator {config.estimator['name']!r}")
    if config.rollouts.layout == "tree":
        capability(policy, SupportsResume, "rollouts.layout='tree'")
    if _world(config, task).max_turns > 1:
        named = config.environment or config.task
        kind = "task" if config.environment is None else "environment"
        for wanted in (SupportsResume, SupportsTurns):
            capability(policy, wanted, f"{kind} {named['name']!r}, of several turns,")


_USES = ("alternatives", "logit_gradients")
"""Names of the methods that run a policy's network, besides its call and its sampling."""


def _uses(policy: Policy) -> tuple[str, ...]:
    """Returns the names of the methods that run the network in this process."""
    return (*_USES, *("generate", "resume") * policy.samples_in_process)


def _trained(
    config: RunConfig,
    processes: Processes,
    module: Module,
    own: TrainConfig | ValueConfig,
    uses: Sequence[str] = (),
    *,
    steps: bool = True,
) -> Trained[Module]:
    """Builds a module's train state on its device, sharded where the config says so.

    Where it is not stepped here it stays as it is, and where it is.
    """
    if not steps:
        return Trained(module, module, MasterWeights(nn.Module()), None, None, 0.0, 0)
    # Before it goes to the device, which need not have room for all of it.
    _shard(config, processes, module, uses)
    module = module.to(processes.device)
    return trained(
        processes.device, module, own.learning_rate, own.gradient_clip, own.epochs, config.train
    )


def _shard(config: RunConfig, processes: Processes, module: nn.Module, uses: Sequence[str]) -> None:
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
    """Returns the processes that were started for a run.

    Raises:
        ConfigError: the config asks for another number.
    """
    processes = Processes.started(config.train.processes, cpu=config.train.device == "cpu")
    if config.train.device == "cuda" and processes.device.type != "cuda":
        raise ConfigError(
            f"train.device is 'cuda', but torch {torch.__version__} finds no CUDA here; expected a"
            " device of NVIDIA or AMD with its driver. Usually the CPU's build of torch is"
            " installed, or CUDA_VISIBLE_DEVICES hides the device. Install torch with CUDA, or set"
            " train.device to 'auto' or 'cpu'."
        )
    return processes


def _require_prompts(config: RunConfig, processes: Processes) -> None:
    if config.rollouts.ahead and processes.count > 1:
        raise ConfigError(
            f"rollouts.ahead is 1 and {processes.count} processes share the run; expected one,"
            " since sampling ahead does not wait for other processes. Set rollouts.ahead = 0, or"
            " start one process."
        )
    if config.rollouts.prompts < processes.count:
        raise ConfigError(
            f"rollouts.prompts is {config.rollouts.prompts} and {processes.count} processes share"
            " them; expected at least one prompt for each, since the completions of a prompt stay"
            " together. Raise rollouts.prompts, or start fewer processes."
        )


def _policy(config: RunConfig, task: Task, processes: Processes) -> nn.Module:
    """Loads the policy, process 0 first: the others then find it in the cache."""
    source = registry.policies.from_table(config.policy)
    sampler = registry.samplers.from_table(config.sampler)
    loaded: list[nn.Module] = []
    for turn in (True, False) if processes.count > 1 else (True,):
        with processes.error_barrier():
            if processes.first == turn:
                temperature = config.rollouts.temperature
                with blame("policy", config.policy["name"], source):
                    found = source.load(
                        task, sampler, temperature=temperature, seed=config.starting_seed
                    )
                    require_type("load", found, nn.Module)
                loaded = [found]
    (policy,) = loaded
    processes.broadcast([*policy.parameters(), *policy.buffers()])
    return policy


def with_credit(run: Run, config: RunConfig) -> Run:
    """Returns the same policy and task with a config's method, the estimator's state anew.

    Args:
        run: whose policy, task and prompts are shared, not copied.
        config: differs from that of ``run`` in plug-ins of credit, and in ``train.value``, alone.
    """
    method = _method(config)
    reference = run.reference
    if reference is None:
        reference = _reference(config, run.processes, method, run.policy.network)
    state = _state(config, run.processes, method.estimator, run.policy.module)
    found = replace(run, config=config, method=method, reference=reference, state=state, further=())
    return replace(found, further=_further(found))


def _method(config: RunConfig) -> Method:
    aggregation = registry.aggregations.from_table(config.loss.aggregate)
    return Method(
        segmenter=registry.segmenters.from_table(config.segmenter),
        ratio_segmenter=_optional(registry.segmenters, config.loss.ratio_segmenter),
        estimator=registry.estimators.from_table(config.estimator),
        advantage=registry.advantages.from_table(config.advantage),
        process_reward=_optional(registry.process_rewards, config.process_reward),
        surrogate=_surrogate(config.loss),
        correction=_optional(registry.corrections, config.loss.correction),
        aggregation=aggregation.for_length(float(config.rollouts.max_new_tokens)),
        value_aggregation=registry.aggregations.from_table(config.train.value.aggregate),
        credit_scheme=_optional(registry.advantages, config.credit_scheme),
    )


def _surrogate(loss: LossConfig) -> Surrogate:
    """Returns the ratio under its bound; REINFORCE where there is none."""
    ratio, bound = _optional(registry.ratios, loss.ratio), _optional(registry.bounds, loss.bound)
    return Reinforce() if ratio is None or bound is None else Importance(ratio, bound)


def _state(
    config: RunConfig, processes: Processes, estimator: ValueEstimator, policy: Policy
) -> Trained[nn.Module]:
    """Starts the estimator's state, the same on every process.

    Raises:
        ConfigError: it is trained on what the policy is sure of.
    """
    name = config.estimator["name"]
    with forked(config.starting_seed, "estimator"), blame("estimator", name, estimator):
        state = estimator.start(policy)
        require_type("start", state, nn.Module)
    trains = any(parameter.requires_grad for parameter in state.parameters())
    if trains and "logprobs" in estimator.reads and not config.train.value.live_logprobs:
        raise ConfigError(
            f"estimator {name!r} is trained and reads the current policy's log-probs and"
            " entropies; expected those of the frozen starting policy, or none. Such a critic"
            " learns that an unlikely token is a mistake, and the policy then learns to please it"
            " by becoming confident: with a small lambda its reward falls to nearly 0. Let it read"
            " the starting policy, such as logprobs = 'reference', or set"
            " train.value.live_logprobs = true to study just that."
        )
    processes.broadcast([*state.parameters(), *state.buffers()])
    return _trained(config, processes, state, config.train.value)


def _pool(task: Task, config: RunConfig) -> tuple[Prompt, ...]:
    """Draws prompts once, the same for every method with this seed."""
    sizes = config.rollouts
    if sizes.prompt_choice == "uniform":
        return ()
    with blame("task", config.task["name"], task):
        drawn = task.prompts(sizes.prompt_pool, stream(config.seed, "pool"))
        checked_prompts("prompts", drawn, 0)
    pool = tuple({prompt.key: prompt for prompt in drawn}.values())
    if len(pool) < sizes.prompts:
        raise ConfigError(
            f"rollouts.prompt_pool gives {len(pool)} different prompts but a step takes"
            f" {sizes.prompts} of them; expected at least as many. Raise rollouts.prompt_pool."
        )
    return pool


def _optional(plugins: registry.Registry[T], table: dict[str, Any] | None) -> T | None:
    return None if table is None else plugins.from_table(table)


def run_hash(config: RunConfig) -> str:
    """Returns ten hexadecimal digits that name the resolved config and the code of its plug-ins."""
    return digest({"config": config.identity(), "plugins": plugin_identities(config)})[:10]


def plugin_identities(config: RunConfig) -> dict[str, str]:
    """Returns distribution and version of every plug-in used, or a hash of its source file."""
    return identities(config.plugins())


def identities(
    plugins: Iterable[tuple[str, registry.Registry[Any], dict[str, Any]]],
) -> dict[str, str]:
    """Returns the same of plug-ins by dotted path, registry and table; those inside them too."""
    return dict(each for path, kind, table in plugins for each in kind.identities(path, table))


def environment(config: RunConfig) -> dict[str, Any]:
    """Returns what else a run's metrics depend on: versions, plug-ins, revision, threads."""
    packages = ("segcredit", "torch", "transformers", "accelerate", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "plugins": plugin_identities(config),
        "git_revision": _git_revision(),
        DATA: data_of(config),
        "seed": config.seed,
        "torch_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def data_of(config: RunConfig) -> dict[str, Any]:
    """Returns rows and checksum of the local data that a config's task reads, by their paths."""
    return identity_of(registry.tasks.from_table(config.task).data_files())


def _git_revision() -> str:
    """Returns the revision of the code; empty where it is no checkout, or git is not there."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
