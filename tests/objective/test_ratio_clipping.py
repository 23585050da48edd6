"""Bounds of the ratio and the whole surrogate, against loops in plain Python: values and slopes."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flat_loss import aggregate_loss, aggregation_of, surrogate_loss
from segcredit import objective
from segcredit.errors import ShapeError
from segcredit.objective import (
    Bound,
    Bounded,
    Clip,
    LogClip,
    SegmentRatio,
    SequenceMeanTokenNorm,
    SequenceRatio,
    SequenceSumNorm,
    SoftGate,
    TokenMean,
    TruncatedIS,
)
from segcredit.objective.aggregation import loss_count
from segcredit.objective.policy_loss import kl_divergence
from segcredit.segmentation import Segmentation
from strategies import cuts, normal

RATIOS = ("none", "token", "segment", "sequence")
GRADIENTS = ("full", "own_token")
BOUNDS = ("clip", "log_clip", "truncated_is", "soft_gate")
AGGREGATES = (
    "token_mean",
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "sequence_mean_token_norm",
    "sequence_sum_norm",
)
RATES = (math.exp(-20), 0.1, 0.79, 0.81, 1.0, 1.19, 1.31, 2.9, 3.1, math.exp(20))
CREDITS = (-2.0, -0.5, 0.0, 0.5, 2.0)
GRID = list(itertools.product(RATES, CREDITS))
Slope = tuple[float, float]
"""A value and its derivative."""


def clip(rho: float, credit: float, low: float, high: float) -> Slope:
    """min(A rho, A clip(rho)): a good action is held from above, a bad one from below."""
    if credit > 0:
        return (-credit * rho, -credit) if rho < high else (-credit * high, 0.0)
    if credit < 0:
        return (-credit * rho, -credit) if rho > low else (-credit * low, 0.0)
    return 0.0, 0.0


def dual_clip(found: Slope, credit: float, ceiling: float) -> Slope:
    return (-credit * ceiling, 0.0) if credit < 0 and found[0] > -credit * ceiling else found


def log_clip(x: float, credit: float, low: float, high: float) -> Slope:
    if credit > 0:
        return (x, 1.0) if x < high else (high, 0.0)
    if credit < 0:
        return (x, 1.0) if x > -low else (-low, 0.0)
    return 0.0, 0.0


def soft_gate(rho: float, credit: float, positive: float, negative: float) -> Slope:
    tau = positive if credit > 0 else negative
    gate = 1 / (1 + math.exp(-tau * (rho - 1))) if rho < 300 else 1.0
    return -credit * gate * 4 / tau, -credit * 4 * gate * (1 - gate)


def column(pairs: Sequence[tuple[float, float]], place: int) -> Tensor:
    return torch.tensor([[pair[place] for pair in pairs]], dtype=torch.float64)


def agree(found: Tensor, at: Tensor, want: Sequence[Slope]) -> None:
    (slope,) = torch.autograd.grad(found.sum(), at)
    torch.testing.assert_close(found.detach(), column(want, 0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, column(want, 1), rtol=1e-12, atol=1e-12)


def test_clip_and_its_second_bound() -> None:
    rho, credit = column(GRID, 0).requires_grad_(), column(GRID, 1)
    once = Clip(0.2, 0.3)(rho, rho.log(), credit, credit)
    want = [clip(rate, a, 0.8, 1.3) for rate, a in GRID]
    agree(once.loss, rho, want)
    assert once.clipped[0].tolist() == [
        (a > 0 and rate > 1.3) or (a < 0 and rate < 0.8) for rate, a in GRID
    ]
    twice = Clip(0.2, 0.3, dual=3.0)(rho, rho.log(), credit, credit)
    agree(twice.loss, rho, [dual_clip(w, a, 3.0) for w, (_, a) in zip(want, GRID, strict=True)])
    assert twice.dual_clipped[0].tolist() == [a < 0 and rate > 3 for rate, a in GRID]


def test_log_clip() -> None:
    pairs = [(math.log(rate), a) for rate, a in GRID]
    x, credit = column(pairs, 0).requires_grad_(), column(pairs, 1)
    bound = LogClip(0.4, 0.6)
    found = bound.before_mean(x, credit)
    held = bound(found.exp(), x, credit, x).clipped
    agree(found, x, [log_clip(*pair, 0.4, 0.6) for pair in pairs])
    assert held[0].tolist() == [(a > 0 and x > 0.6) or (a < 0 and x < -0.4) for x, a in pairs]


def test_truncated_is() -> None:
    rho, credit = column(GRID, 0).requires_grad_(), column(GRID, 1)
    new = normal((1, len(GRID)), 3).requires_grad_()
    bounded = TruncatedIS(0.5, 3.0)(rho, rho.log(), credit, new)
    found, capped = bounded.loss, bounded.clipped
    weights = [min(max(rate, 0.5), 3.0) for rate, _ in GRID]
    slopes = [-weight * a for weight, (_, a) in zip(weights, GRID, strict=True)]
    values = [s * float(x) for s, x in zip(slopes, new[0].detach(), strict=True)]
    agree(found, new, list(zip(values, slopes, strict=True)))
    assert torch.autograd.grad(found.sum(), rho, allow_unused=True) == (None,)
    assert capped[0].tolist() == [not 0.5 <= rate <= 3 for rate, _ in GRID]


def test_soft_gate() -> None:
    rho, credit = column(GRID, 0).requires_grad_(), column(GRID, 1)
    agree(
        SoftGate(1.0, 1.05)(rho, rho.log(), credit, credit).loss,
        rho,
        [soft_gate(*p, 1.0, 1.05) for p in GRID],
    )


# The surrogate: a loop over tokens that adds up its own derivative, without autograd.


def loop(
    new: Tensor,
    old: Tensor,
    credit: Tensor,
    ids: list[list[int]],
    weights: Tensor,
    counts: Tensor,
    *,
    ratio: str,
    ratio_gradient: str,
    bound: str,
    aggregate: str,
    low: float,
    high: float,
    dual: float | None,
    norm: float,
    denominator: float | None,
) -> tuple[float, list[list[float]]]:
    """The loss and its derivative in every log-prob."""
    slopes = [[0.0] * len(row) for row in ids]
    shares = token_shares(counts.tolist(), ids, aggregate, norm, denominator)
    total = 0.0
    for b, row in enumerate(ids):
        places = [t for t, number in enumerate(row) if number >= 0]
        for t in places:
            a, share = float(credit[b, t]), shares[b] * float(weights[b, t])
            same = {"segment": [u for u in places if row[u] == row[t]], "sequence": places}
            near = same.get(ratio, [t])
            # The value and the slope of each bounded log-ratio.
            x = {}
            for u in near:
                raw = float(new[b, u] - old[b, u])
                x[u] = (min(max(raw, -20), 20), float(abs(raw) < 20))
                if bound == "log_clip":
                    held, slope = log_clip(x[u][0], float(credit[b, u]), low, high)
                    x[u] = held, slope * x[u][1]
            rho = math.exp(sum(value for value, _ in x.values()) / len(near))
            direct = 0.0
            if ratio == "none":
                value, along, direct = -a * float(new[b, t]), 0.0, -a
            elif bound == "log_clip":
                value, along = -a * rho, -a
            elif bound == "truncated_is":
                direct = -min(max(rho, 1 - low), 1 + high) * a
                value, along = direct * float(new[b, t]), 0.0
            elif bound == "soft_gate":
                value, along = soft_gate(rho, a, 1.0, 1.05)
            else:
                value, along = clip(rho, a, 1 - low, 1 + high)
                if dual is not None:
                    value, along = dual_clip((value, along), a, dual)
            total += share * value
            slopes[b][t] += share * direct
            if ratio_gradient == "own_token":
                slopes[b][t] += share * along * rho * x[t][1]
            else:
                for u in near:
                    slopes[b][u] += share * along * rho * x[u][1] / len(near)
    return total, slopes


def token_shares(
    counts: list[list[float]],
    ids: list[list[int]],
    aggregate: str,
    norm: float,
    denominator: float | None,
) -> list[float]:
    """How much a token of each row weighs in the loss, its own weight aside."""
    sums = [
        sum(c for c, number in zip(row, numbers, strict=True) if number >= 0)
        for row, numbers in zip(counts, ids, strict=True)
    ]
    rows = sum(1 for total in sums if total > 0)
    own = {"token_mean": sum(sums), "sequence_sum_norm": 1}.get(aggregate, rows)
    below = denominator if denominator is not None else own or 1
    length = norm if aggregate.endswith("norm") else 1
    inside = [total if total and aggregate == "sequence_mean_token_mean" else 1 for total in sums]
    return [1 / (below * length * each) for each in inside]


def problem(shape: tuple[int, ...], seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    old = -normal(shape, seed).abs()
    credit = normal(shape, seed + 2)
    return old + spread * normal(shape, seed + 1), old, credit.masked_fill(credit.abs() < 0.3, 0)


def parts(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Weights of which some are 0, and other counts, never 0 where the weight is not."""
    weights = normal(shape, seed).clamp(0, 1)
    return weights, torch.maximum(weights, normal(shape, seed + 1).clamp(0, 1))


