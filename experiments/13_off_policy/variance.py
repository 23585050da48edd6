"""The tables of variance.md: how weights and gradient estimates spread with lengths.

    python variance.py

Trainer and sampler are chains: the next of 8 symbols depends on the one before. The sampler's
logits are the trainer's with normal noise of .05, so that a token's log-ratio spreads by about
.045. Every symbol has a reward; credit is the temporal difference under the trainer's exact
values, and the gradient that of one parameter, a direction in the logits. Every seed has chains of
its own and 4096 drawn completions. Weights are those of the plug-ins.

Shapes: ``N`` completions, ``T`` tokens, ``V`` symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segcredit import Segmentation, registry
from segcredit.study.statistics.intervals import student_interval

PAGE = Path(__file__).with_suffix(".md")
SEEDS = range(1, 11)
SYMBOLS, COMPLETIONS, NOISE = 8, 4096, 0.05
LENGTHS, SEGMENTS = (16, 64, 256, 1024), (1, 4, 16, 64, 256)
FREE = 1e9


@dataclass(frozen=True, eq=False)
class Chains:
    """A trainer and a sampler, what symbols are worth, and the direction that is differentiated."""

    trainer_VV: Tensor
    sampler_VV: Tensor
    reward_V: Tensor
    slope_VV: Tensor
    """The derivative of the trainer's log-probs."""

    @classmethod
    def of(cls, seed: int) -> Chains:
        """Draws them."""
        source = torch.Generator().manual_seed(seed)
        logits, noise, way = torch.randn(3, SYMBOLS, SYMBOLS, generator=source).double()
        trainer_VV = logits.softmax(1)
        return cls(
            trainer_VV,
            (logits + NOISE * noise).softmax(1),
            torch.randn(SYMBOLS, generator=source).double(),
            way - (trainer_VV * way).sum(1, keepdim=True),
        )

    def draw(self, length: int, seed: int) -> Tensor:
        """Draws (N,T+1) symbols of the sampler, the first of which is the prompt, 0."""
        source = torch.Generator().manual_seed(10**6 + seed)
        ids = torch.zeros(COMPLETIONS, length + 1, dtype=torch.long)
        for t in range(length):
            shares_NV = self.sampler_VV[ids[:, t]]
            ids[:, t + 1] = torch.multinomial(shares_NV, 1, generator=source)[:, 0]
        return ids

    def values(self, length: int) -> Tensor:
        """Computes (T+1,V) the trainer's expected rewards after t symbols, given the last."""
        found = [torch.zeros(SYMBOLS).double()]
        for _ in range(length):
            found.append(self.trainer_VV @ (self.reward_V + found[-1]))
        return torch.stack(found[::-1])


def weights(log_ratio: Tensor, cut: Segmentation) -> dict[str, Tensor]:
    """Computes each arm's factors of the tokens' losses."""
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    to_the_end = registry.ratios.build("prefix", until="segment", limit=20.0)
    free = {
        level: registry.corrections.build("truncate", level=level, average="product", high=FREE)(
            log_ratio, mask, cut
        )
        for level in ("token", "segment", "sequence")
    } | {"prefix to the segment's end": to_the_end.average(log_ratio, mask, cut).exp()}
    cut_off = {
        f"{name}, at most 2": w.clamp(max=2.0) for name, w in free.items() if name != "token"
    }
    return {"none": torch.ones_like(log_ratio), **free, **cut_off}


def measure(seed: int, length: int, segment: int) -> dict[str, tuple[float, float]]:
    """Measures each arm: variance of the last weight, spread of the gradient beside none's."""
    chains = Chains.of(seed)
    ids = chains.draw(length, seed)
    before, after = ids[:, :-1], ids[:, 1:]
    log_ratio = (chains.trainer_VV / chains.sampler_VV).log()[before, after]
    mask = torch.ones_like(after, dtype=torch.bool)
    starts = (torch.arange(length) % segment == 0).expand_as(after)
    cut = Segmentation.from_starts(starts, mask)
    values = chains.values(length)
    steps = torch.arange(length)
    change = chains.reward_V[after] + values[steps + 1, after] - values[steps, before]
    pushes = cut.spread(cut.reduce(change, "sum")) * chains.slope_VV[before, after]
    found = {name: (w[:, -1], (w * pushes).sum(1)) for name, w in weights(log_ratio, cut).items()}
    plain = found["none"][1].std()
    return {name: (float(w.var()), float(g.std() / plain)) for name, (w, g) in found.items()}


def table(cases: list[tuple[int, int]], told: list[str]) -> list[str]:
    """Returns the lines of two tables, an arm a row and a case a column."""
    measured = [[measure(seed, *case) for seed in SEEDS] for case in cases]
    lines: list[str] = []
    for place, title in enumerate(
        (
            "Variance of the last token's weight",
            "Spread of one completion's gradient, over that without a correction",
        )
    ):
        lines += ["", title + ":", "", "| arm | " + " | ".join(told) + " |"]
        lines.append("|---" * (1 + len(told)) + "|")
        for arm in measured[0][0]:
            cells = [_cell(np.array([found[arm][place] for found in seeds])) for seeds in measured]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def _cell(x: np.ndarray) -> str:
    low, high = student_interval(x)
    return f"{x.mean():.3g} [{low:.2g} {high:.2g}]"


def main() -> None:
    """Writes variance.md."""
    lines = [
        "<!-- Do not edit: `python variance.py` writes it again. -->",
        "",
        f"Seeds {', '.join(map(str, SEEDS))}; 95 % intervals (Student, over seeds).",
        "",
        "## Length of the completion, segments of 16 tokens",
        *table([(length, 16) for length in LENGTHS], [f"T = {n}" for n in LENGTHS]),
        "",
        "## Length of segments, completions of 256 tokens",
        *table([(256, size) for size in SEGMENTS], [f"{n} a segment" for n in SEGMENTS]),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
