"""Checkpoints: everything that a resumed run needs, one file a step.

    step_000010.pt       the state
    step_000010.shards/  what several processes held: see segcredit.records.sharded_tensors

A checkpoint is a nested dict of tensors and plain values, so that it can be loaded without running
any code that it carries. It appears atomically: a run that is killed while it saves still has the
checkpoint before. The zip archive that it is ends in a comment with the SHA-256 of all the rest,
which is compared before anything is loaded: what a disk has changed is never taken for weights.
Shards are written before it, and their files are listed in it with their checksums.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, cast

from segcredit.atomic_files import (
    checksum,
    remove,
    remove_folder,
    remove_temporaries,
    replacing,
    require_file,
    sync_directory,
    unwritten,
)
from segcredit.errors import RecordError, StorageError, loading

_FILE = re.compile(r"step_(\d+)\.pt")
_COMMENT = re.compile(rb"segcredit sha256 ([0-9a-f]{64})")
_COMMENT_BYTES = 81
_NO_COMMENT = b"\0\0"
"""Last bytes of a zip archive without a comment: the length of the one that it lacks."""
_LAST_STEP = 10**9
_FOLDER = ".shards"
SHARDS = "shards"
"""Key of a state for ``{"files": {name: checksum}, "places": [[key, ...], ...]}`` of its shards."""
_STATE = ("row", "policy", "estimator", "prompts", "further_prompts")
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


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
    import torch  # here: who reads tables of runs does not wait for it

    _require_plain(state, "state")
    path = file_of(path_dir, step)
    if path_dir.is_dir():
        remove_temporaries(path_dir)
    if SHARDS in state:
        _require_shared(shards_of(path), state[SHARDS]["files"])
        sync_directory(shards_of(path))
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
            _sign(file)
    except RuntimeError as error:
        # PyTorch's archive writer raises this on top of the OSError of a failed write.
        raise unwritten(path, error.__context__ or error) from error
    _remove_replaced(path_dir, step, keep)
    return path


def file_of(path_dir: Path, step: int) -> Path:
    """Returns the file of a step's checkpoint, whether or not it is there."""
    return path_dir / f"step_{step:06d}.pt"


def shards_of(file: Path) -> Path:
    """Returns the folder with the shards of a checkpoint's file, whether or not it has any."""
    return file.with_suffix(_FOLDER)


def make_room(path_dir: Path, step: int) -> Path:
    """Removes what there is of a step's checkpoint, and returns the new folder for its shards.

    Raises:
        StorageError: it cannot be removed, or no folder made.
    """
    file = file_of(path_dir, step)
    # The file first: it must never list what is gone.
    remove([file])
    remove_folder(shards_of(file))
    try:
        shards_of(file).mkdir(parents=True)
    except OSError as error:
        raise unwritten(shards_of(file), error) from error
    return shards_of(file)


def found(path_dir: Path) -> list[Path]:
    """Returns the checkpoints in a directory, in the order of their steps."""
    return [file for _, file in sorted(_checkpoints(path_dir).items())]


def load(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Loads the state that ``save`` stored, with its tensors on the CPU.

    Args:
        path: of the file.
        whole: whether sharded tensors are joined and put into their places; otherwise they stay in
            their folder, to be read by ``sharded_tensors.read``, and the state keeps ``SHARDS``.

    Raises:
        RecordError: the file is damaged, was changed since, or was not written by ``save``.
    """
    import torch

    with loading(f"The checkpoint {path}", _remedy(path), RecordError):
        _require_whole(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}, not a dict")
        state = cast("dict[str, Any]", found)
        if SHARDS in state:
            from segcredit.records import sharded_tensors

            sharded_tensors.require(shards_of(path), state[SHARDS]["files"])
            if whole:
                places = map(tuple, state.pop(SHARDS)["places"])
                tensors = sharded_tensors.read(shards_of(path), dict.fromkeys(places))
                sharded_tensors.put(state, tensors)
    return state


def load_run(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Loads the checkpoint of a run: its last row of metrics, and the states of all its parts.

    Args:
        path: of the file.
        whole: as for ``load``.

    Raises:
        RecordError: as ``load``, or the file is no run's checkpoint, or one of another step.
    """
    found = load(path, whole=whole)
    with loading(f"The checkpoint {path}", _remedy(path), RecordError):
        missing = [name for name in _STATE if not isinstance(found.get(name), dict)]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}, which a run's checkpoint has")
        step, named = found["row"].get("step"), _FILE.fullmatch(path.name)
        if type(step) is not int or not 0 <= step <= _LAST_STEP:
            raise ValueError(f"it is of step {step!r}, which no run has")
        if named and int(named[1]) != step:
            raise ValueError(f"it is of step {step}, which is not that of its name")
    return found


def fitting(path: Path) -> AbstractContextManager[None]:
    """Makes a sentence of what is raised where a checkpoint's states do not fit the live objects.

    Args:
        path: of the checkpoint, or of the directory with several.
    """
    remedy = (
        "expected the states of this config's policy, estimator and prompts. Usually the file is"
        " another run's, or a plug-in or a library is another version than the run's: choose"
        " another checkpoint, or start again in another --output."
    )
    return loading(f"The checkpoint {path}", remedy, RecordError)


def _sign(file: BinaryIO) -> None:
    """Appends the checksum of a zip archive to it, as its comment."""
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_COMMENT_BYTES.to_bytes(2, "little"))
    file.flush()
    with open(file.name, "rb") as written:
        file.write(b"segcredit sha256 " + checksum(written).encode())


def _require_whole(path: Path) -> None:
    """Compares a checkpoint with its checksum; one of the version before with those of its parts.

    Raises:
        ValueError: it was changed, or holds compressed parts, which could be of any size.
    """
    with require_file(path).open("rb") as file, zipfile.ZipFile(file) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("parts of it are compressed, which segcredit does not do")
        signed = _COMMENT.fullmatch(archive.comment)
        file.seek(0)
        size = path.stat().st_size - _COMMENT_BYTES
        if signed and checksum(file, size) != signed[1].decode():
            raise ValueError("its checksum is not that of its content")
        if not signed:
            file.seek(-len(_NO_COMMENT), os.SEEK_END)
            broken = file.read() != _NO_COMMENT or archive.testzip()
            if broken:
                raise ValueError("a part of it is not what was saved")


def _remedy(path: Path) -> str:
    earlier = [file for file in _checkpoints(path.parent).values() if file.name < path.name]
    rest = (
        f"resume from the earlier one, {max(earlier).name}, which --resume then finds"
        if earlier
        else "start the run again, since there is no earlier one"
    )
    return (
        "expected a file that segcredit saved. Usually the disk failed or the file was copied in"
        f" part: delete it and {rest}."
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
    for folder in path_dir.glob(f"step_*{_FOLDER}"):
        if not folder.with_suffix(".pt").exists():
            remove_folder(folder)


def _require_shared(folder: Path, files: Iterable[str]) -> None:
    """Raises a StorageError where what another process wrote cannot be seen."""
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise StorageError(
            f"{folder} lacks {missing[0]}, which another process wrote there; expected one folder"
            " for all processes. Usually they run on several machines and --output is on a disk of"
            " each: choose one that they share."
        )


def _require_plain(value: Any, place: str) -> None:
    """Raises on what ``weights_only`` refuses to load: better now than when a run resumes."""
    import torch

    # Exact types: a subclass (numpy.float64 is a float) is pickled as code.
    plain = (*_PLAIN, torch.dtype, torch.device, torch.Size)
    if isinstance(value, torch.Tensor) or type(value) in plain:
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
