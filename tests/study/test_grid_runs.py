"""Real grids: failures are data, killed workers are replaced, two grids share a directory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w

from segcredit import TextSegmenter, read_runs, registry, run_grid, train
from segcredit.cli import main
from segcredit.errors import MissingPackageError, RegistryError, StorageError, StudyError
from segcredit.records.run_directory import RunRecords
from segcredit.study.grid import GridProgress, plan, runner
from segcredit.study.grid.cells import Cell
from segcredit.study.grid.workers import Outcome
from small import SMALL
from tables import assert_same

PLUGINS = '''
import os, pathlib, signal
from dataclasses import dataclass
import segcredit


@dataclass(frozen=True, slots=True)
class Troubled(segcredit.TextSegmenter):
    """Cuts nowhere."""

    marker: str = ""
    causal = True

    def split(self, text: str) -> list[int]:
        if not pathlib.Path(self.marker).exists():
            self.trouble()
        return []


@segcredit.register.segmenter("failing")
@dataclass(frozen=True, slots=True)
class Failing(Troubled):
    """Raises until its marker is there."""

    def trouble(self) -> None:
        raise ValueError("no marker")


@segcredit.register.segmenter("killed")
@dataclass(frozen=True, slots=True)
class Killed(Troubled):
    """Kills its process once."""

    def trouble(self) -> None:
        pathlib.Path(self.marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
'''


def config(**grid: Any) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for line in SMALL:
        (section, key), value = line.split("=")[0].rsplit(".", 1), json.loads(line.split("=")[1])
        table = nested
        for part in section.split("."):
            table = table.setdefault(part, {})
        table[key] = value
    return {"method": "sapo", **nested, "grid": grid}


def write_toml(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(tomli_w.dumps(content))


def by_segmenter(path: Path) -> dict[str, pd.Series]:
    runs = read_runs(path).runs
    return {row["segmenter"]: row for _, row in runs.iterrows()}


def test_failures_are_data_and_killed_workers_are_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "troubles.py"
    code.write_text(PLUGINS)
    troubled = [
        {"name": "failing", "marker": str(tmp_path / "mended")},
        {"name": "killed", "marker": str(tmp_path / "killed")},
    ]
    write_toml(tmp_path / "grid.toml", config(segmenter=[*troubled, "newline"]))

    def grid(*options: str) -> tuple[int, list[str]]:
        files = [str(tmp_path / "grid.toml"), "--output", str(tmp_path / "runs")]
        with pytest.raises(SystemExit) as end:
            main(["grid", *files, "--code", str(code), "--workers", "2", *options])
        return int(end.value.code or 0), capsys.readouterr().out.splitlines()

    status, lines = grid()
    assert status == 1
    assert lines[-2] == f"1 failed, 2 of 3 cells finished, in {tmp_path / 'runs'}"
    assert lines[0] == "3 cells, all checked: 3 new"
    assert any("segmenter=failing" in line and "no marker" in line for line in lines)
    assert (tmp_path / "killed").exists()
    found = by_segmenter(tmp_path / "runs")
    assert [found[name]["status"] for name in ("failing", "killed", "newline")] == [
        "failed",
        "finished",
        "finished",
    ]
    failed = json.loads((tmp_path / "runs" / found["failing"]["run"] / "status.json").read_text())
    assert "Traceback" in failed["traceback"]
    assert "no marker" in failed["message"]

    (tmp_path / "mended").touch()
    status, lines = grid()  # a failure stays one until it is asked for
    assert (status, lines[0]) == (1, "3 cells, all checked: 1 failed, 2 finished")
    assert by_segmenter(tmp_path / "runs")["failing"]["status"] == "failed"
    status, lines = grid("--retry-failed")
    assert status == 0
    assert lines[-2] == f"3 of 3 cells finished, in {tmp_path / 'runs'}"
    assert by_segmenter(tmp_path / "runs")["failing"]["error"] == ""


def test_two_grids_on_one_directory_share_the_work(tmp_path: Path) -> None:
    source = config(seeds=3)
    with ThreadPoolExecutor() as both:
        ends = [both.submit(run_grid, source, tmp_path / "runs") for _ in range(2)]
    for end in ends:
        assert len(end.result().of("finished")) == 3
    for cell in ends[0].result().cells:
        train(cell.config, tmp_path / "alone" / cell.directory.name)
    assert_same(tmp_path / "runs", tmp_path / "alone")


@pytest.mark.slow
def test_a_full_disk_stops_the_grid_and_the_next_call_continues(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    source = config(seeds=2)
    try:
        with pytest.raises(StorageError, match="The disk or the quota is full"):
            run_grid(source, disk / "runs")
        larger = ["mount", "-o", "remount,size=100m", str(disk)]
        subprocess.run(larger, check=True)
        assert len(run_grid(source, disk / "runs").of("finished")) == 2
        run_grid(source, tmp_path / "alone")
        assert_same(disk / "runs", tmp_path / "alone")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cell_that_cannot_be_read_stops_no_other_and_nothing_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, float | None]] = []

    def watch(progress: GridProgress) -> None:
        told.append((len(progress.of("finished", "failed")), progress.seconds_left()))

    (cell, _) = plan(config(seeds=2), tmp_path)
    (cell.directory / "metrics.jsonl").mkdir(parents=True)
    after = run_grid(config(seeds=2), tmp_path, watch=watch)
    assert [after.states[cell.directory] for cell in after.cells] == ["failed", "finished"]
    assert "metrics.jsonl cannot be read" in cell.error()
    assert told[0] == (0, None)
    assert told[-1] == (2, 0.0)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(subprocess, "Popen", refused)
    assert len(run_grid(config(seeds=2), tmp_path).of("finished")) == 1


class Simulated:
    """A team of two on a clock of its own: the first cells make in a minute what all share."""

    def __init__(self) -> None:
        self.now = 0.0
        self._at_work: dict[Path, tuple[Cell, RunRecords, float]] = {}

    def monotonic(self) -> float:
        return self.now

    def free(self) -> bool:
        return len(self._at_work) < 2

    def start(self, cell: Cell) -> None:
        run = RunRecords.create(cell.directory, cell.config.model_dump(), {})
        ready = self.now + (60.0 if self.now < 60 else 4.0)
        self._at_work[cell.directory] = (cell, run, ready)

    def wait(self, timeout: float) -> list[tuple[Cell, Outcome]]:
        self.now += timeout
        ended: list[tuple[Cell, Outcome]] = []
        for cell, run, ready in list(self._at_work.values()):
            step = self.now - ready
            if step >= 0 and step == int(step):
                run.metrics({"step": int(step)})
            if step == cell.config.train.steps:
                run.finish()
                del self._at_work[cell.directory]
                ended.append((cell, Outcome("ended")))
        return ended


def test_the_time_left_is_right_from_the_first_rows_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first cells make for all is in none of the estimates."""
    team = Simulated()
    monkeypatch.setattr(runner, "ProcessWorkers", lambda *_: nullcontext(team))
    monkeypatch.setattr(runner, "time", team)
    told: list[tuple[float, float]] = []

    def watch(progress: GridProgress) -> None:
        if (left := progress.seconds_left()) is not None:
            told.append((team.now, left))

    after = run_grid(config(seeds=8), tmp_path, workers=2, overrides=["train.steps=6"], watch=watch)
    assert len(after.of("finished")) == 8
    assert told[0][0] == 62.0  # the second steps
    # What starts take, three times four seconds, is known when the later cells have ended.
    for now, left in told:
        assert left == pytest.approx(team.now - now, abs=12.5 if now < 76 else 4.5)
    assert dict(told)[76.0] == dict(told)[86.0] + 10 == 20
    assert told[-1][1] == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nohost.invalid:6379", "here:there"])
