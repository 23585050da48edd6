"""One run's metrics: from ``steps.parquet`` once it has finished, from ``metrics.jsonl`` before."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pj

from segcredit.errors import RecordError
from segcredit.records.manifest import METRICS, STATUS
from segcredit.records.run_directory import read_metrics, read_status
from segcredit.records.schemas import SCHEMAS, current_names
from segcredit.records.step_tables import STEPS, metrics_table
from segcredit.records.tables.consistent_read import settled
from segcredit.records.tables.parquet import Columns, Filter, Listed, Part, read_packed

_NOTHING = SCHEMAS["steps"].empty_table().select(["step"])


def read_steps(directory: Path, columns: Columns, where: Filter) -> Part:
    """Reads the rows of one run; see ``parquet.read_rows``."""
    listed = Listed(directory)

    def read(files: Sequence[Path]) -> Part:
        listed.require(files)
        if not files:
            return _part(_NOTHING, columns, where)
        packed = files[0].name == STEPS
        return _part(read_packed(files[0]) if packed else _read_lines(directory), columns, where)

    return settled(directory, lambda: _files(listed), read)


def _files(listed: Listed) -> list[Path]:
    """Returns the file that holds the metrics; none where nothing was recorded."""
    # A run that goes on after all may have left the packed file of its first end.
    return listed.first(*([STEPS, METRICS] if _finished(listed.directory) else [METRICS]))


def _finished(directory: Path) -> bool:
    """Tells whether the rows are complete, as far as anybody can say."""
    try:
        return read_status(directory)["status"] == "finished"
    except RecordError:
        return False  # that it cannot be read is said in .runs


def _read_lines(directory: Path) -> pa.Table:
    """Reads all whole rows of ``metrics.jsonl``.

    Raises:
        RecordError: a row is damaged, or the last one is torn though the run has finished.
    """
    data = (directory / METRICS).read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data) and _finished(directory):
        raise _torn(directory)
    rows = _parsed(whole)
    return _parsed_slowly(directory) if rows is None else rows


def _parsed(lines: bytes) -> pa.Table | None:
    """Parses rows, ``step`` in int64, the rest in float64; None if they are of another kind."""
    if not lines:
        return _NOTHING
    options = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        rows = pj.read_json(pa.BufferReader(lines), read_options=options)
        if rows.num_rows != lines.count(b"\n") or rows["step"].null_count:
            return None
        kinds = {name: pa.float64() for name in rows.column_names} | {"step": pa.int64()}
        return rows.cast(pa.schema(kinds))
    except (pa.ArrowException, KeyError):
        return None


def _parsed_slowly(directory: Path) -> pa.Table:
    """Parses line by line, so that the error can name the damaged one."""
    rows = read_metrics(directory)
    lines = (directory / METRICS).read_bytes().count(b"\n")
    if len(rows) < lines and _finished(directory):
        raise _torn(directory)
    return metrics_table(rows)


def _torn(directory: Path) -> RecordError:
    return RecordError(
        f"{directory / METRICS} ends in the middle of a row, though the {STATUS} beside it says"
        " that the run has finished; expected whole rows. Usually the file was copied in part or"
        " the disk failed: run it again with --resume (or its grid), which records anew what is"
        " missing."
    )


def _part(rows: pa.Table, columns: Columns, where: Filter) -> Part:
    names = current_names("steps", rows.column_names)
    rows = rows.rename_columns(names)
    wanted = names if columns is None else [name for name in columns if name in names]
    if where is not None:
        nothing = SCHEMAS["steps"].empty_table()
        rows = pa.concat_tables([nothing, rows], promote_options="permissive").filter(where)
    return Part(rows.select(wanted), names)
