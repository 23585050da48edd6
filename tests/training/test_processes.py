"""Several processes: equal to one, of one mind, and what ends them. By torchrun and gloo."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import segcredit
from processes_cases import EQUAL, FAULTS, ROUNDING, SHARDED
from segcredit import load_config, read_runs
from segcredit.errors import ConfigError, RecordError, StorageError, TrainingError
from segcredit.records import checkpoint, sharded_tensors
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


def run(
    command: Sequence[str], more: Mapping[str, str] = {}, seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=HERE,
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


SLOW = ["grpo", "summed", "tree", "sharded_ppo", "sharded_kl", "sharded_summed", "alike_critic"]
SLOW += ["alike_reader", "sharded_reader"]
"""Cases that are much like others."""
BROKEN = [f"broken_{fault}" for fault in FAULTS]
OTHERS = ["alike_tracker", "alike_varied", "alike_critic", "alike_reader", "sharded_reader"]
OTHERS += ["moved", "moved_credits", "refused", "served", *BROKEN]


def outcomes(names: Sequence[str], checkpoints: Path) -> dict[str, dict[str, Any]]:
    """What two processes found; one start for all cases, since it takes the most time."""
    done = run(torchrun("processes_cases.py", *names), {"CHECKPOINTS": str(checkpoints)})
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def cases(checkpoints: Path) -> dict[str, dict[str, Any]]:
    names = [name for name in (*EQUAL, *SHARDED, *OTHERS) if name not in SLOW]
    return outcomes(names, checkpoints)


@pytest.fixture(scope="module")
def slow_cases(checkpoints: Path) -> dict[str, dict[str, Any]]:
    return outcomes(SLOW, checkpoints)


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


@pytest.mark.parametrize("name", ["moved", "moved_credits"])
def test_a_checkpoint_moves_between_one_process_two_and_shards(cases: Any, name: str) -> None:
    found = cases[name]
    require_same_steps(found)
    assert found["moved"] > 1e-4
    assert found["same"]  # to the bit, whoever wrote and whoever reads
    assert found["keys"] == 1
    assert max(found["sizes"]) < 1.5 * min(found["sizes"])  # shards are written once
    alone, replicated, sharded = found["held"]
    assert alone == replicated == 1
    assert 0.4 < sharded < 0.6


@pytest.fixture
def saved(cases: Any, checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that two processes wrote in shards."""
    del cases
    folder = shutil.copytree(checkpoints / "ppo" / "sharded", tmp_path / "checkpoints")
    return checkpoint.file_of(folder, 4)


def test_every_bit_of_shards_counts(saved: Path) -> None:
    shards, chosen = checkpoint.shards_of(saved), random.Random(0)
    files = sorted([saved, *shards.iterdir()])
    assert [file.name for file in files[1:]] == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    for file in files:
        whole = file.read_bytes()
        for place in [chosen.randrange(8 * len(whole)) for _ in range(10)]:
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << place % 8
            file.write_bytes(flipped)
            with pytest.raises(RecordError, match=rf"{saved.name} cannot be read"):
                checkpoint.load_run(saved, whole=False)
        file.unlink()
        with pytest.raises(RecordError, match=file.name):
            checkpoint.load_run(saved)
        file.write_bytes(whole)
    assert checkpoint.load_run(saved)["row"] == {"step": 4}


def test_a_kill_between_shards_and_their_file_leaves_the_checkpoint_before(saved: Path) -> None:
    folder = saved.parent
    half = checkpoint.make_room(folder, 5)
    shutil.copy(checkpoint.shards_of(saved) / "__0_0.distcp", half)
    assert checkpoint.found(folder) == [saved]
    state = checkpoint.load_run(saved, whole=False)
    assert checkpoint.make_room(folder, 5) == half
    assert not list(half.iterdir())
    half.rmdir()
    checkpoint.save(folder, 6, {**checkpoint.load_run(saved), "row": {"step": 6}}, keep=1)
    assert [file.name for file in folder.iterdir()] == ["step_000006.pt"]
    with pytest.raises(StorageError, match=r"step_000007.shards lacks .* a disk of each"):
        checkpoint.save(folder, 7, {**state, "row": {"step": 7}})


