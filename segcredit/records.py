"""One run directory: what a run was, what it measured, how it ended.

    config.toml         the resolved config; written once
    environment.json    versions, plug-in distributions, git revision, seed, threads
    status.json         "running", "finished" or "failed", and the error of a failed run
    metrics.jsonl       a row a step, appended and synced; a torn last line is ignored
    responses/          Parquet: step_000012.parquet while the run goes on, then all.parquet
    segments/  tokens/  the same
    checkpoints/        see segcredit.checkpoint

Every file but ``metrics.jsonl`` appears atomically: it is written beside its place, synced and
renamed. Where a table's ``all.parquet`` exists it is the whole table and step files beside it are
leftovers, so that a crash at any moment never shows a row twice. One process writes a run.
"""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import numbers
import os
import re
import tomllib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import tomli_w

from segcredit.errors import RecordError

TableName = Literal["responses", "segments", "tokens"]
Number = float | int | None

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
PACKED = "all.parquet"

TABLES: dict[str, pa.Schema] = {
    "responses": pa.schema(
        {
            "step": pa.int64(),
            "prompt": pa.string(),
            "response": pa.int64(),
            "prompt_text": pa.string(),
            "text": pa.string(),
            "reward": pa.float64(),
            "truncated": pa.bool_(),
            "tokens": pa.int64(),
            "segments": pa.int64(),
        }
    ),
    "segments": pa.schema(
        {
            "step": pa.int64(),
            "prompt": pa.string(),
            "response": pa.int64(),
            "segment": pa.int64(),
            "start": pa.int64(),
            "end": pa.int64(),
            "text": pa.string(),
            "value": pa.float64(),
            "reward": pa.float64(),
            "advantage": pa.float64(),
            "return": pa.float64(),
            "ratio": pa.float64(),
        }
    ),
    "tokens": pa.schema(
        {
            "step": pa.int64(),
            "prompt": pa.string(),
            "response": pa.int64(),
            "position": pa.int64(),
            "token_id": pa.int64(),
            "text": pa.string(),
            "segment": pa.int64(),
            "logprob": pa.float32(),
            "entropy": pa.float32(),
            "value": pa.float32(),
            "advantage": pa.float32(),
        }
    ),
}
"""The columns that every file of a table has; a run may record more."""

_STEP_FILE = re.compile(r"step_(\d+)\.parquet")
_GROUP_ROWS = 131_072
"""Rows gathered into one Parquet row group of a packed table; bounds the memory of packing."""


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file to write to that takes its place at ``path``, whole, when the block ends.

    Raises:
        RecordError: the disk is full or the place may not be written; ``path`` keeps what it
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
        _sync_directory(path.parent)
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
        RecordError: as in ``replacing``.
    """
    with replacing(path) as file:
        file.write(data)


def unwritten(path: Path, error: BaseException) -> RecordError:
    """The sentence for a file that could not be written."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        advice = "The disk or the quota is full: free some space, then go on with --resume."
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        advice = "Its place may not be written, or is a file: choose another --output."
    else:
        advice = "Usually the disk or its mount failed: check it, then go on with --resume."
    return RecordError(
        f"{path} could not be written ({error}). {advice} What was recorded before is intact."
    )


def remove_temporaries(folder: Path) -> None:
    """Removes what a process that was killed left half-written in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def read_config(path: Path) -> dict[str, Any]:
    """The config that a run directory holds, as nested plain values.

    Raises:
        RecordError: there is none, or it is not TOML.
    """
    file = path / CONFIG
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{file} cannot be read ({error}); expected the config that a run stored there."
            " Usually the directory is not a run's, or the file was edited: choose another one."
        ) from error


def read_status(path: Path) -> dict[str, Any]:
    """How the run in a directory stands; its ``status`` is running, finished or failed.

    Raises:
        RecordError: the directory has no readable ``status.json``.
    """
    file = path / STATUS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{file} cannot be read ({error}); expected the state of a run. Usually the directory"
            " is not a run's, or the run was stopped while it was being made: run it again."
        ) from error
    if not isinstance(found, dict) or "status" not in found:
        raise RecordError(
            f"{file} holds no table with a 'status'; expected what segcredit wrote there. Usually"
            " the file belongs to another program: choose another directory."
        )
    return cast("dict[str, Any]", found)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run directory's ``metrics.jsonl``, in the order written.

    JSON has no NaN and no infinity: both are stored as ``null`` and read as NaN. A torn last line
    is ignored; no file means no rows.

    Raises:
        RecordError: a line before the last cannot be read; names the line.
    """
    return _read_rows(path / METRICS)[0]


def table_files(path: Path, name: TableName) -> list[Path]:
    """The Parquet files that together are one table of a run directory, in the order of steps."""
    packed = path / name / PACKED
    return [packed] if packed.exists() else _step_files(path / name)


def unified_schema(files: Iterable[Path], name: TableName) -> pa.Schema:
    """The columns of a table: those that it always has, then those found in ``files``."""
    found = [TABLES[name], *(pq.read_schema(file) for file in files)]
    return pa.unify_schemas([schema.remove_metadata() for schema in found])


