"""Search for run directories below a path."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from segcredit.errors import RecordError
from segcredit.records.manifest import METRICS, STATUS
from segcredit.records.run_directory import ENVIRONMENT, read_status
from segcredit.records.stored_config import CONFIG, read_config


def find_runs(path: Path) -> Iterator[Path]:
    """Finds run directories at or below ``path``, in the order of their names."""
    for folder, subfolders, files in os.walk(path):
        if is_run(Path(folder), files):
            subfolders.clear()  # nothing below a run is a run, and its tables may be many files
            yield Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def is_run(directory: Path, files: Collection[str]) -> bool:
    """Tells whether a directory with these files holds a run, be it a damaged one.

    A run is made in the order config, environment, status, metrics: before the status it is half
    made, and no run. Where three of them are there they are ours, readable or not; a config and a
    status alone may be those of another program, unless they can be read as ours.
    """
    if ENVIRONMENT in files and (STATUS in files or METRICS in files):
        return True
    return CONFIG in files and STATUS in files and _is_readable(directory)


def _is_readable(directory: Path) -> bool:
    try:
        read_config(directory)
        read_status(directory)
    except RecordError:
        return False
    return True
