"""Problems of a data set, with images or without, whose answers are mathematical."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.tasks.answers import AnswerChecker

BOXED = "Think step by step, and put the final answer into \\boxed{}."
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problems(Task):
    """Questions with one mathematical answer each, by default those of Geometry3K.

    The source is a name on the Hugging Face hub, a folder or a Parquet file, read by ``datasets``,
    or a JSON Lines file, one problem a line, with the paths of images, from its own folder. Where
    there is no split for evaluation, one problem in ten, by a checksum of its key, is for that.

    Reward 1 where the last answer of a completed text equals the true one mathematically, as
    math-verify sees it. ``faithful`` is not told.

    Raises:
        TaskError: the source cannot be read, or has no problems.
    """

    source: str = "hiyouga/geometry3k"
    split: str = "train"
    """Of a source on the hub."""
    evaluation_split: str = "test"
    """Of a source on the hub; '' for a share of the other."""
    question: str = "problem"
    """Name of the column; its text may say ``<image>`` where an image belongs."""
    answer: str = "answer"
    images: str = "images"
    """Name of the column with an image, or a list of them; '' for problems without."""
    key: str = ""
    """Name of the column that names a problem; '' for its number."""
    instruction: str = BOXED
    """Follows every question after a blank line."""
    tolerance: float = 0.0
    """Relative distance at which a number is right too, such as 0.005 for rounded answers."""
    seconds: float = 3.0
    """Of the longest comparison of two answers; what takes longer is wrong."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Training problems, drawn without repetition while they last."""
        rows = _rows(self).training
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += map(int, torch.randperm(len(rows), generator=generator))
        return [self._prompt(*rows[place]) for place in drawn[:count]]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """The first ``count`` problems for evaluation.

        Raises:
            TaskError: there are fewer.
        """
        rows = _rows(self).evaluation
        if count > len(rows):
            raise TaskError(
                f"{self.source!r} has {len(rows)} problems for evaluation; {count} were asked for."
                " Lower the number of evaluation prompts, or name another evaluation_split."
            )
        return [self._prompt(*row) for row in rows[:count]]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Reward 1 for the right answer of a completed text."""
        right = not truncated and _checker(self.seconds, self.tolerance).right(prompt.answer, text)
        return Verdict(reward=float(right), correct=right)

    def _prompt(self, key: str, row: Row) -> Prompt:
        text = f"{row[self.question]}\n\n{self.instruction}".strip()
        found = row.get(self.images) if self.images else None
        several = cast("list[Any]", found if isinstance(found, list) else [found])
        images = tuple(self._content(key, one) for one in several if one is not None)
        return Prompt(key, text, str(row[self.answer]), images)

    def _content(self, key: str, image: Any) -> bytes:
        """The content of an image file: as the data set holds it, or by its path."""
        if isinstance(image, Mapping):
            held = cast("Mapping[str, Any]", image)
            if held.get("bytes"):
                return held["bytes"]
            image = held.get("path")
        file = Path(self.source).parent / str(image)
        try:
            return file.read_bytes()
        except OSError as error:
            raise TaskError(
                f"the image {str(file)!r} of problem {key!r} in {self.source!r} cannot be read"
                f" ({error.strerror}); expected a file. Paths count from the folder of the data"
                " set's file: put the images there."
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The problems of a source, by their keys."""

    training: list[tuple[str, Row]]
    evaluation: list[tuple[str, Row]]


@functools.lru_cache(maxsize=4)
def _checker(seconds: float, tolerance: float) -> AnswerChecker:
    return AnswerChecker(seconds=seconds, tolerance=tolerance)


@functools.lru_cache(maxsize=4)
def _rows(task: Problems) -> _Rows:
    """Kept, since every step asks for some."""
    local = Path(task.source).suffix.lower() in (".jsonl", ".parquet", ".json")
    training = list(_named(task, _read(task, task.split)))
    if local or not task.evaluation_split:
        held_out = [row for row in training if zlib.crc32(row[0].encode()) % 10 == 0]
        training = [row for row in training if zlib.crc32(row[0].encode()) % 10]
    else:
        held_out = list(_named(task, _read(task, task.evaluation_split)))
    if not training:
        raise TaskError(
            f"{task.source!r} has no problems for training; expected some. Usually the file is"
            " empty, or the split is another one."
        )
    return _Rows(training, held_out)


def _named(task: Problems, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows):
        wanted = (task.question, task.answer, *filter(None, [task.key]))
        missing = [name for name in wanted if row.get(name) is None]
        if missing:
            raise TaskError(
                f"problem {number} of {task.source!r} has no {missing[0]!r}; it has"
                f" {', '.join(sorted(row))}. Usually the column has another name: set"
                " task.question, task.answer or task.key."
            )
        yield (str(row[task.key]) if task.key else str(number)), row


def _read(task: Problems, split: str) -> Iterable[Row]:
    path = Path(task.source)
    if path.suffix.lower() in (".jsonl", ".json"):
        return list(_lines(path))
    return _dataset(task, split)


def _lines(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"the problems {str(path)!r} cannot be read ({error}); expected a JSON Lines file in"
            " UTF-8. Check task.source."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise TaskError(
                    f"line {number} of {str(path)!r} is no JSON ({error}); expected one problem a"
                    " line. Usually the file was cut, or is one JSON list: write one object a line."
                ) from error
            yield row


def _dataset(task: Problems, split: str) -> Iterable[Row]:
    """Rows as ``datasets`` holds them, images packed as they were stored."""
    try:
        import datasets
    except ImportError as error:
        raise TaskError(
            "the package datasets is not installed, which reads this source. Install it with:"
            " pip install 'segcredit[problems]'"
        ) from error
    library: Any = datasets
    try:
        if Path(task.source).suffix.lower() == ".parquet":
            found = library.Dataset.from_parquet(task.source)
        else:
            found = library.load_dataset(task.source, split=split)
    # What datasets raises for names, files and splits; of its own errors most are these.
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise TaskError(
            f"the data set {task.source!r}, split {split!r}, cannot be had ({first}); expected its"
            " name on the Hugging Face hub, or a local file. Usually the name is misspelt, or the"
            " hub cannot be reached: check task.source, or download it first."
        ) from error
    feature = found.features.get(task.images)
    packed = library.Image(decode=False)
    if isinstance(feature, library.Image):
        return found.cast_column(task.images, packed)
    if isinstance(feature, library.List) and isinstance(feature.feature, library.Image):
        return found.cast_column(task.images, library.List(packed))
    return found
