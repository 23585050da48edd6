"""Trackers show what metrics.jsonl holds, once a step, and nothing that they do stops a run.

TensorBoard is always there; the others are tested where they are installed, without a network.
"""

from __future__ import annotations

import json
import math
import struct
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from segcredit import load_config, train
from segcredit.errors import ConfigError
from segcredit.records import trackers
from segcredit.records.run_directory import read_metrics
from segcredit.records.stored_config import read_config
from segcredit.records.trackers import PROJECT, tracking
from segcredit.training.build import run_hash
from segcredit.training.loop import iterate
from small import SMALL

NAMES = ["tensorboard", "wandb", "mlflow", "trackio"]
CONFIG = {
    "segmenter": {"name": "entropy", "inner": {"share": 0.2}},
    "betas": (0.9, 0.95),
    "kl_limit": math.inf,
    "dual_clip": None,
}


class Fake:
    """A tracker that notes what it is told, and does what it is told to do on a step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.config: dict[str, Any] = {}
        self.ends: list[str] = []
        self.on_start: Any = lambda: None
        self.on_step: Any = lambda step: None
        self.on_end: Any = lambda: None

    @contextmanager
    def open(self, session: Any) -> Generator[Fake]:
        self.on_start()
        try:
            yield self
        except BaseException:
            self.ends.append("failed")
            raise
        self.on_end()
        self.ends.append("finished")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.on_step(step)
        self.rows.append((step, values))

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.rows]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(trackers._OPEN, "wandb", fake.open)
    return fake


def run(path: Path, steps: range = range(3)) -> None:
    with tracking(["wandb"], path, CONFIG) as show:
        for step in steps:
            show({"step": step, "reward": step / 4})


def broken(*_: object) -> None:
    raise ConnectionError("no route to host\nand a long text")


def test_rows_and_the_flat_config_arrive(fake: Fake, tmp_path: Path) -> None:
    run(tmp_path)
    assert fake.rows == [(step, {"reward": step / 4}) for step in range(3)]
    assert fake.config == {
        "segmenter.name": "entropy",
        "segmenter.inner.share": 0.2,
        "betas": "(0.9, 0.95)",
        "kl_limit": "inf",
    }
    assert fake.ends == ["finished"]


def test_what_is_not_finite_is_left_out(fake: Fake, tmp_path: Path) -> None:
    with tracking(["wandb"], tmp_path, {}) as show:
        show({"step": 0, "reward": math.nan, "kl": math.inf, "loss": 1})
    assert fake.rows == [(0, {"loss": 1.0})]


def test_no_tracker_is_no_folder(tmp_path: Path) -> None:
    with tracking([], tmp_path, CONFIG) as show:
        show({"step": 0})
    assert not list(tmp_path.iterdir())


def test_a_run_that_stops_is_shown_as_failed(fake: Fake, tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), tracking(["wandb"], tmp_path, CONFIG) as show:
        show({"step": 0})
        raise ZeroDivisionError
    assert fake.ends == ["failed"]


def test_nothing_starts_before_the_first_row(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking(["wandb"], tmp_path, CONFIG):
        raise ZeroDivisionError
    assert fake.ends == []


@pytest.mark.parametrize("moment", ["on_start", "on_step", "on_end"])
def test_a_fault_is_one_warning_and_the_run_goes_on(
    fake: Fake, tmp_path: Path, moment: str
) -> None:
    setattr(fake, moment, broken)
    with pytest.warns(RuntimeWarning, match="ConnectionError: no route to host\\)") as found:
        run(tmp_path)
    assert len(found) == 1
    assert "metrics.jsonl has every row" in str(found[0].message)


def test_a_fault_that_passes_leaves_a_gap_and_no_more(fake: Fake, tmp_path: Path) -> None:
    fake.on_step = lambda step: broken() if step == 1 else None
    with pytest.warns(RuntimeWarning, match="wandb"):
        run(tmp_path, range(4))
    assert fake.steps == [0, 2, 3]
    assert fake.ends == ["finished"]


def test_a_step_is_shown_once_however_often_the_run_is_resumed(fake: Fake, tmp_path: Path) -> None:
    run(tmp_path, range(4))
    run(tmp_path, range(2, 6))
    run(tmp_path, range(8))
    assert fake.steps == list(range(8))


def test_a_torn_memory_is_as_none(fake: Fake, tmp_path: Path) -> None:
    run(tmp_path, range(2))
    (tmp_path / "trackers" / "wandb.json").write_text('{"id": "a", "st')
    run(tmp_path, range(2))
    assert fake.steps == [0, 1, 0, 1]


def test_one_tracker_s_fault_does_not_touch_another(fake: Fake, tmp_path: Path) -> None:
    fake.on_start = broken
    with (
        pytest.warns(RuntimeWarning, match="wandb"),
        tracking(["wandb", "tensorboard"], tmp_path, CONFIG) as show,
    ):
        show({"step": 7, "reward": 0.5})
    assert stored_by_tensorboard(tmp_path) == [(7, "reward", 0.5)]


@pytest.mark.parametrize("value", ['["tensorboard"]', "tensorboard"])
def test_the_key_names_the_same_run(value: str) -> None:
    shown = load_config("ppo", [*SMALL, f"record.trackers={value}"])
    assert shown.record.trackers == ("tensorboard",)
    plain = load_config("ppo", SMALL)
    assert plain.record.trackers == ()
    assert run_hash(shown) == run_hash(plain)
    assert "trackers" not in shown.identity()["record"]
    # No other key may slip out of the identity, but who carries the run.
    whole = shown.model_dump()
    del whole["record"]["trackers"], whole["train"]["processes"], whole["train"]["parallel"]
    assert shown.identity() == whole


def test_an_unknown_tracker_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"record\.trackers.*'wandb'.*found 'wandbb'"):
        load_config("ppo", record__trackers=["wandbb"])


def test_a_tracker_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(ConfigError, match=r"record\.trackers.*pip install trackio"):
        load_config("ppo", record__trackers=["trackio"])


def test_every_known_tracker_can_be_opened() -> None:
    annotation = trackers.TrackerName.__args__
    assert set(trackers._OPEN) == set(annotation) == set(NAMES)


Stored = list[tuple[int, str, float]]


def stored_by_tensorboard(run: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Stored = []
    for file in (run / "trackers" / "tensorboard").glob("events.*"):
        events = EventAccumulator(str(file)).Reload()
        for key in events.Tags()["scalars"]:
            found += [(event.step, key, event.value) for event in events.Scalars(key)]
    return found


def stored_by_wandb(run: Path) -> Stored:
    found: Stored = []
    for record in wandb_records(run):
        items = {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        step = items.get("_step", record.history.step.num)
        found += [(step, k, v) for k, v in items.items() if not k.startswith("_")]
    return found


def wandb_records(run: Path) -> list[Any]:
    """Of every session, once the last has its end: a process of W&B's own writes the file."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    for _ in range(300):
        records = [
            Record.FromString(data) for file in files for data in leveldb_records(file.read_bytes())
        ]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{files} have no end")


