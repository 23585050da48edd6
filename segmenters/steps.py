"""Steps that announce themselves: numbered, labelled, listed, or opened by a connective."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from segcredit import TextSegmenter
from segcredit.formulas import formulas, outside

Family = Literal["step", "numbered", "bullet", "connective"]

CONNECTIVES = (
    *("First,", "Firstly,", "First we", "Second,", "Secondly,", "Third,", "Thirdly,", "Fourth,"),
    *("Fifth,", "Next,", "Next we", "Then", "After that,", "Now,", "Finally,", "Lastly,"),
    *("Therefore", "Thus", "Hence", "So", "Consequently,", "In conclusion,"),
    *(
        "首先",
        "其次",
        "再次，",
        "第一，",
        "第二，",
        "第三，",
        "然后",
        "接着",
        "接下来",
        "随后",
        "最后",
    ),
    *("因此", "所以", "于是", "故"),
)
"""Words that open a step where a sentence or a line begins."""

_COUNT = r"(?:\d{1,3}|[一二三四五六七八九十]{1,3})"
_LABEL = (
    rf"(?:step\s?(?:\d{{1,3}}\b|(?:one|two|three|four|five|six|seven|eight|nine|ten)\b)"
    rf"|步骤\s?{_COUNT}|第\s?{_COUNT}\s?步)"
)
_COUNTER = (
    rf"(?:{_COUNT}|[ivx]{{1,4}}\b|[a-z]\b|(?:one|two|three|four|five|six|seven|eight|nine|ten)\b)"
)
_CASE = (
    rf"(?:(?:sub-?)?(?:case|part|move|round|phase|stage|method|approach|attempt|iteration|scenario)"
    rf"\s#?{_COUNTER}|(?:情况|情形|方法|方案|解法|思路|阶段)\s?{_COUNT}"
    rf"|第\s?{_COUNT}\s?(?:种(?:情况|情形|方法)|个?(?:问题?|小题)|轮|阶段|部分))"
)
"""Labels beside the step's own, which need a mark behind them or the line to themselves."""
_RECURRING = re.compile(
    rf"(?:^[^\S\n]*+|[.!?][^\S\n]++|[。！？])((?:[-#>*•_]+[^\S\n]*+)*+"
    rf"([^\W\d_][\w'’-]{{0,20}}?(?:[^\S\n][^\W\d_][\w'’-]{{0,20}}?){{0,2}})[^\S\n]?#?({_COUNTER})"
    r"(?:[*_]{1,2})?[:：])",
    re.MULTILINE | re.IGNORECASE,
)
"""Any words with a counter and a colon, where a line or a sentence begins."""
_ANNOUNCED = re.compile(r"[:：][*_ ]*\Z")
_PARAGRAPH = re.compile(r"(?<=\S)[^\S\n]*+\n(?:[^\S\n]*+\n)++(?=[^\s\\$`~<])")
"""Blank lines before a paragraph that is not indented, and no formula."""
_NUMBERED = (
    r"(?:\*\*|__)?+(?:\d{1,3}[.)](?!\d)|[(（]\d{1,3}[)）]|\d{1,3}[、．）]|[①-⑳]"
    r"|[一二三四五六七八九十]{1,3}[、．]|[(（][一二三四五六七八九十]{1,3}[)）])"
    r"(?=[^\S\n]*+[^\s.,;:)])"
    r"(?![^\S\n]*=|[-+/^×÷<>≤≥≈]|\*(?!\*)|[^\S\n]+[-+*/^×÷<>≤≥≈][^\S\n]+[\d(])"
)
"""Something follows on the line, and no operator: "(3) + 4" and "2) = 5" are formulas."""
_BULLET = r"[-*•‣◦▪●–—](?=[^\S\n]+[^\s*_-]|[^\S\n]+(?:\*\*|__|-?\d))"


@dataclass(frozen=True, slots=True)
class Steps(TextSegmenter):
    """A marker opens a step: "Step 3:", "Case 2:", "3.", a bullet, "Therefore", 第三步, 首先.

    Numbers and bullets count where a line begins. A paragraph that is not indented ends their
    item, unless a colon announces it. Labels ("Step 3") and connectives count where a line or a
    sentence begins, behind bullets, headings, quotes and emphasis too; inside a line a label needs
    a colon, a full stop, a bracket or a dash after its number. Other labels ("Case 1", "Part b",
    情况一) need one there too, and any words at all ("Row 3:") are a label where they recur with
    another counter and a colon. Formulas and code are whole: a minus sign at the start of a line
    of theirs is no bullet. A single space before a marker goes with it, as it does in the tokens
    of most vocabularies.

    Not causal: a marker belongs to the segment that it opens, so that the boundary before a token
    depends on that token. ``newline`` and ``paragraph`` are causal.

    Assumption: the policy says where its steps begin, because it was instructed to or by habit.
    Degenerate case: text without markers is one segment. Cost: a pass of a regular expression
    over each text, and another over its display formulas and code.

    Args:
        markers: which families count: ``step`` ("Step 3", 步骤3, 第三步, and the other labels),
            ``numbered`` ("3.", "3)", "(3)", 三、, （三）, ③), ``bullet`` ("-", "*", "•") and
            ``connective``.
        connectives: the words of that family, taken literally but for upper and lower case; a
            comma in one is asked for: "First," is no "First term".
        pattern: a regular expression of one's own, each match of which opens a step wherever it
            stands, beside those of ``markers``; ``^`` and ``$`` are the ends of lines. None = none.

    Raises:
        ValueError: another family, an empty connective, a pattern that is no regular expression
            or that matches the empty text, or nothing to look for.

    Source:
        The step baseline of SAPO, arXiv 2605.01327, table 3, for which the model is instructed to
        write its steps. Its code is not released: the markers are ours.
    """

    markers: tuple[Family, ...] = ("step", "numbered", "bullet", "connective")
    connectives: tuple[str, ...] = CONNECTIVES
    pattern: str | None = None

    def __post_init__(self) -> None:
        known = ("step", "numbered", "bullet", "connective")
        unknown = [family for family in self.markers if family not in known]
        if unknown:
            raise ValueError(
                f"markers holds {unknown[0]!r}; expected some of {', '.join(map(repr, known))}."
            )
        if "connective" in self.markers and not (
            self.connectives and all(word.strip() for word in self.connectives)
        ):
            raise ValueError(
                "connectives is empty, or holds an empty word; expected words such as 'Therefore',"
                " or markers without 'connective'."
            )
        if self.pattern is not None:
            _require_pattern(self.pattern)
        elif not self.markers:
            raise ValueError("markers is empty and there is no pattern; expected one of the two.")

    @property
    def causal(self) -> bool:
        """A boundary comes before the marker that makes it."""
        return False

    def split(self, text: str) -> Sequence[int]:
        """Returns the offset of each marker, or of the space before it."""
        starts: set[int] = set()
        if self.markers:
            marked = _marked(text, self.markers, self.connectives)
            starts.update(outside(marked, list(formulas(text))))
        if self.pattern is not None:
            own = re.compile(self.pattern, re.MULTILINE).finditer(text)
            starts.update(match.start() for match in own)
        blank = len(text) - len(text.lstrip())
        return sorted({start - (text[start - 1] == " ") for start in starts if start > blank})


