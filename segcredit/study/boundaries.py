"""Boundaries of many documents under many segmentations, and what they cut: segments, lengths.

    data = read_annotations("rtseg_gold.jsonl")
    cuts = {**data.boundaries, "newline": registry.segmenters.build("newline")}
    lengths(segment_table(data.documents, cuts))

Documents are texts, whose boundaries are character offsets; or lengths, such as numbers of tokens,
whose boundaries count in the same units.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from segcredit.errors import StudyError
from segcredit.protocols import TextSegmenter
from segcredit.study.boundary_metrics import inner_boundaries, segment_lengths
from segcredit.study.statistics import bootstrap_interval
from segcredit.study.tables import require_known

Documents: TypeAlias = Mapping[str, str] | Sequence[str] | Sequence[int]
"""Texts (by name, or in order and named by their number), or lengths."""
Cuts: TypeAlias = TextSegmenter | Sequence[Sequence[int] | None]
"""A segmenter of texts, or the boundaries of each document in order; None where there are none to
compare, such as a document that an annotator did not see."""

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Annotations:
    """Texts that people have segmented."""

    documents: dict[str, str]
    """The text of each document, by its id."""
    boundaries: dict[str, list[list[int] | None]]
    """By annotator: where segments 2..n begin in each document; None where there is no annotation
    by that one."""


def read_annotations(path: Path | str) -> Annotations:
    """Human segmentations of texts, from JSON Lines.

    Args:
        path: a file with an object a line: ``id``, ``text``, and either ``annotations``, a list of
            {"annotator": name, "spans": [[start, end, label], ...]}, or ``boundaries``, the
            offsets at which segments 2..n begin, which are those of the annotator "gold".

    Returns:
        Documents in the order of the file. A segment begins where its entry in ``spans`` does: what
        lies between two entries (white space, punctuation) belongs to the earlier, what lies before
        the first to the first.

    Raises:
        StudyError: the file cannot be read, or a line is not as described; names the line.
    """
    path, documents = Path(path), dict[str, str]()
    found: list[dict[str, list[int]]] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            record = json.loads(line)
            documents[str(record["id"])] = record["text"]
            found.append(_annotators(record))
            if len(documents) < len(found):
                raise StudyError(f"{path}, line {number} repeats the id {record['id']!r}.")
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, StudyError):
            raise
        raise StudyError(
            f"{path}, line {len(found) + 1} is no annotated text ({type(error).__name__}: {error})."
            " Expected a JSON object with id, text and annotations (or boundaries)."
        ) from error
    names = dict.fromkeys(name for record in found for name in record)
    return Annotations(documents, {name: [record.get(name) for record in found] for name in names})


def after_space(boundaries: Sequence[int], text: str) -> list[int]:
    """Each boundary moved to the first character at or after it that is not white space.

    Segmenters differ in the side of a boundary on which they leave the space; so do people. A
    boundary goes where only white space comes before it, or after it.

    Args:
        boundaries: character offsets in ``text``.

    Returns:
        Ascending offsets, each once; moving them again changes nothing.
    """
    return _moved(inner_boundaries(boundaries, len(text)), _spaces(text), len(text))


def boundaries_of(
    documents: Documents, segmentations: Mapping[str, Cuts], *, skip_space: bool = False
) -> tuple[pd.DataFrame, dict[str, list[list[int] | None]]]:
    """The boundaries that each segmentation puts into each document.

    Args:
        documents: texts or lengths.
        segmentations: by name, segmenters or boundaries.
        skip_space: move the boundaries of texts by ``after_space``.

    Returns:
        A row a document with ``document`` (its name) and ``length`` (in characters, or as given);
        by name of the segmentation, ascending boundaries in 1..length−1 of every document.

    Raises:
        StudyError: boundaries and documents differ in number, a boundary is outside its document,
            or a segmenter was given and documents are lengths.
    """
    named = isinstance(documents, Mapping)
    names: list[Any] = list(documents) if named else list(range(len(documents)))
    contents = list(documents.values()) if named else list(documents)
    sizes = [len(content) if isinstance(content, str) else content for content in contents]
    spaces = [_spaces(text) if isinstance(text, str) else None for text in contents]
    found: dict[str, list[list[int] | None]] = {}
    for name, cuts in segmentations.items():
        found[name] = []
        for document, boundaries in enumerate(_cut(name, cuts, contents)):
            size, space = sizes[document], spaces[document]
            inner = None if boundaries is None else _inner(name, names[document], boundaries, size)
            moved = skip_space and inner is not None and space is not None
            found[name].append(_moved(inner, space, size) if moved else inner)
    return pd.DataFrame({"document": names, "length": sizes}), found


def segment_table(
    documents: Documents,
    segmentations: Mapping[str, Cuts],
    *,
    tokens: Sequence[Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Every segment of every document, under every segmentation.

    Args:
        documents: texts or lengths.
        segmentations: by name, segmenters or boundaries.
        tokens: for each document the first character of each token, ascending.

    Returns:
        A row a segment: ``document``, ``segmenter``, ``segment`` (from 0), ``start`` and ``length``
        (in characters, or in the units of the documents), and ``tokens``, the tokens that begin in
        it, if they were given. An empty document has no segments.

    Raises:
        StudyError: as for ``boundaries_of``, or ``tokens`` and documents differ in number.
    """
    table, found = boundaries_of(documents, segmentations)
    if tokens is not None and len(tokens) != len(table):
        raise StudyError(
            f"Tokens are given for {len(tokens)} documents; expected {len(table)}, one list of"
            " first characters for each."
        )
    parts: list[pd.DataFrame] = []
    for segmenter, boundaries in found.items():
        for row, (document, size) in enumerate(table.itertuples(index=False)):
            inner = boundaries[row]
            if inner is not None and size:
                part = _segments(inner, size, None if tokens is None else tokens[row])
                parts.append(part.assign(document=document, segmenter=segmenter))
    columns = ["document", "segmenter", "segment", "start", "length"]
    columns += [] if tokens is None else ["tokens"]
    if not parts:
        return pd.DataFrame(columns=pd.Index(columns))
    return pd.concat(parts, ignore_index=True)[columns]


