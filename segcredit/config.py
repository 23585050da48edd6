"""RunConfig: what a run is made of, read from TOML and checked key by key.

Three layers, each laid over the one before: the embedded base (``methods/base.toml``), the preset
that ``method`` names, the file's own keys; then ``dotted.key=value`` overrides. A plug-in is a
bare name or a table with ``name`` and options; a bare name, or a table with a name, replaces the
table below it whole, while a dotted key changes one option of the plug-in that is there.
"""

from __future__ import annotations

import copy
import os
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from importlib import resources
from itertools import chain
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from segcredit import old_keys, registry
from segcredit.errors import (
    UNREADABLE,
    ConfigError,
    did_you_mean,
    parser_words,
    pydantic_words,
    shown,
)
from segcredit.objective.policy_loss import KL
from segcredit.types import SamplingParams, stop_strings


def _as_table(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError("expected a plug-in's name, or a table with its name and options")
    return cast(object, value)


Plugin = Annotated[dict[str, Any], BeforeValidator(_as_table)]
"""A plug-in: a bare name, or a table of ``name`` and the plug-in's options."""

NONE = "none"
"""The absence of a plug-in, as a config writes it: TOML has no None."""


def _as_optional(value: object) -> object:
    if value is None or value == NONE or value == {"name": NONE}:
        return None
    table = _as_table(value)
    if isinstance(table, Mapping) and table["name"] == NONE:
        raise ValueError(f"{NONE!r} is the absence of a plug-in and has no options")
    return cast(object, table)


def _as_written(plugin: dict[str, Any] | None) -> dict[str, Any] | str:
    return NONE if plugin is None else plugin


OptionalPlugin = Annotated[
    dict[str, Any] | None, BeforeValidator(_as_optional), PlainSerializer(_as_written)
]
"""A plug-in, or ``none``."""

Section = TypeVar("Section", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, le=10**6)]
"""A number of prompts, tokens or processes: from one to a million."""
Interval = Annotated[int, Field(ge=1, le=10**9)]
"""Steps between two events; one beyond the last step means never."""
Weight = Annotated[float, Field(ge=0, le=10**6)]
"""The weight of a term in rewards or in the loss."""
Rate = Annotated[float, Field(gt=0, le=10)]
"""A learning rate."""
Norm = Annotated[float, Field(ge=1e-12, le=1e12)]
"""A bound on a gradient's norm; one of 1e12 clips nothing."""
Share = Annotated[float, Field(ge=1e-9, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
"""A decay of AdamW's moments, which are divided by 1 - β^t."""

_MOST_TOKENS = 2**32
"""In one batch: some 64 bytes each, hence more memory than a machine has."""


def require_tokens(
    prompts: int, completions: int, longest: int, error: type[ValueError], place: str
) -> None:
    """Refuses a batch of completions that no machine can hold."""
    if prompts * completions * longest > _MOST_TOKENS:
        raise error(
            f"{place}: {prompts} prompts of {completions} completions of up to {longest} tokens"
            f" are {prompts * completions * longest:,} tokens in one batch; expected at most"
            f" {_MOST_TOKENS:,}, since no machine has the memory. Lower one of the three."
        )


class RolloutsConfig(_Section):
    """The sampling of each step."""

    prompts: Count
    """Prompts of each step."""
    completions: Count
    """Completions of each prompt: the group."""
    temperature: float = Field(ge=0.01, le=100)
    """Logits are divided by it: below 0.01 a likeliest token is all that is left of them."""
    max_new_tokens: Count
    """Tokens of the longest completion."""
    stop: Annotated[tuple[str, ...], BeforeValidator(stop_strings)] = Field((), max_length=64)
    """Strings that end a completion: with the token that completes the first one in its text."""
    observation_limit: int = Field(2000, ge=0, le=10**6)
    """Characters of an environment's longest observation, which is cut there; 0 = no limit."""
    layout: Literal["independent", "tree"]
    """Independent completions of a prompt, or a tree whose rows share prefixes."""
    branches: tuple[Count, ...] = Field(max_length=64)
    """Children of a node at each level of a tree, the trunks first; level k branches where the
    k-th segment ends. Their product is ``completions``."""
    dynamic_sampling: bool
    """Draws further prompts for groups whose rewards are all equal."""
    dynamic_sampling_rounds: int = Field(ge=1, le=1000)
    """Most rounds of sampling a step; after them, the groups that were found are used."""
    prompt_choice: Literal["uniform", "weighted"]
    """``weighted``: from a fixed pool, by the estimator's ``prompt_weights``."""
    prompt_pool: Count
    """Prompts drawn from the task once, as the candidates of a weighted choice."""
    overlong_buffer: int = Field(ge=0, le=10**6)
    """Last tokens before ``max_new_tokens`` over which a penalty on length grows from 0."""
    overlong_penalty: Weight
    """Penalty at ``max_new_tokens``, in reward units."""
    ahead: int = Field(0, ge=0, le=1)
    """1: the next step's completions are sampled before this step's update, by an engine beside it;
    they are then one update old, see ``loss.correction``. In one process."""

    def sampling(self) -> SamplingParams:
        """Returns the settings of a completion, drawn at the policy's temperature."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, stop=self.stop)

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = write(self)
        # Runs that were stored before there were these keys keep their identity.
        if not self.stop:
            found.pop("stop", None)
        if not self.ahead:
            found.pop("ahead", None)
        if self.observation_limit == type(self).model_fields["observation_limit"].default:
            found.pop("observation_limit", None)
        return found

    @model_validator(mode="after")
    def _sizes_fit(self) -> RolloutsConfig:
        if self.layout == "tree" and prod(self.branches) != self.completions:
            raise ValueError(
                f"layout is 'tree' and branches are {list(self.branches)}; expected numbers whose"
                f" product is completions = {self.completions}, such as [2, 2, 2] for 8"
            )
        if self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"overlong_buffer is {self.overlong_buffer} but max_new_tokens is"
                f" {self.max_new_tokens}; expected no more, since even an empty completion would be"
                " penalised"
            )
        require_tokens(self.prompts, self.completions, self.max_new_tokens, ValueError, "one step")
        if self.layout == "tree" and self.dynamic_sampling:
            raise ValueError("dynamic_sampling is for layout = 'independent' alone")
        if self.layout == "tree" and self.ahead:
            raise ValueError(
                "ahead is 1 and layout is 'tree'; expected ahead = 0, since a tree is cut and"
                " scored while it grows"
            )
        return self


class LossConfig(_Section):
    """The policy's objective, see ``segcredit.objective.policy_loss.surrogate_loss``."""

    ratio: OptionalPlugin
    """The level of the importance ratio; ``none`` is REINFORCE, with neither ratio nor bound."""
    bound: Plugin | None = None
    """The bound of the ratio; None with ``ratio = "none"`` alone."""
    correction: OptionalPlugin = None
    """Factors of tokens' losses where the sampler's log-probs are not the policy's own: an engine
    that rounds in other ways, or is an update behind. ``none``: no factor."""
    tokens: Literal["all", "low_probability", "high_entropy"]
    """The action tokens that the loss is taken over."""
    probability_below: Share
    """The bound of ``low_probability``, under the sampling policy."""
    entropy_share: Share
    """The share of the batch's tokens that ``high_entropy`` takes."""
    shared_tokens: Literal["once", "in_each_row"]
    """The count of a token that several completions of a tree share: once, or in each row."""
    count: Literal["chosen", "all"]
    """The tokens in the loss's denominators: the chosen ones, or those left out as well."""
    aggregate: Plugin
    """The mean or sum that makes one number of the tokens' losses."""
    ratio_segmenter: Plugin | None = None
    """Over whose segments ``ratio = "segment"`` averages; None = the credit segments."""
    kl_penalty: Weight
    """β of the k1 penalty in the token rewards."""
    kl_loss: Weight
    """Weight of the KL estimate added to the loss."""
    kl_estimator: KL
    """The estimate of KL(π ‖ π_reference) in the loss."""
    kl_limit: float = Field(ge=1e-12, allow_inf_nan=True)
    """k3 is clamped to ± this; inf = not at all."""
    imitation: Weight
    """Weight of the mean of −log π over the tokens of completions with a positive reward."""

    @model_validator(mode="after")
    def _ratio_and_bound_fit(self) -> LossConfig:
        if self.ratio is None and (given := self.bound or self.ratio_segmenter) is not None:
            key = "ratio_segmenter" if self.bound is None else "bound"
            raise ValueError(
                f"ratio is 'none' and {key} is {given['name']!r}; expected no {key}, since"
                " -A log π has no ratio. Leave it out, or choose a ratio, such as 'token'"
            )
        if self.ratio is not None and self.bound is None:
            raise ValueError(
                f"ratio is {self.ratio['name']!r} without a bound; expected one, such as bound ="
                ' { name = "clip", low = 0.2, high = 0.2 }'
            )
        return self


class PretrainingConfig(_Section):
    """Training of the value estimator on completions of the starting policy, before the first step.

    What comes out is kept in the cache, and shared by all runs whose estimator, policy, task,
    sampling and seed are the same, such as the cells of a grid over segmenters.
    """

    completions: int = Field(10_000, ge=1, le=10**8)
    """Completions, sampled in groups of ``rollouts.completions``; rounded up to whole steps."""
    epochs: int = Field(8, ge=1, le=10**4)
    """Passes over them. Each ends with a checkpoint in the cache."""
    rows: Count = 64
    """Completions of a minibatch."""
    learning_rate: Rate = 5e-3
    """The highest; it rises over the first 5 % of the minibatches and falls along a cosine."""
    final_rate: float = Field(0.02, ge=0, le=1)
    """Share of ``learning_rate`` that is left at the end."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Decays of AdamW's two moments."""
    weight_decay: float = Field(0.01, ge=0, le=1000)
    """AdamW's."""
    gradient_clip: Norm = 1.0
    """Largest gradient norm of a minibatch."""


class ValueConfig(_Section):
    """Training of the value estimator's state; ignored when it has no parameters."""

    learning_rate: Rate
    """AdamW's, of the value estimator."""
    gradient_clip: Norm
    """Largest gradient norm of the value estimator."""
    epochs: int = Field(ge=0, le=10**4)
    """Passes over a step's rollouts."""
    warmup_iterations: int = Field(ge=0, le=10**6)
    """Iterations before the first policy step in which the value estimator alone is trained."""
    aggregate: Plugin
    """The mean or sum that makes one number of the losses of segments, or of tokens."""
    pretraining: PretrainingConfig | None = None
    """Training before the first step with settings of its own; None = none."""
    live_logprobs: bool = False
    """Lets a trained estimator read the current policy's log-probs and entropies, by which the
    policy learns to please it: see docs/how-to/critics.md. For studies of just that."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = write(self)
        # Runs that were stored before there were these keys keep their identity.
        for name in ("pretraining", "live_logprobs"):
            if not found.get(name):
                found.pop(name, None)
        return found


class TrainConfig(_Section):
    """The loop: how long, in which pieces, with which optimizer."""

    steps: int = Field(ge=0, le=10**7)
    """Policy steps."""
    epochs: int = Field(ge=1, le=10**4)
    """Passes over a step's rollouts."""
    minibatches: Count
    """Optimizer steps in a pass."""
    micro_tokens: int = Field(ge=1, le=10**9)
    """Most completion tokens, padding included, in one forward pass."""
    learning_rate: Rate
    """AdamW's, of the policy."""
    betas: tuple[Beta, Beta]
    """Decays of AdamW's two moments."""
    weight_decay: float = Field(ge=0, le=1000)
    """AdamW's, of the policy."""
    gradient_clip: Norm
    """Largest gradient norm of the policy."""
    schedule: Literal["constant", "linear", "cosine"]
    """The course of the policy's learning rate after the warm-up."""
    warmup_steps: int = Field(ge=0, le=10**7)
    """Steps over which the learning rate grows."""
    patience: Interval
    """First steps after which a run whose rewards were all equal in every one of them stops."""
    device: Literal["auto", "cpu", "cuda"]
    """``auto`` takes an accelerator where there is one with float64, ``cuda`` insists on CUDA."""
    processes: Count | None = None
    """The number of processes that must have been started; None = any. Makes no other run."""
    parallel: Literal["replicated", "sharded"] = "replicated"
    """Each process's share of the parameters in training, all or a part. Makes no other run."""
    value: ValueConfig
    """Training of the value estimator."""


class EvaluateConfig(_Section):
    """Accuracy on held-out prompts, sampled and greedy."""

    every: Interval
    """Steps between evaluations."""
    prompts: Count
    """Held-out prompts."""
    completions: Count
    """Sampled completions of each prompt; with more than one there are pass@k and maj@k."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _installed(name: str) -> str:
    from accelerate.tracking import get_available_trackers

    if name not in map(str, cast(list[object], get_available_trackers())):
        raise ValueError(
            f"{name} is not installed here, so that it cannot show a run. Install it with"
            f" 'pip install {name}', or leave it out: metrics.jsonl is written in any case"
        )
    return name


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""A tracker, by the name of its package."""


class RecordConfig(_Section):
    """The tables that a run writes, and their steps."""

    every: Interval
    """Its multiples are recorded, and the last step: 1 for every step of a short run."""
    completions: bool
    """The table of completions, with their texts and rewards."""
    segments: bool
    """The table of segments, with values and advantages."""
    tokens: bool
    """The table of tokens, with log-probs and entropies; the largest."""
    trackers: Annotated[
        tuple[Annotated[TrackerName, AfterValidator(_installed)], ...], BeforeValidator(_as_list)
    ] = ()
    """Trackers that show the metrics as well. Makes no other run (``identity``)."""


class CheckpointConfig(_Section):
    """The steps between checkpoints of all that a resumed run needs, and the number kept."""

    every: Interval
    """Steps between checkpoints."""
    keep: Interval
    """Checkpoints kept; the oldest goes first."""


RewardSource = Literal["all", "outcome", "last", "turn", "process"]
"""The rewards that a credit is drawn from, see ``RunConfig.reward_source``."""


class CreditConfig(_Section):
    """A further credit: what it gives each token is added to the credit of the top-level keys."""

    weight: float = Field(1.0, ge=-(10**6), le=10**6)
    """Factor of what it gives each token; the credit of the top-level keys counts once."""
    reward_source: RewardSource = "all"
    """The rewards that it is drawn from, as the top-level key."""
    segmenter: Plugin
    """The places at which it cuts a completion, whatever the top-level segmenter does."""
    estimator: Plugin
    """The worth of the state before a segment; with a state of its own where it learns."""
    advantage: Plugin
    """The scheme that makes advantages of values and rewards; a scheme around it normalises."""
    process_reward: OptionalPlugin = None
    """Rewards of its single segments; ``none``: no such rewards."""

    @model_validator(mode="after")
    def _rewards_fit(self) -> CreditConfig:
        _require_process_reward(self.reward_source, self.process_reward)
        return self


def _require_process_reward(source: RewardSource, plugin: dict[str, Any] | None) -> None:
    if source == "process" and plugin is None:
        raise ValueError(
            "reward_source is 'process' without a process_reward; expected one, such as"
            " process_reward = 'equations'"
        )


class RunConfig(_Section):
    """One run, complete. Build it with ``load_config``."""

    method: str = ""
    """The preset below the file's own keys, and the run's label in tables."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """The seed of every random number of the run."""
    start_seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    """Seed of what a run starts from: first weights and demonstrations of a tiny policy, first
    weights of the value estimator, and its pretraining. Given, runs of several seeds start from
    one policy and one critic, as those of a pretrained model do; None = ``seed``."""
    task: Plugin
    """Prompts and their verifier."""
    environment: OptionalPlugin = None
    """The world that the task's prompts are worked on in over several turns, such as a tool;
    None = the task's own, which mostly has one turn."""
    policy: Plugin
    """The model that is trained."""
    sampler: Plugin
    """The engine that samples from the policy."""
    segmenter: Plugin
    """The places at which a completion is cut."""
    estimator: Plugin
    """The worth of the state before a segment."""
    advantage: Plugin
    """The scheme that makes advantages of values and rewards."""
    process_reward: Plugin | None = None
    """Rewards of single segments; None = none."""
    reward_source: RewardSource = "all"
    """The rewards that credit is drawn from: ``all`` of them, each where it stands; ``outcome``:
    all of a completion's, on its last token; ``last``: what stands there alone; ``turn``: those of
    the turns before the last one; ``process``: of ``process_reward`` alone, which otherwise adds to
    the others."""
    credit: tuple[CreditConfig, ...] = Field((), max_length=16)
    """Further credits, each a table under ``[[credit]]``: a token's advantage is the sum of theirs,
    times their weights, and of what the keys above make. The importance ratio keeps to the keys
    above."""
    credit_scheme: Plugin | None = None
    """A scheme over the sum of several credits, such as ``{ name = "whitened", inner = "td" }``. It
    gets a segment for each token, whose value is 0 and whose reward is its credit; None = the sum
    as it is."""
    rollouts: RolloutsConfig
    loss: LossConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    record: RecordConfig
    checkpoint: CheckpointConfig

    @model_validator(mode="after")
    def _evaluation_fits(self) -> RunConfig:
        held_out, longest = self.evaluate, self.rollouts.max_new_tokens
        require_tokens(held_out.prompts, held_out.completions, longest, ValueError, "evaluate")
        return self

    @model_validator(mode="after")
    def _credits_fit(self) -> RunConfig:
        _require_process_reward(self.reward_source, self.process_reward)
        if self.credit_scheme is not None and not self.credit:
            raise ValueError(
                f"credit_scheme is {self.credit_scheme['name']!r} without a [[credit]] table;"
                " expected one, since there is no sum of credits. Usually advantage = { name ="
                f" {self.credit_scheme['name']!r}, ... }} is meant"
            )
        sources = {self.reward_source, *(each.reward_source for each in self.credit)}
        if self.loss.kl_penalty and not sources.isdisjoint(("last", "turn")):
            raise ValueError(
                "loss.kl_penalty stands on every token's reward, and a reward_source of 'last' or"
                " 'turn' takes the rewards of single tokens; expected loss.kl_penalty = 0. Use"
                " loss.kl_loss, which is no reward"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = write(self)
        # Runs that were stored before there were these keys keep their name.
        usual: dict[str, Any] = {"start_seed": None, "environment": None, "reward_source": "all"}
        for name, value in {**usual, "credit": (), "credit_scheme": None}.items():
            if name in found and getattr(self, name) == value:
                del found[name]
        return found

    def of_credit(self, place: int) -> RunConfig:
        """Returns the config in which one of the further credits is the only one."""
        own = self.credit[place]
        names = ("reward_source", "segmenter", "estimator", "advantage", "process_reward")
        found = {name: getattr(own, name) for name in names}
        return self.model_copy(update={**found, "credit": (), "credit_scheme": None})

    @property
    def starting_seed(self) -> int:
        """``start_seed``, or ``seed`` where there is none."""
        return self.seed if self.start_seed is None else self.start_seed

    def identity(self) -> dict[str, Any]:
        """Returns every key but who carries the run and who watches it; names its directory."""
        others: Any = {"record": {"trackers"}, "train": {"processes", "parallel"}}
        found = self.model_dump(exclude=others)
        for key in self.carriers():
            *path, name = key.split(".")
            del reduce(_entry, path, found)[name]
        return found

    def carriers(self) -> dict[str, Any]:
        """Returns plug-ins' options that say who does the work, by their dotted keys.

        They are fields with ``metadata={"identity": False}``, such as the address of a server:
        stored with a run, which may be continued with others.
        """
        return {
            f"{path}.{name}": table[name]
            for path, plugins, table in self.plugins()
            for name in plugins.carriers(str(table["name"]))
            if name in table
        }

    def plugins(self) -> Iterable[tuple[str, registry.Registry[Any], dict[str, Any]]]:
        """Yields dotted path, registry and table of every plug-in that the run uses."""
        paths = list(registry.PATHS.items())
        paths += [
            (f"credit.{place}.{name}", registry.PATHS[name])
            for place in range(len(self.credit))
            for name in CreditConfig.model_fields
            if name in registry.PATHS
        ]
        for path, plugins in paths:
            table: dict[str, Any] | None = reduce(_member, path.split("."), cast(Any, self))
            if table is not None:
                yield path, plugins, table

    def resolve(self) -> RunConfig:
        """Returns the same config with every option of every plug-in written out.

        Raises:
            RegistryError: a plug-in is unknown or refuses its options.
        """
        values = self.model_dump()
        for path, plugins, table in self.plugins():
            options = dict(table)
            name = str(options.pop("name", ""))
            try:
                _set(values, path, plugins.resolve(name, options))
            except registry.RegistryError as error:
                raise registry.RegistryError(f"{path}: {error}") from error
        self._require_segments_read()
        return RunConfig.model_validate(values)

    def _require_segments_read(self) -> None:
        ratio, segmenter = self.loss.ratio, self.loss.ratio_segmenter
        if ratio is None or segmenter is None or registry.ratios.find(ratio["name"]).reads_segments:
            return
        bound = self.loss.bound
        if bound is not None and registry.bounds.from_table(bound).reads_segments:
            return
        raise ConfigError(
            f"loss.ratio_segmenter is {segmenter['name']!r} with loss.ratio {ratio['name']!r},"
            " which reads no segments; expected it with a ratio that does, such as 'segment', or a"
            " bound, such as divergence_mask with per = 'segment'."
        )


STUDIES = ("grid", "audit")
"""Tables of a config file that say what is studied; a single run does without."""

Source = str | Path | Mapping[str, Any]
"""A preset's name, a TOML file, or a mapping as such a file holds it."""


def load_config(source: Source, overrides: Iterable[str] = (), **keys: Any) -> RunConfig:
    """Returns a checked, fully resolved config.

    Args:
        source: a preset's name (``segcredit config`` lists them), a TOML file, or a mapping as
            such a file holds it.
        overrides: ``"dotted.key=value"``, the value in TOML or a bare string.
        **keys: overrides from Python; a double underscore stands for the dot:
            ``train__steps=50``.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; names the dotted path.
        RegistryError: a plug-in is unknown or refuses its options.
    """
    layer = override(read_source(source), overrides)
    for table in STUDIES:
        layer.pop(table, None)
    for key, value in keys.items():
        _set(layer, key.replace("__", "."), value)
    return check(lay_over_preset(layer)).resolve()


def load_run(source: Source, overrides: Iterable[str] = (), **keys: Any) -> RunConfig:
    """Returns the config of a run by itself, as ``load_config``.

    Raises:
        ConfigError: as ``load_config``; or a [grid] says that there are several runs.
    """
    layer = override(read_source(source), overrides)
    if "grid" in layer:
        raise ConfigError(
            "grid: the config has a [grid] table, and this trains one run, which would be none of"
            " its cells. Run all of them with 'segcredit grid', or leave the table out."
        )
    return load_config(layer, **keys)


def read_source(source: Source) -> dict[str, Any]:
    """Returns the keys of a preset (its name, to be laid under nothing else) or of a TOML file."""
    if isinstance(source, Mapping):
        return dict(source)
    if str(source) in presets():
        return {"method": str(source)}
    path = Path(source)
    if path.suffix != ".toml" and not os.path.exists(path):  # which bears names of any length
        names = presets()
        near = did_you_mean(str(source), [*names, *_files_beside(path)])
        raise ConfigError(
            f"there is no preset {shown(str(source))}{near} Presets are"
            f" {', '.join(names)}; anything else must be the path of a TOML file."
        )
    try:
        return _shallow(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(
            f"config {shown(str(path), plain=True)} cannot be read: {error.strerror}"
            f"{did_you_mean(str(path), _files_beside(path))}"
            " Expected a preset's name or a TOML file. Usually the path is mistyped, or a folder's:"
            " of a run's directory, give the config.toml, or continue it with --resume."
        ) from error
    except UNREADABLE as error:
        raise ConfigError(
            f"config {path} is not TOML: {parser_words(error)}. Strings need quotes, and tables"
            " square brackets."
        ) from error


def _files_beside(path: Path) -> list[str]:
    """Returns the TOML files in the folder of one that is not there."""
    there = os.path.isdir(path.parent) and not os.path.exists(path)
    return sorted(map(str, path.parent.glob("*.toml"))) if there else []


def presets() -> list[str]:
    """Names of the methods that ship with segcredit, sorted."""
    files = resources.files("segcredit").joinpath("methods").iterdir()
    names = [file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")]
    return sorted(name for name in names if name != "base")


def lay_over_preset(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the base, the preset that ``method`` names (if any), and these keys on top."""
    method = layer.get("method", "")
    values = _read_method("base")
    if method in presets():
        values = _merge(values, _read_method(str(method)))
    elif method and "segmenter" not in layer:
        names = presets()
        raise ConfigError(
            f"method: there is no preset {method!r}{did_you_mean(str(method), names)} Presets are"
            f" {', '.join(names)}. A method of your own needs the keys segmenter, estimator,"
            " advantage and loss.ratio beside its name."
        )
    renewed = copy.deepcopy(dict(layer))
    for sentence in old_keys.renew(renewed, values):
        warnings.warn(sentence, FutureWarning, stacklevel=2)
    return _without_unused_bound(_merge(values, renewed), renewed)


def _without_unused_bound(values: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values without a bound that lies below a layer without a ratio."""
    loss, own = values["loss"], layer.get("loss", {})
    if isinstance(own, Mapping) and "bound" not in own and loss.get("ratio") == NONE:
        del loss["bound"]
    return values


def check(values: Mapping[str, Any]) -> RunConfig:
    """Validates the keys and types of a complete config.

    Raises:
        ConfigError: as ``validated``.
    """
    return validated(RunConfig, values)


def validated(model: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """Returns keys and values as a model of pydantic's has them.

    Args:
        model: without extra keys.
        values: nested.
        prefix: of the dotted paths in messages.

    Raises:
        ConfigError: the first faults, a line each, with their dotted paths.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [_sentence(model, fault, prefix) for fault in found[:_MOST_FAULTS]]
        if len(found) > _MOST_FAULTS:
            faults.append(f"... and {len(found) - _MOST_FAULTS:,} more faults.")
        raise ConfigError("\n".join(faults)) from error


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns nested keys with ``"dotted.key=value"`` laid over them."""
    layer = copy.deepcopy(_shallow(dict(values), "config"))
    for text in overrides:
        path, value = parse_override(text)
        _set(layer, path, value)
    return layer


def parse_override(text: str) -> tuple[str, Any]:
    """Parses ``"train.steps=50"`` into a path and a TOML value; what is no TOML is a string."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(
            f"override {text!r} is not of the form dotted.key=value, such as train.steps=50."
        )
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value.strip()
    except UNREADABLE as error:
        words = parser_words(error)
        raise ConfigError(f"override {shown(text)} cannot be read: {words}.") from error


def set_key(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted key in nested tables; a bare plug-in name on the way becomes a table."""
    _set(values, path, value)


def _sentence(model: type[BaseModel], fault: Any, prefix: str) -> str:
    path = shown(prefix + ".".join(str(part) for part in fault["loc"]), plain=True)
    if fault["type"] == "missing" and int in map(type, fault["loc"]):
        return f"{path}: is missing; expected it in every such table."
    if fault["type"] == "missing":
        return (
            f'{path}: is missing. Name a preset with method = "...", or give this key; the four'
            " axes are segmenter, estimator, advantage and loss.ratio."
        )
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        hint = did_you_mean(str(fault["loc"][-1]), known)
        return f"{path}: there is no such key{hint} Keys here are {', '.join(known)}."
    message = pydantic_words(fault["msg"])
    if isinstance(fault["input"], Mapping):  # a whole section: the message says what is wrong in it
        return f"{path}: {message}." if path else f"{message}."
    return f"{path}: {message}; found {shown(fault['input'])}."


_MOST_FAULTS = 20


def _known_keys(model: Any, path: Iterable[str | int]) -> list[str]:
    for part in path:
        if isinstance(part, int):  # a place in a list of sections
            (model, _) = get_args(model)
        else:
            model = model.model_fields[part].annotation
    return list(model.model_fields)


def preset_text(name: str) -> str:
    """Returns a preset's file as it stands, its comment first."""
    file = resources.files("segcredit").joinpath("methods", f"{name}.toml")
    return file.read_text(encoding="utf-8")


def _read_method(name: str) -> dict[str, Any]:
    return tomllib.loads(preset_text(name))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays tables over tables; a table that names a plug-in replaces what lies below it."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        old: Any = merged.get(key)
        if isinstance(value, Mapping) and "name" not in value and isinstance(old, str | dict):
            table = {"name": old} if isinstance(old, str) else cast(dict[str, Any], old)
            merged[key] = _merge(table, cast(Mapping[str, Any], value))
        elif isinstance(value, Mapping) and isinstance(old, list):  # keys of single tables of it
            entries: list[Any] = copy.deepcopy(cast("list[Any]", old))
            for place, inner in cast(Mapping[str, Any], value).items():
                entry = _entry_at(entries, place, f"{key}.{place}")
                entries[int(place)] = _merge(entry, inner)
            merged[key] = entries
        else:
            merged[key] = copy.deepcopy(cast(Any, value))
    return merged


Table = dict[str, Any]


def _shallow(values: Table, place: str) -> Table:
    """Returns the values; refuses tables that are nested more deeply than any config is."""
    level: list[Any] = [values]
    for _ in range(_MOST_LEVELS):
        lists = [cast("list[Any]", each) for each in level if isinstance(each, list)]
        tables = [cast("Table", each) for each in level if isinstance(each, dict)]
        level = [*chain(*lists), *chain(*(table.values() for table in tables))]
        if not level:
            return values
    raise ConfigError(
        f"{place}: its tables and lists are nested more than {_MOST_LEVELS} levels deep; expected a"
        " few. Usually a program wrote them."
    )


_MOST_LEVELS = 32


def _member(owner: Any, part: str) -> Any:
    """Returns what a part of a dotted key names: an attribute, or an entry of a list."""
    return owner[int(part)] if part.isdecimal() else getattr(owner, part)


def _entry_at(entries: Sequence[Any], place: str, path: str) -> dict[str, Any]:
    """Returns one of a list's tables by its place, written from 0."""
    known = place.isdecimal() and int(place) < len(entries)
    entry: object = entries[int(place)] if known else None
    if not isinstance(entry, dict):
        raise ConfigError(
            f"{path}: {place!r} is none of the list's {len(entries)} tables; expected the place of"
            " one, counted from 0, such as credit.0.weight=2."
        )
    return cast(dict[str, Any], entry)


def _entry(table: Any, part: str) -> Any:
    """Returns what a part of a dotted key names in nested tables and lists."""
    return table[int(part)] if part.isdecimal() else table[part]


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if len(parents) > _MOST_LEVELS:
        raise ConfigError(f"{shown(path)} has {len(parents) + 1} parts; expected a key's path.")
    for number, part in enumerate(parents):
        if isinstance(entries := values.get(part), list | tuple):
            place, *rest = [*parents[number + 1 :], last]
            entry = _entry_at(cast("Sequence[Any]", entries), place, path)
            _set(entry, ".".join(rest) or place, value)
            return
        if isinstance(values.get(part), str):
            values[part] = {"name": values[part]}
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"{path}: {part!r} holds {values[part]!r}, which has no keys of its own."
            )
        values = cast(dict[str, Any], child)
    values[last] = value
