"""TRL's GRPOTrainer: its advantages, and its losses by ``loss_type``, as options of segcredit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flat_loss import aggregate_loss, surrogate_loss
from golden_cases import (
    EXACT,
    FLOAT32_FACTOR,
    Case,
    assert_close,
    assert_close_masked,
    cases,
    credit,
    rollouts_of,
    segment,
)
from segcredit import Segmentation, group_std
from segcredit.objective.loss_masks import high_entropy
from segcredit.objective.policy_loss import kl_divergence

SCALE_EPS = 1e-4
GATES = {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
"""Constant of the reference's scaling, and defaults of its trainer."""


@cases("trl_adv")
def test_trl_adv(case: Case) -> None:
    """``whole``, ``group_mean`` and ``full_return``, scaled by ``group_scaled`` over the group or
    the batch. A completion's reward is the weighted sum over reward functions."""
    data, scale = case.load(), case.args["scale_rewards"]
    rewards = (data["rewards_per_func"] * data["reward_weights"]).sum(1)
    group = torch.arange(len(rewards)) // case.args["num_generations"]
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    batch = rollouts_of(mask, rewards[:, None], group=group)
    plain = {"name": "full_return"}
    scaled = {"name": "group_scaled", "inner": plain, "over": scale, "eps": SCALE_EPS}
    advantage = plain if scale == "none" else scaled
    found, _ = credit(batch, segment("whole", batch), "group_mean", advantage)
    atol = EXACT if scale == "none" else FLOAT32_FACTOR
    assert_close(case, found[:, 0], data["advantages"], atol=atol)
    pool = torch.zeros_like(group) if scale == "batch" else group
    assert_close(case, group_std(rewards, pool), data["std_rewards"], atol=FLOAT32_FACTOR)


