"""Worked numbers and properties of bounds over several tokens, ratios of prefixes, rejections."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segcredit import registry
from segcredit.errors import SegcreditError
from segcredit.objective import (
    Bound,
    Clip,
    Correction,
    CovariancePenalty,
    DivergenceMask,
    FutureWeight,
    GammaWeight,
    GrowingClip,
    Importance,
    PrefixRatio,
    ProbabilityClip,
    Ratio,
    Reject,
    RejectDivergent,
    SegmentRatio,
    SequenceProduct,
    SequenceRatio,
    StrayedRows,
    TokenRatio,
    Truncate,
)
from segcredit.objective.joint_bounds import covariances
from segcredit.segmentation import Segmentation
from strategies import cuts, normal


def segmentations() -> st.SearchStrategy[Segmentation]:
    return cuts().map(lambda drawn: Segmentation.from_starts(*drawn))


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def ones(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def halves(like: Tensor) -> Segmentation:
    starts = torch.arange(like.shape[1]).expand_as(like) % (like.shape[1] // 2) == 0
    return Segmentation.from_starts(starts, ones(like))


def assert_near(found: Tensor, *numbers: float) -> None:
    """Compares with numbers of four decimals."""
    torch.testing.assert_close(found, row(*numbers), atol=5.1e-5, rtol=0)


def kept(bound: Bound, before: Tensor, now: Tensor, credit: float, cut: Segmentation) -> list[int]:
    """Returns which tokens are left to push, by their slopes."""
    logprobs = now.log().requires_grad_()
    x = logprobs - before.log()
    surrogate = Importance(TokenRatio(), bound)
    _, found = surrogate(x, torch.full_like(now, credit), logprobs, ones(now), cut)
    (slope,) = torch.autograd.grad(found.loss.sum(), logprobs)
    return (slope[0] != 0).int().tolist()


BEFORE, NOW = row(0.5, 0.1, 0.9, 0.2), row(0.7, 0.12, 0.6, 0.5)


@pytest.mark.parametrize(("kind", "most"), [("tv", 0.15), ("kl", 0.05)])
def test_divergences_leave_tokens_out(kind: Any, most: float) -> None:
    bound = DivergenceMask(kind, most, most)
    assert kept(bound, BEFORE, NOW, 1.0, halves(NOW)) == [0, 1, 1, 0]
    assert kept(bound, BEFORE, NOW, -1.0, halves(NOW)) == [1, 1, 0, 1]


@pytest.mark.parametrize(("pooled", "tv"), [("mean", 0.11), ("sum", 0.22), ("max", 0.2)])
def test_a_segment_is_left_out_as_one(pooled: Any, tv: float) -> None:
    """The first half moved up, by .2 and .02; the second by -.3 and .3, up as log-ratios go."""
    for most, first in ((tv + 1e-9, [1, 1]), (tv - 1e-9, [0, 0])):
        bound = DivergenceMask("tv", most, most, per="segment", pooled=pooled)
        found = kept(bound, BEFORE, NOW, 1.0, halves(NOW))
        assert found[:2] == first
        assert found[2:] == [0, 0]  # .3, .3 and .6 are above all of these
        assert kept(bound, BEFORE, NOW, -1.0, halves(NOW)) == [1] * 4


def test_either_direction_leaves_out_more() -> None:
    bound = DivergenceMask("tv", 0.15, 0.15, moves="either")
    for credit in (1.0, -1.0):
        assert kept(bound, BEFORE, NOW, credit, halves(NOW)) == [0, 1, 0, 0]


X = row(0.1, -0.2, 0.3, 0.05)


@pytest.mark.parametrize(
    ("ratio", "wanted"),
    [
        (PrefixRatio(), (1.1052, 0.9048, 1.2214, 1.2840)),
        (PrefixRatio("geometric"), (1.1052, 0.9512, 1.0689, 1.0645)),
        (PrefixRatio(until="segment"), (0.9048, 0.9048, 1.2840, 1.2840)),
        (PrefixRatio(since="segment"), (1.1052, 0.9048, 1.3499, 1.4191)),
        (PrefixRatio(until="segment", since="segment"), (0.9048, 0.9048, 1.4191, 1.4191)),
        (SequenceProduct(), (1.2840,) * 4),
    ],
)
def test_ratios(ratio: Ratio, wanted: tuple[float, ...]) -> None:
    assert_near(ratio.average(X, ones(X), halves(X)).exp(), *wanted)


def test_growing_bounds() -> None:
    """Ratios far outside are held at the bounds, (.0253, .05) at t = 1 and wider by the root."""
    bound = GrowingClip().among(ones(X), halves(X))
    credit = torch.ones_like(X)
    high = bound(credit * 9, X, credit, X).loss
    assert_near(-high, 1.0513, 1.0733, 1.0905, 1.1052)
    low = bound(credit * 0.01, X, -credit, X).loss
    assert_near(low, 0.9753, 0.9653, 0.9576, 0.9512)
    again = GrowingClip(since="segment").among(ones(X), halves(X))
    assert_near(-again(credit * 9, X, credit, X).loss, 1.0513, 1.0733, 1.0513, 1.0733)


def test_the_weight_of_the_future() -> None:
    free = FutureWeight(Clip(), low=0.0, high=10.0)
    assert_near(free.weights(X, X.abs()).log(), 0.2384, 0.1415, 0.3489, 0.05)
    assert_near(FutureWeight(Clip()).weights(X, X.abs()), 1.2, 1.1519, 1.2, 1.0513)
    leap = row(0.0, 3.0, 0.1)
    weights = FutureWeight(Clip()).weights(leap, -torch.ones_like(leap))
    assert_near(weights, 1.1005, 1.0, 1.1052)  # e^3 > 10 is no part of the sums, nor raised itself


def test_the_gamma_weight() -> None:
    rho, credit = row(0.5, 1, 2), torch.ones(1, 3).double()
    for sign, wanted in ((1, (1.1204, 1, 0.1991)), (-1, (0.3398, 1, 1.0827))):
        found = GammaWeight()(rho, rho.log(), sign * credit, credit)
        assert_near(-sign * found.loss, *wanted)


def test_bounds_by_probability() -> None:
    q, credit = row(0.9, 0.5, 0.1, 0.01), torch.ones(1, 4).double()
    bound = ProbabilityClip()
    high = bound(credit * 99, credit * 0, credit, q.log()).loss
    assert_near(-high, 1.1872, 1.3062, 2, 5)
    low = bound(credit * 0.01, credit * 0, -credit, q.log()).loss
    assert_near(low, 0.7687, 0.5, 0.5, 0.5)


def test_covariances() -> None:
    logprobs, credit = row(0.9, 0.1, 0.9, 0.1).log(), row(1, 1, -1, -1)
    found = covariances(logprobs, credit, ones(credit))
    assert_near(found, 1.0986, -1.0986, -1.0986, 1.0986)
    bound = CovariancePenalty(share=0.5).among(ones(credit), halves(credit))
    plain = -credit * X.exp()
    assert_near(bound(X.exp(), X, credit, logprobs).loss - plain, 0.1, 0, 0, 0.05)


def test_bad_rows_that_have_moved_leave_the_loss() -> None:
    """Means of -x are -.0625 and .0625; a row with A > 0 stays wherever it went."""
    x = torch.cat([X, -X])
    bound = StrayedRows(Clip(), delta=0.05)
    for sign, left in ((-1.0, [1, 0]), (1.0, [1, 1])):
        credit = torch.full_like(x, sign)
        found = bound.among(ones(x), halves(x))(x.exp(), x, credit, x).loss
        assert (found != 0).all(1).int().tolist() == left
    by_segment = StrayedRows(Clip(9.0, 9.0), delta=0.04, per="segment")
    credit = torch.full_like(X, -1.0)
    found = by_segment.among(ones(X), halves(X))(X.exp(), X, credit, X).loss
    assert (found[0] != 0).int().tolist() == [0, 0, 1, 1]


WEIGHTS = row(1.2, 0.8, 3, 0.4, 1, 1.1)


@pytest.mark.parametrize(
    ("plugin", "wanted"),
    [
        (Reject("token", "product", 0.5, 2.0), (1, 1, 0, 0, 1, 1)),
        (Reject("segment", "product", 0.4, 2.0), (0, 0, 0, 1, 1, 1)),
        (Reject("segment", "geometric", 0.8, 2.0), (1, 1, 1, 0, 0, 0)),
        (Reject("sequence", "product", 0.5, 1.26), (0,) * 6),
        (Reject("sequence", "geometric", 0.5, 1.05), (1,) * 6),
        (Reject("sequence", "geometric", 0.5, 1.05, Truncate()), (1.2, 0.8, 2, 0.4, 1, 1.1)),
        (RejectDivergent("token", "mean", "k3", 0.3), (1, 1, 0, 0, 1, 1)),
        (RejectDivergent("segment", "max", "k2", 0.43), (0, 0, 0, 1, 1, 1)),
        (RejectDivergent("sequence", "sum", "k2", 1.07), (1,) * 6),
        (RejectDivergent("sequence", "sum", "k2", 1.0), (0,) * 6),
    ],
)
def test_rejections(plugin: Correction, wanted: tuple[float, ...]) -> None:
    assert_near(plugin(WEIGHTS.log(), ones(WEIGHTS), halves(WEIGHTS)), *wanted)


LEVELS = ("token", "segment", "sequence")


@settings(max_examples=25, deadline=None)
@given(segmentations())
def test_corrections_are_the_identity_where_sampler_and_trainer_agree(cut: Segmentation) -> None:
    mask = cut.action_mask
    for name in registry.corrections.names():
        for level in LEVELS:
            plugin = registry.corrections.build(name, level=level)
            found = plugin(torch.zeros(mask.shape).double(), mask, cut)[mask]
            torch.testing.assert_close(found, torch.ones_like(found), atol=1e-12, rtol=0)


@settings(max_examples=25, deadline=None)
@given(segmentations(), st.integers(0, 9))
def test_prefixes_of_one_segment_or_token_are_other_ratios(cut: Segmentation, seed: int) -> None:
    """And a masked token's log-ratio, here 0, moves none of them."""
    mask = cut.action_mask
    x = normal(mask.shape, seed).double().masked_fill(~mask, 0) / 10
    each = Segmentation.from_starts(mask, mask)
    row = Segmentation.from_starts(torch.zeros_like(mask), mask)
    end_mean = PrefixRatio("geometric", "segment")
    pairs: list[tuple[Ratio, Ratio, Segmentation]] = [
        (PrefixRatio(since="segment"), TokenRatio(), each),
        (PrefixRatio(until="segment"), PrefixRatio(), each),
        (end_mean, SequenceRatio(), row),
        (PrefixRatio(until="segment"), SequenceProduct(), row),
        (PrefixRatio("geometric", "segment", "segment"), SegmentRatio(), cut),
    ]
    for ours, other, over in pairs:
        found, wanted = (ratio.average(x, mask, over)[mask] for ratio in (ours, other))
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@settings(max_examples=25, deadline=None)
@given(segmentations(), st.integers(0, 9), st.sampled_from(["tv", "kl"]))
def test_a_segment_of_one_token_is_decided_as_the_token(
    cut: Segmentation, seed: int, kind: Any
) -> None:
    mask = cut.action_mask
    x, credit = (normal(mask.shape, seed + i).double().masked_fill(~mask, 0) for i in (0, 1))
    logprobs = -normal(mask.shape, seed + 2).double().abs() - 0.1
    each = Segmentation.from_starts(mask, mask)
    token = DivergenceMask(kind).among(mask, each)(x.exp(), x, credit, logprobs)
    segment = DivergenceMask(kind, per="segment").among(mask, each)
    found = segment(x.exp(), x, credit, logprobs)
    assert torch.equal(found.loss[mask], token.loss[mask])


