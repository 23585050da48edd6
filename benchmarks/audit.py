"""What the values of every prefix cost: the naive way against ``truth.measure``.

    python benchmarks/audit.py --rounds 4 --naive 16 --continuations 0.5 1 2 4

The work of the prototype: a completion of 39 tokens for each of 32 prompts of ``arithmetic`` with
six steps, by ``tiny`` as it is warm-started. Both ways value every state of the same completions,
in two independent splits, one after the other in each round, in one process.

naive       K continuations of every prefix: prefixes of one length together, each prompt and
            prefix pushed through the model anew for each continuation, up to 4,096 rows at once
measure(c)  c continuations a token and half, spread by ``allocation``

Columns, each the mean over rounds: tokens generated; tokens pushed through the model (its input
ids, padding and rows that had ended included); CPU-seconds of one thread, verifying included; the
root mean squared standard error of V and of its jumps V(t+1) - V(t), both splits together, over
all states; the correlation of the two splits' jumps; then how many times fewer CPU-seconds than
naive at an equal error of V, and of the jumps, with the 95 % interval over rounds (Student's t on
the logarithm). Errors fall with the root of the continuations, and CPU-seconds are taken to grow
in proportion to them: the naive way's are scaled so to the other's error.
"""

# scipy ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from segcredit import load_config
from segcredit.credit_audit.truth.measure import measure
from segcredit.episodes import complete, verify
from segcredit.protocols import Prompt
from segcredit.training.build import Run, build
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import RolloutBatch, SamplingParams

LIMIT = 41
PROMPTS = 32
ROWS = 4096
"""Most rows of a naive batch, as in the prototype."""
SETTINGS = ["task.min_steps=6", "task.max_steps=6", f"rollouts.max_new_tokens={LIMIT}"]


@dataclass(frozen=True)
class Found:
    """One measurement."""

    values: Tensor
    """(B,H,E)"""
    errors: Tensor
    """(B,E) standard errors, all splits together."""
    jump_errors: Tensor
    """(B,T)"""
    tokens: int


@dataclass(frozen=True)
class Row:
    """What one measurement cost and reached."""

    tokens: int
    pushed: int
    seconds: float
    error: float
    jump_error: float
    correlation: float


