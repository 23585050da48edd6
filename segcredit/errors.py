"""The errors that segcredit raises, each with a sentence for its message.

    SegcreditError
    ├── ShapeError        a tensor or a segmentation breaks an invariant of its type
    ├── ConfigError       a config cannot be read, or a key or a value in it is wrong
    ├── RegistryError     a plug-in is unknown, doubled, fails to import or cannot be built
    ├── PluginError       a plug-in broke its contract, or raised, while it was used
    ├── TaskError         a task has no prompts to give, or its verifier failed
    ├── PolicyError       a model cannot be loaded or cannot do what is asked of it
    ├── TrainingError     training cannot go on: loss not finite, nothing to learn from
    │   └── LostProcessError    another process of the run is gone
    ├── RecordError       a run directory cannot be read, or holds another run
    │   ├── StorageError  the disk refused to be written
    │   └── BusyError     another process writes the run
    ├── StudyError        a grid or a table cannot be made from what was given
    └── MissingPackageError    what was asked for needs a package that is not installed

Every message says what was found, what was expected, the usual cause and what to do.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from types import FunctionType


class SegcreditError(Exception):
    """Whatever segcredit refuses; the command line prints its message without a traceback."""


class ShapeError(SegcreditError, ValueError):
    """A tensor, or the way that several fit together, breaks an invariant; names the field."""


class ConfigError(SegcreditError, ValueError):
    """A config cannot be read, or one of its keys or values is wrong; carries the dotted path."""


class RegistryError(SegcreditError, LookupError):
    """A plug-in is unknown, registered twice, fails to import, or refuses its options."""


class PluginError(SegcreditError, RuntimeError):
    """A plug-in broke its contract, or raised, while a run used it; names the plug-in."""


class TaskError(SegcreditError, RuntimeError):
    """A task cannot give prompts, or its verifier failed on a completion."""


class PolicyError(SegcreditError, RuntimeError):
    """A model cannot be loaded, or lacks something that reinforcement learning needs."""


class TrainingError(SegcreditError, RuntimeError):
    """Training cannot go on; the message says which checkpoint is the last good one."""


class LostProcessError(TrainingError):
    """Another process of the run is gone: what was recorded is intact, and one can go on."""


class RecordError(SegcreditError, OSError):
    """A run directory cannot be written or read, or belongs to another config."""


class StorageError(RecordError):
    """The disk refused to be written: what was recorded before is intact, and one can go on."""


class BusyError(RecordError):
    """Another process is writing the run."""


class StudyError(SegcreditError, ValueError):
    """A grid, table or figure cannot be made from what was given."""


class MissingPackageError(SegcreditError, ImportError):
    """A package that one of segcredit's extras brings is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence on an unknown name: the nearest known one, or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


UNREADABLE = (ValueError, RecursionError)
"""The errors of the parsers of TOML and JSON; the second, of a text that is nested too deeply."""


def parser_words(error: ValueError | RecursionError) -> str:
    """Returns what a parser of TOML or JSON found, as the middle of a sentence."""
    if isinstance(error, RecursionError):
        return "its tables or lists are nested too deeply"
    if "integer string conversion" in str(error):
        return f"an integer has more than {sys.get_int_max_str_digits():,} digits"
    return shown(str(error), plain=True)


def pydantic_words(message: str) -> str:
    """Returns what pydantic says of a value, as the end of a sentence; small numbers as 1e-09."""
    bare = message.removeprefix("Value error, ").removesuffix(".")
    return re.sub(r"\b0\.0{3,}\d+", lambda small: f"{float(small[0]):g}", bare)


def shown(value: object, *, plain: bool = False, most: int = 200) -> str:
    """Returns a value as a message has it, whatever it is.

    Args:
        value: of any kind, such as what a user gave.
        plain: as text rather than as Python would write it.
        most: characters; of a longer text the beginning is shown.
    """
    try:
        text = str(value) if plain else repr(value)
    except Exception:  # integers of too many digits, lists nested too deeply, a plug-in's own repr
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[: most - 50]} ... ({len(text):,} characters)"


