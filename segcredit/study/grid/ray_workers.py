"""Workers of a Ray cluster, with the run directories on storage that every machine shares."""

# Ray is an optional extra, and types little.
# pyright: reportMissingImports=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, final

from segcredit.errors import StudyError, require_package
from segcredit.register import carried
from segcredit.study.grid.cells import Cell
from segcredit.study.grid.workers import Outcome, prepared, work

_PATIENCE = 10.0
"""Seconds that a cluster has to answer."""


@final
class RayWorkers:
    """One core of a Ray cluster a cell.

    Args:
        address: of a running cluster ("auto", "ray://host:10001", "host:6379"), or "local" for
            one on this machine that ends with the grid.
        count: most cells at a time; None = as many as the cluster has cores.
        code: Python files that register plug-ins, at the same path on every machine.

    Raises:
        MissingPackageError: Ray is not installed.
        StudyError: the cluster cannot be reached.
    """

    def __init__(self, address: str, count: int | None = None, code: Sequence[str] = ()) -> None:
        self._ray = _ray()
        self._count, self._code, self._plugins = count, tuple(code), carried()
        self._running: dict[Any, Cell] = {}
        self._address = address

    def __enter__(self) -> RayWorkers:
        local = self._address == "local"
        try:
            _reach(self._address)
            self._ray.init(
                address=self._address,
                num_cpus=self._count or os.cpu_count() if local else None,
                include_dashboard=False if local else None,
                log_to_driver=False,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise StudyError(
                f"no Ray cluster answers at {self._address!r} ({error}). Start one with"
                " 'ray start --head', or give --ray local for one on this machine."
            ) from error
        # Not retried by Ray: the grid does so itself, in its turn.
        self._work = self._ray.remote(num_cpus=1, max_retries=0)(_work)
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def free(self) -> bool:
        """Tells whether one more cell can be started now."""
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        return len(self._running) < (self._count or cores)

    def start(self, cell: Cell) -> None:
        """Hands a cell to the cluster."""
        self._running[self._work.remote(cell, self._code, self._plugins, os.getcwd())] = cell

    def wait(self, timeout: float) -> Sequence[tuple[Cell, Outcome]]:
        """Waits for cells to end; returns none when ``timeout`` seconds passed without one."""
        ready, _ = self._ray.wait(list(self._running), timeout=timeout)
        return [(self._running.pop(reference), self._outcome(reference)) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            return Outcome("lost", note=f"its Ray worker was lost ({reason}).")


def _work(cell: Cell, code: Sequence[str], plugins: bytes, folder: str) -> Outcome:
    import torch

    torch.set_num_threads(1)
    # Relative paths in a config mean the same as on the machine that planned the grid.
    os.chdir(folder)
    return work(cell, prepared(code, plugins))


def _reach(address: str) -> None:
    """Asks whether anything listens at HOST:PORT; Ray itself would try for ten minutes.

    Raises:
        OSError, ValueError: nothing does, or it is no address.
    """
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _ray() -> Any:
    require_package("ray", "ray", "--ray", instead="use --workers N, for processes on this machine")
    import ray

    return ray
