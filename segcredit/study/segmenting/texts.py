"""Texts to segment: from the command line, plain files, JSONL and standard input."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from segcredit.errors import UNREADABLE, StudyError, parser_words

_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")
"""Halves of a surrogate pair: a JSON string can hold one alone, though it is no character."""
_READ_AS_PATH = (".jsonl", ".txt", ".json")
"""A source that ends like this and does not exist is a mistyped path rather than a text."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text to segment."""

    number: int
    """Its place in the source, from 1."""
    text: str
    """The text itself; what is no character, such as a broken byte, is replaced by U+FFFD."""
    prompt: str = ""
    id: str | None = None
    """Its record's ``id``, as text."""

    @property
    def name(self) -> str:
        """Name of the document in messages."""
        return f"{self.number}" if self.id is None else f"{self.number} ({self.id})"


def read_documents(
    source: str, field: str | None = None, prompt_field: str | None = None
) -> Iterator[Document]:
    """Yields the texts of a source.

    Args:
        source: a path, ``-`` for standard input, or the text itself. A file ``*.jsonl``, and any
            file or input of which a field is named, is JSONL: a text a line; else the whole is one
            text. Blank lines of JSONL are left out.
        field: the key of each JSON object that holds its text; None = ``text``.
        prompt_field: the key that holds the prompt which the text completes, if any.

    Raises:
        StudyError: a file or a line cannot be read, or lacks a field; names the line.
    """
    json_lines = source.endswith(".jsonl") or field is not None or prompt_field is not None
    if source != "-" and not os.path.isfile(source):
        _require_text(source, json_lines)
        yield Document(1, _clean(source))
        return
    with _opened(source) as file:
        if json_lines:
            yield from _records(file, source, field or "text", prompt_field)
        else:
            yield Document(1, _clean(file.read().decode("utf-8-sig", errors="replace")))


def _require_text(source: str, json_lines: bool) -> None:
    """Refuses a source that was meant as a path."""
    if os.path.isdir(source):
        raise StudyError(f"{source} is a folder; expected a file, a text, or - for standard input.")
    if json_lines or ("\n" not in source and source.endswith(_READ_AS_PATH)):
        raise StudyError(
            f"there is no file {source}. Check the path; a text by itself is given without --field"
            " and --prompt-field, which are for JSONL."
        )


def _opened(source: str) -> Any:
    """Opens a file or standard input as bytes, which keep newlines, and so offsets."""
    if source == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise StudyError(f"{source} cannot be read: {error.strerror}.") from error


def _records(
    file: BinaryIO, source: str, field: str, prompt_field: str | None
) -> Iterator[Document]:
    number = 0
    for line_number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        number += 1
        where = f"{'standard input' if source == '-' else source}, line {line_number}"
        record = _record(line.decode("utf-8-sig", errors="replace"), where)
        name = record.get("id")
        yield Document(
            number,
            _field(record, field, "--field", where),
            "" if prompt_field is None else _field(record, prompt_field, "--prompt-field", where),
            name if name is None or isinstance(name, str) else json.dumps(name),
        )


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UNREADABLE as error:
        raise StudyError(f"{where} is not JSON: {parser_words(error)}.") from error
    if not isinstance(record, dict):
        raise StudyError(
            f"{where} is {type(record).__name__} rather than an object; expected an object whose"
            ' text is in a field, such as {"text": "..."}.'
        )
    return cast("dict[str, Any]", record)


def _field(record: Mapping[str, Any], field: str, option: str, where: str) -> str:
    if field not in record:
        raise StudyError(
            f"{where} has no field {field!r}. Name one of its keys with {option}: it has"
            f" {', '.join(record) or 'none'}."
        )
    value = record[field]
    if not isinstance(value, str):
        raise StudyError(
            f"{where}: field {field!r} is {json.dumps(value)[:60]}; expected a string. Name another"
            f" of its keys with {option}."
        )
    return _clean(value)


def _clean(text: str) -> str:
    """Returns the text with a replacement, as long, for each half of a character."""
    return _HALF_CHARACTERS.sub("\ufffd", text)
