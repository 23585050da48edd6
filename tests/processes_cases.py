"""Run by torchrun: the same batch trained on by one process and by several, and what they share.

Prints a line of JSON for each case; ``tests/training/test_processes.py`` judges them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from segcredit import load_config
from segcredit.protocols import whole_tensor
from segcredit.records import checkpoint
from segcredit.training import update
from segcredit.training.build import build
from segcredit.training.credit_assignment import assign, collect
from segcredit.training.distributed.fsdp import shard, shard_like, whole
from segcredit.training.distributed.processes import ALONE, Processes
from segcredit.training.loop import _load_state, _state, batch_metrics
from segcredit.training.optimizer import Trained
from segcredit.training.pretraining import pretrain
from segcredit.training.rollouts.ahead import Ahead
from segcredit.training.rollouts.sampling import Sampled, _share, sample
from segcredit.training.update import improve
from small import SMALL

LEARNED = ["policy.steps=150"]
"""A policy that is sometimes right: rewards vary."""
FIVE = ["rollouts.prompts=5", "rollouts.completions=3"]
ONE_A_PROMPT = ["rollouts.prompts=5", "rollouts.completions=1", "train.minibatches=5"]
TRACKED = ["estimator.warm_samples=0", "rollouts.prompts=6", "rollouts.completions=1"]
KL = ["loss.kl_loss=0.1", "loss.kl_penalty=0.05"]
CREDITS = [
    *FIVE,
    'credit=[{segmenter="newline", estimator={name="critic", network="head"}, advantage="gae"}]',
    'credit_scheme={name="whitened", inner="td", clamp=2.0}',
]
"""A sum of credits, of which the second has a critic."""
EQUAL: dict[str, tuple[str, list[str]]] = {
    "grpo": ("grpo", []),
    "sapo": ("sapo", FIVE),
    "ppo": ("ppo", ["estimator.network=head"]),
    "kl": ("grpo", [*KL, *FIVE]),
    "tracker": ("single_stream", TRACKED),
    "high_entropy": ("grpo", ["loss.tokens=high_entropy", *FIVE]),
    "summed": ("grpo", ["loss.aggregate=sequence_sum_norm", "train.micro_tokens=100"]),
    "without_rows": ("reinforce", ONE_A_PROMPT),
    "credits": ("grpo", CREDITS),
    "tree": ("spo_tree", ["rollouts.branches=[2,2]"]),
}
"""Preset and changes of each case."""
SHARDED = {
    f"sharded_{name}": (preset, [*changes, "train.parallel=sharded"])
    for name, (preset, changes) in EQUAL.items()
    if name in ("sapo", "ppo", "kl", "without_rows", "summed", "credits")
}


FAULTS = ["all_reduce", "denominator", "row"]
TERMS = 16 * 2 * 24
"""Token positions of a batch, prompts included, rounded up: the terms of a gradient's sums."""
ROUNDING = TERMS * torch.finfo(torch.float32).eps
"""How far float32 sums of so many terms in two orders may lie apart: a rounding a term of the sum
of their sizes, for which a tensor's largest entry stands (9e-5; the largest seen is 2e-5)."""


def parts(run: Any, sampled: Sampled) -> tuple[Sampled, Sampled]:
    """The batch with process 0's rows first, and this process's rows of it."""
    distinct = {prompt.key: prompt for prompt in sampled.prompts}
    keys = {prompt.key for prompt in _share(run, list(distinct.values()))}
    rows = [row for row, prompt in enumerate(sampled.prompts) if prompt.key in keys]
    every = [row for share in run.processes.gather(rows) for row in share]
    return selected(sampled, every), selected(sampled, rows)


def selected(sampled: Sampled, rows: list[int]) -> Sampled:
    prompts = tuple(sampled.prompts[row] for row in rows)
    return Sampled(sampled.rollouts.select(rows), prompts, sampled.tokens, sampled.rounds)


def parameters(run: Any) -> list[torch.Tensor]:
    modules = [part.network for part in run.trained_parts.values()]
    return [whole_tensor(p.detach()).clone() for module in modules for p in module.parameters()]


