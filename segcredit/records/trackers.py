"""Trackers, which show the metrics of a run elsewhere, through Accelerate's tracker classes.

    trackers/tensorboard/    TensorBoard's event files
    trackers/wandb/          what Weights & Biases keeps on the disk
    trackers/mlflow/         MLflow's store, where no other one is set
    trackers/NAME.json       what the tracker was shown so far, so that a resumed run goes on there

``metrics.jsonl`` is the record; a tracker is a copy for the eye, and no fault of one stops a run
or holds it up for long.
"""

# Accelerate and the trackers carry no types: what they return is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from transformers.utils.generic import flatten_dict

from segcredit.atomic_files import write_atomically
from segcredit.config import TrackerName

Row = Mapping[str, float]
T = TypeVar("T")

PROJECT = "segcredit"
"""The project, or experiment, under which every run is shown."""

PATIENCE = 10.0
"""Seconds that a run waits for one tracker while it goes on, all rows together, and once more at
its end. Waiting keeps the tracker's work out of the next step's ``cpu_seconds``."""

SILENCE = 6
"""Times its patience after which a run says that a tracker does not answer."""

_ONE_STORE = Lock()
"""MLflow's store is set for the whole process: held from a run's first row to its last."""


@contextmanager
def tracking(
    names: Iterable[TrackerName],
    directory: Path,
    config: Mapping[str, Any],
    *,
    patience: float = PATIENCE,
) -> Generator[Callable[[Row], None]]:
    """Trackers for the time of a run; gives the function that shows them a row.

    They start at the first row. A row whose step a tracker was shown before is passed over, so
    that a resumed run shows no step twice. What is not finite is left out, as JSON has no word
    for it either. A block that is left by an error is shown as failed where the tracker can.

    Args:
        names: which trackers; none is fine.
        directory: the run directory; its name is the run's.
        config: what makes the run, nested; shown flat, with dotted keys.
        patience: see ``PATIENCE``.

    Warns:
        RuntimeWarning: once a tracker, when it fails; the run goes on.
    """
    trackers = [_Tracked(_Session.of(name, directory, config), patience) for name in names]

    def show(row: Row) -> None:
        for tracked in trackers:
            tracked.show(row)

    completed = False
    try:
        yield show
        completed = True
    finally:
        for tracked in trackers:
            tracked.close(completed)


@dataclass(slots=True)
class _Session:
    """One tracker of one run, over all of the processes that carry the run on."""

    name: TrackerName
    directory: Path
    config: dict[str, bool | int | float | str]
    id: str = ""
    """The run's name at the tracker, given when it is first started."""
    step: int = -1
    """The last step that it was shown."""

    @classmethod
    def of(cls, name: TrackerName, directory: Path, config: Mapping[str, Any]) -> _Session:
        """As it stood when the run was stopped, or new; a file that cannot be read is as none."""
        flat = flatten_dict(dict(config))
        session = cls(name, directory, {k: _scalar(v) for k, v in flat.items() if v is not None})
        with suppress(OSError, ValueError, KeyError):
            found = json.loads(session.file.read_text(encoding="utf-8"))
            session.id, session.step = str(found["id"]), int(found["step"])
        return session

    @property
    def folder(self) -> Path:
        return self.directory.absolute() / "trackers"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.json"

    def show(self, tracker: GeneralTracker, row: Row) -> None:
        step = int(row["step"])
        if step <= self.step:
            return
        shown = {key: float(value) for key, value in row.items() if key != "step"}
        tracker.log({k: v for k, v in shown.items() if math.isfinite(v)}, step=step)
        self.step = step
        write_atomically(self.file, json.dumps({"id": self.id, "step": step}).encode())


