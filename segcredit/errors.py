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
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager


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


@contextmanager
def blame(kind: str, name: str) -> Generator[None]:
    """Names the plug-in in whatever it raises."""
    try:
        yield
    except TrainingError:
        raise  # such as a lost process, while all of them answered the plug-in
    except SegcreditError as error:
        raise PluginError(f"{kind} {name!r}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"{kind} {name!r} raised {type(error).__name__}: {error}. Run segcredit.testing's"
            " checks over it to find the case that it does not bear."
        ) from error


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
