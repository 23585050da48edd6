"""Boundaries of many documents under many segmentations: segmenters' and people's.

Documents are texts, whose boundaries are character offsets; or lengths, such as numbers of tokens,
whose boundaries count in the same units.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from segcredit.errors import StudyError
from segcredit.protocols import TextSegmenter
from segcredit.study.agreement.metrics import inner_boundaries

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
    """Reads human segmentations of texts from JSON Lines.

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
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, text, boundaries = _record(line, f"{path}, line {number}")
            if name in documents:
                raise StudyError(f"{path}, line {number} repeats the id {name!r}.")
            documents[name] = text
            found.append(boundaries)
    names = dict.fromkeys(name for record in found for name in record)
    return Annotations(documents, {name: [record.get(name) for record in found] for name in names})


def after_space(boundaries: Sequence[int], text: str) -> list[int]:
    """Returns each boundary moved to the first character at or after it that is not white space.

    Segmenters differ in the side of a boundary on which they leave the space; so do people. A
    boundary goes where only white space comes before it, or after it.

    Args:
        boundaries: character offsets.
        text: in which they are.

    Returns:
        Ascending offsets, each once; moving them again changes nothing.
    """
    return _moved(inner_boundaries(boundaries, len(text)), _spaces(text), len(text))


def boundaries_of(
    documents: Documents, segmentations: Mapping[str, Cuts], *, skip_space: bool = False
) -> tuple[pd.DataFrame, dict[str, list[list[int] | None]]]:
    """Returns the boundaries that each segmentation puts into each document.

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
    found: dict[str, list[list[int] | None]] = {}
    for name, cuts in segmentations.items():
        rows = zip(names, sizes, _cut(name, cuts, contents), strict=True)
        found[name] = [_inner(name, *row) for row in rows]
    if skip_space:
        for row, text in enumerate(contents):
            if isinstance(text, str):
                _move(found.values(), row, text)
    return pd.DataFrame({"document": names, "length": sizes}), found


def _record(line: str, place: str) -> tuple[str, str, dict[str, list[int]]]:
    """Returns the id, the text and the boundaries by annotator of one line."""
    try:
        record = json.loads(line)
        name, text = str(record["id"]), str(record["text"])
        if "annotations" in record:
            starts = {
                annotation["annotator"]: sorted(int(entry[0]) for entry in annotation["spans"])[1:]
                for annotation in record["annotations"]
            }
        else:
            starts = {"gold": [int(start) for start in record["boundaries"]]}
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise StudyError(
            f"{place} is no annotated text ({type(error).__name__}: {error}). Expected a JSON"
            " object with id, text and annotations (or boundaries)."
        ) from error
    return name, text, {who: _inner(who, name, len(text), starts[who]) or [] for who in starts}


def _spaces(text: str) -> tuple[list[int], list[int]]:
    """Returns the places where runs of white space begin, and where they end."""
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
    """Returns the boundaries of a segmentation in each document."""
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


def _inner(
    name: str, document: Any, length: int, boundaries: Sequence[int] | None
) -> list[int] | None:
    """Checks that boundaries ascend inside the text; the error says where they do not."""
    try:
        return None if boundaries is None else inner_boundaries(boundaries, length)
    except StudyError as error:
        raise StudyError(f"segmentation {name!r}, document {document!r}: {error}") from error


def _move(found: Iterable[list[list[int] | None]], row: int, text: str) -> None:
    """Moves the boundaries of one document under every segmentation."""
    spaces = _spaces(text)
    for boundaries in found:
        inner = boundaries[row]
        if inner:
            boundaries[row] = _moved(inner, spaces, len(text))
