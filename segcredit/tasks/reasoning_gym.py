"""Problems of reasoning-gym: any of its generators, endless, with its own verifier."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Interval

from segcredit.errors import TaskError, did_you_mean, require_package
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.tasks.data.prompt_templates import Layout, Shot, columns_of, filled
from segcredit.tasks.verifiers.answer_extraction import FinalAnswer
from segcredit.tasks.verifiers.judge_process import JUDGES
from segcredit.tasks.verifiers.verifier import LATE, PLACED, WRONG, judge_process

_EVALUATION = range(1_000_000)
"""Numbers of problems; the generators draw each problem from its number alone."""
_EXAMPLES = range(1_000_000, 2_000_000)
_TRAINING = range(2_000_000, 2**31)
_RIGHT = 1.0 - 1e-6
_FIELDS = ("question", "answer")


@dataclass(frozen=True, slots=True)
class ReasoningGym(Task):
    """The problems of one generator of the package reasoning-gym, drawn without end.

    A problem's key is the number that it is drawn from. Evaluation, worked examples and training
    have numbers of their own, but a generator of few problems gives the same one for many numbers.

    The reward is what the generator gives for the final answer, 0 to 1, often something for an
    answer that is nearly right; 1 counts as correct. Where that takes too long, or the generator
    cannot read the answer, it is 0.

    Source: Stojanovski et al., 2025, "Reasoning Gym", arXiv 2505.24760.

    Raises:
        TaskError: the package is missing, there is no such generator, or it refuses its options.
    """

    generator: str
    """Such as ``chain_sum``; reasoning-gym's gallery shows them all."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the generator, such as ``{min_terms = 2, max_terms = 3}``."""
    prompt: str = "{question}"
    """Template of a question, in Python's format: ``{question}`` is the generator's."""
    chat: bool = False
    """True to have the policy's chat template write the prompt."""
    system: str = ""
    """The chat's system message, or the prompt's first paragraph."""
    shots: Annotated[int, Interval(ge=0, le=1000)] | tuple[Shot, ...] = 0
    """Worked examples before each question: so many of the generator's own, or pairs of a question
    and a solution as they are to stand there."""
    solution: str = "\n{answer}"
    """Template of an example's solution, which follows its question directly."""
    until: str = ""
    """Mark that ends the text that is judged, such as a blank line; '' for the completion's end."""
    final: str = "whole"
    """Part of the text that is judged: see ``segcredit.tasks.verifiers.answer_extraction``."""
    seconds: Annotated[float, Interval(ge=0.01, le=3600)] = 3.0
    """Seconds of the longest judgement; what takes longer is wrong."""

    def __post_init__(self) -> None:
        FinalAnswer(self.until, self.final)
        for option in ("prompt", "solution"):
            _require_fields(option, getattr(self, option))
        _problems(self.generator, self._options())

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training problems, independently of each other."""
        numbers = torch.randint(_TRAINING.start, _TRAINING.stop, (count,), generator=generator)
        return [self._prompt(number) for number in map(int, numbers)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the first ``count`` problems of numbers that training never draws."""
        return [self._prompt(number) for number in _EVALUATION[:count]]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Returns the generator's reward for the final answer; 0 where there is none."""
        final = FinalAnswer(self.until, self.final)
        judged = final.judged(text, truncated=truncated)
        if not judged:
            return WRONG
        maker = "segcredit.tasks.verifiers.gym_answers:scoring"
        options = (self.final, maker, (self.generator, self._options()))
        process = judge_process(PLACED, options, self.seconds)
        found = process.ask(text=judged, number=int(prompt.key))
        if found is None:
            return LATE
        if not math.isfinite(found.get("reward", math.nan)):  # no answer, or one it cannot read
            return WRONG
        reward = float(found["reward"])
        return Verdict(reward=reward, correct=reward >= _RIGHT, answer=str(found["answer"]))

    def judges(self) -> int:
        """Returns how many completions are verified at once, in processes of their own."""
        return JUDGES

    def _prompt(self, number: int) -> Prompt:
        problem = self._problem(number)
        question = filled(self.prompt, problem)
        return self._layout().prompt(str(number), question, str(problem["answer"]))

    def _layout(self) -> Layout:
        return Layout(self.chat, self.system, self._shots())

    def _shots(self) -> tuple[Shot, ...]:
        if not isinstance(self.shots, int):
            return self.shots
        problems = [self._problem(number) for number in _EXAMPLES[: self.shots]]
        return tuple((filled(self.prompt, one), filled(self.solution, one)) for one in problems)

    def _problem(self, number: int) -> Mapping[str, Any]:
        return _problem(self.generator, self._options(), number)

    def _options(self) -> str:
        return json.dumps(self.options, sort_keys=True)


@functools.lru_cache(maxsize=8)
def _problems(generator: str, options: str) -> Any:
    """Loads the problem generator of reasoning-gym.

    Raises:
        MissingPackageError: reasoning-gym is not installed.
        TaskError: there is none of that name, or it refuses its options.
    """
    require_package("reasoning_gym", "problems", "task 'reasoning_gym'")
    import reasoning_gym

    library: Any = reasoning_gym
    known: dict[str, Any] = library.factory.DATASETS
    if generator not in known:
        raise TaskError(
            f"reasoning-gym has no generator {generator!r}{did_you_mean(generator, known)}"
            f" There are {len(known)}: {', '.join(sorted(known))}."
        )
    try:
        return library.create_dataset(generator, seed=0, **json.loads(options))
    # A wrong name of an option, and a value that an assertion or a conversion refuses.
    except (TypeError, ValueError, AssertionError) as error:
        allowed = {*known[generator][1].__dataclass_fields__} - {"seed", "size"}
        raise TaskError(
            f"the generator {generator!r} refuses task.options = {options} ({error}); expected"
            f" values that it allows, of {', '.join(sorted(allowed))}."
        ) from error


@functools.lru_cache(maxsize=4096)  # worked examples and evaluation problems come again and again
def _problem(generator: str, options: str, number: int) -> Mapping[str, Any]:
    found = _problems(generator, options)[number]
    return {name: found[name] for name in _FIELDS}


def _require_fields(option: str, template: str) -> None:
    unknown = sorted({*columns_of(option, template)} - {*_FIELDS})
    if unknown:
        raise TaskError(
            f"task.{option} is {template!r}, which names {unknown[0]!r}; expected {{question}} and"
            " {answer} alone, since a generator gives no more. Braces of the text are doubled."
        )
