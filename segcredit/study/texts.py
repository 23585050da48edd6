"""Texts to segment without a model: given on the command line, plain files and JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from segcredit import registry
from segcredit.errors import StudyError
from segcredit.protocols import TextSegmenter


def read_texts(source: str, field: str) -> Iterator[str]:
    """The texts of a source.

    Args:
        source: a path (``.jsonl``: a text a line, in ``field``; else the whole file is one text),
            ``-`` for standard input, or the text itself.
        field: the key of each JSON object.

    Raises:
        StudyError: a file or a line cannot be read, or lacks the field; names the line.
    """
    path = Path(source)
    if len(source) > 255 or "\n" in source or not path.is_file():
        if path.suffix in (".jsonl", ".txt", ".json"):
            raise StudyError(f"there is no file {source}.")
        yield source
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _field(line, field, path, number)
    else:
        yield path.read_text(encoding="utf-8", errors="replace")


def text_segmenters(names: Sequence[str]) -> dict[str, TextSegmenter]:
    """The named segmenters, which must read text alone.

    Raises:
        StudyError: one of them needs a model's signals.
    """
    chosen: dict[str, TextSegmenter] = {}
    for name in names:
        segmenter = registry.segmenters.build(name)
        if not isinstance(segmenter, TextSegmenter):
            raise StudyError(
                f"segmenter {name!r} needs tokens or a model's signals, not text alone. Use one"
                " that subclasses segcredit.TextSegmenter, such as newline."
            )
        chosen[name] = segmenter
    return chosen


def _field(line: str, field: str, path: Path, number: int) -> str:
    try:
        return str(json.loads(line)[field])
    except json.JSONDecodeError as error:
        raise StudyError(f"{path}, line {number} is not JSON: {error}.") from error
    except (KeyError, TypeError) as error:
        raise StudyError(
            f"{path}, line {number} has no field {field!r}. Name one of its keys with --field."
        ) from error
