"""Plug-ins by name: a registry for each axis, over Python's entry points.

Built-ins and a stranger's package meet here by the same way: entry points of the groups
``segcredit.segmenters``, ``segcredit.estimators`` and so on. ``names()`` imports nothing; a
plug-in's module is imported when it is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import linecache
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from segcredit.errors import (
    RegistryError,
    SegcreditError,
    did_you_mean,
    pydantic_words,
    shown,
    told,
)

# The protocols import torch, which a list of names does not wait for.
if TYPE_CHECKING:
    from segcredit.objective import Aggregation, Bound, Correction, Ratio
    from segcredit.protocols import (
        AdvantageScheme,
        Environment,
        PolicySource,
        ProcessReward,
        Sampler,
        Segmenter,
        Task,
        ValueEstimator,
    )

T = TypeVar("T")
_HOME = Path(__file__).parents[1]
"""The folder with our packages, in a checkout as in an installed wheel."""
_OWN = "_segcredit_own"
"""Package under which ours are imported where a namesake has their names."""
LOCAL = "(this session)"
"""The distribution shown of a plug-in registered by decorator."""


@dataclasses.dataclass(frozen=True, slots=True)
class PluginInfo:
    """The origin of a plug-in; ``error`` is the sentence when it cannot be imported."""

    name: str
    distribution: str
    version: str
    file: str
    summary: str
    error: str = ""


class Registry(Generic[T]):
    """The plug-ins of one kind.

    Args:
        kind: what one plug-in is called in messages, such as "segmenter".
        group: the entry-point group.
        protocol: the public name, in ``segcredit``, of what the plug-ins' instances are.
    """

    def __init__(self, kind: str, group: str, protocol: str) -> None:
        self.kind = kind
        self.group = group
        self._protocol = protocol
        self._local: dict[str, type[T]] = {}
        self._carried: dict[str, str] = {}
        """Identities of plug-ins that another process registered, by name."""

    @property
    def protocol(self) -> type[T]:
        """The public class that describes the plug-ins' instances."""
        return cast("type[T]", getattr(importlib.import_module("segcredit"), self._protocol))

    def names(self) -> list[str]:
        """Returns every registered name, sorted; imports no plug-in."""
        return sorted({*self._local, *(point.name for point in self._points())})

    def add(self, name: str, plugin: type[T]) -> None:
        """Registers a class for this session, as the decorators of ``segcredit.register`` do.

        A class of the same module and name replaces its earlier self, so that a notebook cell
        can be run twice.

        Raises:
            RegistryError: the name is taken.
        """
        known = self._local.get(name)
        again = known is not None and known.__qualname__ == plugin.__qualname__
        own = f"{plugin.__module__}:{plugin.__qualname__}"
        points = [point for point in self._points() if point.name == name]
        if [point.value for point in points] == [own]:
            return  # an installed package's own file, which also works by --code
        if (known is not None and not again) or points:
            owner = LOCAL if known is not None else self._owner(name)
            raise RegistryError(
                f"{self.kind} {name!r} is registered already, by {owner}. Names are unique;"
                " choose another one."
            )
        self._local[name] = plugin

    def local(self) -> dict[str, type[T]]:
        """Returns the classes that were registered in this session, by name."""
        return dict(self._local)

    def take_over(self, name: str, plugin: type[T], identity: str) -> None:
        """Registers a class that another process registered, under what it calls its code."""
        self._local.setdefault(name, plugin)
        self._carried[name] = identity

    def find(self, name: str) -> type[T]:
        """Returns the class registered under a name.

        Raises:
            RegistryError: no such name, two distributions claim it, its import fails, or it lacks
                a method that every plug-in of this kind must have.
        """
        if name in self._local:
            return self._complete(name, self._local[name])
        points = [point for point in self._points() if point.name == name]
        if len(points) > 1:
            owners = " and ".join(sorted(_distribution(point) for point in points))
            raise RegistryError(
                f"{self.kind} {name!r} is offered by two distributions, {owners}. Uninstall one,"
                " or rename the entry point in one of them."
            )
        if not points:
            raise RegistryError(self._unknown(name))
        return self._complete(name, self._load(points[0]))

    def build(self, name: str, **options: Any) -> T:
        """Builds an instance with these options, and the plug-ins inside a wrapper as well.

        Raises:
            RegistryError: as ``find``, or an option is unknown, missing or of the wrong type.
        """
        plugin = self.find(name)
        try:
            return plugin(**self._values(name, plugin, options))
        except SegcreditError:
            raise
        except ValueError as error:
            said = shown(error, plain=True, most=2000)
            raise RegistryError(f"{self.kind} {name!r} refuses its options: {said}") from error
        except (Exception, SystemExit) as error:
            said = shown(error, plain=True, most=2000)
            raise RegistryError(
                f"{self.kind} {name!r} raised {type(error).__name__} while it was built from its"
                f" options: {said}. See {plugin.__qualname__!r} in"
                f" {_file_of(plugin.__module__) or plugin.__module__}: a plug-in is a frozen"
                " dataclass whose fields are its options."
            ) from error

    def _values(self, name: str, plugin: type[T], options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options, each as its field's type."""
        hints = _option_types(plugin)
        unknown = sorted(set(options) - set(hints))
        if unknown:
            hint = did_you_mean(unknown[0], hints)
            raise RegistryError(
                f"{self.kind} {name!r} has no option {unknown[0]!r}{hint} Its options are"
                f" {_listed(hints)}."
            )
        missing = sorted(_required(plugin) - set(options))
        if missing:
            raise RegistryError(
                f"{self.kind} {name!r} needs the option {missing[0]!r}, which has no default."
                f" Its options are {_listed(hints)}."
            )
        return {key: self._convert(name, key, hints[key], options[key]) for key in options}

    def carriers(self, name: str) -> list[str]:
        """Returns a plug-in's options that are no part of a run's identity: who does the work.

        None where the plug-in cannot be had.
        """
        try:
            plugin: Any = self.find(name)
        except RegistryError:
            return []
        fields = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
        return [field.name for field in fields if not field.metadata.get("identity", True)]

    def resolve(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the table that names this plug-in with every option, defaults included."""
        return {"name": name, **_fields(self.build(name, **options), self, options)}

    def info(self, name: str) -> PluginInfo:
        """Tells where a plug-in comes from; loads it, and returns a failure instead of raising."""
        point = next((p for p in self._points() if p.name == name), None)
        owner = point.dist if point is not None else None
        try:
            plugin = self.find(name)
        except RegistryError as error:
            return PluginInfo(name, self._owner(name), "", "", "", error=str(error))
        lines = (plugin.__doc__ or "").strip().splitlines()
        return PluginInfo(
            name=name,
            distribution=owner.name if owner else LOCAL,
            version=owner.version if owner else "",
            file=_file_of(plugin.__module__),
            summary=lines[0] if lines else "",
        )

    def identity(self, name: str) -> str:
        """Returns a name of a plug-in's code: its wheel's version, or a hash of its source file.

        The file counts where it is not part of an installed, versioned wheel: registered in this
        session, or an editable install, whose files change under the same version.
        """
        if name in self._carried:
            return self._carried[name]
        plugin = self.find(name)
        point = next((p for p in self._points() if p.name == name), None)
        if name not in self._local and point is not None and point.dist is not None:
            origin = json.loads(point.dist.read_text("direct_url.json") or "{}")
            if not origin.get("dir_info", {}).get("editable", False):
                return _distribution(point)
        return self.code(plugin)

    def identities(self, path: str, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yields the identity of a plug-in, and of those that its options hold, by dotted path.

        Args:
            path: of the plug-in in a config.
            table: its ``name`` beside its options.
        """
        name = str(table["name"])
        yield path, self.identity(name)
        hints = _option_types(self.find(name))
        for key, value in table.items():
            # Of the kind that the field holds, which need not be the plug-in's own.
            if isinstance(value, Mapping) and (inner := _registry_of(hints.get(key))) is not None:
                yield from inner.identities(f"{path}.{key}", cast("Mapping[str, Any]", value))

    def code(self, plugin: type) -> str:
        """Returns a hash of the file of a class's source, registered or not; see ``identity``."""
        carried = {self._local[name]: identity for name, identity in self._carried.items()}
        if plugin in carried:
            return carried[cast("type[T]", plugin)]
        try:
            source = _source(plugin)
        except (OSError, TypeError):  # a class of a notebook's cell has no file
            source = _cell_source(plugin)
        return f"sha256:{hashlib.sha256(source).hexdigest()[:16]}"

    def _points(self) -> list[EntryPoint]:
        return list(_entry_points(_path_state()).select(group=self.group))

    def _owner(self, name: str) -> str:
        return ", ".join(_distribution(p) for p in self._points() if p.name == name) or LOCAL

    def _unknown(self, name: str) -> str:
        names = self.names()
        return (
            f"there is no {self.kind} {name!r}{did_you_mean(name, names)} Registered are"
            f" {_listed(names)}. If it is yours, install its package (entry-point group"
            f" {self.group!r}) or pass its file with --code."
        )

    def _load(self, point: EntryPoint) -> type[T]:
        try:
            return cast(type[T], load_point(point))
        except (Exception, SystemExit) as error:  # a script's last line may leave the interpreter
            package = point.value.partition(":")[0].partition(".")[0]
            raise RegistryError(
                f"{self.kind} {point.name!r} (entry point {point.value!r} of"
                f" {_distribution(point)}) failed to import: {told(error)}. Its top-level"
                f" package {package!r} was found at {_file_of(package) or 'no file'};"
                " if that is another project's, rename or uninstall one of them."
            ) from error

    def _complete(self, name: str, plugin: type[T]) -> type[T]:
        """Returns a class that has every method of its kind, and refuses another."""
        from segcredit.protocols import missing_members

        protocol = f"segcredit.{self.protocol.__name__}"
        if not inspect.isclass(plugin):
            raise RegistryError(
                f"{self.kind} {name!r} is a {type(plugin).__name__}; expected a class, whose base"
                f" is {protocol}. Register the class itself: its options become its fields."
            )
        if missing := missing_members(plugin, self.protocol):
            raise RegistryError(
                f"{self.kind} {name!r} is the class {plugin.__qualname__!r} of"
                f" {_file_of(plugin.__module__) or plugin.__module__}, which lacks"
                f" {', '.join(missing)}; expected every method of {protocol}. Usually a name was"
                f" misspelt; with {protocol} as its base a class inherits those that have a neutral"
                " answer."
            )
        return plugin

    def _convert(self, name: str, key: str, hint: Any, value: Any) -> Any:
        """Returns an option's value as its field's type: checked, or built if it is a plug-in."""
        inner = _registry_of(hint)
        if inner is not None:
            return inner.from_table(value)
        try:
            found = _adapter(hint).validate_python(value)
            _require_bounded(found)
            return found
        except ValidationError as error:
            fault = error.errors()[0]
            place = shown(".".join(map(str, (key, *fault["loc"]))))
            message = pydantic_words(fault["msg"]).lower()
            raise RegistryError(
                f"{self.kind} {name!r}: option {place} is {shown(fault['input'])}; {message}."
            ) from error
        except ValueError as error:
            raise RegistryError(
                f"{self.kind} {name!r}: option {key!r} is {shown(value)}; {error}."
            ) from error

    def from_table(self, table: str | Mapping[str, Any] | T) -> T:
        """Builds from what a config holds: a bare name, or a table with ``name`` and options."""
        if isinstance(table, str):
            return self.build(table)
        if isinstance(table, Mapping):
            options = {str(k): v for k, v in cast(Mapping[str, Any], table).items()}
            return self.build(str(options.pop("name", "")), **options)
        return table


def _fields(plugin: Any, registry: Registry[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every field of a plug-in as plain data; a plug-in inside becomes its own table."""
    if not dataclasses.is_dataclass(plugin):
        return dict(options)
    hints = _option_types(type(plugin))
    table: dict[str, Any] = {}
    for field in dataclasses.fields(plugin):
        inner, given = _registry_of(hints.get(field.name)), options.get(field.name)
        if inner is None:
            table[field.name] = _plain(getattr(plugin, field.name))
        elif isinstance(given, Mapping):
            rest = {str(k): v for k, v in cast(Mapping[str, Any], given).items()}
            table[field.name] = inner.resolve(str(rest.pop("name")), rest)
        elif isinstance(given, str):
            table[field.name] = inner.resolve(given, {})
    return table


def _plain(value: object) -> object:
    """Returns an option's value as a config holds it: a table for a dataclass of options."""
    grouped = dataclasses.is_dataclass(type(value))
    return dataclasses.asdict(cast(Any, value)) if grouped else value


def _option_types(plugin: type[Any]) -> dict[str, Any]:
    """Returns name and type of each option: the dataclass's fields."""
    if not dataclasses.is_dataclass(plugin):
        return {}
    hints = get_type_hints(plugin, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(plugin) if field.init}


def _required(plugin: type[Any]) -> set[str]:
    """Returns the options without a default."""
    absent = dataclasses.MISSING
    fields = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
    return {f.name for f in fields if f.default is absent and f.default_factory is absent}


def _registry_of(hint: Any) -> Registry[Any] | None:
    """Returns the registry whose plug-ins a field of this type holds, None for plain data."""
    held = (hint, *get_args(hint))  # a tuple: what annotates a type need not be hashable
    return next((r for r in ALL.values() if r.protocol in held), None)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    config = ConfigDict(strict=False, arbitrary_types_allowed=True, allow_inf_nan=False)
    return TypeAdapter(hint, config=config)


def _require_bounded(value: Any) -> None:
    """Raises a ValueError for an option's number that PyTorch cannot hold."""
    for number in cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise ValueError("expected a whole number of at most 63 bits")
        if isinstance(number, float) and abs(number) > 1e18:  # a whole number may come as a float
            raise ValueError("expected a number between -1e18 and 1e18")


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"


def _path_state() -> tuple[tuple[str, float], ...]:
    """Returns the folders on Python's path, and when something was last put there or removed."""
    found: list[tuple[str, float]] = []
    for place in sys.path:
        with contextlib.suppress(OSError):  # entries that are not there are usual
            found.append((place, os.stat(place or os.curdir).st_mtime))
    return tuple(found)


@functools.lru_cache(maxsize=1)  # reads every distribution, and a config asks a dozen times
def _entry_points(path_state: tuple[tuple[str, float], ...]) -> EntryPoints:
    """Returns the entry points of all distributions that a state of the path holds."""
    del path_state
    found = entry_points()
    return EntryPoints(point for group in found.groups for point in found.select(group=group))


def load_point(point: EntryPoint) -> Any:
    """Imports what an entry point names; see ``module_of``."""
    return EntryPoint(point.name, f"{module_of(point)}:{point.attr}", point.group).load()


def module_of(point: EntryPoint) -> str:
    """Returns the name under which an entry point's module is imported.

    That is its own, unless it is ours and a namesake (a ``segmenters.py`` in the working folder)
    stands before it on Python's path: then ours is taken from beside this package under another
    name, and the namesake stays importable for whoever means it. It works since our files import
    ``segcredit``, and each other by relative imports alone.
    """
    top = point.module.partition(".")[0]
    if top == __package__ or _origin(top) == str(_HOME / top / "__init__.py"):
        return point.module
    if point.dist is None or point.dist.name != __package__:
        return point.module
    if _OWN not in sys.modules:
        spec = ModuleSpec(_OWN, None, is_package=True)
        spec.submodule_search_locations = [str(_HOME)]
        sys.modules[_OWN] = importlib.util.module_from_spec(spec)
    return f"{_OWN}.{point.module}"


def _origin(top: str) -> str | None:
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None  # made by hand, and none of ours
    return spec and spec.origin


def _registered_modules() -> frozenset[str]:
    """Returns the modules of all installed plug-ins, of every kind."""
    points = _entry_points(_path_state())
    return frozenset(p.module for one in ALL.values() for p in points.select(group=one.group))


def _source(plugin: type) -> bytes:
    """Reads a plug-in's file; where it is alone in its package, all of the package's files.

    Plug-ins that stand side by side are a file each, and an edit of one is none of the others.
    """
    path = Path(inspect.getfile(plugin))
    module = plugin.__module__.removeprefix(f"{_OWN}.")
    package = module.rpartition(".")[0]
    beside = {other for other in _registered_modules() if other.rpartition(".")[0] == package}
    if not package or beside != {module}:
        return path.read_bytes()
    parts = sorted(part for part in path.parent.iterdir() if part.is_file())
    return b"".join(part.name.encode() + part.read_bytes() for part in parts)


def _cell_source(plugin: type) -> bytes:
    """Returns the cell of a notebook that defines a plug-in, found by one of its functions."""
    found = [inspect.unwrap(each) for each in vars(plugin).values() if inspect.isfunction(each)]
    files = sorted({each.__code__.co_filename for each in found} - {"<string>"})
    lines = [line for file in files for line in linecache.getlines(file)]
    code = [(each.__name__, each.__code__.co_code, each.__code__.co_consts) for each in found]
    return ("".join(lines) or repr(code)).encode()  # typed at a prompt: no lines are kept


def plugin_fault(error: BaseException) -> str | None:
    """Returns the sentence for an error that came through a plug-in's code; None for any other.

    The last resort, for what was raised where no plug-in was named: in a policy of one's own, say.
    """
    local = {found.__module__ for plugins in ALL.values() for found in plugins.local().values()}
    # What the package brings is its own fault.
    modules = {m for m in local | _registered_modules() if not m.startswith("segcredit.")}
    modules |= {f"{_OWN}.{module}" for module in modules}
    files = {getattr(sys.modules.get(module), "__file__", None) for module in modules}
    lines = [at for at in traceback.extract_tb(error.__traceback__) if at.filename in files]
    if not lines:
        return None
    at = lines[-1]
    return (
        f"the plug-in file {at.filename}, line {at.lineno}, in {at.name}, raised {told(error)}."
        " Mend it there; segcredit.testing's checks find more of"
        " such cases, and SEGCREDIT_TRACEBACK=1 shows where it was asked."
    )


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _file_of(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    return (spec.origin or "") if spec else ""


segmenters: Registry[Segmenter] = Registry("segmenter", "segcredit.segmenters", "Segmenter")
estimators: Registry[ValueEstimator] = Registry(
    "value estimator", "segcredit.estimators", "ValueEstimator"
)
advantages: Registry[AdvantageScheme] = Registry(
    "advantage scheme", "segcredit.advantages", "AdvantageScheme"
)
tasks: Registry[Task] = Registry("task", "segcredit.tasks", "Task")
environments: Registry[Environment] = Registry(
    "environment", "segcredit.environments", "Environment"
)
policies: Registry[PolicySource] = Registry("policy", "segcredit.policies", "PolicySource")
samplers: Registry[Sampler] = Registry("sampler", "segcredit.samplers", "Sampler")
process_rewards: Registry[ProcessReward] = Registry(
    "process reward", "segcredit.process_rewards", "ProcessReward"
)
ratios: Registry[Ratio] = Registry("importance ratio", "segcredit.ratios", "Ratio")
bounds: Registry[Bound] = Registry("bound", "segcredit.bounds", "Bound")
corrections: Registry[Correction] = Registry(
    "correction of the sampler", "segcredit.corrections", "Correction"
)
aggregations: Registry[Aggregation] = Registry(
    "aggregation", "segcredit.aggregations", "Aggregation"
)
ALL: dict[str, Registry[Any]] = {
    "segmenters": segmenters,
    "estimators": estimators,
    "advantages": advantages,
    "tasks": tasks,
    "environments": environments,
    "policies": policies,
    "samplers": samplers,
    "process_rewards": process_rewards,
    "ratios": ratios,
    "bounds": bounds,
    "corrections": corrections,
    "aggregations": aggregations,
}
PATHS: dict[str, Registry[Any]] = {
    "task": tasks,
    "environment": environments,
    "policy": policies,
    "sampler": samplers,
    "segmenter": segmenters,
    "estimator": estimators,
    "advantage": advantages,
    "process_reward": process_rewards,
    "credit_scheme": advantages,
    "loss.ratio": ratios,
    "loss.ratio_segmenter": segmenters,
    "loss.bound": bounds,
    "loss.correction": corrections,
    "loss.aggregate": aggregations,
    "train.value.aggregate": aggregations,
}
"""Registries by the dotted keys of a config that name a plug-in."""


def plugin_label(plugins: Registry[Any], table: Mapping[str, Any]) -> str:
    """Returns a plug-in's name with the options that are not its defaults, plug-ins inside alike.

    Args:
        plugins: the registry that knows it.
        table: its ``name`` beside its options.
    """
    plugin = plugins.find(str(table["name"]))
    fields = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
    usual, hints = {field.name: field.default for field in fields}, _option_types(plugin)
    options: list[str] = []
    for key, value in table.items():
        if key == "name" or value == usual.get(key):
            continue
        # A mapping is a plug-in only where the field holds one: it may be an option like any other.
        inner = _registry_of(hints.get(key))
        shown = str(value)
        if inner is not None and isinstance(value, Mapping):
            shown = plugin_label(inner, cast("Mapping[str, Any]", value))
        options.append(f"{key}={shown}")
    return f"{table['name']}({', '.join(options)})" if options else str(table["name"])
