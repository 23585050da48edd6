"""Expected policy gradients by enumeration: sums over all completions of a toy policy, no chance.

Everything is float64 and goes through the real segmenters, estimators, advantage schemes and the
real objective. Since the gradient of the surrogate at the sampling policy is linear in the
advantages, advantages are weighed by the probability of what they were computed from and added up
for each completion; one backward pass over the completions is then the expectation.

Shapes: ``C`` all completions, ``N`` rows of all groups, ``T`` tokens, ``S`` segments.
"""

from __future__ import annotations

import functools
import random
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flat_loss import surrogate_loss
from segcredit import (
    AdvantageScheme,
    RolloutBatch,
    Segmentation,
    Segmenter,
    SegmentValues,
    ValueEstimator,
)
from segcredit.objective.loss_masks import shared_token_weights
from segcredit.objective.returns import advantages, segment_values
from segcredit.protocols import checked_segments
from segcredit.testing import ToyPolicy, ToySimulator

SEGMENT_FIELDS = ("values", "rewards", "lengths", "weights", "mask", "node_ids")


def toy_table_reward(prompt: str, text: str) -> float:
    """A number in [0,1] for each completion, unrelated to that of any other."""
    return zlib.crc32(f"{prompt}:{text}".encode()) % 997 / 996


def fill(module: nn.Module, seed: int, size: float) -> nn.Module:
    """Arbitrary parameters in float64, the same on every machine."""
    numbers = random.Random(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = [numbers.uniform(-size, size) for _ in range(parameter.numel())]
            parameter.copy_(torch.tensor(drawn, dtype=torch.float64).view(parameter.shape))
    return module


@dataclass(frozen=True, eq=False)
class Toy:
    """A policy, all that it can say, and the gradient that estimates are compared with."""

    simulator: ToySimulator
    everything: RolloutBatch
    shares: Tensor
    """(C,) the probability of each completion."""
    gradient: Tensor
    """Of the expected reward, in the policy's parameters."""

    @property
    def policy(self) -> ToyPolicy:
        return self.simulator.policy


@functools.cache
def toy(length: int = 5) -> Toy:
    """A policy far from uniform, whose reward is an arbitrary table."""
    policy = ToyPolicy(length=length, prompts=1, hidden_size=6)
    simulator = ToySimulator(fill(policy, seed=1, size=1.25), toy_table_reward)
    everything = simulator.enumerate()
    scores = policy(everything)
    expected_reward = scores.logprobs.sum(1).exp() @ everything.rewards
    # As before the first step: the policy is its own reference, and each completion is alone.
    everything = everything.replace(
        reference_logprobs=scores.logprobs.detach(),
        reference_entropies=scores.entropies.detach(),
        reference_hidden=scores.hidden.detach(),
        others_reward=torch.full_like(everything.rewards, torch.nan),
    )
    return Toy(
        simulator=simulator,
        everything=everything,
        shares=everything.logprobs.sum(1).exp(),
        gradient=flat_gradient(expected_reward, policy),
    )


@functools.cache
def toy_of_turns() -> Toy:
    """Two turns of two tokens, with an observation between them that follows from the first.

    The first turn has a reward of its own, and ``token_values`` are the true ones: the expected
    rewards still to come.
    """
    plain = toy()
    ids = plain.everything.completion_ids
    answered = ids[:, 2] == (ids[:, 0] + 2 * ids[:, 1]) % 3 + 1
    rows = plain.everything.select(answered.nonzero()[:, 0])
    turn_ids = torch.tensor([0, 0, -1, 1, 1]).expand_as(rows.completion_ids)
    early_C = [toy_table_reward("turn", text[:2]) for text in rows.texts]
    token_rewards = torch.zeros_like(rows.token_rewards)
    token_rewards[:, 1], token_rewards[:, 4] = torch.tensor(early_C).double(), rows.rewards
    rows = rows.replace(
        action_mask=turn_ids >= 0,
        turn_ids=turn_ids,
        anchor_ids=turn_ids.clamp(max=0),
        token_rewards=token_rewards,
        rewards=token_rewards.sum(1),
    )
    scores = plain.policy(rows)
    shares = scores.logprobs.sum(1).exp()
    values = torch.zeros_like(rows.logprobs)
    for t in range(values.shape[1]):
        # Rows that share a prefix have equal tokens before t.
        state_CT = torch.cat([rows.prompt_ids[:, -1:], rows.completion_ids[:, :t]], 1)
        _, prefix_C = state_CT.unique(dim=0, return_inverse=True)
        to_go_C = token_rewards[:, t:].sum(1)
        mass, gain = (torch.zeros(len(shares)).double() for _ in range(2))
        mass.index_add_(0, prefix_C, shares.detach())
        gain.index_add_(0, prefix_C, shares.detach() * to_go_C)
        values[:, t] = (gain / mass)[prefix_C]
    detached = scores.detached()
    everything = rows.replace(
        logprobs=detached.logprobs,
        entropies=detached.entropies,
        reference_logprobs=detached.logprobs,
        reference_entropies=detached.entropies,
        reference_hidden=detached.hidden,
        token_values=values,
        group=torch.zeros_like(rows.group),
        node_ids=torch.arange(rows.node_ids.numel()).view(rows.node_ids.shape),
    )
    gradient = flat_gradient(shares @ everything.rewards, plain.policy)
    return Toy(plain.simulator, everything, shares.detach(), gradient)


def flat_gradient(loss: Tensor, policy: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def arbitrary_state(estimator: ValueEstimator, policy: ToyPolicy) -> nn.Module:
    """The state of an estimator with fixed, wrong values: random parameters, a made-up table."""
    state = fill(estimator.start(policy), seed=2, size=0.6)
    if state.state_dict().get("_extra_state"):
        state.load_state_dict({"_extra_state": {"counts": {"0": (3.0, 1.0)}, "latest": {}}})
    return state


@functools.cache
def segment(world: Toy, segmenter: Segmenter) -> Segmentation:
    return checked_segments(segmenter, type(segmenter).__name__, world.everything)


@torch.no_grad()
def estimate(
    world: Toy, segmentation: Segmentation, estimator: ValueEstimator, rollouts: RolloutBatch
) -> SegmentValues:
    state = arbitrary_state(estimator, world.policy)
    values_BS = estimator.estimate(state, rollouts, segmentation, world.simulator)
    return segment_values(rollouts, segmentation, values_BS)


@functools.cache
def estimate_alone(world: Toy, segmenter: Segmenter, estimator: ValueEstimator) -> SegmentValues:
    """Every completion once, each a group of its own as far as its values go."""
    return estimate(world, segment(world, segmenter), estimator, world.everything)


def weighed_credit(
    world: Toy, segmenter: Segmenter, estimator: ValueEstimator, scheme: AdvantageScheme
) -> Tensor:
    """(C,T) advantages times the completion's probability; nothing is shared between rows."""
    values = estimate_alone(world, segmenter, estimator)
    credit = advantages(segment(world, segmenter), values, scheme(values))
    return credit.per_token * world.shares[:, None]


@functools.lru_cache(maxsize=1)
def estimate_groups(
    world: Toy, segmenter: Segmenter, estimator: ValueEstimator, size: int, alone: bool
) -> tuple[Tensor, Segmentation, SegmentValues]:
    """(N,) the completions of all ordered groups in turn, with their segments and values."""
    members = [torch.arange(len(world.everything))] * size
    rows_N = torch.cartesian_prod(*members).flatten()
    segmentation = segment(world, segmenter).select(rows_N)
    shape_NT = segmentation.segment_ids.shape
    group_N = torch.arange(len(rows_N) // size).repeat_interleave(size)
    # Rows drawn independently share no token, even where they say the same: all nodes differ.
    if alone:
        values = estimate_alone(world, segmenter, estimator).select(rows_N)
        nodes_NS = torch.arange(values.mask.numel()).view(values.mask.shape)
        return rows_N, segmentation, values.replace(group=group_N, node_ids=nodes_NS)
    nodes_NT = torch.arange(shape_NT.numel()).view(shape_NT)
    rollouts = world.everything.select(rows_N).replace(group=group_N, node_ids=nodes_NT)
    return rows_N, segmentation, estimate(world, segmentation, estimator, rollouts)


def weighed_group_credit(
    world: Toy,
    segmenter: Segmenter,
    estimator: ValueEstimator,
    scheme: AdvantageScheme,
    *,
    size: int = 2,
    alone: bool = False,
    batches: bool = False,
) -> Tensor:
    """(C,T) advantages over all ordered groups, weighed and added up for each completion.

    Args:
        world: whose completions are drawn.
        segmenter: cuts each completion.
        estimator: sees every group as a group.
        scheme: sees every group as a group.
        size: completions of a group.
        alone: the estimator sees completions one by one, which spares resuming each many times.
        batches: the scheme sees every group as a batch of its own.
    """
    rows_N, segmentation, values = estimate_groups(world, segmenter, estimator, size, alone)
    advantages_NS = each_group(scheme, values, size) if batches else scheme(values)
    credit_NT = advantages(segmentation, values, advantages_NS).per_token
    weight_N = world.shares[rows_N].view(-1, size).prod(1).repeat_interleave(size) / size
    return add_up(world, credit_NT * weight_N[:, None], rows_N)


def add_up(world: Toy, credit_NT: Tensor, rows_N: Tensor) -> Tensor:
    """(C,T) weighed advantages of many batches, added up for each completion."""
    blank_CT = torch.zeros_like(world.everything.logprobs)
    return blank_CT.index_add(0, rows_N, credit_NT)


def each_group(scheme: AdvantageScheme, values: SegmentValues, size: int) -> Tensor:
    """The scheme on the first ``size`` rows as a batch, on the next ones as a batch, and so on."""
    width = values.values.shape[1]
    parts = [getattr(values, name).view(-1, size, width) for name in SEGMENT_FIELDS]

    def one(group_B: Tensor, *fields: Tensor) -> Tensor:
        named = dict(zip(SEGMENT_FIELDS, fields, strict=True))
        return scheme(SegmentValues(group=group_B, **named))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        return torch.vmap(one)(values.group.view(-1, size), *parts).reshape(-1, width)


def weighed_tree_credit(
    world: Toy,
    segmenter: Segmenter,
    estimator: ValueEstimator,
    scheme: AdvantageScheme,
    *,
    stem: int,
    count_once: bool,
) -> Tensor:
    """(C,T) as for groups, over all trees of two stems with two endings each: four rows a tree.

    Args:
        world: a toy so short that its trees can be enumerated.
        segmenter: cuts each row.
        estimator: sees every tree as a group.
        scheme: sees every tree as a group.
        stem: tokens that two rows share.
        count_once: whether the loss counts a token that two rows share as 1/2 in each.
    """
    rows_N4 = tree_rows(world, stem)
    rows_N = rows_N4.flatten()
    length = world.everything.logprobs.shape[1]
    nodes_N4T = torch.arange(rows_N4.numel() * length).view(-1, 4, length)
    shared_N4T = (torch.arange(length) < stem) & (torch.arange(4) % 2 == 1)[:, None]
    nodes_N4T = torch.where(shared_N4T, nodes_N4T.roll(1, 1), nodes_N4T)
    group_N = torch.arange(len(rows_N4)).repeat_interleave(4)
    trees = world.everything.select(rows_N).replace(
        group=group_N, node_ids=nodes_N4T.view(-1, length)
    )
    segmentation = segment(world, segmenter).select(rows_N)
    values = estimate(world, segmentation, estimator, trees)
    credit_NT = advantages(segmentation, values, scheme(values)).per_token
    weight_NT = tree_shares(world, rows_N4, stem).repeat_interleave(4)[:, None] / 4
    if count_once:
        weight_NT = weight_NT * shared_token_weights(trees.node_ids, trees.action_mask)
    return add_up(world, credit_NT * weight_NT, rows_N)


def tree_rows(world: Toy, stem: int) -> Tensor:
    """(N,4) the completions of every tree; the first two share a stem, and so do the others."""
    endings = 3 ** (world.policy.length - stem)
    axes = [torch.arange(count) for count in (3**stem, 3**stem, *[endings] * 4)]
    drawn_N6 = torch.cartesian_prod(*axes)
    # Completions are in the order of their symbols: a stem is the leading part of the number.
    return drawn_N6[:, [0, 0, 1, 1]] * endings + drawn_N6[:, 2:]


def tree_shares(world: Toy, rows_N4: Tensor, stem: int) -> Tensor:
    """(N,) the probability of each tree: stems are drawn once, endings once a row."""
    stems_C = world.everything.logprobs[:, :stem].sum(1)
    endings_C = world.everything.logprobs[:, stem:].sum(1)
    return (stems_C[rows_N4[:, [0, 2]]].sum(1) + endings_C[rows_N4].sum(1)).exp()


def surrogate_gradient(
    world: Toy, weighed_CT: Tensor, segmenter: Segmenter, **options: Any
) -> Tensor:
    """The gradient that the surrogate ascends in expectation; ``segmenter`` cuts for the ratio."""
    chosen = {"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, **options}
    loss, _ = surrogate_loss(
        world.policy(world.everything).logprobs,
        world.everything.logprobs,
        weighed_CT,
        world.everything.action_mask,
        segment(world, segmenter),
        aggregate="sequence_mean_token_sum",
        denominator=1.0,
        **chosen,
    )
    return flat_gradient(-loss, world.policy)


@dataclass(frozen=True)
class Deviation:
    """How an expected gradient differs from the true one."""

    error: float
    """Distance, in units of the true gradient's length."""
    length: float
    """Its component along the true gradient, in the same units: 1 if unbiased."""
    direction: float
    """Sine of the angle between the two: what no step size can mend."""


def deviation(found: Tensor, want: Tensor) -> Deviation:
    length = found @ want / (want @ want)
    return Deviation(
        error=float((found - want).norm() / want.norm()),
        length=float(length),
        direction=float((found - length * want).norm() / found.norm()),
    )


def measure(
    world: Toy,
    segmenter: Segmenter,
    estimator: ValueEstimator,
    scheme: AdvantageScheme,
    **options: Any,
) -> Deviation:
    """Of plug-ins that treat each completion by itself."""
    weighed_CT = weighed_credit(world, segmenter, estimator, scheme)
    found = surrogate_gradient(world, weighed_CT, segmenter, **options)
    return deviation(found, world.gradient)


def measure_groups(
    world: Toy,
    segmenter: Segmenter,
    estimator: ValueEstimator,
    scheme: AdvantageScheme,
    **options: Any,
) -> Deviation:
    """Of plug-ins that compare completions; the options are those of ``weighed_group_credit``."""
    weighed_CT = weighed_group_credit(world, segmenter, estimator, scheme, **options)
    return deviation(surrogate_gradient(world, weighed_CT, segmenter), world.gradient)
