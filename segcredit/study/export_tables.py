"""Tables as files: for other programs (CSV, Parquet), a page (Markdown), a paper (LaTeX)."""

# pandas and tabulate type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingModuleSource=false

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from segcredit.atomic_files import replacing
from segcredit.errors import StudyError
from segcredit.records.schemas import RENAMED_TABLES, SCHEMAS, Table
from segcredit.records.tables import Runs, current_name, require_known

_DIGITS = 3
"""Decimals of a number on a page; CSV and Parquet keep all of it."""


def write_table(frame: pd.DataFrame, path: Path | str) -> Path:
    """Writes a table as a file, whole or not at all; its extension says how.

    ``.csv`` and ``.parquet`` hold every value exactly (CSV without its type). ``.md`` (a pipe
    table) and ``.tex`` (a booktabs ``tabular``, to be put into a ``table``) are for reading:
    numbers have three decimals (none where a column holds whole ones alone, three significant
    digits where they are smaller), what is missing is –, and every character that means something
    to Markdown or TeX is escaped.

    Args:
        frame: any table, such as ``runs.steps`` or what ``summarise`` returns. Index levels that
            have a name become columns, the others are left out; columns of several levels are
            joined by dots.
        path: the file; its folder is made where it is missing.

    Returns:
        The path written.

    Raises:
        StudyError: the extension is none of these, or two columns would have one name.
        MissingPackageError: tabulate is not installed, which draws Markdown and LaTeX.
        RecordError: the file cannot be written; what it held before is intact.
    """
    path = Path(path)
    kind = require_format(path)
    plain = _plain(frame)
    with replacing(path) as stream:
        _WRITERS[kind](plain, stream)
    return path


def table_of(runs: Runs, name: str, made: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns a table by its name: one that was made of the runs, or one of theirs.

    Raises:
        StudyError: there is none of that name; lists those that there are.
    """
    name = require_table(name, made)
    if name in made:
        return made[name]
    return runs.runs if name == "runs" else runs.read(cast("Table", name))


def require_table(name: str, made: Iterable[str]) -> str:
    """Returns the name of today of a table that is made of runs, or one of theirs.

    Raises:
        StudyError: there is none of that name; lists those that there are.
    """
    name = current_name(name, RENAMED_TABLES)
    require_known("table", [name], [*made, "runs", *SCHEMAS])
    return name


def require_format(path: Path) -> str:
    """Returns the format that a file's extension names.

    Raises:
        StudyError: there is no such format.
    """
    kind = path.suffix.removeprefix(".").lower()
    require_known("table format", [kind], _WRITERS)
    return kind


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the same rows, with plainly named columns alone.

    Raises:
        StudyError: two columns would have one name.
    """
    unnamed = [number for number, name in enumerate(frame.index.names) if name is None]
    whole = frame.reset_index(allow_duplicates=True)
    # reset_index gives unnamed levels names of its own, and puts all levels first.
    kept = [n for n in range(whole.shape[1]) if n not in unnamed]
    plain = whole.iloc[:, kept]
    names = [
        ".".join(map(str, name)).strip(".") if isinstance(name, tuple) else str(name)
        for name in plain
    ]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise StudyError(
            f"The table has several columns named {', '.join(map(repr, doubled))}; expected each"
            " name once. Usually two tables were put side by side: rename the columns of one."
        )
    return plain.set_axis(names, axis=1)


def _write_csv(frame: pd.DataFrame, stream: BinaryIO) -> None:
    frame.to_csv(stream, mode="wb", index=False, lineterminator="\n", encoding="utf-8")


def _write_parquet(frame: pd.DataFrame, stream: BinaryIO) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def _write_markdown(frame: pd.DataFrame, stream: BinaryIO) -> None:
    stream.write(f"{_drawn(frame, 'pipe', _markdown)}\n".encode())


def _write_latex(frame: pd.DataFrame, stream: BinaryIO) -> None:
    # tabulate escapes what TeX reads as commands, but not the | that older encodings print as —.
    text = _drawn(frame, "latex_booktabs", _one_line).replace("|", r"\textbar{}")
    # Of a table without rows it says nothing about the columns, which TeX refuses.
    columns = "l" * frame.shape[1]
    text = text.replace(r"\begin{tabular}{}", rf"\begin{{tabular}}{{{columns}}}")
    stream.write(f"{text}\n".encode())


def _drawn(frame: pd.DataFrame, form: str, escape: Callable[[str], str]) -> str:
    """Draws a table as text: numbers to the right, everything else to the left."""
    cells = [[escape(cell) for cell in _cells(column)] for _, column in frame.items()]
    sides = ["right" if _is_number(column) else "left" for _, column in frame.items()]
    return tabulate(
        list(zip(*cells, strict=True)),
        headers=[escape(str(name)) for name in frame],
        tablefmt=form,
        disable_numparse=True,
        colalign=sides if len(frame) else None,  # of no rows tabulate 0.9 aligns nothing
    )


def _is_number(column: pd.Series) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


def _cells(column: pd.Series) -> list[str]:
    """Returns the values of a column as a reader wants them."""
    values = column.astype(object)
    if not (_is_number(column) and pd.api.types.is_float_dtype(column)):
        return ["–" if _is_missing(value) else str(value) for value in values]
    known = column.dropna()
    whole = bool((known == known.round()).all())
    return ["–" if _is_missing(value) else _number(float(value), whole) for value in values]


def _is_missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _number(value: float, whole: bool) -> str:
    if whole:
        return f"{value:.0f}"
    tiny = 0 < abs(value) < 10**-_DIGITS
    return f"{value:.{_DIGITS}g}" if tiny else f"{value:.{_DIGITS}f}"


def _markdown(text: str) -> str:
    """Escapes text for a Markdown cell; a _ inside a word means nothing to it and stays."""
    return _one_line(re.sub(r"([\\`*\[\]<>|&~$]|\b_|_\b|(?<!\w)_(?!\w))", r"\\\1", text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


_WRITERS: dict[str, Callable[[pd.DataFrame, BinaryIO], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "md": _write_markdown,
    "tex": _write_latex,
}
