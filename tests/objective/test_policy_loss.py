"""The surrogate against a token loop: values, gradients, garbage, micro-batches, metrics."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from flat_loss import aggregate_loss, aggregation_of, surrogate_loss
from segcredit import load_config, read_runs, train
from segcredit.errors import ShapeError
from segcredit.objective.aggregation import loss_count
from segcredit.objective.policy_loss import kl_divergence
from segcredit.segmentation import Segmentation
from segcredit.training import update
from segcredit.training.batch_loss import LossCounts, policy_loss
from segcredit.training.build import build
from segcredit.training.credit_assignment import TrainingBatch, collect
from segcredit.types import Advantages
from small import SMALL
from strategies import cuts, masks, normal

RATIOS = ("none", "token", "segment", "sequence")
AGGREGATES = (
    "token_mean",
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "sequence_sum_norm",
)
CHOICES = list(itertools.product(RATIOS, AGGREGATES))


def signals(shape: tuple[int, ...], seed: int, spread: float = 0.4) -> tuple[Tensor, ...]:
    """Log-probs of the policy, of the sampling policy, and advantages; no ratio on a bound."""
    sampling = -normal(shape, seed).abs()
    return sampling + spread * normal(shape, seed + 1), sampling, normal(shape, seed + 2)


@pytest.mark.parametrize(("ratio", "aggregate"), CHOICES)
@given(
    cut=cuts(),
    seed=st.integers(0, 99),
    dual=st.sampled_from([None, 1.5]),
    weighted=st.booleans(),
    spread=st.sampled_from([0.4, 30.0]),
    denominator=st.sampled_from([None, 2.5]),
)
def test_loss_and_gradient_agree_with_the_loop(
    ratio: str,
    aggregate: str,
    cut: tuple[Tensor, Tensor],
    seed: int,
    dual: float | None,
    weighted: bool,
    spread: float,
    denominator: float | None,
) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    shape = tuple(mask.shape)
    new, sampling, credit = signals(shape, seed, spread)
    weights = normal(shape, seed + 3).clamp(0, 1) if weighted else None
    options = {
        "ratio": ratio,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "dual_clip": dual,
        "aggregate": aggregate,
        "token_weights": weights,
        "norm_length": 11.0 if seed % 2 else None,
        "denominator": denominator,
    }
    slow, fast = new.clone().requires_grad_(), new.clone().requires_grad_()
    want = oracles.surrogate_loss(
        slow, sampling, credit, segmentation.segment_ids.tolist(), **options
    )
    found, _ = surrogate_loss(fast, sampling, credit, mask, segmentation, **options)
    scale = max(1.0, abs(float(want.detach())))
    assert abs(float(found.detach()) - float(want.detach())) <= 1e-10 * scale
    if want.requires_grad:
        want.backward()
    found.backward()
    wanted = torch.zeros_like(new) if slow.grad is None else slow.grad
    assert fast.grad is not None
    assert torch.allclose(fast.grad, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ratio", RATIOS)
@given(cut=cuts(), seed=st.integers(0, 99))
def test_garbage_on_masked_tokens_is_not_read(
    ratio: str, cut: tuple[Tensor, Tensor], seed: int
) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    clean = signals(tuple(mask.shape), seed)
    results = []
    for fill in (0.0, torch.nan, torch.inf):
        new, sampling, credit = (x.masked_fill(~mask, fill) for x in clean)
        new.requires_grad_()
        loss, metrics = surrogate_loss(
            new,
            sampling,
            credit,
            mask,
            segmentation,
            ratio=ratio,
            clip_low=0.2,
            clip_high=0.2,
            aggregate="token_mean",
            dual_clip=3.0,
            token_weights=torch.ones_like(sampling).masked_fill(~mask, fill),
        )
        loss.backward()
        results.append((loss.detach(), new.grad, *metrics.values()))
    for dirty in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], dirty, strict=True))
    assert bool((results[1][1][~mask] == 0).all())


@pytest.mark.parametrize(("ratio", "aggregate"), CHOICES)
@given(cut=cuts(), seed=st.integers(0, 99), size=st.integers(1, 3))
def test_micro_batches_add_up_to_the_whole(
    ratio: str, aggregate: str, cut: tuple[Tensor, Tensor], seed: int, size: int
) -> None:
    starts, mask = cut
    segmentation = Segmentation.from_starts(starts, mask)
    new, sampling, credit = signals(tuple(mask.shape), seed)
    options = {"ratio": ratio, "clip_low": 0.2, "clip_high": 0.2, "aggregate": aggregate}
    whole, _ = surrogate_loss(new, sampling, credit, mask, segmentation, **options)
    norm = aggregate == "sequence_sum_norm"
    denominator = (
        None if norm else loss_count(mask.double(), aggregation_of(aggregate)).clamp(min=1)
    )
    total = torch.zeros(()).double()
    for first in range(0, len(mask), size):
        rows = list(range(first, min(first + size, len(mask))))
        part, _ = surrogate_loss(
            new[rows],
            sampling[rows],
            credit[rows],
            mask[rows],
            segmentation.select(rows),
            denominator=denominator,
            **options,
        )
        total = total + part
    assert float(total) == pytest.approx(float(whole), abs=1e-10)


@given(masks(), st.integers(0, 99))
def test_segments_of_a_token_and_of_a_row_are_the_other_ratios(mask: Tensor, seed: int) -> None:
    new, sampling, credit = signals(tuple(mask.shape), seed)
    per_token = Segmentation.from_starts(mask, mask)
    whole = Segmentation.from_starts(torch.zeros_like(mask), mask)
    options = {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "token_mean"}
    for segmentation, ratio in ((per_token, "token"), (whole, "sequence")):
        one, _ = surrogate_loss(
            new, sampling, credit, mask, segmentation, ratio="segment", **options
        )
        other, _ = surrogate_loss(new, sampling, credit, mask, segmentation, ratio=ratio, **options)
        assert float(one) == pytest.approx(float(other), abs=1e-12)


def test_metrics_by_hand() -> None:
    # Ratios 1.5, 0.5, 1, 4 with advantages +1, +1, -1, -1, clip 0.2, dual clip 3:
    # token 0 is clipped above; 1 is not (lower is the pessimist's); 2 is free; 3 meets the dual
    # bound since -A rho = 4 > 3.
    ratio = torch.tensor([[1.5, 0.5, 1.0, 4.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    segmentation = Segmentation.from_starts(mask, mask)
    loss, metrics = surrogate_loss(
        ratio.log(),
        torch.zeros_like(ratio),
        torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64),
        mask,
        segmentation,
        ratio="token",
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
        aggregate="token_mean",
    )
    assert float(loss) == pytest.approx((-1.2 - 0.5 + 1 + 3) / 4)
    assert float(metrics["clip_fraction"]) == pytest.approx(1 / 4)
    assert float(metrics["dual_clip_fraction"]) == pytest.approx(1 / 4)
    assert float(metrics["ratio_mean"]) == pytest.approx(7 / 4)
    assert float(metrics["ratio_max"]) == pytest.approx(4)
    assert float(metrics["kl"]) == pytest.approx(-float(ratio.log().mean()))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_nothing_to_count_is_a_loss_of_zero(aggregate: str) -> None:
    for shape in ((2, 3), (0, 3), (2, 0)):
        mask = torch.zeros(shape, dtype=torch.bool)
        new = torch.full(shape, torch.nan, requires_grad=True)
        loss, metrics = surrogate_loss(
            new,
            new.detach(),
            new.detach(),
            mask,
            Segmentation.from_starts(mask, mask),
            ratio="segment",
            clip_low=0.2,
            clip_high=0.2,
            aggregate=aggregate,
        )
        loss.backward()
        assert float(loss.detach()) == 0
        assert new.grad is not None
        assert bool((new.grad == 0).all())
        assert all(float(value) == 0 for value in metrics.values())


@given(masks(), st.integers(0, 99))
def test_losses_of_segments_aggregate_alike(mask: Tensor, seed: int) -> None:
    loss = normal(tuple(mask.shape), seed)
    rows = [(list(loss[b][mask[b]]), [1.0] * int(mask[b].sum())) for b in range(len(mask))]
    for aggregate in AGGREGATES:
        want = oracles.aggregate_loss(rows, aggregate, width=mask.shape[1])
        dirty = loss.masked_fill(~mask, torch.nan)
        found = aggregate_loss(dirty, mask.double(), aggregate)
        assert float(found) == pytest.approx(float(want), abs=1e-12)


def test_kl_estimates_by_hand() -> None:
    x = torch.tensor([[0.0, 0.5, -0.5]], dtype=torch.float64)
    blank = torch.zeros_like(x)
    assert kl_divergence(x, blank, "k1")[0].tolist() == [0, 0.5, -0.5]
    assert kl_divergence(x, blank, "k2")[0].tolist() == [0, 0.125, 0.125]
    k3 = [0, 0.6065306597126334 - 1 + 0.5, 1.6487212707001282 - 1 - 0.5]
    assert kl_divergence(x, blank, "k3")[0].tolist() == pytest.approx(k3)
    far = torch.tensor([[-50.0]], dtype=torch.float64)
    assert kl_divergence(far, far * 0, "k3").tolist() == [[10.0]]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "weighted_k3"])
def test_only_weighed_is_the_gradient_the_divergence_s(kind: Any) -> None:
    """Over all five tokens of a policy that has moved since it drew them."""
    logits, before, reference = (normal((1, 5), seed) for seed in range(3))
    logits.requires_grad_()
    logprobs, before, reference = (x.log_softmax(1) for x in (logits, before, reference))
    drawn = kl_divergence(logprobs, reference, kind, sampling_logprobs=before)
    (found,) = torch.autograd.grad((before.exp() * drawn).sum(), logits, retain_graph=True)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    (wanted,) = torch.autograd.grad(divergence, logits)
    assert torch.allclose(found, wanted, atol=1e-12) == (kind == "weighted_k3")


def test_refusals_are_sentences() -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    segmentation = Segmentation.from_starts(mask, mask)
    good = {"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "aggregate": "token_mean"}
    wrong = [
        ({"clip_low": -0.1}, "expected distances from 1"),
        ({"dual_clip": 0.5}, "expected more than 1"),
    ]
    for change, sentence in wrong:
        with pytest.raises(ShapeError, match=sentence):
            surrogate_loss(x, x, x, mask, segmentation, **{**good, **change})


# One minibatch of a real run: which terms the loss has, and over which tokens they are taken.


def start(*options: str) -> tuple[Any, TrainingBatch]:
    """A run and its first batch."""
    run = build(load_config("grpo", [*SMALL, *options]))
    return run, collect(run, 1)


def without_credit(batch: TrainingBatch, rewards: Tensor) -> TrainingBatch:
    """No advantage anywhere, so that the surrogate has no gradient."""
    credit = batch.advantages
    return dataclasses.replace(
        batch,
        rollouts=batch.rollouts.replace(rewards=rewards),
        advantages=Advantages(
            per_segment=torch.zeros_like(credit.per_segment),
            per_token=torch.zeros_like(credit.per_token),
        ),
    )


def step(run: Any, batch: TrainingBatch, rows: Tensor | None = None) -> tuple[float, Tensor]:
    """Loss and gradient of one minibatch: of all rows, if none are named."""
    run.policy.module.zero_grad(set_to_none=True)
    meter = update.Meter()
    rows = torch.arange(len(batch.rollouts)) if rows is None else rows
    counts = LossCounts.of(run, batch, rows)
    losses = update._accumulate(run, batch, rows, counts, meter, True, False)
    meter.add("loss", losses["loss"])
    return meter.read(run.processes)["loss"], gradient(run)


def gradient(run: Any) -> Tensor:
    found = [p.grad for p in run.policy.module.parameters() if p.grad is not None]
    return torch.cat([x.flatten() for x in found])


def test_an_engine_with_a_loop_of_its_own_gets_the_whole_loss() -> None:
    """Surrogate, KL and imitation, from a task and a policy that are there, in two pieces."""
    options = ["loss.kl_loss=0.05", "loss.imitation=0.1", "loss.tokens=low_probability"]
    ours, batch = start(*options)
    loss, slope = step(ours, batch)
    config = load_config("grpo", [*SMALL, *options])
    run = build(config, task=ours.task, policy=ours.policy.module, train_policy=False)
    assert run.policy.module is ours.policy.module
    assert run.policy.optimizer is None
    assert not run.policy.parameters
    batch = collect(run, 1)
    counts = LossCounts.of(run, batch, torch.arange(len(batch.rollouts)))
    run.policy.module.zero_grad(set_to_none=True)
    found = 0.0
    for rows in torch.arange(len(batch.rollouts)).split(7):
        scores = run.policy.module(batch.rollouts.select(rows))
        part, metrics = policy_loss(run, batch, rows, scores, counts)
        part.backward()
        found += float(part.detach())
        assert {"clip_fraction", "kl", "reference_kl"} <= metrics.keys()
    assert found == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(gradient(run), slope, atol=1e-6, rtol=1e-5)


def imitated(run: Any, batch: TrainingBatch, rows: Tensor, weight: float) -> tuple[float, Tensor]:
    """Weight times the mean of -log pi over the tokens of some rows."""
    run.policy.module.zero_grad(set_to_none=True)
    logprobs = run.policy.module(batch.rollouts).logprobs[rows]
    mask = batch.rollouts.action_mask[rows]
    loss = weight * sum(-logprobs[b][mask[b]].sum() for b in range(len(rows))) / mask.sum()
    loss.backward()
    return float(loss.detach()), gradient(run)


def test_imitation_is_of_completions_with_a_positive_reward() -> None:
    run, batch = start("loss.imitation=0.3")
    rewards = torch.tensor([0.0, 1.0, -1.0, 0.5] * 4)
    found = step(run, without_credit(batch, rewards))
    want = imitated(run, batch, (rewards > 0).nonzero()[:, 0], 0.3)
    assert found[0] == pytest.approx(want[0], rel=1e-5)
    torch.testing.assert_close(found[1], want[1], rtol=1e-4, atol=1e-6)
    assert want[1].abs().max() > 1e-3
    other = batch.rollouts.completion_ids.clone()
    other[rewards <= 0] = 5
    other = batch.rollouts.replace(completion_ids=other)
    elsewhere = without_credit(dataclasses.replace(batch, rollouts=other), rewards)
    torch.testing.assert_close(step(run, elsewhere)[1], want[1], rtol=1e-4, atol=1e-6)
    nothing = step(run, without_credit(batch, torch.zeros(16)))
    assert nothing[0] == 0
    assert not nothing[1].any()


def test_imitation_is_added_to_the_loss() -> None:
    plain, batch = start()
    both, _ = start("loss.imitation=0.3")
    rewards = (torch.arange(16) % 3).float()
    batch = dataclasses.replace(batch, rollouts=batch.rollouts.replace(rewards=rewards))
    alone, added = step(plain, batch), step(both, batch)
    want = imitated(both, batch, (rewards > 0).nonzero()[:, 0], 0.3)
    assert added[0] == pytest.approx(alone[0] + want[0], abs=1e-5)
    torch.testing.assert_close(added[1], alone[1] + want[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aggregate", [*AGGREGATES, "sequence_mean_token_norm"])
def test_every_term_is_the_same_in_micro_batches(aggregate: str) -> None:
    options = [
        f"loss.aggregate={aggregate}",
        "loss.imitation=0.3",
        "loss.kl_loss=0.5",
        "loss.tokens=high_entropy",
        "loss.entropy_share=0.4",
        "loss.count=all",
    ]
    run, batch = start(*options)
    with torch.no_grad():
        for parameter in run.policy.module.parameters():
            parameter.mul_(0.98)
    rewards = (torch.arange(16) % 3).float()
    credit = normal(tuple(batch.advantages.per_token.shape), 3).float()
    batch = dataclasses.replace(
        batch,
        rollouts=batch.rollouts.replace(rewards=rewards),
        advantages=dataclasses.replace(batch.advantages, per_token=credit),
    )
    rows = torch.tensor([7, 2, 11, 3, 15, 0, 4])
    whole = step(run, batch, rows)
    train_config = run.config.train.model_copy(update={"micro_tokens": 30})
    small = dataclasses.replace(run, config=run.config.model_copy(update={"train": train_config}))
    pieces = step(small, batch, rows)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-4)
    torch.testing.assert_close(pieces[1], whole[1], rtol=1e-3, atol=1e-5)


def test_what_the_loss_takes_and_what_it_counts() -> None:
    credit = None
    found = {}
    for tokens in ("all", "high_entropy", "low_probability"):
        for count in ("chosen", "all"):
            run, batch = start(
                f"loss.tokens={tokens}",
                f"loss.count={count}",
                "loss.aggregate=token_mean",
                "loss.entropy_share=0.3",
                "loss.probability_below=0.5",
            )
            rollouts = batch.rollouts
            mask = rollouts.action_mask
            chosen = {
                "all": mask,
                "high_entropy": mask
                & (rollouts.entropies >= rollouts.entropies[mask].quantile(0.7)),
                "low_probability": mask & (rollouts.logprobs.exp() < 0.5),
            }[tokens]
            counted = chosen if count == "chosen" else mask
            assert torch.equal(batch.token_weights, chosen.float())
            assert torch.equal(batch.count_weights, counted.float())
            segments = batch.segmentation.reduce(chosen.float(), "sum")
            assert torch.equal(batch.values.weights, segments)
            if credit is None:
                credit = normal(tuple(mask.shape), 3).float() * mask
            batch = dataclasses.replace(
                batch,
                advantages=dataclasses.replace(batch.advantages, per_token=credit),
            )
            # On-policy, the surrogate is minus the mean advantage of the tokens that it takes.
            loss, slope = step(run, batch)
            want = -float(credit[chosen].sum() / counted.sum())
            assert loss == pytest.approx(want, abs=1e-4)
            found[tokens, count] = slope * int(counted.sum()), int(chosen.sum())
    for tokens in ("all", "high_entropy", "low_probability"):
        chosen, everything = found[tokens, "chosen"], found[tokens, "all"]
        torch.testing.assert_close(chosen[0], everything[0], rtol=1e-3, atol=1e-3)
    taken = [found[tokens, "all"][1] for tokens in ("high_entropy", "low_probability", "all")]
    assert 0 < taken[0] < taken[2]
    assert 0 < taken[1] < taken[2]


def test_a_divergence_without_a_limit(tmp_path: Any) -> None:
    config = load_config("grpo", [*SMALL, "loss.kl_loss=0.1", "loss.kl_limit=inf", "train.steps=2"])
    assert config.loss.kl_limit == float("inf")
    steps = read_runs(train(config, tmp_path / "run")).steps
    assert steps.loss[1:].notna().all()
    assert steps.reference_kl[1:].ge(0).all()
    # Far from the reference, the limit of 10 would have held the estimate back.
    losses = []
    for limit in ("10", "inf"):
        run, batch = start("loss.kl_loss=1", f"loss.kl_limit={limit}")
        far = batch.rollouts.logprobs + 4.0 * batch.rollouts.action_mask
        batch = without_credit(batch, torch.zeros(16))
        far = batch.rollouts.replace(reference_logprobs=far)
        losses.append(step(run, dataclasses.replace(batch, rollouts=far))[0])
    assert losses[0] == pytest.approx(10, rel=1e-3)
    assert losses[1] == pytest.approx(2.718281828459045**4 - 1 - 4, rel=1e-3)


def test_a_step_that_takes_no_token_moves_nothing() -> None:
    run, batch = start("loss.tokens=low_probability", "loss.probability_below=1e-9")
    assert not batch.token_weights.any()
    before = [p.detach().clone() for p in run.policy.module.parameters()]
    figures = update.improve(run, batch, 1)
    assert figures["loss"] == 0
    after = run.policy.module.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
