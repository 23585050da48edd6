"""Corrections of the sampler's distribution against verl, slime, OpenRLHF, AReaL and SkyRL."""

from __future__ import annotations

from typing import Any

import torch

from flat_loss import surrogate_loss
from golden_cases import Case, assert_close, cases
from segcredit.objective import Correction, Mask, Reject, RejectDivergent, Truncate
from segcredit.segmentation import Segmentation


@cases("verl_rollout_is")
def test_verl_rollout_is(case: Case) -> None:
    """A number truncates, a pair masks; verl's sequence weight is the product."""
    data, bound = case.load(), case.args["threshold"]
    mask = data["response_mask"]
    options: dict[str, Any] = {"level": case.args["level"]}
    if isinstance(bound, str):
        low, high = map(float, bound.split("_"))
        plugin: Correction = Mask(**options, low=low, high=high)
    else:
        plugin = Truncate(**options, high=float(bound))
    cut = Segmentation.from_starts(mask, mask)
    found = plugin(data["log_ratio"].masked_fill(~mask, 0), mask, cut).masked_fill(~mask, 0)
    if case.args["batch_normalize"]:  # an option that we lack: the mean weight is made 1
        rows = mask.any(1)
        each = found[mask] if case.args["level"] == "token" else found.max(1).values[rows]
        found = found / each.mean()
    assert_close(case, found, data["weights"])


@cases("slime_is")
def test_slime_is(case: Case) -> None:
    """Of tokens; slime's truncation has a lower end too, which our ratios do not reach here."""
    data, args = case.load(), case.args
    mask = data["response_mask"]
    x = (data["old_log_prob"] - data["rollout_logprobs"]).masked_fill(~mask, 0)
    cut = Segmentation.from_starts(mask, mask)
    if args["kind"] == "tis":
        found = Truncate(high=float(args["high"]))(x, mask, cut).clamp(min=args["low"])
    else:
        found = Mask(low=float(args["low"]), high=float(args["high"]))(x, mask, cut)
    assert_close(case, found.masked_fill(~mask, 0), data["weights"].masked_fill(~mask, 0))


@cases("openrlhf_is")
def test_openrlhf_is(case: Case) -> None:
    """The whole loss and its gradient: PPO's, times the factors, over denominators without them.

    Under ``gspo`` no factor is taken: the sampler stands for the policy before the step.
    """
    data, args = case.load(), case.args
    mask, (low, high) = data["response_mask"], args["threshold"]
    sampler, old = data["rollout_logprobs"], data["old_log_prob"]
    x, cut = (old - sampler).masked_fill(~mask, 0), Segmentation.from_starts(mask, mask)
    mode, sequence = args["vllm_is_correction_type"], args["policy_loss_type"] == "gspo"
    plugin: Correction = Mask(low=low, high=high) if low <= 1 <= high else Mask()
    if mode == "tis":
        plugin = Truncate(high=float(high))
    elif mode == "seq-mask-tis":
        plugin = Reject("sequence", "geometric", low, high, inner=Truncate(high=1e9))
    factors = plugin(x, mask, cut)
    factors = factors.clamp(min=low) if mode == "tis" else factors  # theirs has a lower end
    logprobs, advantages = data["log_prob"].requires_grad_(), data["advantages"]
    if not args["token_level_loss"]:  # theirs adds 1e-8 to a row's count, which shows on short rows
        count_B1 = mask.sum(1, keepdim=True).double()
        advantages = advantages * count_B1 / (count_B1 + 1e-8)
    loss, _ = surrogate_loss(
        logprobs,
        sampler if sequence else old,
        advantages,
        mask,
        cut,
        ratio="sequence" if sequence else "token",
        clip_low=args["clip_eps_low"],
        clip_high=args["clip_eps_high"],
        dual_clip=args["dual_clip"],
        aggregate="token_mean" if args["token_level_loss"] else "sequence_mean_token_mean",
        corrections=torch.ones_like(factors) if sequence else factors,
    )
    # With the sequence's ratio theirs adds 1e-8 to the count inside the exponential, too.
    scale, atol = (data["loss"].abs().clamp(min=1), 1e-8) if sequence else (1, 1e-10)
    assert_close(case, loss / scale, data["loss"] / scale, atol=atol)
    assert_close(case, torch.autograd.grad(loss, logprobs)[0], data["grad_log_prob"], atol=atol)


