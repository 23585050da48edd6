"""Paragraphs of the text as segments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from segcredit import TextSegmenter
from segcredit.formulas import formulas, outside

_BLANK_LINE = re.compile(r"\n[^\S\n]*(\n)\s*")
"""A blank line, and whatever blank characters and lines come after it."""
_ANNOUNCED = re.compile(r"[:：][\"'”’)\]*_]{0,4}[^\S\n]*\Z")
_REACH = 16
"""Characters in which a colon is looked for."""


@dataclass(frozen=True, slots=True)
class Paragraph(TextSegmenter):
    """A blank line closes its paragraph, unless a colon announces what follows.

    Formulas and blocks of code are whole, with the blank lines in them; one that is never closed
    goes on to the end of the text.

    The boundary comes right after the newline that makes a line blank: the second of two, or of
    several with nothing but blank characters between them (Windows' carriage returns are such).
    Blank lines beyond the first open the next paragraph, and blank lines at the very beginning
    belong to the first, so that every paragraph but a last one has something in it, and no
    boundary depends on a token behind it. A token that holds the blank line and more after it
    belongs to the paragraph of its first character.

    Assumption: steps are paragraphs. Degenerate case: text without blank lines is one segment.
    Cost: one pass of a regular expression over each text.

    Source:
        Ours; a causal counterpart to the delimiter ``paragraph`` of ``latex_steps``, where the
        blank line opens the step after it.
    """

    @property
    def causal(self) -> bool:
        """The boundary comes after a newline that is there already."""
        return True

    def split(self, text: str) -> Sequence[int]:
        """Returns the offset after each first blank line."""
        blank = len(text) - len(text.lstrip())
        ends = [
            match.end(1)
            for match in _BLANK_LINE.finditer(text)
            if match.end(1) > blank
            and not _ANNOUNCED.search(text[max(0, match.start() - _REACH) : match.start()])
        ]
        return outside(ends, list(formulas(text, inline=False)))