def test_an_index_of_shards_runs_no_code(saved: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "evil"),)

    shards = checkpoint.shards_of(saved)
    (shards / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match=r"asks for posix\.mkdir"):
        sharded_tensors.read(shards, {})
    assert not (tmp_path / "evil").exists()


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


def test_a_process_without_a_pass_serves_those_of_others(cases: Any) -> None:
    found = cases["served"]
    assert found["off"] < 1e-6
    assert found["sharded"] == [True] * 6 + [False] * 2  # a dict of modules makes no passes
    (output, block, failed), (other_output, other_block, own) = found["heard"]
    alone = "by itself; expected the Doubling's own call"
    assert output.startswith(f"ConfigError: a Linear inside a sharded Doubling was called {alone}")
    assert alone in block
    assert other_output == f"TrainingError: process 0 of 2 stopped: {output}"
    assert other_block == f"TrainingError: process 0 of 2 stopped: {block}"
    assert failed == "TrainingError: process 1 of 2 stopped: ValueError: no such thing"
    assert own == "ValueError: no such thing"


@pytest.mark.slow
@pytest.mark.timeout(6 * SECONDS)
def test_shards_take_about_half_the_memory_and_give_the_same(tmp_path: Path) -> None:
    """A step of a model of 134 million parameters with a critic as large, sampled elsewhere."""
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # see sharded_memory.py
    commands = {
        tmp_path / "one.pt": [sys.executable],
        tmp_path / "two.pt": torchrun(),
    }
    for file, command in commands.items():
        done = run([*command, "sharded_memory.py", str(file)], memory, seconds=3 * SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = map(torch.load, commands)
    for name in ("logprobs", "entropies", "reference", "values", "advantages"):
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0, msg=name)
    for name in ("loss", "value_loss", "reference_kl"):
        assert two["losses"][name] == pytest.approx(one["losses"][name], abs=1e-5)
    assert len(one["gradients"]) > 100
    for (most, norm, expected), (_, own, found) in zip(
        one["gradients"], two["gradients"], strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5 * most, rtol=0)
        assert own == pytest.approx(norm, rel=1e-5)
    assert one["pushed"] == two["pushed"] == [134_272_000]
    # AdamW makes of a rounding a step of the learning rate: nearly the same, not the same.
    moved = (one["after"] - one["logprobs"]).abs().max()
    assert (two["after"] - one["after"]).abs().max() < 0.01 * moved
    (whole,), shares = one["peaks"], two["peaks"]
    assert len(shares) == 2
    for share in shares:  # in every stage, from loading to resuming
        assert max(share.values()) < 0.65 * whole["train"]


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
    go_on(path, until=last + 2, processes=2)


def go_on(path: Path, *more: str, until: int, processes: int) -> None:
    """Resume a run, and stop it after a step."""
    script = path.with_suffix(".py")
    script.write_text(f"""
import segcredit.training.loop
from segcredit.cli import main
from segcredit.training.update import improve
def until(run, batch, step, **more):
    if step > {until}:
        raise KeyboardInterrupt
    return improve(run, batch, step, **more)
segcredit.training.loop.improve = until
main({[*train(path, "train.steps=400", *more)[2:], "--resume"]!r})
""")
    run(torchrun(str(script), processes=processes))
    assert steps_of(path) == list(range(until + 1))
    assert json.loads((path / "environment.json").read_text())["processes"] == processes


