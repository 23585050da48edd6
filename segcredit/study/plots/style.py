"""Style of the figures: sizes, fonts, colours, and what tells groups apart."""

from __future__ import annotations

import re
from typing import Any

import matplotlib

COLUMN, PAGE = 3.3, 6.75
"""Widths in inches: a column and the whole page of a conference's two-column paper."""

PALETTE = ("#00559E", "#C7431A", "#3C9A4C", "#E9B93A", "#47115A", "#C98BE0", "#000000")
"""Seven hues of seven lightnesses, so that they stay apart in grey print and with every kind of
colour blindness: a test simulates both."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
LOOKS = len(_MARKERS) * len(_DASHES)
"""Number of groups that can be told apart: no two share both marker and dashes."""

STYLE: dict[str, Any] = {
    "svg.hashsalt": "segcredit",  # the same runs give the same ids, so the same bytes
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default Type 3 fonts
    "savefig.dpi": 300,
    "font.size": 7.9,  # 'small' is then 6.5 points, the least that is read in print
    "axes.labelsize": "medium",
    "axes.titlesize": "medium",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 8.5,
    "hatch.linewidth": 0.4,
    "legend.fontsize": "small",
    "legend.title_fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markeredgewidth": 0.7,
    "lines.markersize": 3.2,
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
}
"""matplotlib's settings while a figure is drawn, see ``styled``."""

_LABELS = {
    "accuracy_greedy": "accuracy (greedy)",
    "cpu_seconds": "CPU-seconds",
    "entropy": "entropy (nats)",
    "kl": "KL",
    "completion_length": "completion length (tokens)",
}


def styled() -> dict[Any, Any]:
    """Returns the settings of ``STYLE`` without those that the user has set.

    What differs from matplotlib's defaults was set by a style sheet, a ``matplotlibrc`` or the
    program, and holds.
    """
    now: Any = matplotlib.rcParams
    default: Any = matplotlib.rcParamsDefault
    return {name: value for name, value in STYLE.items() if now[name] == default[name]}


def label(metric: str) -> str:
    """Returns a metric's or cost's name on an axis, with its unit where that is not plain."""
    return _LABELS.get(metric, metric.replace("_", " "))


def colour_of(number: int) -> str:
    """Returns the colour of the group of a number: of ``PALETTE``, or of the user's own cycle."""
    cycle: Any = matplotlib.rcParams["axes.prop_cycle"]
    is_users = cycle != matplotlib.rcParamsDefault["axes.prop_cycle"] and "color" in cycle.keys
    colours = cycle.by_key()["color"] if is_users else PALETTE
    return colours[number % len(colours)]


def look(number: int) -> dict[str, Any]:
    """Returns colour, marker and dashes of the group of a number: one of ``LOOKS``.

    Seven markers and colours, filled before they are open, and four kinds of dashes: without
    colour any two groups still differ.
    """
    colour = colour_of(number)
    return {
        "color": colour,
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": colour if number // len(_MARKERS) % 2 == 0 else "white",
        "markeredgecolor": colour,
    }


def letters(inches: float, size: float = 1.0) -> int:
    """Returns how many letters surely fit a width, in the font's size or a share of it."""
    return max(8, int(inches * 72 / (0.56 * size * matplotlib.rcParams["font.size"])))


def wrapped(text: str, width: int) -> str:
    """Breaks text into lines of about ``width`` characters, safe as a label in matplotlib.

    A line ends at a space or, in a long name, after an underscore, a slash, the bracket that opens
    its options, or a dot that is in no number; never beside a sign of equality.
    """
    lines = [""]
    for part in re.split(r"(?<=[\s_/])(?<!=\s)(?!=)|(?<=\w\()|(?<=\.)(?!\d)", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    # A dollar would begin a formula, and a leading underscore would hide a name from the legend.
    joined = "\n".join(line.rstrip() for line in lines).replace("$", r"\$")
    return f" {joined}" if joined.startswith("_") else joined
