"""Parquet files whose every byte counts: checksums of the pages, and of label and rows as one.

What a disk changes in a page, Parquet notices; in its footer, where labels are, it does not.
"""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from segcredit.atomic_files import require_file, write_atomically
from segcredit.errors import StudyError

_KEY = b"segcredit"
_SUM = "seal"  # stored files have this key
Rows = list[dict[str, Any]]


def write_checksummed(
    file: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, label: Mapping[str, Any]
) -> None:
    """Writes rows with a label beside them; the file appears whole or not at all.

    Args:
        file: to be written.
        rows: by column of the schema; what is missing is null.
        schema: of the columns.
        label: plain data.

    Raises:
        StorageError: the disk refuses it.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema)
    signed = {"label": dict(label), _SUM: _checksum(label, table.to_pylist())}
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({_KEY: json.dumps(signed).encode()})
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_atomically(file, buffer.getvalue())


def read_checksummed(file: Path) -> tuple[dict[str, Any], Rows]:
    """Reads the label and the rows.

    Raises:
        StudyError: there is no such file, or a byte of it was changed.
    """
    try:
        table = pq.read_table(require_file(file), page_checksum_verification=True)
        signed = json.loads((table.schema.metadata or {})[_KEY])
        rows = cast("Rows", table.to_pylist())
        if signed[_SUM] == _checksum(signed["label"], rows):
            return signed["label"], rows
        fault = "its checksum is not that of its content"
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise StudyError(
        f"{file} cannot be read ({fault}); expected what segcredit wrote there. Usually the disk"
        " failed or the file was copied in part: run the same command again, which makes what is"
        " missing."
    )


def _checksum(label: Mapping[str, Any], rows: Rows) -> str:
    content = json.dumps([dict(label), rows], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