@cases("verl_rollout_rs")
def test_verl_rollout_rs(case: Case) -> None:
    """``reject`` and ``reject_divergent``.

    Quirk: bounds of k1 hold 1/w; they are turned over here.
    """
    data, mask = case.load(), case.load()["response_mask"]
    how, estimate = case.args["rollout_rs"].rsplit("_", 1)
    level: Any = "token" if how == "token" else "sequence"
    pooled: Any = how.rsplit("_", 1)[-1] if level == "sequence" else "mean"
    if estimate == "k1":
        low, high = map(float, case.args["threshold"].split("_"))
        average = "product" if pooled == "sum" else "geometric"
        plugin: Correction = Reject(level, average, 1 / high, 1 / low)
    else:
        plugin = RejectDivergent(level, pooled, estimate, float(case.args["threshold"]))
    cut = Segmentation.from_starts(mask, mask)
    found = plugin(data["log_ratio"].masked_fill(~mask, 0), mask, cut).masked_fill(~mask, 0)
    assert_close(case, found, data["modified_mask"].to(found).masked_fill(~mask, 0))


FLOAT32_WEIGHTS = 2e-6


@cases("areal_decoupled_ppo")
def test_areal_decoupled_ppo(case: Case) -> None:
    """PPO on the policy before the step, times factors of its ratio to the sampler.

    Quirk: rows are weighed by their geometric mean, truncated from below as well where clamped.
    """
    data, args = case.load(), case.args
    mask, rule = data["response_mask"], args["rejection_sampling"]
    proximal = data["proximal_logprobs"]
    x = (proximal - data["rollout_logprobs"]).masked_fill(~mask, 0)
    factors = torch.ones_like(x)
    if rule is not None:
        level, low, high = rule["level"], rule["lower"] or 0.0, rule["upper"]
        free = Truncate(level if rule["metric"] == "ratio" else "token", "geometric", 1e9)
        if rule["action"] == "clamp":
            plugin: Correction = Truncate(level, "geometric", high)
        elif rule["metric"] == "ratio":
            plugin = Reject(level, "geometric", low, high, inner=free)
        else:
            estimate = rule["metric"].removeprefix("kl_")
            plugin = RejectDivergent(level, rule["agg"], estimate, high, inner=free)
        factors = plugin(x, mask, Segmentation.from_starts(mask, mask))
        factors = factors.clamp(min=low) if rule["action"] == "clamp" else factors
    logprobs = data["log_prob"].requires_grad_()
    loss, _ = surrogate_loss(
        logprobs,
        proximal,
        data["advantages"],
        mask,
        Segmentation.from_starts(mask, mask),
        ratio="token",
        clip_low=args["eps_clip"],
        clip_high=args["eps_clip_higher"],
        dual_clip=args["c_clip"],
        aggregate="token_mean",
        corrections=factors,
    )
    gradient = torch.autograd.grad(loss, logprobs)[0]
    assert_close(case, loss, data["loss"], atol=FLOAT32_WEIGHTS)
    assert_close(case, gradient, data["grad_log_prob"], atol=FLOAT32_WEIGHTS)


@cases("skyrl_ppo_offpolicy")
def test_skyrl_ppo_offpolicy(case: Case) -> None:
    """PPO times ``truncate`` or ``reject``; a row with an outlier is left out as a whole.

    Difference: the last is no correction here; it is the lowest of its tokens' ``reject``.
    """
    data, args = case.load(), case.args
    mask, rule = data["response_mask"], args["off_policy_correction"]
    old, cut = data["old_log_prob"], Segmentation.from_starts(mask, mask)
    x = (old - data["rollout_logprobs"]).masked_fill(~mask, 0)
    factors = torch.ones_like(x)
    if level := rule.get("tis_ratio_type"):
        factors = Truncate(level, high=2.0 if level == "token" else 5.0)(x, mask, cut)
    if metric := rule.get("sequence_mask_metric"):
        band = {"product": (0.5, 2.0), "geometric": (0.99, 1.01)}[metric]
        factors = Reject("sequence", metric, *band)(x, mask, cut)
    for name in ("token_mask", "outlier_token"):
        if (low := rule.get(f"{name}_is_threshold_low")) is not None:
            high = rule[f"{name}_is_threshold_high"]
            factors = Reject("token", "product", low, high)(x, mask, cut)
            if name == "outlier_token":
                worst = factors.masked_fill(~mask, 1).amin(1, keepdim=True)
                factors = worst.expand_as(factors)
    logprobs = data["log_prob"].requires_grad_()
    loss, _ = surrogate_loss(
        logprobs,
        old,
        data["advantages"],
        mask,
        cut,
        ratio="token",
        clip_low=args["eps_clip_low"],
        clip_high=args["eps_clip_high"],
        dual_clip=args["clip_ratio_c"] if args["policy_loss_type"] == "dual_clip" else None,
        aggregate="sequence_sum_norm",
        norm_length=1,
        corrections=factors,
    )
    scale = data["loss"].abs().clamp(min=1)
    gradient = torch.autograd.grad(loss, logprobs)[0]
    assert_close(case, loss / scale, data["loss"] / scale, atol=FLOAT32_WEIGHTS)
    assert_close(case, gradient, data["grad_log_prob"], atol=FLOAT32_WEIGHTS)
