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
    """A marker opens a step: "Step 3:", "3.", a bullet, "Therefore", 第三步, 首先.

    Numbers and bullets count where a line begins. Labels ("Step 3") and connectives count where a
    line or a sentence begins, behind bullets, headings, quotes and emphasis too; inside a line a
    label needs a colon, a full stop, a bracket or a dash after its number. Display formulas and
    code blocks are whole: a minus sign at the start of a line of theirs is no bullet. A single
    space before a marker goes with it, as it does in the tokens of most vocabularies.

    Not causal: a marker belongs to the segment that it opens, so that the boundary before a token
    depends on that token. ``newline`` and ``paragraph`` are causal.

    Assumption: the policy says where its steps begin, because it was instructed to or by habit.
    Degenerate case: text without markers is one segment. Cost: a pass of a regular expression
    over each text, and another over its display formulas and code.

    Args:
        markers: which families count: ``step`` ("Step 3", 步骤3, 第三步), ``numbered`` ("3.",
            "3)", "(3)", 三、, （三）, ③), ``bullet`` ("-", "*", "•") and ``connective``.
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
            # Like any line, the first one begins after a newline.
            found = _marker(self.markers, self.connectives).finditer("\n" + text)
            marked = [match.start(match.lastindex) - 1 for match in found if match.lastindex]
            starts.update(outside(marked, list(formulas(text))))
        if self.pattern is not None:
            own = re.compile(self.pattern, re.MULTILINE).finditer(text)
            starts.update(match.start() for match in own)
        blank = len(text) - len(text.lstrip())
        return sorted({start - (text[start - 1] == " ") for start in starts if start > blank})


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
    lines = {
        "bullet": _BULLET,
        "numbered": _NUMBERED,
        "step": rf"(?:[-#>*•]+[^\S\n]++)?+{opening}{_LABEL}",
        "connective": rf"(?:[-#>*•]+[^\S\n]++)?+{opening}{connective}",
    }
    sentences = {
        "step": rf"{opening}{_LABEL}[^\S\n]*[:：.)、—–-]",
        "connective": opening + connective,
    }
    line = "|".join(lines[family] for family in families)
    sentence = "|".join(sentences[family] for family in families if family in sentences) or r"(?!)"
    return re.compile(
        rf"[\n.!?…。！？](?:(?<=\n)\s*+((?:(?:<\w+>|【\w+】[:：]?)[^\S\n]*+)?+(?:{line}))?"
        rf"|(?<!\n)[\"'”’)\]*_」』）]*+(?:(?<=[…。！？”’」』）])|(?=\s))[^\S\n]*+({sentence})?)",
        re.IGNORECASE,
    )
