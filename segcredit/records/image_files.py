"""The images of a run: each once, in a file that is named by its content.

    images/    9f86d081884c7d659a2feaa0c55ad015.png, ...

The column ``images`` of ``.completions`` names them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from segcredit.atomic_files import remove_temporaries, require_file, write_atomically
from segcredit.errors import RecordError

_FOLDER = "images"
_BEGINNINGS = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpeg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"RIFF": "webp",
}
"""First bytes of a file of each kind."""


def image_kind(content: bytes) -> str:
    """Returns an image file's kind if browsers show it, as in ``image/png``; '' for any other."""
    kinds = (kind for start, kind in _BEGINNINGS.items() if content.startswith(start))
    return next(kinds, "")


def image_name(content: bytes) -> str:
    """Returns the name of an image's file: the same for the same content, in every run."""
    return f"{hashlib.sha256(content).hexdigest()[:32]}.{image_kind(content) or 'image'}"


def write_image(path: Path, content: bytes) -> None:
    """Writes an image into the run directory ``path``, unless it is there already.

    Raises:
        StorageError: the file cannot be written.
    """
    file = path / _FOLDER / image_name(content)
    if not file.exists() or file.stat().st_size != len(content):
        write_atomically(file, content)


def read_image(path: Path, name: str) -> bytes:
    """Reads an image of the run in ``path``.

    Args:
        path: the run directory.
        name: as ``image_name`` gave it.

    Raises:
        RecordError: there is no such file, or its content is not what it is named by.
    """
    file = path / _FOLDER / Path(name).name
    try:
        content = require_file(file).read_bytes()
    except OSError as error:
        raise RecordError(
            f"The image {file} cannot be read ({error.strerror}); expected what the run recorded."
            " Usually the run was copied without its images: copy that folder as well."
        ) from error
    if image_name(content) != name:
        raise RecordError(
            f"The image {file} is not what was recorded: its content does not have its name."
            " Usually the disk failed or another program changed it: take it from a copy."
        )
    return content


def remove_unfinished_images(path: Path) -> None:
    """Removes what a process that was killed left half-written among the images of a run.

    Images themselves stay, those of steps that are to run again too: these will show them anew.

    Raises:
        StorageError: a file cannot be removed.
    """
    remove_temporaries(path / _FOLDER)
