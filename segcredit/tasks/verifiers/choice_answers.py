"""Letters of a choice, as answers name them; runs in a ``JudgeProcess``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from segcredit.tasks.verifiers.answer_extraction import after_cue, last_box

_MARKUP = re.compile(
    r"[*_`$]|\\[,;:! ]|\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|mbox|rm|bf)(?![a-z])|</?answer>"
)
_LETTER = r"(?<![A-Za-z0-9])[(\[{]?([A-Za-z])[)\]}]?(?![A-Za-z0-9'])"
_JOIN = r"(?:\s*(?:[,、;&/+]|and\b|or\b|和|与|及|或)\s*|\s+(?=[A-Z]\b))"
_LIST = re.compile(rf"{_LETTER}(?:{_JOIN}{_LETTER.replace('([A-Za-z])', '[A-Z]')})*")
_WORD = re.compile(r"(?<![A-Za-z])[A-J]{2,10}(?![A-Za-z])")
_FILLING = re.compile(
    r"(?i)(?:[\s:\"'(\[{]*(?:thus|therefore|hence|clearly|then|so|the|option|choice|letter|answer|is|probably"
    r"|definitely|simply|again)(?![a-z])|[\s:]*(?:选项|选|项))*[\s:\"']*"
)
_CHOSEN = re.compile(
    r"(?i)(?<![a-z])(?:option|choice|choose|chose|select|pick|go with|opt for)(?![a-z])"
    r"|(?<!不)(?:选项|选择?)"
)
_NOT = re.compile(r"(?i)\s*(?:not|isn't|n't|不|非)")
_NOT_BEFORE = re.compile(r"(?i)(?:\bnot|n't|不是|不选|并非)\W{0,3}$")
_NUMBER = re.compile(r"\W*(\d{1,2})\W*")
_CALLED_RIGHT = re.compile(
    r"(?<![A-Za-z])([A-Z])\)?(?:(?:选项|项)?(?:是|为)?正确| is (?:the )?(?:correct|right)(?![a-z]))"
)
_BRACKETED = re.compile(rf"\([A-Z]\)(?:{_JOIN}\([A-Z]\))*")
_LINE = re.compile(r"(?m)^[^\w\n]*([A-Z])(?:[.):][^\n]*|[^\w\n]*)$")
_END = re.compile(rf"(?<![A-Za-z0-9])[A-Z](?:{_JOIN}[A-Z])*(?![A-Za-z0-9'])[^\w]*\Z")
_LETTERS_ALONE = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")


def letters() -> Callable[..., dict[str, Any]]:
    """Returns a function of a text: the letters that it chooses, or the number of an option."""

    def choice(text: str) -> dict[str, Any]:
        return {"letters": chosen(text) or _number(text)}

    return choice


def _number(text: str) -> str:
    """Returns the number that a text consists of, or its "answer is"; '' for none."""
    for said in (text[:80], (after_cue(text) or "")[:80], (last_box(text) or "")[:80]):
        if found := _NUMBER.fullmatch(said):
            return found[1]
    return ""


def chosen(text: str) -> str:
    """Returns the letters that a text chooses: the surest sign's last; '' for none."""
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", text)).strip()
    return next((found for sign in _signs(text) if (found := sign)), "")


def gold_letters(answer: str) -> str:
    """Returns the letters that a true answer names, such as B of "(B)" or "B) 12"; '' for none."""
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", answer)).strip(" {}\t\r\n")
    if text.isdecimal():
        return chr(ord("A") + int(text)) if int(text) < 26 else ""
    listed = re.fullmatch(rf"{_LIST.pattern}[\s.]*", text)
    if listed or re.fullmatch(_WORD, text):
        return _ordered(text)
    labelled = re.match(r"[(\[{]?([A-Za-z])[)\]}.:]+(?:\s|$|[^\x00-\x7f])", text)
    return labelled[1].upper() if labelled else chosen(text) if len(text) < 40 else ""


def _signs(text: str) -> Iterator[str]:
    """Yields what the signs of a choice say, the surest first."""
    whole = text.strip(" .。\n{}")
    yield _ordered(whole) if _LIST.fullmatch(whole) or _WORD.fullmatch(whole) else ""
    said = after_cue(text)
    yield _list_at(said) if said else ""
    box = last_box(text)
    yield _list_at(box.strip(" {}")) if box else ""
    for cue in reversed(list(_CHOSEN.finditer(text))):
        yield _list_at(text[cue.end() : cue.end() + 80])
    for sign in (_CALLED_RIGHT, _BRACKETED, _LINE, _END):
        found = list(sign.finditer(text))
        if found and not _NOT_BEFORE.search(
            text[max(found[-1].start() - 20, 0) : found[-1].start()]
        ):
            yield _ordered(found[-1][1 if sign.groups else 0])
    small = {one[1].upper() for one in re.finditer(r"\(([a-z])\)", text)}
    yield "".join(small) if len(small) == 1 else ""


def _list_at(text: str) -> str:
    """Returns the letters that a text begins with; '' for none, and where it says which not."""
    filling = _FILLING.match(text)
    rest = text[filling.end() if filling else 0 :]
    if _NOT.match(rest):
        return ""
    word = _WORD.match(rest)
    found = word or _LIST.match(rest)
    if found is None or (not word and not _stands_alone(found[0], rest[found.end() :])):
        return ""
    return _ordered(found[0])


def _stands_alone(letter: str, after: str) -> bool:
    """Tells whether a letter is a name, not a word: "a" and "I" may be either."""
    if letter.strip("()[]{} ") not in ("a", "A", "I", "i"):
        return (
            letter[:1] in "([{"
            or letter.strip("()[]{} ").isupper()
            or not re.match(r"\s+\w", after)
        )
    return letter[:1] in "([{" or not re.match(r"\s+[a-z]", after)


def _ordered(text: str) -> str:
    alone = _LETTERS_ALONE.findall(text) or list(text if _WORD.search(text) else "")
    return "".join(sorted({one.upper() for one in alone}))
