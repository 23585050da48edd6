"""Judging foreign text in a process of its own, with a time limit.

Model text may take hours or all memory to simplify, and limits inside a library are alarms, which
work in a main thread alone. What takes too long has no answer, and its process is replaced.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from segcredit.errors import TaskError

_START = 60.0
"""Seconds until a new process, which has to import first, must be ready."""

Reply = Mapping[str, Any]
"""Reply of the judge, plain values as JSON has them; ``{"raised": why}`` where it raised."""


@dataclass(slots=True, eq=False)
class JudgeProcess:
    """A function in a process of its own; one question at a time, however many threads ask."""

    maker: str
    """``module:name`` of what makes the function there: it is called with the options."""
    options: tuple[Any, ...] = ()
    seconds: float = 3.0
    """Seconds of the longest answer."""
    memory: int = 0
    """Bytes of address space; 0 for no limit."""
    _worker: subprocess.Popen[bytes] | None = None
    _connection: Connection | None = None
    _owner: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, **request: Any) -> Reply | None:
        """Returns the function's answer; None where it took too long or its process ended.

        Raises:
            TaskError: the process does not start, or the function cannot be made there.
        """
        with self._lock:
            connection = self._running()
            reply = _asked(connection, request, self.seconds)
            if reply is None:
                self._stop()
        return reply

    def _running(self) -> Connection:
        """Connects to the process, a new one after a stop or a fork, which would share its pipe."""
        if self._connection is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._start()
        return self._connection  # pyright: ignore[reportReturnType]

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        descriptor = theirs.fileno()
        self._connection = ours  # pyright: ignore[reportAttributeAccessIssue]
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "segcredit.tasks.verifiers.judge_worker", str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what foreign code prints belongs to no output of ours
            pass_fds=[descriptor],
        )
        theirs.close()
        first = {
            "maker": self.maker,
            "options": self.options,
            "path": sys.path,
            "memory": self.memory,
        }
        reply = _asked(ours, first, _START)  # pyright: ignore[reportArgumentType]
        if reply is None or "refused" in reply:
            self._stop()
            why = f"it did not answer within {_START:g} seconds, or ended" if reply is None else ""
            raise TaskError(
                f"the process that runs {self._named} cannot start"
                f" ({why or (reply or {})['refused']}); expected a function that can be imported"
                " and called there. Usually the name is misspelt, the module is not on Python's"
                " path, or it fails to import: try it in a Python of its own."
            )

    @property
    def _named(self) -> str:
        return " ".join([self.maker, *map(str, self.options)])

    def _stop(self) -> None:
        worker, connection = self._worker, self._connection
        self._worker = self._connection = None
        if worker is not None and connection is not None and self._owner == os.getpid():
            connection.close()
            worker.kill()
            worker.wait()

    def __del__(self) -> None:
        self._stop()


def _asked(connection: Connection, request: Mapping[str, Any], seconds: float) -> Reply | None:
    """Returns a reply; None where it does not come in time, or the other side has gone."""
    try:
        connection.send(request)
        return json.loads(connection.recv_bytes()) if connection.poll(seconds) else None
    except (EOFError, OSError):
        return None
