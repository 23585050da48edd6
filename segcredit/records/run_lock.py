"""One process writes a run: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segcredit.atomic_files import unwritten
from segcredit.errors import BusyError

LOCK = ".lock"
_PATIENCE = 0.2
"""Seconds in which a reader that asks who holds a lock has let go of it."""


@contextmanager
def run_lock(path: Path) -> Generator[None]:
    """Holds the run directory ``path``, which is made where it is missing.

    The lock is the operating system's (``flock``), on the file ``.lock``: it is free again as soon
    as the process ends, killed or not. On a network file system it holds between machines as far
    as that file system's locks do.

    Raises:
        BusyError: another process holds it.
        StorageError: the directory cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A reader may ask for it at the same moment, see below.
        lock = FileLock(path / LOCK, timeout=_PATIENCE)
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"{path} is being written by another process: one process writes a run. Usually a grid"
            " or a training on it still goes on: wait for it or stop it, or choose another"
            " --output."
        ) from error
    except OSError as error:
        raise unwritten(path, error) from error
    try:
        yield
    finally:
        lock.release()


def is_abandoned(path: Path) -> bool:
    """Tells whether the process that wrote the run directory ``path`` is gone, however it ended.

    False where nobody can say: without a lock's file, as in a copy, or where it cannot be asked.
    """
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
