"""A task whose prompts also say how the answer is to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from segcredit.protocols import Environment, Prompt, PromptStream, Task, Verdict
from segcredit.tasks.data.prompt_streams import Changed

STEPS = {
    "en": (
        'Write your solution as numbered steps, each on a new line that begins with "Step 1:",'
        ' "Step 2:" and so on, and give the final answer in the last step.'
    ),
    "zh": (
        "请分步骤作答：每一步另起一行，依次以“步骤1：”“步骤2：”……开头，并在最后一步给出最终答案。"
    ),
}


@dataclass(frozen=True, slots=True)
class Instructed(Task):
    """Another task, an instruction added to each of its prompts after a blank line.

    By default the instruction asks for explicit step markers, which the segmenter ``steps`` finds:
    the step baseline of SAPO (arXiv 2605.01327, table 3) rests on a policy that was told to write
    them. Keys and verdicts are the inner task's; a policy that cannot read (``tiny`` imitates one
    task's alphabet) makes nothing of it.
    """

    inner: Task
    """The task whose prompts are extended."""
    language: Literal["en", "zh"] = "en"
    """Language of the instruction to write steps."""
    text: str | None = None
    """An instruction of your own, in place of it."""

    @property
    def instruction(self) -> str:
        """The text that is added to each prompt."""
        return STEPS[self.language] if self.text is None else self.text

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns the inner task's training prompts, instructed."""
        return [self._instructed(prompt) for prompt in self.inner.prompts(count, generator)]

    def stream(self, seed: int) -> PromptStream:
        """Returns the inner task's stream, instructed."""
        return Changed(self.inner.stream(seed), self._instructed)

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns the inner task's held-out prompts, instructed."""
        return [self._instructed(prompt) for prompt in self.inner.evaluation(count)]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Returns the inner task's verdict."""
        return self.inner.verify(prompt, text, truncated=truncated)

    def environment(self) -> Environment:
        """Returns the inner task's environment."""
        return self.inner.environment()

    def judges(self) -> int:
        """Returns how many completions the inner task verifies at once."""
        return self.inner.judges()

    def data_files(self) -> Sequence[Path]:
        """Returns those of the inner task."""
        return self.inner.data_files()

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        """Returns the inner task's demonstrations, their prompts instructed."""
        pairs = self.inner.demonstrations(count, generator)
        return [(self._instructed(prompt), text) for prompt, text in pairs]

    def alphabet(self) -> str:
        """Returns the inner task's and the instruction's characters; '' where any may occur."""
        known = self.inner.alphabet()
        return known and "".join(dict.fromkeys(known + "\n" + self.instruction))

    def _instructed(self, prompt: Prompt) -> Prompt:
        return replace(prompt, text=f"{prompt.text}\n\n{self.instruction}")
