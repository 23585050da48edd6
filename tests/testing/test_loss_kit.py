"""The kit's rules for the parts of a loss: each is broken by one that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segcredit import Aggregation, Bound, Bounded, Correction, Ratio
from segcredit.errors import PluginError
from segcredit.objective import SegmentRatio, SequenceRatio
from segcredit.testing import check_loss, parametrize_with_checks


@parametrize_with_checks([SegmentRatio("own_token"), SequenceRatio("own_token")])
def test_options_keep_the_contract(check: Any) -> None:
    check()


class Loss(Bound):
    """A bound as one expression."""

    def __init__(self, loss: Any, *, named: bool = False) -> None:
        self.loss = loss
        self.held = (lambda: loss) if named else None

    def __call__(
        self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
    ) -> Any:
        return self.loss(ratio, advantages)


def explodes(ratio: Tensor, advantages: Tensor) -> Bounded:
    return Bounded(-advantages * ratio.exp())


def entropic(ratio: Tensor, advantages: Tensor) -> Bounded:
    return Bounded(-advantages * ratio + 0.1 * ratio)


def unsigned(ratio: Tensor, advantages: Tensor) -> Bounded:
    return Bounded(advantages * ratio)


def bare(ratio: Tensor, advantages: Tensor) -> Tensor:
    return -advantages * ratio


def mean(ratio: Tensor, advantages: Tensor) -> Bounded:
    return Bounded((-advantages * ratio).mean())


def plain(ratio: Tensor, advantages: Tensor) -> Bounded:
    return Bounded(-advantages * ratio)


class Average(Ratio):
    def __init__(self, average: Any) -> None:
        self.one = average

    def average(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Any) -> Tensor:
        return self.one(log_ratio, action_mask, segmentation)


class Factors(Correction):
    def __init__(self, factors: Any, *, named: bool = False) -> None:
        self.factors = factors
        self.held = (lambda: factors) if named else None

    def __call__(self, log_ratio: Tensor, action_mask: Tensor, segmentation: Any) -> Any:
        return self.factors(log_ratio, action_mask)


def weights(x: Tensor, mask: Tensor) -> Tensor:
    return x.exp().clamp(max=2.0)


class Sum(Aggregation):
    def __init__(self, above: Any, below: Any = torch.sum) -> None:
        self.above, self.below = above, below

    def numerator(self, weighted: Tensor, counts: Tensor) -> Tensor:
        return self.above(weighted, counts)

    def denominator(self, counts: Tensor) -> Tensor:
        return self.below(counts)


WRONG = [
    (Loss(explodes), "a loss and its slope are finite for every ratio"),
    (Loss(entropic), "a token without advantage has neither loss nor slope"),
    (Loss(unsigned), "the slope by a token's log-prob is minus its advantage"),
    (Loss(bare), "its call returned Tensor; expected Bounded"),
    (Loss(mean), "the loss of its call returned shape (); expected (5, 8)"),
    (Loss(plain, named=True), "on pickling"),
    (Average(lambda x, m, s: x + 1), "the ratio is 1 under the policy that sampled"),
    (Average(lambda x, m, s: x.mean(1, keepdim=True).expand_as(x)), "neither on padding nor"),
    (Average(lambda x, m, s: x - x.sum()), "neither on padding nor"),
    (Average(lambda x, m, s: s.reduce(x, "mean")), "average gives a log-ratio for each token"),
    (Factors(lambda x, m: x.exp().sum(1)), "its call gives a factor for each token"),
    (Factors(lambda x, m: x.double().exp() ** 99), "factors are finite for every ratio"),
    (Factors(lambda x, m: 0.5 * x.clamp(max=0.0).exp()), "where sampler and trainer agree"),
    (Factors(lambda x, m: 1 + x.clamp(-9, 9)), "factors are at least 0"),
    (Factors(lambda x, m: (x - x.mean()).clamp(-9, 9).exp()), "neither on padding nor"),
    (Factors(weights, named=True), "on pickling"),
    (Sum(lambda x, c: x.sum() / len(x)), "what the pieces of a minibatch add"),
    (Sum(lambda x, c: x.sum(), lambda c: c.mean()), "what the pieces of a minibatch add"),
    (Sum(lambda x, c: x.abs().sum() ** 2), "what the pieces of a minibatch add"),
    (Sum(lambda x, c: x.sum() + c.sum()), "a numerator three times as large"),
    (Sum(lambda x, c: x.sum() / x.shape[1]), "columns that count nothing are not read"),
    (Sum(lambda x, c: (x.sum(1) / c.sum(1)).sum()), "numerator and denominator are finite"),
    (Sum(lambda x, c: x.sum(1)), "raised RuntimeError on ragged rows"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "sentence"), WRONG)
def test_wrong_parts_of_a_loss_are_caught_by_name(plugin: Any, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_loss(plugin)
    assert f"{type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)
