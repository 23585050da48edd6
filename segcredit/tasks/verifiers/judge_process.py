"""Judging foreign text in processes of their own, with a time limit.

Model text may take hours or all memory to simplify, and limits inside a library are alarms, which
work in a main thread alone. What takes too long has no answer, and its process is replaced.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segcredit.errors import TaskError

_START = 60.0
"""Seconds until a new process, which has to import first, must be ready."""
_QUICK = 0.25
"""Seconds after which a process that may have to be replaced gets a substitute."""
_LONGEST = 2**24
"""Bytes of the longest reply."""
_REMEMBERED = 10_000
"""Questions without an answer that are remembered."""
JUDGES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
"""Questions that are answered at once: as many as there are cores."""

Reply = Mapping[str, Any]
"""Reply of the judge, plain values as JSON has them; ``{"raised": why}`` where it raised."""


@dataclass(slots=True, eq=False)
class JudgeProcess:
    """A function in processes of its own, as many as threads ask it at once and cores there are."""

    maker: str
    """``module:name`` of what makes the function there: it is called with the options."""
    options: tuple[Any, ...] = ()
    seconds: float = 3.0
    """Seconds of the longest answer, by the clock."""
    cpu_seconds: float = 0.0
    """And by what it computes, which a loaded machine does not change; 0 for no such limit."""
    memory: int = 0
    """Bytes that a process may take; 0 for no limit."""
    _idle: list[_Worker] = field(default_factory=list["_Worker"])
    _places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(JUDGES))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _owner: int = 0
    _starting: bool = False
    """True while a substitute starts."""
    _unanswered: dict[bytes, None] = field(default_factory=dict[bytes, None])

    def ask(self, **request: Any) -> Reply | None:
        """Returns the function's answer; None where it took too long or its process ended.

        A question without an answer is remembered, and has none when it is asked again.

        Raises:
            TaskError: the process does not start, or the function cannot be made there.
        """
        question = pickle.dumps(request)
        self._after_fork()
        if question in self._unanswered:
            return None
        reply = self._answer(question)
        if reply is None:
            with self._lock:
                self._unanswered[question] = None
                if len(self._unanswered) > _REMEMBERED:
                    del self._unanswered[next(iter(self._unanswered))]
        return reply

    def _answer(self, question: bytes) -> Reply | None:
        with self._places:
            worker = self._worker()
            until = time.monotonic() + self.seconds
            worker.send(question)
            reply = worker.reply(min(until, time.monotonic() + _QUICK))
            if reply is None and not worker.has_ended:
                self._prepare_substitute()
                reply = worker.reply(until)
            self._keep(worker, ended=reply is None)
        return None if reply is not None and "late" in reply else reply

    def _keep(self, worker: _Worker, *, ended: bool = False) -> None:
        """Keeps a process that waits for a question, and ends one that does not."""
        with self._lock:
            ended = ended or len(self._idle) > JUDGES
            if not ended:
                self._idle.append(worker)
        if ended:
            worker.stop()

    def _worker(self) -> _Worker:
        """Returns a process that waits for a question: an idle one, or a new one."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._started()
            if not worker.has_ended:
                return worker
            worker.stop()

    def _prepare_substitute(self) -> None:
        with self._lock:
            needed = not self._idle and not self._starting
            self._starting = self._starting or needed
        if needed:
            threading.Thread(target=self._substitute, daemon=True).start()

    def _substitute(self) -> None:
        try:
            self._keep(self._started())
        except TaskError:
            pass  # told where a question needs the process
        finally:
            self._starting = False

    def _started(self) -> _Worker:
        worker = _Worker()
        first = {
            "maker": self.maker,
            "options": self.options,
            "path": sys.path,
            "memory": self.memory,
            "cpu_seconds": self.cpu_seconds,
        }
        worker.send(pickle.dumps(first))
        reply = worker.reply(time.monotonic() + _START)
        if reply is None or "refused" in reply:
            worker.stop()
            why = f"it did not answer within {_START:g} seconds, or ended" if reply is None else ""
            raise TaskError(
                f"the process that runs {self._named} cannot start"
                f" ({why or (reply or {})['refused']}); expected a function that can be imported"
                " and called there. Usually the name is misspelt, the module is not on Python's"
                " path, or it fails to import: try it in a Python of its own."
            )
        return worker

    @property
    def _named(self) -> str:
        return " ".join([self.maker, *map(str, self.options)])

    def _after_fork(self) -> None:
        """Leaves the processes of the process before a fork to it: it shares their pipes."""
        with self._lock:
            if self._owner != os.getpid():
                self._owner, self._idle = os.getpid(), []

    def __del__(self) -> None:
        for worker in self._idle if self._owner == os.getpid() else []:
            worker.stop()


class _Worker:
    """One process, in a group of its own with whatever it starts."""

    def __init__(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        descriptor = theirs.fileno()
        self._connection = ours
        self._mark = secrets.token_hex(8).encode()
        """Bytes before each reply, since foreign code may write to any of its descriptors."""
        self._held = b""
        """Beginning of a reply."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "segcredit.tasks.verifiers.judge_worker", str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what foreign code prints belongs to no output of ours
            pass_fds=[descriptor],
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sets of texts in one order everywhere
        )
        theirs.close()

    @property
    def has_ended(self) -> bool:
        """True where the process is no more."""
        return self._process.poll() is not None

    def send(self, question: bytes) -> None:
        """Asks; of a process that has gone, the reply is None."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(self._mark + question)

    def reply(self, until: float) -> Reply | None:
        """Returns a reply; None where it does not come in time, or the other side has gone."""
        while not self._held.endswith(b"\n"):
            if len(self._held) > _LONGEST or not self._readable(until):
                return None
            self._held += self._chunk() or b"\n"
        (mark, _, reply), self._held = self._held.partition(b" "), b""
        try:
            return json.loads(reply) if mark == self._mark else self.stop()
        except ValueError:
            return self.stop()

    def _readable(self, until: float) -> bool:
        try:
            return self._connection.poll(max(until - time.monotonic(), 0))
        except (EOFError, OSError):
            return False

    def _chunk(self) -> bytes:
        try:
            return os.read(self._connection.fileno(), 2**16)
        except OSError:
            return b""

    def stop(self) -> None:
        """Ends the process, and whatever it has started."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
