"""VinePPO's and SPO's code (treetune) against the plug-ins named after their parts.

A value that the reference was given stands here behind a simulator: the estimator asks for
continuations of a state and is told what the case says of it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flat_loss import surrogate_loss
from golden_cases import (
    EXACT,
    FLOAT32_FACTOR,
    Case,
    Told,
    assert_close,
    assert_close_masked,
    cases,
    credit,
    rollouts_of,
    segment,
    told,
)
from segcredit import Segmentation, SegmentValues, group_std
from segcredit.errors import RegistryError
from segcredit.objective.loss_masks import low_probability

TD = {"name": "td"}
VINE_PPO = {"name": "monte_carlo", "continuations": 1, "share": False}
"""One continuation a state, told to earn what the reference's nine earned on average."""
PROB_MASK = 0.9
"""The reference's constant where a case does not say."""
ROUNDING_OVER_EPS = 1e-7
"""Absolute, where a state's children, or a group's rewards, do not differ: the reference divides
what rounding leaves of their advantages, about 1e-16, by its eps of 1e-8. ``sibling_scaled`` leaves
it as it is, and the group's mean is exact here."""


@cases("vine_step_adv")
def test_vine_step_adv(case: Case) -> None:
    """``monte_carlo`` and ``td`` over steps. ``max_step_for_value_estimation`` N is
    ``max_states`` N + 1 of the ``first``, and the states after them are worth the ``return``."""
    data, last = case.load(), case.args["max_step_for_value_estimation"]
    mask = torch.ones(1, len(data["step_rewards"]), dtype=torch.bool)
    batch = rollouts_of(mask, data["step_rewards"][None])
    capped = {} if last is None else {"max_states": last + 1, "choose": "first", "rest": "return"}
    cut, simulator = segment("per_token", batch), told(data["values_in"][None, :-1])
    found, values = credit(batch, cut, {**VINE_PPO, **capped}, TD, simulator=simulator)
    assert_close(case, found[0], data["step_advantages"])
    assert_close(case, values.values[0], data["values_filled"][:-1])
    assert float(data["values_filled"][-1]) == 0


@cases("vine_token_adv")
def test_vine_token_adv(case: Case) -> None:
    """``Segmentation.from_char_starts`` of the step boundaries, then as above: a token takes the
    credit of the step that holds its first character, and an end token that of the last step."""
    data = case.load()
    boundaries = data["step_char_boundaries"]
    firsts, ends = data["response_token_char_start"], data["response_token_char_end"]
    if case.args["has_eos"]:
        end = boundaries[-1:]
        firsts, ends = torch.cat([firsts, end]), torch.cat([ends, end])
    mask = torch.ones(1, len(firsts), dtype=torch.bool)
    spans = torch.stack([firsts, ends], 1)[None]
    cut = Segmentation.from_char_starts([boundaries[:-1].tolist()], spans, mask)
    step_of_token = torch.searchsorted(boundaries[:-1], firsts, right=True) - 1
    assert int(cut.counts) == len(data["step_rewards"])  # Every step holds a first character.
    rewards = torch.zeros(1, len(firsts), dtype=torch.float64)
    rewards[cut.ends] = data["step_rewards"]
    batch = rollouts_of(mask, rewards, token_spans=spans, texts=(case.args["response_text"],))
    simulator = told(data["values_in"][step_of_token][None])
    found, _ = credit(batch, cut, VINE_PPO, TD, simulator=simulator)
    assert_close(case, found[0], data["token_advantages"])


@cases("vine_mc_value")
def test_vine_mc_value(case: Case) -> None:
    """``monte_carlo`` with its ``penalty``. Without continuations the reference's value is 0;
    here at least one is demanded."""
    data, count = case.load(), case.args["n_rollouts"]
    mask = torch.ones(1, 1, dtype=torch.bool)
    batch = rollouts_of(mask, torch.zeros(1, 1, dtype=torch.float64))
    estimator = {
        "name": "monte_carlo",
        "continuations": count,
        "penalty": case.args["unfinished_penalty"],
    }
    outcomes = [data[name].view(1, 1, count) for name in ("rollout_scores", "rollout_unfinished")]
    cut, simulator = segment("whole", batch), Told(*outcomes)
    if count == 0:
        with pytest.raises(RegistryError, match="continuations is 0"):
            credit(batch, cut, estimator, TD, simulator=simulator)
        return
    _, values = credit(batch, cut, estimator, TD, simulator=simulator)
    assert_close(case, values.values, data["value"])


