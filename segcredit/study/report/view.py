"""Parts of a report, as data: sections of notes, tables, figures, failures and code.

The template only lays them out. Whatever is text here is escaped there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

MISSING = "–"
"""Stands where nothing was measured."""


@dataclass(frozen=True, slots=True)
class DrawnInterval:
    """A mean with its ends, in percent of the width that a column's intervals share."""

    low: float
    middle: float
    high: float
    zero: float | None
    """Place of 0, if it is to be marked."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a table.

    Args:
        text: what is shown.
        order: the number to sort by; None for text.
        interval: drawn instead of the text; the same in numbers stands in another cell.
    """

    text: str
    order: float | None = None
    interval: DrawnInterval | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence, or several."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Sentences one below the other; those after the first ``open`` are folded away."""

    kind: ClassVar[str] = "listing"
    sentences: Sequence[str]
    open: int = 12


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns; columns whose cells have an ``order`` are set as numbers.

    Args:
        caption: what the rows are, and the unit of every interval.
        columns: the headings.
        rows: a cell a column.
        notes: what must be known of some rows, in sentences below them.
        folded: the words on which to click before the table shows; "" = shown at once.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    folded: str = ""

    def numeric(self, column: int) -> bool:
        """Tells whether a column holds numbers."""
        return any(row[column].order is not None for row in self.rows)


@dataclass(frozen=True, slots=True)
class Image:
    """One drawing of a figure.

    Args:
        svg: markup of ours.
        width: as drawn, in CSS pixels.
        kind: "wide" or "narrow", for the screens to show it on; "" for all.
    """

    svg: Markup
    width: float
    kind: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure in one or two widths, with a caption."""

    kind: ClassVar[str] = "drawing"
    images: Sequence[Image]
    caption: str


@dataclass(frozen=True, slots=True)
class Completions:
    """Completions to look at, one after the other."""

    kind: ClassVar[str] = "completions"
    markup: Markup
    """Markup of ours, with their texts escaped."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Runs that stopped with one sentence."""

    kind: ClassVar[str] = "failure"
    sentence: str
    runs: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Code:
    """Python to copy."""

    kind: ClassVar[str] = "code"
    text: str


Block = Note | Listing | Table | Drawing | Completions | Failure | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it."""

    name: str
    title: str
    blocks: Sequence[Block]


def text(value: object) -> Cell:
    """Returns a cell of text."""
    return Cell(str(value))


def numbers(values: Iterable[float], decimals: int | None = None) -> list[Cell]:
    """Writes cells of one quantity, all with the decimals that three digits of the largest need."""
    values = [float(value) for value in values]
    places = decimals_for(values) if decimals is None else decimals
    return [Cell(number(value, places), value) for value in values]


def probabilities(values: Iterable[float]) -> list[Cell]:
    """Writes p-values with two digits however small: none is 0."""
    return [Cell(MISSING if math.isnan(p) else f"{p:.2g}", float(p)) for p in values]


def number(value: float, decimals: int) -> str:
    """Returns a number with its thousands apart; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = round(value, decimals) + 0.0  # no negative zero
    return f"{rounded:,.{decimals}f}".replace("-", "−")


def decimals_for(values: Iterable[float]) -> int:
    """Counts the decimals that show three digits of the largest value."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    return min(max(2 - math.floor(math.log10(largest)), 0), 8) if largest > 0 else 0


def ends(low: Sequence[float], high: Sequence[float], decimals: int) -> list[Cell]:
    """Writes intervals in numbers; a dash where there is none."""
    return [
        Cell(MISSING if math.isnan(a + b) else f"[{number(a, decimals)}, {number(b, decimals)}]")
        for a, b in zip(low, high, strict=True)
    ]


def intervals(
    low: Sequence[float], middle: Sequence[float], high: Sequence[float], *, zero: bool = False
) -> list[Cell]:
    """Makes cells that draw ``low`` to ``high`` with a dot at ``middle``, all on one scale.

    A row without an interval has its dot alone; without a value, a dash.

    Args:
        low: lower ends, NaN where there is no interval.
        middle: what the intervals are of.
        high: upper ends.
        zero: whether 0 is on the scale, and marked.
    """
    known = [value for value in (*low, *middle, *high) if math.isfinite(value)]
    known += [0.0] if zero else []
    bottom, top = min(known, default=0.0), max(known, default=0.0)

    def place(value: float) -> float:
        return 3 + 94 * (value - bottom) / (top - bottom) if top > bottom else 50.0

    mark = place(0.0) if zero else None
    cells: list[Cell] = []
    for start, centre, end in zip(low, middle, high, strict=True):
        if math.isnan(centre):
            cells.append(Cell(MISSING))
            continue
        left, right = (centre, centre) if math.isnan(start + end) else (start, end)
        cells.append(Cell("", None, DrawnInterval(place(left), place(centre), place(right), mark)))
    return cells


def counted(count: int, thing: str, things: str | None = None) -> str:
    """Writes a count with its noun: '1 run', '1,204 runs'."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Lists names in a sentence: 'a, b and 3 more'."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
