"""Problems of any data set, with a prompt template and a verifier by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, PromptStream, Task, Verdict
from segcredit.tasks.data.problem_rows import Problem, RowReader
from segcredit.tasks.data.prompt_streams import Blocks, Passes, is_held_out
from segcredit.tasks.data.prompt_templates import Layout, Shot, require_shots
from segcredit.tasks.data.rows import RowFlow, Source, Table
from segcredit.tasks.verifiers.answer_extraction import FinalAnswer
from segcredit.tasks.verifiers.judge_process import JUDGES
from segcredit.tasks.verifiers.verifier import WRONG, Verifier, verifier


@dataclass(frozen=True, slots=True)
class Dataset(Task):
    """The problems of a data set: whatever ``datasets`` loads, and JSON Lines with bad lines.

    Where nothing is named for evaluation, one problem in ten, by a checksum of its key, is for
    that. A training problem whose question is also one for evaluation is left out, except where
    there are images, or the data is streamed and has no evaluation data of its own.

    Raises:
        TaskError: an option is wrong, the source cannot be read, lacks a named column, or has no
            problems.
    """

    source: str
    """A name on the Hugging Face hub, a file (.jsonl, .json, .csv, .tsv, .parquet) or a folder."""
    config: str = ""
    """Name of the configuration, of a data set that has several."""
    split: str = "train"
    """Split of a data set of the hub, or of a folder with splits."""
    evaluation_source: str = ""
    """Source of the problems for evaluation; '' for the same source."""
    evaluation_split: str = ""
    """Split of the problems for evaluation; '' for the same split."""
    prompt: str = "{question}"
    """Template of a question, in Python's format: names of columns in braces, other braces doubled.
    It may say ``<image>`` where an image belongs."""
    answer: str = "answer"
    """Name of the column with the true answer, with dots for a part of it, such as
    ``reward_model.ground_truth``; of a list any answer is right. '' for none: a verifier of your
    own then finds the whole row in ``prompt.answer``."""
    answer_pattern: str = ""
    """Regular expression that takes the true answer out of its column; '' for all of it. Its first
    group counts where it has one, and the last match: '####\\s*(.+)' for GSM8K."""
    key: str = ""
    """Name of the column that names a problem; '' for its number."""
    images: str = ""
    """Name of the column with an image, or a list of them; '' for problems without."""
    chat: bool = False
    """True to have the policy's chat template write the prompt."""
    chat_options: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """Arguments of the chat template, such as ``{enable_thinking = false}``."""
    system: str = ""
    """The chat's system message, or the prompt's first paragraph."""
    shots: Annotated[int, Interval(ge=0, le=1000)] | tuple[Shot, ...] = 0
    """Worked examples before each question: so many of the first training rows, which are then no
    problems, or pairs of a question and a solution as they are to stand there."""
    solution: str = "\n{answer}"
    """Template of a worked example's solution, which follows its question directly."""
    until: str = ""
    """Mark that ends the text that is judged, such as a blank line; '' for the completion's end."""
    final: str = "whole"
    """Part of the text that is judged: see ``segcredit.tasks.verifiers.answer_extraction``."""
    verifier: str = "math"
    """``math``, ``exact``, ``choice``, or a function of your own as ``module:function``."""
    tolerance: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Relative distance at which a number is right too, of ``math``; 0.005 for rounded answers."""
    seconds: Annotated[float, Interval(ge=0.01, le=3600)] = 3.0
    """Seconds of the longest judgement by ``math`` or a function; what takes longer is wrong."""
    malformed: Literal["fatal", "skip"] = "fatal"
    """Fate of a row that cannot be read or lacks something; told in either case."""
    streaming: bool = False
    """True to read rows as they are needed, for data that fits no memory or disk."""
    buffer: Annotated[int, Interval(ge=1, le=10**7)] = 1000
    """Rows that are read and shuffled together, where they are streamed."""

    def __post_init__(self) -> None:
        self.reader()
        FinalAnswer(self.until, self.final)
        self._verifier()
        if self.chat_options and not self.chat:
            raise TaskError(
                f"task.chat_options is {self.chat_options}, and task.chat is false; expected"
                " arguments of a chat's template where there is a chat. Set task.chat = true."
            )
        if self.buffer < 1:
            raise TaskError(f"task.buffer is {self.buffer}; expected at least 1 row.")

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training problems, without repetition while they last."""
        return self.stream(int(torch.randint(2**62, (), generator=generator))).take(
            count, generator
        )

    def stream(self, seed: int) -> PromptStream:
        """Returns the training problems in passes, each in an order of its own."""
        if self.streaming:
            return Blocks(_TrainingFlow(self, self.source_of_training().flow()), seed)
        found = _split(self).training
        return Passes(found.prompt, len(found.problems), seed)

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the first ``count`` problems for evaluation.

        Raises:
            TaskError: there are fewer.
        """
        prompts = list(islice(self._evaluation(), count))
        if count > len(prompts):
            raise TaskError(
                f"{self.source_of_evaluation().name!r} has {len(prompts)} problems for evaluation;"
                f" {count} were asked for. Lower evaluate.prompts, or name another"
                " task.evaluation_split or task.evaluation_source."
            )
        return prompts

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Returns the verifier's judgement of the final answer; reward 0 where there is none."""
        final = FinalAnswer(self.until, self.final)
        judged = final.judged(text, truncated=truncated)
        return self._verifier().judge(prompt, judged, final) if judged else WRONG

    def judges(self) -> int:
        """Returns how many completions are verified at once, in processes of their own."""
        return JUDGES

    def reader(self) -> RowReader:
        """Returns the reader that makes problems of rows."""
        return RowReader(
            prompt=self.prompt,
            solution=self.solution,
            answer=self.answer,
            answer_pattern=self.answer_pattern,
            key=self.key,
            images=self.images,
            skip=self.malformed == "skip",
            fault=self._verifier().fault,
            seconds=self.seconds,
        )

    def named_code(self) -> Mapping[str, object]:
        """Returns the verifier, where it is a function of somebody's own."""
        return {"verifier": self.verifier} if ":" in self.verifier else {}

    def data_files(self) -> Sequence[Path]:
        """Returns the files or folders of both sources; a name on the hub is neither."""
        sources = (self.source_of_training(), self.source_of_evaluation())
        return [Path(name) for name in dict.fromkeys(source.name for source in sources)]

    def source_of_training(self) -> Source:
        """Returns the source of the rows for training."""
        return Source(self.source, self.config, self.split, self.images)

    def source_of_evaluation(self) -> Source:
        """Returns the source of the rows for evaluation; that for training where none is named."""
        name = self.evaluation_source or self.source
        return Source(name, self.config, self.evaluation_split or self.split, self.images)

    def layout(self, shots: Sequence[Shot]) -> Layout:
        """Returns the layout of a question, after these examples or those of the config."""
        given = shots if isinstance(self.shots, int) else self.shots
        return Layout(self.chat, self.system, tuple(given), tuple(self.chat_options.items()))

    def first_rows(self) -> int:
        """Counts the first training rows that are worked examples."""
        return self.shots if isinstance(self.shots, int) else 0

    def _evaluation(self) -> Iterator[Prompt]:
        if self.streaming and not has_own_evaluation(self):
            flow = _TrainingFlow(self, self.source_of_training().flow(), held_out=True)
            return chain.from_iterable(iter(flow.block, None))
        found = _held_out(self) if self.streaming else _split(self).evaluation
        return map(found.prompt, range(len(found.problems)))

    def _verifier(self) -> Verifier:
        return verifier(self.verifier, seconds=self.seconds, tolerance=self.tolerance)


