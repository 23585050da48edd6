"""Streams of training prompts that know their place: passes over rows, and blocks of a flow."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, PromptStream
from segcredit.rng import stream


def is_held_out(key: str) -> bool:
    """Tells whether a problem is for evaluation: a tenth are, by what names them alone."""
    return zlib.crc32(key.encode()) % 10 == 0


@dataclass(slots=True, eq=False)
class Passes(PromptStream):
    """Passes over a number of problems, each in an order of its own.

    What is left of a pass and too little for a step is left out, so that no step meets a problem
    twice; only where there are fewer problems than a step takes do they come again in it.
    """

    prompt: Callable[[int], Prompt]
    """Function that makes the prompt of a problem's number."""
    size: int
    """Number of problems, at least 1."""
    seed: int
    number: int = 0
    """Number of the pass."""
    taken: int = 0
    """Problems of the pass that were given or left out."""

    def take(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns the next problems of the pass, or the first of the next one."""
        if self.taken and self.taken + count > self.size:
            self._turn()
        places: list[int] = []
        while len(places) < count:
            if self.taken == self.size:
                self._turn()
            more = self._order()[self.taken :][: count - len(places)]
            places += more
            self.taken += len(more)
        return [self.prompt(place) for place in places]

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of the pass, and how much of it is over."""
        return {"pass": self.number, "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the position of a ``state_dict``."""
        self.number, self.taken = int(state["pass"]), int(state["taken"])

    def _turn(self) -> None:
        self.number, self.taken = self.number + 1, 0

    def _order(self) -> tuple[int, ...]:
        return shuffled(self.size, self.seed, "pass", self.number)


class Flow(Protocol):
    """Training problems that are read one block after the other, from a place that can be named."""

    def block(self) -> list[Prompt] | None:
        """Returns the problems of the next block, maybe none; None at the end of the data."""
        ...

    def restart(self) -> None:
        """Goes back to the beginning."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last block."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the position of a ``state_dict``."""
        ...


@dataclass(slots=True, eq=False)
class Blocks(PromptStream):
    """Passes over problems too many for the memory: a block is read, shuffled and given.

    A problem stays within its block, whose order is another one in every pass. The position is the
    place before the block and how much of the block is over, so that a resumed run reads one block
    again. What is left of a pass and too little for a step is left out.
    """

    flow: Flow
    seed: int
    number: int = 0
    """Number of the pass."""
    block: int = 0
    """Number of the block in its pass."""
    taken: int = 0
    """Problems of the block that were given or left out."""
    _before: dict[str, Any] = field(default_factory=dict[str, Any])
    """The flow's place before the block; empty at the beginning of a pass."""
    _held: list[Prompt] | None = None

    def take(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns the next problems of the pass, or the first of the next one.

        Raises:
            TaskError: a whole pass has fewer.
        """
        begun = (self.block, self.taken) != (0, 0)
        found: list[Prompt] = []
        while len(found) < count:
            held = self._block()
            if held is None:
                if not begun:
                    raise _too_few(len(found), count)
                begun, found = False, []
                self._turn()
                continue
            more = held[self.taken :][: count - len(found)]
            found += more
            self.taken += len(more)
            if self.taken == len(held):
                self._next()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Numbers of pass and block, how much of the block is over, and the place before it."""
        return {
            "pass": self.number,
            "block": self.block,
            "taken": self.taken,
            "before": self._before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the position of a ``state_dict``; the block is read again when needed."""
        self.number, self.block = int(state["pass"]), int(state["block"])
        self.taken, self._before, self._held = int(state["taken"]), dict(state["before"]), None
        if self._before:
            self.flow.load_state_dict(self._before)
        else:
            self.flow.restart()

    def _block(self) -> list[Prompt] | None:
        """Returns the block in its order; None at the end of the data."""
        if self._held is None:
            found = self.flow.block()
            if found is None:
                return None
            order = shuffled(len(found), self.seed, f"pass {self.number} block", self.block)
            self._held = [found[place] for place in order]
        return self._held

    def _next(self) -> None:
        self.block, self.taken, self._held = self.block + 1, 0, None
        self._before = self.flow.state_dict()

    def _turn(self) -> None:
        self.number, self.block, self.taken, self._held = self.number + 1, 0, 0, None
        self._before = {}
        self.flow.restart()


@dataclass(frozen=True, slots=True, eq=False)
class Changed(PromptStream):
    """Another stream's prompts, each changed."""

    inner: PromptStream
    change: Callable[[Prompt], Prompt]

    def take(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns the inner stream's next prompts, changed."""
        return [self.change(prompt) for prompt in self.inner.take(count, generator)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the inner stream's position."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the position of a ``state_dict``."""
        self.inner.load_state_dict(state)


@functools.lru_cache(maxsize=4)  # every step asks for the order of its pass
def shuffled(count: int, seed: int, name: str, number: int) -> tuple[int, ...]:
    """Returns the places 0 to count - 1 in an order that follows from the other three."""
    return tuple(map(int, torch.randperm(count, generator=stream(seed, name, number))))


def _too_few(found: int, count: int) -> TaskError:
    return TaskError(
        f"a pass over the streamed data has {found} problems for training; a step takes {count}."
        " Lower rollouts.prompts, or set task.streaming = false, with which problems may come"
        " again within a step."
    )