@pytest.mark.parametrize(
    ("ratio", "ratio_gradient", "bound"), list(itertools.product(RATIOS, GRADIENTS, BOUNDS))
)
@settings(max_examples=12)
@given(
    cut=cuts(),
    seed=st.integers(0, 99),
    aggregate=st.sampled_from(AGGREGATES),
    spread=st.sampled_from([0.4, 15.0]),
    dual=st.sampled_from([None, 1.5]),
    counted=st.sampled_from(["all", "weights", "both"]),
    denominator=st.sampled_from([None, 2.5]),
)
def test_the_surrogate_agrees_with_the_loop(
    ratio: str,
    ratio_gradient: str,
    bound: str,
    cut: tuple[Tensor, Tensor],
    seed: int,
    aggregate: str,
    spread: float,
    dual: float | None,
    counted: str,
    denominator: float | None,
) -> None:
    segmentation, mask = Segmentation.from_starts(*cut), cut[1]
    shape = tuple(mask.shape)
    new, old, credit = problem(shape, seed, spread)
    some, counts = parts(shape, seed + 7)
    weights = None if counted == "all" else some
    counts = counts if counted == "both" else weights
    dual = dual if bound == "clip" else None
    options = {"ratio": ratio, "ratio_gradient": ratio_gradient, "bound": bound}
    plain = torch.ones_like(new)
    want, slopes = loop(
        new,
        old,
        credit,
        segmentation.segment_ids.tolist(),
        plain if weights is None else weights,
        plain if counts is None else counts,
        **options,
        aggregate=aggregate,
        low=0.2,
        high=0.3,
        dual=dual,
        norm=11.0,
        denominator=denominator,
    )

    def dirty(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.masked_fill(~mask, torch.nan)

    at = dirty(new).requires_grad_()
    found, figures = surrogate_loss(
        at,
        dirty(old),
        dirty(credit),
        mask,
        segmentation,
        **options,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=dual,
        aggregate=aggregate,
        token_weights=dirty(weights),
        count_weights=dirty(counts),
        norm_length=11.0,
        denominator=denominator,
    )
    found.backward()
    assert float(found.detach()) == pytest.approx(want, rel=1e-10, abs=1e-10)
    wanted = torch.tensor(slopes, dtype=torch.float64).view(shape)
    torch.testing.assert_close(at.grad, wanted, rtol=1e-10, atol=1e-10)
    assert bool((at.grad[~mask] == 0).all())
    assert all(bool(torch.isfinite(figure)) for figure in figures.values())


@pytest.mark.parametrize(("ratio", "bound"), list(itertools.product(RATIOS, BOUNDS)))
@settings(max_examples=6)
@given(cut=cuts(), seed=st.integers(0, 99), aggregate=st.sampled_from(AGGREGATES))
def test_neither_order_nor_padding_matters(
    ratio: str, bound: str, cut: tuple[Tensor, Tensor], seed: int, aggregate: str
) -> None:
    starts, mask = cut
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    new, old, credit = problem(tuple(mask.shape), seed, 0.4)
    weights, counts = parts(tuple(mask.shape), seed)
    results = []
    for moved in (False, True):

        def place(x: Tensor, moved: bool = moved) -> Tensor:
            return torch.nn.functional.pad(x[order], (0, 3), value=1) if moved else x

        inside = place(mask.long()).bool()
        inside[:, mask.shape[1] :] = False
        at = place(new).requires_grad_()
        loss, figures = surrogate_loss(
            at,
            place(old),
            place(credit),
            inside,
            Segmentation.from_starts(place(starts.long()), inside),
            ratio=ratio,
            bound=bound,
            clip_low=0.2,
            clip_high=0.3,
            aggregate=aggregate,
            token_weights=place(weights),
            count_weights=place(counts),
            norm_length=5.0,
        )
        (slope,) = torch.autograd.grad(loss, at)
        if not moved:
            slope = place(slope, True)
            slope[:, mask.shape[1] :] = 0
        results.append((loss.detach(), slope, *figures.values()))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("ratio", "bound"), list(itertools.product(RATIOS, BOUNDS)))