@cases("spo_chain")
def test_spo_chain(case: Case) -> None:
    """``cutpoint`` (a cut c there is a segment that starts at c + 1 here), ``monte_carlo`` and
    ``td``, of which ``low_probability`` keeps the tokens that the loss counts.

    The reference leaves the tokens before the first cutpoint without credit. Ours have one, from
    the value of the prompt; but none of them is of low probability.
    """
    data, args = case.load(), case.args
    logprobs, below = data["response_logprobs"][None], args["prob_threshold"]
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    rewards = torch.zeros_like(logprobs)
    rewards[0, -1] = data["score"]
    batch = rollouts_of(mask, rewards, logprobs=logprobs)
    cut = segment("cutpoint", batch, below=below, every=args["cutpoint_interval"])
    starts = cut.starts[0].nonzero()[:, 0]
    low = low_probability(logprobs, mask, below)
    chosen = starts[low[0, starts]]
    assert torch.equal(chosen - 1, data["cutpoints"])
    values = torch.full_like(logprobs, 0.5)  # What the prompt is worth shows nowhere.
    values[0, chosen] = data["cutpoint_values"]
    found, _ = credit(batch, cut, VINE_PPO, TD, simulator=told(values))
    assert_close(case, (found * low)[0], data["token_advantages"])


@cases("spo_group_adv")
def test_spo_group_adv(case: Case) -> None:
    """``group_mean`` with ``group_scaled`` of the population's variance; or ``leave_one_out``,
    where a completion alone keeps its reward."""
    data, plain = case.load(), {"name": "full_return"}
    mask = torch.ones(len(data["score"]), 1, dtype=torch.bool)
    batch = rollouts_of(mask, data["score"][:, None], group=data["group"])
    scaled = {"name": "group_scaled", "inner": plain, "ddof": 0, "eps": 1e-8}
    axes = {
        "grpo": ("group_mean", scaled),
        "rloo": ({"name": "leave_one_out", "singleton": "reward"}, plain),
    }
    found, _ = credit(batch, segment("whole", batch), *axes[case.args["adv_method"]])
    spread = group_std(data["score"], data["group"], ddof=0)
    equal = (spread < EXACT) & (case.args["adv_method"] == "grpo")
    assert_close(case, found[~equal, 0], data["advantage"][~equal])
    assert_close(case, found[equal, 0], data["advantage"][equal], atol=ROUNDING_OVER_EPS)


def paths_to_leaves(data: dict[str, Tensor]) -> list[list[int]]:
    """The nodes from below the root to each leaf."""
    paths = []
    for leaf in data["leaf"].nonzero()[:, 0].tolist():
        path = [leaf]
        while data["parent"][path[0]] > 0:
            path.insert(0, int(data["parent"][path[0]]))
        paths.append(path)
    return paths


def tree_credit(data: dict[str, Tensor], advantage: dict[str, Any]) -> tuple[Any, ...]:
    """A row a leaf and a token a node: (B,T) nodes (-1 in padding), credit, and its values."""
    paths = paths_to_leaves(data)
    width = max(map(len, paths))
    nodes = torch.tensor([path + [-1] * (width - len(path)) for path in paths])
    mask = nodes >= 0
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    rewards = torch.where(last, data["reward"][nodes], 0)
    fresh = torch.arange(nodes.numel()).view(nodes.shape) + len(data["parent"])
    ids = torch.where(mask, nodes, fresh)
    batch = rollouts_of(mask, rewards, node_ids=ids, group=torch.zeros(len(paths)).long())
    return nodes, *credit(batch, segment("per_token", batch), "tree", advantage)


