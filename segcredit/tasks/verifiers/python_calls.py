"""Runs a policy's Python code; runs in a ``JudgeProcess``, each call in a process of its own."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_WAIT = 4.0
"""Seconds by the clock for each second that may be computed, for code that sleeps."""
_MIB = 2**20
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = ("os.", "shutil.", "socket.", "subprocess.", "pty.", "signal.", "syslog.")
"""Beginnings of the audit events that code may not raise: what reaches out of its process."""
_ALLOWED = frozenset(
    {f"os.{name}" for name in ("listdir", "scandir", "walk", "putenv", "unsetenv")}
)
"""Events of them that imports raise."""


def runner(seconds: float, memory: int, longest: int) -> Callable[..., dict[str, Any]]:
    """Returns a function of code: what it prints, and why it ended early, if it did.

    Args:
        seconds: of the longest call, as computed.
        memory: MiB that a call may take beyond what Python takes.
        longest: characters of output, at which a call is ended.
    """

    def run(source: str) -> dict[str, Any]:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _run(source, theirs, seconds, memory)
        os.close(theirs)
        said, ended = _read(ours, time.monotonic() + _WAIT * seconds, 4 * longest)
        os.close(ours)
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output = said.decode(errors="replace")
        if len(output) > longest or len(said) >= 4 * longest:
            fault = f"OutputError: it printed more than {longest:,} characters"
            return {"output": output[:longest], "fault": fault}
        if not ended or code == -signal.SIGPROF:
            # Without its output, which another time ends elsewhere.
            return {"output": "", "fault": f"TimeoutError: it ran longer than {seconds:g} s"}
        return {"output": output, "fault": f"it was ended by signal {-code}" * (code < 0)}

    return run


def _read(descriptor: int, until: float, most: int) -> tuple[bytes, bool]:
    """Returns what comes until a time, and whether the other side has closed."""
    said = b""
    while len(said) < most:
        if not select.select([descriptor], [], [], max(until - time.monotonic(), 0))[0]:
            return said, False
        chunk = os.read(descriptor, 2**16)
        if not chunk:
            return said, True
        said += chunk
    return said[:most], False


def _run(source: str, descriptor: int, seconds: float, memory: int) -> NoReturn:
    """Runs code in this process, which then ends; its output goes to the descriptor."""
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.closerange(3, 1024)  # the judge's own line, above all
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        most = _taken() + memory * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = sys.stdout
        random.seed(0)
        sys.addaudithook(_audit)
        _evaluate(source)
    except SystemExit:
        pass
    except MemoryError:
        print(f"MemoryError: it took more than {memory} MiB")
    except BaseException as error:
        with contextlib.suppress(BaseException):
            print(traceback.format_exception_only(error)[-1].splitlines()[0])
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(0)


def _evaluate(source: str) -> None:
    """Runs code, and prints the value of its last line as an interpreter does."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(tree, "<python>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<python>", "eval"), names)
        if value is not None:
            print(repr(value))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Raises a PermissionError where code reaches out of its process.

    It keeps slips of a policy from doing harm, and is no wall against malice.
    """
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if writes or (event.startswith(_FORBIDDEN) and event not in _ALLOWED):
        what = "writing files" if writes else event
        raise PermissionError(f"{what} is not allowed here")


def _taken() -> int:
    """Returns the bytes of address space that this process takes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
