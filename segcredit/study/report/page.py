"""The page itself: a template, filled, and written where nothing of anyone else's is lost."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segcredit.atomic_files import require_writable, unwritten, write_atomically
from segcredit.errors import StudyError
from segcredit.study.look import browser
from segcredit.study.report.view import Note, Section

MARK = b'<meta name="generator" content="segcredit '
"""Stands near the head of every report, by which one is told from other files."""
_HEAD = 4096


def require_place(output: Path) -> None:
    """Refuses a place where a report would overwrite something that is none.

    Raises:
        StudyError: it is a directory, or a file that no report is.
        RecordError: the file that is there cannot be read.
    """
    if output.is_dir():
        raise StudyError(
            f"{output} is a directory; expected the file that the report is to become. Give"
            f" {output / 'report.html'}, or another file that does not exist yet."
        )
    require_writable(output)
    try:
        if not output.exists():
            return
        with output.open("rb") as file:
            is_report = MARK in file.read(_HEAD)
    except OSError as error:
        raise unwritten(output, error) from error
    if not is_report:
        raise StudyError(
            f"{output} exists and is no report of segcredit; nothing was overwritten. A report"
            " replaces an earlier report only: choose another --output, or move the file away."
        )


def write_page(output: Path, title: str, lead: Sequence[Note], sections: Sequence[Section]) -> None:
    """Writes the page, whole or not at all.

    Raises:
        RecordError: the file cannot be written.
    """
    script = _source("sort.js") + browser.script()
    html = (
        _templates()
        .get_template("page.html")
        .render(
            title=title,
            lead=lead,
            sections=sections,
            version=version("segcredit"),
            style=Markup(_source("page.css") + browser.style()),
            script=Markup(script),
            script_hash=_hash(script),
        )
    )
    write_atomically(output, html.encode("utf-8", errors="replace"))


def _templates() -> Environment:
    """Makes the environment: it escapes all but our own markup, and refuses unknown names."""
    return Environment(
        loader=PackageLoader("segcredit.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Hashes the one script that the page's own policy lets run, should escaping ever fail."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
