"""Verifiers by name: what decides whether a final answer is the true one."""

from __future__ import annotations

import functools
import re
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from segcredit.errors import TaskError, did_you_mean, require_package
from segcredit.protocols import Prompt, Verdict
from segcredit.tasks.verifiers.judge_process import JudgeProcess

MATH_MEMORY = 2 * 1024**3
_LETTERS = (
    r"(?i:\banswer(?:\s+is)?)\W{0,4}([A-Z])\b(?![a-z'])",
    r"\\boxed\{\W*(?:\\text\{)?\W*([A-Z])\b",
    r"\(([A-Z])\)",
    r"(?m)^\W*([A-Z])(?:[.):\s]|$)",
    r"\b([A-Z])\W*$",
)
"""Patterns by which a text names the letter of its choice, the surest first."""
WRONG = Verdict(reward=0.0, correct=False, answer="")
"""Verdict on a text without an answer."""


class Verifier(Protocol):
    """Judges the text that is left of a completion."""

    @abstractmethod
    def judge(self, prompt: Prompt, text: str) -> Verdict:
        """Returns the reward, whether the text is right, and its answer's spelling for maj@k."""
        ...


@dataclass(frozen=True, slots=True)
class Math(Verifier):
    """Right where the last answer, best in a LaTeX box, is mathematically the true one.

    As math-verify sees it, in a process with a time limit; what takes longer is wrong. Every right
    answer is one vote, however it is written.
    """

    seconds: float
    tolerance: float
    """Relative distance at which a number is right too, such as 0.005 for rounded answers."""

    def judge(self, prompt: Prompt, text: str) -> Verdict:
        """Gives reward 1 where the last answer is equal to the true one.

        Raises:
            MissingPackageError: math-verify is not installed.
        """
        require_package("math_verify", "problems", "verifier 'math'")
        maker = "segcredit.tasks.verifiers.math_answers:comparison"
        process = judge_process(maker, (self.tolerance,), self.seconds, MATH_MEMORY)
        found = process.ask(answer=str(prompt.answer), text=text)
        if (
            found is None or "raised" in found
        ):  # too long, too much, or what the library cannot read
            return WRONG
        right = bool(found["right"])
        answer = str(prompt.answer) if right else str(found["said"])
        return Verdict(reward=float(right), correct=right, answer=answer)


@dataclass(frozen=True, slots=True)
class Exact(Verifier):
    """Right where the text is the true answer, but for white space and capitals."""

    def judge(self, prompt: Prompt, text: str) -> Verdict:
        """Gives reward 1 where the final answer is the true one, letter by letter."""
        said = _plain(text)
        right = said == _plain(str(prompt.answer))
        return Verdict(reward=float(right), correct=right, answer=said)


@dataclass(frozen=True, slots=True)
class Choice(Verifier):
    """Right where the letter that the text chooses is the true one.

    The surest sign counts: "the answer is B" before a box, "(B)", a line that begins "B." or "B)",
    and last a letter that ends the text; of several, the last. A true answer that is a whole number
    counts the letters from 0, as data sets with labels do.
    """

    def judge(self, prompt: Prompt, text: str) -> Verdict:
        """Gives reward 1 where the final answer is the true letter."""
        found = next((all_ for sign in _LETTERS if (all_ := re.findall(sign, text))), [""])
        right = found[-1] == _letter(prompt.answer)
        return Verdict(reward=float(right), correct=right, answer=found[-1])


@dataclass(frozen=True, slots=True)
class Function(Verifier):
    """A user's function of a prompt and a text, in a process of its own with a time limit.

    It returns a bool, a finite reward (right from 1 on) or a Verdict. A text on which it takes too
    long, or which ends its process, has reward 0.
    """

    path: str
    """``module:function``, as Python would import it from the working folder."""
    seconds: float

    def judge(self, prompt: Prompt, text: str) -> Verdict:
        """Returns the verdict of the user's function.

        Raises:
            TaskError: it cannot be imported, raised, or returned something else.
        """
        maker = "segcredit.tasks.verifiers.user_function:verifier"
        found = judge_process(maker, (self.path,), self.seconds).ask(prompt=prompt, text=text)
        if found is None:
            warnings.warn(
                f"the verifier {self.path!r} did not answer within {self.seconds:g} seconds, or its"
                f" process ended, on prompt {prompt.key!r} with the text {text[:80]!r}. The"
                " completion has reward 0; raise task.seconds if it should have had longer.",
                RuntimeWarning,
                stacklevel=2,
            )
            return WRONG
        fault = found.get("raised") or found.get("nonsense")
        if fault:
            raise TaskError(
                f"the verifier {self.path!r} {'raised' if 'raised' in found else 'returned'}"
                f" {fault} on prompt {prompt.key!r}; expected a bool, a finite number or a"
                " segcredit.Verdict for any text. Give what it cannot read a reward of 0."
            )
        return Verdict(**found)


def verifier(name: str, *, seconds: float, tolerance: float = 0.0) -> Verifier:
    """Returns the verifier of a name, or of a ``module:function``.

    Args:
        name: ``math``, ``exact``, ``choice`` or ``module:function``.
        seconds: of its longest answer, where it runs in a process of its own.
        tolerance: of ``math``.

    Raises:
        TaskError: there is no such verifier.
    """
    known: dict[str, Verifier] = {
        "math": Math(seconds, tolerance),
        "exact": Exact(),
        "choice": Choice(),
    }
    if ":" in name:
        return Function(name, seconds)
    if name not in known:
        raise TaskError(
            f"there is no verifier {name!r}{did_you_mean(name, known)} Verifiers are"
            f" {', '.join(known)}, or a function of your own as 'module:function'."
        )
    return known[name]


@functools.lru_cache(maxsize=8)
def judge_process(
    maker: str, options: tuple[Any, ...], seconds: float, memory: int = 0
) -> JudgeProcess:
    """Returns one process for the same judge, kept while the run goes on."""
    return JudgeProcess(maker, options, seconds, memory)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _letter(answer: Any) -> str:
    text = str(answer).strip()
    return chr(ord("A") + int(text)) if text.isdigit() and len(text) == 1 else text.upper()