@final
class RunRecords:
    """Writes one run directory; made by ``create`` or ``open``.

    Args:
        path: the run directory; it holds a config and a status.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail_is_whole = False

    @classmethod
    def create(
        cls, path: Path | str, config: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> RunRecords:
        """Makes a run directory, or takes up the one that holds the same config.

        A finished run is left as it is (see ``finished``); any other is "running" again, with its
        rows kept until ``cut_after`` drops them.

        Args:
            path: the run directory.
            config: the resolved config, nested; None means absent.
            environment: whatever JSON can hold, the rest as text.

        Raises:
            RecordError: the directory holds another config, or cannot be written.
        """
        path = Path(path)
        data = _config_bytes(config)
        if (path / CONFIG).exists():
            _require_same(path, read_config(path), tomllib.loads(data.decode()))
        else:
            write_atomically(path / CONFIG, data)
        records = cls(path)
        if not ((path / STATUS).exists() and records.finished):
            text = json.dumps(environment, indent=2, default=str)
            write_atomically(path / ENVIRONMENT, text.encode())
            records._write_status("running", started=_now())
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
        """Whether the run ended well, so that there is nothing left to do."""
        return self.status()["status"] == "finished"

    @property
    def config(self) -> dict[str, Any]:
        """The stored config, as nested plain values."""
        return read_config(self.path)

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints; it need not exist yet."""
        return self.path / "checkpoints"

    def status(self) -> dict[str, Any]:
        """The content of ``status.json``."""
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
            columns: a list or array by column, all of one length. Columns of ``TABLES`` that are
                missing are null; others are added to the table.

        Raises:
            RecordError: a column does not fit, or the file cannot be written.
        """
        if name not in TABLES:
            raise RecordError(
                f"There is no table {name!r}; expected one of {', '.join(TABLES)}. Add a column to"
                " one of them instead."
            )
        folder = self.path / name
        if (folder / PACKED).exists():
            _unpack(folder, last_step=None)
        _write_table(_step_file(folder, step), _arrow_table(name, step, columns))

    def cut_after(self, step: int) -> None:
        """Drops every row recorded after ``step``, so that a resumed run records them anew.

        Args:
            step: the last step to keep; -1 keeps none.

        Raises:
            RecordError: a file cannot be read or written.
        """
        rows, _ = _read_rows(self.path / METRICS)
        if (self.path / METRICS).exists():
            kept = [_row_bytes(row) for row in rows if row["step"] <= step]
            write_atomically(self.path / METRICS, b"".join(kept))
        remove_temporaries(self.path)
        for name in TABLES:
            _cut_table(self.path / name, step)

    def finish(self) -> None:
        """Packs each table into one file, then calls the run finished.

        Raises:
            RecordError: a file cannot be read or written; the run is then still "running".
        """
        for name in TABLES:
            _pack(self.path / name, cast("TableName", name))
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

    def _write_status(self, status: str, **more: str) -> None:
        started = {} if "started" in more else {"started": self.status().get("started")}
        content = {"status": status, **started, **more}
        write_atomically(self.path / STATUS, json.dumps(content, indent=2).encode())

    def _mend_tail(self) -> None:
        """Cuts a torn last line off, once, lest the next row continue it."""
        file = self.path / METRICS
        if not self._tail_is_whole and file.exists():
            try:
                os.truncate(file, _read_rows(file)[1])
            except RecordError:
                raise
            except OSError as error:
                raise unwritten(file, error) from error
        self._tail_is_whole = True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sync_directory(folder: Path) -> None:
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


def _config_bytes(config: Mapping[str, Any]) -> bytes:
    try:
        return tomli_w.dumps(_without_none(config)).encode()
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"The config cannot be written as TOML ({error}); expected tables, lists, text,"
            " numbers, booleans and dates. Usually a default is a Python object, or a list"
            " holds None: give the option a plain value."
        ) from error


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested table without the keys whose value is None, which TOML cannot say."""
    return {key: _plain(value) for key, value in table.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_none(cast("Mapping[str, Any]", value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _require_same(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises where two configs differ, naming the keys."""
    old, new = dict(_leaves(there)), dict(_leaves(now))
    # Compared as text: NaN equals itself then, and 1 is not 1.0.
    differing = [key for key in sorted(old | new) if repr(old.get(key)) != repr(new.get(key))]
    if not differing:
        return
    shown = [f"{key} (there {_shown(old, key)}, now {_shown(new, key)})" for key in differing[:8]]
    more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
    raise RecordError(
        f"{path} already holds a run with another config: it differs in {', '.join(shown)}{more}."
        " A run directory holds one run, since its rows could not be told apart otherwise. Choose"
        " another --output, or delete the directory."
    )


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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


def _read_rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole rows of a metrics file, and the bytes that they take."""
    try:
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    except OSError as error:
        raise RecordError(
            f"{file} cannot be read ({error}); expected the metrics of a run. Check the"
            " permissions of the directory."
        ) from error
    rows: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None and number == len(lines):
            break  # torn: the process or the machine stopped while it wrote
        if row is None:
            raise RecordError(
                f"Line {number} of {file} is not a row of metrics, and it is not the last line,"
                " which alone may be torn. Usually the file was edited or two processes wrote to"
                " it: remove the line, or run again in another --output."
            )
        rows.append(row)
        size += len(line)
    return rows, size


def _row(line: bytes) -> dict[str, Any] | None:
    """The row in a line, or None where the line is not a whole one."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or "step" not in found:
        return None
    row = cast("dict[str, Any]", found)
    return {key: math.nan if value is None else value for key, value in row.items()}


def _step_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.parquet"


def _step_files(folder: Path) -> list[Path]:
    """The step files of a table, in the order of their steps."""
    names = os.listdir(folder) if folder.is_dir() else []
    steps = sorted((int(m[1]), m[0]) for m in map(_STEP_FILE.fullmatch, names) if m)
    return [folder / name for _, name in steps]


def _step_of(file: Path) -> int:
    found = _STEP_FILE.fullmatch(file.name)
    return int(found[1]) if found else -1


def _arrow_table(name: TableName, step: int, columns: Mapping[str, Any]) -> pa.Table:
    """One step's rows, with the columns of the table's schema first."""
    schema = TABLES[name]
    arrays: dict[str, Any] = {}
    lengths = {key: len(values) for key, values in columns.items() if key != "step"}
    if len(set(lengths.values())) > 1:
        raise RecordError(
            f"The columns of the {name} of step {step} have different lengths: {lengths}. Expected"
            f" one value for each of the {name} in each column."
        )
    rows = next(iter(lengths.values()), 0)
    for key in [*schema.names, *(key for key in columns if key not in schema.names)]:
        given = [step] * rows if key == "step" else columns.get(key, [None] * rows)
        arrays[key] = _arrow_column(name, key, given)
    return pa.table(arrays)


def _arrow_column(name: TableName, key: str, values: Any) -> Any:
    schema = TABLES[name]
    try:
        array = pa.array(values)
        return array.cast(schema.field(key).type) if key in schema.names else array
    except (pa.ArrowException, TypeError, ValueError) as error:
        expected = schema.field(key).type if key in schema.names else "one type"
        raise RecordError(
            f"The column '{key}' of the {name} does not fit its table ({error}); expected"
            f" {expected} in every row. Convert the values before they are recorded."
        ) from error


def _write_table(path: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


@contextmanager
def _reading_tables(folder: Path) -> Generator[None]:
    """Says which table is damaged, where Parquet only says that something is."""
    try:
        yield
    except pa.ArrowException as error:
        raise RecordError(
            f"A Parquet file in {folder} cannot be read ({error}). Usually it was changed by"
            " another program or the disk failed: remove the file that is damaged and go on with"
            " --resume."
        ) from error


def _pack(folder: Path, name: TableName) -> None:
    """Gathers a table's step files in one file, then removes them.

    Where the packed file exists already, an earlier attempt stopped while it removed them.
    """
    files = _step_files(folder)
    if files and not (folder / PACKED).exists():
        with _reading_tables(folder), replacing(folder / PACKED) as stream:
            schema = unified_schema(files, name)
            with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
                for group in _groups(files, schema):
                    writer.write_table(group, row_group_size=max(group.num_rows, 1))
    _remove(files)


def _groups(files: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """The step files' rows, several steps at a time; a step is never split over two groups."""
    waiting: list[pa.Table] = []
    for file in files:
        waiting.append(pq.read_table(file))
        if sum(table.num_rows for table in waiting) >= _GROUP_ROWS:
            yield _joined(waiting, schema)
            waiting = []
    if waiting:
        yield _joined(waiting, schema)


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Tables below each other, with all columns of ``schema``; missing ones are null."""
    stacked = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    return stacked.select(schema.names)


def _cut_table(folder: Path, step: int) -> None:
    """Removes a table's rows after ``step``."""
    if not folder.is_dir():
        return
    remove_temporaries(folder)
    if (folder / PACKED).exists():
        _unpack(folder, last_step=step)
    _remove(file for file in _step_files(folder) if _step_of(file) > step)


def _unpack(folder: Path, last_step: int | None) -> None:
    """Turns a packed table into step files again, up to ``last_step``.

    Until the packed file is removed, at the end, it is still the whole table.
    """
    _remove(_step_files(folder))
    with _reading_tables(folder), pq.ParquetFile(folder / PACKED) as packed:
        for number in range(packed.num_row_groups):
            group = packed.read_row_group(number)
            for step in cast("list[int]", group["step"].unique().to_pylist()):
                if last_step is None or step <= last_step:
                    _write_table(_step_file(folder, step), group.filter(ds.field("step") == step))
    _remove([folder / PACKED])


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise unwritten(file, error) from error
