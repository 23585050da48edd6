"""Formulas and code in a text, which segmenters of text leave whole."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

Formula = tuple[int, int]
"""First character of a formula or piece of code, and the one after its last."""

_PROSE = (
    "itemize|enumerate|description|document|proof|theorem|lemma|corollary|proposition|definition"
    "|remark|claim|example|exercise|problem|solution|answer|step|quote|quotation|center|abstract"
)
"""Environments in which there are sentences and steps."""
_DISPLAY = (
    r"\\[\\$]|\\[][()]|^[^\S\n]*+\$\$|\$\$|`{3,}|^[^\S\n]*+~{3,}|\[/?asy\]"
    rf"|\\(?:begin|end)\{{(?!(?:{_PROSE})\*?\}})[A-Za-z]+\*?\}}|\n[^\S\n]*+\n|</?(?:think|answer)>"
)
_WORD = r"(?:[^$\\\n]|\\[^()\[\]\n]|\n(?![^\S\n]*+\n))"
_INLINE = (
    r"\$(?=\d)(?:[^$\\\n]|\\[^()\[\]\n])*+(?<!\s)\$(?!\d)"
    rf"|\$(?![\s$\d]){_WORD}*+(?<!\s)\$(?!\d)"
    rf"|\$[^\S\n](?=[^$\n]*[\\^_={{<>]){_WORD}*+(?<=\s)\$(?!\s?\d)"
    rf"|\$(?=\\[A-Za-z]|[A-Za-z]\s?[=_^+*/<>(-]){_WORD}*+\Z"
    r"|`[^`\n]++`"
)
"""Formulas of a line. The first dollar has something right behind it, the second right before
it and no digit behind it: amounts of money are none. Blanks on both sides go with signs
that only formulas have. A formula that the text's end cuts off is one, where it begins like one.
"""
_EDGES = {
    False: re.compile(_DISPLAY, re.MULTILINE),
    True: re.compile(f"{_DISPLAY}|{_INLINE}", re.MULTILINE),
}
"""Marks that may begin or end a formula or code, or all of it, and blank lines."""
_LINE_END = re.compile(r"[^\S\n]*+\n")
_CLOSING = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "[asy]": "[/asy]"}
_OPENING = {
    False: (*_CLOSING, "\\begin{", "```", "~~~"),
    True: ("$", "`", *_CLOSING, "\\begin{", "~~~"),
}
"""Marks one of which every formula or piece of code begins with."""
_AGAIN = {"\\]": ("\\[",), "\\)": ("\\(", "\\[", "$$")}
"""Marks that begin a new formula although the one before has no end yet."""


def formulas(text: str, *, inline: bool = True) -> Iterator[Formula]:
    r"""Yields the outermost formulas and pieces of code, in order.

    These are \[ \], \( \), $$ $$, environments but those of prose, [asy] drawings, and blocks of
    code between ``` or ~~~. One that is never closed goes on to the end of the text, or of what a
    tag says is thought or answer; but \( and dollars within a line to the next blank line alone.

    Args:
        text: is searched once, in a time linear in its length.
        inline: also $ $ and ` `. Which dollars are no prices depends on what comes after them:
            without, whether a place is inside does not depend on the text behind it.
    """
    if not any(mark in text for mark in _OPENING[inline]):  # several times as fast as a search
        return
    start, closing, depth, in_line = 0, "", 0, False
    for match in _EDGES[inline].finditer(text):
        edge = match[0].lstrip()
        if not edge or edge[0] == "<":
            if closing and (edge or in_line):
                yield start, match.start()
                closing = ""
        elif not closing:
            start, closing, depth = match.end() - len(edge), _closing(edge), 1
            in_line = closing == "\\)" or (closing == "$$" and not _displayed(match))
            if edge[0] in "$`" and not closing:
                yield start, match.end()
        elif _same(edge, closing):
            depth -= 1
            if not depth:
                yield start, match.end()
                closing = ""
        elif edge in _AGAIN.get(closing, ()):
            if not inline:
                yield start, match.start()
            start, closing = match.end() - len(edge), _closing(edge)
        elif closing[:4] == "\\end" and _same(_closing(edge), closing):
            depth += 1
    if closing:
        yield start, len(text)


def outside(starts: Iterable[int], spans: Sequence[Formula]) -> list[int]:
    """Returns the offsets that are not inside a span; its first character is not."""
    first = [start for start, _ in spans]
    places = ((start, bisect_left(first, start) - 1) for start in starts)
    return [start for start, place in places if place < 0 or start >= spans[place][1]]


def _displayed(dollars: re.Match[str]) -> bool:
    """Tells whether two dollars begin or end their line."""
    text, start = dollars.string, dollars.start()
    return text[start - 1 : start] in ("", "\n") or bool(_LINE_END.match(text, dollars.end()))


def _closing(edge: str) -> str:
    """Returns the mark that ends what begins like this; empty where nothing begins."""
    if edge.startswith("\\begin"):
        return edge.replace("begin", "end", 1)
    return edge if edge[:3] in ("```", "~~~") else _CLOSING.get(edge, "")


def _same(edge: str, closing: str) -> bool:
    """Tells whether a mark is the closing one: a fence may be longer, a star may lack."""
    if closing[0] in "`~":
        return edge.startswith(closing) and edge[0] * len(edge) == edge
    return edge.replace("*", "") == closing.replace("*", "")
