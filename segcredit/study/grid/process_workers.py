"""Workers that are processes of this machine, one torch thread each.

A worker is a Python of its own (``python -m segcredit.study.grid.worker_process``) that takes
cells from its standard input and answers on its standard output. When this process ends, however
it ends, the workers' inputs end and they stop at once; when a worker is killed, its output ends
and the cell counts as lost. What a run itself prints goes to ``output.log`` in its directory.
"""

from __future__ import annotations

import os
import pickle
import selectors
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, cast, final

from segcredit.register import carried
from segcredit.study.grid.cells import Cell
from segcredit.study.grid.workers import Outcome

_PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


@final
class ProcessWorkers:
    """Worker processes, as many as asked for, each started when it is first needed.

    Args:
        count: processes, at least 1.
        code: Python files that register plug-ins, loaded by every worker.

    Raises:
        RegistryError: a plug-in of this session cannot be carried over to the workers.
    """

    def __init__(self, count: int, code: Sequence[str] = ()) -> None:
        self._count = count
        self._plugins = carried()
        self._code = tuple(code)
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: dict[subprocess.Popen[bytes], Cell] = {}
        self._outputs = selectors.DefaultSelector()

    def __enter__(self) -> ProcessWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._busy:
            worker.terminate()
        for worker in [*self._idle, *self._busy]:
            _end(worker)
        self._outputs.close()

    def free(self) -> bool:
        """Tells whether one more cell can be started now."""
        return len(self._busy) < self._count

    def start(self, cell: Cell) -> None:
        """Hands a cell to a free worker."""
        while self._idle:
            worker = self._idle.pop()
            if _sent(worker, cell):
                break
            _end(worker)  # killed while it had nothing to do
        else:
            worker = self._new()
            _sent(worker, cell)
        self._busy[worker] = cell
        self._outputs.register(_output(worker), selectors.EVENT_READ, worker)

    def wait(self, timeout: float) -> Sequence[tuple[Cell, Outcome]]:
        """Waits for cells to end; returns none when ``timeout`` seconds passed without one."""
        ready = self._outputs.select(timeout)
        return [self._ended(key.data) for key, _ in ready]

    def _ended(self, worker: subprocess.Popen[bytes]) -> tuple[Cell, Outcome]:
        self._outputs.unregister(_output(worker))
        cell = self._busy.pop(worker)
        try:
            outcome = cast(Outcome, pickle.load(_output(worker)))
        except (EOFError, pickle.UnpicklingError):
            worker.wait()
            _end(worker)
            return cell, Outcome("lost", note=_last_words(worker.returncode))
        self._idle.append(worker)
        return cell, outcome

    def _new(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "segcredit.study.grid.worker_process", *self._code]
        # Read by OpenMP when a worker imports torch, hence set before it starts.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        _sent(worker, self._plugins)
        return worker


def _output(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", worker.stdout)


def _sent(worker: subprocess.Popen[bytes], what: Cell | bytes) -> bool:
    """Tells whether a worker lives to take a cell; ``wait`` sees one that dies a moment later."""
    stream: Any = worker.stdin
    try:
        pickle.dump(what, stream)
        stream.flush()
    except BrokenPipeError:
        return False
    return True


def _end(worker: subprocess.Popen[bytes]) -> None:
    for stream in (worker.stdin, worker.stdout):
        with suppress(BrokenPipeError):  # what it was to be told no longer matters
            cast("IO[bytes]", stream).close()
    try:
        worker.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _last_words(code: int) -> str:
    if code == -9:
        return "its worker was killed (signal 9), usually because memory ran out."
    how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
    return f"its worker ended {how}; output.log in the run's directory may say why."
