"""Problems with images or without, whose answers are mathematical: a preset of ``dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval

from segcredit.protocols import Prompt, PromptStream, Task, Verdict
from segcredit.tasks.dataset import Dataset

BOXED = "Think step by step, and put the final answer into \\boxed{}."


@dataclass(frozen=True, slots=True)
class Problems(Task):
    """Questions with one mathematical answer each, by default those of Geometry3K.

    The task ``dataset`` with an instruction after each question, and the verifier ``math``; see
    there what a source may be, and which problems are for evaluation.

    Raises:
        TaskError: the source cannot be read, or has no problems.
    """

    source: str = "hiyouga/geometry3k"
    split: str = "train"
    """Split of a source on the hub."""
    evaluation_split: str = "test"
    """Split for evaluation, of a source on the hub; '' for a share of the other."""
    question: str = "problem"
    """Name of the column; its text may say ``<image>`` where an image belongs."""
    answer: str = "answer"
    images: str = "images"
    """Name of the column with an image, or a list of them; '' for problems without."""
    key: str = ""
    """Name of the column that names a problem; '' for its number."""
    instruction: str = BOXED
    """Follows every question after a blank line."""
    tolerance: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Relative distance at which a number is right too, such as 0.005 for rounded answers."""
    seconds: Annotated[float, Interval(ge=0.01, le=3600)] = 3.0
    """Seconds of the longest comparison of two answers; what takes longer is wrong."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training problems, without repetition while they last."""
        return self.dataset().prompts(count, generator)

    def stream(self, seed: int) -> PromptStream:
        """Returns the training problems in passes, each in an order of its own."""
        return self.dataset().stream(seed)

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the first ``count`` problems for evaluation.

        Raises:
            TaskError: there are fewer.
        """
        return self.dataset().evaluation(count)

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to a completion with the right answer."""
        return self.dataset().verify(prompt, text, truncated=truncated)

    def judges(self) -> int:
        """Returns how many completions are verified at once, in processes of their own."""
        return self.dataset().judges()

    def data_files(self) -> Sequence[Path]:
        """Returns the local file that the problems are in; a name on the hub is none."""
        return self.dataset().data_files()

    def dataset(self) -> Dataset:
        """Returns the task that this is a preset of."""
        instruction = self.instruction.replace("{", "{{").replace("}", "}}")
        local = Path(self.source).is_file()
        return Dataset(
            source=self.source,
            split=self.split,
            evaluation_split="" if local else self.evaluation_split,
            prompt=f"{{{self.question}}}\n\n{instruction}"
            if instruction
            else f"{{{self.question}}}",
            answer=self.answer,
            images=self.images,
            key=self.key,
            tolerance=self.tolerance,
            seconds=self.seconds,
        )
