"""The tables of several runs, each read when it is first asked for."""

# pandas and pyarrow ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, final

import numpy as np
import pandas as pd
import pyarrow as pa

from segcredit.errors import RecordError, StudyError
from segcredit.records.manifest import MANIFEST, STATUS
from segcredit.records.schemas import RENAMED, RENAMED_TABLES, SCHEMAS, Table
from segcredit.records.stored_config import CONFIG
from segcredit.records.tables.argument_checks import current_name, require_known
from segcredit.records.tables.find_runs import find_runs
from segcredit.records.tables.parquet import Columns, Filter, Part, read_rows
from segcredit.records.tables.progress import progress_frame
from segcredit.records.tables.run_settings import settings_frame, settings_row
from segcredit.records.tables.step_metrics import read_steps
from segcredit.showable import Showable

Damaged = Literal["raise", "skip"]
T = TypeVar("T")

_TYPES: dict[pa.DataType, Any] = {
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(na_value=np.nan),
}
"""Integers and booleans that bear a missing value; and pandas' own text, without a detour."""


def read_runs(path: Path | str, *, damaged: Damaged = "raise") -> Runs:
    """Finds the runs at or below ``path``, at any depth; their tables are read when asked for.

    A run is a directory with a ``config.toml`` and a ``status.json``. Other directories, hidden
    ones and those in which a run is only being made are passed over. Reading is safe while a grid
    goes on: each table is as the runs were when it was first asked for.

    Args:
        path: the directory to search.
        damaged: what a table does about a run whose file of it is truncated or otherwise damaged:
            "raise", or "skip" to leave the run out and name it in ``left_out``.

    Raises:
        StudyError: there is no run.
    """
    path = Path(path)
    require_known("way with damaged runs", [damaged], ["raise", "skip"])
    found = list(find_runs(path))
    if not found:
        reason = "holds no run" if path.is_dir() else "is not a directory"
        raise StudyError(
            f"{path} {reason}; expected at least one directory with a {CONFIG} and a {STATUS}, at"
            " any depth. Usually the path is that of another --output: give the one that"
            " `segcredit train` or `segcredit grid` printed."
        )
    unlisted = sum(not (directory / MANIFEST).exists() for directory in found)
    if unlisted:
        warnings.warn(
            f"{unlisted} of the {len(found)} runs in {path} have no {MANIFEST}, as runs of the"
            " version before: a table that was lost there reads as empty, without a word.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Runs(path, found, damaged=damaged)


@final
class Runs(Showable):
    """The tables of several runs, each read once, when first asked for.

    Every row carries ``run``, the run's directory relative to ``path`` ('.' for ``path`` itself):
    a category with the same names in all tables, so that they can be merged without a copy of it.

    Args:
        path: the directory that was searched.
        directories: the run directories found in it.
        damaged: as in ``read_runs``.
    """

    def __init__(
        self, path: Path, directories: Iterable[Path], *, damaged: Damaged = "raise"
    ) -> None:
        self.path = path
        self.directories = {
            directory.relative_to(path).as_posix(): directory for directory in directories
        }
        self.damaged: Damaged = damaged
        self.left_out: dict[str, str] = {}
        """Runs that a table left out, with the sentence on what is damaged; grows as tables are
        read."""

    def __len__(self) -> int:
        return len(self.directories)

    def __repr__(self) -> str:
        return f"Runs({str(self.path)!r}, {len(self)} runs)"

    def select(self, runs: Iterable[str]) -> Runs:
        """Returns some of the runs alone.

        Args:
            runs: their names, such as ``runs.runs.query("segmenter == 'entropy'")["run"]``.

        Raises:
            StudyError: there is no run of that name.
        """
        names = list(dict.fromkeys(runs))
        require_known("run", names, self.directories)
        chosen = [self.directories[name] for name in names]
        return Runs(self.path, chosen, damaged=self.damaged)

    def whole(self) -> Runs:
        """Returns the runs whose config and status can be read, so that their columns are known.

        Raises:
            RecordError: another is damaged, unless damaged runs are skipped.
        """
        lost = self.runs.loc[self.runs["status"] == "damaged", ["run", "error"]]
        reasons = {str(run): str(error) for run, error in lost.itertuples(index=False)}
        if not reasons:
            return self
        if self.damaged == "raise":
            run, reason = next(iter(reasons.items()))
            raise _damaged(run, reason)
        rest = self.select(name for name in self.directories if name not in reasons)
        rest.left_out |= reasons
        return rest

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run: its config in dotted columns, ``status``, and ``error`` ('' for none).

        A run whose config or status cannot be read is here, as "damaged", with the reason.
        """
        found = self._map(lambda _, path: settings_row(path))
        there = {run: row for run, row in found.items() if row is not None}
        return settings_frame(list(there.values()), self._run_column(dict.fromkeys(there, 1)))

    @cached_property
    def progress(self) -> pd.DataFrame:
        """A row a run: steps done of steps to do, seconds left, and what stopped it."""
        return progress_frame(self.runs, self.directories)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a step of a run: the metrics; NaN where one was not measured."""
        return self.read("steps")

    @cached_property
    def completions(self) -> pd.DataFrame:
        """A row a completion: its prompt, text, reward and sizes in tokens and segments."""
        return self.read("completions")

    @property
    def responses(self) -> pd.DataFrame:
        """Former name of ``completions``."""
        said = ".responses is now called .completions, and its column 'response' is 'completion'."
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        return self.completions

    @cached_property
    def turns(self) -> pd.DataFrame:
        """A row a turn of completions with several: its text, observation, reward and credit."""
        return self.read("turns")

    @cached_property
    def segments(self) -> pd.DataFrame:
        """A row a segment: its text, value, reward, advantage, return and ratio."""
        return self.read("segments")

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """A row a token, where tokens were recorded; use ``read`` for a few columns of many."""
        return self.read("tokens")

    @cached_property
    def audit(self) -> pd.DataFrame:
        """A row a metric of a credit audit, with its interval; see ``docs/explain/audit.md``."""
        return self.read("audit")

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Filter = None
    ) -> pd.DataFrame:
        """Reads one table of all runs, with no more columns and rows than asked for.

        Args:
            table: "steps", "completions", "turns", "segments", "tokens" or "audit".
            columns: those to read, besides ``run``; all by default. What a run did not record is
                missing (NaN or NA) in its rows.
            where: which rows: a ``pyarrow.dataset`` expression over the columns that the table
                always has, such as ``pyarrow.dataset.field("step") > 100``. All by default.

        Raises:
            StudyError: the table or a column does not exist; lists what does.
            RecordError: a run's file is damaged, unless damaged runs are skipped; names both.
        """
        table = cast("Table", current_name(table, RENAMED_TABLES))
        require_known("table", [table], SCHEMAS)
        _require_filter(table, where)
        if columns is not None:
            columns = [current_name(name, RENAMED[table]) for name in columns]
            self._require_columns(table, columns)
            columns = [name for name in dict.fromkeys(columns) if name != "run"]
        parts = self._parts(table, columns, where)
        run = self._run_column({run: part.rows.num_rows for run, part in parts.items()})
        # Nothing else may hold the rows, so that each column is freed once pandas has it.
        rows = [parts.pop(name).rows for name in list(parts)]
        return _to_frame(_one_table(table, columns, rows), run)

    def _require_columns(self, table: Table, columns: Sequence[str]) -> None:
        known = dict.fromkeys(["run", *SCHEMAS[table].names])
        if not set(columns) <= set(known):
            # Some runs may have recorded more than all do: nothing but the names is read.
            parts = self._parts(table, [], None).values()
            known |= dict.fromkeys(name for part in parts for name in part.names)
        require_known(f"column of .{table}", columns, known)

    def _parts(self, table: Table, columns: Columns, where: Filter) -> dict[str, Part]:
        """Returns each run's rows, without the runs that are damaged."""

        def part(run: str, path: Path) -> Part | None:
            try:
                if table == "steps":
                    return read_steps(path, columns, where)
                return read_rows(path, table, columns, where)
            except RecordError as error:
                if self.damaged == "raise":
                    raise _damaged(run, str(error)) from error
                self.left_out[run] = str(error)
                return None

        found = self._map(part)
        return {run: part for run, part in found.items() if part is not None}

    def _map(self, read: Callable[[str, Path], T]) -> dict[str, T]:
        """Calls a function for every run, on as many threads as Arrow may use."""
        names, paths = self.directories, self.directories.values()
        if pa.cpu_count() == 1:
            return dict(zip(names, map(read, names, paths), strict=True))
        with ThreadPoolExecutor(pa.cpu_count()) as pool:
            return dict(zip(names, pool.map(read, names, paths), strict=True))

    def _run_column(self, rows: Mapping[str, int]) -> pd.Categorical:
        """Returns the column ``run`` of a table in which each run has so many rows."""
        numbers = {run: number for number, run in enumerate(self.directories)}
        codes = np.repeat([numbers[run] for run in rows], list(rows.values()))
        return pd.Categorical.from_codes(codes.astype("int32"), categories=list(numbers))


