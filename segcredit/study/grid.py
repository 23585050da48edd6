"""Ablation grids: every combination of some keys' values, each a run directory of its own.

``[grid]`` in a config file maps dotted keys to lists of values; ``[[grid.case]]`` tables set
several keys together and are crossed with the lists. The key ``method`` names a preset that is
laid under the file's own keys.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcredit.build import run_hash
from segcredit.config import RunConfig, load_config, parse_override, read_source, set_key
from segcredit.errors import ConfigError, RecordError, SegcreditError, StudyError
from segcredit.loop import train
from segcredit.loose_files import load_code
from segcredit.records import RunRecords, read_metrics


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a grid."""

    label: str
    """The keys that this cell sets, such as ``method=sapo segmenter=newline seed=1``."""
    config: RunConfig
    directory: Path

    def done(self) -> bool:
        """Whether its run has finished."""
        return self.status() == "finished"

    def status(self) -> str:
        """``new``, ``running`` (or killed), ``failed`` or ``finished``."""
        if not (self.directory / "status.json").exists():
            return "new"
        return str(RunRecords.open(self.directory).status()["status"])

    def error(self) -> str:
        """What stopped a failed cell."""
        if self.status() == "new":
            return "its worker ended before it began; the system may be out of memory."
        status = RunRecords.open(self.directory).status()
        if status["status"] == "running":
            return "its worker was killed; run the grid again to continue from its checkpoint."
        return str(status.get("message", status["status"]))

    def steps_done(self) -> int:
        """Policy steps recorded so far."""
        rows = read_metrics(self.directory)
        return int(rows[-1]["step"] or 0) if rows else 0


def plan(
    source: str | Path | Mapping[str, Any], output: Path, overrides: Sequence[str] = ()
) -> list[Cell]:
    """Every cell of a grid, each checked before any of them runs.

    Args:
        source: a TOML file with a ``[grid]`` table, or such a file's keys.
        output: under which every cell has a directory named by its hash.
        overrides: ``dotted.key=value``, laid over every cell.

    Raises:
        ConfigError, RegistryError: a cell is wrong; the message begins with its label.
        StudyError: there is no grid.
    """
    keys = dict(source) if isinstance(source, Mapping) else read_source(source)
    grid = dict(keys.pop("grid", {}))
    if not grid:
        raise StudyError(
            f"{source if not isinstance(source, Mapping) else 'the config'} has no [grid] table."
            ' Give one, such as [grid] with seed = [0, 1, 2] and method = ["grpo", "sapo"].'
        )
    cells = {}
    for settings in combinations(grid):
        cell = _cell(keys, settings, output, overrides)
        cells[cell.directory] = cell
    return list(cells.values())


def combinations(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of every cell: each case crossed with the product of the lists."""
    lists = {key: values for key, values in grid.items() if key != "case"}
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"grid.{key}: is {values!r}; expected a list of values, such as [0, 1, 2]. Quote"
                f' a dotted key: "segmenter.top_fraction" = [0.1, 0.3].'
            )
    cases = grid.get("case", [{}])
    if not isinstance(cases, list):
        raise ConfigError("grid.case: expected tables, each headed [[grid.case]].")
    for case, values in itertools.product(cases, itertools.product(*lists.values())):
        yield {**case, **dict(zip(lists, values, strict=True))}


def _cell(
    keys: Mapping[str, Any], settings: Mapping[str, Any], output: Path, overrides: Sequence[str]
) -> Cell:
    label = " ".join(f"{key}={_short(value)}" for key, value in settings.items())
    # Copies all the way down: cells must not write into one another's tables.
    values, settings = copy.deepcopy(dict(keys)), copy.deepcopy(dict(settings))
    # The shortest paths first: a plug-in's name, then its options.
    for key, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        set_key(values, key, value)
    for override in overrides:
        set_key(values, *parse_override(override))
    try:
        config = load_config(values)
    except SegcreditError as error:
        raise type(error)(f"cell {label}: {error}") from error
    return Cell(label, config, output / run_hash(config))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "/".join(str(part) for part in value.values())
    return str(value)


Watch = Callable[[Sequence[Cell]], None]
"""Called about twice a second while cells run, and once at the end."""


def run_grid(
    source: str | Path | Mapping[str, Any],
    output: str | Path = "runs",
    *,
    workers: int = 1,
    overrides: Sequence[str] = (),
    code: Sequence[str] = (),
    watch: Watch | None = None,
) -> list[Cell]:
    """Run every cell that is not finished; a cell that fails never stops the others.

    Args:
        source: as ``plan``.
        output: as ``plan``; running again continues there.
        workers: processes, each with one torch thread.
        overrides: as ``plan``.
        code: Python files that register plug-ins, loaded in every worker.
        watch: told of the cells while they run, for a progress display.

    Returns:
        The cells; each one's ``status()`` says how it ended.
    """
    load_code(code)
    cells = plan(source, Path(output), overrides)
    waiting = [cell for cell in cells if not cell.done()]
    context = multiprocessing.get_context("spawn")
    # Read by OpenMP when a worker imports torch, hence set before the workers start.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(max_workers=max(workers, 1), mp_context=context) as pool:
        futures = [pool.submit(_run_cell, cell, tuple(code)) for cell in waiting]
        _follow(futures, cells, watch)
    return cells


def _follow(futures: Sequence[Future[None]], cells: Sequence[Cell], watch: Watch | None) -> None:
    pending = set(futures)
    while pending:
        pending = wait(pending, timeout=0.5).not_done
        if watch is not None:
            watch(cells)


def _run_cell(cell: Cell, code: Sequence[str]) -> None:
    """One cell in a worker; what stops it is in its status already."""
    import torch

    torch.set_num_threads(1)
    load_code(code)
    try:
        train(cell.config, cell.directory, resume=True)
    except Exception as error:
        _record_failure(cell, error)


def _record_failure(cell: Cell, error: Exception) -> None:
    """Failures from before the run began, which the loop could not record itself."""
    if cell.status() == "failed":
        return
    # A disk that refused the run refuses its failure too; the cell is then seen as unfinished.
    with contextlib.suppress(RecordError):
        records = RunRecords.create(cell.directory, cell.config.model_dump(), {})
        records.fail(type(error).__name__, str(error), traceback.format_exc())
