"""Registers plug-ins for this session: decorators for notebooks and for files given as --code.

@segcredit.register.segmenter("mine")
@dataclass(frozen=True, slots=True)
class Mine(segcredit.TextSegmenter): ...
"""

# cloudpickle carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import importlib.util
import pickle
import sys
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle

from segcredit import registry
from segcredit.errors import ConfigError, RegistryError, told

C = TypeVar("C", bound=type)


def _decorator(into: registry.Registry[Any]) -> Callable[[str], Callable[[C], C]]:
    def named(name: str) -> Callable[[C], C]:
        def add(plugin: C) -> C:
            into.add(name, plugin)
            return plugin

        return add

    return named


segmenter = _decorator(registry.segmenters)
estimator = _decorator(registry.estimators)
advantage = _decorator(registry.advantages)
task = _decorator(registry.tasks)
environment = _decorator(registry.environments)
policy = _decorator(registry.policies)
sampler = _decorator(registry.samplers)
process_reward = _decorator(registry.process_rewards)
ratio = _decorator(registry.ratios)
bound = _decorator(registry.bounds)
correction = _decorator(registry.corrections)
aggregation = _decorator(registry.aggregations)


def carried() -> bytes:
    """Returns this session's plug-ins, of notebooks and scripts too, for another process.

    Raises:
        RegistryError: one holds what cannot leave this process; says which.
    """
    return pickle.dumps(
        [
            (kind, name, _packed(plugins, name, plugin), plugins.identity(name))
            for kind, plugins in registry.ALL.items()
            for name, plugin in plugins.local().items()
            if not plugin.__module__.startswith(_CODE)  # its file is loaded there as well
        ]
    )


def _packed(plugins: registry.Registry[Any], name: str, plugin: type) -> bytes:
    """Returns a class itself: its module may lie where the other process looks for none."""
    module = sys.modules[plugin.__module__]
    by_value = plugin.__module__ not in ("__main__", *cloudpickle.list_registry_pickle_by_value())
    try:
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        return cloudpickle.dumps(plugin)
    except Exception as error:  # whatever a class of a user's may hold refuses in its own way
        raise RegistryError(
            f"{plugins.kind} {name!r}, which this session defines, cannot be carried over to the"
            f" processes that run a grid ({told(error)})."
            " Usually it reads a variable of the notebook that belongs to this process, such as an"
            " open file: write the plug-in into a file of its own, and give that as code=[...] or"
            " --code."
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def take_over(plugins: bytes) -> None:
    """Registers what ``carried`` returned in another process.

    Raises:
        ConfigError: a plug-in's module cannot be imported here.
    """
    for kind, name, packed, identity in pickle.loads(plugins):
        try:
            registry.ALL[kind].take_over(name, pickle.loads(packed), identity)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{registry.ALL[kind].kind} {name!r} was registered by the process that started the"
                f" grid, but cannot be made here: {told(error)}. Give its file as code=[...] or"
                " --code."
            ) from error


_CODE = "segcredit_code_"


def load_code(files: Sequence[str]) -> None:
    """Runs plug-in files, each once in a session: the plug-ins inside register themselves.

    Raises:
        ConfigError: a file is missing, or raises while it is run.
    """
    for path in [Path(file).resolve() for file in files]:
        # Two files of one stem are two modules.
        name = f"{_CODE}{path.stem}_{zlib.crc32(str(path).encode()):08x}"
        if name not in sys.modules:
            _load(path, name)


def _load(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(
            f"--code {path}: there is no such Python file; expected one that ends in .py. A path is"
            f" relative to the folder that the command is run in, {Path.cwd()}."
        )
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses look their module up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raised = [
            at.lineno
            for at in traceback.extract_tb(error.__traceback__)
            if at.filename == str(path)
        ]
        line = f", line {raised[-1]}," if raised else ""
        raise ConfigError(
            f"--code {path}{line} raised {told(error)}, while it was loaded. A plug-in file defines"
            " and registers classes; keep what runs something else out of it,"
            " or behind if __name__ == '__main__'."
        ) from error
