"""The parts of the exactness tables: segmenters, claims about figures, Markdown.

A figure carries a claim made beforehand: that it is 0, or the reasons why it is not. Tests hold
the figures to their claims.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from exact import Deviation
from segcredit import AdvantageScheme, Segmenter, TextSegmenter, ValueEstimator, registry

EXACT = 1e-10
"""A relative error below this is rounding."""

REASONS = {
    "t": "the boundary before a token depends on which token it is",
    "a": "the boundary before a token depends on what comes after it, too",
    "l": "the value before a segment's last token is charged to the tokens before that one",
    "v": "λ < 1 puts values in the place of rewards, and these values are wrong",
    "f": "which states are continued, or what the others are worth, depends on what comes later",
    "o": "the baseline holds the completion's own return",
    "s": "the mean or spread that advantages are scaled by holds the completion's own return",
    "c": "one ratio for several segments gives each token the mean of their advantages",
    "d": "discounting the future is another objective",
    "k": "tokens are left out of the loss: another objective",
    "b": "whether a token counts depends on the token, so that no baseline cancels",
    "p": "the best of several completions is another objective",
    "u": "a token that n rows share counts 1/n, so that early tokens count less than late ones",
}


@dataclass(frozen=True, slots=True)
class MarkerStarts(TextSegmenter):
    """A loose plug-in: every newline opens its segment, as "Wait" or "Step 3:" would."""

    @property
    def causal(self) -> bool:
        """The marker itself decides whether a boundary stands before it."""
        return False

    def split(self, text: str) -> Sequence[int]:
        return [place for place, symbol in enumerate(text) if symbol == "\n"]


@dataclass(frozen=True, eq=False)
class Cut:
    """A segmenter with its options, and the reasons for which it should bias the gradient."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    @functools.cached_property
    def plugin(self) -> Segmenter:
        if self.name == "marker_starts":
            return MarkerStarts()
        return registry.segmenters.build(self.name, **self.options)

    @property
    def causal(self) -> str:
        return "yes" if self.plugin.causal else "no"

    def __str__(self) -> str:
        return labelled(self.name, self.options)


OWN = {"blank_lines": "own"}
"""Each newline closes its segment: causal."""
LINES = {"name": "newline", **OWN}
WHOLE, PER_TOKEN, NEWLINE = Cut("whole"), Cut("per_token"), Cut("newline", OWN)
FIXED, RUNNING = Cut("fixed_length", {"tokens": 2}), Cut("entropy_running")
TOP, TOP_STARTS = Cut("entropy", why="a"), Cut("entropy", {"fork": "starts"}, "a")
RANDOM, MARKER = Cut("random", why="a"), Cut("marker_starts", why="t")
CUTS = [
    WHOLE,
    PER_TOKEN,
    NEWLINE,
    FIXED,
    RUNNING,
    Cut("entropy_running", {"fork": "starts"}),
    Cut("entropy_running", {"threshold": 0.8}),
    Cut("entropy_running", {"threshold": 0.8, "fork": "starts"}),
    Cut("cutpoint", {"below": 0.3, "every": 2, "fork": "ends"}),
    Cut("paragraph"),
    Cut("entropy", {"rule": "threshold", "threshold": 0.8, "fork": "isolate"}),
    Cut("min_length", {"inner": LINES, "tokens": 2}),
    Cut("union", {"first": LINES, "second": "entropy_running"}),
    Cut("intersection", {"first": LINES, "second": "entropy_running"}),
    TOP,
    TOP_STARTS,
    RANDOM,
    Cut("cutpoint", {"below": 0.3, "every": 2}, "t"),
    Cut("cutpoint", {"below": 0.3, "every": 2, "first": "join"}, "t"),
    MARKER,
    Cut("probability", why="a"),
    Cut("max_segments", {"inner": LINES, "segments": 2}, "a"),
    Cut("shuffled", {"inner": LINES}, "a"),
    Cut("snap_to", {"inner": "entropy", "to": LINES}, "a"),
    Cut("latex_steps", {"delimiter": "newline", "reference": True}, "ta"),
    Cut("latex_steps", {"delimiter": "paragraph", "reference": True}, "ta"),
]


@dataclass(frozen=True)
class Figure:
    """A measured relative error, and what was claimed of it: no reason means that it is 0."""

    value: float
    why: str = ""

    def __str__(self) -> str:
        if not self.why:
            return "exact" if self.value < EXACT else f"{shown(self.value)} (unexpected)"
        return f"{shown(self.value)} ({', '.join(self.why)})"


Row = list[str | Figure]


@dataclass(frozen=True)
class Table:
    """A table with the paragraphs around it."""

    title: str
    before: str
    header: list[str]
    rows: list[Row]
    after: str = ""

    @property
    def figures(self) -> list[tuple[str, Figure]]:
        """Every figure with the place at which it stands."""
        return [
            (f"{self.title}: {row[0]}, {row[1]}, {self.header[place]}", cell)
            for row in self.rows
            for place, cell in enumerate(row)
            if isinstance(cell, Figure)
        ]

    def value(self, row_name: object, column: str) -> float:
        """A figure by the names of its row and column."""
        row = next(row for row in self.rows if row[0] == str(row_name))
        cell = row[self.header.index(column)]
        assert isinstance(cell, Figure)
        return cell.value

    def __str__(self) -> str:
        lines = [_line(self.header), "|" + "---|" * len(self.header), *map(_line, self.rows)]
        used = {letter for _, figure in self.figures for letter in figure.why}
        legend = "; ".join(f"{letter}: {REASONS[letter]}" for letter in REASONS if letter in used)
        parts = [f"## {self.title}", wrapped(self.before), "\n".join(lines)]
        parts += [wrapped(text) for text in (legend and f"{legend}.", self.after) if text]
        return "\n\n".join(parts)


def _line(cells: Sequence[str | Figure]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def wrapped(text: str) -> str:
    """Paragraphs in lines of at most 100 characters."""
    whole = {"width": 100, "break_long_words": False, "break_on_hyphens": False}
    return "\n\n".join(textwrap.fill(part, **whole) for part in text.split("\n\n"))


def shown(x: float) -> str:
    """Two digits, which no rounding of float64 can change."""
    return f"{x:.2g}"


def labelled(name: str, options: dict[str, Any]) -> str:
    """A plug-in as it is written in tables."""
    shown = {
        key: registry.plugin_label(registry.segmenters, value) if value is LINES else value
        for key, value in options.items()
    }
    return " ".join([f"`{name}`", *(f"{key}={value}" for key, value in shown.items())])


def estimator(name: str, **options: Any) -> ValueEstimator:
    return registry.estimators.build(name, **options)


def scheme(name: str, **options: Any) -> AdvantageScheme:
    return registry.advantages.build(name, **options)


def two_figures(found: Deviation, why: str, *, bent: bool) -> Row:
    """Error and direction; not ``bent``: the gradient is too long or too short, and no more."""
    return [Figure(found.error, why), Figure(found.direction, why if bent else "")]