@settings(max_examples=6)
@given(cut=cuts(), seed=st.integers(0, 99))
def test_the_first_gradient_is_minus_the_advantage(
    ratio: str, bound: str, cut: tuple[Tensor, Tensor], seed: int
) -> None:
    segmentation, mask = Segmentation.from_starts(*cut), cut[1]
    old, credit = -normal(tuple(mask.shape), seed).abs(), normal(tuple(mask.shape), seed + 1)

    def slope(ratio_gradient: str) -> Tensor:
        at = old.clone().requires_grad_()
        loss, _ = surrogate_loss(
            at,
            old,
            credit,
            mask,
            segmentation,
            ratio=ratio,
            ratio_gradient=ratio_gradient,
            bound=bound,
            clip_low=0.2,
            clip_high=0.3,
            aggregate="token_mean",
            denominator=1.0,
        )
        return torch.autograd.grad(loss, at)[0]

    want = -credit.masked_fill(~mask, 0)
    torch.testing.assert_close(slope("own_token"), want, rtol=1e-12, atol=1e-12)
    # The gradient of an averaged ratio is shared: each token has the mean advantage.
    if ratio == "segment" and bound != "truncated_is":
        want = segmentation.spread(segmentation.reduce(want, "mean"))
    if ratio == "sequence" and bound != "truncated_is":
        want = want.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1) * mask
    torch.testing.assert_close(slope("full"), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "bound"), list(itertools.product(("segment", "sequence"), BOUNDS))
)
@settings(max_examples=6)
@given(cut=cuts(), seed=st.integers(0, 99))
def test_own_token_is_full_where_credit_is_shared(
    ratio: str, bound: str, cut: tuple[Tensor, Tensor], seed: int
) -> None:
    segmentation, mask = Segmentation.from_starts(*cut), cut[1]
    new, old, _ = problem(tuple(mask.shape), seed, 0.01)
    if ratio == "segment":
        credit = segmentation.spread(normal(tuple(segmentation.mask.shape), seed))
    else:
        credit = normal((len(mask), 1), seed).expand_as(new).contiguous()

    def both(ratio_gradient: str) -> tuple[Tensor, Tensor]:
        at = new.clone().requires_grad_()
        loss, _ = surrogate_loss(
            at,
            old,
            credit,
            mask,
            segmentation,
            ratio=ratio,
            ratio_gradient=ratio_gradient,
            bound=bound,
            clip_low=0.2,
            clip_high=0.3,
            aggregate="sequence_mean_token_mean",
        )
        return loss.detach(), torch.autograd.grad(loss, at)[0]

    for full, own in zip(both("full"), both("own_token"), strict=True):
        torch.testing.assert_close(full, own, rtol=1e-10, atol=1e-12)


