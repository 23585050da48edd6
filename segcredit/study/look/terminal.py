"""Completions in a terminal: segments in colours and between marks, which a pipe keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import isfinite

from rich.console import Group, RenderableType
from rich.text import Text

from segcredit.study.look.completions import BEGINS, OBSERVED, Completion, Cut, Turn

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 40


def written(text: str, cut: Cut, turns: Sequence[Turn] = ()) -> Text:
    """Returns a text with its segments in alternating colours, and their credit behind them.

    Args:
        text: as ``visible`` makes it.
        cut: its pieces.
        turns: whose numbers and facts are written where they begin.
    """
    shown = Text()
    coming = list(enumerate(turns, 1))
    colours = itertools.cycle(COLOURS)
    colour = ""
    end = 0
    for place, (size, kind) in enumerate(zip(cut.sizes, cut.kinds, strict=True)):
        piece = text[end : end + size]
        begun = not shown
        while coming and coming[0][1].start <= end:
            count, turn = coming.pop(0)
            line = "\n" if shown else ""
            shown.append(f"{line}turn {count}: {turn.facts}\n", style="bold dim")
            begun = True
        end += size
        if kind == OBSERVED:
            shown.append(f"⟦{piece}⟧", style="dim italic")
            continue
        if kind == BEGINS:
            colour = next(colours)
            # A mark as well: colours are lost in a pipe, and not everybody tells them apart.
            shown.append("" if begun else "¦", style="bold white")
        shown.append(piece, style=colour)
        if cut.credit and isfinite(cut.credit[place]):
            shown.append(f"[{number(cut.credit[place])}]", style="dim")
    return shown


def number(value: float) -> str:
    """Writes a credit with its sign, to two digits."""
    return f"{value:+.2g}".replace("-", "−")


def drawn(completion: Completion) -> Group:
    """Returns a completion with its prompt and segmentations, one under the other."""
    return Group(*_parts(completion))


def _parts(completion: Completion) -> Iterator[RenderableType]:
    yield Text(heading(completion), style="bold")
    if completion.prompt:
        yield Text(completion.prompt, style="dim")
    if completion.images:
        count = len(completion.images)
        yield Text(f"{count} image{'s' * (count > 1)} of the prompt", style="dim")
    for name, cut in completion.cuts.items():
        if said := _said(name, cut):
            yield Text(said, style="italic")
        yield written(completion.text, cut, completion.turns)
    if not completion.cuts:
        yield Text(completion.text)
    for note in completion.notes:
        yield Text(note, style="dim")


def heading(completion: Completion) -> str:
    """Returns the line above a completion: where it is from, its reward and its sizes."""
    step = "" if completion.step is None else f"step {completion.step:,}"
    reward = "" if completion.reward is None else f"reward {completion.reward:.4g}"
    cut_off = "truncated" if completion.truncated else ""
    parts = [completion.source, step, completion.place, completion.facts, cut_off, reward]
    return " · ".join(filter(None, parts))


def _said(name: str, cut: Cut) -> str:
    parts = [name, f"{cut.segments} segment{'s' * (cut.segments != 1)}" if name else "", cut.note]
    pairs = zip(cut.values, cut.kinds, strict=False)
    known = [value for value, kind in pairs if kind == BEGINS and isfinite(value)]
    if known:
        low, high = f"{min(known):.2g}".replace("-", "−"), f"{max(known):.2g}".replace("-", "−")
        parts.append(f"value {low} {_bars(known)} {high}")
    return " · ".join(filter(None, parts))


def _bars(values: Sequence[float]) -> str:
    """Draws values as blocks, one each or each of every few, from the least to the greatest."""
    low, span = min(values), max(values) - min(values) or 1.0
    values = values[:: -(-len(values) // _MOST_BARS)]
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)
