"""One run directory: what a run was, what it measured, how it ended.

    config.toml         the resolved config; written once
    environment.json    versions, plug-in distributions, git revision, seed, threads
    status.json         "running", "interrupted", "failed" or "finished", and what stopped it
    metrics.jsonl       a row a step, appended and synced; a torn last line is ignored
    completions/  turns/  segments/  tokens/    Parquet, see segcredit.records.step_tables
    manifest.json       what is there, with checksums, see segcredit.records.manifest
    images/             what prompts show, see segcredit.records.image_files
    checkpoints/        see segcredit.records.checkpoint

Every file but ``metrics.jsonl`` appears atomically (segcredit.atomic_files). One process writes a
run (segcredit.records.run_lock).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import numbers
import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast, final

from segcredit.atomic_files import (
    remove,
    remove_temporaries,
    require_file,
    unwritten,
    write_atomically,
)
from segcredit.errors import RecordError
from segcredit.records import checkpoint
from segcredit.records.image_files import remove_unfinished_images, write_image
from segcredit.records.manifest import (
    METRICS,
    STATUS,
    Entry,
    Manifest,
    read_manifest,
    read_signed,
    write_signed,
)
from segcredit.records.run_lock import is_abandoned
from segcredit.records.schemas import AUDIT, TableName, current_names
from segcredit.records.step_tables import (
    PACKED,
    STEPS,
    cut_tables,
    listed_tables,
    pack_metrics,
    pack_tables,
    rows_of,
    step_file,
    write_step,
)
from segcredit.records.stored_config import CONFIG, read_config, store_config

Number = float | int | None

ENVIRONMENT = "environment.json"
DATA = "data"
"""Key in the environment with rows and checksum of the data, by the path of each source."""
STATES = ("running", "interrupted", "failed", "finished")

_TAIL = 2**16
"""Bytes at the end of the metrics in which the last row is looked for."""

_KILLED = "its process is gone and said nothing, as one that was killed: continue with --resume."


def read_status(path: Path) -> dict[str, Any]:
    """Reads how the run in a directory stands, from ``status.json``.

    Raises:
        RecordError: the directory has no readable ``status.json``.
    """
    file = path / STATUS
    try:
        found, _ = read_signed(file)
        if found.get("status") not in STATES:
            raise ValueError(f"its status is {found.get('status')!r}")
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{file} cannot be read ({error}); expected the state of a run, as segcredit wrote it"
            " there. Usually the directory is not a run's, or the disk failed or the file was"
            " edited: run it again (or its grid)."
        ) from error
    return found


def read_ending(path: Path) -> dict[str, Any]:
    """Reads how the run in a directory stands, a killed one as interrupted: its lock is free.

    Raises:
        RecordError: as ``read_status``.
    """
    found = read_status(path)
    # In this order, and again: it may have ended well in between.
    if found["status"] == "running" and is_abandoned(path):
        found = read_status(path)
        if found["status"] == "running":
            return {**found, "status": "interrupted", "message": _KILLED}
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a run directory's ``metrics.jsonl``, in the order written.

    JSON has no NaN and no infinity: both are stored as ``null`` and read as NaN. A torn last line
    is ignored; no file means no rows.

    Raises:
        RecordError: a line before the last cannot be read; names the line.
    """
    return _read_rows(path / METRICS)[0]


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of ``read_metrics`` up to the first that cannot be read."""
    rows = map(_row, _lines(path / METRICS))
    return [row for row in itertools.takewhile(lambda row: row is not None, rows) if row]


def last_step(path: Path) -> int | None:
    """Returns the step of the last whole row of metrics; None where none can be read.

    Reads the end of the file alone.
    """
    try:
        with require_file(path / METRICS).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            lines = stream.read().splitlines(keepends=True)
    except OSError:
        return None
    rows = map(_row, reversed(lines))
    return next((int(row["step"]) for row in rows if row), None)


def require_same_data(path: Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses to go on with a run, or to take it for finished, whose data changed since it began.

    Args:
        path: the run directory; it need not exist.
        data: rows and checksum of each source, by its path, as they are now.

    Raises:
        RecordError: a source that the run has read holds other rows now.
    """
    try:
        there = read_signed(path / ENVIRONMENT)[0].get(DATA, {})
    except (OSError, ValueError):
        return  # not begun, or damaged, which is told elsewhere
    for source in there.keys() & data.keys():
        before, now = there[source], data[source]
        if before["sha256"] != now["sha256"]:
            raise RecordError(
                f"{path} holds a run whose data {source} changed since: it began with"
                f" {_counted(before)}, and there are {_counted(now)} now. Going on, prompts would"
                " come twice or never, and no result could be told to be of either. Put the data"
                " back, or choose another --output."
            )


