"""Trackers, which show the metrics of a run elsewhere, through Accelerate's tracker classes.

    trackers/tensorboard/    TensorBoard's event files
    trackers/wandb/          what Weights & Biases keeps on the disk
    trackers/mlflow/         MLflow's store, where no other one is set
    trackers/NAME.json       what the tracker was shown so far, so that a resumed run goes on there

``metrics.jsonl`` is the record; a tracker is a copy for the eye, and no error of one stops a run.
"""

# Accelerate and the trackers carry no types: what they return is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
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
from segcredit.errors import told

Row = Mapping[str, float]
T = TypeVar("T")

PROJECT = "segcredit"
"""The project, or experiment, under which every run is shown."""


@contextmanager
def tracking(
    names: Iterable[TrackerName], directory: Path, config: Mapping[str, Any]
) -> Generator[Callable[[Row], None]]:
    """Opens trackers for the time of a run; gives the function that shows them a row.

    They start at the first row. A row whose step a tracker was shown before is passed over, so
    that a resumed run shows no step twice. What is not finite is left out, as JSON has no word
    for it either. A block that is left by an error is shown as failed where the tracker can.

    Args:
        names: which trackers; none is fine.
        directory: the run directory; its name is the run's.
        config: what makes the run, nested; shown flat, with dotted keys.

    Warns:
        RuntimeWarning: once a tracker, when it fails; the run goes on.
    """
    trackers = [_Tracked(_Session.of(name, directory, config)) for name in names]

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
        """Restores the session of a stopped run, or begins one; an unreadable file is as none."""
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
    """A tracker whose errors become one warning, since none may stop a run."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._stack = ExitStack()
        self._tracker: GeneralTracker | None = None
        self._started = self._warned = False

    def show(self, row: Row) -> None:
        """Shows a row; the first one opens the tracker."""
        if not self._started:
            self._started = True
            self._tracker = self._attempt(self._open)
        tracker = self._tracker
        if tracker is not None:
            self._attempt(lambda: self._session.show(tracker, row))

    def close(self, completed: bool) -> None:
        """Ends the tracker, as failed where the run was not completed."""
        self._attempt(lambda: self._end(completed))

    def _open(self) -> GeneralTracker:
        tracker = self._stack.enter_context(_OPEN[self._session.name](self._session))
        tracker.store_init_configuration(self._session.config)
        return tracker

    def _end(self, completed: bool) -> None:
        with suppress(_Stopped), self._stack:
            if not completed:
                raise _Stopped

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """Calls a tracker; turns the first error of all calls into a warning, drops the others."""
        try:
            return call()
        except (Exception, SystemExit) as error:
            if not self._warned:
                self._warned = True
                self._warn(error)
            return None

    def _warn(self, error: BaseException) -> None:
        reason = ((told(error) + "\n").splitlines())[0]
        warnings.warn(
            f"{self._session.name} does not show every row of {self._session.directory}"
            f" ({reason}). The run goes on, and metrics.jsonl has every"
            " row. Usually the network or the server is gone, nobody is logged in, or the disk is"
            " full.",
            RuntimeWarning,
            stacklevel=4,
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

    with _local_store(session.folder / "mlflow") as artifacts:
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
