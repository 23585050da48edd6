"""Search for run directories below a path."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from segcredit.errors import RecordError, StudyError, did_you_mean, shown
from segcredit.records.manifest import METRICS, STATUS
from segcredit.records.run_directory import ENVIRONMENT, read_status
from segcredit.records.stored_config import CONFIG, read_config

RUNS = Path("runs")
"""Folder that runs are recorded in, unless --output says another."""
_FEW = 8


def find_runs(path: Path) -> Iterator[Path]:
    """Finds run directories at or below ``path``, in the order of their names."""
    for folder, subfolders, files in os.walk(path):
        if is_run(Path(folder), files):
            subfolders.clear()  # nothing below a run is a run, and its tables may be many files
            yield Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def named_path(text: str | Path, other: Iterable[str] = ()) -> Path:
    """Returns the path that a user means: one that exists, or the run whose name begins so.

    Args:
        text: a path, or the beginning of one's last part (``runs/study/0e8``); or that of a run's
            name, by itself (``0e8``) or with folders below ``runs`` (``study/0e8``).
        other: names that could have been meant as well, such as presets, to be told as nearest.

    Raises:
        StudyError: there is none, and the nearest name is told; or several runs are named so.
    """
    if Path(text).exists():
        return Path(text)
    found = runs_beginning(str(text))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(map(str, found[:_FEW]))
        more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
        raise StudyError(
            f"{shown(str(text))} begins the names of {len(found)} runs: {listed}{more}; expected"
            " that of one. Type more of it."
        )
    folder = Path(text).parent
    near = [str(folder / name) for name in os.listdir(folder)] if folder.is_dir() else []
    below = [path.relative_to(RUNS) for path in find_runs(RUNS)]
    names = [*near, *map(str, below), *(path.name for path in below), *other]
    raise StudyError(
        f"{shown(str(text))} is {'no preset, no' if other else 'no'} directory, and begins no run's"
        " name"
        f"{did_you_mean(str(text), names)} Expected a run's directory, one that holds runs, or the"
        " beginning of a run's name: `segcredit runs DIR` lists them."
    )


def runs_beginning(text: str) -> list[Path]:
    """Returns the runs whose names begin so, in the folder that is named or below ``runs``.

    Args:
        text: as in ``named_path``.
    """
    head, slash, name = text.rpartition("/")
    folder = Path(head + slash)
    # Not at any depth below a folder of the user's, which may be all of a disk.
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    near = [path for path in there if path.name.startswith(name) and path.is_dir()]
    below = (path for path in find_runs(RUNS) if _begins(path, text))
    return list(dict.fromkeys([*(path for path in near if is_run(path, os.listdir(path))), *below]))


def _begins(run: Path, text: str) -> bool:
    return run.name.startswith(text) or run.relative_to(RUNS).as_posix().startswith(text)


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