def _counted(data: Mapping[str, Any]) -> str:
    rows = data["rows"]
    size = f"{data['bytes']} bytes" if rows is None else f"{rows} rows"
    return f"{size} (SHA-256 {data['sha256'][:12]})"


class Records(Protocol):
    """Everything that a run may tell its directory; see ``RunRecords``."""

    path: Path

    @property
    def finished(self) -> bool:
        """True once the run ended well, so that there is nothing left to do."""
        return False

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints; it need not exist yet."""
        return self.path / "checkpoints"

    def metrics(self, row: Mapping[str, Number]) -> None:
        """Appends a row of metrics."""

    def table(self, name: TableName, step: int, columns: Mapping[str, Any]) -> None:
        """Writes one step's rows of a table."""

    def image(self, content: bytes) -> None:
        """Keeps an image that a prompt shows."""

    def checkpoint(self, step: int, state: Mapping[str, Any], *, keep: int) -> None:
        """Saves everything that a resumed run needs."""

    def cut_after(self, step: int) -> None:
        """Drops what was recorded after a step."""

    def finish(self) -> None:
        """Notes that the run ended well."""

    def fail(self, error_type: str, message: str, traceback_text: str) -> None:
        """Notes that the run failed."""

    def interrupt(self, message: str) -> None:
        """Notes that the run was stopped and can go on."""


