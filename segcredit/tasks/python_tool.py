"""A Python interpreter as a tool, for tasks of any kind."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from segcredit.protocols import Environment, Transition
from segcredit.tasks.verifiers.judge_process import JUDGES, JudgeProcess

_LONGEST = 10_000
"""Characters of output at which a call is ended."""
_TAG = re.compile(r"<python>(?!.*<python>)(.*?)</python>\s*\Z", re.DOTALL)
_FENCE = re.compile(r"(?:\A|\n)```python[ \t]*\n(?!.*\n```python)(.*?)\n?```\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PythonTool(Environment):
    r"""Runs the Python code that a turn ends with, and answers with what it prints.

    By default a turn calls by ``<python>print(6 * 7)</python>``, and is answered

        <output>
        42
        </output>

    The value of a last line that is an expression is printed as well; of an error the answer has
    the line that names it. A turn without a call ends the episode, and the task judges its text.
    What is begun like a call and is none is answered by a sentence, and so is code that runs too
    long, takes too much memory, prints too much, or writes files.

    Each call begins anew: names of an earlier one are not there. The same code prints the same
    wherever it reads neither clock nor the system's randomness and does not just reach a limit;
    Python's own ``random`` begins with seed 0. The limits keep slips from doing harm, and are no
    wall against malice.

    Cost: a process for each call, some 2 ms; ``workers`` calls run at once. Linux alone.
    """

    call: Literal["tags", "fence"] = "tags"
    """The form of a call: ``<python>...</python>``, or a block fenced by "```python" and "```",
    which is answered by one fenced by "```output"."""
    max_turns: int = 4  # pyright: ignore[reportIncompatibleMethodOverride]  # frozen, like a property
    """Turns of an episode, at least 2: that of the answer included."""
    turn_tokens: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """Tokens of the longest turn; None = the completion's limit alone."""
    timeout: float = 3.0
    """Seconds that a call may compute; by the clock, four times as many."""
    memory: int = 512
    """MiB that a call may take."""

    def __post_init__(self) -> None:
        ranges = {
            "max_turns": (self.max_turns, 2, 1000),
            "turn_tokens": (1 if self.turn_tokens is None else self.turn_tokens, 1, 10**6),
            "timeout": (self.timeout, 0.01, 3600),
            "memory": (self.memory, 16, 2**20),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise ValueError(f"{name} is {found}; expected a number from {low} to {high}.")

    @property
    def stop(self) -> tuple[str, ...]:
        """The string that ends a call."""
        return ("</python>",) if self.call == "tags" else ("\n```\n",)

    @property
    def workers(self) -> int:
        """The number of cores."""
        return JUDGES

    def step(self, state: object, text: str) -> Transition:
        """Runs the call that the turn ends with; without one the episode is done."""
        begins, form = ("<python>", _TAG) if self.call == "tags" else ("```python", _FENCE)
        if found := form.search(text):
            return Transition(state=state, observation=self._framed(self._run(found[1])))
        if begins in text or text.endswith(self.stop):
            ends = self.stop[0].strip()
            said = f"no call was found; expected {begins}, code and {ends} at the end of the turn"
            return Transition(state=state, observation=self._framed(said))
        return Transition(state=state, done=True)

    def _run(self, code: str) -> str:
        """Returns what code prints, and the line that tells why it ended early."""
        reply = _sandbox(self.timeout, self.memory).ask(source=code)
        if reply is None or "raised" in reply:
            return "the code was ended: it took too long, or too much of the machine"
        output, fault = str(reply["output"]).rstrip("\n"), str(reply["fault"])
        return "\n".join(filter(None, (output, fault))) or "(nothing was printed)"

    def _framed(self, text: str) -> str:
        if self.call == "tags":
            return f"\n<output>\n{text}\n</output>\n"
        return f"```output\n{text}\n```\n"


@functools.lru_cache(maxsize=8)
def _sandbox(timeout: float, memory: int) -> JudgeProcess:
    """Returns the processes that run calls under these limits."""
    maker = "segcredit.tasks.verifiers.python_calls:runner"
    return JudgeProcess(maker, (timeout, memory, _LONGEST), seconds=10 * timeout + 30)
