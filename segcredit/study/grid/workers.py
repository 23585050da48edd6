"""Interface of the workers that run a grid's cells, in processes or on Ray."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from segcredit.errors import BusyError, RecordError, SegcreditError, StorageError
from segcredit.records.run_directory import RunRecords
from segcredit.records.run_lock import run_lock
from segcredit.register import load_code, take_over
from segcredit.study.grid.cells import Cell
from segcredit.training.build import environment
from segcredit.training.loop import train


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a worker's work on a cell; how the run itself ended is in its status."""

    kind: Literal["ended", "stopped", "busy", "lost"]
    """``stopped``: by the disk, so that the others would be as well. ``busy``: another process has
    the cell. ``lost``: the worker was killed."""
    note: str = ""
    """Sentence on the end; '' where there is nothing to say."""


class Workers(AbstractContextManager["Workers"], Protocol):
    """Several cells at a time; leaving the context ends every worker."""

    def free(self) -> bool:
        """Tells whether one more cell can be started now."""
        ...

    def start(self, cell: Cell) -> None:
        """Hands a cell to a free worker."""
        ...

    def wait(self, timeout: float) -> Sequence[tuple[Cell, Outcome]]:
        """Waits for cells to end; returns none when ``timeout`` seconds passed without one."""
        ...


def prepared(code: Sequence[str], plugins: bytes) -> SegcreditError | None:
    """Loads plug-in files, and the plug-ins of the process that started the grid.

    Args:
        code: Python files.
        plugins: as ``segcredit.register.carried`` gives them.

    Returns:
        What was wrong with them, from which every cell fails.
    """
    try:
        load_code(code)
        take_over(plugins)
    except SegcreditError as error:
        return error
    return None


def work(cell: Cell, fault: SegcreditError | None) -> Outcome:
    """Runs one cell, from its checkpoint where it has one; what stops it is in its status."""
    try:
        if fault is not None:
            raise fault
        train(cell.config, cell.directory, resume=True)
    except BusyError as error:
        return Outcome("busy", note=str(error))
    except StorageError as error:
        return Outcome("stopped", note=str(error))
    except Exception as error:
        record_failure(cell, error)
    return Outcome("ended")


def record_failure(cell: Cell, error: Exception) -> None:
    """Records failures from before the run began, which the loop could not record itself."""
    if cell.state() == "failed":
        return
    found: dict[str, Any] = {}  # where a plug-in is not known here, nor is its code
    with suppress(SegcreditError):
        found = environment(cell.config)
    with suppress(RecordError), run_lock(cell.directory):
        records = RunRecords.create(
            cell.directory, cell.config.identity(), found, cell.config.carriers()
        )
        trace = "".join(traceback.format_exception(error))
        records.fail(type(error).__name__, str(error), trace)
