"""How long ``read_runs`` takes over a large grid, and how much memory.

    python benchmarks/read_runs.py [DIR] --runs 1000 --steps 200 --segments 50 --repeats 5

Makes synthetic runs in DIR (kept, and used again; about 0.7 GB) or in a temporary folder, finished
as a grid leaves them: the resolved config of ``sapo`` brought to 4 KB, ``metrics.jsonl`` with
``steps.parquet``, and a packed ``segments`` table with real text. Each task below is measured in
processes of its own that may use one core, in turns: CPU seconds from ``read_runs`` on, imports
left out, as median [lowest-highest], and the largest memory of the process. ``obvious`` is the
reader that one would write first: ``tomllib``, ``json.loads`` a line, ``pandas.concat``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

os.environ["OMP_NUM_THREADS"] = "1"

CONFIG_BYTES = 4096
PROMPTS = 12


def make_runs(path: Path, runs: int, steps: int, segments: int) -> None:
    """Finished runs with so many steps of so many segments."""
    from segcredit.config import load_config

    config = load_config("sapo").model_dump()
    for number in range(runs):
        directory = path / f"{number:010x}"
        directory.mkdir()
        chosen = {**config, "seed": number % 10, "segmenter": SEGMENTERS[number // 10 % 3]}
        (directory / "config.toml").write_text(_config_text(chosen))
        (directory / "environment.json").write_text("{}")
        (directory / "status.json").write_text('{"status": "finished"}')
        _write_metrics(directory, number, steps)
        _write_segments(directory, number, steps, segments)


def _config_text(config: dict[str, Any]) -> str:
    """The config as TOML, with further options up to the size of one with wrapped plug-ins."""
    text = tomli_w.dumps(_without_none(config))
    for number in range(CONFIG_BYTES):
        if len(text) >= CONFIG_BYTES:
            break
        text += f"\n[options_{number}]\n{OPTIONS}"
    return text


SEGMENTERS: list[dict[str, Any]] = [
    {"name": "newline"},
    {"name": "entropy", "top_fraction": 0.3, "fork": "ends"},
    {"name": "min_length", "tokens": 8, "inner": {"name": "sentence"}},
]
OPTIONS = 'name = "some"\nrate = 0.003\nwindow = 4\nkind = "linear"\ncenter = true\n'


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in table.items() if value is not None}
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in found.items()}


def _write_metrics(directory: Path, seed: int, steps: int) -> None:
    from segcredit.records.run_directory import METRICS, read_metrics
    from segcredit.records.step_tables import pack_metrics
    from segcredit.records.tables import STEP_COLUMNS

    chance = random.Random(seed)
    rows = [
        {"step": step, **{name: chance.random() for name in STEP_COLUMNS}} for step in range(steps)
    ]
    for row in rows:
        if row["step"] % 5:
            del row["accuracy"], row["accuracy_greedy"], row["process_correct"]
    (directory / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack_metrics(directory, read_metrics(directory))


def _write_segments(directory: Path, seed: int, steps: int, segments: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from segcredit.records.schemas import STORED

    chance, rows = np.random.default_rng(seed), steps * segments
    numbers = chance.integers(2, 99, size=(rows, 3))
    prompts = np.arange(rows) // segments * PROMPTS + np.arange(rows) % PROMPTS
    places = np.arange(rows) % segments
    columns = {
        "step": np.arange(rows) // segments,
        "prompt": [f"arithmetic/{number}" for number in prompts],
        "completion": places // 10,
        "segment": places % 10,
        "start": places % 10 * 7,
        "end": places % 10 * 7 + 7,
        "text": [f"Then {a} + {b} makes {c}, which we keep.\n" for a, b, c in numbers],
        **{
            name: chance.normal(size=rows)
            for name in ("value", "reward", "advantage", "return", "ratio")
        },
    }
    (directory / "segments").mkdir()
    table = pa.table(columns).cast(STORED["segments"])
    file = directory / "segments" / "all.parquet"
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def obvious(path: Path) -> tuple[Any, Any]:
    """The tables ``.runs`` and ``.steps`` with what first comes to mind."""
    import tomllib

    import pandas as pd

    from segcredit.records.tables import flatten

    configs, steps = [], []
    for config in sorted(path.rglob("config.toml")):
        run = config.parent.relative_to(path).as_posix()
        status = json.loads((config.parent / "status.json").read_text())["status"]
        configs.append({"run": run, **flatten(tomllib.loads(config.read_text())), "status": status})
        lines = (config.parent / "metrics.jsonl").read_text().splitlines()
        steps.append(pd.DataFrame([json.loads(line) for line in lines]).assign(run=run))
    return pd.DataFrame(configs), pd.concat(steps)


def unpacked(path: Path) -> None:
    """``.runs`` and ``.steps`` of runs that still go on: from ``metrics.jsonl``."""
    from segcredit.records.tables import step_metrics

    step_metrics._finished = lambda directory: False  # pyright: ignore[reportPrivateUsage]
    runs = _read(path)
    _ = runs.runs, runs.steps


def last_step(path: Path) -> None:
    import pyarrow.dataset as ds

    runs = _read(path)
    last = int(runs.read("steps", ["step"])["step"].max())
    runs.read("segments", where=ds.field("step") == last)


def _read(path: Path) -> Any:
    import segcredit

    return segcredit.read_runs(path)


TASKS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "imports": ("nothing: the imports alone", lambda path: None),
    "find": ("read_runs(path)", _read),
    "runs": (".runs", lambda path: _read(path).runs),
    "progress": (".progress", lambda path: _read(path).progress),
    "steps": (".steps", lambda path: _read(path).steps),
    "first": (".runs and .steps", lambda path: [(r := _read(path)).runs, r.steps]),
    "unpacked": (".runs and .steps, runs still going on", unpacked),
    "obvious": ("obvious: .runs and .steps", obvious),
    "column": ("one column of .segments", lambda path: _read(path).read("segments", ["ratio"])),
    "last": ("the last step's .segments", last_step),
    "numbers": (
        "numbers of .segments",
        lambda path: _read(path).read(
            "segments", ["step", "prompt", "completion", "segment", "value", "advantage", "return"]
        ),
    ),
    "segments": (".segments", lambda path: _read(path).segments),
}
"""What is measured: how it is called in the output, and what it does."""


def measure_here(task: str, path: Path) -> dict[str, float]:
    """CPU and wall seconds of a task in this process, and the largest memory in MB."""
    import pyarrow
    import pyarrow.dataset

    import segcredit.records.tables  # noqa: F401

    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pyarrow.set_cpu_count(1)
    wall, cpu = time.perf_counter(), time.process_time()
    result = TASKS[task][1](path)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    del result
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "wall": wall, "peak": peak}


def measure(task: str, path: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, str(path), "--task", task]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextlib.contextmanager
def directory_of(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    """A line a task; then how much quicker than the obvious reader."""
    options = argparse.ArgumentParser()
    options.add_argument("path", nargs="?", type=Path)
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--segments", type=int, default=50)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--task", choices=list(TASKS))
    chosen = options.parse_args()
    if chosen.task:
        print(json.dumps(measure_here(chosen.task, chosen.path)))
        return
    with directory_of(chosen.path) as path:
        if not any(path.iterdir()):
            make_runs(path, chosen.runs, chosen.steps, chosen.segments)
        # In turns, so that a slow minute of the machine is shared by all.
        rounds = [{task: measure(task, path) for task in TASKS} for _ in range(chosen.repeats)]
    print(f"{chosen.runs} runs x {chosen.steps} steps x {chosen.segments} segments, one core")
    for task, (name, _) in TASKS.items():
        cpu = _spread([found[task]["cpu"] for found in rounds])
        peak = max(found[task]["peak"] for found in rounds)
        print(f"{name:40} {cpu} CPU-s   peak {peak:6.0f} MB")
    for task in ("first", "unpacked"):
        ratios = [found["obvious"]["cpu"] / found[task]["cpu"] for found in rounds]
        print(f"obvious / {TASKS[task][0]:30} {_spread(ratios)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} [{min(values):.2f}-{max(values):.2f}]"


if __name__ == "__main__":
    main()
