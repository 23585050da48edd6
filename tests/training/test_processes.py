"""Several processes: equal to one, of one mind, and what ends them. By torchrun and gloo."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import segcredit
from processes_cases import EQUAL, FAULTS, ROUNDING, SHARDED
from segcredit import load_config, read_runs
from segcredit.errors import ConfigError, TrainingError
from segcredit.testing.toy import ToySimulator, toy_rollouts
from segcredit.training.build import build
from segcredit.training.distributed.all_gather import all_rows, join_rows
from segcredit.training.distributed.fsdp import shard
from segcredit.training.distributed.processes import ALONE, Processes
from segcredit.training.update import improve
from small import SMALL

HERE = Path(__file__).parents[1]
SECONDS = 200


def torchrun(*arguments: str, processes: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc_per_node", str(processes), *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=HERE, env=environment(), capture_output=True, text=True, timeout=SECONDS
    )


SLOW = ["grpo", "summed", "tree", "sharded_ppo", "sharded_kl", "sharded_summed", "alike_critic"]
SLOW += ["alike_reader", "sharded_reader"]
"""Cases that are much like others."""
BROKEN = [f"broken_{fault}" for fault in FAULTS]
OTHERS = ["alike_tracker", "alike_varied", "alike_critic", "alike_reader", "sharded_reader"]
OTHERS += ["moved", "refused", *BROKEN]


def outcomes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What two processes found; one start for all cases, since it takes the most time."""
    done = run(torchrun("processes_cases.py", *names))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    return outcomes([name for name in (*EQUAL, *SHARDED, *OTHERS) if name not in SLOW])


@pytest.fixture(scope="module")
def slow_cases() -> dict[str, dict[str, Any]]:
    return outcomes(SLOW)


def require_same_steps(found: dict[str, Any]) -> None:
    """Requires gradients that differ by rounding alone, and what follows from equal ones."""
    assert found["gradients"] < ROUNDING
    assert found["moments"] < 1e-6  # a few roundings of an entry
    assert found["parameters"] < 1e-5


def require_equal(found: dict[str, Any]) -> None:
    """Requires of two processes one's losses and gradients, and that something was learned."""
    assert found["reward_std"] > 0
    assert found["moved"] > 1e-3
    assert found["metrics"] < 1e-5
    require_same_steps(found)
    assert all(found["tables"])
    assert all(found["rows"])


@pytest.mark.parametrize("name", [n for n in (*EQUAL, *SHARDED) if n not in SLOW])
def test_two_processes_give_what_one_gives(cases: Any, name: str) -> None:
    require_equal(cases[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SLOW if n in EQUAL | SHARDED])
def test_two_processes_give_what_one_gives_in_further_cases(slow_cases: Any, name: str) -> None:
    require_equal(slow_cases[name])


def test_a_checkpoint_moves_between_one_process_two_and_shards(cases: Any) -> None:
    found = cases["moved"]
    require_same_steps(found)
    assert found["moved"] > 1e-4
    assert found["keys"] == 1
    alone, replicated, sharded = found["held"]
    assert alone == replicated == 1
    assert 0.4 < sharded < 0.6


@pytest.mark.parametrize("name", BROKEN)
def test_gradients_show_what_is_broken(cases: Any, name: str) -> None:
    """A missing all-reduce, a denominator of one's own and a dropped row are far from rounding."""
    assert cases[name]["gradients"] > 100 * ROUNDING


def test_shares_may_differ(cases: Any) -> None:
    assert len(set(cases["sapo"]["rows"])) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alike_critic", "alike_reader", "sharded_reader"])
def test_critics_end_the_same(slow_cases: Any, name: str) -> None:
    """Also where they were pretrained by two processes together, sharded or not."""
    assert slow_cases[name]["same"]


@pytest.mark.parametrize("name", ["alike_tracker", "alike_varied"])
def test_processes_sample_for_themselves_and_end_with_the_same_state(cases: Any, name: str) -> None:
    found = cases[name]
    assert found["same"]
    first, second = found["keys"]
    assert first
    assert second
    assert not set(first) & set(second)
    assert found["texts"][0] != found["texts"][1]
    assert len(set(found["rounds"])) == 1


def test_the_tracker_meets_the_prompts_of_all(cases: Any) -> None:
    assert cases["alike_tracker"]["met"] > len(cases["alike_tracker"]["keys"][0])


def test_who_fails_tells_the_others(cases: Any) -> None:
    other, own = cases["refused"]["heard"]
    assert other == "TrainingError: process 1 of 2 stopped: ValueError: no such thing"
    assert own == "ValueError: no such thing"


