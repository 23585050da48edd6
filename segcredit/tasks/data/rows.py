"""Rows of a data set: JSON Lines and JSON by ourselves, everything else by ``datasets``.

JSON is read here since a bad line must be told by its number, and may be skipped.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from segcredit.atomic_files import require_file
from segcredit.errors import UNREADABLE, TaskError, parser_words

Row = Mapping[str, Any]
_FILES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""Local files that ``datasets`` reads, and what it calls them."""
_COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Endings of compressed JSON, and what opens such a file."""
_SAVED = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class Numbered:
    """A row with its place, or what is wrong with it."""

    number: int
    """From 0; blank lines do not count."""
    place: str
    """For messages: the number, and the line where there are lines."""
    row: Row
    """Empty where it cannot be read."""
    fault: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows that can be had by their numbers."""

    rows: Sequence[Row]
    """In memory, or of ``datasets``, which reads them from a file when they are asked for."""
    numbered: Sequence[Numbered] = ()
    """All of them, where they are in memory."""

    def some(self, columns: Sequence[str]) -> Iterator[Numbered]:
        """Yields every row, of these columns at least where it has them."""
        if self.numbered or not len(self.rows):
            yield from self.numbered
            return
        known: Any = self.rows
        there = [name for name in columns if name in known.column_names]
        # Without any column there would be no rows; then all of them tell what is missing.
        narrow = known.select_columns(there) if len(there) == len(columns) else known
        for number, row in enumerate(narrow):
            yield Numbered(number, f"row {number}", row)