@final
class SilentRecords(Records):
    """Writes nothing: those of every process but the one that writes.

    Args:
        path: the run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path


@final
class RunRecords(Records):
    """Writes one run directory; made by ``create`` or ``open``.

    Args:
        path: the run directory; it holds a config and a status.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail_is_whole = False

    @functools.cached_property
    def _manifest(self) -> Manifest:
        """Returns the list of what was recorded, made anew where none can be read."""
        try:
            found = read_manifest(self.path)
        except RecordError as error:
            said = f"{error} It is made anew of what is there."
            warnings.warn(said, RuntimeWarning, stacklevel=4)
            found = None
        return found or listed_tables(self.path)

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        carriers: Mapping[str, Any] | None = None,
    ) -> RunRecords:
        """Makes a run directory, or takes up the one that holds the same config.

        A finished run is left as it is (see ``finished``); any other is "running" again, with its
        rows kept until ``cut_after`` drops them. One that failed before it recorded anything
        leaves its directory to any other. A config or a status that cannot be read is written
        again; the config that was there is kept beside it.

        Args:
            path: the run directory.
            config: the resolved config, nested; None means absent.
            environment: whatever JSON can hold, the rest as text.
            carriers: options that may change, see ``store_config``.

        Raises:
            RecordError: the directory holds another config or a run with other data, or cannot be
                written.
        """
        path = Path(path)
        records = cls(path)
        if records._failed_at_once():
            (path / CONFIG).unlink(missing_ok=True)
        else:
            require_same_data(path, environment.get(DATA, {}))
        store_config(path, config, carriers)
        if not records.finished:
            write_signed(path / ENVIRONMENT, environment)
            records.begin()
        return records

    @classmethod
    def open(cls, path: Path | str) -> RunRecords:
        """Opens an existing run directory.

        Raises:
            RecordError: it holds no config or no status.
        """
        records = cls(Path(path))
        read_config(records.path)
        records.status()
        return records

    @property
    def finished(self) -> bool:
        """True once the run ended well, so that there is nothing left to do."""
        try:
            return self.status()["status"] == "finished"
        except RecordError:
            return False  # never written, or torn

    def _failed_at_once(self) -> bool:
        """Tells whether a run failed here before its first row or checkpoint."""
        try:
            failed = self.status()["status"] == "failed"
        except RecordError:
            return False
        return failed and not (self.path / METRICS).exists() and not self.checkpoints.exists()

    @property
    def config(self) -> dict[str, Any]:
        """The stored config, as nested plain values."""
        return read_config(self.path)

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints; it need not exist yet."""
        return self.path / "checkpoints"

    def status(self) -> dict[str, Any]:
        """Returns the content of ``status.json``."""
        return read_status(self.path)

    def metrics(self, row: Mapping[str, Number]) -> None:
        """Appends one row to ``metrics.jsonl`` and waits until the disk has it.

        Args:
            row: numbers by column, ``step`` among them; NaN, infinity and None are stored alike
                and read as NaN.

        Raises:
            RecordError: the row has no step, or cannot be written; no part of it then stays.
        """
        if not isinstance(row.get("step"), numbers.Integral):
            raise RecordError(
                f"A row of metrics has the step {row.get('step')!r}; expected an integer, since"
                " resuming cuts rows by it. Add 'step' to the row."
            )
        file = self.path / METRICS
        self._mend_tail()
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as stream:
                stream.write(_row_bytes(row))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            self._tail_is_whole = False
            # Where even this fails, readers ignore the torn line and the next row mends it.
            with contextlib.suppress(OSError):
                os.truncate(file, size)
            raise unwritten(file, error) from error

    def table(self, name: TableName, step: int, columns: Mapping[str, Any]) -> None:
        """Writes one step's rows of a table as a Parquet file, replacing an earlier one.

        Args:
            name: which table.
            step: the step; written as the column ``step``.
            columns: a list or array by column, all of one length. Columns of the table that
                are missing are null; others are added to it.

        Raises:
            RecordError: a column does not fit, or the file cannot be written.
        """
        file = step_file(self.path, name, step)
        if self._manifest.name(file.with_name(PACKED)) in self._manifest.files:
            self.cut_after(step - 1)  # the run goes on after its end
        self._manifest.strike(file)
        self._manifest.note(file, write_step(file, name, step, columns))

    def image(self, content: bytes) -> None:
        """Keeps an image that a prompt shows, once however often it is shown.

        Args:
            content: of its file, such as a PNG.

        Raises:
            StorageError: the file cannot be written.
        """
        write_image(self.path, content)

    def checkpoint(self, step: int, state: Mapping[str, Any], *, keep: int) -> None:
        """Saves everything that a resumed run needs, see ``segcredit.records.checkpoint.save``."""
        # First: a checkpoint never rests on rows that are not listed.
        self._list()
        checkpoint.save(self.checkpoints, step, state, keep)

    def cut_after(self, step: int) -> None:
        """Drops every row recorded after ``step``, so that a resumed run records them anew.

        So are the rows that stand behind one that cannot be read.

        Args:
            step: the last step to keep; -1 keeps none.

        Raises:
            RecordError: a file cannot be read or written.
        """
        file = self.path / METRICS
        kept = _rows_until(file, step)
        # The metrics first, which say how far the rest can be trusted: a kill in between leaves
        # too much in the tables, and nothing amiss.
        self._manifest.strike(file)
        if file.exists():
            write_atomically(file, kept)
        surplus = cut_tables(self.path, step, self._manifest)
        self._list()
        remove(surplus)
        remove_temporaries(self.path)
        remove_unfinished_images(self.path)

    def begin(self) -> None:
        """Calls the run running.

        Raises:
            StorageError: the status cannot be written.
        """
        for name in (STEPS, AUDIT):
            self._manifest.files.pop(name, None)  # are made anew at the end
        self._manifest.note(self.path / CONFIG, 1)
        self._manifest.write()
        self._write_status("running", started=_now())

    def finish(self) -> None:
        """Packs each table into one file, the metrics too, then calls the run finished.

        Raises:
            RecordError: a file cannot be read or written; the run is then still "running".
        """
        self._manifest.require(self._manifest.files)
        self._manifest.strike(self.path / STEPS)
        replaced = pack_tables(self.path, self._manifest)
        pack_metrics(self.path, read_metrics(self.path))
        for file in (self.path / STEPS, self.path / AUDIT):
            if file.exists():
                self._manifest.note(file, rows_of(file))
        self._list()
        remove(replaced)
        self._write_status("finished", ended=_now())

    def fail(self, error_type: str, message: str, traceback_text: str) -> None:
        """Calls the run failed, and stores why; its rows stay as they are.

        Raises:
            RecordError: the status cannot be written.
        """
        self._write_status(
            "failed",
            ended=_now(),
            error_type=error_type,
            message=message,
            traceback=traceback_text,
        )

    def interrupt(self, message: str) -> None:
        """Says what stopped the run, which is no fault of its own: it can go on.

        Raises:
            StorageError: the status cannot be written.
        """
        self._write_status("interrupted", ended=_now(), message=message)

    def _write_status(self, status: str, **more: str) -> None:
        started = {} if "started" in more else {"started": self.status().get("started")}
        content = {"status": status, **started, **more}
        write_signed(self.path / STATUS, content)

    def _list(self) -> None:
        """Writes the manifest of all that was recorded so far."""
        file = self.path / METRICS
        if file.exists():
            self._manifest.files[METRICS] = _entry(b"".join(_lines(file)))
        self._manifest.write()

    def _mend_tail(self) -> None:
        """Cuts a torn last line off, once, lest the next row continue it."""
        file = self.path / METRICS
        if not self._tail_is_whole and file.exists():
            _, size = _read_rows(file)
            try:
                os.truncate(file, size)
            except OSError as error:
                raise unwritten(file, error) from error
        self._tail_is_whole = True


def _rows_until(file: Path, step: int) -> bytes:
    """Returns the lines of the whole rows up to a step, without those behind a damaged one.

    A line with names of the version before is written anew, lest a table have both.
    """
    pairs = ((line, _row(line)) for line in _lines(file))
    whole = itertools.takewhile(lambda pair: pair[1] is not None, pairs)
    return b"".join(
        line if row.keys() == json.loads(line).keys() else _row_bytes(row)
        for line, row in whole
        if row and row["step"] <= step
    )


def _entry(lines: bytes) -> Entry:
    return Entry(lines.count(b"\n"), len(lines), hashlib.sha256(lines).hexdigest())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _row_bytes(row: Mapping[str, Any]) -> bytes:
    plain = {key: _json_number(value) for key, value in row.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def _json_number(value: Any) -> Number:
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _lines(file: Path) -> list[bytes]:
    try:
        return require_file(file).read_bytes().splitlines(keepends=True) if file.exists() else []
    except OSError as error:
        raise RecordError(
            f"{file} cannot be read ({error}); expected the metrics of a run. Check the"
            " permissions of the directory."
        ) from error


def _read_rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole rows of a metrics file, and the bytes that they take."""
    lines = _lines(file)
    rows: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None and number == len(lines):
            break  # torn: the process or the machine stopped while it wrote
        if row is None:
            raise RecordError(
                f"Line {number} of {file} is not a row of metrics, and it is not the last line,"
                " which alone may be torn. Usually the disk failed or the file was edited: run it"
                " again with --resume (or its grid), which goes on from the last row before it."
            )
        rows.append(row)
        size += len(line)
    return rows, size


def _row(line: bytes) -> dict[str, Any] | None:
    """Parses a line of metrics; None where the line is not a whole one."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or "step" not in found:
        return None
    row = cast("dict[str, Any]", found)
    values = (math.nan if value is None else value for value in row.values())
    return dict(zip(current_names("steps", row), values, strict=True))