def per_edge(nodes: Tensor, x: Tensor, children: Tensor) -> Tensor:
    """(E,) what stands at each child; the rows that share a node must agree."""
    found = []
    for child in children.tolist():
        here = x[nodes == child]
        assert len(here)
        assert torch.allclose(here, here[0], atol=EXACT, rtol=0)
        found.append(here[0])
    return torch.stack(found)


@cases("spo_tree")
def test_spo_tree(case: Case) -> None:
    """``per_token`` over nodes, ``tree``, and ``td``; or ``sibling_scaled(td)`` for ``grpo``, which
    divides by the parent's spread. An edge is a child's segment. Its prover advantage, and the
    list without zeros, have no counterpart."""
    data = case.load()
    schemes = {"rloo": TD, "grpo": {"name": "sibling_scaled", "inner": TD}}
    for method, scheme in schemes.items():
        nodes, found, values = tree_credit(data, scheme)
        children = data[f"edge_child_{method}_all"]
        assert sorted(children.tolist()) == list(range(1, len(data["parent"])))
        parents = data["parent"][children]
        equal = (data["reward_std"][parents] < EXACT) & (method == "grpo")
        ours, theirs = per_edge(nodes, found, children), data[f"edge_adv_{method}_all"]
        assert_close(case, ours[~equal], theirs[~equal])
        assert_close(case, ours[equal], theirs[equal], atol=ROUNDING_OVER_EPS)
        assert_close(case, per_edge(nodes, values.values, children), data["reward"][parents])
        after = per_edge(nodes, value_after(values), children)
        assert_close(case, after, data[f"edge_value_{method}_all"])


def value_after(values: SegmentValues) -> Tensor:
    """(B,S) what is earned in a segment and from its end on."""
    following = torch.cat([values.values[:, 1:], torch.zeros_like(values.values[:, :1])], 1)
    return values.rewards + following


@cases("spo_whiten")
def test_spo_whiten(case: Case) -> None:
    """``whitened`` with ``ddof`` 1 or 0; with ``use_prob_mask`` the tokens that
    ``low_probability`` leaves to the loss are its weights, while all tokens are transformed."""
    data, args = case.load(), case.args
    mask, x = data["mask"], data["values"]
    kept = low_probability(data["logprobs"], mask, PROB_MASK) if args["use_prob_mask"] else mask
    advantage = {"name": "whitened", "inner": TD, "ddof": int(args["unbiased_variance"])}
    batch = rollouts_of(mask, x)
    cut = segment("per_token", batch)
    # Without a baseline, td is each token's own reward.
    found, _ = credit(batch, cut, "zero", advantage, token_weights=kept.to(x.dtype))
    assert_close_masked(case, found, data["out"], mask, atol=FLOAT32_FACTOR)


@cases("spo_actor_loss")
def test_spo_actor_loss(case: Case) -> None:
    """``ratio="token"``, ``bound="clip"``, ``token_mean``; with ``use_prob_mask``
    ``low_probability`` as token weights. ``policy_kl`` is ``kl``. Log-ratios are clamped to ±10
    there and to ±20 here."""
    data, args = case.load(), case.args
    mask, sampling = data["action_mask"], data["old_logprobs"]
    kept = low_probability(sampling, mask, PROB_MASK) if args["use_prob_mask"] else mask
    new = data["logprobs"].clone().requires_grad_()
    loss, metrics = surrogate_loss(
        new,
        sampling,
        data["advantages"],
        mask,
        Segmentation.from_starts(mask, mask),
        ratio="token",
        clip_low=args["cliprange"],
        clip_high=args["cliprange"],
        aggregate="token_mean",
        token_weights=kept.to(new.dtype),
    )
    (grad,) = torch.autograd.grad(loss, new)
    assert_close(case, loss, data["loss"])
    assert_close_masked(case, grad, data["grad_logprobs"], mask)
    assert_close(case, metrics["clip_fraction"], data["clip_frac"], atol=FLOAT32_FACTOR)
    assert_close(case, metrics["ratio_mean"], data["ratio_mean"])
    assert_close(case, metrics["kl"], data["policy_kl"])
