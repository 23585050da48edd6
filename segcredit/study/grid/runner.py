"""Working through the cells of a grid: which ones, in which order, and again after a loss."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segcredit.errors import LostProcessError, StorageError
from segcredit.records.run_directory import require_same_data
from segcredit.register import load_code
from segcredit.study.grid.cells import Cell, State, plan
from segcredit.study.grid.process_workers import ProcessWorkers
from segcredit.study.grid.ray_workers import RayWorkers
from segcredit.study.grid.workers import Outcome, Workers, record_failure
from segcredit.training.build import data_of

_ATTEMPTS = 3
"""Times that a cell is begun in one call, when its workers are killed."""
_LOOK = 0.5
"""Seconds between two looks at the cells."""
_ROUNDS = 4
"""Cells of each worker over which the time that is left is estimated."""
_PATIENCE = 5.0
"""Seconds before a cell that another process has is asked for again."""


@dataclass(slots=True)
class GridProgress:
    """State of a grid, for a display."""

    cells: Sequence[Cell]
    states: dict[Path, State]
    """By the cells' directories; brought up to date as cells end."""
    running: list[Cell] = field(default_factory=list[Cell])
    elsewhere: list[Cell] = field(default_factory=list[Cell])
    """Cells that another process is running."""
    lost: dict[Path, str] = field(default_factory=dict[Path, str])
    """Reasons why cells did not come to their end, though their runs did not fail."""
    seconds_a_step: float = 0.0
    """Seconds of the clock a policy step, whichever cell makes it; 0 before they are known."""
    workers: int = 1

    def of(self, *states: State) -> list[Cell]:
        """Returns the cells in some states."""
        return [cell for cell in self.cells if self.states[cell.directory] in states]

    def steps_left(self) -> int:
        """Counts the policy steps until the rest is done, all those of a damaged cell."""
        begun = sum(cell.config.train.steps - cell.steps_done() for cell in self.of("new", "begun"))
        return begun + sum(cell.config.train.steps for cell in self.of("damaged"))

    def seconds_left(self) -> float | None:
        """Estimates the wall seconds until the rest is done; None before a speed was measured."""
        steps = self.steps_left()
        return steps * self.seconds_a_step if self.seconds_a_step or not steps else None


Watch = Callable[[GridProgress], None]
"""Called about twice a second while cells run, and once at the end."""


def survey(cells: Sequence[Cell]) -> GridProgress:
    """Returns the state of the cells before anything is run.

    Raises:
        RecordError: a cell was begun, or finished, with data that changed since.
    """
    for cell in cells:
        require_same_data(cell.directory, data_of(cell.config))
    return GridProgress(cells, {cell.directory: cell.state() for cell in cells})


def run_grid(
    source: str | Path | Mapping[str, Any],
    output: str | Path = "runs",
    *,
    workers: int | None = None,
    ray: str | None = None,
    retry_failed: bool = False,
    overrides: Sequence[str] = (),
    code: Sequence[str] = (),
    watch: Watch | None = None,
) -> GridProgress:
    """Runs every cell that is neither finished nor failed; one that fails never stops the others.

    Running it again continues: a cell that was stopped goes on from its last checkpoint, and one
    that finished but whose files were harmed since is run again. Two grids may share a directory:
    each cell is run by one of them.

    Args:
        source: as ``plan``.
        output: as ``plan``; running again continues there.
        workers: cells at a time, each with one torch thread; None = one process, or every core
            of the Ray cluster.
        ray: the address of a Ray cluster whose machines share ``output``, or "local"; None =
            processes of this machine.
        retry_failed: run the cells that failed, and no others.
        overrides: as ``plan``.
        code: Python files that register plug-ins, loaded in every worker.
        watch: told of the cells while they run, for a progress display.

    Returns:
        How the cells stand at the end.

    Raises:
        ConfigError, RegistryError, StudyError: as ``plan``, or a plug-in of this session cannot
            be carried over to the workers; nothing has run then.
        StorageError: the disk is full or failed; every cell keeps what was recorded.
    """
    load_code(code)
    progress = survey(plan(source, Path(output), overrides))
    chosen = progress.of("failed") if retry_failed else progress.of("new", "begun", "damaged")
    if chosen:
        team = ProcessWorkers(workers or 1, code) if ray is None else RayWorkers(ray, workers, code)
        with team as entered:
            _Shift(entered, chosen, progress).work(watch)
    if watch is not None:
        watch(progress)
    return progress


