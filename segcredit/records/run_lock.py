"""One process writes a run: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segcredit.atomic_files import unwritten
from segcredit.errors import BusyError

LOCK = ".lock"


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
        lock = FileLock(path / LOCK, timeout=0)
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
