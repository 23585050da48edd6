"""What scoring costs with all logits at once, and in pieces (``segcredit.policy``), back to back.

    python benchmarks/scoring.py --layers 30 --rounds 3

Memory: of the head alone, 4 x 512 tokens of 576 units, float32: from last states to log-probs and
entropies, and back to the gradients of the states and of the output layer's weight. Each
measurement is a process of its own: the highest resident memory that the system saw
(``ru_maxrss``), less the memory before, less the two gradients. Vocabularies of 49,152 and 151,936.
``bonus`` has the entropies' gradients too.

Time: CPU-seconds of one thread for a whole step, forward and backward, of a model of SmolLM2-135M's
shape (random weights, output layer tied to the embedding), same tokens; the two ways take turns.
The ratio has a 95 % interval over rounds (Student's t on the logarithm).

Last, how far the two ways are apart, in log-probs, entropies and gradients of the weights, these
over the largest.
"""

# scipy ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit.policy.logprobs import token_distributions

ROWS, TOKENS, UNITS = 4, 512, 576
VOCABULARIES = (49_152, 151_936)
NEVER = torch.tensor([0, 2])


def plain(output: nn.Linear, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once, as torch's own operations give the two values."""
    logits = output(states).float().index_fill(1, NEVER, -torch.inf)
    logprobs = logits.log_softmax(1)
    entropies = -(logprobs.exp() * logprobs.index_fill(1, NEVER, 0.0)).sum(1)
    return logprobs.gather(1, ids[:, None])[:, 0], entropies


def pieces(output: nn.Linear, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """As the policy does."""
    return token_distributions(output, states, ids, temperature=1.0, suppressed_X=NEVER)


WAYS = {"plain": plain, "pieces": pieces}


def loss(found: tuple[Tensor, Tensor], bonus: float) -> Tensor:
    """A policy gradient's, with an entropy bonus or without."""
    weights = torch.linspace(-1, 1, len(found[0]))
    whole = -(weights * found[0]).mean()
    return whole - bonus * found[1].mean() if bonus else whole


def added(way: str, vocabulary: int, bonus: float) -> float:
    """Megabytes that the head adds, in this process, which has done nothing else."""
    output, states = nn.Linear(UNITS, vocabulary, bias=False), torch.randn(ROWS * TOKENS, UNITS)
    ids = torch.randint(3, vocabulary, (len(states),))
    states.requires_grad_()
    small = nn.Linear(8, 8), torch.randn(4, 8), torch.tensor([3, 4, 5, 6])
    loss(WAYS[way](*small), bonus).backward()
    before = psutil.Process().memory_info().rss
    loss(WAYS[way](output, states, ids), bonus).backward()
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gradients = 4 * (states.numel() + output.weight.numel())
    return (highest - before - gradients) / 1e6


def in_a_process(*words: Any) -> float:
    command = [sys.executable, __file__, "--measure", *map(str, words)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory() -> None:
    """A line a vocabulary, with and without a bonus."""
    print(f"{'vocabulary':>11} {'bonus':>6} {'plain MB':>9} {'pieces MB':>10} {'x less':>7}")
    for vocabulary in VOCABULARIES:
        for bonus in (0.0, 0.01):
            used = {way: in_a_process(way, vocabulary, bonus) for way in WAYS}
            print(
                f"{vocabulary:11,} {bonus:6} {used['plain']:9,.0f} {used['pieces']:10,.0f}"
                f" {used['plain'] / used['pieces']:7.1f}",
                flush=True,
            )


def smol(layers: int) -> LlamaForCausalLM:
    """The shape of SmolLM2-135M, with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARIES[0],
            hidden_size=UNITS,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            intermediate_size=1536,
            tie_word_embeddings=True,
        )
    ).eval()


def step(model: Any, ids: Tensor, way: str, bonus: float) -> tuple[float, list[Tensor]]:
    """CPU-seconds of one step, and the values with the gradient of the tied weight."""
    model.zero_grad()
    started = time.process_time()
    states = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    found = WAYS[way](model.lm_head, states, ids[:, 1:].flatten())
    loss(found, bonus).backward()
    seconds = time.process_time() - started
    return seconds, [*(x.detach() for x in found), model.lm_head.weight.grad.clone()]


def ratio(lean: Sequence[float], slow: Sequence[float]) -> str:
    """Geometric mean with its 95 % interval; the mean alone where there is but one."""
    logs = np.log(lean) - np.log(slow)
    middle = f"{math.exp(logs.mean()):.3f}"
    if len(logs) < 2:
        return middle
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return f"{middle} [{math.exp(low):.3f}, {math.exp(high):.3f}]"


def times(layers: int, rounds: int, bonus: float) -> None:
    """The step's seconds, then the differences."""
    model, names = smol(layers), list(WAYS)
    ids = torch.randint(3, VOCABULARIES[0], (ROWS, TOKENS + 1))
    step(model, ids[:, :33], "pieces", bonus)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    values: dict[str, list[Tensor]] = {}
    for number in range(rounds):
        for name in names[:: 1 if number % 2 else -1]:
            spent, values[name] = step(model, ids, name, bonus)
            seconds[name].append(spent)
    means = "  ".join(f"{name} {np.mean(seconds[name]):.2f}" for name in names)
    print(
        f"step, {layers} layers, {ROWS} x {TOKENS} tokens, bonus {bonus}, CPU-s: {means};"
        f" pieces / plain {ratio(seconds['pieces'], seconds['plain'])}"
    )
    off = [
        float((mine - theirs).abs().max())
        for mine, theirs in zip(values["pieces"], values["plain"], strict=True)
    ]
    off[2] /= float(values["plain"][2].abs().max())
    print("apart: log-probs {:.1e}, entropies {:.1e}, gradients {:.1e}".format(*off), flush=True)


def main() -> None:
    """Memory, then time."""
    options = argparse.ArgumentParser()
    options.add_argument("--layers", type=int, default=30)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--bonus", type=float, default=0.0)
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.measure:
        way, vocabulary, bonus = chosen.measure
        print(added(way, int(vocabulary), float(bonus)))
        return
    memory()
    times(chosen.layers, chosen.rounds, chosen.bonus)


if __name__ == "__main__":
    main()
