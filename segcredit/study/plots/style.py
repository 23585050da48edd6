"""Style of the figures: sizes, fonts, and what tells groups apart."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from typing import Any

COLUMN, PAGE = 3.3, 6.75
"""Widths in inches: a column and the whole page of a conference's two-column paper."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, told apart with every kind of colour blindness; without the yellow,
which is faint on white."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
LOOKS = len(_MARKERS) * len(_DASHES)
"""Number of groups that can be told apart: no two share both marker and dashes."""

NOTE_SIZE = 6.5
"""Size of the smallest text, in points; what is smaller is not read in print."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "segcredit",  # the same runs give the same ids, so the same bytes
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default Type 3 fonts
    "savefig.bbox": None,  # 'tight' would change the width
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "hatch.linewidth": 0.4,
}
"""matplotlib's settings while a figure is drawn. What is not named here, such as the font's family,
follows its own settings, so that a figure can be set in the paper's font."""

_LABELS = {
    "accuracy_greedy": "accuracy (greedy)",
    "cpu_seconds": "CPU-seconds",
    "entropy": "entropy (nats)",
    "kl": "KL",
    "completion_length": "completion length (tokens)",
}


def label(metric: str) -> str:
    """Returns a metric's or cost's name on an axis, with its unit where that is not plain."""
    return _LABELS.get(metric, metric.replace("_", " "))


def look(number: int) -> dict[str, Any]:
    """Returns colour, marker and dashes of the group of a number: one of ``LOOKS``.

    Seven markers and colours, filled before they are open, and four kinds of dashes: without
    colour any two groups still differ.
    """
    colour = PALETTE[number % len(PALETTE)]
    filled = number // len(_MARKERS) % 2 == 0
    return {
        "color": colour,
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": colour if filled else "white",
        "markeredgecolor": colour,
        "markersize": 3.2,
        "markeredgewidth": 0.7,
        "linewidth": 1.2,
    }


def wrapped(text: str, width: int) -> str:
    """Breaks text into lines of about ``width`` characters, safe as a label in matplotlib.

    A line ends at a space or, in a long name, after an underscore, a slash, the bracket that opens
    its options, or a dot that is in no number.
    """
    lines = [""]
    for part in re.split(r"(?<=[\s_/])|(?<=\w\()|(?<=\.)(?!\d)", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    # A dollar would begin a formula, and a leading underscore would hide a name from the legend.
    joined = "\n".join(line.rstrip() for line in lines).replace("$", r"\$")
    return f" {joined}" if joined.startswith("_") else joined