def test_own_token_differs_from_full_where_credit_varies() -> None:
    new, old, credit = problem((2, 4), 0, 0.01)
    mask = torch.ones(2, 4, dtype=torch.bool)
    segmentation = Segmentation.from_starts(torch.zeros_like(mask), mask)
    slopes = []
    for ratio_gradient in GRADIENTS:
        at = new.clone().requires_grad_()
        loss, _ = surrogate_loss(
            at,
            old,
            credit,
            mask,
            segmentation,
            ratio="segment",
            ratio_gradient=ratio_gradient,
            clip_low=0.2,
            clip_high=0.2,
            aggregate="token_mean",
        )
        slopes.append(torch.autograd.grad(loss, at)[0])
    assert not torch.allclose(*slopes)


@pytest.mark.parametrize(
    ("bound", "around", "absolute"),
    [
        ("clip", (0.2, 0.3), (0.8, 1.3)),
        ("truncated_is", (1.0, 4.0), (0.0, 5.0)),
        ("truncated_is", (10.0, 0.2), (-9.0, 1.2)),
    ],
)
def test_two_ways_to_write_an_interval(
    bound: str, around: tuple[float, float], absolute: tuple[float, float]
) -> None:
    # verl's and NeMo's knobs of CISPO are distances from 1, TRL's and ScaleRL's the cap itself.
    new, old, credit = problem((4, 6), 5, 1.5)
    mask = torch.ones(4, 6, dtype=torch.bool)
    segmentation = Segmentation.from_starts(mask, mask)
    found = []
    for clip_bounds, (low, high) in (("around_one", around), ("absolute", absolute)):
        at = new.clone().requires_grad_()
        loss, figures = surrogate_loss(
            at,
            old,
            credit,
            mask,
            segmentation,
            ratio="token",
            bound=bound,
            clip_low=max(low, 0.0),
            clip_high=high,
            clip_bounds=clip_bounds,
            aggregate="token_mean",
        )
        found.append((loss.detach(), torch.autograd.grad(loss, at)[0], figures["clip_fraction"]))
    assert 0 < float(found[0][2]) < 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bound", "aggregate"), list(itertools.product(BOUNDS, AGGREGATES)))
