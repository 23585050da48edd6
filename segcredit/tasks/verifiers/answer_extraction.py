"""Extraction of the final answer from a completion."""

from __future__ import annotations

import re
from dataclasses import dataclass

from segcredit.errors import TaskError, did_you_mean

_PLACES = {
    "whole": r"(?s)\A(.*)\Z",
    "first_line": r"\A\s*([^\n]*)",
    "last_line": r"(?:\A|\n)([^\n]*)\Z",
    "answer_line": r"(?im)\banswer(?:\s+is\b)?[\s:*]*(\S.*?)[.*]*[ \t]*$",
    "answer_tag": r"(?s)<answer>(.*?)</answer>",
}
"""Names of places, as regular expressions whose group is the answer."""
_NAME = re.compile(r"[a-z_]+")


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The part of a completion that is judged.

    Raises:
        TaskError: ``place`` is neither a name nor a regular expression.
    """

    until: str = ""
    """The text ends before this, white space at its beginning left out; '' for its own end. A
    completion that says it is complete, even where it was then cut off."""
    place: str = "whole"
    """``whole``; ``first_line``, ``last_line``; ``answer_line``, what follows "answer:" or "answer
    is" on its line; ``answer_tag``, between <answer> and </answer>; or a regular expression, whose
    first group counts where it has one. Of several places the last."""

    def __post_init__(self) -> None:
        if self.place not in _PLACES and _NAME.fullmatch(self.place):
            raise TaskError(
                f"task.final is {self.place!r}{did_you_mean(self.place, _PLACES)} Places of an"
                f" answer are {', '.join(_PLACES)}, or a regular expression such as"
                " '####\\s*(.+)'."
            )
        try:
            self._pattern()
        except re.error as error:
            raise TaskError(
                f"task.final is {self.place!r}, which is no regular expression ({error}); expected"
                f" one, or one of {', '.join(_PLACES)}."
            ) from error

    def read(self, text: str, *, truncated: bool) -> str:
        """Returns the text that is judged; '' where there is none or it was cut off."""
        if self.until:
            text, ended, _ = text.lstrip().partition(self.until)
            truncated = truncated and not ended
        found = None if truncated else last_match(self._pattern(), text.strip())
        return (found or "").strip()

    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_PLACES.get(self.place, self.place))


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """Returns a pattern's last match, its first group if it has one; None for no match."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return matches[-1][1 if pattern.groups else 0]