def train(path: Path, *more: str) -> list[str]:
    changes = [*SMALL, "record.tokens=false", *more]
    return ["-m", "segcredit", "train", "sapo", *changes, "--output", str(path)]


@pytest.mark.slow
def test_two_processes_record_a_run_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    changes = ["train.steps=4", "train.processes=2", "train.parallel=sharded"]
    done = run(torchrun(*train(path, *changes)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Recorded in") == 1
    runs = read_runs(path)
    assert runs.runs.status.tolist() == ["finished"]
    assert json.loads((path / "environment.json").read_text())["processes"] == 2
    assert runs.steps.step.tolist() == [0, 1, 2, 3, 4]
    assert len(runs.completions) == 4 * 16
    assert not runs.completions.duplicated(["step", "prompt", "completion"]).any()
    assert runs.completions.segments.sum() == len(runs.segments)
    assert runs.completions[runs.completions.step == 3].reward.mean() == pytest.approx(
        float(runs.steps.reward[3])
    )


def lose_one(path: Path, rank: int) -> subprocess.CompletedProcess[str]:
    """Train until there is a checkpoint, then kill a process."""
    command = torchrun(*train(path, "train.steps=400"))
    launcher = subprocess.Popen(
        command, cwd=HERE, env=environment(), text=True, stdout=-1, stderr=-1
    )
    deadline = time.monotonic() + SECONDS
    while not list(path.glob("checkpoints/step_000002.pt")) and time.monotonic() < deadline:
        assert launcher.poll() is None, launcher.communicate()[1][-3000:]
        time.sleep(0.1)
    os.kill(_child(launcher.pid, rank), signal.SIGKILL)
    out, err = launcher.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(command, launcher.returncode, out, err)


def _child(launcher: int, rank: int) -> int:
    children = psutil.Process(launcher).children()
    return next(c.pid for c in children if c.environ().get("RANK") == str(rank))


def require_interrupted(path: Path, lost: subprocess.CompletedProcess[str]) -> int:
    """The sentence is there, on the screen and in the record; returns the checkpoint's step."""
    assert lost.returncode != 0
    status = json.loads((path / "status.json").read_text())
    assert status["status"] == "interrupted"
    assert "process 1 of 2 was lost" in status["message"]
    saved = sorted(path.glob("checkpoints/*.pt"))[-1]
    assert str(saved) in status["message"]
    assert "--resume" in status["message"]
    assert "SIGKILL" in lost.stderr  # the launcher's own last lines
    return int(saved.stem.removeprefix("step_"))


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").open()]


def test_the_loss_of_a_process_ends_the_run_and_one_process_takes_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    last = require_interrupted(path, lose_one(path, rank=1))

    def until(run: Any, batch: Any, step: int, **more: Any) -> Any:
        if step > last + 2:
            raise KeyboardInterrupt
        return improve(run, batch, step, **more)

    monkeypatch.setattr("segcredit.training.loop.improve", until)
    config = load_config("sapo", [*SMALL, "record.tokens=false", "train.steps=400"])
    with pytest.raises(KeyboardInterrupt):
        segcredit.train(config, path, resume=True)
    assert steps_of(path) == list(range(last + 3))
    assert json.loads((path / "environment.json").read_text())["processes"] == 1


@pytest.mark.slow
def test_two_processes_take_up_what_two_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    last = require_interrupted(path, lose_one(path, rank=1))
    script = tmp_path / "stop.py"
    script.write_text(f"""
import segcredit.training.loop
from segcredit.cli import main
from segcredit.training.update import improve
def until(run, batch, step, **more):
    if step > {last + 2}:
        raise KeyboardInterrupt
    return improve(run, batch, step, **more)
segcredit.training.loop.improve = until
main({[*train(path, "train.steps=400")[2:], "--resume"]!r})
""")
    run(torchrun(str(script)))
    assert steps_of(path) == list(range(last + 3))
    assert json.loads((path / "environment.json").read_text())["processes"] == 2


def test_fewer_processes_than_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 processes .* and 1 started.*torchrun --nproc_per_n"):
        Processes.started(3, cpu=True)


@pytest.mark.parametrize(
    "launched",
    [
        {"WORLD_SIZE": "2"},
        {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
    ],
)
def test_processes_that_do_not_find_each_other_are_an_error(
    launched: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Processes.started(cpu=True).count == 1  # what Accelerate keeps for this program
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="Start"):
        Processes.started(cpu=True)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shares_are_all_items_in_their_order(count: int) -> None:
    items = list(range(5))
    shares = [list(Processes(rank, count).share(items)) for rank in range(count)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_gets_back_what_it_gave() -> None:
    rollouts, x = toy_rollouts(ToySimulator()), torch.ones(2, 3)
    assert all_rows(ALONE, rollouts) is rollouts
    assert ALONE.all_gather(x) is x
    assert ALONE.sum(x) is x
    assert ALONE.from_first(x) is x
    with pytest.raises(TrainingError, match="mine"), ALONE.error_barrier():
        raise TrainingError("mine")


def test_rows_of_processes_stay_apart() -> None:
    rollouts = toy_rollouts(ToySimulator())
    every = join_rows([rollouts, rollouts.select([0, 1])])
    assert len(every) == len(rollouts) + 2
    assert not set(every.group[: len(rollouts)].tolist()) & set(every.group[-2:].tolist())
    nodes = every.node_ids[every.action_mask]
    first = every.node_ids[: len(rollouts)][every.action_mask[: len(rollouts)]]
    assert not set(first.tolist()) & set(nodes[len(first) :].tolist())
    assert every.texts[-2:] == rollouts.texts[:2]
    assert torch.equal(every.rewards[-2:], rollouts.rewards[:2])


def test_each_process_needs_a_prompt() -> None:
    with pytest.raises(ConfigError, match=r"rollouts.prompts is 4 and 5 processes .*at least one"):
        build(load_config("grpo", SMALL), Processes(0, 5))


def test_only_float32_is_sharded() -> None:
    with pytest.raises(ConfigError, match=r"float32; found torch.bfloat16.*'replicated'"):
        shard(torch.nn.Linear(2, 2, dtype=torch.bfloat16), Processes(0, 2))


KILLED = {
    "one": (1, 40, []),
    "ahead": (1, 10, ["rollouts.ahead=1", "loss.correction=mask"]),
    "two": (2, 30, []),
    "sharded": (2, 20, ["train.parallel=sharded"]),
}
"""Processes, kills and settings of runs that are killed at any moment."""


def resumed(path: Path, processes: int, settings: list[str]) -> list[str]:
    changes = [*SMALL, "checkpoint.every=1", "train.steps=30", "evaluate.every=30", *settings]
    own = ["-m", "segcredit", "train", "sapo", *changes, "--output", str(path), "--resume"]
    return [sys.executable, *own] if processes == 1 else torchrun(*own, processes=processes)


def rows(path: Path) -> int:
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def kill_once(path: Path, processes: int, settings: list[str], chance: random.Random) -> bool:
    """Starts a run and kills one of its processes; tells whether it was alive then."""
    started = subprocess.Popen(
        resumed(path, processes, settings),
        cwd=HERE,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wanted, deadline = rows(path) + chance.choice([0, 1, 2]), time.monotonic() + SECONDS
    while rows(path) < wanted and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    # In the midst of starting, of a step, or of writing.
    time.sleep(chance.choice([0.02, 0.3, 2.0]) * chance.random())
    every = (
        [started.pid] if processes == 1 else [c.pid for c in psutil.Process(started.pid).children()]
    )
    if started.poll() is None and every:
        with suppress(ProcessLookupError):
            psutil.Process(chance.choice(every)).send_signal(signal.SIGKILL)
    return started.wait(timeout=SECONDS) != 0


def tables(path: Path) -> dict[str, pd.DataFrame]:
    found = read_runs(path)
    steps = found.steps.drop(columns="cpu_seconds")
    return {"steps": steps, "completions": found.completions, "segments": found.segments}


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_a_run_survives_kills(case: str, tmp_path: Path) -> None:
    processes, kills, settings = KILLED[case]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(
        resumed(whole, processes, settings),
        cwd=HERE,
        env=environment(),
        check=True,
        timeout=SECONDS,
    )
    chance, killed = random.Random(case), 0
    for _ in range(kills):
        killed += kill_once(cut, processes, settings, chance)
    subprocess.run(
        resumed(cut, processes, settings), cwd=HERE, env=environment(), check=True, timeout=SECONDS
    )
    print(f"{case}: {killed} of {kills} kills met a run that was alive")
    assert killed > kills // 2
    want, found = tables(whole), tables(cut)
    assert found["steps"].step.tolist() == list(range(31))
    assert not found["completions"].duplicated(["step", "prompt", "completion"]).any()
    if case == "ahead":  # the first step after a kill is drawn anew, under a newer policy
        assert len(found["completions"]) == len(want["completions"])
        return
    # One process repeats itself to the bit; two add what they add in the same order, too.
    for name, table in want.items():
        own = found[name].drop(columns="run")
        pd.testing.assert_frame_equal(own, table.drop(columns="run"), check_exact=processes == 1)
