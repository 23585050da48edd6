"""The critic's networks, objectives and options; what it may read, and what that does to a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from estimators.values.critic import Critic
from segcredit import (
    RolloutBatch,
    Segmentation,
    Simulator,
    ValueEstimator,
    load_config,
    registry,
)
from segcredit.errors import ConfigError, PluginError
from segcredit.objective.returns import segment_values
from segcredit.protocols import readable
from segcredit.testing.toy import ToySimulator, toy_rollouts
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from small import SMALL

READER = ["estimator={name='critic', network='reader'}", "train.value.warmup_iterations=0"]


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random parameters everywhere: outputs begin at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module


def every_token(rollouts: RolloutBatch) -> Segmentation:
    return Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)


def values_of(critic: Critic, state: nn.Module, rollouts: RolloutBatch) -> Tensor:
    cut = every_token(rollouts)
    read = readable(rollouts, critic.reads)
    return cut.spread(critic.estimate(state, read, cut, ToySimulator(reads=critic.reads)))


def loss_of(critic: Critic, outputs: Tensor, targets: Tensor) -> Tensor:
    """Losses of given outputs, a token a row."""

    class Given(nn.Module):
        def forward(self, rollouts: RolloutBatch, scores: object) -> Tensor:
            return outputs

    simulator = ToySimulator()
    rollouts = toy_rollouts(simulator, lengths=[1] * len(outputs), hole=False)
    rollouts = rollouts.replace(
        completion_ids=rollouts.completion_ids[:, :1],
        **{
            name: getattr(rollouts, name)[:, :1]
            for name in [
                "action_mask",
                "logprobs",
                "entropies",
                "token_spans",
                "token_rewards",
                "token_values",
                "node_ids",
                "reference_logprobs",
                "reference_entropies",
                "reference_hidden",
            ]
        },
    )
    cut = every_token(rollouts)
    values = segment_values(rollouts, cut, torch.zeros(cut.mask.shape))
    scores = simulator.score(rollouts)
    return critic.loss(Given(), rollouts, cut, scores, values, targets[:, None])[:, 0]


@pytest.mark.parametrize("logprobs", ["reference", "none"])
def test_a_reader_knows_nothing_of_what_comes(logprobs: str) -> None:
    """Values before token t stay as they are when token t, or anything after it, is another."""
    critic = Critic(network="reader", logprobs=logprobs)  # pyright: ignore[reportArgumentType]
    rollouts = toy_rollouts(ToySimulator())
    state = filled(critic.start(ToySimulator().policy))
    before = values_of(critic, state, rollouts)
    for place in range(rollouts.completion_ids.shape[1]):
        late = torch.arange(rollouts.completion_ids.shape[1]) >= place
        hidden, entropies = rollouts.reference_hidden, rollouts.reference_entropies
        assert hidden is not None
        assert entropies is not None
        assert rollouts.reference_logprobs is not None
        after = late & (torch.arange(len(late)) > place)
        changed = rollouts.replace(
            completion_ids=torch.where(late, 4 - rollouts.completion_ids, rollouts.completion_ids),
            reference_logprobs=rollouts.reference_logprobs - 2.0 * late,
            # The state and the uncertainty before token t are known before it.
            reference_hidden=hidden + 3.0 * after[:, None],
            reference_entropies=entropies + 1.0 * after,
        )
        found = values_of(critic, state, changed)
        assert torch.equal(found[:, : place + 1], before[:, : place + 1])
        assert place + 1 == len(late) or not torch.equal(found, before)


def test_a_reader_reads_tokens_by_their_remainder_and_can_do_without() -> None:
    policy = ToySimulator().policy
    assert dict(Critic(network="reader", tokens=0).start(policy).named_parameters()).keys() == {
        name
        for name, _ in Critic(network="reader").start(policy).named_parameters()
        if not name.startswith("token.")
    }
    critic = Critic(network="reader", tokens=2)
    rollouts = toy_rollouts(ToySimulator())
    state = filled(critic.start(policy))
    # Ids 1 and 3 are one token to it.
    swapped = rollouts.replace(
        completion_ids=torch.where(rollouts.completion_ids == 1, 3, rollouts.completion_ids)
    )
    assert torch.equal(values_of(critic, state, rollouts), values_of(critic, state, swapped))


def test_a_reader_is_told_how_the_others_did() -> None:
    rollouts = toy_rollouts(ToySimulator())
    better = rollouts.replace(others_reward=torch.ones(len(rollouts)))
    alone = rollouts.replace(others_reward=torch.full((len(rollouts),), math.nan))
    for told in (True, False):
        critic = Critic(network="reader", group_mean=told)
        state = filled(critic.start(ToySimulator().policy))
        usual, high, none = (values_of(critic, state, x) for x in (rollouts, better, alone))
        assert bool(none.isfinite().all())
        assert torch.equal(usual, high) is not told
        assert torch.equal(usual, none) is not told


def test_the_loop_tells_the_mean_of_the_others() -> None:
    batch = collect(build(load_config("grpo", SMALL)), 1)
    rollouts = batch.rollouts
    for row in range(len(rollouts)):
        others = (rollouts.group == rollouts.group[row]).nonzero()[:, 0].tolist()
        others.remove(row)
        assert rollouts.others_reward is not None
        want = float(rollouts.rewards[others].mean())
        assert float(rollouts.others_reward[row]) == pytest.approx(want, abs=1e-6)


def test_cross_entropy_is_of_the_place_in_the_range() -> None:
    critic = Critic(objective="bce", low=-1.0, high=3.0)
    outputs, targets = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([3.0, -1.0, 0.0])
    found = loss_of(critic, outputs[:, None], targets)
    share = 1 / (1 + math.exp(-1.0))
    want = [
        math.log1p(math.exp(-0.3)),
        math.log1p(math.exp(-2.0)),
        -0.25 * math.log(share) - 0.75 * math.log(1 - share),
    ]
    assert found.tolist() == pytest.approx(want, abs=1e-6)
    # Targets beyond the range count as its end.
    assert loss_of(critic, outputs[:1, None], torch.tensor([9.0])).tolist() == pytest.approx(
        want[:1], abs=1e-6
    )


@pytest.mark.parametrize("target", [0.0, 0.013, 0.37, 0.5, 1.0])
def test_a_distribution_that_fits_has_the_target_as_its_mean(target: float) -> None:
    critic = Critic(objective="hl_gauss", bins=50)
    outputs = torch.zeros(1, 1, 56, requires_grad=True)
    loss_of(critic, outputs, torch.tensor([target])).sum().backward()
    assert outputs.grad is not None
    # The gradient of a cross-entropy by the logits is the softmax less what is wanted.
    # Far from the target rounding leaves shares of less than nothing.
    shares_K = (outputs.detach().softmax(-1) - outputs.grad).flatten().clamp(min=1e-9)
    assert float(critic._values(shares_K.log()[None, None])) == pytest.approx(target, abs=1e-3)
    spread = ((torch.arange(56) - 2.5) / 50 - target).square() @ shares_K
    # Of a normal distribution of .75 bins' width, and the width of a bin.
    assert float(spread.sqrt()) * 50 == pytest.approx(math.sqrt(0.75**2 + 1 / 12), abs=0.01)


def test_an_ensemble_is_its_members_mean_and_says_how_far_they_differ() -> None:
    critic = Critic(network="reader", ensemble=3)
    rollouts = toy_rollouts(ToySimulator())
    state = filled(critic.start(ToySimulator().policy))
    one = Critic(network="reader")
    members = [values_of(one, member, rollouts) for member in state.members]  # pyright: ignore
    every = torch.stack(members)
    assert torch.allclose(values_of(critic, state, rollouts), every.mean(0), atol=1e-6)
    cut = every_token(rollouts)
    read = readable(rollouts, critic.reads)
    spread = critic.deviations(state, read, cut, ToySimulator())
    assert torch.allclose(cut.spread(spread), every.std(0), atol=1e-6)
    with pytest.raises(ValueError, match="ensemble is 1"):
        one.deviations(state, read, cut, ToySimulator())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": 1.0, "high": 1.0}, "expected low < high"),
        ({"objective": "bce", "value_clip": 0.2}, "with 'mse' alone"),
        ({"network": "head", "ensemble": 2}, "with network 'reader' alone"),
        ({"group_mean": True}, "with network 'reader' alone"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(Exception, match=said):
        registry.estimators.build("critic", **options)


# What is read.


@dataclass(frozen=True)
class Curious(ValueEstimator):
    """Reads the policy's log-probs, whether or not it says so."""

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        return segmentation.reduce(rollouts.logprobs, "mean")


