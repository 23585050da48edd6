"""Reading files that a run may be writing, packing, cutting or removing at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from segcredit.errors import RecordError, StudyError

_TRIES = 10
_LISTINGS = 3
"""Times that a listing may fail: the run may be being made or removed."""
_WAIT = 0.02
"""Seconds, one time more after each try."""

T = TypeVar("T")


def settled(
    directory: Path, list_files: Callable[[], Sequence[Path]], read: Callable[[Sequence[Path]], T]
) -> T:
    """Returns what ``read`` makes of files that all stayed from beginning to end.

    Files appear whole (``atomic_files``), so that only their disappearing has to be noticed:
    a run that ends packs its step files into one and removes them, one that restarts cuts them.

    Args:
        directory: of the run, for the message.
        list_files: the files as they are now.
        read: reads them.

    Raises:
        StudyError: they changed whenever they were read.
        Exception: that of ``read``, where it fails on files that did not change: they are damaged;
            or that of ``list_files``, where it fails again and again.
    """
    for number in range(_TRIES):
        if number:
            time.sleep(number * _WAIT)
        try:
            files = list_files()
        except RecordError:
            if number == _LISTINGS:
                raise
            continue
        before = _identities(files) if number else None  # not needed where all goes well
        try:
            found = read(files)
        except (OSError, pa.ArrowException):
            if _identities(files) == before and set(files) <= set(list_files()):
                raise
            continue
        # One file is there whole or not at all; of several, some may have been gone when listed.
        if len(files) < 2 or set(files) <= set(list_files()):
            return found
    raise StudyError(
        f"The files of the run in {directory} changed {_TRIES} times while they were read. Usually"
        " the run is being removed, copied or written by several processes: read again when that"
        " has ended."
    )


def _identities(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """Returns marks that tell a file from a successor of its name; None where there is none."""
    return [_identity(file) for file in files]


def _identity(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