@dataclass
class Steps:
    """The gradients of one run's optimizer steps, and how far those of another are from them.

    AdamW moves a parameter by m / (sqrt(v) + 1e-8): where terms cancel to zero but for rounding, a
    difference of d in the gradient is one of up to d times the learning rate over 1e-8. Measured in
    ``moved``, each run along its own gradients: of 168,001 entries 3 ended more than 1e-6 apart
    between one process and two shards, one of them 4e-6 (1.3e-5 was seen on another machine). Its
    gradients were -1.66e-9 and -1.55e-9, in a tensor whose largest is 1e-3: 1e-10 apart, a rounding
    there, which times 1e-3 / 1e-8 is 1e-5. And every later gradient is then taken at another point.
    Parameters at the end therefore say little. Here each step of the other
    run is compared by its gradients, which are what processes and micro-batches add up, and is
    then made along the recorded ones: the next one starts from the same point, and parameters and
    moments, computed entry by entry from the same numbers, must agree to rounding.
    """

    gradients: list[list[torch.Tensor | None]] = field(default_factory=list)
    off: float = 0.0
    """Largest difference in any tensor, as a share of the tensor's largest entry."""

    @contextmanager
    def recorded(self) -> Generator[None]:
        """Keeps the gradients of every optimizer step inside."""
        step = Trained.step

        def keep(trained: Trained[Any]) -> None:
            self.gradients.append(
                [None if p.grad is None else p.grad.clone() for p in trained.parameters]
            )
            step(trained)

        with patch.object(Trained, "step", keep):
            yield

    @contextmanager
    def compared(self) -> Generator[None]:
        """Compares every optimizer step inside with those recorded, and makes it along them."""
        step, recorded = Trained.step, iter(self.gradients)

        def compare(trained: Trained[Any]) -> None:
            for parameter, expected in zip(trained.parameters, next(recorded), strict=True):
                assert (parameter.grad is None) == (expected is None)
                if parameter.grad is not None and expected is not None:
                    self.off = max(self.off, apart(whole_tensor(parameter.grad), expected))
                    parameter.grad = shard_like(expected.clone(), parameter)
            step(trained)

        with patch.object(Trained, "step", compare):
            yield
        assert next(recorded, None) is None, "the other run made fewer steps"


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two tensors as a share of the largest entry of the second."""
    difference = float((found - expected).abs().max())
    return difference / float(expected.abs().max()) if difference else 0.0


def moments(run: Any) -> list[torch.Tensor]:
    """Both moments of every trained parameter, whole."""
    found = [part for part in run.trained_parts.values() if part.optimizer is not None]
    return [
        whole_tensor(of[name]).clone()
        for part in found
        for of in part.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]


def furthest(these: list[torch.Tensor], those: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(these, those, strict=True))


def metrics(run: Any, batch: Any, step: int) -> dict[str, float]:
    found = improve(run, batch, step)
    return found | {k: float(v) for k, v in batch_metrics(run, batch).items()}


def equal(processes: Processes, preset: str, changes: list[str]) -> dict[str, Any]:
    """Two steps on the same batches: how far losses, gradients and the rest are from one's."""
    config = load_config(preset, [*SMALL, *LEARNED, *changes])
    one, shared = build(config, ALONE), build(config, processes)
    before, gap, gradients = parameters(one), 0.0, 0.0
    for step in (1, 2):
        every, own = parts(shared, sample(one, step))
        steps = Steps()
        with steps.recorded():
            expected = metrics(one, assign(one, every, step), step)
        mine = assign(shared, own, step)
        with steps.compared():
            found = metrics(shared, mine, step)
        gradients = max(gradients, steps.off)
        assert found.keys() == expected.keys()
        gap = max([gap, *(abs(found[k] - expected[k]) for k in found if found[k] == found[k])])
    tables = [table == table_of(one) for table in processes.gather(table_of(shared))]
    return {
        "metrics": gap,
        "gradients": gradients,
        "moments": max(map(apart, moments(shared), moments(one))),
        "parameters": furthest(parameters(one), parameters(shared)),
        "moved": furthest(parameters(one), before),
        "reward_std": expected["reward_std"],
        "rows": processes.gather(len(mine.rollouts)),
        "tables": tables,
    }


