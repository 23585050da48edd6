"""One run's rows of a table that is stored as Parquet."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from segcredit.atomic_files import require_file
from segcredit.errors import RecordError
from segcredit.records.manifest import Manifest, read_manifest
from segcredit.records.schemas import (
    AUDIT,
    CATEGORIES,
    RENAMED,
    RENAMED_LEVELS,
    RENAMED_METRICS,
    SCHEMAS,
    Table,
)
from segcredit.records.step_tables import table_files
from segcredit.records.tables.consistent_read import settled

Columns = Sequence[str] | None
"""The columns to read; None = all."""

Filter = Any
"""A ``pyarrow.dataset.Expression`` over the columns that a table always has; None = every row."""


class Part(NamedTuple):
    """The rows that one run adds to a table."""

    rows: pa.Table
    """Its rows, with those of the wanted columns that it has."""
    names: list[str]
    """All columns that it has."""


_CHECKED = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
_FORMATS = {
    name: ds.ParquetFileFormat(
        dictionary_columns=set(found), default_fragment_scan_options=_CHECKED
    )
    for name, found in CATEGORIES.items()
}
_DISK = LocalFileSystem()
_LARGEST = 2**32
"""Bytes that a file may unpack to, if it is many times smaller itself."""
_COALESCE: Any = pc.coalesce  # pyright: ignore[reportAttributeAccessIssue]


def read_rows(directory: Path, table: Table, columns: Columns, where: Filter) -> Part:
    """Reads the rows of one run.

    Args:
        directory: of the run.
        table: which of its tables.
        columns: those to read; the ones that the run lacks are left out.
        where: which rows.

    Raises:
        RecordError: a file is damaged; names it.
    """
    listed = Listed(directory)

    def read(files: Sequence[Path]) -> Part:
        listed.require(files)
        return _read(files, table, columns, where)

    return settled(directory, lambda: listed.table(table), read)


class Listed:
    """The files of one run as its manifest has them, at the time that it was last asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest | None = None

    def table(self, table: Table) -> list[Path]:
        """Lists the files of a table that is stored as Parquet, missing ones included."""
        self.manifest = read_manifest(self.directory)
        if table == "audit" or table == "steps":
            return self.first(AUDIT)
        return table_files(self.directory, table, self.manifest)

    def first(self, *names: str) -> list[Path]:
        """Returns the first of some files that is there; none is, the last that is listed."""
        self.manifest = read_manifest(self.directory)
        there = [name for name in names if (self.directory / name).exists()]
        listed = [name for name in names if self.manifest and name in self.manifest.files]
        return [self.directory / name for name in [*there[:1], *listed[-1:]][:1]]

    def require(self, files: Sequence[Path]) -> None:
        """Checks that files are files, and as they are listed.

        Raises:
            RecordError: one is missing or was changed; names it.
        """
        for file in files:
            try:
                require_file(file)
            except OSError as error:
                raise _damaged(file, error) from error
        if self.manifest is not None:
            self.manifest.require(map(self.manifest.name, files))


def read_packed(file: Path) -> pa.Table:
    """Reads all rows of one small file.

    Raises:
        RecordError: the file is damaged.
        FileNotFoundError: it is no longer there.
    """
    try:
        # Half the time that a dataset takes to begin.
        found = pq.ParquetFile(file, page_checksum_verification=True)
        _require_bearable(found.metadata, file)
        return found.read(use_threads=False)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from error


def _read(files: Sequence[Path], table: Table, columns: Columns, where: Filter) -> Part:
    """Reads the rows of files that together are one table of a run, in their order."""
    try:
        dataset = _dataset(files, table)
        stored = cast("list[str]", dataset.schema.names)
        older = {new: old for old, new in RENAMED[table].items() if old in stored}
        names = [name for name in stored if name not in older.values()]
        wanted = names if columns is None else [name for name in columns if name in names]
        read = {"columns": wanted, "filter": where, "use_threads": False}
        if not older:
            return Part(dataset.to_table(**read), names)
        whole = where is not None or table == "audit"
        rows = _renamed(dataset, older, names if whole else wanted)
        rows = _renamed_metrics(rows) if table == "audit" else rows
        return Part(ds.Scanner.from_batches(rows, **read).to_table(), names)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _damaged(*_guilty(files, table, error)) from error


def _dataset(files: Iterable[Path], table: Table) -> ds.Dataset:
    form = _FORMATS[table]
    fragments = [form.make_fragment(str(file), _DISK) for file in files]
    for fragment in fragments:
        _require_bearable(fragment.metadata, Path(fragment.path))
    schemas = [fragment.physical_schema.remove_metadata() for fragment in fragments]
    schema = pa.unify_schemas([SCHEMAS[table], *schemas], promote_options="permissive")
    return ds.FileSystemDataset(fragments, schema, form, _DISK)


def _require_bearable(found: pq.FileMetaData, file: Path) -> None:
    """Refuses a small file of endless repetition, which no run writes and no memory holds.

    Raises:
        OSError: its rows would be many times what it could hold if they differed.
    """
    size = file.stat().st_size
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        repeated = group.num_rows > 20 * size or group.total_byte_size > 50 * size
        # Of one column, where every row is its longest text; or of plain numbers.
        largest = group.num_rows * max(group.total_byte_size, 400)
        if repeated and largest > _LARGEST:
            raise OSError(f"{size} bytes that would unpack to up to {largest:.0e}")


def _renamed(
    dataset: ds.FileSystemDataset, older: Mapping[str, str], names: Iterable[str]
) -> pa.RecordBatchReader:
    """Reads columns of files that some version before has written, under their names of today.

    Args:
        dataset: of files that have one name, the other or either.
        older: names of the version before, by those of today.
        names: the columns, by their names of today.
    """
    fields = {name: ds.field(name) for name in names}
    for name in older.keys() & fields.keys():
        fields[name] = _COALESCE(fields[name], ds.field(older[name]))
    return dataset.scanner(columns=fields, use_threads=False).to_reader()


def _renamed_metrics(audit: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Returns an audit of the version before with today's names in the rows as well."""
    rows = audit.read_all()
    sections = rows["section"].to_pylist()
    for column, names in (("section", {}), ("metric", RENAMED_METRICS), ("at", RENAMED_LEVELS)):
        pairs = zip(sections, rows[column].to_pylist(), strict=True)
        found = pa.array([names.get(pair, pair[1]) for pair in pairs], pa.string())
        place = rows.schema.get_field_index(column)
        rows = rows.set_column(place, column, found.dictionary_encode())
    return rows.to_reader()


def _guilty(files: Sequence[Path], table: Table, error: Exception) -> tuple[Path, Exception]:
    """Finds the first of several files that cannot be read by itself, with its own reason."""
    for file in files:
        try:
            _dataset([file], table).to_table()
        except (OSError, pa.ArrowException) as its_own:
            return file, its_own
    return files[0].parent, error  # each is whole, but they do not fit together


def _damaged(file: Path, error: Exception) -> RecordError:
    return RecordError(
        f"{file} cannot be read ({error}); expected what the run wrote. Usually the"
        " disk failed, or the file was copied in part or changed by another program: run it again"
        " with --resume (or its grid), which records anew what is damaged."
    )
