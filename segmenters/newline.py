"""Lines of the text as segments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from segcredit import TextSegmenter

_NEWLINE = re.compile("\n")


@dataclass(frozen=True, slots=True)
class Newline(TextSegmenter):
    """Every newline closes its segment.

    A token that holds a newline and more after it belongs to the line of its first character.
    Blank lines are segments of their own: to join them, the rule would have to look at the next
    token, and would no longer be causal.

    Assumption: steps are lines. Degenerate case: text without newlines is one segment.

    Source:
        The newline baseline of SAPO, arXiv 2605.01327, table 3.
    """

    @property
    def causal(self) -> bool:
        """The boundary comes after a token that is there already."""
        return True

    def split(self, text: str) -> Sequence[int]:
        """Returns the offset after each newline."""
        return [match.end() for match in _NEWLINE.finditer(text)]