def table_of(run: Any) -> Any:
    return getattr(run.state.module, "counts", {})


def alike(processes: Processes, preset: str, changes: list[str]) -> dict[str, Any]:
    """Two steps, each process sampling for itself: whether all end with the same state."""
    run = build(load_config(preset, [*SMALL, *changes]), processes)
    pretrain(run)
    batch: Any = None
    for step in (1, 2):
        batch = collect(run, step)
        improve(run, batch, step)
    states = processes.gather([[x.numpy() for x in parameters(run)], table_of(run)])
    return {
        "same": all(
            state[1] == states[0][1]
            and all((a == b).all() for a, b in zip(state[0], states[0][0], strict=True))
            for state in states
        ),
        "met": len(table_of(run)),
        "keys": processes.gather(sorted(set(batch.rollouts.prompt_keys))),
        "texts": processes.gather(list(batch.rollouts.texts)),
        "rounds": processes.gather(batch.sampled.rounds),
    }


def moved(processes: Processes, preset: str, changes: list[str]) -> dict[str, Any]:
    """A step, a checkpoint, and the next step by whoever takes it up: how far the ends differ."""
    config = load_config(preset, [*SMALL, *LEARNED, *changes])
    sharded = load_config(preset, [*SMALL, *LEARNED, *changes, "train.parallel=sharded"])
    runs = [build(config, ALONE), build(config, processes), build(sharded, processes)]
    every, _ = parts(runs[1], sample(runs[0], 1))
    batches = [every, *[parts(runs[1], every)[1]] * 2]
    files, written, ends, first, second = [], [], [], Steps(), Steps()
    # A run of one process is made by each, in a folder of its own.
    base = Path(os.environ["CHECKPOINTS"]) / preset
    folders = [base / f"alone{processes.rank}", base / "replicated", base / "sharded"]
    row = {"step": config.train.steps}
    for run, batch, folder in zip(runs, batches, folders, strict=True):
        with first.compared() if first.gradients else first.recorded():
            improve(run, assign(run, batch, 1), 1)
        state = _state(run, row, Ahead(run), folder)
        with processes.error_barrier():
            if run.processes.first:
                checkpoint.save(folder, config.train.steps, state)
        files.append(checkpoint.file_of(folder, config.train.steps))
        written.append([*parameters(run), *moments(run)])
    between, same = parameters(runs[0]), True
    for file, expected in zip(files, written, strict=True):
        for run, batch in zip(runs, batches, strict=True):
            _load_state(run, checkpoint.load_run(file, whole=False), file.parent)
            found = [*parameters(run), *moments(run)]
            same &= all(map(torch.equal, found, expected))
            with second.compared() if second.gradients else second.recorded():
                improve(run, assign(run, batch, 2), 2)
            ends.append((parameters(run), moments(run)))
    whole = [checkpoint.load_run(file) for file in files]
    sizes = [sum(file.stat().st_size for file in folder.rglob("*.*")) for folder in folders]
    return {
        "gradients": max(first.off, second.off),
        "moments": max(max(map(apart, found, ends[0][1])) for _, found in ends),
        "parameters": max(furthest(found, ends[0][0]) for found, _ in ends),
        "moved": furthest(ends[0][0], between),
        "held": [held(run) for run in runs],
        "same": all(processes.gather(same)),
        "keys": len({str(shapes(found)) for found in whole}),
        "sizes": sizes,
    }


def shapes(state: Any) -> Any:
    """The names of a state, sorted, with the shapes of its tensors."""
    if isinstance(state, dict):
        return sorted((str(key), shapes(value)) for key, value in state.items())
    return tuple(state.shape) if isinstance(state, torch.Tensor) else None


def held(run: Any) -> float:
    """The share of the parameters' entries that this process keeps."""
    modules = [part.network for part in run.trained_parts.values()]
    found = [p for module in modules for p in module.parameters()]
    own = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in found)
    return own / sum(p.numel() for p in found)


