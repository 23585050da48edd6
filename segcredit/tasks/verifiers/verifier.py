"""Verifiers by name: what decides whether a final answer is the true one."""

from __future__ import annotations

import functools
import os
import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from segcredit.errors import TaskError, did_you_mean, require_package
from segcredit.protocols import Prompt, Verdict
from segcredit.tasks.verifiers.answer_extraction import FinalAnswer
from segcredit.tasks.verifiers.choice_answers import gold_letters
from segcredit.tasks.verifiers.judge_process import JudgeProcess

MATH_MEMORY = 2 * 1024**3
WHOLE = FinalAnswer()
WRONG = Verdict(reward=0.0, correct=False, answer="")
"""Verdict on a text without an answer."""


LATE = replace(WRONG, timed_out=True)
"""Verdict on a text that took too long, or ended the process that judged it."""
_CPU_SHARE = 1 / 3
"""Share of a time limit that may be spent on computing, where the judge is ours."""


class Verifier(Protocol):
    """Judges the text that is left of a completion."""

    @abstractmethod
    def judge(self, prompt: Prompt, text: str, final: FinalAnswer = WHOLE) -> Verdict:
        """Returns the reward, whether the text is right, and its answer's spelling for maj@k."""
        ...

    def fault(self, answer: Any) -> str:
        """Tells what is wrong with a true answer; '' for nothing (neutral answer)."""
        return ""


@dataclass(frozen=True, slots=True)
class Math(Verifier):
    """Right where the last answer, best in a LaTeX box, is mathematically the true one.

    As math-verify sees it, in processes with a time limit; what takes longer is wrong. Every right
    answer is one to maj@k, however it is written.
    """

    seconds: float
    tolerance: float
    """Relative distance at which a number is right too, such as 0.005 for rounded answers."""

    def judge(self, prompt: Prompt, text: str, final: FinalAnswer = WHOLE) -> Verdict:
        """Gives reward 1 where the last answer is equal to the true one.

        Raises:
            MissingPackageError: math-verify is not installed.
        """
        require_package("math_verify", "problems", "verifier 'math'")
        options = (self.tolerance, final.place == "answer_line")
        process = _process(final, f"{_HERE}.math_answers:comparison", options, self.seconds)
        found = process.ask(text=text, answers=answers_of(prompt))
        if found is None or "right" not in found:
            # Too long, too much, or what the library cannot read; or no answer.
            return LATE if found is None else WRONG
        right = bool(found["right"])
        answer = answers_of(prompt)[0] if right else str(found["said"])
        return Verdict(reward=float(right), correct=right, answer=answer)


@dataclass(frozen=True, slots=True)
class Exact(Verifier):
    """Right where the text is the true answer, but for white space and capitals."""

    seconds: float

    def judge(self, prompt: Prompt, text: str, final: FinalAnswer = WHOLE) -> Verdict:
        """Gives reward 1 where the final answer is the true one, letter by letter."""
        if final.place != "whole":
            process = _process(final, f"{_HERE}.answer_extraction:identity", (), self.seconds)
            found = process.ask(text=text)
            if found is None:
                return LATE
            text = found.get("text", "")
        said = _plain(text)
        right = bool(said) and said in map(_plain, answers_of(prompt))
        return Verdict(reward=float(right), correct=right, answer=said)


@dataclass(frozen=True, slots=True)
class Choice(Verifier):
    """Right where the letter that the text chooses is the true one; several letters are none.

    The surest sign counts: "the answer is B" before a box, "I choose B", "(B)", a line that begins
    "B." or "B)", and last a letter that ends the text; of several, the last. A true answer may be
    decorated, as "(B)" or "B) 12" are, or be several letters; a whole number counts the letters
    from 0, as data sets with labels do, and is right as a number too.
    """

    seconds: float

    def judge(self, prompt: Prompt, text: str, final: FinalAnswer = WHOLE) -> Verdict:
        """Gives reward 1 where the final answer is the true letter.

        Raises:
            TaskError: the true answer names no letter.
        """
        answers = answers_of(prompt)
        if fault := next((fault for one in answers if (fault := self.fault(one))), ""):
            raise TaskError(f"problem {prompt.key!r} {fault}")
        process = _process(final, f"{_HERE}.choice_answers:letters", (), self.seconds)
        found = process.ask(text=text)
        if found is None:
            return LATE
        golds, said = [*map(gold_letters, answers)], str(found.get("letters", ""))
        right = bool(said) and said in [*golds, *answers]
        said = golds[0] if right else said if len(said) <= max(map(len, golds)) else ""
        return Verdict(reward=float(right), correct=right, answer=said)

    def fault(self, answer: Any) -> str:
        """Tells of a true answer that names no letter."""
        if gold_letters(str(answer)):
            return ""
        return (
            f"has the answer {str(answer)[:60]!r}, which names no letter; expected one such as 'B',"
            " '(B)' or 'B) 12', several such as 'A, C', or a number that counts them from 0."
            " Usually task.answer names the wrong column, or task.verifier is to be 'math' or"
            " 'exact'."
        )