@settings(max_examples=6)
@given(cut=cuts(), seed=st.integers(0, 99), size=st.integers(1, 3))
def test_micro_batches_with_counts_of_their_own_add_up(
    bound: str, aggregate: str, cut: tuple[Tensor, Tensor], seed: int, size: int
) -> None:
    segmentation, mask = Segmentation.from_starts(*cut), cut[1]
    new, old, credit = problem(tuple(mask.shape), seed, 0.4)
    weights, counts = parts(tuple(mask.shape), seed)
    counts = counts.masked_fill(~mask, 0)

    def loss(rows: list[int], denominator: Tensor | None) -> Tensor:
        at = new[rows].requires_grad_()
        found, _ = surrogate_loss(
            at,
            old[rows],
            credit[rows],
            mask[rows],
            segmentation.select(rows),
            ratio="segment",
            bound=bound,
            clip_low=0.2,
            clip_high=0.3,
            aggregate=aggregate,
            token_weights=weights[rows],
            count_weights=counts[rows],
            norm_length=4.0,
            denominator=denominator,
        )
        slope = torch.autograd.grad(found, at)[0]
        return torch.cat([found.detach()[None], slope.flatten()])

    shared = loss_count(counts, aggregation_of(aggregate)).clamp(min=1e-9)
    rows = list(range(len(mask)))
    pieces = [loss(rows[first : first + size], shared) for first in range(0, len(rows), size)]
    joined = torch.cat([sum(piece[:1] for piece in pieces), *(piece[1:] for piece in pieces)])
    torch.testing.assert_close(joined, loss(rows, None), rtol=1e-10, atol=1e-12)


