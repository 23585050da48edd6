"""Runs as tidy pandas tables: per run, step, response, segment and token.

    runs = segcredit.read_runs("runs/segmenters")
    runs.steps.merge(runs.runs[["run", "method", "seed"]], on="run")
    runs.read("tokens", columns=["step", "entropy"])

Nothing is read before it is asked for, so that finding a thousand runs is quick.
"""

# pandas and pyarrow ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from segcredit.errors import RecordError, StudyError, did_you_mean
from segcredit.records import CONFIG, STATUS, read_config, read_metrics, read_status
from segcredit.step_tables import TABLES, TableName, table_files, unified_schema

STEP_COLUMNS = (
    "tokens_sampled",
    "cpu_seconds",
    "reward",
    "accuracy",
    "accuracy_greedy",
    "faithful",
    "entropy",
    "kl",
    "clip_fraction",
    "ratio_max",
    "gradient_norm",
    "explained_variance",
    "response_length",
    "segments_per_response",
    "loss",
    "value_loss",
)
"""What ``Runs.steps`` always has beside ``run`` and ``step``; a run may record more."""


def read_runs(path: Path | str) -> Runs:
    """Finds the runs at or below ``path``, at any depth; their tables are read when asked for.

    A run is a directory with a readable ``config.toml`` and ``status.json``. Other directories,
    hidden ones and half-written ones are passed over.

    Raises:
        StudyError: there is no run.
    """
    path = Path(path)
    found = list(_find(path))
    if not found:
        reason = "holds no run" if path.is_dir() else "is not a directory"
        raise StudyError(
            f"{path} {reason}; expected at least one directory with a {CONFIG} and a {STATUS}, at"
            " any depth. Usually the path is that of another --output: give the one that"
            " `segcredit train` or `segcredit grid` printed."
        )
    return Runs(path, found)


@final
class Runs:
    """The tables of several runs, each read once, when first asked for.

    Every row carries ``run``, the run's directory relative to ``path`` ('.' for ``path`` itself).

    Args:
        path: the directory that was searched.
        directories: the run directories found in it.
    """

    def __init__(self, path: Path, directories: Sequence[Path]) -> None:
        self.path = path
        self.directories = {_run_name(path, directory): directory for directory in directories}

    def __len__(self) -> int:
        return len(self.directories)

    def __repr__(self) -> str:
        return f"Runs({str(self.path)!r}, {len(self)} runs)"

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run: its config in dotted columns, ``status``, and ``error`` ('' for none)."""
        return pd.DataFrame([_run_row(run, path) for run, path in self.directories.items()])

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a step of a run: the metrics; NaN where one was not measured."""
        rows = [
            {"run": run, **row}
            for run, path in self.directories.items()
            for row in read_metrics(path)
        ]
        recorded = (key for row in rows for key in row)
        columns = list(dict.fromkeys(["run", "step", *STEP_COLUMNS, *recorded]))
        frame = pd.DataFrame(rows, columns=pd.Index(columns))
        measured = dict.fromkeys(columns[2:], "float64")
        return frame.astype({"run": "str", "step": "int64", **measured})

    @cached_property
    def responses(self) -> pd.DataFrame:
        """A row a response: its prompt, text, reward and sizes in tokens and segments."""
        return self.read("responses")

    @cached_property
    def segments(self) -> pd.DataFrame:
        """A row a segment: its text, value, reward, advantage, return and ratio."""
        return self.read("segments")

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """A row a token, where tokens were recorded; use ``read`` for a few columns of many."""
        return self.read("tokens")

    def read(self, table: TableName, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One table of all runs, read from Parquet, with no more columns than asked for.

        Args:
            table: "responses", "segments" or "tokens".
            columns: those to read, besides ``run``; all by default. What a run did not record is
                missing (NaN or None) in its rows.

        Raises:
            StudyError: the table or a column does not exist; lists what does.
        """
        require_known("table", [table], TABLES)
        try:
            return self._read(table, columns)
        except FileNotFoundError:
            # A run that just finished packed its step files between our look and our reading.
            return self._read(table, columns)

    def _read(self, table: TableName, columns: Sequence[str] | None) -> pd.DataFrame:
        files = {run: table_files(path, table) for run, path in self.directories.items()}
        schemas = {run: unified_schema(found, table) for run, found in files.items()}
        known = list(dict.fromkeys(name for schema in schemas.values() for name in schema.names))
        require_known(f"column of .{table}", columns or [], ["run", *known])
        wanted = [name for name in (columns or known) if name != "run"]
        parts = [_run_table(run, files[run], schemas[run], wanted) for run in files if files[run]]
        nothing = _with_run("", TABLES[table].empty_table())
        whole = pa.concat_tables([nothing, *parts], promote_options="permissive")
        return whole.select(["run", *wanted]).to_pandas()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as columns with dotted names.

    A plug-in's table (one with a ``name``) becomes its name at the table's own key, and its
    options below it: ``{name = "entropy", top_fraction = 0.3}`` at ``segmenter`` gives
    ``segmenter = "entropy"`` and ``segmenter.top_fraction = 0.3``. Lists become JSON text, so that
    every cell can be grouped by.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            table = dict(cast("Mapping[str, Any]", value))
            if "name" in table:
                flat[dotted] = table.pop("name")
            flat.update(flatten(table, f"{dotted}."))
        else:
            flat[dotted] = json.dumps(value, default=str) if isinstance(value, list) else value
    return flat


def require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a StudyError for the first name that is not known, with the nearest and all."""
    existing = list(known)
    for name in names:
        if name not in existing:
            raise StudyError(
                f"there is no {what} {name!r}{did_you_mean(name, existing)} There are:"
                f" {', '.join(existing)}."
            )


def _find(path: Path) -> Iterator[Path]:
    """Run directories at or below ``path``, in the order of their names."""
    for folder, subfolders, files in os.walk(path):
        if CONFIG in files and STATUS in files and _is_run(Path(folder)):
            subfolders.clear()  # nothing below a run is a run, and its tables may be many files
            yield Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def _is_run(path: Path) -> bool:
    """Whether both files can be read; what only looks like a run is passed over."""
    try:
        read_config(path)
        read_status(path)
    except RecordError:
        return False
    return True


def _run_name(path: Path, directory: Path) -> str:
    return directory.relative_to(path).as_posix()


def _run_row(run: str, path: Path) -> dict[str, Any]:
    status = read_status(path)
    failed = status["status"] == "failed"
    error = f"{status.get('error_type')}: {status.get('message')}" if failed else ""
    return {"run": run, **flatten(read_config(path)), "status": status["status"], "error": error}


def _run_table(run: str, files: list[Path], schema: pa.Schema, wanted: list[str]) -> pa.Table:
    """The wanted columns of one run, as far as it has them."""
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    present = [name for name in wanted if name in schema.names]
    return _with_run(run, dataset.to_table(columns=present))


def _with_run(run: str, table: pa.Table) -> pa.Table:
    """The table with the column ``run`` before its own."""
    column = pa.repeat(pa.scalar(run, pa.string()), table.num_rows)
    return table.add_column(0, pa.field("run", pa.string()), column)
