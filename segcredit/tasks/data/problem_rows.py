"""From rows to problems: which columns are read, and what becomes of a row that lacks something."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from segcredit.errors import TaskError
from segcredit.protocols import Prompt
from segcredit.tasks.data.prompt_templates import (
    Layout,
    Shot,
    columns_of,
    filled,
    messages_of,
    spelt,
)
from segcredit.tasks.data.rows import Numbered, Row
from segcredit.tasks.verifiers.verifier import pattern_match

_SHOWN = 3
"""Rows that a message about skipped ones tells of."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that can be used."""

    number: int
    key: str
    question: str


class _Malformed(Exception):
    """A row that cannot be used; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes problems of a data set's rows; the fields are options of the task ``dataset``.

    Raises:
        TaskError: a template is none, or the pattern.
    """

    prompt: str
    solution: str
    answer: str
    answer_pattern: str
    key: str
    images: str
    skip: bool
    """True to leave out rows that cannot be used."""
    fault: Callable[[Any], str]
    """Tells what the verifier finds wrong with a true answer; '' for nothing."""
    seconds: float
    """Seconds that the answer's pattern may take for a row."""

    def __post_init__(self) -> None:
        columns_of("prompt", self.prompt)
        columns_of("solution", self.solution)
        try:
            re.compile(self.answer_pattern)
        except re.error as error:
            raise TaskError(
                f"task.answer_pattern is {self.answer_pattern!r}, which is no regular expression"
                f" ({error}); expected one such as '####\\\\s*(.+)'."
            ) from error

    @property
    def columns(self) -> list[str]:
        """The columns that every row must have; images may be missing."""
        named = filter(None, [self.answer, self.key])
        return list(dict.fromkeys([*columns_of("prompt", self.prompt), *named]))

    def problems(self, source: str, rows: Iterable[Numbered]) -> list[Problem]:
        """Returns the problems of the rows that can be used; warns of the others.

        Raises:
            TaskError: a row cannot be used and none is to be skipped, or no row can.
        """
        found: dict[str, Problem] = {}
        bad: list[str] = []
        for one in rows:
            try:
                problem = self._problem(one)
                _require_new(problem, found)
                found[problem.key] = problem
            except _Malformed as error:
                bad.append(f"{one.place} of {source!r} {error}")
                if not self.skip:
                    raise TaskError(f"{bad[0]} {_ADVICE}") from error
        if bad and not found:
            raise TaskError(f"no row can be used: {bad[0]} {_ADVICE}")
        if bad:
            warnings.warn(
                _skipped(source, bad, len(bad) + len(found)), RuntimeWarning, stacklevel=2
            )
        return list(found.values())

    def shot(self, place: str, row: Row) -> Shot:
        """Returns a row as a worked example.

        Raises:
            TaskError: the row lacks a column of the solution.
        """
        try:
            return filled(self.prompt, row), filled(self.solution, row)
        except _UNFILLED as error:
            raise TaskError(
                f"{place} cannot be a worked example: task.solution is {self.solution!r}, and"
                f" {error} is not among {_listed(row)}. Name columns that the row has, or write the"
                " examples into task.shots."
            ) from error

    def made(self, layout: Layout, source: str, problem: Problem, row: Row) -> Prompt:
        """Returns a problem as a prompt."""
        images = self._images(source, problem.key, row) if self.images else ()
        *before, asked = messages_of(self.prompt, row) or [("user", problem.question)]
        if not layout.chat:
            before, asked = [], ("user", problem.question)
        return layout.prompt(problem.key, asked[1], self._answer(row), images, before)

    def _problem(self, one: Numbered) -> Problem:
        if one.fault:
            raise _Malformed(f"{one.fault}.")
        missing = [name for name in self.columns if part_of(one.row, name) is None]
        if missing:
            raise _Malformed(f"has no {missing[0]!r}; it has {_listed(one.row)}.")
        self._require_answer(one.row)
        try:
            question = filled(self.prompt, one.row)
        except _UNFILLED as error:
            raise _Malformed(f"does not fill the template {self.prompt!r} ({error!r}).") from error
        chat = messages_of(self.prompt, one.row)
        if chat and chat[-1][0] != "user":
            raise _Malformed(
                f"has a chat whose last message is the {chat[-1][0]}'s, not the user's."
            )
        key = str(part_of(one.row, self.key)) if self.key else str(one.number)
        return Problem(one.number, key, question)

    def _require_answer(self, row: Row) -> None:
        if not self.answer:
            return
        written = _written(part_of(row, self.answer))
        if not written or not all(written):
            raise _Malformed(
                f"has nothing in {self.answer!r}: an answer is empty, blank or no number, and no"
                " completion could be right."
            )
        found = self._answer(row)
        several = cast("tuple[Any, ...]", found if isinstance(found, tuple) else (found,))
        if None in several:
            raise _Malformed(
                f"has an answer in which {self.answer_pattern!r} finds nothing: it ends"
                f" {written[several.index(None)][-40:]!r}."
            )
        if fault := next((fault for one in several if (fault := self.fault(one))), ""):
            raise _Malformed(fault)

    def _answer(self, row: Row) -> Any:
        """Returns the answer to compare with, several where any is right; None for no match."""
        if not self.answer:
            return {name: value for name, value in row.items() if name != self.images}
        found = tuple(map(self._matched, _written(part_of(row, self.answer))))
        return found[0] if len(found) == 1 else found

    def _matched(self, text: str) -> str | None:
        if not self.answer_pattern:
            return text
        found = pattern_match(self.answer_pattern, text, self.seconds)
        return (found or "").strip() or None

    def _images(self, source: str, key: str, row: Row) -> tuple[bytes, ...]:
        found = row.get(self.images)
        several = cast("list[Any]", found if isinstance(found, list) else [found])
        return tuple(_content(source, key, one) for one in several if one is not None)


