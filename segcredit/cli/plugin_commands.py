"""Commands that plug-ins add to the command line: entry points of the group ``segcredit.commands``.

An entry point names a function as typer takes them: its parameters are the command's arguments and
options, its docstring the help. It is imported when the command is called, and not before, so that
no other command waits for it or fails with it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.models import CommandInfo

from segcredit.errors import RegistryError

GROUP = "segcredit.commands"
_LET_THROUGH: dict[Any, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
"""Everything after the command's name, ``--help`` included, is for the function behind it."""


@dataclass(frozen=True, slots=True)
class PluginCommand:
    """A command that a distribution offers."""

    name: str
    distribution: str
    points: tuple[EntryPoint, ...]

    def __call__(self, context: typer.Context) -> None:
        """Imports the function and runs it with the arguments of the command line.

        Raises:
            RegistryError: it cannot be had, or is no function that typer can call.
        """
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(self.name)(self.function())
        try:
            command = typer.main.get_command(single)
        except Exception as error:  # typer's own checks of signatures raise several kinds
            raise RegistryError(
                f"command {self.name!r} of {self.distribution} cannot be called from the command"
                f" line: {type(error).__name__}: {error}. Expected a function whose parameters"
                " have types that typer knows."
            ) from error
        command(args=context.args, prog_name=context.command_path)

    def function(self) -> Any:
        """Loads the function that the entry point names.

        Raises:
            RegistryError: two distributions offer it, its import fails, or it cannot be called.
        """
        from segcredit.registry import load_point

        point, *others = self.points
        if others:
            raise RegistryError(
                f"command {self.name!r} is offered by two distributions, {self.distribution}."
                " Uninstall one, or rename the entry point in one of them."
            )
        where = f"(entry point {point.value!r} of {self.distribution})"
        try:
            function = load_point(point)
        except Exception as error:
            raise RegistryError(
                f"command {self.name!r} {where} failed to import: {type(error).__name__}: {error}."
                " The other commands work; reinstall or uninstall that package."
            ) from error
        if not callable(function):
            raise RegistryError(
                f"command {self.name!r} {where} is {type(function).__name__}; expected a function"
                " whose parameters are the command's arguments and options."
            )
        return function


def plugin_commands() -> list[PluginCommand]:
    """Returns every command offered, by name; imports none of them."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    names = dict.fromkeys(point.name for point in points)
    return [_command(name, [point for point in points if point.name == name]) for name in names]


def with_plugin_commands(app: typer.Typer) -> typer.Typer:
    """Builds the application with the commands of plug-ins; its own win where both have a name.

    The application itself is not changed.
    """
    taken = {_name(command) for command in app.registered_commands}
    made = copy.copy(app)
    made.registered_commands = [*app.registered_commands]
    for command in plugin_commands():
        if command.name not in taken:
            made.command(
                command.name,
                help=f"From {command.distribution}; its own --help says more.",
                context_settings=_LET_THROUGH,
                rich_help_panel="Commands of plug-ins",
            )(command.__call__)
    return made


def _name(command: CommandInfo) -> str:
    """Returns the name as typed: typer derives it from the function where none is given."""
    function = "" if command.callback is None else command.callback.__name__
    return command.name or function.replace("_", "-")


def _command(name: str, points: list[EntryPoint]) -> PluginCommand:
    owners = {f"{p.dist.name} {p.dist.version}" for p in points if p.dist is not None}
    distribution = " and ".join(sorted(owners)) or "an unknown distribution"
    return PluginCommand(name, distribution, tuple(points))
