"""Tables of a run and their columns, as ``columns.toml`` declares them: to write and to read.

A table or a column that was renamed is still read, and its old name understood, for one version.
"""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Literal, NamedTuple, cast

import pyarrow as pa

TableName = Literal["completions", "turns", "segments", "tokens"]
"""The tables that a run writes as Parquet, step by step."""
Table = Literal["steps", "completions", "turns", "segments", "tokens", "audit"]
"""The tables that have several rows a run."""

RENAMED_TABLES: dict[str, TableName] = {"responses": "completions"}
"""Tables by their names in the version before."""

AUDIT = "audit.parquet"
"""File of an audit's metrics, in its directory."""

_TEXT = pa.string()
_REPEATED = pa.dictionary(pa.int32(), _TEXT)
"""Text that repeats, in memory: each value once, and a small number in every row."""
_TYPES = {
    "category": _REPEATED,
    "str": _TEXT,
    "boolean": pa.bool_(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "float64": pa.float64(),
    "float32": pa.float32(),
}
"""Arrow's types by those that pandas shows."""


class Column(NamedTuple):
    """A column, as ``columns.toml`` declares it."""

    type: str
    """Its name in pandas."""
    unit: str
    meaning: str
    old: str = ""
    """Name in the version before, where it was another."""


def _declared() -> dict[Table, dict[str, Column]]:
    file = resources.files("segcredit.records").joinpath("columns.toml")
    tables = cast("dict[Table, dict[str, list[str]]]", tomllib.loads(file.read_text("utf-8")))
    return {
        table: {name: Column(*fields) for name, fields in columns.items()}
        for table, columns in tables.items()
    }


COLUMNS = _declared()
"""The columns that each table always has beside ``run``; a run may record more."""

STEP_COLUMNS = tuple(name for name in COLUMNS["steps"] if name != "step")
"""Columns that ``Runs.steps`` always has beside ``run`` and ``step``."""

SCHEMAS = {
    table: pa.schema({name: _TYPES[column.type] for name, column in columns.items()})
    for table, columns in COLUMNS.items()
}
"""The columns that each table always has, as they are read."""

CATEGORIES = {
    table: [field.name for field in schema if field.type == _REPEATED]
    for table, schema in SCHEMAS.items()
}
"""Columns of text that repeats."""

STORED = {
    table: pa.schema([f.with_type(_TEXT) if f.type == _REPEATED else f for f in schema])
    for table, schema in SCHEMAS.items()
}
"""The columns that each table always has, as they are in its files."""

RENAMED: Mapping[Table, Mapping[str, str]] = {
    table: {column.old: name for name, column in columns.items() if column.old}
    for table, columns in COLUMNS.items()
}
"""Columns by their names in the version before."""

RENAMED_METRICS = {
    ("signals", "half_correlation"): "split_correlation",
    ("values", "slope"): "calibration_slope",
    ("values", "intercept"): "calibration_intercept",
    ("gradient", "noise"): "gradient_noise",
}
"""An audit's metrics by their section and their names in the version before."""

RENAMED_LEVELS = {("credit", "response"): "completion"}
"""An audit's levels by their section and their names in the version before."""


def current_names(table: Table, names: Iterable[str]) -> list[str]:
    """Returns the names of today of columns that a run has stored."""
    stored = list(names)
    renamed = {old: new for old, new in RENAMED[table].items() if new not in stored}
    return [renamed.get(name, name) for name in stored]
