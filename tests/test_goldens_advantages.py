"""Advantages of 2025-26 against verl, SkyRL, Tree-GRPO and PRIME."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from golden_cases import (
    FLOAT32,
    FLOAT32_FACTOR,
    Case,
    assert_close_masked,
    cases,
    credit,
    rollouts_of,
    segment,
)
from segcredit import (
    ProcessReward,
    RolloutBatch,
    Segmentation,
    SegmentValues,
    Simulator,
    registry,
)
from segcredit.objective.returns import advantages, segment_values

REWARD = {"name": "group_mean", "singleton": "reward"}


def outcome(case: Case) -> tuple[dict[str, Tensor], RolloutBatch, Segmentation]:
    """The arrays of a case of groups, its rollouts, and ``whole``."""
    data = case.load()
    rollouts = rollouts_of(data["response_mask"], data["token_level_rewards"], group=data["index"])
    return data, rollouts, segment("whole", rollouts)


@cases("skyrl_maxrl")
def test_skyrl_maxrl(case: Case) -> None:
    """``whole``, ``group_mean`` with singleton="reward", ``mean_scaled`` with SkyRL's eps."""
    data, rollouts, cut = outcome(case)
    scheme = {"name": "mean_scaled", "inner": "full_return", "eps": case.args["epsilon"]}
    found, _ = credit(rollouts, cut, REWARD, scheme)
    assert_close_masked(case, found, data["advantages"], rollouts.action_mask)


@cases("verl_gpg_adv")
def test_verl_gpg(case: Case) -> None:
    """``whole``, ``group_mean`` with singleton="reward", ``informative_scaled`` by rewards."""
    data, rollouts, cut = outcome(case)
    scheme = {"name": "informative_scaled", "inner": "full_return", "count": "rewards"}
    found, _ = credit(rollouts, cut, REWARD, scheme | {"divisor": case.args["f_norm"]})
    mask = rollouts.action_mask  # the quotient of verl's counts is in float32
    assert_close_masked(case, found, data["advantages"], mask, atol=FLOAT32_FACTOR)


def summed(
    parts: list[Tensor], rollouts: RolloutBatch, scheme: str = "whitened"
) -> tuple[Tensor, SegmentValues]:
    """The sum of credits under ``credit_scheme``, as a run makes it."""
    mask = rollouts.action_mask
    tokens = Segmentation.from_starts(mask, mask)
    total = torch.stack(parts).sum(0)
    nothing = torch.zeros(tokens.mask.shape).to(total)
    values = segment_values(rollouts.replace(token_rewards=total), tokens, nothing)
    plugin = registry.advantages.build(scheme, inner="td")
    return advantages(tokens, values, plugin(values)).per_token, values


@cases("verl_gdpo")
def test_verl_gdpo(case: Case) -> None:
    """One credit a reward, ``whole``, ``group_mean``, ``group_scaled``; ``whitened`` sum."""
    data, mask = case.load(), case.load()["response_mask"]
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    scheme: dict[str, Any] = {"name": "full_return"}
    if case.args["norm_adv_by_std_in_grpo"]:
        scheme = {"name": "group_scaled", "inner": scheme}
    rewards, parts = data["reward_components"], list[Tensor]()
    weights = data.get("reward_weights", torch.ones(rewards.shape[1]))
    for reward, weight in zip(rewards.unbind(1), weights, strict=True):
        rollouts = rollouts_of(mask, last * reward[:, None], group=data["index"])
        parts.append(weight * credit(rollouts, segment("whole", rollouts), REWARD, scheme)[0])
    found, _ = summed(parts, rollouts)
    assert_close_masked(case, found, data["advantages"], mask)


@dataclass(frozen=True, slots=True)
class Norms(Simulator):
    """A simulator that knows the squared norms of the case's gradients."""

    norms: Tensor

    def logit_gradients(self, rollouts: RolloutBatch) -> Tensor:
        return self.norms


