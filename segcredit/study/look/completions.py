"""Completions to look at, as data: texts, each cut into pieces in one or several ways.

What draws them: ``browser`` in a browser or notebook, ``terminal`` in a terminal.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

MOST_CHARACTERS = 20_000
"""Most characters of a prompt or a completion that are shown."""

BEGINS, CONTINUES, OBSERVED = 0, 1, 2
"""Kinds of pieces: one that begins a segment, one that goes on in it, one that no policy wrote."""

_SHOWN = {
    # Control characters as pictures: a text must steer neither a terminal nor a page.
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    127: "␡",
    **dict.fromkeys(range(0x80, 0xA0), "␦"),
    # What turns the direction of writing would reorder the words around it.
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "␦"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the policy; what is behind it, up to the next one, is the environment's.

    Args:
        start: its first character in the completion's text.
        end: the one after its last.
        facts: what is known of it, as words, such as its reward.
    """

    start: int
    end: int
    facts: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One segmentation of a completion: its text in pieces, one after the other.

    Args:
        sizes: characters of each piece; together those of the text. 0 where a segment has none.
        kinds: of each piece, ``BEGINS``, ``CONTINUES`` or ``OBSERVED``.
        credit: one a piece, of each of its tokens; empty where none is known.
        values: one a piece, of the state before it in reward units; empty where none is known.
        note: what must be known of it, such as that it failed.
    """

    sizes: Sequence[int]
    kinds: Sequence[int]
    credit: Sequence[float] = ()
    values: Sequence[float] = ()
    note: str = ""

    @property
    def segments(self) -> int:
        """The number of segments."""
        return sum(kind == BEGINS for kind in self.kinds)

    def in_turns(self, turns: Sequence[Turn]) -> Cut:
        """Returns the same, with no piece over the edge of a turn; what is in none is observed."""
        starts = [turn.start for turn in turns]
        edges = sorted({*starts, *(turn.end for turn in turns)})
        pieces: list[tuple[int, int, int]] = []
        end = 0
        for place, (size, kind) in enumerate(zip(self.sizes, self.kinds, strict=True)):
            begin, end = end, end + size
            inside = edges[bisect.bisect_right(edges, begin) : bisect.bisect_left(edges, end)]
            bounds = [begin, *inside, end]
            for first, beyond in itertools.pairwise(bounds):
                turn = bisect.bisect_right(starts, first) - 1
                own = size == 0 or (turn >= 0 and first < turns[turn].end)
                pieces.append((beyond - first, kind if own else OBSERVED, place))
                if own and kind == BEGINS:
                    kind = CONTINUES
        known = {name: getattr(self, name) for name in ("credit", "values")}
        spread = {
            name: [math.nan if kind == OBSERVED else x[at] for _, kind, at in pieces]
            for name, x in known.items()
            if len(x)
        }
        kinds = [kind for _, kind, _ in pieces]
        return replace(self, sizes=[size for size, _, _ in pieces], kinds=kinds, **spread)

    def shortened(self, length: int) -> Cut:
        """Returns the pieces of the text's first characters."""
        if sum(self.sizes) <= length:
            return self
        ends = list(itertools.accumulate(self.sizes))
        count = next(place for place, end in enumerate(ends, 1) if end >= length)
        sizes = [*self.sizes[: count - 1], length - (ends[count - 2] if count > 1 else 0)]
        return replace(
            self,
            sizes=sizes,
            kinds=self.kinds[:count],
            credit=self.credit[:count],
            values=self.values[:count],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One completion with its prompt, as a reader is to see it.

    Args:
        text: the completion, observations of tools or an environment included.
        cuts: segmentations by their names.
        prompt: its text; "" where it is not known.
        images: those of the prompt, as ``data:`` addresses.
        source: the run that it is of, or the prompt.
        step: of the policy that wrote it.
        place: which one it is of those of the step, such as "prompt p, completion 2".
        facts: its sizes and whatever else is known, as words.
        reward: None where it is not known.
        truncated: whether it met the length limit.
        notes: what cannot be shown, and why.
        turns: of the policy, ascending, where there are several: no piece goes over their edges.
    """

    text: str
    cuts: Mapping[str, Cut]
    prompt: str = ""
    images: Sequence[str] = ()
    source: str = ""
    step: int | None = None
    place: str = ""
    facts: str = ""
    reward: float | None = None
    truncated: bool = False
    notes: Sequence[str] = field(default=())
    turns: Sequence[Turn] = field(default=())

    def __post_init__(self) -> None:
        left = len(self.text) - MOST_CHARACTERS
        changes: dict[str, Any] = {name: visible(getattr(self, name)) for name in _TEXTS}
        changes["prompt"] = shortened(changes["prompt"])
        changes["notes"] = [visible(note) for note in self.notes]
        cuts = self.cuts
        if self.turns:
            whole = {"": Cut(sizes=[len(self.text)], kinds=[BEGINS])}
            cuts = {name: cut.in_turns(self.turns) for name, cut in (cuts or whole).items()}
            changes["cuts"] = cuts
        if left > 0:
            changes["text"] = changes["text"][:MOST_CHARACTERS]
            changes["cuts"] = {name: cut.shortened(MOST_CHARACTERS) for name, cut in cuts.items()}
            changes["turns"] = [turn for turn in self.turns if turn.start < MOST_CHARACTERS]
            changes["notes"].append(f"{left:,} more characters of the completion are left out.")
        for name, value in changes.items():
            object.__setattr__(self, name, value)


_TEXTS = ("text", "prompt", "source", "place", "facts")


def visible(text: str) -> str:
    """Returns a text of the same length in which what is not seen, but acts, is a picture."""
    return text.translate(_SHOWN)


def shortened(text: str) -> str:
    """Returns a text, or its beginning with the number of characters that are left out."""
    left = len(text) - MOST_CHARACTERS
    return f"{text[:MOST_CHARACTERS]}… {left:,} more characters" if left > 0 else text


def cut_at(
    length: int, starts: Sequence[int], ends: Sequence[int], note: str = "", **numbers: Any
) -> Cut:
    """Makes pieces of a text from the places of its segments; what is between them is observed.

    Args:
        length: of the text.
        starts: the first character of each segment, ascending. One that an earlier segment
            already has, since its bytes are several tokens, stays with that one.
        ends: one after the last character of each.
        note: see ``Cut``.
        numbers: ``credit`` and ``values`` of the segments, see ``Cut``.
    """
    pieces: list[tuple[int, int, int]] = []
    beyond = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if start > beyond:
            pieces.append((start - beyond, OBSERVED, -1))
        begin = max(start, beyond)
        beyond = max(begin, end)
        pieces.append((beyond - begin, BEGINS, number))
    if length > beyond:
        pieces.append((length - beyond, OBSERVED, -1))
    spread = {
        name: [math.nan if at < 0 else x[at] for _, _, at in pieces]
        for name, x in numbers.items()
        if len(x)
    }
    sizes = [size for size, _, _ in pieces]
    return Cut(sizes=sizes, kinds=[kind for _, kind, _ in pieces], note=note, **spread)


def cut_at_turns(cut: Cut, turns: Sequence[Turn]) -> Cut:
    """Returns a cut that begins anew at each turn, as runs cut; the same where there are none.

    What lies between turns is observed, and a segment that would begin there begins with the turn.
    """
    if not turns:
        return cut
    places = [0, *itertools.accumulate(cut.sizes)]
    begun = [at for at, kind in zip(places, cut.kinds, strict=False) if kind == BEGINS]
    starts: list[int] = []
    ends: list[int] = []
    for turn in turns:
        inside = [turn.start, *(at for at in begun if turn.start < at < turn.end)]
        starts += inside
        ends += [*inside[1:], turn.end]
    return cut_at(places[-1], starts, ends, cut.note)
