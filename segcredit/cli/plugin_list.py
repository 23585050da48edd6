"""The rows of ``segcredit list``: what plug-ins say of themselves, in general without running them.

Read from source since an import of every plug-in costs seconds, and one that is only installed need
not be waited for.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from segcredit import registry
from segcredit.cli.plugin_commands import PluginCommand, plugin_commands
from segcredit.errors import RegistryError
from segcredit.registry import PluginInfo

_HOPS = 5
"""Most re-exports that are followed from an entry point to a definition."""


def plugin_rows(*, check: bool) -> Iterator[tuple[str, PluginInfo]]:
    """Yields kind and origin of every plug-in, and of the commands that plug-ins add.

    Args:
        check: import each, so that one that fails is a row with its error.
    """
    points = entry_points()
    for plugins in registry.ALL.values():
        offered = points.select(group=plugins.group)
        for name in plugins.names():
            mine = [point for point in offered if point.name == name]
            # Of none (a plug-in of this session) and of several, the registry knows what to say.
            known = check or len(mine) != 1
            yield plugins.kind, plugins.info(name) if known else _info(plugins.kind, mine[0])
    for command in plugin_commands():
        yield "command", _command_info(command, check=check)


def _command_info(command: PluginCommand, *, check: bool) -> PluginInfo:
    info = _info("command", command.points[0])
    try:
        if check or len(command.points) > 1:
            command.function()
    except RegistryError as error:
        return replace(info, error=str(error))
    return info


def _info(kind: str, point: EntryPoint) -> PluginInfo:
    """Reads where a plug-in comes from and the first line of its docstring."""
    owner, version = _owner(point.dist) if point.dist else ("an unknown distribution", "")
    try:
        file, summary = _read(point)
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        sentence = (
            f"{kind} {point.name!r} (entry point {point.value!r} of {owner} {version}) cannot be"
            f" read: {error}. Reinstall or uninstall that package."
        )
        return PluginInfo(point.name, owner, version, "", "", error=sentence)
    return PluginInfo(point.name, owner, version, file, summary)


@cache  # to say its name, a distribution parses all of its metadata
def _owner(distribution: Distribution) -> tuple[str, str]:
    return distribution.name, distribution.version


def _read(point: EntryPoint) -> tuple[str, str]:
    spec = _spec(registry.module_of(point))
    return spec.origin or "", _summary(spec, point.attr)


def _spec(module: str) -> ModuleSpec:
    """Finds a module; ``find_spec`` alone would import the packages around it."""
    top, *parts = module.split(".")
    name, spec = top, importlib.util.find_spec(top)
    for part in parts:
        name, places = f"{name}.{part}", spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(name, places) if places is not None else None
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {module!r}")
    return spec


def _summary(spec: ModuleSpec, name: str, hops: int = _HOPS) -> str:
    """Returns a docstring's first line; "" where only an import would tell what the name is."""
    if not spec.has_location or not spec.origin or not hops:
        return ""
    for node in ast.parse(Path(spec.origin).read_bytes(), spec.origin).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
            case ast.ImportFrom():
                named = [x.name for x in node.names if (x.asname or x.name) == name]
                for original in named:
                    module = "." * node.level + (node.module or "")
                    home = _spec(importlib.util.resolve_name(module, spec.parent))
                    return _summary(home, original, hops - 1)
            case _:
                pass
    return ""
