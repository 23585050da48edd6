"""Figures as files for a paper and as SVG for a page; the same figure gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.figure import Figure

from segcredit.atomic_files import write_atomically
from segcredit.records.tables import require_known
from segcredit.study.plots.style import styled

_UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
"""Metadata by format: without the time of drawing, the same runs give the same bytes."""

# Text and attributes hold no '<' and no '>' of their own, which matplotlib escapes.
_OUTSIDE = re.compile(r"<metadata.*?</metadata>|<style.*?</style>|<!--.*?-->|(?<=>)\s+(?=<)", re.S)
"""Parts that an SVG inside a page does without."""
_TAG = re.compile(r"<[^>]+>")
_ID = re.compile(r'(\sid="|href="#|url\(#)')
"""Marks before an id or a reference to one."""
_HASHED = re.compile(rf'(?:{_ID.pattern})([A-Za-z][0-9a-f]{{10}})(?=["\)])')
"""Ids that matplotlib derives from coordinates, before they are rounded as those drawn are."""


def save(figure: Figure, path: Path | str, *, outlines: bool = True) -> Path:
    """Writes a figure to a file, whole or not at all; its extension is .pdf, .svg or .png.

    Fonts are embedded as TrueType in PDF. The same figure gives the same bytes: no date is stored.

    Args:
        figure: as the functions of this package return it, or any other of matplotlib's.
        path: the file; its folder is made where it is missing.
        outlines: of SVG alone, as in ``as_svg``.

    Returns:
        The path written.

    Raises:
        StudyError: the extension is none of the three.
        RecordError: the file cannot be written.
    """
    path = Path(path)
    kind = require_figure_format(path)
    write_atomically(path, _drawn(figure, kind, outlines=outlines))
    return path


def require_figure_format(path: Path) -> str:
    """Returns the format that a file's extension names.

    Raises:
        StudyError: it is none of pdf, svg and png.
    """
    kind = path.suffix.removeprefix(".").lower()
    require_known("figure format", [kind], _UNDATED)
    return kind


def as_svg(figure: Figure, *, prefix: str | None = None, outlines: bool = True) -> str:
    """Returns a figure as an ``<svg>`` element to put into an HTML page.

    Its ids are its own, its style stays inside it, it names itself to those who do not see it (a
    ``<title>``, from the figure's label), it shrinks with the page, and it asks for nothing from
    outside.

    Args:
        figure: as the functions of this package return it.
        prefix: what its ids begin with. By default it follows from the content, so that figures
            that differ never clash; give one where a page shows the same figure twice.
        outlines: whether letters are drawn, and look the same everywhere; else they are text, to be
            found and copied, in the reader's nearest font.

    Returns:
        One line of text without XML declaration, doctype, metadata and comments.
    """
    text = _drawn(figure, "svg", outlines=outlines).decode()
    prefix = prefix or f"f{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    text = _OUTSIDE.sub("", text[text.index("<svg") :])
    # What style sheet said of all elements of the page, the element says of its own.
    style = "stroke-linejoin: round; stroke-linecap: butt; max-width: 100%; height: auto"
    named = escape(_title(figure), {'"': "&quot;"})
    head = f'<svg role="img" aria-label="{named}" style="{style}"'
    return head + _TAG.sub(lambda tag: _ID.sub(rf"\g<1>{prefix}-", tag[0]), text)[len("<svg") :]


def _drawn(figure: Figure, kind: str, *, outlines: bool) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({**styled(), "svg.fonttype": "path" if outlines else "none"}):
        figure.savefig(buffer, format=kind, metadata={**_UNDATED[kind], "Title": _title(figure)})
    return buffer.getvalue() if kind != "svg" else _numbered(buffer.getvalue().decode()).encode()


def _numbered(svg: str) -> str:
    """Numbers matplotlib's ids as they come: the layout's last bits vary from call to call."""
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return found[1] + numbers.setdefault(found[2], f"{found[2][0]}{len(numbers)}")

    return _HASHED.sub(number, svg)


def _title(figure: Figure) -> str:
    """Returns what names a figure to those who do not see it."""
    return str(figure.get_label()) or "Figure"
