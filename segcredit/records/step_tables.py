"""The Parquet tables of a run: a file a step while it goes on, one packed file at its end.

    completions/  segments/  tokens/    step_000012.parquet, ..., then all.parquet
    steps.parquet                     the metrics; at the end alone

Where a table's ``all.parquet`` exists it is the whole table and step files beside it are
leftovers, so that a crash at any moment never shows a row twice. Every page has a checksum, so
that what a disk has changed is never read as if it were whole.
"""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import io
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from segcredit.atomic_files import (
    remove,
    remove_temporaries,
    replacing,
    unwritten,
    write_atomically,
)
from segcredit.errors import RecordError
from segcredit.records.schemas import RENAMED_TABLES, STORED, TableName, current_names

TABLES: tuple[TableName, ...] = get_args(TableName)

STEPS = "steps.parquet"
"""The metrics of a finished run: what ``metrics.jsonl`` says, several times quicker to read."""

_PACKED = "all.parquet"
_STEP_FILE = re.compile(r"step_(\d+)\.parquet")
_GROUP_ROWS = 131_072
"""Rows gathered into one Parquet row group of a packed table; bounds the memory of packing."""
_WRITING: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def table_files(path: Path, name: TableName) -> list[Path]:
    """Lists the Parquet files that together are one table of a run, in the order of steps."""
    folder = _existing_folder(path, name)
    packed = folder / _PACKED
    if packed.exists():
        return [packed]
    files = list(_step_files(folder).values())
    # Packed while they were listed, some of them may have been removed before they were seen.
    return [packed] if packed.exists() else files


def step_of(file: Path) -> int | None:
    """Returns the step whose rows a table's file holds; None for a packed one, which holds all."""
    match = _STEP_FILE.fullmatch(file.name)
    return int(match[1]) if match else None


def unified_schema(files: Iterable[Path], name: TableName) -> pa.Schema:
    """Returns the columns of a table: those that it always has, then those found in ``files``."""
    found = [STORED[name], *(_schema(file, name) for file in files)]
    return pa.unify_schemas(found, promote_options="permissive")


def write_step(path: Path, name: TableName, step: int, columns: Mapping[str, Any]) -> None:
    """Writes one step's rows of a table of the run in ``path``; see ``RunRecords.table``."""
    if name not in TABLES:
        raise RecordError(
            f"There is no table {name!r}; expected one of {', '.join(TABLES)}. Add a column to"
            " one of them instead."
        )
    folder = _own_folder(path, name)
    if (folder / _PACKED).exists():
        _unpack(folder, last_step=None)
    _write_table(_step_file(folder, step), _arrow_table(name, step, columns))


def pack_tables(path: Path) -> None:
    """Leaves one file of each table of the run in ``path``.

    Raises:
        RecordError: a file cannot be read or written; the table keeps its rows.
    """
    for name in TABLES:
        _pack(_own_folder(path, name), name)


def pack_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the metrics of the run in ``path`` as ``steps.parquet``.

    ``metrics.jsonl`` stays the truth while a run goes on, and beside it afterwards. The column
    ``step`` holds integers, every other one float64; NaN, None and what a row lacks are null.

    Args:
        path: the run directory.
        rows: as ``run_directory.read_metrics`` returns them.

    Raises:
        RecordError: a value is no number, or the file cannot be written.
    """
    # Nothing that makes small files slow to open: metrics hardly repeat, and thousands are read.
    _write_table(
        path / STEPS,
        metrics_table(rows),
        compression="lz4",
        use_dictionary=False,
        write_statistics=False,
    )


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Makes a table of rows of metrics: ``step`` in int64, the rest in float64.

    Raises:
        RecordError: a value is no number.
    """
    names = dict.fromkeys(["step", *(name for row in rows for name in row)])
    columns = {name: [row.get(name) for row in rows] for name in names}
    types = {name: pa.int64() if name == "step" else pa.float64() for name in names}
    try:
        arrays = [pa.array(columns[name], types[name], from_pandas=True) for name in names]
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise RecordError(
            f"A metric is not a number ({error}); expected numbers alone, and a whole one as the"
            " 'step'. Usually the file was edited: run it again with --resume (or its grid)."
        ) from error
    return pa.table(arrays, schema=pa.schema(types))


def cut_tables(path: Path, step: int) -> None:
    """Removes the rows after ``step`` from the tables of the run in ``path``.

    Raises:
        RecordError: a file cannot be read or written.
    """
    remove([path / STEPS])
    for folder in (_own_folder(path, name) for name in TABLES):
        remove_temporaries(folder)
        if (folder / _PACKED).exists():
            _unpack(folder, last_step=step)
        # The last first: whoever reads meanwhile, or after a crash, meets no gap.
        later = [file for number, file in _step_files(folder).items() if number > step]
        remove(reversed(later))


