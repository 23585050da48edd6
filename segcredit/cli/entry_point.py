"""The entry point: every end of a command that is not well is one sentence and an exit status.

1 for an error of ours, of a plug-in or a path, 130 after Ctrl-C; typer has 2 for bad arguments.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

from segcredit.cli.commands import Stopped, app, escaped
from segcredit.cli.plugin_commands import with_plugin_commands
from segcredit.errors import SegcreditError, shown


def main(arguments: Iterable[str] | None = None) -> None:
    """Runs a command; an error of ours, or an interruption, is a sentence, not a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    again = shlex.join(["segcredit", *given])
    try:
        with _plain_warnings():
            with_plugin_commands(app)(args=None if arguments is None else given)
    except Stopped as stop:
        _say_how_to_go_on(str(stop), stop.going_on or again)
    except SegcreditError as error:
        Console(stderr=True).print(f"[red]error:[/] {escaped(str(error))}", soft_wrap=True)
        sys.exit(1)
    except SystemExit as error:  # of the commands themselves, unless it came through a plug-in
        if error.code == _INTERRUPTED:  # inside a command of a plug-in
            _say_how_to_go_on("stopped.", again)
        text = _plugin_exit(error)
        if text is None:
            raise
        Console(stderr=True).print(f"[red]error:[/] {escaped(text)}", soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if "SEGCREDIT_TRACEBACK" in os.environ:
            raise
        from segcredit.registry import plugin_fault
        from segcredit.training.out_of_memory import memory_advice

        said = shown(error, plain=True)
        text = (
            memory_advice(error)
            or plugin_fault(error)
            or _refused_path(error)
            or (
                f"unexpected {type(error).__name__}: {said}. This is a fault of segcredit or"
                " of a library, rather than of your input. SEGCREDIT_TRACEBACK=1 shows"
                " where; a run's status.json holds it too."
            )
        )
        Console(stderr=True).print(f"[red]error:[/] {escaped(text)}", soft_wrap=True)
        sys.exit(1)


_INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of the signal."""


def _say_how_to_go_on(reason: str, command: str) -> NoReturn:
    """Ends an interrupted command with one line."""
    text = f"{reason} What was recorded is intact; to go on: {command}"
    Console(stderr=True).print(escaped(text), soft_wrap=True, highlight=False)
    sys.exit(_INTERRUPTED)


def _plugin_exit(error: SystemExit) -> str | None:
    """Returns the sentence for a plug-in that left the program; None where a command did."""
    registry = sys.modules.get("segcredit.registry")  # without it no plug-in was loaded
    return None if registry is None else registry.plugin_fault(error)


def _refused_path(error: Exception) -> str | None:
    """Returns the sentence for a path that the system refused; None for any other error."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    return (
        f"{shown(str(error.filename), plain=True)} cannot be used: {error.strerror}. Usually a path"
        " is mistyped or too long, or its folder belongs to somebody else: give another one."
    )


@contextmanager
def _plain_warnings() -> Generator[None]:
    """Shows a warning about a name that changed as its sentence, without a line of our code."""
    usual = warnings.formatwarning

    def sentence(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is FutureWarning:
            return f"note: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = usual
