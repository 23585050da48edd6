"""The process behind a ``JudgeProcess``: it answers one request after the other.

``python -m segcredit.tasks.verifiers.judge_worker DESCRIPTOR``; it may be stopped at any time.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any


def main(descriptor: int) -> None:
    """Answers until the other side closes."""
    connection = Connection(descriptor)
    logging.disable(logging.CRITICAL)
    judge = _made(connection, **connection.recv())
    while judge is not None:
        try:
            request = connection.recv()
        except EOFError:
            return
        _say(connection, _answer(judge, request))


def _made(
    connection: Connection, *, maker: str, options: tuple[Any, ...], path: list[str], memory: int
) -> Callable[..., Any] | None:
    """Makes the judge; tells the other side why where it cannot."""
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.path += [place for place in path if place not in sys.path]
    module, _, name = maker.partition(":")
    try:
        judge = getattr(import_module(module), name)(*options)
    except Exception as error:  # told instead of raised: foreign code may raise anything
        _say(connection, {"refused": f"{type(error).__name__}: {error}"})
        return None
    _say(connection, {"ready": True})
    return judge


def _answer(judge: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return judge(**request)
    except Exception as error:  # told instead of raised, as above
        return {"raised": f"{type(error).__name__}: {error}"}


def _say(connection: Connection, reply: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
