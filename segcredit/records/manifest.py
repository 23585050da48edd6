"""The manifest of a run directory: its files with their rows, sizes and checksums.

    manifest.json    written when the run begins, at each checkpoint and at the end

A file that is listed and missing, cut or changed is noticed by whoever reads the run. Of
``metrics.jsonl``, which grows, the beginning is listed; what a run wrote after its last checkpoint
is not, yet. A file is listed after it was written and struck off before it is removed, so that a
process that is killed at any moment leaves a list that holds.
"""

from __future__ import annotations

import functools
import json
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from segcredit.atomic_files import checksum, require_file, write_atomically
from segcredit.errors import RecordError
from segcredit.records.stored_config import digest

MANIFEST = "manifest.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
_SUM = "sha256"
_MOST = 2**28
"""Bytes of the longest table of JSON."""
_SMALL = 2**20
"""Bytes of a file whose checksum is not worth remembering."""
_SETTLED = 2.0
"""Seconds after which a file's time tells of every further change."""


class Entry(NamedTuple):
    """A file as it was when it was listed."""

    rows: int
    bytes: int
    sha256: str


class Manifest:
    """The list of a run's files.

    Args:
        path: the run directory.
        files: by their paths from there, with slashes.
    """

    def __init__(self, path: Path, files: Mapping[str, Entry]) -> None:
        self.path = path
        self.files = dict(files)

    def write(self) -> None:
        """Writes the list, whole or not at all.

        Raises:
            StorageError: the disk refuses it.
        """
        files = {name: entry._asdict() for name, entry in self.files.items()}
        write_signed(self.path / MANIFEST, {"files": files})

    def note(self, file: Path, rows: int) -> None:
        """Lists a file as it is now."""
        with file.open("rb") as content:
            found = checksum(content)
        self.files[self.name(file)] = Entry(rows, file.stat().st_size, found)

    def strike(self, file: Path) -> None:
        """Strikes a file off the list, on the disk too, before it is written anew."""
        if self.files.pop(self.name(file), None):
            self.write()

    def name(self, file: Path) -> str:
        """Returns the name by which a file is listed."""
        return file.relative_to(self.path).as_posix()

    def fault(self, name: str) -> str:
        """Says what has become of a listed file, such as "is missing"; '' for nothing."""
        file, entry = self.path / name, self.files[name]
        try:
            found = file.stat()
        except FileNotFoundError:
            return "is missing"
        if not stat.S_ISREG(found.st_mode):
            return "is no file"
        grows = name == METRICS
        if found.st_size < entry.bytes or (found.st_size > entry.bytes and not grows):
            return f"has {found.st_size} bytes instead of {entry.bytes}"
        return "" if _sum_now(file, entry.bytes) == entry.sha256 else "has another checksum"

    def require(self, names: Iterable[str]) -> None:
        """Checks that files are as they were listed; those that are not listed pass.

        Raises:
            RecordError: one is missing or was changed; names it.
        """
        for name in names:
            if name in self.files and (fault := self.fault(name)):
                entry = self.files[name]
                raise RecordError(
                    f"{self.path / name} {fault}; expected the {entry.rows} rows that"
                    f" {MANIFEST} lists, with their checksum. Usually the"
                    " disk failed, or the run was copied in part or changed by another program:"
                    " copy it again, or run it again with --resume (or its grid), which records"
                    " anew what is damaged."
                )


def read_manifest(path: Path) -> Manifest | None:
    """Reads the manifest of a run directory; None for a run of a version that wrote none.

    Raises:
        RecordError: it cannot be read, or is missing where there must be one.
    """
    file = path / MANIFEST
    try:
        found, has_sum = read_signed(file)
        if not has_sum:
            raise ValueError("it has no checksum")
        files = cast("dict[str, dict[str, Any]]", found["files"])
        return Manifest(path, {name: Entry(**entry) for name, entry in files.items()})
    except FileNotFoundError as error:
        if not _must_have(path):
            return None
        fault: Exception = error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = error
    raise RecordError(
        f"{file} cannot be read ({fault}); expected the list of what the run holds. Usually the run"
        " was copied in part, or the disk failed: copy it again, or run it again with --resume (or"
        " its grid), which lists anew what can be read."
    ) from fault


def write_signed(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a table as JSON with its checksum, whole or not at all.

    Raises:
        StorageError: the disk refuses it.
    """
    plain = json.loads(json.dumps(content, default=str))
    write_atomically(file, json.dumps({**plain, _SUM: digest(plain)}, indent=1).encode())


def read_signed(file: Path) -> tuple[dict[str, Any], bool]:
    """Reads what ``write_signed`` wrote, and whether it has a checksum; before, there was none.

    Raises:
        OSError, ValueError: it cannot be read, or was changed.
    """
    found: Any = json.loads(require_file(file, _MOST).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it holds no table")
    content = cast("dict[str, Any]", found)
    expected = content.pop(_SUM, None)
    if expected is not None and expected != digest(content):
        raise ValueError("its checksum is not that of its content")
    return content, expected is not None


def _must_have(path: Path) -> bool:
    """Tells whether a run is of a version that writes manifests: its status has a checksum."""
    try:
        return read_signed(path / STATUS)[1]
    except (OSError, ValueError):
        return False  # that it cannot be read is said elsewhere


def _sum_now(file: Path, size: int) -> str:
    """Returns the checksum of a file's first bytes, from memory where it did not change since."""
    found = file.stat()
    if size < _SMALL or time.time() - found.st_mtime < _SETTLED:
        return _sum(file, size)
    return _remembered(file, size, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _remembered(file: Path, size: int, *_identity: int) -> str:
    return _sum(file, size)


def _sum(file: Path, size: int) -> str:
    with file.open("rb") as content:
        return checksum(content, size)
