"""Settings of an audit: a run's policy and task, and the ``[audit]`` table beside them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from segcredit import registry
from segcredit.config import (
    Count,
    Plugin,
    RunConfig,
    load_config,
    override,
    read_source,
    require_tokens,
    validated,
)
from segcredit.credit_audit.metrics import Resampling
from segcredit.errors import ConfigError, RegistryError
from segcredit.records.stored_config import digest
from segcredit.registry import Registry, plugin_label
from segcredit.training.build import identities, plugin_identities

Table = dict[str, Any]
_DEFAULTS = Path(__file__).with_name("defaults.toml")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Mapping) else value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression, but {error}") from error
    return text


Plugins = Annotated[list[Plugin], BeforeValidator(_as_list), Field(min_length=1, max_length=1000)]
_MOST_CREDITS = 10_000
Quantile = Annotated[float, Field(ge=0, lt=1)]


class AuditSettings(BaseModel):
    """The ``[audit]`` table, complete."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    segmenters: Plugins
    """Each is judged with each estimator and scheme; by default the run's own."""
    estimators: Plugins
    """Value estimators; by default the run's own."""
    advantages: Plugins
    """Advantage schemes; by default the run's own."""
    prompts: int = Field(ge=2, le=10**6)
    """Number of the task's evaluation prompts. Intervals draw them anew, hence two at least."""
    completions: Count
    """Completions of each prompt."""
    continuations: float = Field(ge=1e-6, le=10**4)
    """Number for each token in each split of the truth, see ``truth.measure``; may be below 1."""
    training_steps: int = Field(ge=0, le=10**6)
    """Steps of ``[train.value]`` for which an estimator with a state learns on a frozen policy."""
    quantiles: tuple[Quantile, ...] = Field(max_length=1000)
    """Quantiles of entropy and surprisal above which Lift counts tokens."""
    jump: float = Field(gt=0, le=1e9)
    """The change of the value that Lift with a threshold calls a jump, in reward units."""
    classes: dict[str, Annotated[str, AfterValidator(_pattern)]]
    """A regular expression by class of token, tried in their order at a token's first character."""
    gradient_samples: int = Field(ge=0, le=10**7)
    """Completions of the reference gradient; 0 = no metrics of gradients."""
    gradient_batches: int = Field(ge=2, le=10**6)
    """Pieces of the completions whose gradients are held against the reference."""
    confidence: float = Field(gt=0, lt=1)
    """The coverage asked of the intervals."""
    resamples: Count
    """Draws of prompts for each interval."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> AuditSettings:
        found = len(self.segmenters) * len(self.estimators) * len(self.advantages)
        if found > _MOST_CREDITS:
            raise ValueError(
                f"segmenters, estimators and advantages make {found:,} credits; expected at most"
                f" {_MOST_CREDITS:,}"
            )
        return self

    @property
    def resampling(self) -> Resampling:
        """Confidence and draws of intervals."""
        return Resampling(self.confidence, self.resamples)


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """A run whose policy is frozen, and what is asked of credit on its completions."""

    run: RunConfig
    audit: AuditSettings
    labels: Mapping[str, Sequence[str]]
    """By list ("segmenters", ...): how its plug-ins are called in tables."""

    def identity(self) -> Table:
        """Returns what makes the audit, as nested plain data; it names the directory."""
        return {**self.run.identity(), "audit": self.audit.model_dump()}

    def plugin_identities(self) -> dict[str, str]:
        """Returns the code behind every plug-in that the audit uses."""
        used = {
            path: code
            for path, code in plugin_identities(self.run).items()
            if path.split(".")[0] not in _AXES
        }
        return used | identities(self._listed())

    def hash(self) -> str:
        """Returns ten hexadecimal digits that name the audit and the code of its plug-ins."""
        return digest({"config": self.identity(), "plugins": self.plugin_identities()})[:10]

    def units(self) -> list[Unit]:
        """Returns every segmenter with every estimator."""
        segmenters = zip(self.labels["segmenters"], self.audit.segmenters, strict=True)
        pairs = product(segmenters, range(len(self.audit.estimators)))
        return [self._unit(*segmenter, estimator) for segmenter, estimator in pairs]

    def token_units(self) -> list[Unit]:
        """Returns a segment for each token with every estimator, for credit noise to compare with.

        They are no part of the audit, but where ``per_token`` is one of its segmenters.
        """
        table = registry.segmenters.resolve("per_token", {})
        label = plugin_label(registry.segmenters, table)
        every = range(len(self.audit.estimators))
        return [self._unit(label, table, estimator) for estimator in every]

    def _unit(self, label: str, segmenter: Table, estimator: int) -> Unit:
        tables = {"segmenter": segmenter, "estimator": self.audit.estimators[estimator]}
        estimator_label = self.labels["estimators"][estimator]
        return Unit(label, estimator_label, self.run.model_copy(update=tables))

    def _listed(self) -> Iterator[tuple[str, Registry[Any], Table]]:
        for axis, plugins in _LISTS.items():
            for number, table in enumerate(getattr(self.audit, axis)):
                yield f"audit.{axis}.{number}", plugins, table


@dataclass(frozen=True, slots=True)
class Unit:
    """One segmenter with one estimator: what is worked out, and stored, at a time."""

    segmenter: str
    estimator: str
    config: RunConfig
    """The audit's, with this segmenter and this estimator."""

    def __str__(self) -> str:
        return f"{self.segmenter} with {self.estimator}"


