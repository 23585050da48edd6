"""The process behind a ``JudgeProcess``: it answers one request after the other.

``python -m segcredit.tasks.verifiers.judge_worker DESCRIPTOR``; it may be stopped at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any


class _OutOfTime(BaseException):
    """The question's CPU time is over; no error, which a library might catch."""


_MARK = 16
"""Bytes before a question, which its reply begins with."""


def main(descriptor: int) -> None:
    """Answers until the other side closes; then nothing that foreign code started goes on."""
    connection = Connection(descriptor)
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(EOFError, OSError):
        question = connection.recv_bytes()
        options = pickle.loads(question[_MARK:])
        cpu_seconds = options.pop("cpu_seconds")
        judge = _made(descriptor, question[:_MARK], **options)
        while judge is not None:
            question = connection.recv_bytes()
            reply = _answer(judge, pickle.loads(question[_MARK:]), cpu_seconds)
            _say(descriptor, question[:_MARK], reply)
    os.killpg(0, signal.SIGKILL)


def _made(
    descriptor: int,
    mark: bytes,
    *,
    maker: str,
    options: tuple[Any, ...],
    path: list[str],
    memory: int,
) -> Callable[..., Any] | None:
    """Makes the judge; tells the other side why where it cannot."""
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    sys.path += [place for place in path if place not in sys.path]
    module, _, name = maker.partition(":")
    try:
        judge = getattr(import_module(module), name)(*options)
    except BaseException as error:  # told instead of raised: foreign code may raise anything
        _say(descriptor, mark, {"refused": f"{type(error).__name__}: {error}"})
        return None
    _say(descriptor, mark, {"ready": True})
    return judge


def _answer(
    judge: Callable[..., Any], request: dict[str, Any], cpu_seconds: float
) -> dict[str, Any]:
    try:
        signal.signal(signal.SIGPROF, _stop)
        # Again and again, where something catches the first.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds, 0.1 if cpu_seconds else 0.0)
        try:
            return judge(**request)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
    except _OutOfTime:
        return {"late": True}
    except BaseException as error:  # told instead of raised, as above; sys.exit too
        return {"raised": f"{type(error).__name__}: {error}"[:2000]}


def _stop(*_: Any) -> None:
    raise _OutOfTime


def _say(descriptor: int, mark: bytes, reply: dict[str, Any]) -> None:
    said = mark + b" " + json.dumps(reply).encode() + b"\n"
    while said:
        said = said[os.write(descriptor, said) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))
