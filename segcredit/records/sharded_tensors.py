"""Tensors that processes hold in shards, in a folder beside a checkpoint's file.

The format is that of ``torch.distributed.checkpoint``: each process writes the shards it holds, and
any number of processes reads them, each what it is to hold. The checkpoint's file lists the
folder's files with their checksums, and appears after them.
"""

# torch.distributed carries few types: what it returns is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from segcredit.atomic_files import checksum, require_file, unwritten

Place = tuple[Any, ...]
"""Keys that lead to a tensor in nested dicts."""

_INDEX = ".metadata"
_IN_INDEX = {
    "collections": {"OrderedDict"},
    "torch": {"Size", "device", "dtype", "float32", "float64"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""Everything that the index of a folder is made of, by module; sharded parameters are float32."""


def split(state: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Place, DTensor]]:
    """Returns a state without its sharded tensors, and these by their places.

    Args:
        state: nested dicts; within lists and tuples nothing is sharded.
    """
    plain: dict[Any, Any] = {}
    sharded: dict[Place, DTensor] = {}
    for key, value in state.items():
        if isinstance(value, DTensor):
            sharded[(key,)] = value
        elif isinstance(value, Mapping):
            plain[key], found = split(cast("Mapping[Any, Any]", value))
            sharded |= {(key, *place): x for place, x in found.items()}
        else:
            plain[key] = value
    return plain, sharded


def put(state: dict[Any, Any], tensors: Mapping[Place, Tensor]) -> None:
    """Puts tensors back to their places in a state that was split from them."""
    for place, tensor in tensors.items():
        inside = state
        for key in place[:-1]:
            inside = inside.setdefault(key, {})
        inside[place[-1]] = tensor


def write(folder: Path, tensors: Mapping[Place, DTensor]) -> None:
    """Writes what every process holds of sharded tensors; all of them call it alike.

    Args:
        folder: new or empty, the same for every process.
        tensors: by their places.

    Raises:
        StorageError: a process could not write.
    """
    named = {_name(place): tensor for place, tensor in tensors.items()}
    try:
        save(named, storage_writer=_Writer(folder))
    except CheckpointException as error:  # no Exception, which nobody would catch
        raise unwritten(folder, _first(error)) from error


def read(folder: Path, like: Mapping[Place, DTensor | None]) -> dict[Place, Tensor]:
    """Reads tensors; no other process need do the same.

    Args:
        folder: that ``write`` wrote.
        like: by each place a sharded tensor, of whose like this process reads what it is to hold;
            None = the whole, on the CPU.

    Raises:
        Exception: whatever torch raises where a tensor is missing or of another shape.
    """
    reader = _Reader(folder)
    index = reader.read_metadata().state_dict_metadata
    found = {
        place: _whole(index[_name(place)]) if sharded is None else torch.empty_like(sharded)
        for place, sharded in like.items()
    }
    named = {_name(place): tensor for place, tensor in found.items()}
    with warnings.catch_warnings():
        # Each process reads for itself, as is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(cast("dict[str, Any]", named), storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise _first(error) from error
    return found


def checksums(folder: Path, writer: int) -> dict[str, str]:
    """Returns the checksums of the files that a process wrote, by their names.

    Args:
        folder: that ``write`` wrote.
        writer: the process's number; the first one wrote the index, too.
    """
    mine = sorted(folder.glob(f"__{writer}_*")) + [folder / _INDEX] * (writer == 0)
    return {file.name: _checksum(file) for file in mine}


def require(folder: Path, expected: Mapping[str, str]) -> None:
    """Compares the files of a folder with their checksums.

    Raises:
        ValueError: one is missing or was changed; names it.
    """
    for name, wanted in expected.items():
        try:
            found = _checksum(folder / name)
        except FileNotFoundError:
            raise ValueError(
                f"{folder.name}/{name} is missing, which belongs beside it, as written by one of"
                " its processes"
            ) from None
        if found != wanted:
            raise ValueError(f"the checksum of {folder.name}/{name} is not that of its content")


class _Writer(FileSystemWriter):
    """Writes an index that does not say where it is: folders are moved, also to other systems."""

    def storage_meta(self) -> None:
        """Returns nothing."""


class _Reader(FileSystemReader):
    """Reads an index without running any code that it carries."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the index of the folder."""
        with require_file(Path(self.path) / _INDEX).open("rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise TypeError(f"its index holds a {type(found).__name__}")
        return found


class _Unpickler(pickle.Unpickler):
    """Makes what an index is made of, and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns an object by its name.

        Raises:
            pickle.UnpicklingError: an index has no such part.
        """
        if global_name not in _IN_INDEX.get(module_name, ()):
            raise pickle.UnpicklingError(f"its index asks for {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _whole(stored: Any) -> Tensor:
    """Returns room on the CPU for a tensor as the index has it."""
    found = cast(TensorStorageMetadata, stored)
    return torch.empty(found.size, dtype=found.properties.dtype)


def _first(error: CheckpointException) -> BaseException:
    """Returns what the first of the processes that failed had raised."""
    return next(iter(error.failures.values()))[0]


def _name(place: Place) -> str:
    return "/".join(map(str, place))


def _checksum(file: Path) -> str:
    with require_file(file).open("rb") as content:
        return checksum(content)