_LISTS: dict[str, Registry[Any]] = {
    "segmenters": registry.segmenters,
    "estimators": registry.estimators,
    "advantages": registry.advantages,
}
_AXES = ("segmenter", "estimator", "advantage")


def load_audit_config(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()
) -> AuditConfig:
    """Reads, checks and resolves an audit's config.

    Args:
        source: a preset's name, a TOML file, or a mapping as such a file holds it: a run's keys,
            and ``[audit]`` (``AuditSettings``; defaults in ``defaults.toml``).
        overrides: ``"dotted.key=value"``, such as ``"audit.prompts=32"``.

    Raises:
        ConfigError: a key or value is wrong; names the dotted path.
        RegistryError: a plug-in is unknown or refuses its options.
    """
    layer = override(read_source(source), overrides)
    asked = layer.pop("audit", {})
    if not isinstance(asked, Mapping):
        raise ConfigError(f"audit: is {asked!r}; expected a table, headed [audit].")
    run = load_config(layer)
    given = _with_defaults(cast("Mapping[str, Any]", asked), run)
    settings = validated(AuditSettings, given, "audit.")
    sizes = (settings.prompts, settings.completions, run.rollouts.max_new_tokens)
    require_tokens(*sizes, ConfigError, "audit")
    lists = {axis: [_resolved(axis, t) for t in getattr(settings, axis)] for axis in _LISTS}
    labels = {axis: [plugin_label(_LISTS[axis], table) for table in lists[axis]] for axis in _LISTS}
    _require_different(labels)
    return AuditConfig(run, settings.model_copy(update=lists), labels)


def _with_defaults(asked: Mapping[str, Any], run: RunConfig) -> Table:
    own = {f"{axis}s": [getattr(run, axis)] for axis in _AXES}
    return {**tomllib.loads(_DEFAULTS.read_text(encoding="utf-8")), **own, **asked}


def _resolved(axis: str, table: Table) -> Table:
    options = dict(table)
    name = str(options.pop("name"))
    try:
        return _LISTS[axis].resolve(name, options)
    except RegistryError as error:
        raise RegistryError(f"audit.{axis}: {error}") from error


def _require_different(labels: Mapping[str, Sequence[str]]) -> None:
    for axis, names in labels.items():
        doubled = [name for name in names if names.count(name) > 1]
        if doubled:
            raise ConfigError(
                f"audit.{axis}: {doubled[0]} stands there twice; expected each once, since its"
                " metrics could not be told apart. Give one of them other options, or drop it."
            )
