"""The Parquet tables of a run: a file a step while it goes on, one packed file at its end.

    completions/  turns/  segments/  tokens/    step_000012.parquet, ..., then all.parquet
    steps.parquet                     the metrics; at the end alone

The manifest says which of them a table is made of, so that a crash at any moment never shows a row
twice; step files that it does not list yet come after those that it does. Of a run without one,
``all.parquet`` is the whole table where it exists. Every page has a checksum, too.
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
from segcredit.records.manifest import Entry, Manifest
from segcredit.records.schemas import RENAMED_TABLES, STORED, TableName, current_names

TABLES: tuple[TableName, ...] = get_args(TableName)

STEPS = "steps.parquet"
"""The metrics of a finished run: what ``metrics.jsonl`` says, several times quicker to read."""

PACKED = "all.parquet"
"""The whole of a table, once the run has ended."""
_STEP_FILE = re.compile(r"step_(\d+)\.parquet")
_GROUP_ROWS = 131_072
"""Rows gathered into one Parquet row group of a packed table; bounds the memory of packing."""
_WRITING: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def table_files(path: Path, name: TableName, manifest: Manifest | None) -> list[Path]:
    """Lists the Parquet files that together are one table of a run, in the order of steps.

    Args:
        path: the run directory.
        name: of the table.
        manifest: that of the run, whose files count though they be missing; None without one.
    """
    folder = _existing_folder(path, name)
    packed = folder / PACKED
    if manifest is not None:
        listed = [path / file for file in manifest.files if file.startswith(f"{name}/")]
        return [packed] if packed in listed else _in_order({*listed, *_step_files(folder).values()})
    if packed.exists():
        return [packed]
    files = list(_step_files(folder).values())
    # Packed while they were listed, some of them may have been removed before they were seen.
    return [packed] if packed.exists() else files


def _in_order(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: step_of(file) or 0)


def step_of(file: Path) -> int | None:
    """Returns the step whose rows a table's file holds; None for a packed one, which holds all."""
    match = _STEP_FILE.fullmatch(file.name)
    return int(match[1]) if match else None


def unified_schema(files: Iterable[Path], name: TableName) -> pa.Schema:
    """Returns the columns of a table: those that it always has, then those found in ``files``."""
    found = [STORED[name], *(_schema(file, name) for file in files)]
    return pa.unify_schemas(found, promote_options="permissive")


def write_step(file: Path, name: TableName, step: int, columns: Mapping[str, Any]) -> int:
    """Writes one step's rows of a table to its file, and returns how many there are.

    Raises:
        RecordError: a column does not fit, or the file cannot be written.
    """
    rows = _arrow_table(name, step, columns)
    _write_table(file, rows)
    return rows.num_rows


def step_file(path: Path, name: TableName, step: int) -> Path:
    """Returns the place of one step's rows of a table.

    Raises:
        RecordError: there is no such table.
    """
    if name not in TABLES:
        raise RecordError(
            f"There is no table {name!r}; expected one of {', '.join(TABLES)}. Add a column to"
            " one of them instead."
        )
    return _step_file(_own_folder(path, name), step)


def pack_tables(path: Path, manifest: Manifest) -> list[Path]:
    """Writes one file of each table of the run in ``path`` and lists it in place of the others.

    Returns:
        The step files that it replaces, to be removed once the manifest is written.

    Raises:
        RecordError: a file cannot be read or written; the table keeps its rows.
    """
    replaced: list[Path] = []
    for name in TABLES:
        folder = _own_folder(path, name)
        steps, packed = list(_step_files(folder).values()), folder / PACKED
        # Where it is listed already, an earlier attempt stopped while it removed them.
        if steps and manifest.name(packed) not in manifest.files:
            _pack(steps, packed, name)
            manifest.note(packed, rows_of(packed))
        for file in steps:
            manifest.files.pop(manifest.name(file), None)
        replaced += steps
    return replaced


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


def cut_tables(path: Path, step: int, manifest: Manifest) -> list[Path]:
    """Lists the step files up to ``step`` as the tables of a run; packed ones are unpacked first.

    Returns:
        The other files, to be removed once the manifest is written: the last steps first, so that
        whoever reads meanwhile, or after a crash, meets no gap.

    Raises:
        RecordError: a file cannot be read or written.
    """
    surplus = [path / STEPS]
    manifest.files.pop(STEPS, None)
    for name in TABLES:
        folder = _own_folder(path, name)
        remove_temporaries(folder)
        packed = folder / PACKED
        if manifest.name(packed) in manifest.files and packed.exists():
            remove(_step_files(folder).values())
            _unpack(packed, last_step=step)
        kept = [file for number, file in _step_files(folder).items() if number <= step]
        for file in kept:
            if manifest.name(file) not in manifest.files:
                manifest.note(file, rows_of(file))
        there = [*_step_files(folder).values(), packed]
        surplus += [file for file in reversed(there) if file not in kept]
        for file in [*table_files(path, name, manifest), packed]:
            if file not in kept:
                manifest.files.pop(manifest.name(file), None)
    return surplus


def listed_tables(path: Path) -> Manifest:
    """Returns a manifest of the tables of a run that has none, as they are.

    A damaged file is listed as one that it is not, so that it is told and recorded anew.
    """
    found = Manifest(path, {})
    for name in TABLES:
        _own_folder(path, name)
        for file in table_files(path, name, None):
            try:
                found.note(file, rows_of(file))
            except RecordError:
                found.files[found.name(file)] = Entry(0, 0, "")
    return found


def rows_of(file: Path) -> int:
    """Returns the number of rows in a Parquet file.

    Raises:
        RecordError: it cannot be read.
    """
    with _reading(file):
        return pq.read_metadata(file).num_rows


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


def _pack(steps: Sequence[Path], packed: Path, name: TableName) -> None:
    """Gathers a table's step files in one file."""
    schema = unified_schema(steps, name)
    with replacing(packed) as stream, pq.ParquetWriter(stream, schema, **_WRITING) as writer:
        for group in _groups(steps, name, schema):
            writer.write_table(group, row_group_size=max(group.num_rows, 1))


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


def _unpack(file: Path, last_step: int) -> None:
    """Turns a packed table into step files again, up to ``last_step``; it stays as it is."""
    with _reading(file), pq.ParquetFile(file, page_checksum_verification=True) as packed:
        for number in range(packed.num_row_groups):
            group = packed.read_row_group(number)
            for step in cast("list[int]", group["step"].unique().to_pylist()):
                if step <= last_step:
                    rows = group.filter(ds.field("step") == step)
                    _write_table(_step_file(file.parent, step), rows)
