"""RunConfig: what a run is made of, read from TOML and checked key by key.

Three layers, each laid over the one before: the embedded base (``methods/base.toml``), the preset
that ``method`` names, the file's own keys; then ``dotted.key=value`` overrides. A plug-in is a
bare name or a table with ``name`` and options; a bare name, or a table with a name, replaces the
table below it whole, while a dotted key changes one option of the plug-in that is there.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from segcredit import registry
from segcredit.errors import ConfigError, ShapeError, did_you_mean
from segcredit.objective.aggregation import Aggregate, Aggregation
from segcredit.objective.importance_ratio import (
    Importance,
    Ratio,
    RatioGradient,
    Reinforce,
    SegmentRatio,
    SequenceRatio,
    Surrogate,
    TokenRatio,
)
from segcredit.objective.policy_loss import KL
from segcredit.objective.ratio_clipping import Bound, Clip, LogClip, SoftGate, TruncatedIS


def _as_table(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError("expected a plug-in's name, or a table with its name and options")
    return cast(object, value)


Plugin = Annotated[dict[str, Any], BeforeValidator(_as_table)]
"""A plug-in: a bare name, or a table of ``name`` and the plug-in's options."""

Section = TypeVar("Section", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class RolloutsConfig(_Section):
    """The sampling of each step."""

    prompts: int = Field(ge=1)
    completions: int = Field(ge=1)
    """Completions of each prompt: the group."""
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    layout: Literal["independent", "tree"]
    """Independent completions of a prompt, or a tree whose rows share prefixes."""
    branches: tuple[Annotated[int, Field(ge=1)], ...]
    """Children of a node at each level of a tree, the trunks first; level k branches where the
    k-th segment ends. Their product is ``completions``."""
    keep: Literal["all", "varied_groups"]
    """``varied_groups`` draws further prompts for groups whose rewards are all equal."""
    keep_rounds: int = Field(ge=1)
    """Most rounds of sampling a step; after them, the varied groups that were found are used."""
    prompt_choice: Literal["uniform", "weighted"]
    """``weighted``: from a fixed pool, by the estimator's ``prompt_weights``."""
    prompt_pool: int = Field(ge=1)
    """Prompts drawn from the task once, as the candidates of a weighted choice."""
    overlong_buffer: int = Field(ge=0)
    """Last tokens before ``max_new_tokens`` over which a penalty on length grows from 0."""
    overlong_penalty: float = Field(ge=0)
    """Penalty at ``max_new_tokens``, in reward units."""

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
        if self.layout == "tree" and self.keep != "all":
            raise ValueError("keep = 'varied_groups' is for layout = 'independent' alone")
        return self


class LossConfig(_Section):
    """The policy's objective, see ``segcredit.objective.policy_loss.surrogate_loss``."""

    ratio: Literal["none", "token", "segment", "sequence"]
    ratio_gradient: RatioGradient
    bound: Literal["clip", "log_clip", "capped_weight", "soft_gate"]
    clip_low: float = Field(ge=0)
    clip_high: float = Field(ge=0)
    clip_bounds: Literal["around_one", "absolute"]
    dual_clip: float | None = Field(default=None, gt=1)
    gate_positive: float = Field(gt=0)
    gate_negative: float = Field(gt=0)
    tokens: Literal["all", "low_probability", "high_entropy"]
    """The action tokens that the loss is taken over."""
    probability_below: float = Field(gt=0, le=1)
    """The bound of ``low_probability``, under the sampling policy."""
    entropy_share: float = Field(gt=0, le=1)
    """The share of the batch's tokens that ``high_entropy`` takes."""
    shared_tokens: Literal["once", "in_each_row"]
    """The count of a token that several completions of a tree share: once, or in each row."""
    count: Literal["chosen", "all"]
    """The tokens in the loss's denominators: the chosen ones, or those left out as well."""
    aggregate: Aggregate
    norm_length: float | None = Field(default=None, gt=0)
    ratio_segmenter: Plugin | None = None
    """Over whose segments ``ratio = "segment"`` averages; None = the credit segments."""
    kl_penalty: float = Field(ge=0)
    """β of the k1 penalty in the token rewards."""
    kl_loss: float = Field(ge=0)
    """Weight of the KL estimate added to the loss."""
    kl_estimator: KL
    kl_limit: float = Field(gt=0)
    """k3 is clamped to ± this; inf = not at all."""
    imitation: float = Field(ge=0)
    """Weight of the mean of −log π over the tokens of completions with a positive reward."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> LossConfig:
        if self.clip_bounds == "absolute" and self.bound == "log_clip":
            raise ValueError(
                "clip_bounds is 'absolute' with bound 'log_clip'; log_clip takes distances from 0"
                " nats: leave clip_bounds at 'around_one'"
            )
        if self.dual_clip is not None and self.bound != "clip":
            raise ValueError(
                f"dual_clip is {self.dual_clip} with bound {self.bound!r}; expected it with bound"
                " 'clip', or None"
            )
        try:
            self.surrogate()
        except ShapeError as error:
            raise ValueError(str(error)) from error
        return self

    def surrogate(self) -> Surrogate:
        """Returns the ratio and the bound as ``segcredit.objective.surrogate_loss`` takes them."""
        if self.ratio == "none":
            return Reinforce()
        return Importance(self._ratio(), self._bound())

    def aggregation(self, longest: int) -> Aggregation:
        """Returns the aggregation; ``longest`` is the length, in tokens, where none is given."""
        plain = Aggregation(self.aggregate)
        return plain.for_length(float(self.norm_length or longest))

    def _ratio(self) -> Ratio:
        if self.ratio == "segment":
            return SegmentRatio(self.ratio_gradient)
        return SequenceRatio(self.ratio_gradient) if self.ratio == "sequence" else TokenRatio()

    def _bound(self) -> Bound:
        low, high, absolute = self.clip_low, self.clip_high, self.clip_bounds == "absolute"
        if self.bound == "log_clip":
            return LogClip(low, high)
        if self.bound == "capped_weight":
            # A ratio is never negative: a distance above 1 is no lower bound at all.
            return TruncatedIS(*((low, high) if absolute else (max(1 - low, 0.0), 1 + high)))
        if self.bound == "soft_gate":
            return SoftGate(self.gate_positive, self.gate_negative)
        if absolute and not low <= 1 <= high:
            raise ShapeError(
                f"clip_bounds is 'absolute' with bound 'clip' and the interval [{low}, {high}];"
                " expected one around 1, such as [0.8, 1.2]."
            )
        low, high = (1 - low, high - 1) if absolute else (low, high)
        return Clip(low, high, self.dual_clip)


class ValueConfig(_Section):
    """Training of the value estimator's state; ignored when it has no parameters."""

    learning_rate: float = Field(gt=0)
    gradient_clip: float = Field(gt=0)
    epochs: int = Field(ge=0)
    warmup_iterations: int = Field(ge=0)
    """Iterations before the first policy step in which the value estimator alone is trained."""
    aggregate: Aggregate


class TrainConfig(_Section):
    """The loop: how long, in which pieces, with which optimizer."""

    steps: int = Field(ge=0)
    epochs: int = Field(ge=1)
    minibatches: int = Field(ge=1)
    micro_tokens: int = Field(ge=1)
    """Most completion tokens, padding included, in one forward pass."""
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int = Field(ge=0)
    patience: int = Field(ge=1)
    """First steps after which a run whose rewards were all equal in every one of them stops."""
    device: Literal["auto", "cpu"]
    processes: int | None = Field(default=None, ge=1)
    """The number of processes that must have been started; None = any. Makes no other run."""
    parallel: Literal["replicated", "sharded"] = "replicated"
    """Each process's share of the parameters in training, all or a part. Makes no other run."""
    value: ValueConfig


class EvaluateConfig(_Section):
    """Accuracy on held-out prompts, sampled and greedy."""

    every: int = Field(ge=1)
    prompts: int = Field(ge=1)
    completions: int = Field(ge=1)
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

    every: int = Field(ge=1)
    responses: bool
    segments: bool
    tokens: bool
    trackers: Annotated[
        tuple[Annotated[TrackerName, AfterValidator(_installed)], ...], BeforeValidator(_as_list)
    ] = ()
    """Trackers that show the metrics as well. Makes no other run (``identity``)."""


class CheckpointConfig(_Section):
    """The steps between checkpoints of all that a resumed run needs, and the number kept."""

    every: int = Field(ge=1)
    keep: int = Field(ge=1)


class RunConfig(_Section):
    """One run, complete. Build it with ``load_config``."""

    method: str = ""
    """The preset below the file's own keys, and the run's label in tables."""
    seed: int = Field(default=0, ge=0)
    task: Plugin
    policy: Plugin
    sampler: Plugin
    segmenter: Plugin
    estimator: Plugin
    advantage: Plugin
    process_reward: Plugin | None = None
    rollouts: RolloutsConfig
    loss: LossConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    record: RecordConfig
    checkpoint: CheckpointConfig

    def identity(self) -> dict[str, Any]:
        """Returns every key but who carries the run and who watches it; names its directory."""
        return self.model_dump(exclude={"record": {"trackers"}, "train": {"processes", "parallel"}})

    def plugins(self) -> Iterable[tuple[str, registry.Registry[Any], dict[str, Any]]]:
        """Yields dotted path, registry and table of every plug-in that the run uses."""
        for path, key in _PLUGIN_PATHS.items():
            table = _get(self.model_dump(), path)
            if table is not None:
                yield path, registry.ALL[key], table

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
        return RunConfig.model_validate(values)


_PLUGIN_PATHS = {
    "task": "tasks",
    "policy": "policies",
    "sampler": "samplers",
    "segmenter": "segmenters",
    "estimator": "estimators",
    "advantage": "advantages",
    "process_reward": "process_rewards",
    "loss.ratio_segmenter": "segmenters",
}


STUDIES = ("grid", "audit")
"""Tables of a config file that say what is studied; a single run does without."""


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), **keys: Any
) -> RunConfig:
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
    layer = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_source(source)
    for table in STUDIES:
        layer.pop(table, None)
    layer = override(layer, overrides)
    for key, value in keys.items():
        _set(layer, key.replace("__", "."), value)
    return check(lay_over_preset(layer)).resolve()