@dataclass(frozen=True)
class Asking(Curious):
    """Asks for them."""

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        return segmentation.reduce(simulator.score(rollouts).entropies, "mean")


@pytest.mark.parametrize("kind", [Curious, Asking])
def test_what_is_not_named_cannot_be_read(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.estimators._local, "curious", kind)
    run = build(load_config("grpo", [*SMALL, "estimator=curious"]))
    with pytest.raises(PluginError, match=r"(?s)'curious'.*scores that its `reads` does not name"):
        collect(run, 1)


def test_a_trained_critic_may_not_read_the_policys_own_confidence() -> None:
    live = "estimator={name='critic', network='reader', logprobs='live'}"
    with pytest.raises(ConfigError, match="learns to please it by becoming confident"):
        build(load_config("ppo", [*SMALL, live]))
    allowed = build(load_config("ppo", [*SMALL, live, "train.value.live_logprobs=true"]))
    assert bool(collect(allowed, 1).values.values.isfinite().all())
    # What is trained on nothing may: a table of prompts that measures how far the policy moved.
    build(load_config("single_stream", SMALL))


def test_the_starting_policy_is_copied_once_and_read_as_it_was() -> None:
    run = build(load_config("ppo", [*SMALL, *READER, "loss.kl_loss=0.1"]))
    before = collect(run, 0).rollouts
    with torch.no_grad():
        for parameter in run.policy.parameters:
            parameter.add_(0.02 * torch.randn_like(parameter))
    rollouts = collect(run, 1).rollouts
    with torch.no_grad():
        assert run.reference is not None
        scores = run.reference(rollouts)
    for found, want in (
        (rollouts.reference_logprobs, scores.logprobs),
        (rollouts.reference_entropies, scores.entropies),
        (rollouts.reference_hidden, scores.hidden),
    ):
        assert found is not None
        assert torch.allclose(found, want, atol=1e-5)
    assert rollouts.reference_logprobs is not None
    assert not torch.allclose(rollouts.reference_logprobs, rollouts.logprobs, atol=1e-3)
    # Before the first step policy and reference are one, and one pass serves both.
    assert before.reference_logprobs is not None
    assert torch.equal(before.reference_logprobs, before.logprobs)