def broken(processes: Processes, fault: str) -> dict[str, Any]:
    """The differences that ``equal`` finds when training by several processes is broken."""

    def own_alone(self: Processes, value: torch.Tensor) -> torch.Tensor:
        return value

    def unsummed(self: Processes, parameters: Any) -> None:
        """Gradients of one's own rows alone."""

    def without_one(run: Any, batch: Any, rows: torch.Tensor) -> Any:
        found = pieces(run, batch, rows)
        if run.processes.count == 1 or not run.processes.first or not found:
            return found
        (chosen, weight), *others = found
        return [(chosen[1:], weight), *others] if len(chosen) > 1 else others

    pieces = update._pieces
    faults = {
        "all_reduce": patch.object(Processes, "sum_gradients", unsummed),
        "denominator": patch.object(Processes, "sum", own_alone),
        "row": patch.object(update, "_pieces", without_one),
    }
    # The gradients' norm is not clipped, which would hide a factor that all gradients share.
    with faults[fault]:
        return equal(processes, "grpo", [*FIVE, "train.gradient_clip=1e9"])


def refused(processes: Processes) -> dict[str, Any]:
    """What each process hears when one of them fails."""
    heard = ""
    try:
        with processes.error_barrier():
            if processes.rank == 1:
                raise ValueError("no such thing")
    except Exception as error:
        heard = f"{type(error).__name__}: {error}"
    return {"heard": processes.gather(heard)}


class Doubling(nn.Module):
    """A module of two blocks and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.output = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.output(x)


@torch.no_grad()
def served(processes: Processes) -> dict[str, Any]:
    """Passes of a sharded module that processes do not make alike: what comes out, what is heard.

    Process 0 makes three, of one module and another; process 1 gathers one for a method.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        these, those, states = Doubling(), Doubling(), nn.ModuleDict({"a": nn.Linear(4, 4)})
    x = torch.arange(12.0).view(3, 4) / 10 + processes.rank
    expected = [these(x), those(x), these(x + 1)]
    for module in (these, those, states):
        shard(module, processes)
    with processes.error_barrier():
        if processes.first:
            found = [these(x), those(x), these(x + 1)]
        else:
            with whole(those):  # any number of passes, and those of parts
                hidden = torch.tanh(those.blocks[1](torch.tanh(those.blocks[0](x))))
                found = [expected[0], those.output(hidden), expected[2]]
    off = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    heard = []
    for number, part in enumerate([these.output, these.blocks[0], these]):
        try:
            with processes.error_barrier():
                if processes.first:
                    part(x)
                elif number == 2:
                    raise ValueError("no such thing")
        except Exception as error:
            heard.append(f"{type(error).__name__}: {error}")
    kept = [isinstance(p, DTensor) for m in (these, states) for p in m.parameters()]
    again = float((these(x) - expected[0]).abs().max())
    return {
        "off": max(processes.gather(max(off, again))),
        "heard": processes.gather(heard),
        "sharded": kept,
    }


READER = [
    "estimator={name='critic', network='reader'}",
    "train.value.pretraining={completions=40, epochs=2, rows=8}",
]


def main() -> None:
    processes = Processes.started(2, cpu=True)
    cases: dict[str, Any] = {
        **{
            name: lambda case=case: equal(processes, *case)
            for name, case in (EQUAL | SHARDED).items()
        },
        "alike_tracker": lambda: alike(processes, "single_stream", ["rollouts.prompts=6"]),
        "alike_varied": lambda: alike(processes, "dapo", ["rollouts.dynamic_sampling=true"]),
        "alike_critic": lambda: alike(processes, "sapo", FIVE),
        "alike_reader": lambda: alike(processes, "ppo", [*FIVE, *READER]),
        "sharded_reader": lambda: alike(
            processes, "ppo", [*FIVE, *READER, "train.parallel=sharded"]
        ),
        "moved": lambda: moved(processes, "ppo", ["estimator.network=backbone", *FIVE]),
        "moved_credits": lambda: moved(processes, "grpo", CREDITS),
        "refused": lambda: refused(processes),
        "served": lambda: served(processes),
        **{f"broken_{fault}": lambda fault=fault: broken(processes, fault) for fault in FAULTS},
    }
    wanted = sys.argv[1:] or list(cases)
    for name in wanted:
        found = cases[name]()
        if processes.first:
            print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