_UNFILLED = (KeyError, IndexError, AttributeError, TypeError, ValueError)
"""Errors that a template raises for a row that does not fit it."""
_ADVICE = (
    "Usually a column has another name: set task.prompt, task.answer or task.key; or the file was"
    " cut: task.malformed = 'skip' leaves such rows out."
)


def part_of(row: Row, name: str) -> Any:
    """Returns a column, or with dots in the name a part of one; None where there is none."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        found = cast("Row", found).get(part) if isinstance(found, Mapping) else None
    return found


def _written(answer: Any) -> list[str]:
    """Spells the answers of a row: one, or each of a list; '' for one that is none."""
    several = cast("list[Any]", answer if isinstance(answer, (list, tuple)) else [answer])
    empty = (one is None or (isinstance(one, float) and math.isnan(one)) for one in several)
    return ["" if none else spelt(one).strip() for one, none in zip(several, empty, strict=True)]


def _require_new(problem: Problem, found: Mapping[str, Problem]) -> None:
    if problem.key in found:
        raise _Malformed(f"has the key {problem.key!r} of row {found[problem.key].number}.")


def _skipped(source: str, bad: list[str], total: int) -> str:
    more = f" And {len(bad) - _SHOWN} more." if len(bad) > _SHOWN else ""
    shown = " ".join(bad[:_SHOWN])
    return f"{len(bad)} of {total} rows of {source!r} cannot be used and are skipped: {shown}{more}"


def _listed(row: Row) -> str:
    return ", ".join(sorted(row)) or "no columns"


def _content(source: str, key: str, image: Any) -> bytes:
    """Returns the content of an image file: as the data set holds it, or by its path."""
    if isinstance(image, Mapping):
        held = cast("Mapping[str, Any]", image)
        if held.get("bytes"):
            return held["bytes"]
        image = held.get("path")
    file = Path(source).parent / str(image)
    try:
        return file.read_bytes()
    except OSError as error:
        raise TaskError(
            f"the image {str(file)!r} of problem {key!r} in {source!r} cannot be read"
            f" ({error.strerror}); expected a file. Paths count from the folder of the data set's"
            " file: put the images there."
        ) from error