LOSSES = [f"trl_loss_{kind}" for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")]


def aggregation(case: Case, rows: int) -> dict[str, Any]:
    """How ``loss_type`` makes one number of token losses; every row counts, empty ones too."""
    args, kind = case.args, case.args["loss_type"]
    if kind == "bnpo":
        return {"aggregate": "token_mean"}
    if kind in ("dapo", "cispo"):
        tokens = args["num_items_in_batch"] / args["num_processes"]
        return {"aggregate": "token_mean", "denominator": tokens}
    if kind == "dr_grpo":
        return {
            "aggregate": "sequence_mean_token_norm",
            "norm_length": float(args["max_completion_length"]),
            "denominator": float(rows),
        }
    return {"aggregate": "sequence_mean_token_mean", "denominator": float(rows)}


def bound(case: Case) -> dict[str, Any]:
    """``cispo`` caps the ratio at ``epsilon_high`` itself; ``sapo`` is the soft gate."""
    args = case.args
    distances = {"clip_low": args["epsilon_low"], "clip_high": args["epsilon_high"]}
    if args["loss_type"] == "cispo":
        return {
            "bound": "truncated_is",
            "clip_bounds": "absolute",
            "clip_low": 0.0,
            "clip_high": args["epsilon_high"],
        }
    if args["loss_type"] == "sapo":
        # The reference holds them in float32: 1.05 is 1.0499999523.
        positive, negative = (float(np.float32(args.get(*gate))) for gate in GATES.items())
        gates = {"gate_positive": positive, "gate_negative": negative}
        return {"bound": "soft_gate", **gates, **distances}
    return {"bound": "clip", **distances}


def loss_mask(data: dict[str, Tensor]) -> Tensor:
    """Tokens of tools are holes in the mask."""
    return data["completion_mask"] & data.get("tool_mask", torch.tensor(True))


def signals(case: Case, data: dict[str, Tensor], new: Tensor) -> dict[str, Any]:
    """What ``surrogate_loss`` reads; without old log-probs the policy is the one that sampled."""
    mask, credit_BT = loss_mask(data), data["advantages"]
    if credit_BT.ndim == 1:
        credit_BT = credit_BT[:, None].expand_as(mask)
    return {
        "logprobs": new,
        "sampling_logprobs": data.get("old_per_token_logps", new.detach()),
        "advantages": credit_BT,
        "action_mask": mask,
        "segmentation": Segmentation.from_starts(mask, mask),
        "ratio": case.args["importance_sampling_level"],
        **bound(case),
    }


@cases(*LOSSES)
def test_trl_loss(case: Case) -> None:
    """``importance_sampling_level`` is ``ratio``; ``epsilon_*`` are ``clip_*``; β times k3 without
    clamps, weighed by the ratio where TRL corrects its bias, is aggregated as the loss is.
    ``top_entropy_quantile`` is ``high_entropy`` as token weights, while ``count_weights`` still
    count every token. The token's KL is not left out."""
    data, args = case.load(), case.args
    mask = loss_mask(data)
    new = data["per_token_logps"].clone().requires_grad_()
    whole = mask.to(new.dtype)
    how = aggregation(case, len(mask))
    chosen = whole
    if args["top_entropy_quantile"] < 1:
        chosen = high_entropy(data["entropies"], mask, args["top_entropy_quantile"]).to(new.dtype)
        assert torch.equal(chosen.bool(), data["entropy_mask"])
    given = signals(case, data, new)
    loss, _ = surrogate_loss(**given, token_weights=chosen, count_weights=whole, **how)
    if args["beta"]:
        kind = "weighted_k3" if args.get("use_bias_correction_kl") else "k3"
        before, reference = given["sampling_logprobs"], data["ref_per_token_logps"]
        kl = kl_divergence(new, reference, kind, limit=torch.inf, sampling_logprobs=before)
        loss = loss + args["beta"] * aggregate_loss(kl, whole, **how)
        assert_close(case, aggregate_loss(kl, whole, "token_mean"), data["metric_kl"])
    if args["loss_type"] not in ("dapo", "cispo"):
        loss = loss / args["gradient_accumulation_steps"]
    (grad,) = torch.autograd.grad(loss, new)
    assert_close(case, loss, data["loss"])
    assert_close_masked(case, grad, data["grad_per_token_logps"], mask)
    assert not bool(grad[~mask].any())


@cases(*(name for name in LOSSES if name not in ("trl_loss_cispo", "trl_loss_sapo")))
def test_trl_clip_fractions(case: Case) -> None:
    """``clip_fraction`` over all tokens; where a row has one ratio, the mean of the rows'
    fractions. Of negative advantages alone it is ``clip_ratio_low``, of positive ones ``_high``."""
    data = case.load()
    given = signals(case, data, data["per_token_logps"])
    signs = {"region": given["advantages"]}
    signs |= {"low": signs["region"].clamp(max=0), "high": signs["region"].clamp(min=0)}
    by_row = given["ratio"] == "sequence"
    for side, credit_BT in signs.items():
        whole = {**given, "advantages": credit_BT}
        parts = [rows_of(whole, [row]) for row in range(len(credit_BT))] if by_row else [whole]
        found = [surrogate_loss(**part, aggregate="token_mean")[1] for part in parts]
        mean = torch.stack([metrics["clip_fraction"] for metrics in found]).mean()
        expected = data[f"metric_clip_ratio_{side}_mean"]
        assert_close(case, mean, expected, atol=FLOAT32_FACTOR)


def rows_of(given: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {
        name: x[rows] if isinstance(x, Tensor) else x.select(rows) if name == "segmentation" else x
        for name, x in given.items()
    }


@cases("trl_loss_cispo")
def test_trl_cispo_clip_fraction(case: Case) -> None:
    """The share of tokens whose weight is capped, of those with a positive advantage; ours is
    told of the advantage by the token weights."""
    data = case.load()
    given = signals(case, data, data["per_token_logps"])
    positive = ((given["advantages"] > 0) & given["action_mask"]).double()
    _, metrics = surrogate_loss(**given, aggregate="token_mean", token_weights=positive)
    share = positive.sum() / given["action_mask"].sum()
    expected = data["metric_cispo_clip_ratio"]
    assert_close(case, metrics["clip_fraction"] * share, expected, atol=FLOAT32_FACTOR)