def _marked(text: str, families: tuple[Family, ...], connectives: tuple[str, ...]) -> list[int]:
    """Returns the markers' places, and those of paragraphs that end an item."""
    # Like any line, the first one begins after a newline.
    found = _marker(families, connectives).finditer("\n" + text)
    kinds = {
        match.start(match.lastindex) - 1: {name for name, part in match.groupdict().items() if part}
        for match in found
        if match.lastindex
    }
    if "step" in families:
        kinds |= {place: {"step"} for place in _recurring(text)}
    ends = {match.end(): match.start() for match in _PARAGRAPH.finditer(text)}
    marked: list[int] = []
    in_item = False
    for place in sorted(kinds | ends):
        if place in kinds:
            named = not kinds[place].isdisjoint(("step", "inside_step"))
            in_item = bool(kinds[place] & {"bullet", "numbered"}) or (in_item and not named)
            marked.append(place)
        elif in_item and not _ANNOUNCED.search(text, max(0, ends[place] - 4), ends[place]):
            in_item = False
            marked.append(place)
    return marked


def _recurring(text: str) -> list[int]:
    """Returns the places of labels that come with more than one counter."""
    found = [(match.start(1), match[2].lower(), match[3]) for match in _RECURRING.finditer(text)]
    counters: dict[str, set[str]] = {}
    for _, label, counter in found:
        counters.setdefault(label, set()).add(counter)
    return [place for place, label, _ in found if len(counters[label]) > 1]


def _require_pattern(pattern: str) -> None:
    try:
        empty = re.compile(pattern, re.MULTILINE).search("")
    except re.error as error:
        raise ValueError(
            f"pattern is {pattern!r}, which is no regular expression: {error}. Expected one such as"
            " '^Claim [0-9]+' (in TOML between single quotes)."
        ) from error
    if empty is not None:
        raise ValueError(
            f"pattern is {pattern!r}, which matches the empty text and would cut everywhere;"
            " expected one that needs a character, such as '^Claim [0-9]+'."
        )


@lru_cache(maxsize=32)
def _marker(families: tuple[Family, ...], connectives: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the beginning of a line or sentence; its marker, if any, is the only group.

    Every beginning is matched, with the blank characters before it, whether a marker follows or
    not: looking at none of them twice keeps the time linear.
    """
    longest_first = sorted(connectives, key=len, reverse=True)
    words = "|".join(re.escape(word) + r"(?![a-z-])" * word[-1].isalpha() for word in longest_first)
    connective = rf"(?:{words})(?!\s+far\b)"
    opening = r"(?:[\"'“‘「『(（\[*_][^\S\n]*+)*+"
    behind = rf"(?:[-#>*•]+[^\S\n]++)?+{opening}"
    case = rf"{_CASE}(?=[^\S\n]*(?:[*_]{{1,2}})?[^\S\n]*(?:[:：.)、—–-]|\n|\Z))"
    lines = {
        "bullet": _BULLET,
        "numbered": _NUMBERED,
        "step": f"{behind}(?:{_LABEL}|{case})",
        "connective": behind + connective,
    }
    sentences = {
        "step": rf"{opening}(?:{_LABEL}[^\S\n]*[:：.)、—–-]|{_CASE}[^\S\n]*[:：])",
        "connective": opening + connective,
    }
    line = "|".join(f"(?P<{family}>{lines[family]})" for family in families)
    inside = [f"(?P<inside_{name}>{sentences[name]})" for name in families if name in sentences]
    sentence = "|".join(inside) or r"(?!)"
    return re.compile(
        rf"[\n.!?…。！？](?:(?<=\n)\s*+((?:(?:<\w+>|【\w+】[:：]?)[^\S\n]*+)?+(?:{line}))?"
        rf"|(?<!\n)[\"'”’)\]*_」』）]*+(?:(?<=[…。！？”’」』）])|(?=\s))[^\S\n]*+({sentence})?)",
        re.IGNORECASE,
    )
