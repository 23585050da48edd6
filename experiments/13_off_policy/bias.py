"""The table of bias.md: what a sampler that is not the trainer does to the expected gradient.

    python bias.py

Every number is a sum over all 729 completions of the toy policy of ``tests/exact.py``, in float64,
through the plug-ins and the objective that training uses; nothing is drawn.

Shapes: ``C`` all completions, ``T`` tokens, ``P`` parameters.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from exact import Toy, fill, segment, toy, weighed_credit
from segcredit import Segmentation, registry
from segcredit.objective import Corrected, Importance, Reinforce, Surrogate
from segcredit.objective.aggregation import SequenceMeanTokenSum
from segcredit.objective.policy_loss import surrogate_loss

PAGE = Path(__file__).with_suffix(".md")
SEGMENTER = registry.segmenters.build("fixed_length", tokens=2)
CREDITS = ("full_return", "td")
FREE, CUT = 1e9, 2.0


@dataclass(frozen=True)
class Arm:
    """A row of the table: a correction of -A log pi, or a ratio with its bound."""

    name: str
    correction: dict[str, Any] | None = None
    ratio: dict[str, Any] | None = None
    bound: dict[str, Any] | None = None

    def surrogate(self, log_ratio: Tensor, mask: Tensor, cut: Segmentation) -> Surrogate:
        """Builds the surrogate of completions with these ratios of trainer to sampler."""
        if self.correction is not None:
            factors_CT = registry.corrections.from_table(self.correction)(log_ratio, mask, cut)
            return Corrected(Reinforce(), factors_CT)
        if self.ratio is None or self.bound is None:
            return Reinforce()
        ratio = registry.ratios.from_table(self.ratio)
        return Importance(ratio, registry.bounds.from_table(self.bound))


def _weights(level: str, average: str, high: float) -> dict[str, Any]:
    return {"name": "truncate", "level": level, "average": average, "high": high}


def _prefix(name: str, high: float, **options: str) -> Arm:
    bound = {"name": "truncated_is", "low": 0.0, "high": high}
    return Arm(name, ratio={"name": "prefix", "limit": 20.0, **options}, bound=bound)


ARMS = [
    Arm("none"),
    *(
        Arm(f"{level} product{told}", _weights(level, "product", high))
        for level in ("token", "segment", "sequence")
        for high, told in ((FREE, ""), (CUT, ", at most 2"))
    ),
    *(
        Arm(f"{level} geometric", _weights(level, "geometric", FREE))
        for level in ("segment", "sequence")
    ),
    _prefix("prefix to the token", FREE),
    _prefix("prefix to the token, at most 2", CUT),
    _prefix("prefix from the segment's start to the token", FREE, since="segment"),
    _prefix("prefix to the segment's end", FREE, until="segment"),
    _prefix("prefix to the segment's end, at most 2", CUT, until="segment"),
    *(
        Arm(
            f"divergence mask by {per}",
            ratio={"name": "token"},
            bound={"name": "divergence_mask", "per": per},
        )
        for per in ("token", "segment")
    ),
    Arm("clip", ratio={"name": "token"}, bound={"name": "clip", "low": 0.2, "high": 0.2}),
]


@dataclass(frozen=True, eq=False)
class World:
    """The trainer's toy, and what every estimate needs of it."""

    toy: Toy
    cut: Segmentation
    jacobian: Tensor
    """(C,T,P) the gradient of each token's log-prob."""

    @classmethod
    def of(cls, length: int = 6) -> World:
        """Builds it; the jacobian is one backward pass a token."""
        world = toy(length)
        logprobs_CT, parameters = (
            world.policy(world.everything).logprobs,
            [*world.policy.parameters()],
        )
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters, retain_graph=True)])
            for x in logprobs_CT.flatten()
        ]
        return cls(world, segment(world, SEGMENTER), torch.stack(rows).view(*logprobs_CT.shape, -1))

    def credit(self, name: str) -> Tensor:
        """Computes (C,T) advantages under the trainer's exact values."""
        plugins = registry.estimators.build("monte_carlo"), registry.advantages.build(name)
        weighed_CT = weighed_credit(self.toy, SEGMENTER, *plugins)
        return weighed_CT / self.toy.shares[:, None]

    def gradient(self, weighed_CT: Tensor) -> Tensor:
        """Computes the expected gradient of tokens' weights."""
        return torch.einsum("ct,ctp->p", weighed_CT, self.jacobian)

    def pushes(self, arm: Arm, sampler_CT: Tensor, credit_CT: Tensor) -> Tensor:
        """Computes (C,T) how much each token's log-prob is pushed, were its completion drawn."""
        trainer_CT = self.toy.everything.logprobs
        mask_CT = self.toy.everything.action_mask
        surrogate = arm.surrogate(trainer_CT - sampler_CT, mask_CT, self.cut)
        logprobs_CT = trainer_CT.clone().requires_grad_()
        loss, _ = surrogate_loss(
            logprobs_CT,
            sampler_CT,
            credit_CT,
            mask_CT,
            self.cut,
            surrogate=surrogate,
            aggregation=SequenceMeanTokenSum(),
            denominator=1.0,
        )
        return -torch.autograd.grad(loss, logprobs_CT)[0]


