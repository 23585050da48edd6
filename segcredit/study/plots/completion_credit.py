"""One completion: its true value, its segments, and the credit of its tokens beside the truth.

Letters: ``T`` tokens, ``E`` = T + 1 states (before each token, and the end), ``H`` splits of the
truth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from segcredit.errors import StudyError
from segcredit.records.tables import require_known
from segcredit.study.plots.sheet import Canvas, sheet
from segcredit.study.plots.style import LOOKS, PAGE, look, wrapped

Floats = NDArray[np.float64]

_MOST_LETTERS = 12
"""Most characters of a token along the axis; the rest is '…'."""
_SIGNS = {"\n": "↵", "\r": "↵", "\t": "⇥"}
_PITCH = 6.5
"""Points that a token's label takes along the axis: from the highest to the lowest ink."""
_SHADES = ("0.55", "0.82")
"""Greys of segments, by turns."""
_NAME_LETTERS = 16
"""In a line of a strip's name."""
_MARKS = 6
"""About how many markers a line of credit carries."""
_ERRORS = 1.96
"""Standard errors to each side of the value."""


def completion_credit(
    tokens: Sequence[str],
    values_HE: ArrayLike,
    errors_HE: ArrayLike,
    segments: Mapping[str, ArrayLike],
    credit: Mapping[str, Mapping[str, ArrayLike]],
    *,
    title: str = "",
    normalised: bool = False,
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws the true value along one completion, each segmenter's cuts, and each method's credit.

    Above, the value of every state (the one before each token, and the end): the mean of the
    splits, with a band of ±1.96 standard errors of that mean. Below it a strip a segmenter, its
    segments in two shades by turns. Then a panel for each segmenter in ``credit``: the true
    advantage of each token, V after it less V before it, as bars, and credits as stepped lines.

    The whole completion is drawn. Its tokens stand along the axis as far as there is room, about 60
    of them on a page; of a longer completion every second, third, ... does. To look at a part more
    closely, give the arrays of that part.

    Args:
        tokens: (T) text of each token; '' for special ones, whose label is blank. A newline is ↵,
            a tab ⇥, white space alone ␣.
        values_HE: (H,E) V in independent splits, in reward units.
        errors_HE: (H,E) standard errors of one split's V; 0 where V is exact, NaN where unknown.
        segments: (T) segment ids by segmenter; −1 for none.
        credit: (T) advantages of the tokens by segmenter, then by any name, such as
            "monte_carlo, td"; a name looks alike in all panels. Empty for none.
        title: above the figure.
        normalised: divide each credit, and the truth, by its own root mean square over this
            completion: for credit in other units, such as that scaled by a group's spread. By
            default all are in reward units, and on one scale.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: there is no token; an array does not fit; a segmenter of ``credit`` is not one
            of ``segments``; or there are more credits than can be told apart.
    """
    values_E, errors_E = _mean(tokens, values_HE, errors_HE)
    ids = {name: _fitting(name, x, len(tokens)) for name, x in segments.items()}
    require_known("segmenter among the segments", credit, ids)
    given = {
        name: {who: _fitting(f"{name}, {who}", x, len(tokens)) for who, x in by_name.items()}
        for name, by_name in credit.items()
    }
    looks = {name: n for n, name in enumerate(dict.fromkeys(itertools.chain(*given.values())))}
    if len(looks) > LOOKS:
        raise StudyError(
            f"There are {len(looks)} credits; expected at most {LOOKS}, which can be told apart."
            " Draw fewer: four in a panel are as many as are easily read."
        )
    lines = max((wrapped(name, _NAME_LETTERS).count("\n") + 1 for name in ids), default=0)
    strips = [len(ids) * (0.11 * lines + 0.04)] if ids else []
    heights = [1.25, *strips, *(0.62 for _ in given)]
    named = title or "Credit along one completion"
    with sheet(width, sum(heights) + 0.75, named, figure=figure) as page:
        panes = page.panels(len(heights), sharex=True, height_ratios=heights)
        _draw_values(panes[0], values_E, errors_E)
        if ids:
            _draw_strips(panes[1], ids)
        _draw_credit(panes[1 + len(strips) :], np.diff(values_E), given, looks, normalised)
        for axes in panes[:-1]:
            axes.tick_params(axis="x", length=0, labelbottom=False)
        every = _label_tokens(page.figure, panes[-1], tokens)
        note = _note(tokens, len(np.asarray(values_HE)), every, ids, given, normalised)
        names = {number: name for name, number in looks.items()}
        page.finish(title, note, names, beside=False)
    return page.figure


def shown_token(text: str) -> str:
    """Returns a token along an axis: white space as a visible sign, shortened where it is long."""
    if text and not text.strip(" "):
        return "␣" * min(len(text), 3)
    signs = "".join(_SIGNS.get(letter, letter) for letter in text)
    printed = "".join(letter if letter.isprintable() else "�" for letter in signs).strip()
    return printed if len(printed) <= _MOST_LETTERS else f"{printed[: _MOST_LETTERS - 1]}…"


def _mean(
    tokens: Sequence[str], values_HE: ArrayLike, errors_HE: ArrayLike
) -> tuple[Floats, Floats]:
    """Computes (E,) the mean of the two splits, and its standard error."""
    if not tokens:
        raise StudyError("The completion has no tokens; expected at least one to draw.")
    found = {"values": values_HE, "errors": errors_HE}
    arrays = {name: np.asarray(x, dtype=np.float64) for name, x in found.items()}
    for name, x in arrays.items():
        if x.ndim != 2 or x.shape[1] != len(tokens) + 1 or not len(x):
            raise StudyError(
                f"The {name} have shape {x.shape}; expected (splits, {len(tokens) + 1}), one before"
                f" each of the {len(tokens)} tokens and one at the end. Usually they are still"
                " padded: cut them at the completion's end."
            )
    values_E, splits = arrays["values"].mean(0), len(arrays["errors"])
    return values_E, np.sqrt((arrays["errors"] ** 2).sum(0)) / splits


def _fitting(name: str, array: ArrayLike, count: int) -> NDArray[Any]:
    x_T = np.asarray(array)
    if x_T.shape != (count,):
        raise StudyError(
            f"{name} has shape {x_T.shape}; expected ({count},), one entry for each token. Usually"
            " it is still padded: cut it at the completion's end."
        )
    return x_T


def _draw_values(axes: Axes, values_E: Floats, errors_E: Floats) -> None:
    places_E = np.arange(len(values_E))
    band: Any = {"color": "0.78", "linewidth": 0, "label": "_band"}
    away_E = _ERRORS * errors_E
    axes.fill_between(places_E, values_E - away_E, values_E + away_E, **band)
    size = 2.2 if len(values_E) <= 80 else 0.0
    line: Any = {"color": "black", "linewidth": 1, "markersize": size, "label": "_value"}
    axes.plot(places_E, values_E, "o-", **line, clip_on=False)
    axes.set_ylabel("true value", size="small")
    axes.set_xlim(0, len(values_E) - 1)


def _draw_strips(axes: Axes, ids: Mapping[str, NDArray[Any]]) -> None:
    """Draws a strip a segmenter, from above; what belongs to no segment stays blank."""
    for row, ids_T in enumerate(ids.values()):
        edges = [*np.flatnonzero(np.diff(ids_T, prepend=ids_T[0] - 1)).tolist(), len(ids_T)]
        pieces = [pair for pair in itertools.pairwise(edges) if ids_T[pair[0]] >= 0]
        shades = [_SHADES[int(ids_T[start]) % 2] for start, _ in pieces]
        look: Any = {"facecolors": shades, "linewidth": 0, "label": "_segments"}
        axes.broken_barh([(start, end - start) for start, end in pieces], (row - 0.4, 0.8), **look)
    axes.set_ylim(len(ids) - 0.5, -0.5)
    axes.set_yticks(range(len(ids)), [wrapped(name, _NAME_LETTERS) for name in ids], size="small")
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)


def _draw_credit(
    rows: Sequence[Axes],
    truth_T: Floats,
    given: Mapping[str, Mapping[str, NDArray[Any]]],
    looks: Mapping[str, int],
    normalised: bool,
) -> None:
    """Draws a panel a segmenter, all of one scale."""
    edges = np.arange(len(truth_T) + 1)
    true_T = _scaled(truth_T, normalised)
    extremes = [0.0, true_T.min(), true_T.max()]
    for axes, (segmenter, credits) in zip(rows, given.items(), strict=True):
        bars: Any = {"fill": True, "color": "0.72", "label": "_truth"}
        axes.stairs(true_T, edges, **bars)
        axes.axhline(0.0, color="0.4", linewidth=0.5, label="_mark")
        for name, x_T in credits.items():
            credit_T = _scaled(x_T.astype(np.float64), normalised)
            extremes += [credit_T.min(), credit_T.max()]
            shift = looks[name] / 5 % 1 / _MARKS
            line: Any = look(looks[name]) | {"linewidth": 1.1}
            line |= {"markevery": (shift, 1 / _MARKS), "drawstyle": "steps-post"}
            axes.plot(edges, np.append(credit_T, credit_T[-1]), **line, label="_credit")
        axes.set_title(wrapped(segmenter, 80), loc="left", size="small", pad=2)
        axes.yaxis.set_major_locator(MaxNLocator(3))
    margin = 0.05 * (max(extremes) - min(extremes)) or 0.5
    for axes in rows:
        axes.set_ylim(min(extremes) - margin, max(extremes) + margin)
    if rows:
        said = "advantage over its r.m.s." if normalised else "advantage"
        rows[len(rows) // 2].set_ylabel(said, size="small")


def _scaled(x_T: Floats, normalised: bool) -> Floats:
    """Returns values as they are, or over their root mean square; zeros stay zeros."""
    return x_T / (np.sqrt(np.mean(x_T**2)) or 1.0) if normalised else x_T


def _label_tokens(figure: Figure, axes: Axes, tokens: Sequence[str]) -> int:
    """Writes every n-th token below its place, as many as fit; returns n."""
    figure.draw_without_rendering()  # sets how wide the axes are, beside the names
    room = axes.get_window_extent().width / figure.dpi * 72
    every = max(1, math.ceil(len(tokens) * _PITCH / room))
    labelled = range(0, len(tokens), every)
    names = [shown_token(tokens[number]).replace("$", r"\$") for number in labelled]
    upright = max(map(len, names)) <= 1
    places = [number + 0.5 for number in labelled]
    axes.set_xticks(places, names, rotation=0 if upright else 90, size="small")
    axes.tick_params(axis="x", length=1.5, pad=1.5)
    return every


def _note(
    tokens: Sequence[str], splits: int, every: int, strips: object, credit: object, normalised: bool
) -> str:
    """Returns the sentence below the figure."""
    parts = [f"Above: mean of the truth's {splits} parts, and ±{_ERRORS} standard errors of it"]
    parts += ["strips: segments, in two shades by turns"] if strips else []
    scale = "each over its root mean square" if normalised else "all in reward units on one scale"
    if credit:
        parts += [f"bars: true advantage, lines: credit, {scale}"]
    parts += [f"one token in {every} is named"] if every > 1 else []
    letters = set("".join(tokens))
    parts += ["↵: newline"] if letters & {"\n", "\r"} else []
    parts += ["⇥: tab"] if "\t" in letters else []
    return "; ".join(parts) + "."