# One critic for every definition of segments.


def test_one_critic_serves_every_segmenter() -> None:
    """The same values at the same tokens, the same loss, whatever the segments are."""
    found = {}
    for segmenter in ("per_token", "newline", "whole"):
        run = build(load_config("ppo", [*SMALL, *READER, f"segmenter={segmenter}"]))
        filled(run.state.module)
        batch = collect(run, 1)
        found[segmenter] = batch
        assert batch.states.width == int(batch.rollouts.action_mask.sum(1).max())
        by_token = batch.states.spread(batch.state_values.values)
        anchors = batch.segmentation.anchors("start")
        want = by_token.gather(1, anchors).masked_fill(~batch.segmentation.mask, 0)
        assert torch.equal(batch.values.values, want)
        goals = batch.states.spread(batch.targets).gather(1, anchors)
        assert torch.equal(batch.segment_targets, goals * batch.segmentation.mask)
    first, *others = found.values()
    for other in others:
        assert torch.equal(first.state_values.values, other.state_values.values)
        assert torch.equal(first.targets, other.targets)


def test_process_rewards_reach_a_critic_of_tokens_by_a_segments_last_token() -> None:
    changes = ["segmenter=newline", "process_reward=equations"]
    run = build(load_config("ppo", [*SMALL, *READER, *changes]))
    batch = collect(run, 1)
    by_token = batch.states.spread(batch.state_values.rewards)
    assert torch.allclose(batch.segmentation.reduce(by_token, "sum"), batch.values.rewards)
    earned = (by_token - batch.rollouts.token_rewards) != 0
    assert bool(earned.any())
    assert not bool((earned & ~batch.segmentation.ends).any())