def _one_table(table: Table, columns: Columns, rows: list[pa.Table]) -> pa.Table:
    """Joins all rows, with the columns asked for; by default those of every run come first.

    Takes the rows out of the list.
    """
    nothing = SCHEMAS[table].empty_table()
    if columns is not None:
        nothing = nothing.select([name for name in nothing.column_names if name in columns])
    parts = [nothing, *(rows.pop(0) for _ in range(len(rows)))]
    whole = pa.concat_tables(parts, promote_options="permissive")
    return whole if columns is None else whole.select(columns)


def _to_frame(rows: pa.Table, run: pd.Categorical) -> pd.DataFrame:
    """Converts an Arrow table to pandas, behind the column ``run``."""
    columns: dict[str, Any] = {"run": run}
    for name in rows.column_names:
        # Column by column, so that no more than one is held twice.
        series = rows[name].to_pandas(types_mapper=_TYPES.get)
        columns[name] = series.astype("int64") if name == "step" else series
        rows = rows.drop_columns([name])
    return pd.DataFrame(columns, copy=False)


def _require_filter(table: Table, where: Filter) -> None:
    if where is None:
        return
    try:
        SCHEMAS[table].empty_table().filter(where)
    except (pa.ArrowException, TypeError) as error:
        names = ", ".join(SCHEMAS[table].names)
        raise StudyError(
            f"The rows of .{table} cannot be chosen by {where} ({error}); expected an expression of"
            f" pyarrow.dataset over the columns that it always has: {names}."
        ) from error


def _damaged(run: str, reason: str) -> RecordError:
    return RecordError(
        f"The run {run!r} is damaged. {reason} To read the other runs without it:"
        " read_runs(path, damaged='skip'), or --skip-damaged."
    )
