"""Segmented texts to learn from: one JSON object a line, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from segcredit import errors

from .signals import TokenSignals
from .tokens import Ints

_SIGNALS = ("token_starts", "entropies", "logprobs")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents (D of them) with the places where their segments begin."""

    texts: tuple[str, ...]
    boundaries: tuple[Ints, ...]
    """Ascending offsets of visible characters, the first segment's left out."""
    problems: tuple[str, ...]
    """Documents of one problem are never apart in cross-validation."""
    sources: tuple[str, ...]
    signals: tuple[TokenSignals, ...] | None
    """The policy's, where every document has them."""

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Corpus:
        """Returns some of the documents."""
        signals = None if self.signals is None else tuple(self.signals[row] for row in rows)
        return Corpus(
            texts=tuple(self.texts[row] for row in rows),
            boundaries=tuple(self.boundaries[row] for row in rows),
            problems=tuple(self.problems[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
            signals=signals,
        )


def read_corpus(path: Path, annotator: str | None = None) -> Corpus:
    """Reads a JSONL file.

    Args:
        path: each line has ``text``; ``boundaries``, the character offsets where segments 2 to n
            begin, or ``annotations``, a list of objects with ``annotator`` and ``spans``, each of
            which begins with its start and end; ``problem`` or ``id``; perhaps ``source``; perhaps
            ``token_starts`` (first character of each token), ``entropies`` and ``logprobs`` of the
            policy.
        annotator: whose ``annotations`` to read; None = ``boundaries``.

    Raises:
        StudyError: a sentence that names the line and what is wrong with it.
    """
    documents = list(_documents(path, annotator))
    if not any(len(boundaries) for _, boundaries, *_ in documents):
        raise errors.StudyError(
            f"{path} has {len(documents)} documents and not one boundary to learn from. Expected"
            " 'boundaries' with the character offsets where segments 2 to n begin."
        )
    texts, boundaries, problems, sources, signals = zip(*documents, strict=True)
    given = [signal for signal in signals if signal is not None]
    if given and len(given) < len(documents):
        raise errors.StudyError(
            f"{path} has the policy's signals ({', '.join(_SIGNALS)}) for {len(given)} of"
            f" {len(documents)} documents; expected them for all or for none."
        )
    return Corpus(texts, boundaries, problems, sources, tuple(given) if given else None)


def _documents(
    path: Path, annotator: str | None
) -> Iterator[tuple[str, Ints, str, str, TokenSignals | None]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.StudyError(f"{path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _Record(_parse(line, f"{path}, line {number}"), f"{path}, line {number}")
            text = record.text()
            yield (
                text,
                _visible(text, record.starts(text, annotator)),
                record.problem(),
                str(record.fields.get("source", "")),
                record.signals(text),
            )


def _parse(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except errors.UNREADABLE as error:
        raise errors.StudyError(f"{where} is not JSON: {errors.parser_words(error)}.") from error
    if not isinstance(record, dict):
        raise errors.StudyError(f"{where} is no JSON object; expected one with the key 'text'.")
    return cast(Mapping[str, Any], record)


def _visible(text: str, starts: Sequence[int]) -> Ints:
    """Moves offsets to the next visible character, if there is one; 0 has no boundary."""
    first = len(text) - len(text.lstrip())
    moved = {start + len(text[start:]) - len(text[start:].lstrip()) for start in starts}
    kept = sorted(place for place in moved if first < place < len(text))
    return np.asarray(kept, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Record:
    """One line, read key by key."""

    fields: Mapping[str, Any]
    where: str

    def text(self) -> str:
        text = self.fields.get("text")
        if not isinstance(text, str):
            raise self._refuse("text", "a string")
        return text

    def problem(self) -> str:
        for key in ("problem", "id"):
            if key in self.fields:
                return str(self.fields[key])
        raise self._refuse(
            "problem", "a name shared by the documents of one problem ('id' will do)"
        )

    def starts(self, text: str, annotator: str | None) -> list[int]:
        """Returns the offsets given, in any order."""
        name = "boundaries" if annotator is None else "annotations"
        starts = self._integers(name, self._given(annotator))
        outside = [start for start in starts if not 0 <= start < len(text)]
        if outside:
            raise errors.StudyError(
                f"{self.where}: {name} has the offset {outside[0]} for a text of {len(text)}"
                " characters; expected offsets from 0 to below that. Count characters, not bytes."
            )
        return starts

    def _given(self, annotator: str | None) -> Any:
        if annotator is None:
            return self.fields.get("boundaries")
        known = self.fields.get("annotations")
        names: list[str] = []
        if isinstance(known, list):
            for item in cast(list[Any], known):
                if isinstance(item, dict):
                    one = cast(dict[str, Any], item)
                    if str(one.get("annotator")) == annotator:
                        spans = cast(list[Any], one.get("spans") or [])
                        return [span[0] for span in spans]
                    names.append(str(one.get("annotator")))
        raise errors.StudyError(
            f"{self.where} has no annotation by {annotator!r}; it has those of"
            f" {', '.join(names) or 'nobody'}. Name one with --annotator."
        )

    def signals(self, text: str) -> TokenSignals | None:
        if not any(name in self.fields for name in _SIGNALS):
            return None
        starts = self._integers(_SIGNALS[0], self.fields.get(_SIGNALS[0]))
        entropies, logprobs = (self._numbers(name) for name in _SIGNALS[1:])
        if not len(starts) == len(entropies) == len(logprobs) or starts != sorted(starts):
            raise errors.StudyError(
                f"{self.where}: token_starts, entropies and logprobs have {len(starts)},"
                f" {len(entropies)} and {len(logprobs)} entries; expected one each a token, the"
                " starts ascending."
            )
        return TokenSignals(
            np.asarray(starts, np.int64),
            np.asarray(entropies, np.float64),
            np.asarray(logprobs, np.float64),
        )

    def _integers(self, name: str, value: Any) -> list[int]:
        items = cast(list[Any], value) if isinstance(value, list) else None
        if items is None or any(type(item) is not int for item in items):
            raise self._refuse(name, "a list of whole numbers, such as [41, 103]", value)
        return items

    def _numbers(self, name: str) -> list[float]:
        value = self.fields.get(name)
        items = cast(list[Any], value) if isinstance(value, list) else None
        if items is None or any(type(item) not in (int, float) for item in items):
            raise self._refuse(name, "a list of numbers, one a token", value)
        return items

    def _refuse(self, name: str, expected: str, value: Any = None) -> errors.StudyError:
        value = self.fields.get(name) if value is None else value
        found = f"no {name!r}" if value is None else f"{str(value)[:40]!r} as {name!r}"
        return errors.StudyError(f"{self.where} has {found}; expected {expected}.")
