"""Corrections of the sampler's distribution: worked numbers, and what they are for."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sampling_models import Warm
from segcredit import load_config, read_runs, register, registry, train
from segcredit.errors import PolicyError, SegcreditError
from segcredit.objective import (
    Corrected,
    Correction,
    Importance,
    Mask,
    TokenMean,
    TokenRatio,
    Truncate,
)
from segcredit.objective.policy_loss import surrogate_loss as public_loss
from segcredit.objective.ratio_clipping import Clip
from segcredit.segmentation import Segmentation
from segcredit.training.build import build
from segcredit.training.credit_assignment import assign
from segcredit.training.rollouts.sampling import sample
from small import SMALL

ONE = torch.ones(1, 6, dtype=torch.bool)
HALVES = Segmentation.from_starts(torch.tensor([[1, 0, 0, 1, 0, 0]]).bool(), ONE)
RATIOS = torch.tensor([[1.2, 0.8, 3, 0.4, 1, 1.1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("plugin", "wanted"),
    [
        (Truncate(), [1.2, 0.8, 2, 0.4, 1, 1.1]),
        (Mask(low=0.5, high=2.0), [1.2, 0.8, 0, 0, 1, 1.1]),
        (Truncate("segment", high=9.0), [2.88] * 3 + [0.44] * 3),
        (Truncate("segment", "geometric", high=9.0), [1.4228] * 3 + [0.7606] * 3),
        (Truncate("sequence", high=9.0), [1.2672] * 6),
        (Truncate("sequence", "geometric", high=9.0), [1.0403] * 6),
        (Mask("segment", low=0.5, high=2.88 + 1e-9), [2.88] * 3 + [0.0] * 3),
    ],
)
def test_worked_numbers(plugin: Correction, wanted: list[float]) -> None:
    found = plugin(RATIOS.log(), ONE, HALVES)
    torch.testing.assert_close(found, torch.tensor([wanted]).double(), atol=5e-5, rtol=0)


def test_holes_and_padding_are_passed_over() -> None:
    """A row with a hole weighs what the row without it weighs; segments do not run into holes."""
    mask = torch.tensor([[True, True, False, True, True, False]])
    short = torch.tensor([[True, True, True, True]])
    x = torch.tensor([[0.1, -0.3, 99, 0.2, 0.4, 99]], dtype=torch.float64)
    starts = torch.tensor([[1, 0, 0, 1, 0, 0]]).bool()
    for level, average in itertools.product(
        ("token", "segment", "sequence"), ("product", "geometric")
    ):
        plugin = Truncate(level, average, high=9.0)  # pyright: ignore[reportArgumentType]
        cut = Segmentation.from_starts(starts, mask)
        found = plugin(x.masked_fill(~mask, 0), mask, cut)[mask]
        cut = Segmentation.from_starts(torch.tensor([[1, 0, 1, 0]]).bool(), short)
        torch.testing.assert_close(found, plugin(x[mask][None], short, cut)[0])


def test_it_makes_an_off_policy_gradient_unbiased() -> None:
    """Exactly, over all four completions of two tokens: without it the gradient is another.

    The weight of a whole completion is the exact one; a token's own leaves out what stood before
    it, as truncation cuts what is beyond.
    """
    logits = torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    sampler = torch.tensor([[-0.4, 0.4], [0.0, 0.6]], dtype=torch.float64)
    rows = torch.tensor(list(itertools.product((0, 1), repeat=2)))
    rewards = torch.tensor([1.0, -0.5, 0.25, 2.0]).double()[:, None].expand(4, 2)
    mask = torch.ones(4, 2, dtype=torch.bool)
    whole = Segmentation.from_starts(torch.tensor([[True, False]] * 4), mask)
    policy = logits.log_softmax(1)[torch.arange(2), rows]
    drawn = sampler.log_softmax(1)[torch.arange(2), rows]

    plain = Importance(TokenRatio(), Clip())

    def gradient(probability_B: Tensor, factors: Tensor | None) -> Tensor:
        losses = [
            public_loss(
                policy[b : b + 1],
                policy.detach()[b : b + 1],
                rewards[b : b + 1],
                mask[b : b + 1],
                whole.select([b]),
                surrogate=plain if factors is None else Corrected(plain, factors[b : b + 1]),
                aggregation=TokenMean(),
            )[0]
            for b in range(4)
        ]
        loss = (torch.stack(losses) * probability_B).sum()
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    own, other = policy.detach().sum(1).exp(), drawn.sum(1).exp()
    wanted, x = gradient(own, None), policy.detach() - drawn
    errors = {
        "none": gradient(other, None) - wanted,
        "token": gradient(other, Truncate(high=9.0)(x, mask, whole)) - wanted,
        "sequence": gradient(other, Truncate("sequence", high=9.0)(x, mask, whole)) - wanted,
        "segment": gradient(other, Truncate("segment", high=9.0)(x, mask, whole)) - wanted,
        "cut": gradient(other, Truncate("sequence", high=1.2)(x, mask, whole)) - wanted,
    }
    sizes = {name: float(error.square().sum().sqrt()) for name, error in errors.items()}
    assert max(sizes["sequence"], sizes["segment"]) < 1e-12
    for biased in ("token", "cut"):
        assert 1e-3 < sizes[biased] < sizes["none"]


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Registers it while tests run, not at import: the conformance kit must not collect it."""
    register.sampler("warm")(Warm)


