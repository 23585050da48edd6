"""Segments between the places at which a trace turns back on itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from segcredit import TextSegmenter

Kind = Literal["doubt", "check", "change"]

_AGAIN = (
    r"(?:double|cross|triple)[- ]?check|re-[a-z]+|re(?:check|verify|think|consider|examine|evaluate"
    r"|calculate|compute|count|assess|visit|view|trace|read|do|try|start|work|vise|draw|group)"
    r"|(?:think|look|try|start|begin|check|go) (?:[a-z]+ )?(?:again|over|afresh|from scratch)"
    r"|(?:go|step) back|correct (?:this|that|it|my)|be (?:more )?careful"
)
_PLAN = r"(?![^\n.,!?，。]{0,40}[:：][*_]{0,4}[^\S\n]*(?:\n|\Z))(?![*_]{0,4}[:：])"
"""Not before a colon: "Let's check:" announces a step of the plan."""
_MARKERS: dict[Kind, str] = {
    "doubt": (
        r"wait(?! times?\b| for\b)|hm+|hold on|oops|(?:that|this|something)(?:'s|’s| is)"
        r" (?:wrong|off|incorrect|not (?:right|correct))|(?:i|we) made (?:a mistake|an error)"
        r"|oh,? (?:no|dear)|uh[- ]oh|scratch that|my (?:mistake|bad)|(?:i|we) (?:was|were) wrong"
        r"|(?:i|we) (?:must|may|might) have (?:made|missed|mis[a-z]+|forgot|overlooked|confused"
        r"|mixed|messed|got|counted|skipped|swapped)"
        r"|that (?:can(?:'t|’t|not) be|doesn(?:'t|’t) (?:seem|look)) right"
        r"|等等|等一下|等下|稍等|嗯|糟糕|不对(?![称应等])|(?:我们?)?[算搞弄写看]错了"
    ),
    "check": (
        rf"let(?:'s|’s| me| us)(?: just| quickly| carefully)? (?:{_AGAIN})"
        r"|let me(?: just| quickly| carefully)? (?:check|verify|confirm)"
        rf"|let(?:'s|’s| us)(?: just| quickly| carefully)? (?:check|verify|confirm){_PLAN}"
        rf"|(?:i|we)(?:(?:'|’)ll| will| should| must| need to| have to) (?:{_AGAIN})"
        r"|(?:up)?on (?:closer|further|reflection"
        r"|re-?(?:view|check|count|examin|consider|evaluat)[a-z]*)"
        r"|double[- ]?checking|looking (?:back|again)"
        r"|(?:让我们?|我们?)?(?:还?需要|应该|必须|可以|得|要|来)?(?:再次?|重新|仔细)"
        r"(?:检查|验证|核对|确认|考虑|思考|审视|计算|分析|推导|开始|想|看|算)"
        rf"|(?:让我们|我们?)?来?(?:检查|验证|核对|验算)(?:一下|一遍){_PLAN}"
        r"|让我(?:检查|验证|核对|确认|想|看)"
    ),
    "change": (
        r"actually|alternatively|on second thoughts?|another (?:way|approach|method|idea)"
        r"|let(?:'s|’s| me| us) (?:try|consider) (?:another|a different|an alternative)"
        r"|其实|实际上|换(?:一?种|一?个)|另一种(?:方法|思路|做法)|另一个思路"
    ),
}
_FILLER = (
    r"(?:(?:but|oh|no|ah|so|and|well|ok|okay),?[^\S\n]++"
    r"|(?:但是?|哦|啊|不|所以|因此|那么?|现在)[,，]?)"
)
"""Words that may stand before a marker: "But wait", "No, wait"."""


@dataclass(frozen=True, slots=True)
class Reflection(TextSegmenter):
    """A marker of second thoughts opens a segment: "Wait", "Hmm", "Let me check", "等等".

    Markers count where a sentence or a line begins, in upper or lower case, behind list bullets
    and numbers, quotes and emphasis; "Let's check:" is a plan, and none. Markers with nothing but
    punctuation between them, as in "Hmm. Wait, actually", open one segment. A single space before
    a marker goes with it, as it does in the tokens of most vocabularies.

    Not causal: a marker belongs to the segment that it opens, so that the boundary before a token
    depends on that token.

    Assumption: reasoning changes its course where its words say so. Degenerate case: text without
    markers is one segment. Cost: one pass of a regular expression over each text.

    Args:
        kinds: which markers count: ``doubt`` (wait, hmm, hold on, oops, 等等, 不对), ``check``
            (let me check or restart, we need to redo, upon review, 让我再, 重新检查) and ``change``
            (actually, alternatively, on second thought, another way, 其实, 换一种).
        extra: further markers, taken literally but for upper and lower case.

    Raises:
        ValueError: another kind, an empty extra marker, or no marker at all.

    Source:
        The list and the rule are ours. That "Wait" makes a model turn back is the observation of
        Muennighoff et al. 2025, arXiv 2501.19393; that "alternatively" marks a change of thought
        is that of Wang et al. 2025, arXiv 2501.18585.
    """

    kinds: tuple[Kind, ...] = ("doubt", "check", "change")
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in _MARKERS]
        if unknown:
            raise ValueError(
                f"kinds holds {unknown[0]!r}; expected some of {', '.join(map(repr, _MARKERS))}."
            )
        if not all(marker.strip() for marker in self.extra):
            raise ValueError("extra holds an empty marker; expected words, such as 'Scratch that'.")
        if not (self.kinds or self.extra):
            raise ValueError("kinds and extra are both empty; expected a marker in one of them.")

    @property
    def causal(self) -> bool:
        """A boundary comes before the marker that makes it."""
        return False

    def split(self, text: str) -> Sequence[int]:
        """Returns the offset of each marker, or of the space before it."""
        # Like any line, the first one begins after a newline: hence the places one too far right.
        found = _pattern(self.kinds, self.extra).finditer("\n" + text)
        starts = [match.start(1) - 1 for match in found if match[1]]
        blank = len(text) - len(text.lstrip())
        return [start - (text[start - 1] == " ") for start in starts if start > blank]


@lru_cache(maxsize=32)
def _pattern(kinds: tuple[Kind, ...], extra: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a line's or sentence's end, and in group 1 the marker that opens the next, if any.

    Every end is matched, with the blank characters behind it, whether a marker follows or not:
    looking at none of them twice keeps the time linear.
    """
    words = "|".join([*(_MARKERS[kind] for kind in kinds), *map(re.escape, extra)])
    marker = rf"(?:{_FILLER})*(?:{words})(?![a-z])"
    run = rf"{marker}(?:[^\S\n]*[-,，.。!！?？…、;:—]*[^\S\n]*{marker})*"
    opening = r"(?:[-\"'“‘「『(（\[*_>#•][^\S\n]*+)*+"
    return re.compile(
        r"[\n.!?…。！？][\"'”’)\]*_」』）]*+(?:(?<=[\n…。！？”’」』）])|(?=\s))\s*+"
        rf"((?:<\w+>)?{opening}(?:(?<=\s)\d{{1,3}}[.)、．][^\S\n]*+)?+{opening}{run})?",
        re.IGNORECASE,
    )