@dataclass(frozen=True, slots=True)
class Function(Verifier):
    """A user's function of a prompt and a text, in processes of its own with a time limit.

    It returns a bool, a finite reward (right from 1 on) or a Verdict. A text on which it takes too
    long, or which ends its process, has reward 0.
    """

    path: str
    """``module:function``, as Python would import it from the working folder."""
    seconds: float

    def judge(self, prompt: Prompt, text: str, final: FinalAnswer = WHOLE) -> Verdict:
        """Returns the verdict of the user's function.

        Raises:
            TaskError: it cannot be imported, raised, or returned something else.
        """
        maker, options = f"{_HERE}.user_function:verifier", (self.path,)
        process = judge_process(
            PLACED, (final.place, maker, options), self.seconds, 0.0, _half_of_memory()
        )
        found = process.ask(text=text, prompt=prompt)
        if found is None:
            warnings.warn(
                f"the verifier {self.path!r} did not answer within {self.seconds:g} seconds, or its"
                f" process ended, on prompt {prompt.key!r} with the text {text[:80]!r}. The"
                " completion has reward 0; raise task.seconds if it should have had longer.",
                RuntimeWarning,
                stacklevel=2,
            )
            return LATE
        if "nothing" in found:
            return WRONG
        fault = found.get("raised") or found.get("nonsense")
        if fault:
            raise TaskError(
                f"the verifier {self.path!r} {'raised' if 'raised' in found else 'returned'}"
                f" {fault} on prompt {prompt.key!r}; expected a bool, a finite number or a"
                " segcredit.Verdict for any text. Give what it cannot read a reward of 0."
            )
        return Verdict(**found)


def answers_of(prompt: Prompt) -> list[str]:
    """Returns the true answers of a prompt, any of which is right; mostly one."""
    answer: Any = prompt.answer
    several = cast("tuple[Any, ...]", answer if isinstance(answer, tuple) else (answer,))
    return [str(one).strip() for one in several]


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
        "exact": Exact(seconds),
        "choice": Choice(seconds),
    }
    if ":" in name:
        return Function(name, seconds)
    if name not in known:
        raise TaskError(
            f"there is no verifier {name!r}{did_you_mean(name, known)} Verifiers are"
            f" {', '.join(known)}, or a function of your own as 'module:function'."
        )
    return known[name]


_HERE = "segcredit.tasks.verifiers"
PLACED = f"{_HERE}.answer_extraction:placed"
"""Maker of a judge that first finds the answer's place."""


def pattern_match(pattern: str, text: str, seconds: float) -> str | None:
    """Returns the last match of a user's pattern; None for none.

    Raises:
        TaskError: it takes too long.
    """
    found = judge_process(f"{_HERE}.answer_extraction:matching", (pattern,), seconds).ask(text=text)
    if found is None:
        raise TaskError(
            f"task.answer_pattern is {pattern!r}, which takes more than {seconds:g} seconds on the"
            f" {len(text)} characters that begin {text[:60]!r}; expected a pattern that is quick on"
            " any text. Usually one repetition stands in another one, such as (a+)+."
        )
    return found["found"]


def _process(
    final: FinalAnswer, maker: str, options: tuple[Any, ...], seconds: float
) -> JudgeProcess:
    """Returns the process of a judge of ours, which first finds the answer's place."""
    options = (final.place, maker, options)
    return judge_process(PLACED, options, seconds, seconds * _CPU_SHARE, MATH_MEMORY)


@functools.lru_cache(maxsize=8)
def judge_process(
    maker: str,
    options: tuple[Any, ...],
    seconds: float,
    cpu_seconds: float = 0.0,
    memory: int = 0,
) -> JudgeProcess:
    """Returns the processes of the same judge, kept while the run goes on."""
    return JudgeProcess(maker, options, seconds, cpu_seconds, memory)


@functools.cache
def _half_of_memory() -> int:
    """Returns half of the machine's memory, in bytes: the most that a user's verifier takes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