def test_what_is_left_out_can_count_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, 8.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    counts = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    # The sums are 2.5 and 4; three and two tokens count.
    want = [6.5 / 5, (2.5 / 3 + 4 / 2) / 2, 6.5 / 2, 6.5 / 10 / 2, 6.5 / 10]
    for aggregate, number in zip(AGGREGATES, want, strict=True):
        found = aggregate_loss(losses, weights, aggregate, count_weights=counts, norm_length=10.0)
        assert float(found) == pytest.approx(number, abs=1e-12)


def test_the_log_clip_bounds_tokens_before_the_mean() -> None:
    # Log-ratios 1 and -1 with A > 0 and an upper bound of 0.5: the mean is (0.5 - 1) / 2.
    new = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, figures = surrogate_loss(
        new,
        torch.zeros_like(new),
        torch.ones_like(new),
        mask,
        Segmentation.from_starts(torch.zeros_like(mask), mask),
        ratio="sequence",
        bound="log_clip",
        clip_low=0.4,
        clip_high=0.5,
        aggregate="token_mean",
    )
    assert float(loss) == pytest.approx(-math.exp(-0.25))
    assert float(figures["clip_fraction"]) == pytest.approx(0.5)


def test_an_unclamped_k3_has_no_limit() -> None:
    far = torch.tensor([[-5.0]], dtype=torch.float64)
    found = kl_divergence(far, far * 0, "k3", limit=math.inf)
    assert float(found) == pytest.approx(math.exp(5) - 1 - 5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: Clip(0.2, -0.1), "high is -0.1; expected distances from 1"),
        (lambda: Clip(math.nan, 0.2), "low is nan"),
        (lambda: LogClip(-0.4, 0.4), "low is -0.4 and high is 0.4; expected distances from 0"),
        (lambda: Clip(dual=1.0), "dual is 1.0; expected more than 1"),
        (lambda: TruncatedIS(5.0, 0.2), r"the interval \[5.0, 0.2\]; expected"),
        (lambda: TruncatedIS(-1.0, 5.0), r"the interval \[-1.0, 5.0\]; expected"),
        (lambda: SegmentRatio("half"), "gradient 'half' does not exist; expected full"),
        (lambda: SequenceRatio("half"), "gradient 'half' does not exist; expected full"),
        (lambda: SequenceSumNorm(0.0), "norm_length is 0.0; expected a number of tokens above 0"),
        (lambda: SequenceMeanTokenNorm(math.nan), "norm_length is nan"),
    ],
)
def test_wrong_options_are_sentences(wrong: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        wrong()


def test_a_bound_of_ones_own_is_called_with_the_ratio_at_its_level() -> None:
    class Square(Bound):
        def __call__(
            self, ratio: Tensor, log_ratio: Tensor, advantages: Tensor, logprobs: Tensor
        ) -> Bounded:
            return Bounded(-advantages * ratio.square())

    x = torch.tensor([[0.1, 0.5, -0.3]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, figures = objective.surrogate_loss(
        x,
        torch.zeros_like(x),
        torch.ones_like(x),
        mask,
        Segmentation.from_starts(mask, mask),
        surrogate=objective.Importance(SequenceRatio(), Square()),
        aggregation=TokenMean(),
    )
    assert float(loss) == pytest.approx(-math.exp(2 * 0.1))
    assert float(figures["clip_fraction"]) == 0


def test_the_widest_call_has_ten_arguments() -> None:
    assert len(inspect.signature(objective.surrogate_loss).parameters) == 10


@pytest.mark.usefixtures("unchecked")
def test_tensors_that_do_not_fit_are_named() -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    segmentation = Segmentation.from_starts(mask, mask)
    options = {"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "aggregate": "token_mean"}
    with pytest.raises(ShapeError, match=r"advantages has shape \(1, 3\) but logprobs has"):
        surrogate_loss(x, x, torch.zeros(1, 3), mask, segmentation, **options)
    with pytest.raises(ShapeError, match="KL estimate 'k9' does not exist"):
        kl_divergence(x, x, "k9")


@pytest.mark.parametrize("gates", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_a_gate_that_divides_by_nothing_is_a_sentence(gates: tuple[float, float]) -> None:
    with pytest.raises(ShapeError, match="expected both above 0"):
        SoftGate(*gates)
