"""Mathematical answers compared by math-verify, in a process of its own with a time limit.

Model text is foreign: an expression may take hours or all memory to simplify, and the library's own
limits are alarms, which work in a main thread alone. What takes too long is not right, and its
process is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import IO, cast

from segcredit.errors import TaskError

_START = 60.0
"""Seconds for the first answer of a new process, which has to import first."""


@dataclass(slots=True, eq=False)
class AnswerChecker:
    """Compares answers; one question at a time, whatever the number of threads.

    Args:
        seconds: of the longest comparison.
        tolerance: relative distance at which a number is right too.
    """

    seconds: float = 3.0
    tolerance: float = 0.0
    _worker: subprocess.Popen[str] | None = None
    _owner: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def right(self, answer: str, text: str) -> bool:
        """Whether the last answer in a text, best in a LaTeX box, is mathematically the given one.

        Raises:
            TaskError: math-verify is not installed, or its process does not start.
        """
        with self._lock:
            said = self._ask(self._running(), answer, text, self.seconds)
            if not said:
                self._stop()
        return said == "true\n"

    def _ask(self, worker: subprocess.Popen[str], answer: str, text: str, seconds: float) -> str:
        """A line; '' where it does not come in time, or the process ended."""
        request = {"answer": answer, "text": text, "tolerance": self.tolerance}
        try:
            print(json.dumps(request), file=worker.stdin, flush=True)
        except BrokenPipeError:
            return ""
        answers = cast(IO[str], worker.stdout)
        ready, _, _ = select.select([answers], [], [], seconds)
        return answers.readline() if ready else ""

    def _running(self) -> subprocess.Popen[str]:
        """The process; a new one after a stop, and in a forked process, whose pipes are shared."""
        if self._worker is None or self._owner != os.getpid():
            self._worker, self._owner = self._started(), os.getpid()
        return self._worker

    def _started(self) -> subprocess.Popen[str]:
        if find_spec("math_verify") is None:
            raise TaskError(
                "the package math-verify is not installed, which compares the answers of this"
                " task. Install it with: pip install 'segcredit[problems]'"
            )
        worker = subprocess.Popen(
            [sys.executable, "-m", "segcredit.tasks.answer_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if not self._ask(worker, "1", "\\boxed{1}", _START):
            worker.kill()
            raise TaskError(
                "the process that compares answers did not answer within a minute of its start"
                f" (status {worker.wait()}); expected a line. Usually the machine has too little"
                " memory left, or math-verify is damaged: run 'python -m"
                " segcredit.tasks.answer_worker' to see."
            )
        return worker

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and self._owner == os.getpid():
            worker.kill()
            with contextlib.suppress(OSError):  # what was not yet written has nowhere to go
                worker.communicate()

    def __del__(self) -> None:
        self._stop()