def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'segcredit[ray]'")
    with pytest.raises(StudyError, match=f"no Ray cluster answers at '{address}'"):
        run_grid(config(seeds=1), tmp_path, ray=address)


def test_ray_that_is_not_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'segcredit\[ray\]', or use"):
        run_grid(config(seeds=1), tmp_path, ray="local")


def as_cell(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a text as ipykernel runs a cell: __main__ has no file, and linecache has the lines."""
    (folder / "cell.txt").write_text(source)
    kernel = (
        "import linecache, sys, types\n"
        f"source = open({str(folder / 'cell.txt')!r}).read()\n"
        "name = '/tmp/ipykernel_1/4711.py'\n"
        "linecache.cache[name] = (len(source), None, source.splitlines(True), name)\n"
        "main = sys.modules['__main__'] = types.ModuleType('__main__')\n"
        "exec(compile(source, name, 'exec'), main.__dict__)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", kernel], cwd=folder, capture_output=True, text=True, check=False
    )


CELL = """
from dataclasses import dataclass
import segcredit

places = (2, 4)

@segcredit.register.segmenter("half")
@dataclass(frozen=True, slots=True)
class Half(segcredit.TextSegmenter):
    causal = False

    def split(self, text):
        return [min(place, len(text)) for place in places]
"""


def test_a_segmenter_of_a_notebook_cell_goes_to_the_workers(tmp_path: Path) -> None:
    run = f"segcredit.run_grid({config(segmenter=['half'])!r}, output='runs')"
    identity = "print(segcredit.registry.segmenters.identity('half'))"
    done = as_cell(f"{CELL}\nassert not {run}.lost\n{identity}", tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = by_segmenter(tmp_path / "runs").values()
    assert row["status"] == "finished"
    (environment,) = (tmp_path / "runs").glob("*/environment.json")
    # Its code is known by the cell that defines it, in the worker as in the notebook.
    code = json.loads(environment.read_text())["plugins"]
    assert code["segmenter"] in done.stdout


LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Locked(TextSegmenter):
    causal = False

    def split(self, text: str) -> list[int]:
        with LOCK:
            return []


def test_a_plugin_that_cannot_leave_its_process_is_refused_before_a_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.segmenters._local, "locked", Locked)
    with pytest.raises(RegistryError, match=r"segmenter 'locked', .* cannot be carried over") as no:
        run_grid(config(segmenter=["locked"]), tmp_path / "runs")
    assert "give that as code=[...]" in str(no.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_cell_whose_worker_dies_each_time_has_failed_with_its_sentence(tmp_path: Path) -> None:
    code = tmp_path / "troubles.py"
    code.write_text(PLUGINS.replace("pathlib.Path(self.marker).touch()", "pass"))
    lost = {"name": "killed", "marker": str(tmp_path / "never")}
    after = run_grid(config(segmenter=[lost, "newline"]), tmp_path / "runs", code=[str(code)])
    assert sorted(after.states.values()) == ["failed", "finished"]
    row = by_segmenter(tmp_path / "runs")["killed"]
    assert row["status"] == "failed"
    assert "was killed (signal 9), usually because memory ran out. Tried 3 times" in row["error"]