def samplers(world: World) -> dict[str, Tensor]:
    """Computes (C,T) log-probs under policies that differ from the trainer's."""
    found: dict[str, Tensor] = {}
    for name, size, temperature in (
        ("same", 0.0, 1.0),
        ("near", 0.1, 1.0),
        ("far", 0.4, 1.0),
        ("temperature .8", 0.0, 0.8),
    ):
        policy = copy.deepcopy(world.toy.policy)
        policy.temperature = temperature
        drift = fill(copy.deepcopy(policy), seed=3, size=size)
        with torch.no_grad():
            for parameter, more in zip(policy.parameters(), drift.parameters(), strict=True):
                parameter += more
            found[name] = policy(world.toy.everything).logprobs
    return found


@dataclass(frozen=True)
class Measured:
    """One arm under one sampler and credit, in units of the true gradient's length."""

    bias: float
    given_prefix: float
    """Distance from the gradient at the states that the sampler reaches."""
    spread: float
    """Root of the summed variance of one completion's gradient."""

    def error(self, completions: int) -> float:
        """Computes the root mean squared error of a batch's mean."""
        return (self.bias**2 + self.spread**2 / completions) ** 0.5


def measure(world: World, arm: Arm, sampler_CT: Tensor, credit_CT: Tensor) -> Measured:
    """Measures an arm by enumeration."""
    trainer_CT = world.toy.everything.logprobs
    shares_C1 = sampler_CT.sum(1, keepdim=True).exp()
    pushes_CT = world.pushes(arm, sampler_CT, credit_CT)
    mean = world.gradient(shares_C1 * pushes_CT)
    true, size = world.toy.gradient, world.toy.gradient.norm()
    # A token's segment and what follows it is the trainer's, what stands before it the sampler's.
    own_CT = world.cut.spread(world.cut.reduce(trainer_CT.cumsum(1) - trainer_CT, "first"))
    theirs_CT = world.cut.spread(world.cut.reduce(sampler_CT.cumsum(1) - sampler_CT, "first"))
    reached_CT = (theirs_CT + trainer_CT.sum(1, keepdim=True) - own_CT).exp()
    given = world.gradient(reached_CT * credit_CT)
    each_CP = torch.einsum("ct,ctp->cp", pushes_CT, world.jacobian)
    second = (shares_C1[:, 0] * each_CP.square().sum(1)).sum()
    return Measured(
        bias=float((mean - true).norm() / size),
        given_prefix=float((mean - given).norm() / size),
        spread=float((second - mean.square().sum()).clamp(min=0).sqrt() / size),
    )


def shown(x: float) -> str:
    """Returns two digits, or the word where it is rounding alone."""
    return "exact" if x < 1e-10 else f"{x:.2g}"


def main() -> None:
    """Writes bias.md."""
    world = World.of()
    credits = {name: world.credit(name) for name in CREDITS}
    lines = ["<!-- Do not edit: `python bias.py` writes it again. -->"]
    _, *others = samplers(world).items()  # the first is the trainer itself: all is exact
    for name, sampler_CT in others:
        shares_C = sampler_CT.sum(1).exp()
        x_CT = sampler_CT - world.toy.everything.logprobs
        lines += [
            f"\nSampler `{name}`: KL {float(shares_C @ x_CT.sum(1)):.3f} nats a completion\n",
            "| arm | "
            + " | ".join(f"`{c}` bias | given prefix | sd | error of 1024" for c in CREDITS)
            + " |",
            "|---" * (1 + 4 * len(CREDITS)) + "|",
        ]
        for arm in ARMS:
            found = [measure(world, arm, sampler_CT, credits[c]) for c in CREDITS]
            cells = [
                shown(x) for m in found for x in (m.bias, m.given_prefix, m.spread, m.error(1024))
            ]
            lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