def test_a_segment_s_product_is_exact_given_its_prefix() -> None:
    """Over all completions of two segments of two tokens, the sampler's second segment weighed.

    What the second segment is worth after each first one is its expectation under the trainer, to
    rounding; the geometric mean, and tokens on their own, are off by a per cent or more.
    """
    tokens = torch.tensor(list(itertools.product((0, 1), repeat=4)))
    generator = torch.Generator().manual_seed(0)

    def logprobs() -> Tensor:
        """Draws a policy that reads all tokens before."""
        tables = [
            torch.randn(2**t, 2, generator=generator).double().log_softmax(1) for t in range(4)
        ]
        seen = [(tokens[:, :t] * 2 ** torch.arange(t)).sum(1) for t in range(4)]
        return torch.stack([tables[t][seen[t], tokens[:, t]] for t in range(4)], 1)

    trainer, sampler = logprobs(), logprobs()
    worth = torch.randn(16, generator=generator).double()
    cut = halves(trainer)
    first = tokens[:, 0] * 2 + tokens[:, 1]
    truth = (trainer[:, 2:].sum(1).exp() * worth).view(4, 4).sum(1)

    def error(average: Any) -> float:
        weigh = Truncate("segment", average, 1e9)
        weights = weigh(trainer - sampler, ones(trainer), cut)[:, 3]
        found = (sampler[:, 2:].sum(1).exp() * weights * worth).view(4, 4).sum(1)
        return float((found - truth).abs().max())

    assert first.view(4, 4).unique(dim=1).shape == (4, 1)  # a line of the view is one first segment
    assert error("product") < 1e-12
    assert error("geometric") > 0.01


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("bounds", "divergence_mask", {"low": -1.0}, "low"),
        ("bounds", "flipped_clip", {"cap": 0.5}, "cap"),
        ("bounds", "covariance_penalty", {"share": 0.0}, "share"),
        ("bounds", "future_weight", {"inner": "clip", "low": 2.0}, "low"),
        ("ratios", "prefix", {"until": "line"}, "until"),
        ("corrections", "reject", {"low": 2.0}, "low"),
        ("corrections", "reject_divergent", {"estimate": "k1"}, "estimate"),
    ],
)
def test_options_out_of_range_are_refused(
    kind: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SegcreditError, match=message):
        getattr(registry, kind).build(name, **options)
