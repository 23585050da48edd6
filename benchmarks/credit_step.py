"""How long a step's credit takes: segmentation with advantages, and the surrogate with backward.

    python benchmarks/credit_step.py --seconds 3

CPU time of one torch thread, so that other work on the machine matters little. Rows are between
T/4 and T tokens long, 30 % of them end a segment.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from segcredit import registry
from segcredit.objective import Clip, Importance, SegmentRatio, TokenMean, surrogate_loss
from segcredit.objective.returns import advantages, segment_values, token_rewards
from segcredit.segmentation import Segmentation, top_fraction
from segcredit.types import Advantages, RolloutBatch

SHAPES = ((64, 512), (128, 1024), (512, 2048))
TARGETS_MS = {"segmentation+advantages": 60.0, "surrogate+backward": 150.0}
"""At the last shape."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


def keep_memory() -> None:
    """Start again with an allocator that does not give big blocks back after each operation."""
    if all(os.environ.get(name) == value for name, value in KEEP_MEMORY.items()):
        print("glibc keeps freed memory (the script started itself again to say so)")
        return
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})


def batch(rows: int, width: int) -> RolloutBatch:
    """Random rollouts."""
    source = torch.Generator().manual_seed(0)
    lengths_B = torch.randint(width // 4, width + 1, (rows,), generator=source)
    mask_BT = torch.arange(width) < lengths_B[:, None]
    rewards_B = torch.rand(rows, generator=source).round()
    blank_BT = torch.zeros(rows, width, dtype=torch.long)
    return RolloutBatch(
        prompt_ids=blank_BT[:, :1],
        prompt_mask=mask_BT[:, :1],
        prompt_keys=("",) * rows,
        completion_ids=blank_BT,
        action_mask=mask_BT,
        logprobs=-torch.rand(rows, width, generator=source),
        entropies=torch.rand(rows, width, generator=source),
        group=torch.arange(rows) // 8,
        texts=("",) * rows,
        token_spans=torch.stack([blank_BT, blank_BT], dim=2),
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, mask_BT),
        truncated=torch.zeros(rows, dtype=torch.bool),
        token_values=torch.rand(rows, width, generator=source),
    )


def credit(rollouts: RolloutBatch) -> tuple[Segmentation, Advantages]:
    """What stands between a critic's values and the loss."""
    mask_BT = rollouts.action_mask
    forks_BT = top_fraction(rollouts.entropies, mask_BT, 0.3)
    segmentation = Segmentation.from_ends(forks_BT, mask_BT)
    values_BS = rollouts.token_values.gather(1, segmentation.anchors())
    values = segment_values(rollouts, segmentation, values_BS)
    return segmentation, advantages(segmentation, values, SCHEME(values))


def surrogate(
    rollouts: RolloutBatch, logprobs: Tensor, segmentation: Segmentation, advantages: Tensor
) -> None:
    """The loss with the segment ratio, and its gradient."""
    logprobs.grad = None
    loss, _ = surrogate_loss(
        logprobs,
        rollouts.logprobs,
        advantages,
        rollouts.action_mask,
        segmentation,
        surrogate=Importance(SegmentRatio(), Clip(0.2, 0.28, dual=3.0)),
        aggregation=TokenMean(),
    )
    loss.backward()


def measure(work: Callable[[], object], seconds: float) -> list[float]:
    """CPU milliseconds of each repetition: at least five, until the time is up."""
    work()
    times: list[float] = []
    finish = time.monotonic() + seconds
    while len(times) < 5 or time.monotonic() < finish:
        begin = time.process_time()
        work()
        times.append(1000 * (time.process_time() - begin))
    return times


def report(what: str, shape: tuple[int, int], tokens: int, times: list[float]) -> None:
    median = statistics.median(times)
    target = f"  target {TARGETS_MS[what]:.0f}" if shape == SHAPES[-1] else ""
    print(
        f"{what:26} {shape[0]:4}x{shape[1]:<5} {median:8.2f} [{min(times):.2f}-{max(times):.2f}]"
        f" ms  {1e6 * median / tokens:7.1f} ns/token  x{len(times)}{target}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each of six measurements")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    for shape in SHAPES:
        rollouts = batch(*shape)
        tokens = int(rollouts.action_mask.sum())
        times = measure(lambda rollouts=rollouts: credit(rollouts), seconds)
        report("segmentation+advantages", shape, tokens, times)
        segmentation, found = credit(rollouts)
        noise_BT = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        logprobs_BT = (rollouts.logprobs + noise_BT).requires_grad_()
        times = measure(
            lambda: surrogate(rollouts, logprobs_BT, segmentation, found.per_token),  # noqa: B023
            seconds,
        )
        report("surrogate+backward", shape, tokens, times)


SCHEME = registry.advantages.build("whitened", inner={"name": "gae", "lam": 0.95})

if __name__ == "__main__":
    keep_memory()
    main()