def has_own_evaluation(task: Dataset) -> bool:
    """Tells whether the problems for evaluation have a source or a split of their own."""
    return task.source_of_evaluation() != task.source_of_training()


@dataclass(frozen=True, slots=True, eq=False)
class _Problems:
    """Problems of one table, with what makes prompts of them."""

    reader: RowReader
    layout: Layout
    source: str
    table: Table
    problems: Sequence[Problem]

    def prompt(self, place: int) -> Prompt:
        """Returns the problem at a place of the list."""
        problem = self.problems[place]
        row = self.table.rows[problem.number]
        return self.reader.made(self.layout, self.source, problem, row)

    def only(self, problems: Sequence[Problem]) -> _Problems:
        """Returns the problems at some places of the list."""
        return replace(self, problems=problems)


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """The problems of a data set in memory."""

    training: _Problems
    evaluation: _Problems


@functools.lru_cache(maxsize=4)  # every step asks for some
def _split(task: Dataset) -> _Split:
    source, reader = task.source_of_training(), task.reader()
    table = source.table()
    found = reader.problems(source.name, table.some(reader.columns))
    shown, rest = found[: task.first_rows()], found[task.first_rows() :]
    shots = [reader.shot(f"row {one.number}", table.rows[one.number]) for one in shown]
    require_shots(shots, task.first_rows(), source.name)
    every = _Problems(reader, task.layout(shots), source.name, table, rest)
    if has_own_evaluation(task):
        evaluation = replace(_held_out(task), layout=every.layout)
    else:
        evaluation = every.only([one for one in rest if is_held_out(one.key)])
        rest = [one for one in rest if not is_held_out(one.key)]
    known = _known(task, evaluation)
    training = every.only([one for one in rest if one.question not in known])
    if not training.problems:
        raise TaskError(
            f"{source.name!r} has no problems for training; expected some. Usually the file is"
            " empty, the split is another one, or every question is also one for evaluation."
        )
    return _Split(training, evaluation)


