"""Corrections of the sampler's distribution against verl's, slime's and OpenRLHF's."""

from __future__ import annotations

from typing import Any

import torch

from flat_loss import surrogate_loss
from golden_cases import Case, assert_close, cases
from segcredit.objective import Correction, Mask, Truncate
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
        found = found / (found.sum() / mask.sum())
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
    """The whole loss and its gradient: PPO's, times the factors, over denominators without them."""
    data, args = case.load(), case.args
    mask, (low, high) = data["response_mask"], args["threshold"]
    x = (data["old_log_prob"] - data["rollout_logprobs"]).masked_fill(~mask, 0)
    cut = Segmentation.from_starts(mask, mask)
    mode = args["vllm_is_correction_type"]
    plugin = Truncate(high=float(high)) if mode == "tis" else Mask(low=float(low), high=float(high))
    factors = plugin(x, mask, cut)
    factors = factors.clamp(min=low) if mode == "tis" else factors  # theirs has a lower end
    logprobs, advantages = data["log_prob"].requires_grad_(), data["advantages"]
    if not args["token_level_loss"]:  # theirs adds 1e-8 to a row's count, which shows on short rows
        count_B1 = mask.sum(1, keepdim=True).double()
        advantages = advantages * count_B1 / (count_B1 + 1e-8)
    loss, _ = surrogate_loss(
        logprobs,
        data["old_log_prob"],
        advantages,
        mask,
        cut,
        ratio="token",
        clip_low=args["clip_eps_low"],
        clip_high=args["clip_eps_high"],
        dual_clip=args["dual_clip"],
        aggregate="token_mean" if args["token_level_loss"] else "sequence_mean_token_mean",
        corrections=factors,
    )
    assert_close(case, loss, data["loss"])
    assert_close(case, torch.autograd.grad(loss, logprobs)[0], data["grad_log_prob"])
