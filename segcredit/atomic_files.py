"""Files that appear whole: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO

from segcredit.errors import RecordError, StorageError


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Opens a file that takes its place at ``path``, whole, when the block ends.

    Raises:
        StorageError: the disk is full or the place may not be written; ``path`` keeps what it
            held, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except RecordError:
        raise
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        # Gone already when all went well; the error above says more than one of the removal.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``data`` beside ``path``, syncs it, and renames it into place.

    Raises:
        StorageError: as in ``replacing``.
    """
    with replacing(path) as file:
        file.write(data)


def require_file(path: Path, most: int | None = None) -> Path:
    """Returns the path of a plain file, or of nothing; a pipe or a device would be waited for.

    Args:
        path: of the file.
        most: bytes that it may have; None = any number.

    Raises:
        OSError: it is something else, or larger.
    """
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return path


def require_writable(path: Path) -> None:
    """Checks that a file can be written at ``path``, before the work whose result it is to hold.

    Raises:
        StorageError: it cannot be.
    """
    folder = next(place for place in path.absolute().parents if place.exists())
    try:
        require_file(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritten(path, error) from error


def checksum(file: BinaryIO, size: int | None = None) -> str:
    """Returns the SHA-256 of the next ``size`` bytes of an open file; None = of all."""
    found, left = hashlib.sha256(), sys.maxsize if size is None else size
    while left > 0 and (block := file.read(min(left, 2**20))):
        found.update(block)
        left -= len(block)
    return found.hexdigest()


def unwritten(path: Path, error: BaseException) -> StorageError:
    """Returns the sentence for a file that could not be written."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        advice = "The disk or the quota is full: free some space, then go on with --resume."
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        advice = "Its place may not be written, or is a file: choose another --output."
    else:
        advice = "Usually the disk or its mount failed: check it, then go on with --resume."
    return StorageError(
        f"{path} could not be written ({error}). {advice} What was recorded before is intact."
    )


def remove(files: Iterable[Path]) -> None:
    """Removes files that may be gone already.

    Raises:
        StorageError: one cannot be removed.
    """
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise unwritten(file, error) from error


def remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it; it may be gone already.

    Raises:
        StorageError: as in ``remove``.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritten(folder, error) from error


def remove_temporaries(folder: Path) -> None:
    """Removes what a process that was killed left half-written in ``folder``.

    Raises:
        StorageError: as in ``remove``.
    """
    remove(folder.glob(".*.tmp"))


def sync_directory(folder: Path) -> None:
    """Makes a rename last; some network file systems and Windows know no such sync."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
