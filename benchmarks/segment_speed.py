"""How fast each segmenter is, in characters and tokens a second.

    python benchmarks/segment_speed.py [traces.jsonl] --seconds 2

CPU time of one torch thread. Texts are those of a file's ``response`` fields, or worked
calculations made here; a token is four characters, with random entropies and log-probs. Every
segmenter cuts the same batch through ``segment``, as in a run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import torch

from segcredit import registry
from segcredit.protocols import Segmenter, TextSegmenter
from segcredit.types import RolloutBatch

CHARACTERS = 4


def texts(path: Path | None, count: int) -> list[str]:
    """Responses of a file, or generated ones of one to four thousand characters."""
    if path is not None:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line)["response"] for line in lines][:count]
    chance = random.Random(0)
    return ["\n\n".join(_step(chance) for _ in range(chance.randint(10, 40))) for _ in range(count)]


def _step(chance: random.Random) -> str:
    a, b = chance.randint(2, 99), chance.randint(2, 99)
    opening = chance.choice(["First, we add", "Wait, let me check", "Therefore", "Step 2: take"])
    return f"{opening} {a} and {b}. This gives ${a}+{b}={a + b}$, i.e. {a + b}.0 in all."


def rollouts(found: Sequence[str]) -> RolloutBatch:
    """The texts as completions, a token every four characters, with made-up signals."""
    lengths = [max(-(-len(text) // CHARACTERS), 1) for text in found]
    rows, width = len(found), max(lengths)
    source = torch.Generator().manual_seed(0)
    starts_T = CHARACTERS * torch.arange(width)
    ends_BT = (starts_T + CHARACTERS).minimum(torch.tensor([len(text) for text in found])[:, None])
    spans = torch.stack([starts_T.minimum(ends_BT), ends_BT], dim=2)
    blank_BT = torch.zeros(rows, width, dtype=torch.long)
    signal_BT = torch.rand(rows, width, generator=source)
    mask_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    return RolloutBatch(
        prompt_ids=blank_BT[:, :1],
        prompt_mask=mask_BT[:, :1],
        prompt_keys=tuple(str(row) for row in range(rows)),
        completion_ids=torch.randint(1, 999, (rows, width), generator=source),
        action_mask=mask_BT,
        logprobs=-2 * torch.rand(rows, width, generator=source).square(),
        entropies=2 * signal_BT.square(),
        group=torch.arange(rows),
        texts=tuple(found),
        token_spans=spans,
        rewards=torch.zeros(rows),
        token_rewards=torch.zeros(rows, width),
        truncated=torch.zeros(rows, dtype=torch.bool),
        token_values=signal_BT.cumsum(1) / width,
    )


def seconds_a_batch(segmenter: Segmenter, batch: RolloutBatch, budget: float) -> list[float]:
    """CPU times of single batches, the first, which loads what is needed, left out."""
    segmenter.segment(batch)
    found: list[float] = []
    while sum(found) < budget or len(found) < 3:
        started = time.process_time()
        segmenter.segment(batch)
        found.append(time.process_time() - started)
    return found


def main() -> None:
    """A line a segmenter, those that read text first."""
    options = argparse.ArgumentParser()
    options.add_argument("source", nargs="?", type=Path)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--texts", type=int, default=256)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    found = texts(chosen.source, chosen.texts)
    batch = rollouts(found)
    characters, tokens = sum(map(len, found)), int(batch.action_mask.sum())
    print(f"{len(found)} texts, {characters:,} characters, {tokens:,} tokens")
    built = {name: _built(name) for name in registry.segmenters.names()}
    for name, segmenter in sorted(built.items(), key=lambda pair: _order(*pair)):
        times = seconds_a_batch(segmenter, batch, chosen.seconds)
        median, low, high = statistics.median(times), min(times), max(times)
        kind = "text" if isinstance(segmenter, TextSegmenter) else "tokens"
        print(
            f"{name:16} {kind:7} {characters / median / 1e6:8.2f} M characters/s"
            f" [{characters / high / 1e6:.2f}-{characters / low / 1e6:.2f}]"
            f" {tokens / median / 1e6:8.2f} M tokens/s  x{len(times)}"
        )


def _built(name: str) -> Segmenter:
    """Builds a segmenter, with ``newline`` for those that it is made of."""
    needed = [f.name for f in fields(registry.segmenters.find(name)) if f.default is MISSING]
    return registry.segmenters.build(name, **dict.fromkeys(needed, "newline"))


def _order(name: str, segmenter: Segmenter) -> tuple[bool, str]:
    return not isinstance(segmenter, TextSegmenter), name


if __name__ == "__main__":
    main()
