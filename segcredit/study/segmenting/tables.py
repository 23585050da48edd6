"""Tables of segmenters over many texts: a summary of each, and a file with a row a segment."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segcredit.atomic_files import replacing
from segcredit.errors import StudyError
from segcredit.study.segmenting.cut import Segmented, TextSegments
from segcredit.study.segmenting.texts import Document

_COLUMNS = {
    "number": "int64",
    "id": "string",
    "segmenter": "string",
    "segment": "int64",
    "start": "int64",
    "end": "int64",
    "tokens": "int64",
    "text": "string",
}
"""Arrow's type of each column."""
_GROUP_ROWS = 100_000
"""Rows of a Parquet row group; bounds the memory of writing."""


@dataclass(slots=True)
class Summary:
    """Totals of one segmenter over the texts so far."""

    texts: int = 0
    """Those that it segmented; failures are not among them."""
    counts: list[int] = field(default_factory=list)
    """Segments of each text."""
    characters: list[int] = field(default_factory=list)
    """Length of each segment in characters."""
    tokens: list[int] = field(default_factory=list)
    """Length of each segment in tokens, where a policy made some."""
    failures: dict[str, list[str]] = field(default_factory=dict)
    """Texts by name on which it failed, by its sentence."""

    def add(self, document: Document, found: TextSegments) -> None:
        """Counts one text."""
        if found.error:
            self.failures.setdefault(found.error, []).append(document.name)
            return
        self.texts += 1
        self.counts.append(len(found))
        self.characters += [e - s for s, e in zip(found.starts, found.ends, strict=True)]
        self.tokens += found.tokens or ()

    @property
    def failed(self) -> int:
        """Texts on which it failed."""
        return sum(map(len, self.failures.values()))


def quantiles(values: list[int], *at: float) -> list[float]:
    """Computes quantiles, interpolated; NaN where there are no values."""
    return np.quantile(values, at).tolist() if values else [float("nan")] * len(at)


def require_output(path: Path, source: str) -> None:
    """Refuses a file that segments cannot be written to, before anything is computed.

    Raises:
        StudyError: its suffix names no format that is known, or it is the source itself.
    """
    if path.suffix not in _WRITERS:
        raise StudyError(
            f"--output {path} ends with {path.suffix or 'no suffix'!r}; expected one of"
            f" {', '.join(_WRITERS)}, which names the format. Such as --output segments.parquet."
        )
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise StudyError(f"--output {path} is the source itself; choose another file.")


def counted(
    segmented: Iterable[Segmented], summaries: Mapping[str, Summary]
) -> Iterator[Segmented]:
    """Passes everything through, and adds each text to its segmenters' summaries."""
    for document, found in segmented:
        for label, segments in found.items():
            summaries[label].add(document, segments)
        yield document, found


def written(segmented: Iterable[Segmented], path: Path) -> Iterator[Segmented]:
    """Passes everything through, and writes a row a segment; the file appears at the end.

    Columns: ``number`` of the text from 1, ``id`` of its record or null, ``segmenter``, ``segment``
    from 0, ``start`` and ``end`` in characters of the text, the end excluded, ``tokens`` of the
    segment or null, and its ``text``.

    Raises:
        RecordError: the file cannot be written; what was at its place is still there.
    """
    with _WRITERS[path.suffix](path) as write:
        for document, found in segmented:
            for label, segments in found.items():
                write(_rows(document, label, segments))
            yield document, found


def rows(document: Document, found: Mapping[str, TextSegments]) -> list[dict[str, Any]]:
    """Returns a row a segment of a text, with the columns that ``written`` writes."""
    return [row for label, segments in found.items() for row in _rows(document, label, segments)]


def summary_rows(summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """Returns a row a segmenter.

    ``segmenter``, ``texts``, ``segments``, ``failed``; then the medians ``segments_per_text``,
    ``characters_per_segment`` and ``tokens_per_segment``, NaN where there are none.
    """
    return [
        {
            "segmenter": label,
            "texts": summary.texts,
            "segments": len(summary.characters),
            "failed": summary.failed,
            "segments_per_text": quantiles(summary.counts, 0.5)[0],
            "characters_per_segment": quantiles(summary.characters, 0.5)[0],
            "tokens_per_segment": quantiles(summary.tokens, 0.5)[0],
        }
        for label, summary in summaries.items()
    ]


def _rows(document: Document, label: str, found: TextSegments) -> list[dict[str, Any]]:
    return [
        {
            "number": document.number,
            "id": document.id,
            "segmenter": label,
            "segment": place,
            "start": start,
            "end": end,
            "tokens": None if found.tokens is None else found.tokens[place],
            "text": document.text[start:end],
        }
        for place, (start, end) in enumerate(zip(found.starts, found.ends, strict=True))
    ]


Write = Callable[[list[dict[str, Any]]], None]


@contextmanager
def _json_lines(path: Path) -> Generator[Write]:
    with replacing(path) as file:

        def write(rows: list[dict[str, Any]]) -> None:
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())

        yield write


@contextmanager
def _parquet(path: Path) -> Generator[Write]:
    import pyarrow as pa  # inside: segments that are only shown do not wait for it
    import pyarrow.parquet as pq

    schema = pa.schema(_COLUMNS)
    waiting: list[dict[str, Any]] = []
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as parquet:

        def write(rows: list[dict[str, Any]]) -> None:
            waiting.extend(rows)
            if len(waiting) >= _GROUP_ROWS:
                flush()

        def flush() -> None:
            parquet.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        yield write
        flush()


_WRITERS = {".parquet": _parquet, ".jsonl": _json_lines}
