"""Recovery of a run directory after a crash, a full disk or a damaged file."""

# pyarrow ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcredit.atomic_files import remove
from segcredit.errors import RecordError
from segcredit.records import checkpoint
from segcredit.records.manifest import METRICS, Manifest, read_manifest
from segcredit.records.run_directory import whole_rows
from segcredit.records.step_tables import STEPS, TABLES, step_of, table_files


def damage(path: Path, steps: int) -> str:
    """Describes the damage of a finished run's files; '' where all of them are whole.

    Args:
        path: the run directory.
        steps: the last step that must have a row.
    """
    last = _last_consecutive(path)
    if last < steps:
        return f"{METRICS} ends at step {last} of {steps}"
    if missing := missing_checkpoint(path, steps):
        return f"{missing.relative_to(path)} is missing"
    try:
        manifest = read_manifest(path)
    except RecordError as error:
        return str(error)
    if manifest is not None:
        faults = ((name, manifest.fault(name)) for name in manifest.files)
        return next((f"{name} {fault}" for name, fault in faults if fault), "")
    files = [path / STEPS, *(file for name in TABLES for file in table_files(path, name, None))]
    broken = next((file for file in files if not _has_end(file)), None)
    return "" if broken is None else f"{broken.relative_to(path)} cannot be read"


def missing_checkpoint(path: Path, steps: int) -> Path | None:
    """Returns the last checkpoint of a finished run where only earlier ones are left, else None.

    A run without any is whole: its checkpoints were deleted to save space.

    Args:
        path: the run directory.
        steps: the last step, after which every run saves one.
    """
    found = checkpoint.found(path / "checkpoints")
    last = checkpoint.file_of(path / "checkpoints", steps)
    return last if found and last not in found else None


def last_good_state(path: Path, checkpoints: Path) -> dict[str, Any] | None:
    """Returns the newest readable checkpoint whose steps are all recorded; None for none.

    Its sharded tensors stay in their files, see ``checkpoint.load``.
    Damaged tables are removed: their steps are run again, and recorded anew.
    """
    trusted = _trusted_step(path)
    for file in reversed(checkpoint.found(checkpoints)):
        try:
            state = checkpoint.load_run(file, whole=False)
        except RecordError as error:
            warnings.warn(f"{error} Going on from before it.", RuntimeWarning, stacklevel=2)
            continue
        if int(state["row"]["step"]) <= trusted:
            return state
    return None


def _trusted_step(path: Path) -> int:
    """Returns the last step up to which every record can be read; -1 for none."""
    last, manifest = _last_consecutive(path), read_manifest(path)
    every = [file for name in TABLES for file in table_files(path, name, manifest)]
    for file in [path / METRICS, *every]:
        if not (fault := _fault(file, manifest)):
            continue
        step = step_of(file)
        said = (
            f"{file} {fault}; usually the disk failed or it was changed by another program. Its"
            " steps are run again, and recorded anew."
        )
        warnings.warn(said, RuntimeWarning, stacklevel=3)
        # A packed table holds every step, as do the metrics.
        last = -1 if step is None else min(last, step - 1)
        if file in every:
            remove([file])
    return last


def _fault(file: Path, manifest: Manifest | None) -> str:
    """Says what is wrong with a file of a run; '' for nothing."""
    if manifest is not None and (name := manifest.name(file)) in manifest.files:
        return manifest.fault(name)
    # A torn line ends the metrics, and nothing more.
    return "" if file.name == METRICS or _is_readable(file) else "cannot be read"


def _last_consecutive(path: Path) -> int:
    """Returns the last step of the rows 0, 1, 2, ... at the head of the metrics; -1 for none."""
    last = -1
    for row in whole_rows(path):
        if row["step"] != last + 1:
            break
        last += 1
    return last


def _has_end(file: Path) -> bool:
    """Tells whether a Parquet file was written to its end, which is all that a crash can spoil."""
    try:
        pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return False
    return True


def _is_readable(file: Path) -> bool:
    """Tells whether every page of a Parquet file is as it was written."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as whole:
            for _ in whole.iter_batches():
                pass
    except (OSError, pa.ArrowException):
        return False
    return True
