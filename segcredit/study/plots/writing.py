"""Figures as files for a paper and as SVG for a page; the same figure gives the same bytes."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any
from xml.dom import minidom

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

_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def save(figure: Figure, path: Path | str, *, outlines: bool = True) -> Path:
    """Writes a figure to a file, whole or not at all; its extension is .pdf, .svg or .png.

    Fonts are embedded as TrueType in PDF. The same figure gives the
    same bytes: no date is stored.

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
    data = _drawn(figure, "svg", outlines=outlines)
    prefix = prefix or f"f{hashlib.sha256(data).hexdigest()[:10]}"
    document = minidom.parseString(data)
    root: Any = document.documentElement
    for name in ("metadata", "style"):
        for element in list(root.getElementsByTagName(name)):
            element.parentNode.removeChild(element)
    _strip(root)
    _rename_ids(root, prefix)
    _describe(root, str(figure.get_label()) or "Figure")
    return root.toxml()


def _drawn(figure: Figure, kind: str, *, outlines: bool) -> bytes:
    buffer = io.BytesIO()
    title = str(figure.get_label())
    named = {"Title": title} if title else {}
    with matplotlib.rc_context({**styled(), "svg.fonttype": "path" if outlines else "none"}):
        figure.savefig(buffer, format=kind, metadata={**_UNDATED[kind], **named})
    return buffer.getvalue()


def _strip(node: Any) -> None:
    """Removes comments and the white space between elements."""
    for child in list(node.childNodes):
        if child.nodeType == child.COMMENT_NODE or (
            child.nodeType == child.TEXT_NODE and not child.data.strip()
        ):
            node.removeChild(child)
        else:
            _strip(child)


def _rename_ids(root: Any, prefix: str) -> None:
    """Puts the prefix before every id and before every reference to one."""
    for element in [root, *root.getElementsByTagName("*")]:
        for name, value in list(element.attributes.items()):
            if name == "id":
                element.setAttribute(name, f"{prefix}-{value}")
            elif name.endswith("href") and value.startswith("#"):
                element.setAttribute(name, f"#{prefix}-{value[1:]}")
            else:
                element.setAttribute(name, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def _describe(root: Any, text: str) -> None:
    """Names the image, and takes over what its style sheet said of all elements of the page."""
    title = root.ownerDocument.createElement("title")
    title.appendChild(root.ownerDocument.createTextNode(text))
    root.insertBefore(title, root.firstChild)
    root.setAttribute("role", "img")
    root.setAttribute("aria-label", text)
    root.setAttribute(
        "style", "stroke-linejoin: round; stroke-linecap: butt; max-width: 100%; height: auto"
    )