@dataclass(frozen=True, slots=True)
class Source:
    """The place where rows come from, and their name in messages."""

    name: str
    """A data set of the hub, a local file or a folder."""
    config: str = ""
    """Configuration of a data set with several; '' for the only one."""
    split: str = "train"
    """Split of a data set of the hub, or of a folder that has splits."""
    images: str = ""
    """The column whose images stay as they were stored; '' for none."""

    def table(self) -> Table:
        """Returns all rows.

        Raises:
            TaskError: they cannot be read.
        """
        if not self._is_json:
            return Table(cast("Sequence[Row]", self._loaded(streaming=False)))
        found = list(_json_rows(self.name))
        return Table([one.row for one in found], found)

    def flow(self) -> RowFlow:
        """Returns the same rows one after the other, without holding them all.

        Raises:
            TaskError: they cannot be read.
        """
        if not self._is_json:
            return RowFlow(self.name, self._loaded(streaming=True))
        from datasets import IterableDataset

        library: Any = IterableDataset
        packed = library.from_generator(_packed_rows, gen_kwargs={"path": self.name})
        return RowFlow(self.name, packed)

    @property
    def _is_json(self) -> bool:
        path = Path(self.name.lower())
        inner = path.with_suffix("") if path.suffix in _COMPRESSED else path
        return inner.suffix in (".jsonl", ".json")

    def _loaded(self, *, streaming: bool) -> Any:
        """Loads the rows as ``datasets`` holds them, images packed as they were stored."""
        import datasets

        library: Any = datasets
        try:
            found = self._read(library, streaming)
        # What datasets raises for names, files and splits; of its own errors most are these.
        except (OSError, ValueError, KeyError, library.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error  # datasets says of a bad file only that there is one
            first = next(iter(str(cause).splitlines()), type(cause).__name__)
            raise TaskError(
                f"the data set {self.name!r}, split {self.split!r}, cannot be had ({first});"
                " expected its name on the Hugging Face hub, or a local file (JSON Lines, JSON,"
                " CSV, Parquet) or folder. Usually the name is misspelt, or the hub cannot be"
                " reached: check task.source, task.config and task.split, or download it first."
            ) from error
        return _with_packed_images(library, found, self.images)

    def _read(self, library: Any, streaming: bool) -> Any:
        path = Path(self.name)
        if any((path / file).is_file() for file in _SAVED):
            saved: Any = library.load_from_disk(self.name)
            found: Any = saved[self.split] if isinstance(saved, library.DatasetDict) else saved
            return found.to_iterable_dataset() if streaming else found
        kind = _FILES.get(path.suffix.lower())
        if kind is None:
            return library.load_dataset(
                self.name, self.config or None, split=self.split, streaming=streaming
            )
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {self.name}")
        options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
        # Unlike load_dataset these look at nothing but the file, least of all at the network.
        reader = library.IterableDataset if streaming else library.Dataset
        return getattr(reader, f"from_{kind}")(self.name, **options)


@dataclass(slots=True, eq=False)
class RowFlow:
    """Rows read in order, from a place that can be named and gone back to."""

    name: str
    """Name of the source, in messages."""
    dataset: Any
    """Iterable data set of ``datasets``."""
    number: int = 0
    """Number of the next row."""
    _rows: Iterator[Row] | None = None
    _start: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self._start = copy.deepcopy(self.dataset.state_dict())

    def read(self, count: int) -> list[Numbered]:
        """Returns the next rows; fewer at the end of the data.

        Raises:
            TaskError: they cannot be read.
        """
        if self._rows is None:
            self._rows = iter(self.dataset)
        try:
            found = list(islice(self._rows, count))
        except (OSError, ValueError) as error:
            raise TaskError(
                f"the rows of {self.name!r} from row {self.number} on cannot be read ({error});"
                " expected rows to the end of the data. Usually the file was cut, or the network"
                " failed: mend the file, or go on with --resume."
            ) from error
        numbers = range(self.number, self.number + len(found))
        self.number += len(found)
        return [_unpacked(number, row) for number, row in zip(numbers, found, strict=True)]

    def restart(self) -> None:
        """Goes back to the first row."""
        self.load_state_dict({"number": 0, "place": self._start})

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of the next row, and the place as ``datasets`` tells it."""
        return {"number": self.number, "place": copy.deepcopy(self.dataset.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the position of a ``state_dict``."""
        self.number, self._rows = int(state["number"]), None
        self.dataset.load_state_dict(copy.deepcopy(state["place"]))


_PACKED = "segcredit row"
"""The one key of a row of our own reading, in a flow."""


def _packed_rows(path: str) -> Iterator[dict[str, Numbered]]:
    for one in _json_rows(path):
        yield {_PACKED: one}


def _unpacked(number: int, row: Row) -> Numbered:
    packed: Numbered | None = row.get(_PACKED)
    return packed or Numbered(number, f"row {number}", row)


def _json_rows(path: str) -> Iterator[Numbered]:
    """Yields the objects of a JSON Lines file, or of one JSON list.

    Raises:
        TaskError: the file cannot be read, or begins a list that is none.
    """
    try:
        # With a byte order mark, which Windows writes, or without.
        with _COMPRESSED.get(Path(path).suffix.lower(), open)(
            require_file(Path(path)), "rt", encoding="utf-8-sig"
        ) as file:
            begin = file.read(1)
            file.seek(0)
            yield from _listed(path, file.read()) if begin == "[" else _lines(file)
    except (OSError, UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise TaskError(
            f"the problems {path!r} cannot be read ({error}); expected a JSON Lines file, or one"
            " JSON list, in UTF-8, compressed by gzip, bzip2 or xz if its name says so. Check"
            " task.source."
        ) from error


def _lines(lines: Iterator[str]) -> Iterator[Numbered]:
    filled = ((line, text) for line, text in enumerate(lines, 1) if text.strip())
    for number, (line, text) in enumerate(filled):
        place = f"row {number}, line {line}"
        try:
            yield _object(number, place, json.loads(text))
        except UNREADABLE as error:
            yield Numbered(number, place, {}, f"is no JSON ({parser_words(error)})")


def _listed(path: str, text: str) -> Iterator[Numbered]:
    try:
        rows = json.loads(text)
    except UNREADABLE as error:
        raise TaskError(
            f"{path!r} is no JSON ({parser_words(error)}); expected a list of objects, or one"
            " object a line. Usually the file was cut."
        ) from error
    for number, row in enumerate(rows):
        yield _object(number, f"row {number}", row)


def _object(number: int, place: str, row: Any) -> Numbered:
    if isinstance(row, dict):
        return Numbered(number, place, cast("Row", row))
    return Numbered(number, place, {}, f"is {row!r:.60}, not an object with columns")


def _with_packed_images(library: Any, found: Any, column: str) -> Any:
    known: dict[str, Any] = found.features or {}
    feature: Any = known.get(column)
    packed = library.Image(decode=False)
    if isinstance(feature, library.Image):
        return found.cast_column(column, packed)
    if isinstance(feature, library.List) and isinstance(feature.feature, library.Image):
        return found.cast_column(column, library.List(packed))
    return found