def optimal_baseline(case: Case, place: str) -> None:
    data, rollouts, _ = outcome(case)
    mask, tail = rollouts.action_mask, "reward" if case.args["handle_zero_tail"] else "zero"
    norms = 1 - 2 * data["old_log_probs"].exp() + data["sum_pi_squared"]
    table = {"name": "optimal_token_baseline", "place": place, "singleton": "reward", "tail": tail}
    if "rollout_is_weights" in data:
        sampler = data["old_log_probs"] - data["rollout_is_weights"].log()
        rollouts = rollouts.replace(logprobs=data["old_log_probs"], sampler_logprobs=sampler)
        table["weigh"] = "sampler"
    found, _ = credit(
        rollouts,
        segment("per_token", rollouts),
        table,
        {"name": "full_return"},
        simulator=Norms(norms),
    )
    compared = mask
    if place == "column" and tail == "reward" and "holes" in case.tags:
        # verl's tail begins at a column that is a count of tokens: rows that are longest, by their
        # tokens or by their last column, are left out.
        last = (mask * torch.arange(mask.shape[1])).amax(1)
        for length in (mask.sum(1), last):
            most = torch.stack([length[rollouts.group == one].max() for one in rollouts.group])
            alone = torch.stack([(rollouts.group == one).sum() == 1 for one in rollouts.group])
            compared = compared & ~((length == most) & ~alone)[:, None]
        assert compared.any()
    assert_close_masked(case, found, data["advantages"], compared, atol=1e-8)


@cases("verl_otb")
def test_verl_otb(case: Case) -> None:
    """``per_token``, ``optimal_token_baseline`` by columns, ``full_return``.

    Difference: where the mask has holes, verl's zero tail begins at another column.
    """
    optimal_baseline(case, "column")


@cases("verl_tir_otb")
def test_verl_tir_otb(case: Case) -> None:
    """The same by sampled tokens."""
    optimal_baseline(case, "sampled")


@cases("prime_adv")
def test_prime_adv(case: Case) -> None:
    """``per_token``, ``zero`` over ``group_centered`` implicit rewards,
    ``whole``, ``leave_one_out``; the sum ``whitened``."""
    data, args = case.load(), case.args
    mask, blank = data["response_mask"], torch.zeros_like(data["rm_scores"])
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    group = torch.arange(len(mask)) // args["n_samples"]
    implicit = rollouts_of(mask, blank, group=group)
    tokens = segment("per_token", implicit)
    inner = _Given(tokens.reduce(data["rm_scores"], "sum"))
    plugin = registry.process_rewards.build("group_centered", inner=inner)
    values = segment_values(
        implicit,
        tokens,
        torch.zeros(tokens.mask.shape).to(blank),
        process_rewards_BS=plugin.reward(implicit, tokens),
    )
    scheme = registry.advantages.build("full_return")
    process = advantages(tokens, values, scheme(values)).per_token
    right = rollouts_of(mask, last * data["acc"].to(blank)[:, None], group=group)
    answer, _ = credit(right, segment("whole", right), "leave_one_out", {"name": "full_return"})
    parts = [args["reward_dpo_coef"] * process, args["reward_gt_coef"] * answer]
    found, _ = summed(parts, right)
    total = torch.stack(parts).sum(0)  # the reference's outcomes are in float32
    assert_close_masked(case, total, data["returns"], mask, atol=FLOAT32_FACTOR)
    assert_close_masked(case, found, data["advantages"], mask, atol=FLOAT32_FACTOR)


@dataclass(frozen=True, slots=True)
class _Given(ProcessReward):
    """Process rewards that the case gives."""

    rewards_BS: Tensor

    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor:
        return self.rewards_BS


@cases("tree_grpo")
def test_tree_grpo(case: Case) -> None:
    """The released ``tree_2norm``: ``prefix_group`` of the trunk under ``within_trees`` of
    ``group_scaled``, where a tree has leaves to compare; else the group's ``group_scaled``."""
    data = case.load()
    mask, tree, scores = data["eos_mask"].bool(), data["tree_index"], data["token_level_rewards"]
    first = (tree[:, None] == tree).int().argmax(1)
    nodes = torch.arange(mask.numel()).view(mask.shape)
    nodes[:, 0] = nodes[first, 0]
    rollouts = rollouts_of(mask, scores, group=data["index"], node_ids=nodes, completion_ids=nodes)
    scaled = {"name": "group_scaled", "inner": "full_return", "eps": case.args["epsilon"]}
    every, _ = credit(rollouts, segment("whole", rollouts), "group_mean", scaled)
    # Standardised twice: what the group gives is what the tree scales.
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    again = rollouts.replace(token_rewards=every * last)
    trunk = {"name": "prefix_group", "prefix": "first"}
    within = {"name": "within_trees", "inner": scaled}
    own, _ = credit(again, segment("per_token", again), trunk, within)
    alone = (tree[:, None] == tree).sum(1) == 1
    assert bool(alone.all()) == ("singleton_trees" in case.tags)
    found = torch.where(alone[:, None], every, own)
    # Its statistics are in float32.
    assert_close_masked(case, found, data["advantages"], mask, atol=FLOAT32)
