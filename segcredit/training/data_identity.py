"""Identity of the files that a task's problems are read from: rows, bytes and a checksum."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcredit.atomic_files import checksum, require_file
from segcredit.errors import TaskError

_LINES = (".jsonl", ".csv", ".tsv")


def identity_of(places: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Returns rows, bytes and SHA-256 of each file or folder that is there, by its path.

    Raises:
        TaskError: one of them cannot be read.
    """
    return {str(place): _identity(place) for place in places if place.exists()}


def _identity(place: Path) -> dict[str, Any]:
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]
    try:
        for file in files:
            require_file(file)
        parts = [_of_file(file, *_state(file)) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise TaskError(
            f"the data {str(place)!r} cannot be read ({error}); expected files whose rows can be"
            " counted. Usually one was cut or may not be read: check task.source."
        ) from error
    named = [(f.relative_to(place).as_posix(), s) for f, (_, s) in zip(files, parts, strict=True)]
    rows = [rows for rows, _ in parts]
    return {
        "rows": None if None in rows else sum(row or 0 for row in rows),
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": hashlib.sha256(repr(named).encode()).hexdigest(),
    }


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=1024)  # every cell of a grid asks for the same
def _of_file(file: Path, *_state: int) -> tuple[int | None, str]:
    """Returns the rows of a file, where they can be counted without parsing it, and its sum."""
    with file.open("rb") as content:
        found = checksum(content)
        if file.suffix.lower() not in _LINES:
            return (pq.read_metadata(file).num_rows if file.suffix == ".parquet" else None), found
        content.seek(0)
        return sum(bool(line.strip()) for line in content), found
