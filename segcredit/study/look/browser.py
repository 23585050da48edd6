"""Completions in a browser: their data as JSON, with the style and the script that draw them.

A report holds style and script once; what a notebook shows brings its own.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from segcredit.study.look.completions import BEGINS, Completion, Cut
from segcredit.study.look.terminal import drawn

_DEEPEST = 95
"""Percentile of the sizes of a segmentation's credit from which the shade is the deepest."""
_PLAIN = 2
"""Completions that are there as plain text where no script runs."""


def style() -> str:
    """Returns the style sheet of completions."""
    return _source("look.css")


def script() -> str:
    """Returns the script, which draws whatever completions on the page are not drawn yet."""
    return _source("look.js")


def block(completions: Sequence[Completion]) -> str:
    """Returns the element that the script turns into a browser of the completions.

    Until then, and where no script runs, it holds the first ones as plain text.
    """
    left = len(completions) - _PLAIN
    more = f" {left:,} more are shown where scripts run." if left > 0 else ""
    plain = "\n\n".join(map(_plain, completions[:_PLAIN]))
    # Of all that JSON holds, '<' alone could end the element.
    data = json.dumps(_columns(completions), ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    return (
        '<div class="segcredit tex2jax_ignore mathjax_ignore">'
        f'<div class="sc-plain"><pre>{escape(plain)}</pre><p>{more}</p></div>'
        f'<script type="application/json">{data}</script></div>'
    )


def page_part(completions: Sequence[Completion], lead: str = "") -> str:
    """Returns completions as a notebook shows them, under a sentence: with style and script."""
    said = f"<p>{escape(lead)}</p>" if lead else ""
    return f"<style>{style()}</style>{said}{block(completions)}<script>{script()}</script>"


def _plain(completion: Completion) -> str:
    # Of a notebook too, whose consoles display what they print.
    out = Console(file=io.StringIO(), color_system=None, width=100, force_jupyter=False)
    out.print(drawn(completion))
    return out.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def _columns(completions: Sequence[Completion]) -> dict[str, Any]:
    """Returns the completions by field; texts that repeat are places in ``words``."""
    words: dict[str, int] = {}

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    columns: dict[str, Any] = {
        "text": [one.text for one in completions],
        "reward": [_rounded(one.reward) for one in completions],
        "step": [one.step for one in completions],
        "truncated": [int(one.truncated) for one in completions],
        "images": [[word(image) for image in one.images] for one in completions],
        "notes": [[word(note) for note in one.notes] for one in completions],
    }
    for name in ("prompt", "source", "place", "facts"):
        columns[name] = [word(getattr(one, name)) for one in completions]
    if any(one.turns for one in completions):
        columns["turns"] = [
            [(turn.start, word(turn.facts)) for turn in x.turns] for x in completions
        ]
    names = dict.fromkeys(name for one in completions for name in one.cuts)
    columns["cuts"] = [_cut_columns(name, completions) for name in names]
    return columns | {"words": list(words)}


def _cut_columns(name: str, completions: Sequence[Completion]) -> dict[str, Any]:
    """Returns one segmentation of all completions, null for those that lack it."""
    cuts = [one.cuts.get(name) for one in completions]
    there = [cut for cut in cuts if cut is not None]
    credit = _finite(there, "credit")
    values = _finite(there, "values")
    sizes = np.abs(credit)
    return {
        "name": name,
        "sizes": [None if cut is None else list(cut.sizes) for cut in cuts],
        # Nothing where every piece begins a segment.
        "kinds": [
            list(cut.kinds) if cut is not None and any(kind != BEGINS for kind in cut.kinds) else 0
            for cut in cuts
        ],
        "notes": [cut.note if cut is not None else "" for cut in cuts] if _noted(there) else 0,
        "credit": [_numbers(cut and cut.credit) for cut in cuts] if len(credit) else 0,
        "values": [_numbers(cut and cut.values) for cut in cuts] if len(values) else 0,
        "deepest": _rounded(np.percentile(sizes, _DEEPEST) or sizes.max()) if len(sizes) else 0,
        "range": [_rounded(values.min()), _rounded(values.max())] if len(values) else 0,
    }


def _finite(cuts: Sequence[Cut], name: str) -> Any:
    every = np.array([x for cut in cuts for x in getattr(cut, name)], dtype=np.float64)
    return every[np.isfinite(every)]


def _noted(cuts: Sequence[Cut]) -> bool:
    return any(cut.note for cut in cuts)


def _numbers(values: Sequence[float] | None) -> list[float | None] | int:
    return [_rounded(value) for value in values] if values else 0


def _rounded(value: float | None) -> float | None:
    """Rounds to four digits; None for what is no number, as JSON has it."""
    if value is None or not math.isfinite(value):
        return None
    found = float(f"{value:.4g}")
    return int(found) if found.is_integer() and abs(found) < 1e15 else found


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