class _Tracked:
    """A tracker in a thread of its own, which alone waits for networks and servers.

    One thread for all of its calls: MLflow's active run belongs to the thread that started it.
    """

    def __init__(self, session: _Session, patience: float) -> None:
        self._session = session
        self._patience = self._closing_patience = patience
        self._rows: SimpleQueue[tuple[Row, Event] | None] = SimpleQueue()
        self._answered = 0.0
        self._completed = False
        self._fault = ""
        self._warned = False
        # A daemon: a server that never answers must not keep the process from ending.
        self._thread = Thread(target=self._work, name=f"tracker {session.name}", daemon=True)

    def show(self, row: Row) -> None:
        """Hands over a row, and wait for it while there is patience left."""
        if self._thread.ident is None:
            self._answered = time.monotonic()
            self._thread.start()
        handled = Event()
        self._rows.put((row, handled))
        started = time.monotonic()
        handled.wait(self._patience)
        now = time.monotonic()
        self._patience = max(0.0, self._patience - (now - started))
        silent = now - self._answered
        # One row may always be on its way.
        if self._rows.qsize() > 1 and silent > SILENCE * self._closing_patience:
            self._fault = self._fault or f"it has not answered for {silent:.0f} s"
        self._warn()

    def close(self, completed: bool) -> None:
        """Ends the tracker, as soon as it was shown every row."""
        if not self._thread.is_alive():
            return
        self._completed = completed
        self._rows.put(None)
        self._thread.join(self._closing_patience)
        if self._thread.is_alive() and not self._fault:
            self._fault = f"it still had not answered {self._closing_patience:g} s after the end"
        self._warn()

    def _work(self) -> None:
        session, stack = self._session, ExitStack()
        tracker = self._attempt(lambda: stack.enter_context(_OPEN[session.name](session)))
        if tracker is not None:
            self._attempt(lambda: tracker.store_init_configuration(session.config))
        for row, handled in iter(self._rows.get, None):
            if tracker is not None:
                self._attempt(partial(session.show, tracker, row))
            self._answered = time.monotonic()
            handled.set()
        self._attempt(lambda: self._end(stack))

    def _end(self, stack: ExitStack) -> None:
        with suppress(_Stopped), stack:
            if not self._completed:
                raise _Stopped

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """Whatever a tracker raises is kept for a warning: it is no fault of the run."""
        try:
            return call()
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            self._fault = self._fault or f"{type(error).__name__}: {reason}"
            return None

    def _warn(self) -> None:
        """Once, and from the run's thread: warnings as errors must not end the tracker's."""
        if not self._fault or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{self._session.name} does not show every row of {self._session.directory}"
            f" ({self._fault}). The run goes on, and metrics.jsonl has every row. Usually the"
            " network or the server is gone, nobody is logged in, or the disk is full.",
            RuntimeWarning,
            stacklevel=3,
        )


class _Stopped(Exception):
    """Thrown into an open tracker whose run did not come to its end."""


@contextmanager
def _tensorboard(session: _Session) -> Generator[GeneralTracker]:
    tracker = TensorBoardTracker("tensorboard", session.folder)
    tracker.start()
    try:
        yield tracker
    finally:
        tracker.finish()


@contextmanager
def _wandb(session: _Session) -> Generator[GeneralTracker]:
    session.id = session.id or uuid.uuid4().hex[:8]
    session.folder.mkdir(parents=True, exist_ok=True)  # else it falls back on the system's own
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        id=session.id,
        name=session.directory.name,
        dir=str(session.folder),
        resume="allow",
        reinit="finish_previous",
        settings={"console": "off", "quiet": True},
    )
    tracker.start()
    try:
        yield tracker
    except _Stopped:
        tracker.run.finish(exit_code=1)
        raise
    tracker.finish()


@contextmanager
def _mlflow(session: _Session) -> Generator[GeneralTracker]:
    import mlflow

    with _ONE_STORE, _local_store(session.folder / "mlflow") as artifacts:
        tracker = MLflowTracker(
            PROJECT,
            logging_dir=artifacts,
            run_id=session.id or None,
            run_name=session.directory.name,
        )
        tracker.start()
        session.id = tracker.active_run.info.run_id
        try:
            yield tracker
        except _Stopped:
            mlflow.end_run("FAILED")
            raise
        tracker.finish()


@contextmanager
def _local_store(folder: Path) -> Generator[str | None]:
    """Sets a store in ``folder`` where none is set; gives the place of its files."""
    import mlflow

    if mlflow.is_tracking_uri_set():
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    try:
        yield (folder / "artifacts").as_uri()
    finally:
        mlflow.set_tracking_uri(None)


@contextmanager
def _trackio(session: _Session) -> Generator[GeneralTracker]:
    # Trackio finds a run again by its name, and runs of one name may lie in several places.
    session.id = session.id or f"{session.directory.name}-{uuid.uuid4().hex[:4]}"
    tracker = TrackioTracker(
        PROJECT,
        name=session.id,
        resume="allow",
        embed=False,
        auto_log_cpu=False,  # its thread would be counted among the run's cpu_seconds
        auto_log_gpu=False,
    )
    tracker.start()
    try:
        yield tracker
    finally:
        tracker.finish()


_OPEN: dict[TrackerName, Callable[[_Session], AbstractContextManager[GeneralTracker]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def _scalar(value: Any) -> bool | int | float | str:
    """Converts to what every tracker can hold; lists and what is not finite become text."""
    plain = isinstance(value, (bool, int, str)) or (
        isinstance(value, float) and math.isfinite(value)
    )
    return value if plain else str(value)
