"""The folder of weights that took time to make: ``$SEGCREDIT_CACHE`` or ``~/.cache/segcredit``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock

from segcredit.errors import PolicyError


def cache_folder() -> Path:
    """Returns the cache folder, made where it is missing.

    Raises:
        PolicyError: it cannot be made.
    """
    folder = Path(os.environ.get("SEGCREDIT_CACHE") or "~/.cache/segcredit").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PolicyError(
            f"the cache folder {str(folder)!r} cannot be made ({error.strerror}); expected one"
            " that can be written, for weights that took time to make. Set SEGCREDIT_CACHE to a"
            " folder of yours."
        ) from error
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Holds a lock while a cached path is made, so that one process at a time makes it.

    No lock is taken where the path is there already: cached paths appear whole.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    with contextlib.nullcontext() if path.exists() else lock:
        yield
