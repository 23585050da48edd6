"""Loose Python files whose plug-ins register themselves when they are run: ``--code mine.py``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from segcredit.errors import ConfigError


def load_code(files: Sequence[str]) -> None:
    """Imports each file once, under its stem's name.

    Raises:
        ConfigError: a file is missing, or raises while it is run.
    """
    for file in files:
        path = Path(file).resolve()
        name = f"segcredit_code_{path.stem}"
        known = sys.modules.get(name)
        if known is not None and known.__file__ == str(path):
            continue
        _load(path, name)


def _load(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--code {path}: there is no such Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses look their module up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"--code {path} raised {type(error).__name__} while it was loaded: {error}."
        ) from error
