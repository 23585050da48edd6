"""A grid that is killed again and again, and a grid on Ray: the tables are those of a quiet one."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w

from segcredit import run_grid
from segcredit.study.grid import plan
from tables import assert_same

KILLS = 25
GRID: dict[str, Any] = {
    "policy": {"steps": 40},
    "task": {"min_steps": 1, "max_steps": 2},
    "rollouts": {"prompts": 4, "completions": 4, "max_new_tokens": 24},
    "train": {"steps": 40, "patience": 100, "value": {"warmup_iterations": 1}},
    "evaluate": {"prompts": 8, "every": 5},
    "record": {"every": 1, "tokens": True},
    "checkpoint": {"every": 2},
    "grid": {
        "seeds": 3,
        "case": [
            {"method": "grpo"},
            {"method": "ppo"},
            {"method": "sapo", "segmenter": "newline"},
            {"method": "single_stream", "rollouts.prompt_pool": 8},
        ],
    },
}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quiet")
    assert len(run_grid(GRID, path, workers=2).of("finished")) == 12
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_moments_change_nothing(quiet: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(tomli_w.dumps(GRID))
    command = [sys.executable, "-c", "from segcredit.cli import main; main()", "grid"]
    command += [str(tmp_path / "grid.toml"), "--output", str(tmp_path / "runs"), "--workers", "2"]
    chance = random.Random(0)
    killed = {"parent": 0, "worker": 0}
    grid = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while sum(killed.values()) < KILLS:
        kind, parent = chance.choice(("parent", "worker", "worker")), psutil.Process(grid.pid)
        # However long a loaded machine takes to start one.
        while kind == "worker" and grid.poll() is None and not parent.children():
            time.sleep(0.1)
        time.sleep(chance.uniform(3.0, 9.0))
        if grid.poll() is not None:
            assert grid.returncode == 1, f"the grid ended after {killed} kills: make it longer"
            grid = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            continue
        workers = parent.children()
        victim = chance.choice(workers) if workers and kind == "worker" else parent
        victim.kill()
        killed["parent" if victim is parent else "worker"] += 1
        if victim is parent:
            grid.wait()
            # One that is still importing, slowly where others compute too, notices after that.
            _, left = psutil.wait_procs(workers, timeout=120)
            assert not left, "a worker outlived its grid"
            grid = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    grid.wait()
    print(f"killed: {killed}")
    for _ in range(3):  # a cell whose worker was killed three times in one call is left to the next
        last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.stdout.splitlines()[-2].startswith("12 of 12 cells finished"), last.stdout
    assert min(killed.values()) > 0
    assert_same(tmp_path / "runs", quiet)
    assert not list((tmp_path / "runs").rglob(".*.tmp"))


@pytest.fixture
def unniced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers at the niceness of all else; at its 15 they starve where others compute too."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("unniced")
def test_ray_gives_the_same_tables(quiet: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'segcredit[ray]'")
    assert len(run_grid(GRID, tmp_path, ray="local", workers=2).of("finished")) == 12
    assert_same(tmp_path, quiet)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("unniced")
def test_a_killed_ray_worker_is_replaced(quiet: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'segcredit[ray]'")
    killed: list[int] = []

    def watch(progress: Any) -> None:
        if len(killed) < 2 and any(cell.steps_done() > 3 for cell in progress.running):
            for process in psutil.Process().children(recursive=True):
                if "ray::_work" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    break

    assert len(run_grid(GRID, tmp_path, ray="local", workers=2, watch=watch).of("finished")) == 12
    assert len(killed) == 2
    assert_same(tmp_path, quiet)


def test_the_grid_has_twelve_cells(tmp_path: Path) -> None:
    assert len(plan(GRID, tmp_path)) == 12