def naive(run: Run, prompts: Sequence[Prompt], rollouts: RolloutBatch, k: int, seed: int) -> Found:
    """Every prefix continued K times, those of one length together."""
    source, mask_BT = torch.Generator().manual_seed(seed), rollouts.action_mask
    rewards_BTK = torch.full((*mask_BT.shape, k), torch.nan, dtype=torch.float64)
    tokens = 0
    for t in range(mask_BT.shape[1]):
        rows_N = mask_BT[:, t].nonzero()[:, 0].repeat_interleave(k)
        pieces = []
        for piece in rows_N.split(ROWS):
            rewards, sampled = _continued(run, prompts, rollouts, piece, t, source)
            pieces.append(rewards)
            tokens += sampled
        rewards_BTK[mask_BT[:, t], t] = torch.cat(pieces).view(-1, k)
    splits = rewards_BTK.unflatten(2, (2, k // 2)).mean(3).transpose(1, 2)
    ends_BH1 = rollouts.rewards.double()[:, None, None].expand(-1, 2, 1)
    values = torch.cat([splits, ends_BH1.new_full(ends_BH1.shape, torch.nan)], 2)
    values.scatter_(2, mask_BT.sum(1)[:, None, None].expand(-1, 2, 1), ends_BH1)
    noise_BT = rewards_BTK.var(2) / k
    noise_BE = torch.cat([noise_BT, noise_BT[:, :1] * 0], 1).nan_to_num(0)
    return Found(values, noise_BE.sqrt(), (noise_BE[:, :-1] + noise_BE[:, 1:]).sqrt(), tokens)


def _continued(
    run: Run,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    rows_N: Tensor,
    t: int,
    source: torch.Generator,
) -> tuple[Tensor, int]:
    before_NT = rollouts.completion_ids[rows_N, :t]
    ids_NL = torch.cat([rollouts.prompt_ids[rows_N], before_NT], 1)
    there_NT = torch.ones_like(before_NT, dtype=torch.bool)
    made = run.actor.generate(
        ids_NL,
        torch.cat([rollouts.prompt_mask[rows_N], there_NT], 1),
        params=SamplingParams(max_new_tokens=LIMIT - t),
        generator=source,
    )
    whole = torch.cat([before_NT, made.ids], 1), torch.cat([there_NT, made.mask], 1)
    texts, _ = run.actor.decode(*whole)
    verdicts = verify(
        run.task, [prompts[row] for row in rows_N.tolist()], texts, made.truncated.tolist()
    )
    rewards_N = torch.tensor([verdict.reward for verdict in verdicts], dtype=torch.float64)
    return rewards_N, int(made.mask.sum())


def measured(
    run: Run, prompts: Sequence[Prompt], rollouts: RolloutBatch, continuations: float, seed: int
) -> Found:
    """By ``measure``, two splits."""
    found = measure(
        run.actor,
        run.task,
        prompts,
        rollouts,
        continuations=continuations,
        max_new_tokens=LIMIT,
        micro_tokens=65536,
        generator=torch.Generator().manual_seed(seed),
    )
    together = math.sqrt(2)
    return Found(
        found.values,
        found.errors[:, 0] / together,
        found.jump_errors[:, 0] / together,
        found.tokens,
    )


def timed(run: Run, rollouts: RolloutBatch, way: Callable[[], Found]) -> tuple[Row, Tensor]:
    """One measurement with its costs and errors, and its (B,E) values."""
    pushed = 0

    def count(_: nn.Module, __: Any, options: dict[str, Any]) -> None:
        nonlocal pushed
        pushed += options["input_ids"].numel()

    base = cast(Any, run.actor).model.base_model
    hook = base.register_forward_pre_hook(count, with_kwargs=True)
    started = time.process_time()
    found = way()
    seconds = time.process_time() - started
    hook.remove()
    mask_BT = rollouts.action_mask
    jumps_BHT = found.values.diff(dim=2)
    pairs = torch.stack([jumps_BHT[:, half][mask_BT] for half in (0, 1)])
    row = Row(
        tokens=found.tokens,
        pushed=pushed,
        seconds=seconds,
        error=float(found.errors[:, :-1][mask_BT].square().mean().sqrt()),
        jump_error=float(found.jump_errors[mask_BT].square().mean().sqrt()),
        correlation=float(torch.corrcoef(pairs)[0, 1]),
    )
    return row, found.values.mean(1)


def interval(ratios: Sequence[float]) -> str:
    """Geometric mean of ratios with its 95 % interval; the mean alone where there is but one."""
    logs = np.log(ratios)
    middle = f"{math.exp(logs.mean()):6.1f}"
    if len(logs) < 2 or not logs.any():
        return middle
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return f"{middle} [{math.exp(low):.1f}, {math.exp(high):.1f}]"


def line(name: str, rows: Sequence[Row], against: Sequence[Row]) -> str:
    """The columns of one way."""

    def mean(column: str) -> float:
        return float(np.mean([getattr(row, column) for row in rows]))

    ratios = [
        interval(
            [
                slow.seconds * (getattr(slow, kind) / getattr(row, kind)) ** 2 / row.seconds
                for row, slow in zip(rows, against, strict=True)
            ]
        )
        for kind in ("error", "jump_error")
    ]
    return (
        f"{name:14} {mean('tokens'):10,.0f} {mean('pushed'):11,.0f} {mean('seconds'):7.2f}"
        f" {mean('error'):8.4f} {mean('jump_error'):8.4f} {mean('correlation'):6.2f}"
        f"   {ratios[0]:>20} {ratios[1]:>22}"
    )


def main() -> None:
    """A line a way, then how far the two ways' values are apart."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--naive", type=int, default=16, help="K; even, since it has two splits")
    options.add_argument("--continuations", type=float, nargs="+", default=[0.5, 1, 2, 4])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    run = build(load_config("sapo", SETTINGS))
    prompts = list(run.task.evaluation(PROMPTS))
    source = torch.Generator().manual_seed(0)
    completions = complete(
        run.actor, run.task, prompts, params=SamplingParams(max_new_tokens=LIMIT), generator=source
    )
    rollouts = as_rollouts(completions, run.actor, micro_tokens=16384)
    print(
        f"{int(rollouts.action_mask.sum()):,} prefixes of {PROMPTS} prompts; {chosen.rounds} rounds"
    )

    names = [f"naive K={chosen.naive}", *(f"measure({c:g})" for c in chosen.continuations)]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for number in range(chosen.rounds):
        ways = [
            partial(naive, run, prompts, rollouts, chosen.naive, number),
            *(
                partial(measured, run, prompts, rollouts, c, 1000 + number)
                for c in chosen.continuations
            ),
        ]
        for name, way in zip(names, ways, strict=True):
            row, found = timed(run, rollouts, way)
            rows[name].append(row)
            values[name].append(found)

    print(
        f"{'':14} {'generated':>10} {'pushed':>11} {'CPU-s':>7} {'error V':>8} {'jumps':>8}"
        f" {'splits':>6}   {'x fewer at equal V':>20} {'at equal jumps':>22}"
    )
    for name in names:
        print(line(name, rows[name], rows[names[0]]))
    print(agreement([torch.stack(values[name]) for name in names], rollouts))


def agreement(values: Sequence[Tensor], rollouts: RolloutBatch) -> str:
    """The mean difference between the ways, over all states, with the interval over rounds."""
    mask_BT = rollouts.action_mask
    means = [value[:, :, :-1][:, mask_BT].mean(1) for value in values]
    rest = torch.stack(means[1:]).mean(0)
    off = (rest - means[0]).numpy()
    if len(off) < 2:
        return f"mean V, measured less naive: {off[0]:+.4f}"
    low, high = stats.t.interval(0.95, len(off) - 1, off.mean(), stats.sem(off))
    return f"mean V, measured less naive: {off.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
