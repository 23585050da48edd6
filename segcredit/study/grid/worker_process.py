"""One worker process of a grid; see ``segcredit.study.grid.process_workers``."""

from __future__ import annotations

import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import torch

from segcredit.study.grid.cells import Cell
from segcredit.study.grid.workers import prepared, work


def main(code: Sequence[str]) -> None:
    """Runs cells from standard input until it ends."""
    # Ctrl-C reaches the whole group of processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cells, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a run prints must not be taken for an answer
    torch.set_num_threads(1)
    fault = prepared(code, pickle.load(cells))
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(cells, waiting), daemon=True).start()
    while True:
        cell = waiting.get()
        with suppress(OSError):
            _print_to(cell)
        pickle.dump(work(cell, fault), answers)
        answers.flush()


def _take(cells: IO[bytes], waiting: queue.SimpleQueue[Cell]) -> None:
    """Takes cells as they come; when there can be no more, the parent and the worker are gone.

    In the midst of a step, too: a run bears being killed, and nobody waits for this one.
    """
    while True:
        try:
            waiting.put(pickle.load(cells))
        except (EOFError, pickle.UnpicklingError):
            os._exit(0)


def _print_to(cell: Cell) -> None:
    """Lets everything that is printed, by libraries and in a crash too, go to the cell's log."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    with (cell.directory / "output.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    faulthandler.enable()


if __name__ == "__main__":
    main(sys.argv[1:])