@functools.lru_cache(maxsize=4)  # every evaluation asks for the same
def _held_out(task: Dataset) -> _Problems:
    """Returns the problems for evaluation, where they have a source of their own."""
    source, reader = task.source_of_evaluation(), task.reader()
    table = source.table()
    found = reader.problems(source.name, table.some(reader.columns))
    # A training problem may have the same key, above all where keys are numbers.
    named = [replace(one, key=f"evaluation/{one.key}") for one in found]
    shots = _streamed_shots(task)[0] if task.streaming else ()
    return _Problems(reader, task.layout(shots), source.name, table, named)


def _known(task: Dataset, evaluation: _Problems) -> frozenset[str]:
    """Returns the questions that no training problem may ask; with other images it may."""
    return frozenset(() if task.images else (one.question for one in evaluation.problems))


@functools.lru_cache(maxsize=4)  # every block asks for them
def _streamed_shots(task: Dataset) -> tuple[tuple[Shot, ...], frozenset[int]]:
    """Returns the worked examples of a streamed data set, and the numbers of their rows."""
    source, reader, wanted = task.source_of_training(), task.reader(), task.first_rows()
    if not wanted:
        return (), frozenset()
    rows = {one.number: one for one in source.flow().read(task.buffer)}
    shown = reader.problems(source.name, rows.values())[:wanted]
    shots = [reader.shot(rows[one.number].place, rows[one.number].row) for one in shown]
    require_shots(shots, wanted, source.name)
    return tuple(shots), frozenset(one.number for one in shown)


@dataclass(slots=True, eq=False)
class _TrainingFlow:
    """The problems of a streamed data set, a block of rows after the other."""

    task: Dataset
    rows: RowFlow
    held_out: bool = False
    """True to give the problems for evaluation instead of those for training."""

    def block(self) -> list[Prompt] | None:
        """Returns the training problems among the next rows; None at the end of the data."""
        rows = {one.number: one for one in self.rows.read(self.task.buffer)}
        if not rows:
            return None
        source, reader = self.task.source_of_training().name, self.task.reader()
        shots, numbers = _streamed_shots(self.task)
        layout = self.task.layout(shots)
        return [
            reader.made(layout, source, one, rows[one.number].row)
            for one in reader.problems(source, rows.values())
            if one.number not in numbers and self._is_held_out(one) == self.held_out
        ]

    def _is_held_out(self, problem: Problem) -> bool:
        if has_own_evaluation(self.task):
            return problem.question in _known(self.task, _held_out(self.task))
        return is_held_out(problem.key)

    def restart(self) -> None:
        """Goes back to the first row."""
        self.rows.restart()

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last block."""
        return self.rows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the position of a ``state_dict``."""
        self.rows.load_state_dict(state)
