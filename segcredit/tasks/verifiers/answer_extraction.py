r"""Extraction of the final answer from a completion. Every pattern of ours takes linear time.

math-verify 0.9.0 reads what follows the last ``\boxed``, closed or not, and no cue but English
"answer"; a release that skips empty boxes would make ``last_box`` needless.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from segcredit.errors import TaskError, did_you_mean

PLACES = ("whole", "first_line", "last_line", "answer_line", "answer_tag")
"""Names of the places where an answer may stand."""
_NAME = re.compile(r"[a-z_]+")
_CUE = re.compile(
    r"(?im)(?<![a-z])(?:answers?|antwort|réponse|respuesta|ответ)(?![a-z])(?: \([^()\n]{0,40}\))?"
    r"(?: (?:to|of|for|in|as)(?![a-z])[^.!?;:\n]{0,80}?)?[\s*_`]*"
    r"(?:(?:is|are|was(?= *[-$\\\d(])|equals"
    r"|(?:should|would|must|will) be|comes (?:out )?to)(?![a-z])"
    r"|[:\uff1a=]|[-\u2013\u2014](?= ))"
    r"|(?:答案|答)(?:应该|应当|应|就|即|便)?(?:是|为|等于|选|[:\uff1a=])"
    r"|^[^\w\n]*(?:(?:the|my|final|最终) ?)*(?:answer|答案)[^\w\n]*\n"
    r"|^[ \t]*####(?=[^#\n][^\n]*\s*\Z)"
)
"""Words after which an answer stands."""
_FILLING = " \t\n\r*_`:\uff1a\u3000"
_NO_ANSWER = re.compile(r"(?i)not(?![a-z])|unknown|不是|并非|不")
_DISPLAYS = {"$$": "$$", "\\[": "\\]"}


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
    is" (答案是) on its line; ``answer_tag``, between <answer> and </answer>; or a regular
    expression, whose first group counts where it has one. Of several places the last."""

    def __post_init__(self) -> None:
        if self.place not in PLACES and _NAME.fullmatch(self.place):
            raise TaskError(
                f"task.final is {self.place!r}{did_you_mean(self.place, PLACES)} Places of an"
                f" answer are {', '.join(PLACES)}, or a regular expression such as"
                " '####\\s*(.+)'."
            )
        try:
            self._finder()
        except re.error as error:
            raise TaskError(
                f"task.final is {self.place!r}, which is no regular expression ({error}); expected"
                f" one, or one of {', '.join(PLACES)}."
            ) from error

    def read(self, text: str, *, truncated: bool) -> str:
        """Returns the text that is judged; '' where there is none or it was cut off."""
        return self.place_of(self.judged(text, truncated=truncated))

    def judged(self, text: str, *, truncated: bool) -> str:
        """Returns the text in which the answer has its place; '' where it was cut off."""
        if self.until:
            text, ended, _ = text.lstrip().partition(self.until)
            truncated = truncated and not ended
        return "" if truncated else text.strip()

    def place_of(self, text: str) -> str:
        """Returns the answer's place in such a text; '' where there is none."""
        return (self._finder()(text) or "").strip()

    def _finder(self) -> Callable[[str], str | None]:
        named: dict[str, Callable[[str], str | None]] = {
            "whole": str,
            "first_line": lambda text: text.partition("\n")[0],
            "last_line": lambda text: text.rpartition("\n")[2],
            "answer_line": after_cue,
            "answer_tag": _in_tag,
        }
        pattern = re.compile(self.place)
        return named.get(self.place) or (lambda text: last_match(pattern, text))


def placed(place: str, maker: str, options: tuple[Any, ...]) -> Callable[..., dict[str, Any]]:
    """Returns a judge that first finds the answer's place; runs in a ``JudgeProcess``.

    It says ``{"nothing": True}`` where there is no answer.

    Args:
        place: of ``FinalAnswer``.
        maker: ``module:name`` of what makes the judge of the answer.
        options: that it is called with.
    """
    module, _, name = maker.partition(":")
    judge = getattr(import_module(module), name)(*options)
    final = FinalAnswer(place=place)

    def judge_placed(text: str, **request: Any) -> dict[str, Any]:
        found = final.place_of(text)
        return judge(text=found, **request) if found else {"nothing": True}

    return judge_placed


