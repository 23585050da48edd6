"""An audit's files: the credits of each unit, and the table of all metrics.

    credits/     HASH.parquet of each segmenter with each estimator, a row a completion
    audit.parquet    a row a metric; names the credits that it is of

A file appears whole or not at all. The hash is of everything that decides it, the code of the
plug-ins included: what a killed audit left is taken as it is, what was edited is done again.
"""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from segcredit.credit_audit.checksummed_parquet import read_checksummed, write_checksummed
from segcredit.credit_audit.credits import Batches, Credits
from segcredit.credit_audit.metrics.arrays import Floats, Ints
from segcredit.errors import StudyError
from segcredit.records.schemas import AUDIT, STORED

CREDITS = "credits"
_SCHEMA = pa.schema(
    {
        "segment_ids": pa.list_(pa.int32()),
        "state_values": pa.list_(pa.float64()),
        "token_values": pa.list_(pa.float64()),
        "advantages": pa.list_(pa.list_(pa.float64())),
    }
)
_WHOLE = ("segmenter", "estimator", "causal", "anchor", "gradients", "tokens", "cpu_seconds")
"""Fields that are not of a completion; kept in the file's metadata."""


def write_credits(path: Path, name: str, found: Credits) -> None:
    """Writes one unit's file.

    Raises:
        StorageError: the disk refuses it.
    """
    label = {key: getattr(found, key) for key in _WHOLE}
    label |= {"name": name, "schemes": list(found.advantages)}
    places_T = np.arange(1, found.segment_ids.shape[1] + 1)
    lengths_B = np.where(found.segment_ids >= 0, places_T, 0).max(1, initial=0).tolist()
    rows = [_row(found, row, length) for row, length in enumerate(lengths_B)]
    write_checksummed(_file(path, name), rows, _SCHEMA, label)


def read_credits(path: Path, name: str) -> Credits | None:
    """Reads one unit's credits; None where there are none, or only a damaged file."""
    try:
        label, rows = read_checksummed(_file(path, name))
    except StudyError:
        return None
    schemes = cast("list[str]", label.pop("schemes", []))
    # Before the label is held against the fields: an older file has one name less.
    label["gradients"] = _renamed(label.get("gradients", {}))
    if label.pop("name", None) != name or set(label) != set(_WHOLE):
        return None
    return Credits(
        **label,
        segment_ids=_padded([row["segment_ids"] for row in rows], -1).astype(np.int64),
        state_values=_padded([row["state_values"] for row in rows], 0.0),
        token_values=_token_values(rows),
        advantages={
            scheme: _padded([row["advantages"][number] for row in rows], 0.0)
            for number, scheme in enumerate(schemes)
        },
    )


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], label: Mapping[str, Any]) -> None:
    """Writes the table of metrics.

    Args:
        path: the audit's directory.
        rows: by column of ``STORED["audit"]``.
        label: what the table is of: ``credits``, the names of its units in their order;
            ``bases``, those that are no part of the audit, which credit noise is held against;
            ``failed``, the units that are not there, with the reason; ``truth``, where that is,
            from ``path``; ``resampling``, how the intervals were made.
    """
    write_checksummed(path / AUDIT, rows, STORED["audit"], label)


def table_label(path: Path) -> dict[str, Any]:
    """Reads the label of an audit's table, as ``write_table`` was given it.

    Raises:
        StudyError: there is no table, or it cannot be read.
    """
    label, _ = read_checksummed(path / AUDIT)
    missing = {"credits", "failed", "truth", "resampling"} - label.keys()
    if missing:
        raise StudyError(
            f"{path / AUDIT} says nothing of {', '.join(sorted(missing))}; expected the table of a"
            " finished audit of this version. Run the audit again, which keeps what is there."
        )
    return label


def _file(path: Path, name: str) -> Path:
    return path / CREDITS / f"{name}.parquet"


def _row(found: Credits, row: int, length: int) -> dict[str, Any]:
    def cut(x_BT: Floats | Ints) -> list[Any]:
        return x_BT[row, :length].tolist()

    return {
        "segment_ids": cut(found.segment_ids),
        "state_values": cut(found.state_values),
        "token_values": None if found.token_values is None else cut(found.token_values),
        "advantages": [cut(x_BT) for x_BT in found.advantages.values()],
    }


def _renamed(gradients: Mapping[str, Batches]) -> dict[str, Batches]:
    """Returns the moments of gradients by the metrics' names of today; ``noise`` had no other."""

    def today(found: Mapping[str, list[float]]) -> dict[str, list[float]]:
        return {"gradient_noise" if name == "noise" else name: x for name, x in found.items()}

    return {
        scheme: {group: today(found) for group, found in by_group.items()}
        for scheme, by_group in gradients.items()
    }


def _token_values(rows: Sequence[Mapping[str, Any]]) -> Floats | None:
    found = [row["token_values"] for row in rows]
    return None if any(values is None for values in found) else _padded(found, 0.0)


def _padded(rows: Sequence[Sequence[float]], fill: float) -> Floats:
    """Pads lists of different lengths on the right, to (B,T)."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), fill)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return padded