def lengths(segments: pd.DataFrame, by: Sequence[str] = ("segmenter",)) -> pd.DataFrame:
    """How many segments a document has, and how long they are.

    Args:
        segments: as ``segment_table`` gives them; columns may have been merged to them.
        by: columns whose values make the groups, such as "segmenter" and "style".

    Returns:
        A row a group and unit: the columns of ``by``; ``unit``, "length" (characters, or the units
        of the documents) or "tokens"; ``documents``; ``segments`` in all; ``per_document``, the
        mean, with ``low`` and ``high`` (95% bootstrap over documents); ``whole``, the share of
        documents in one segment; then of the segments' lengths the ``mean``, the standard deviation
        ``std`` (of the segments themselves: divided by n), ``min``, ``p10``, ``median``, ``p90``
        and ``max`` (linear between values). Segments in which no token begins do not count where
        the unit is tokens.

    Raises:
        StudyError: a column of ``by`` does not exist, or ``by`` is empty.
    """
    by = [by] if isinstance(by, str) else list(by)
    if not by:
        raise StudyError("No column to group by was given; expected some, such as 'segmenter'.")
    require_known("column of segments", by, map(str, segments.columns))
    units = [unit for unit in ("length", "tokens") if unit in segments.columns]
    rows: list[dict[str, Any]] = []
    for _, group in segments.groupby(by, sort=False, dropna=False):
        key = group.iloc[0][by].to_dict()
        rows += [{**key, "unit": unit, **_length_statistics(group, unit)} for unit in units]
    return pd.DataFrame(rows)


def _annotators(record: Mapping[str, Any]) -> dict[str, list[int]]:
    """Boundaries by annotator of one line."""
    if "annotations" not in record:
        return {"gold": inner_boundaries(record["boundaries"], len(record["text"]))}
    found: dict[str, list[int]] = {}
    for annotation in record["annotations"]:
        starts = sorted(int(entry[0]) for entry in annotation["spans"])
        found[annotation["annotator"]] = inner_boundaries(starts[1:], len(record["text"]))
    return found


def _spaces(text: str) -> tuple[list[int], list[int]]:
    """Where runs of white space begin, and where they end."""
    runs = [match.span() for match in _SPACE.finditer(text)]
    return [start for start, _ in runs], [end for _, end in runs]


def _moved(inner: list[int], spaces: tuple[list[int], list[int]], length: int) -> list[int]:
    starts, ends = np.asarray(spaces[0], dtype=np.int64), np.asarray([-1, *spaces[1]])
    offsets = np.asarray(inner, dtype=np.int64)
    # The end of the last run that begins at or before the offset; no run ends later than the next
    # begins, so that the later of the two is right inside a run and outside.
    moved = np.unique(np.maximum(offsets, ends[np.searchsorted(starts, offsets, side="right")]))
    first = spaces[1][0] if spaces[0][:1] == [0] else 0
    return moved[(moved > first) & (moved < length)].tolist()


def _cut(name: str, cuts: Cuts, contents: Sequence[str | int]) -> Iterator[Sequence[int] | None]:
    """What a segmentation says of each document."""
    if not isinstance(cuts, TextSegmenter):
        if len(cuts) != len(contents):
            raise StudyError(
                f"segmentation {name!r} has boundaries for {len(cuts)} documents; expected"
                f" {len(contents)}, one list for each (None where there is none to compare)."
            )
        yield from cuts
        return
    for text in contents:
        if not isinstance(text, str):
            raise StudyError(
                f"segmentation {name!r} is a segmenter, but the documents are lengths; expected"
                " texts for it to read, or lists of boundaries in its place."
            )
        yield cuts.split(text)


def _inner(name: str, document: Any, boundaries: Sequence[int], length: int) -> list[int]:
    try:
        return inner_boundaries(boundaries, length)
    except StudyError as error:
        raise StudyError(f"segmentation {name!r}, document {document!r}: {error}") from error


def _segments(inner: list[int], size: int, tokens: Sequence[int] | None) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "segment": np.arange(len(inner) + 1),
        "start": [0, *inner],
        "length": segment_lengths(inner, size),
    }
    if tokens is not None:
        columns["tokens"] = segment_lengths(inner, size, tokens)
    return pd.DataFrame(columns)


def _length_statistics(segments: pd.DataFrame, unit: str) -> dict[str, float]:
    counted = segments[segments[unit] > 0]
    size = counted[unit].to_numpy(dtype=np.float64)
    counts = counted.groupby("document", sort=False).size().to_numpy()
    low, high = bootstrap_interval(counts)
    p10, median, p90 = np.quantile(size, [0.1, 0.5, 0.9])
    return {
        "documents": len(counts),
        "segments": len(size),
        "per_document": counts.mean(),
        "low": low,
        "high": high,
        "whole": (counts == 1).mean(),
        "mean": size.mean(),
        "std": size.std(),
        "min": size.min(),
        "p10": p10,
        "median": median,
        "p90": p90,
        "max": size.max(),
    }