def read_source(source: str | Path) -> dict[str, Any]:
    """Returns the keys of a preset (its name, to be laid under nothing else) or of a TOML file."""
    if str(source) in presets():
        return {"method": str(source)}
    path = Path(source)
    if path.suffix != ".toml" and not path.exists():
        names = presets()
        raise ConfigError(
            f"there is no preset {str(source)!r}{did_you_mean(str(source), names)} Presets are"
            f" {', '.join(names)}; anything else must be the path of a TOML file."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config {path} is not TOML: {error}. Strings need quotes, and tables square brackets."
        ) from error


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
    return _merge(values, layer)


def check(values: Mapping[str, Any]) -> RunConfig:
    """Validates the keys and types of a complete config.

    Raises:
        ConfigError: every fault, a line each, with its dotted path.
    """
    return validated(RunConfig, values)


def validated(model: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """Returns keys and values as a model of pydantic's has them.

    Args:
        model: without extra keys.
        values: nested.
        prefix: of the dotted paths in messages.

    Raises:
        ConfigError: every fault, a line each, with its dotted path.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = (_sentence(model, fault, prefix) for fault in error.errors())
        raise ConfigError("\n".join(faults)) from error


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns nested keys with ``"dotted.key=value"`` laid over them."""
    layer = copy.deepcopy(dict(values))
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


def set_key(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted key in nested tables; a bare plug-in name on the way becomes a table."""
    _set(values, path, value)


def _sentence(model: type[BaseModel], fault: Any, prefix: str) -> str:
    path = prefix + ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return (
            f'{path}: is missing. Name a preset with method = "...", or give this key; the four'
            " axes are segmenter, estimator, advantage and loss.ratio."
        )
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        hint = did_you_mean(str(fault["loc"][-1]), known)
        return f"{path}: there is no such key{hint} Keys here are {', '.join(known)}."
    message = str(fault["msg"]).removeprefix("Value error, ").removesuffix(".")
    if isinstance(fault["input"], Mapping):  # a whole section: the message says what is wrong in it
        return f"{path}: {message}."
    return f"{path}: {message}; found {fault['input']!r}."


def _known_keys(model: Any, path: Iterable[str | int]) -> list[str]:
    for part in path:
        model = model.model_fields[str(part)].annotation
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
        else:
            merged[key] = copy.deepcopy(cast(Any, value))
    return merged


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        if isinstance(values.get(part), str):
            values[part] = {"name": values[part]}
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"{path}: {part!r} holds {values[part]!r}, which has no keys of its own."
            )
        values = cast(dict[str, Any], child)
    values[last] = value


def _get(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values[part]
    return values
