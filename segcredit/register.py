"""Registers plug-ins for this session: decorators for notebooks and for files given as --code.

@segcredit.register.segmenter("mine")
@dataclass(frozen=True, slots=True)
class Mine(segcredit.TextSegmenter): ...
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from segcredit import registry
from segcredit.errors import ConfigError

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
policy = _decorator(registry.policies)
sampler = _decorator(registry.samplers)
process_reward = _decorator(registry.process_rewards)


def load_code(files: Sequence[str]) -> None:
    """Runs plug-in files, each once in a session: the plug-ins inside register themselves.

    Raises:
        ConfigError: a file is missing, or raises while it is run.
    """
    for path in [Path(file).resolve() for file in files]:
        # Two files of one stem are two modules.
        name = f"segcredit_code_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
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
            f"--code {path}{line} raised {type(error).__name__} while it was loaded: {error}. A"
            " plug-in file defines and registers classes; keep what runs something else out of it,"
            " or behind if __name__ == '__main__'."
        ) from error
