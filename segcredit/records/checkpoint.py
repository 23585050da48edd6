"""Checkpoints: everything that a resumed run needs, one file a step.

A checkpoint is a nested dict of tensors and plain values, so that it can be loaded without running
any code that it carries. It appears atomically: a run that is killed while it saves still has the
checkpoint before.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from segcredit.atomic_files import remove, remove_temporaries, replacing, unwritten
from segcredit.errors import RecordError

_FILE = re.compile(r"step_(\d+)\.pt")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def save(path_dir: Path, step: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Saves ``state`` as the checkpoint of ``step`` and removes those that it replaces.

    Later steps are removed too: they belong to a future that was given up when the run went back.

    Args:
        path_dir: the directory of the checkpoints; made where it is missing.
        step: optimisation step after which the state was taken, from 0.
        state: nested dicts, lists and tuples of tensors and plain values.
        keep: how many of the newest checkpoints stay, at least 1.

    Returns:
        The file written.

    Raises:
        RecordError: something in ``state`` could not be loaded again, or the file cannot be
            written; the earlier checkpoints are then untouched.
    """
    if keep < 1:
        raise RecordError(
            f"keep is {keep}; expected at least 1, since a run resumes from its last checkpoint."
        )
    _require_plain(state, "state")
    path = path_dir / f"step_{step:06d}.pt"
    if path_dir.is_dir():
        remove_temporaries(path_dir)
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # PyTorch's archive writer raises this on top of the OSError of a failed write.
        raise unwritten(path, error.__context__ or error) from error
    _remove_replaced(path_dir, step, keep)
    return path


def found(path_dir: Path) -> list[Path]:
    """Returns the checkpoints in a directory, in the order of their steps."""
    return [file for _, file in sorted(_checkpoints(path_dir).items())]


def load(path: Path) -> dict[str, Any]:
    """Loads the state that ``save`` stored, with its tensors on the CPU.

    Raises:
        RecordError: the file is damaged or was not written by ``save``.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        raise _unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, dict):
        raise _unreadable(path, TypeError(f"it holds a {type(found).__name__}, not a dict"))
    return cast("dict[str, Any]", found)


def _unreadable(path: Path, error: Exception) -> RecordError:
    earlier = [file for file in _checkpoints(path.parent).values() if file.name < path.name]
    rest = (
        f"resume from the earlier one, {max(earlier).name}, which --resume then finds"
        if earlier
        else "start the run again, since there is no earlier one"
    )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RecordError(
        f"The checkpoint {path} cannot be read ({reason}); expected a file that segcredit saved."
        f" Usually the disk failed or the file was copied in part: delete it and {rest}."
    )


def _checkpoints(path_dir: Path) -> dict[int, Path]:
    """Finds the checkpoints by step; files under any other name do not count."""
    files = path_dir.iterdir() if path_dir.is_dir() else ()
    matches = ((_FILE.fullmatch(file.name), file) for file in files)
    return {int(match[1]): file for match, file in matches if match}


def _remove_replaced(path_dir: Path, step: int, keep: int) -> None:
    found = _checkpoints(path_dir)
    kept = sorted(other for other in found if other <= step)[-keep:]
    remove(file for other, file in found.items() if other not in kept)


def _require_plain(value: Any, place: str) -> None:
    """Raises on what ``weights_only`` refuses to load: better now than when a run resumes."""
    # Exact types: a subclass (numpy.float64 is a float) is pickled as code.
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in cast("dict[Any, Any]", value).items():
            _require_plain(key, f"a key of {place}")
            _require_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(cast("list[Any]", value)):
            _require_plain(item, f"{place}[{index}]")
    else:
        raise RecordError(
            f"The checkpoint cannot hold {place}, a {type(value).__name__}; expected tensors, plain"
            " numbers, text, and dicts, lists and tuples of them. Usually a plug-in's"
            " get_extra_state returns an object: let it return a dict of tensors."
        )