def test_the_loop_corrects_and_tells() -> None:
    config = ["sampler=warm", 'loss.correction={name="truncate", level="sequence", high=1.5}']
    run = build(load_config("grpo", [*SMALL, *config]))
    batch = assign(run, sample(run, 1), 1)
    mask, own = batch.rollouts.action_mask, batch.rollouts.logprobs
    weights_B = ((own + 0.5) * mask).sum(1).exp().clamp(max=1.5)
    assert batch.corrections is not None
    torch.testing.assert_close(batch.corrections[mask], weights_B[:, None].expand_as(own)[mask])


def test_metrics_of_the_mismatch(tmp_path: Path) -> None:
    options = [*SMALL, "sampler=warm", 'loss.correction={name="mask", low=0.9, high=1.5}']
    steps = read_runs(train("grpo", tmp_path / "told", overrides=options).parent).steps
    last = steps.iloc[-1]
    # The mean of -.5 - log π over tokens of which most are nearly certain.
    assert -0.5 < last["sampler_kl"] < 1
    assert last["sampler_ratio_max"] > 1.5
    assert 0 < last["sampler_masked"] <= 1
    untold = read_runs(train("grpo", tmp_path / "untold" / "run", overrides=SMALL).parent).steps
    assert all(math.isnan(value) for value in untold["sampler_kl"].tolist())


def test_where_sampler_and_policy_agree_every_factor_is_one() -> None:
    run = build(load_config("grpo", [*SMALL, "loss.correction=truncate"]))
    sampled = sample(run, 1)
    told = sampled.rollouts.replace(sampler_logprobs=sampled.rollouts.logprobs)
    batch = assign(run, replace(sampled, rollouts=told), 1)
    assert batch.corrections is not None
    assert (batch.corrections[batch.rollouts.action_mask] == 1).all()


def test_a_sampler_that_does_not_tell_is_a_sentence() -> None:
    run = build(load_config("grpo", [*SMALL, "loss.correction=mask"]))
    with pytest.raises(PolicyError, match=r"'mask', but sampler '\w+' does not tell .* 'none'"):
        assign(run, sample(run, 1), 1)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mask", {"low": 1.2}, "low"),
        ("truncate", {"high": 0.5}, "high"),
        ("truncate", {"level": "row"}, "level"),
        ("mask", {"average": "median"}, "average"),
    ],
)
def test_odd_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SegcreditError, match=said):
        registry.corrections.build(name, **options)
