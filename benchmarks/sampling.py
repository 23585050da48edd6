"""How fast each sampler is: tokens per CPU-second of one thread.

    python benchmarks/sampling.py --rounds 5 --rows 16 64 256 1024 --group 1 8
    python benchmarks/sampling.py --vllm vllm-env/bin/python policy.heads=2

The policy is ``tiny`` as it is warm-started, or another by overrides; prompts of ``arithmetic``
with three to eight steps, each one as often as ``--group`` says; completions of at most 64 tokens.
The samplers take turns, in one process, and each round begins with another one. With ``--vllm``,
the Python of vLLM's environment, a server takes part; then its CPU-seconds are counted with ours.

Columns: completions at once, of one prompt; tokens sampled per CPU-second, up to and including
each end token, the mean over rounds (``generate`` first); how many times as many as ``generate``,
with the 95 % interval over rounds (Student's t on the logarithm); the share of rows whose greedy
completion is that of ``generate``, token by token.
"""

# scipy ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from scipy import stats

from segcredit import load_config, registry
from segcredit.policy.samplers.vllm import VLLM
from segcredit.protocols import Prompt
from segcredit.training.build import build
from segcredit.types import SamplingParams

LIMIT = 64
SETTINGS = ["task.min_steps=3", "task.max_steps=8", f"rollouts.max_new_tokens={LIMIT}"]
IN_PROCESS = ("generate", "lean")
PORT = 8017
LEAST = 512
"""Rows that a measurement has at least."""


def sampled(policy: Any, prompts: Sequence[Prompt], sampler: Any, seed: int, greedy: bool) -> Any:
    policy.sampler = sampler
    return policy.generate(
        *policy.encode_prompts(prompts),
        params=SamplingParams(max_new_tokens=LIMIT, greedy=greedy),
        generator=torch.Generator().manual_seed(seed),
    )


def speed(
    policy: Any,
    prompts: Sequence[Prompt],
    sampler: Any,
    number: int,
    clock: Callable[[], float],
) -> float:
    """Tokens per CPU-second."""
    calls = max(LEAST // len(prompts), 1)
    tokens, started = 0, clock()
    for call in range(calls):
        found = sampled(policy, prompts, sampler, number * calls + call, greedy=False)
        tokens += int(found.mask.sum())
    return tokens / (clock() - started)


@contextmanager
def served(python: str, settings: Sequence[str]) -> Generator[tuple[Any, Callable[[], float]]]:
    """A sampler of a server, and CPU-seconds of this process and of the server's together."""
    words = ["serve", "grpo", *settings, "--python", python, "--port", str(PORT)]
    command = [sys.executable, "-m", "segcredit", *words]
    # Its log is of no interest unless it ends.
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines: list[str] = []
        for line in server.stdout or ():
            lines.append(line)
            if line.startswith("sampler = "):
                break
        else:
            sys.exit("".join(lines[-20:]))
        subprocess.Popen(["cat"], stdin=server.stdout, stdout=subprocess.DEVNULL)
        parts = psutil.Process(server.pid).children(recursive=True)

        def clock() -> float:
            times = [part.cpu_times() for part in parts]
            return time.process_time() + sum(one.user + one.system for one in times)

        yield VLLM(f"http://127.0.0.1:{PORT}"), clock
    finally:
        server.terminate()
        server.wait()


def agreement(policy: Any, prompts: Sequence[Prompt], first: Any, second: Any) -> float:
    """Share of rows with the same greedy completion."""
    rows = [sampled(policy, prompts, each, 0, greedy=True) for each in (first, second)]
    pairs = [
        (made.ids.masked_fill(~made.mask, -1).tolist(), made.mask.sum(1).tolist()) for made in rows
    ]
    (mine, lengths), (theirs, others) = pairs
    same = [a[:n] == b[:m] for a, b, n, m in zip(mine, theirs, lengths, others, strict=True)]
    return float(np.mean(same))


def ratio(fast: Sequence[float], slow: Sequence[float]) -> str:
    """Geometric mean with its 95 % interval; the mean alone where there is but one."""
    logs = np.log(fast) - np.log(slow)
    middle = f"{math.exp(logs.mean()):5.2f}"
    if len(logs) < 2 or not logs.any():
        return middle
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return f"{middle} [{math.exp(low):.2f}, {math.exp(high):.2f}]"


def main() -> None:
    """A line for each number of rows, group and sampler."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256, 1024])
    options.add_argument("--group", type=int, nargs="+", default=[1, 8])
    options.add_argument("--vllm", help="the Python of vLLM's environment")
    options.add_argument("overrides", nargs="*", default=[])
    chosen = options.parse_args()
    settings = [*SETTINGS, *chosen.overrides]
    torch.set_num_threads(1)
    samplers: dict[str, Any] = {name: registry.samplers.build(name) for name in IN_PROCESS}
    clocks: dict[str, Callable[[], float]] = dict.fromkeys(samplers, time.process_time)
    if not chosen.vllm:
        compare(chosen, settings, samplers, clocks)
        return
    with served(chosen.vllm, settings) as (sampler, clock):
        compare(chosen, settings, samplers | {"vllm": sampler}, clocks | {"vllm": clock})


def compare(
    chosen: argparse.Namespace,
    settings: Sequence[str],
    samplers: dict[str, Any],
    clocks: dict[str, Callable[[], float]],
) -> None:
    """Prints a line for each number of rows, group and sampler."""
    run, names = build(load_config("grpo", settings)), [*samplers]
    print("  rows  group      sampler  tok/CPU-s           x generate   agree")
    for rows in chosen.rows:
        for group in chosen.group:
            prompts = [
                prompt for prompt in run.task.evaluation(rows // group) for _ in range(group)
            ]
            speeds: dict[str, list[float]] = {name: [] for name in names}
            for number in range(chosen.rounds):
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    one = samplers[name], number, clocks[name]
                    speeds[name].append(speed(run.actor, prompts, *one))
            for name in names:
                same = agreement(run.actor, prompts, samplers[name], samplers["generate"])
                print(
                    f"{rows:6} {group:6} {name:>12} {np.mean(speeds[name]):10,.0f}"
                    f" {ratio(speeds[name], speeds['generate']):>20} {same:7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