@pytest.mark.slow
@pytest.mark.timeout(6 * SECONDS)
def test_shards_survive_kills_at_any_moment_and_go_on_exactly(tmp_path: Path) -> None:
    """Also while they are written; then three processes take up what two wrote, then one."""
    more = ["train.parallel=sharded", "checkpoint.every=1", "estimator.network=backbone"]
    calm, killed, chosen = tmp_path / "calm", tmp_path / "killed", random.Random(0)
    go_on(calm, *more, until=8, processes=2)
    for step in (1, 3, 5):
        launcher = subprocess.Popen(
            torchrun(*train(killed, "train.steps=400", *more), "--resume"),
            cwd=HERE,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        folder, deadline = killed / "checkpoints", time.monotonic() + SECONDS
        while not (folder / f"step_{step:06d}.shards").exists() and time.monotonic() < deadline:
            assert launcher.poll() is None
            time.sleep(0.001)
        time.sleep(chosen.random() / 100)
        os.kill(_child(launcher.pid, chosen.randrange(2)), signal.SIGKILL)
        launcher.wait(timeout=SECONDS)
        for file in checkpoint.found(folder):
            assert checkpoint.load_run(file)["row"]["step"] >= step - 2
    go_on(killed, *more, until=8, processes=2)
    assert metrics_of(killed) == metrics_of(calm)
    go_on(killed, *more, until=9, processes=3)
    go_on(killed, *more, until=10, processes=1)


def metrics_of(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    return [{k: v for k, v in row.items() if "cpu_seconds" not in k} for row in rows]


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
    "turns": (1, 10, ['task={name="pointer"}', 'segmenter={name="turns"}']),
    "two": (2, 30, []),
    "sharded": (2, 20, ["train.parallel=sharded"]),
}
"""Processes, kills and settings of runs that are killed at any moment."""
STEPS_A_KILL = 8
"""More than a run makes between two kills even on a fast machine (3 to 4 at 6 steps a second), so
that the last kill meets a run, too."""


def resumed(path: Path, processes: int, kills: int, settings: list[str]) -> list[str]:
    steps = [f"train.steps={STEPS_A_KILL * kills}", "evaluate.every=1000000"]
    changes = [*SMALL, "checkpoint.every=1", *steps, *settings]
    own = ["-m", "segcredit", "train", "sapo", *changes, "--output", str(path), "--resume"]
    return [sys.executable, *own] if processes == 1 else torchrun(*own, processes=processes)


def rows(path: Path) -> int:
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def kill_once(command: list[str], path: Path, processes: int, chance: random.Random) -> bool:
    """Starts a run and kills one of its processes; tells whether it was alive then."""
    started = subprocess.Popen(
        command,
        cwd=HERE,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def its() -> list[psutil.Process]:
        own = psutil.Process(started.pid)
        return [own] if processes == 1 else own.children()

    wanted, deadline = rows(path) + chance.choice([0, 1, 2]), time.monotonic() + SECONDS
    while (rows(path) < wanted or len(its()) < processes) and started.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # In the midst of starting, of a step, or of writing.
    time.sleep(chance.choice([0.02, 0.3, 2.0]) * chance.random())
    if started.poll() is None:
        with suppress(psutil.NoSuchProcess):
            chance.choice(its()).send_signal(signal.SIGKILL)
    return started.wait(timeout=SECONDS) != 0


def tables(path: Path) -> dict[str, pd.DataFrame]:
    found = read_runs(path)
    steps = found.steps.drop(columns="cpu_seconds")
    return {"steps": steps, "completions": found.completions, "segments": found.segments}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", KILLED)
def test_a_run_survives_kills(case: str, tmp_path: Path) -> None:
    processes, kills, settings = KILLED[case]
    whole, cut = (resumed(tmp_path / name, processes, kills, settings) for name in ("whole", "cut"))
    run_whole = partial(
        subprocess.run, cwd=HERE, env=environment(), check=True, timeout=3 * SECONDS
    )
    run_whole(whole)
    chance = random.Random(case)
    killed = sum(kill_once(cut, tmp_path / "cut", processes, chance) for _ in range(kills))
    run_whole(cut)
    print(f"{case}: {killed} of {kills} kills met a run that was alive")
    assert killed >= 0.9 * kills
    want, found = (tables(tmp_path / name) for name in ("whole", "cut"))
    assert found["steps"].step.tolist() == list(range(STEPS_A_KILL * kills + 1))
    assert not found["completions"].duplicated(["step", "prompt", "completion"]).any()
    if case == "ahead":  # the first step after a kill is drawn anew, under a newer policy
        assert len(found["completions"]) == len(want["completions"])
        return
    # One process repeats itself to the bit; two add what they add in the same order, too.
    for name, table in want.items():
        own = found[name].drop(columns="run")
        pd.testing.assert_frame_equal(own, table.drop(columns="run"), check_exact=processes == 1)