class _Shift:
    """One call's work: a queue of cells, some of which come back into it."""

    def __init__(self, workers: Workers, chosen: Sequence[Cell], progress: GridProgress) -> None:
        self._workers = workers
        self._progress = progress
        self._queue = deque(chosen)
        self._begun: Counter[Path] = Counter()
        self._not_before: dict[Path, float] = {}
        self._steps_before: dict[Path, int] = {}
        """Steps of the cells that were begun in this call, before it."""
        self._first: list[Cell] = []
        """Cells begun at once, before any other: they make, or wait for, what all share."""
        self._made = 0
        """Steps made in this call by the cells that ended."""
        self._start: tuple[float, int] | None = None
        """Time at which each of the first cells had made a step, and the steps of all by then."""
        self._ends: deque[tuple[float, int]] = deque()
        """Likewise at the cells' ends since."""

    def work(self, watch: Watch | None) -> None:
        """Runs cells until the queue is empty and no cell runs."""
        while self._queue or self._progress.running:
            while self._workers.free() and (cell := self._next()) is not None:
                self._begin(cell)
            self._first = self._first or list(self._progress.running)
            outcomes = self._wait()
            for cell, outcome in outcomes:
                self._end(cell, outcome)
            self._measure(sum(outcome.kind == "ended" for _, outcome in outcomes))
            if watch is not None:
                watch(self._progress)

    def _wait(self) -> Sequence[tuple[Cell, Outcome]]:
        if self._progress.running:
            return self._workers.wait(_LOOK)
        time.sleep(_LOOK)  # every cell that is left is another process's
        return ()

    def _next(self) -> Cell | None:
        """Returns the first cell that may be tried now."""
        now = time.monotonic()
        for cell in self._queue:
            if self._not_before.get(cell.directory, 0.0) <= now:
                self._queue.remove(cell)
                return cell
        return None

    def _begin(self, cell: Cell) -> None:
        self._progress.running.append(cell)
        self._progress.workers = max(self._progress.workers, len(self._progress.running))
        self._steps_before[cell.directory] = cell.steps_done()
        self._workers.start(cell)

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        progress = self._progress
        progress.running.remove(cell)
        self._made += self._steps_made(cell)
        progress.states[cell.directory] = cell.state()
        progress.elsewhere = [other for other in progress.elsewhere if other is not cell]
        if outcome.kind == "stopped":
            raise StorageError(outcome.note)
        if outcome.kind == "busy":
            progress.elsewhere.append(cell)
            self._not_before[cell.directory] = time.monotonic() + _PATIENCE
            self._queue.append(cell)
        elif outcome.kind == "lost":
            self._lost(cell, outcome.note)

    def _lost(self, cell: Cell, note: str) -> None:
        self._begun[cell.directory] += 1
        if self._begun[cell.directory] < _ATTEMPTS:
            self._queue.append(cell)
        else:
            sentence = f"{note} Tried {_ATTEMPTS} times."
            record_failure(cell, LostProcessError(sentence))
            self._progress.lost[cell.directory] = sentence
            self._progress.states[cell.directory] = cell.state()

    def _steps_made(self, cell: Cell) -> int:
        return max(0, cell.steps_done() - self._steps_before[cell.directory])

    def _measure(self, ended: int) -> None:
        """Measures what a step takes, over the last rounds: from one cell's end to another's.

        Cells' starts are in it then. In the first round they are not: it is measured there from
        the moment at which each of the first cells has made a step.
        """
        running = self._progress.running
        now = time.monotonic(), self._made + sum(map(self._steps_made, running))
        if self._start is None:
            if all(self._steps_made(cell) for cell in self._first if cell in running):
                self._start = now
            return
        self._ends.extend([now] * ended)
        round_done = len(self._ends) > len(self._first)
        while len(self._ends) > _ROUNDS * len(self._first):
            self._ends.popleft()
        at, made = self._ends[0] if round_done else self._start
        if (ended or not round_done) and now[1] > made:
            self._progress.seconds_a_step = (now[0] - at) / (now[1] - made)
