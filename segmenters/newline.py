"""Lines of the text as segments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segcredit import TextSegmenter
from segcredit.errors import require_one_of
from segcredit.formulas import formulas, outside

_ENDS = {
    "before": re.compile(r"\n(?:[^\S\n]*\n)*+(?:[^\S\n]*\Z)?"),
    # With the end of the text, lest each character of a last line be tried as a beginning.
    "after": re.compile(r"\S[^\n]*+(?:\n|\Z())"),
    "own": re.compile(r"\n"),
}


@dataclass(frozen=True, slots=True)
class Newline(TextSegmenter):
    """Every newline closes its segment; blank lines and the lines of formulas have none of theirs.

    Display formulas, environments and blocks of code are whole. A token that holds a newline and
    more after it belongs to the line of its first character.

    Causal, but with ``blank_lines="before"``: whether a boundary comes after a newline then
    depends on whether the next line is blank. In vocabularies whose tokens hold several newlines
    the three differ little.

    Assumption: steps are lines. Degenerate case: text without newlines is one segment.

    Args:
        blank_lines: blank lines join the segment ``before`` them or the one ``after`` them, or are
            segments of their ``own``.
        whole: False = lines of formulas and code are segments too.

    Raises:
        ValueError: another word for blank_lines.

    Source:
        The newline baseline of SAPO, arXiv 2605.01327, table 3; with ``own`` and ``whole=False``
        to the letter.
    """

    blank_lines: Literal["before", "after", "own"] = "before"
    whole: bool = True

    def __post_init__(self) -> None:
        require_one_of("blank_lines", self.blank_lines, tuple(_ENDS))

    @property
    def causal(self) -> bool:
        """The boundary comes after a token that is there already, unless blank lines may follow."""
        return self.blank_lines != "before"

    def split(self, text: str) -> Sequence[int]:
        """Returns the offset after each newline, or after the blank lines that follow it."""
        found = _ENDS[self.blank_lines].finditer(text)
        ends = [match.end() for match in found if not match.lastindex]
        if self.whole:
            ends = outside(ends, list(formulas(text, inline=False)))
        blank = 0 if self.blank_lines == "own" else len(text) - len(text.lstrip())
        return [end for end in ends if end > blank]
