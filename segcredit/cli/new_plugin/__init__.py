"""A new package with one plug-in in it, to begin from: it installs, and its test passes."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from string import Template

from segcredit import registry
from segcredit.atomic_files import unwritten
from segcredit.errors import StudyError

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "plugin.py": "src/$module/__init__.py",
    "test.py": "tests/test_$name.py",
}
"""Each template, and the file that it becomes."""
KINDS = {"segmenter": registry.segmenters, "environment": registry.environments}
"""Kinds of plug-ins that there are templates of, a folder each."""


def write_package(kind: str, name: str, folder: Path | None = None) -> Path:
    """Writes the package of a new plug-in.

    Args:
        kind: one of ``KINDS``.
        name: what it will be registered as.
        folder: the package's folder, which must not exist; None = ``segcredit-NAME``, with dashes,
            in the current one.

    Returns:
        The folder, which appears whole.

    Raises:
        StudyError: the name or the folder cannot be used; says why. Nothing is overwritten.
        RecordError: the folder cannot be written.
    """
    _require_name(kind, name)
    distribution = f"segcredit-{name.replace('_', '-')}"
    target = Path(distribution) if folder is None else folder
    if target.exists():
        raise StudyError(
            f"{target} exists already; expected a folder that is yet to be made, since nothing is"
            " overwritten. Choose another one with --output."
        )
    words = {
        "name": name,
        "class_name": _class_name(name),
        "module": f"segcredit_{name}",
        "distribution": distribution,
    }
    try:
        _write(kind, target, words)
    except OSError as error:
        raise unwritten(target, error) from error
    return target


def _require_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or keyword.iskeyword(_class_name(name)):
        near = "_".join(re.findall("[a-z0-9]+", name.lower())).lstrip("0123456789_")
        article = "an" if kind[0] in "aeiou" else "a"
        usable = _NAME.fullmatch(near) and not keyword.iskeyword(near) and near != name
        raise StudyError(
            f"{article} {kind} cannot be named {name!r}, since a Python package is named after it."
            " Expected lower-case letters, digits and single underscores, a letter first, and no"
            f" word that Python keeps for itself, such as {near if usable else 'my_rule'!r}."
        )
    if name in KINDS[kind].names():
        raise StudyError(
            f"{kind} {name!r} is registered already, and names are unique ('segcredit list'"
            f" shows whose it is). Choose another one, such as {f'my_{name}'!r}."
        )


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _write(kind: str, target: Path, words: dict[str, str]) -> None:
    """Writes every file beside the target first, so that it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp's is closed to others
        templates = resources.files("segcredit").joinpath("cli", "new_plugin", "templates", kind)
        for template, path in _FILES.items():
            text = templates.joinpath(f"{template}.template").read_text(encoding="utf-8")
            file = scratch / Template(path).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), encoding="utf-8")
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