def told(error: BaseException) -> str:
    """Returns what somebody else's error says, which may be nothing, or megabytes."""
    if isinstance(error, SystemExit):
        return f"SystemExit ({error.code}), which would end the program: let it raise an error"
    return f"{type(error).__name__}: {shown(error, plain=True, most=2000)}".removesuffix(".")


@contextmanager
def blame(kind: str, name: str, plugin: object) -> Generator[None]:
    """Names the plug-in, its file and its line in whatever it raises.

    Errors that tell of somebody else's fault pass as they are: of a task that an estimator asked
    for completions, of a policy, of the run.

    Args:
        kind: of the plug-in, such as "segmenter".
        name: under which it is registered.
        plugin: the object that is asked inside.

    Raises:
        PluginError: the plug-in raised, or what it returned was refused.
    """
    try:
        yield
    except (MissingPackageError, PluginError, PolicyError, RecordError, TaskError, TrainingError):
        raise
    except SegcreditError as error:
        raise PluginError(f"{kind} {name!r}{place_of(error, plugin)}: {error}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{kind} {name!r}{place_of(error, plugin)} raised {told(error)}. Run"
            " segcredit.testing's checks over it to find the case that it does not bear."
        ) from error


@contextmanager
def loading(what: str, remedy: str, kind: type[SegcreditError]) -> Generator[None]:
    """Makes a sentence of whatever a library raises over a file that it cannot read.

    Libraries raise their own kinds for what is torn or foreign, and more with each release.

    Args:
        what: the file as the sentence begins, such as "The checkpoint FILE".
        remedy: what was expected, the usual cause and what to do.
        kind: of error that is raised.
    """
    try:
        yield
    except SegcreditError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
        raise kind(f"{what} cannot be read ({reason:.300}); {remedy}") from error


def require_type(method: str, found: object, expected: type[object]) -> None:
    """Raises a ShapeError where a plug-in's method returned something of another type."""
    if not isinstance(found, expected):
        raise ShapeError(
            f"{method} returned {'nothing' if found is None else type(found).__name__};"
            f" expected {expected.__name__}. Usually a return statement was forgotten, or"
            " returns another thing."
        )


def place_of(error: BaseException, plugin: object) -> str:
    """Returns a plug-in's file, and the last line of it that an error came through, in brackets."""
    # Not inspect.getfile: a class of a notebook's cell has no file, but its methods do.
    methods = [inspect.unwrap(x) for x in vars(type(plugin)).values() if callable(x)]
    functions = [x for x in methods if isinstance(x, FunctionType)]
    own = [x.__code__ for x in functions if x.__module__ not in ("dataclasses", "typing")]
    files = {code.co_filename for code in own} - {"<string>"}
    lines = [at for at in traceback.extract_tb(error.__traceback__) if at.filename in files]
    if lines:
        return f" ({lines[-1].filename}, line {lines[-1].lineno}, in {lines[-1].name})"
    return f" ({min(files)})" if files else ""


def require_one_of(name: str, found: str, expected: Sequence[str]) -> None:
    """Raises a ValueError where an option has none of the values that it may have."""
    if found not in expected:
        raise ValueError(
            f"{name} is {found!r}; expected one of {', '.join(map(repr, expected))}."
            f" For example {name}={expected[0]!r}."
        )


def require_package(module: str, extra: str, user: str, instead: str = "") -> None:
    """Raises a MissingPackageError where a package that an extra brings is not installed.

    Args:
        module: the package as it is imported; it is looked for and not imported.
        extra: of segcredit, by which it is installed.
        user: what needs it, as the message begins, such as "segmenter 'surprise_change'".
        instead: how to do without, as the message ends, such as "leave policy.lora out".
    """
    if importlib.util.find_spec(module) is None:
        raise MissingPackageError(
            f"{user} needs the package {module.replace('_', '-')}, which is not installed. Install"
            f" it with pip install 'segcredit[{extra}]'{f', or {instead}' if instead else ''}."
        )