def leveldb_records(data: bytes) -> Generator[bytes]:
    """Records of a LevelDB log: blocks of 32 KiB with pieces of (checksum, length, type)."""
    place, whole = 7, b""  # behind W&B's own head
    while place + 7 <= len(data):
        left = -place % 32768
        if 0 < left < 7:  # too short for a piece's head
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # a whole record, or its last piece
            yield whole
            whole = b""


def mlflow_runs(run: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run}/trackers/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(PROJECT)
    return client, list(client.search_runs([experiment.experiment_id]))


def stored_by_mlflow(run: Path) -> Stored:
    client, (only,) = mlflow_runs(run)
    return [
        (point.step, key, point.value)
        for key in only.data.metrics
        for point in client.get_metric_history(only.info.run_id, key)
    ]


def stored_by_trackio(run: Path) -> Stored:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = [name for name in SQLiteStorage.get_runs(PROJECT) if name.startswith(run.name)]
    return [
        (row["step"], key, value)
        for row in SQLiteStorage.get_logs(PROJECT, name)
        for key, value in row.items()
        if key not in {"step", "timestamp"}
    ]


STORED = {
    "tensorboard": stored_by_tensorboard,
    "wandb": stored_by_wandb,
    "mlflow": stored_by_mlflow,
    "trackio": stored_by_trackio,
}


def recorded(path: Path) -> Stored:
    rows = read_metrics(path)
    return [
        (int(row["step"]), key, value)
        for row in rows
        for key, value in row.items()
        if key != "step" and math.isfinite(value)
    ]


@pytest.fixture(params=NAMES)
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A real tracker that may use no network and nothing outside of ``tmp_path``."""
    pytest.importorskip(request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "trackio":
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    return request.param


def assert_same(name: str, path: Path, *, but: set[str] = frozenset()) -> None:
    """Every metric of every step, once; TensorBoard stores single precision."""
    shown, wanted = sorted(STORED[name](path)), sorted(recorded(path))
    assert [each[:2] for each in shown] == [each[:2] for each in wanted]
    for (step, key, found), (_, _, value) in zip(shown, wanted, strict=True):
        tolerance = 1e-7 if name == "tensorboard" else 1e-15
        assert key in but or math.isclose(found, value, rel_tol=tolerance), (step, key)


def test_the_numbers_of_two_runs_in_one_process_are_in_its_store(
    tracker: str, tmp_path: Path
) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not show every row")
        for seed, path in enumerate(paths):
            train(load_config("ppo", SMALL, seed=seed, record__trackers=[tracker]), path)
    for path in paths:
        assert len(recorded(path)) > 50
        assert_same(tracker, path)
    assert recorded(paths[0]) != recorded(paths[1])
    assert "trackers" not in read_config(paths[0])["record"]
    assert {path.name for path in tmp_path.iterdir()} <= {"first", "second", "trackio"}


def test_a_resumed_run_shows_no_step_twice_and_changes_no_number(
    tracker: str, tmp_path: Path
) -> None:
    config = load_config("ppo", SMALL, record__trackers=[tracker])
    path, plain = tmp_path / "shown", tmp_path / "plain"
    stopped = iterate(config, path)
    while next(stopped)["step"] < 3:  # behind the checkpoint of step 2
        pass
    stopped.close()
    assert end_of(tracker, path) in {"failed", None}
    train(config, path, resume=True)
    # The step that was run twice took a different time.
    assert_same(tracker, path, but={"cpu_seconds"})
    assert end_of(tracker, path) in {"finished", None}
    if tracker == "wandb":  # which has a file a session, of one run
        ids = [record.run.run_id for record in wandb_records(path) if record.HasField("run")]
        assert len(ids) == 2
        assert len(set(ids)) == 1

    train(load_config("ppo", SMALL), plain)
    timeless = [each for each in recorded(plain) if each[1] != "cpu_seconds"]
    assert [each for each in recorded(path) if each[1] != "cpu_seconds"] == timeless


def end_of(name: str, path: Path) -> str | None:
    """How the tracker says that the run ended; None where it has no word for it."""
    if name == "wandb":
        codes = [r.exit.exit_code for r in wandb_records(path) if r.HasField("exit")]
        return "failed" if codes[-1] else "finished"
    if name == "mlflow":
        return {"FAILED": "failed", "FINISHED": "finished"}[mlflow_runs(path)[1][0].info.status]
    return None