def matching(pattern: str) -> Callable[..., dict[str, Any]]:
    """Returns a judge that finds a pattern's last match in a text; None for none."""
    compiled = re.compile(pattern)

    def match(text: str) -> dict[str, Any]:
        return {"found": last_match(compiled, text)}

    return match


def identity() -> Callable[..., dict[str, Any]]:
    """Returns a judge that says the answer itself."""

    def same(text: str) -> dict[str, Any]:
        return {"text": text}

    return same


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """Returns a pattern's last match, its first group if it has one; None for no match."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return matches[-1][1 if pattern.groups else 0]


def after_cue(text: str) -> str | None:
    """Returns the rest of the line after the last "answer is" that something follows."""
    for cue in reversed(list(_CUE.finditer(text))):
        rest = text[cue.end() :].lstrip(_FILLING)
        said = _line(rest).rstrip(" \t\r*_`.。")
        if said and not _NO_ANSWER.match(said):
            return said
    return None


def _line(text: str) -> str:
    """Returns a text's first line, with the whole of a formula that begins it."""
    closing = _DISPLAYS.get(text[:2])
    end = text.find(closing, 2) + 2 if closing else 0
    return text[: max(end, 0)] + text[max(end, 0) :].partition("\n")[0]


def _in_tag(text: str) -> str | None:
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside if closed and opened else None


# Boxes.

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=[{\d$-])(-?\d[\d.,]*(?=\D|$))?")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PLACEHOLDER = re.compile(
    r"(?i)(?:\\text\w*\{)?\W*(?:(?:the|your|my|final|correct|numerical|最终|你的)[ _]?)*"
    r"(?:answer|result|solution|答案|结果|number|\\[lc]?dots)?(?: here)?\W*"
)
_BETWEEN_BOXES = re.compile(
    r"[\s$\\()\[\]]*(?:[,;、]|,?\s*(?:\\text\{)?\s*(?:and|or)\s*\}?|或者?|和|以及)"
    r"[\s$\\()\[\]]*(?:[A-Za-z]\s*=\s*)?"
)


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


def last_box(text: str) -> str | None:
    """Returns the content of the last box that is closed and not empty.

    Of boxes joined by "or" or a comma it is all contents, with commas.

    Returns:
        None where there is no box; '' where the text ends within one.
    """
    boxes, cut = _boxes(text)
    if not boxes:
        return "" if cut else None
    if cut > boxes[-1].end:
        return ""
    joined = [boxes[-1]]
    for one in reversed(boxes[:-1]):
        between = text[one.end : joined[0].start]
        if len(between) > 20 or not _BETWEEN_BOXES.fullmatch(between):
            break
        joined.insert(0, one)
    return " , ".join(dict.fromkeys(one.content for one in joined))


def _boxes(text: str) -> tuple[list[_Box], int]:
    """Returns the outermost boxes that hold something, and where an unclosed one begins, or 0."""
    found: list[_Box] = []
    cut = 0
    closing = _closing_braces(text)
    for one in _BOX.finditer(text):
        if found and one.start() < found[-1].end:
            continue  # within the one before
        if one[1]:  # TeX's own short form, \boxed5
            found.append(_Box(one.start(), one.end(), one[1].rstrip(".,")))
            continue
        if text[one.end()] != "{":
            continue
        end = closing.get(one.end())
        if end is None:
            cut = one.start() + 1
            continue
        content = _unboxed(text[one.end() + 1 : end])
        if len(content) > 60 or not _PLACEHOLDER.fullmatch(content):
            found.append(_Box(one.start(), end + 1, content))
    return found, cut


def _closing_braces(text: str) -> dict[int, int]:
    """Returns the closing brace of each opening one that is closed."""
    opened: list[int] = []
    closed: dict[int, int] = {}
    for one in _BRACE.finditer(text):
        if one[0] == "{":
            opened.append(one.start())
        elif one[0] == "}" and opened:
            closed[opened.pop()] = one.start()
    return closed


def _unboxed(content: str) -> str:
    """Returns a box's content without the boxes within it."""
    return re.sub(r"\\(?:boxed|fbox|framebox)\s*(?=\{)", "", content).strip()
