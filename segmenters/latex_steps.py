"""Reasoning steps of mathematical prose: sentences and lines that leave formulas whole."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from segcredit import TextSegmenter
from segcredit.formulas import Formula, formulas, outside

_DELIMITERS = {"newline": re.compile("\n"), "paragraph": re.compile("\n\n")}
_NEWLINE = _DELIMITERS["newline"]

_SHORT = 20
"""A step of fewer characters joins the next."""
_LONG = 100
"""A step of more characters is broken up."""
_FORMULA_WEIGHT = 60
"""Characters that a formula counts for, whatever its length, where prose is measured."""

_FORMULAS = tuple(
    (re.compile(opening, re.DOTALL), closing)
    for opening, closing in (
        (r"\[asy\]", r"\[/asy\]"),
        (r"\$\\begin\{tabular\}", r"\\end\{tabular\}\$"),
        (r"\\begin\{tabular\}", r"\\end\{tabular\}"),
        (r"\\\(", r"\\\)"),
        (r"\\\[", r"\\\]"),
        (r"\$\$", r"\$\$"),
        (r"(?<!\\)\$.", r"(?<!\\)\$(?!\$)"),
        (r"\\begin\{([^}]*)\}", r"\\end\{%s\}"),
    )
)
"""In the order in which they are looked for: what one has found, the next ones cannot see into."""

_SENTENCE = re.compile(r"(?<=\.)(?<!\b[A-Za-z]\.)(?<!\s[A-Za-z]{2}\.)(?=\s+[A-Z])")
"""After a period and before a capital; not after an initial or a word of two letters (Dr., A.)."""
_FULL_STOPS = (".$", ".\\)", ".\\]", ".$$")
"""Formulas that end like this end a sentence."""
_OPENING = re.compile(r"\$\$?|\\\(|\\\[|\\begin\{[^}]*\}|\[asy\]")
"""Marks that open a formula on a line of its own."""

_STEP = re.compile(
    r"(?=\n)|(?:(?<=\.)(?<!^\d\.)(?<!^\d\d\.)(?<!\b[A-Za-z]\.)(?<!\b(?:Dr|Mr|Ms|St|No|vs|cf|al|Eq)\.)|(?<=[!?]))"
    r"(?=\s+[A-Z~])|[。！？]++[”’」』）]*+",
    re.MULTILINE,
)
"""Text before the start of a step: lines, sentences of English and Chinese; formulas are ~."""
_BREAKS = tuple(map(re.compile, (r"[,，;；](?!\d)", r"(?=\sand\s)", "[:：]", r"(?=\sto\s)")))
"""Text before the place at which a long step is broken, the best first."""

_PAUSES = tuple(re.compile(pause) for pause in ("(,)", r"(\sand)\s", "(:)", r"(\sto)\s"))
_SHORTEST_CLAUSE = 40
_OPERATORS = tuple(
    re.compile(f"({operator})")
    for operator in (r",\$", r",\\\)", r",\\\]", "=", r"\\equiv", r"\+", r"\\cancelto")
)
_SHORTEST_TERM = 20


@dataclass(frozen=True, slots=True)
class LatexSteps(TextSegmenter):
    r"""Steps of a solution: a newline, or the space after a full stop, begins the next one.

    ``sentence`` cuts (1) before newlines, and after sentences of English and Chinese, (2) after
    formulas that end with a full stop; then it joins steps of fewer than 20 characters (a Chinese
    one counts for two, blanks in a row for one) with the next, the last with the one before it;
    and (3) breaks what is longer than 100 after a comma or semicolon, before "and", after a colon
    or before "to", each time at the most central place. ``newline`` and ``paragraph`` cut before
    each newline, or each two; blank steps join the one before them, at the beginning the first.

    No cut is inside $ $, $$ $$, \( \), \[ \], an environment or code: a closing mark belongs to
    its formula, and a formula that is never closed goes on to the end of the text.

    With ``reference`` the cuts are those of the released code, which differs: it also cuts before
    newlines inside formulas (a closing \] is a step), and breaks long steps at operators inside
    them; it knows no Chinese; blank lines are steps; and short steps stay short where they end
    with a full stop, hold a formula, or come to stand beside another cut.

    Not causal: a delimiter belongs to the start of the step after it, so that a boundary depends
    on the token behind it. ``paragraph`` is causal, and ``newline`` with ``blank_lines="after"``.

    Assumption: one sentence or one line is one step. Degenerate case: a text of fewer than 20
    characters, or without delimiters, is one step. Cost: a few passes of regular expressions over
    each text.

    Args:
        delimiter: ``sentence`` (VinePPO's setting for MATH), ``newline`` (for GSM8K) or
            ``paragraph``.
        answer_prefix: what the final answer begins with, such as a newline and "#### "; the answer
            joins the last step that is not blank. Ignored in a text in which it occurs more than
            once. None = the answer is cut like any text.
        reference: True = as VinePPO's released code, to the letter.

    Raises:
        ValueError: another delimiter, or an empty answer_prefix.

    Source:
        VinePPO, Kazemnejad et al. 2024, arXiv 2410.01679, and its released code. Texts on which
        that code fails are cut by the same rule with ``reference``: short ones are one step, a
        formula inside another is part of it, and several answers are none in every setting. An
        answer_prefix with ``sentence`` is ours, as is all that differs without ``reference``.
    """

    delimiter: Literal["sentence", "newline", "paragraph"] = "sentence"
    answer_prefix: str | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        if self.delimiter not in ("sentence", *_DELIMITERS):
            raise ValueError(
                f"delimiter is {self.delimiter!r}; expected 'sentence', 'newline' or 'paragraph'."
            )
        if self.answer_prefix == "":
            raise ValueError(
                "answer_prefix is empty; expected the characters before the answer, such as"
                " '\\n#### ', or None where the answer is not set apart."
            )

    @property
    def causal(self) -> bool:
        """A boundary comes before its delimiter, and may vanish by what comes later."""
        return False

    def split(self, text: str) -> Sequence[int]:
        """Returns the offsets at which steps begin."""
        body = self._without_answer(text)
        rule = _reference_starts if self.reference else _starts
        starts = rule(body, self.delimiter)
        if len(body) == len(text):
            return starts
        return [start for start in starts if start < len(body.rstrip())]

    def _without_answer(self, text: str) -> str:
        if self.answer_prefix is None or text.count(self.answer_prefix) != 1:
            return text
        return text[: text.index(self.answer_prefix)]


def _starts(text: str, delimiter: str) -> list[int]:
    """Returns the starts of steps that leave formulas whole."""
    whole = list(formulas(text))
    if delimiter != "sentence":
        starts = outside(_delimiter_starts(text, _DELIMITERS[delimiter]), whole)
        edges = itertools.pairwise([*starts, len(text)])
        return [start for start, end in edges if not text[start:end].isspace()]
    hidden = _hide(text, whole)
    closed = (end for start, end in whole if text.endswith(_FULL_STOPS, start, end))
    ends = (match.end() for match in _STEP.finditer(hidden))
    sizes = [0, *itertools.accumulate(map(_size, "\n" + text, text))]

    def is_short(start: int, end: int) -> bool:
        return sizes[end] - sizes[start] < _SHORT

    starts = _join_short([*ends, *closed], is_short, length=len(text))
    return _halve_long(hidden, sizes, starts)


def _size(before: str, letter: str) -> int:
    """Returns 2 for a Chinese letter, 0 for a blank behind another, 1 for any other."""
    if letter.isspace():
        return not before.isspace()
    return 1 + ("\u3000" <= letter <= "\uffef")


def _hide(text: str, whole: Iterable[Formula]) -> str:
    """Returns the text with formulas made unreadable."""
    parts: list[str] = []
    done = 0
    for start, end in whole:
        parts += [text[done:start], "~" * (end - start)]
        done = end
    return "".join([*parts, text[done:]])


def _halve_long(hidden: str, sizes: Sequence[int], starts: Sequence[int]) -> list[int]:
    """Adds cuts inside the steps that are too long, until they are not."""
    rules = [[match.end() for match in rule.finditer(hidden)] for rule in _BREAKS]
    waiting = list(itertools.pairwise([0, *starts, len(hidden)]))
    found: list[int] = []
    while waiting:
        start, end = waiting.pop()
        found.append(start)
        if sizes[end] - sizes[start] > _LONG:
            cuts = (_middle(places, sizes, start, end) for places in rules)
            cut = next((cut for cut in cuts if cut), None)
            if cut:
                found.pop()
                waiting += [(start, cut), (cut, end)]
    return sorted(found)[1:]


def _middle(places: Sequence[int], sizes: Sequence[int], start: int, end: int) -> int | None:
    """Returns the place that divides a step best and leaves neither part short."""
    half = (sizes[start] + sizes[end]) / 2
    after = bisect_left(places, half, key=sizes.__getitem__)
    near = [place for place in places[max(after - 1, 0) : after + 1] if start < place < end]
    cut = min(near, key=lambda place: abs(sizes[place] - half), default=start)
    low, high = sizes[cut] - sizes[start], sizes[end] - sizes[cut]
    return cut if min(low, high) >= _SHORT else None


def _delimiter_starts(text: str, delimiter: re.Pattern[str]) -> list[int]:
    """Returns every delimiter that comes after the first character that is not blank."""
    starts = [match.start() for match in delimiter.finditer(text)]
    blank = len(text) - len(text.lstrip())
    return [start for start in starts if start > blank] if blank < len(text) else starts


def _reference_starts(text: str, delimiter: str) -> list[int]:
    if delimiter != "sentence":
        return _delimiter_starts(text, _DELIMITERS[delimiter])
    found, hidden = _find_formulas(text)
    starts = _prose_starts(hidden, found)
    starts = _cut_after_formulas(text, found, starts)
    starts = _cut_inside_formulas(text, found, starts)
    return _break_long(text, starts)


def _find_formulas(text: str) -> tuple[list[Formula], str]:
    """Returns the outermost formulas in order, and the text with formulas made unreadable."""
    found: list[Formula] = []
    for opening, closing in _FORMULAS:
        spans = list(_enclosed(text, opening, closing))
        found += spans
        text = _hide(text, spans)
    outermost: list[Formula] = []
    for start, end in sorted(found):
        if not outermost or start >= outermost[-1][1]:
            outermost.append((start, end))
    return outermost, text


def _enclosed(text: str, opening: re.Pattern[str], closing: str) -> Iterator[Formula]:
    """Yields spans from each opening to its closing, which may name a group of the opening."""
    unclosed: set[str] = set()
    begin = opening.search(text)
    while begin:
        end = None
        # What has no end after one place has none after a later one: no need to search again.
        if begin[0] not in unclosed:
            pattern = re.compile(closing % tuple(map(re.escape, begin.groups())))
            end = pattern.search(text, begin.end())
        if end is None:
            unclosed.add(begin[0])
            begin = opening.search(text, begin.start() + 1)
        else:
            yield begin.start(), end.end()
            begin = opening.search(text, end.end())


def _prose_starts(hidden: str, formulas: Sequence[Formula]) -> list[int]:
    """Returns starts of lines and sentences, formulas whole; a formula is long enough a piece."""
    begins = [start for start, _ in formulas]

    def is_short(start: int, end: int) -> bool:
        unfinished = not hidden.endswith(".", start, end)
        plain = bisect_left(begins, start) == bisect_left(begins, end)
        return unfinished and plain and end - start < _SHORT

    starts = [match.start() for rule in (_NEWLINE, _SENTENCE) for match in rule.finditer(hidden)]
    return _join_short(starts, is_short)


def _cut_after_formulas(text: str, formulas: Sequence[Formula], starts: Sequence[int]) -> list[int]:
    """Returns a further cut after every formula that ends with a period."""

    def is_short(start: int, end: int) -> bool:
        return end - start < _SHORT and not text.endswith(_FULL_STOPS, start, end)

    closed = [end for start, end in formulas if text.endswith(_FULL_STOPS, start, end)]
    return _join_short([*starts, *closed], is_short, length=len(text))


def _cut_inside_formulas(
    text: str, formulas: Sequence[Formula], starts: Sequence[int]
) -> list[int]:
    """Adds a cut before every newline in a formula; of a step's equal formulas, in the first."""

    def is_short(start: int, end: int) -> bool:
        return end - start < 3 or _OPENING.fullmatch(text[start:end].strip()) is not None

    steps = {(bisect_right(starts, s), text[s:e]): (s, e) for s, e in reversed(formulas)}
    lines = [match.start() for s, e in steps.values() for match in _NEWLINE.finditer(text, s, e)]
    return _join_short([*starts, *lines], is_short, length=len(text))


def _join_short(
    starts: Iterable[int], is_short: Callable[[int, int], bool], *, length: int | None = None
) -> list[int]:
    """Returns the starts without those at which a short piece ends.

    The last piece has nothing to join; where the text's ``length`` is given, it joins the one
    before it if it is short.
    """
    kept = [0]
    for start in sorted(starts):
        if not is_short(kept[-1], start):
            kept.append(start)
    if length is not None and len(kept) > 1 and is_short(kept[-1], length):
        kept.pop()
    return kept[1:]


def _break_long(text: str, starts: Sequence[int]) -> list[int]:
    """Returns further cuts inside the steps that are too long."""
    edges = [0, *starts, len(text)]
    broken: list[int] = []
    for start, end in itertools.pairwise(edges):
        broken += [start, *(start + cut for cut in _breaks(text[start:end]))]
    return broken[1:]


def _breaks(step: str) -> list[int]:
    """Cuts of a step, halved for as long as a piece is too long and has a place to cut it.

    Once a formula was cut, pieces that begin in what followed the cut are not searched for
    clauses again. As in the released code the range counts from the piece that was cut, the
    pieces' beginnings from the step.
    """
    edges = [0, len(step)]
    place, low, high = 0, len(step), 0
    while place < len(edges) - 1:
        start, piece = edges[place], step[edges[place] : edges[place + 1]]
        cut = None
        if len(piece) > _LONG and not low <= start < high:
            cut = _clause_end(piece)
        if len(piece) > _LONG and cut is None:
            cut = _term_end(piece)
            if cut is not None:
                low, high = min(low, cut), max(high, len(piece))
        if cut is None:
            place += 1
        else:
            edges.insert(place + 1, start + cut)
    return edges[1:-1]


def _clause_end(piece: str) -> int | None:
    """Returns the pause of prose nearest to the middle, a formula counting for some characters."""
    formulas, hidden = _find_formulas(piece)

    def weight(end: int) -> int:
        return end + sum(_FORMULA_WEIGHT - (e - s) for s, e in formulas if e <= end)

    return _most_central(hidden, _PAUSES, weight, _SHORTEST_CLAUSE)


def _term_end(piece: str) -> int | None:
    """Returns the operator nearest to the middle."""
    return _most_central(piece, _OPERATORS, lambda end: end, _SHORTEST_TERM)


def _most_central(
    piece: str, rules: Iterable[re.Pattern[str]], weight: Callable[[int], int], shortest: int
) -> int | None:
    """Returns the place that halves the weight best, of the first rule that leaves long pieces."""
    whole = weight(len(piece))
    for rule in rules:
        ends = [match.end(1) for match in rule.finditer(piece)]
        best = min(ends, key=lambda end: abs(2 * weight(end) - whole), default=0)
        if shortest <= best <= len(piece) - shortest:
            return best
    return None