def _existing_folder(path: Path, name: TableName) -> Path:
    """Returns the folder of a table, which may have the name that it had in the version before."""
    folders = [path / name, *(path / old for old, new in RENAMED_TABLES.items() if new == name)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _own_folder(path: Path, name: TableName) -> Path:
    """Returns the folder that a table is written to, with what a version before wrote of it.

    The columns in such files keep their names until the table is packed; readers rename them.
    """
    there, own = _existing_folder(path, name), path / name
    if there.is_dir() and there != own:
        try:
            there.rename(own)
        except OSError as error:
            raise unwritten(own, error) from error
    return own


def _schema(file: Path, name: TableName) -> pa.Schema:
    with _reading(file):
        found = pq.read_schema(file)
    return pa.schema(dict(zip(current_names(name, found.names), found.types, strict=True)))


def _step_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.parquet"


def _step_files(folder: Path) -> dict[int, Path]:
    """Returns the step files of a table by step, in the order of their steps."""
    names = os.listdir(folder) if folder.is_dir() else []
    steps = sorted((int(m[1]), m[0]) for m in map(_STEP_FILE.fullmatch, names) if m)
    return {step: folder / name for step, name in steps}


def _arrow_table(name: TableName, step: int, columns: Mapping[str, Any]) -> pa.Table:
    """Returns one step's rows, with the columns of the table's schema first."""
    lengths = {key: len(values) for key, values in columns.items() if key != "step"}
    if len(set(lengths.values())) > 1:
        raise RecordError(
            f"The columns of the {name} of step {step} have different lengths: {lengths}. Expected"
            f" one value for each of the {name} in each column."
        )
    rows = next(iter(lengths.values()), 0)
    missing = dict.fromkeys(STORED[name].names, [None] * rows)
    whole = {**missing, **columns, "step": [step] * rows}
    return pa.table({key: _arrow_column(name, key, values) for key, values in whole.items()})


def _arrow_column(name: TableName, key: str, values: Any) -> Any:
    schema = STORED[name]
    expected = schema.field(key).type if key in schema.names else None
    try:
        array = pa.array(values)
        return array if expected is None else array.cast(expected)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise RecordError(
            f"The column '{key}' of the {name} does not fit its table ({error}); expected"
            f" {expected or 'one type'} in every row. Convert the values before they are recorded."
        ) from error


def _write_table(path: Path, table: pa.Table, **options: Any) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{**_WRITING, **options})
    write_atomically(path, buffer.getvalue())


@contextmanager
def _reading(file: Path) -> Generator[None]:
    """Says which file is damaged, where Parquet only says that something is."""
    try:
        yield
    except RecordError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise RecordError(
            f"A Parquet file in {file.parent} cannot be read ({file.name}: {error}). Usually the"
            " disk failed or another program changed it: run it again with --resume (or its grid),"
            " which removes what is damaged and records it anew."
        ) from error


def _pack(folder: Path, name: TableName) -> None:
    """Gathers a table's step files in one file, then removes them.

    Where the packed file exists already, an earlier attempt stopped while it removed them.
    """
    files = list(_step_files(folder).values())
    if files and not (folder / _PACKED).exists():
        schema = unified_schema(files, name)
        with (
            replacing(folder / _PACKED) as stream,
            pq.ParquetWriter(stream, schema, **_WRITING) as writer,
        ):
            for group in _groups(files, name, schema):
                writer.write_table(group, row_group_size=max(group.num_rows, 1))
    remove(files)


def _groups(files: Iterable[Path], name: TableName, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields the step files' rows, several steps at a time; a step is never split over two groups.

    Every group has all columns of ``schema``; those that a step lacks are null.
    """
    waiting: list[pa.Table] = []
    for file in files:
        with _reading(file):
            rows = pq.read_table(file, page_checksum_verification=True)
        waiting.append(rows.rename_columns(current_names(name, rows.column_names)))
        if sum(table.num_rows for table in waiting) >= _GROUP_ROWS:
            yield _concatenated(waiting, schema)
            waiting = []
    if waiting:
        yield _concatenated(waiting, schema)


def _concatenated(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")


def _unpack(folder: Path, last_step: int | None) -> None:
    """Turns a packed table into step files again, up to ``last_step``.

    Until the packed file is removed, at the end, it is still the whole table.
    """
    remove(_step_files(folder).values())
    file = folder / _PACKED
    with _reading(file), pq.ParquetFile(file, page_checksum_verification=True) as packed:
        for number in range(packed.num_row_groups):
            group = packed.read_row_group(number)
            for step in cast("list[int]", group["step"].unique().to_pylist()):
                if last_step is None or step <= last_step:
                    _write_table(_step_file(folder, step), group.filter(ds.field("step") == step))
    remove([folder / _PACKED])
