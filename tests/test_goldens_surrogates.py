"""Losses of 2025-26 against verl, SkyRL, prime-rl, CTPO, VESPO, FIPO, DCPO, ASPO and slime."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flat_loss import aggregation_of
from golden_cases import Case, assert_close, cases
from segcredit.objective import (
    Aggregation,
    Bound,
    Clip,
    Corrected,
    CovariancePenalty,
    DivergenceMask,
    FlippedClip,
    FutureWeight,
    GammaWeight,
    GrowingClip,
    Importance,
    PrefixRatio,
    ProbabilityClip,
    Ratio,
    Reinforce,
    SequenceProduct,
    StrayedRows,
    Surrogate,
    TokenRatio,
    TruncatedIS,
    kl_divergence,
    surrogate_loss,
)
from segcredit.objective.aggregation import aggregate_loss
from segcredit.objective.joint_bounds import covariances
from segcredit.segmentation import Segmentation

MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
}


class Found(NamedTuple):
    loss: Tensor
    gradient: Tensor


def whole(mask: Tensor) -> Segmentation:
    return Segmentation.from_starts(torch.zeros_like(mask), mask)


def aggregation(case: Case) -> Aggregation:
    return aggregation_of(MODES[case.args["loss_agg_mode"]])


def of(
    data: dict[str, Tensor],
    surrogate: Surrogate,
    how: Aggregation,
    *,
    old: str = "old_log_prob",
    token_weights: Tensor | None = None,
    count_weights: Tensor | None = None,
) -> Found:
    """Computes loss and gradient of a case's tensors, times its factors where it has some."""
    if "rollout_is_weights" in data:
        surrogate = Corrected(surrogate, data["rollout_is_weights"])
    logprobs = data["log_prob"].clone().requires_grad_()
    mask = data["response_mask"]
    loss, _ = surrogate_loss(
        logprobs,
        data[old],
        data["advantages"],
        mask,
        whole(mask),
        surrogate=surrogate,
        aggregation=how,
        token_weights=token_weights,
        count_weights=count_weights,
    )
    return Found(loss.detach(), torch.autograd.grad(loss, logprobs)[0])


def check(case: Case, data: dict[str, Tensor], found: Found) -> None:
    """Compares loss and gradient; verl adds 1e-8 to counts in float32, which the loss shows."""
    scale = data["loss"].abs().clamp(min=1)
    assert_close(case, found.loss / scale, data["loss"] / scale, atol=5e-8)
    assert_close(case, found.gradient, data["grad_log_prob"], atol=1e-8)


def token(bound: Bound, ratio: Ratio | None = None) -> Importance:
    return Importance(TokenRatio() if ratio is None else ratio, bound)


@cases("verl_policy_dppo_tv", "verl_policy_dppo_kl")
def test_verl_dppo(case: Case) -> None:
    """Ratio ``token`` under ``divergence_mask``, its weight capped."""
    data, args = case.load(), case.args
    bound = DivergenceMask(
        divergence="tv" if "tv" in case.family else "kl",
        low=args["clip_ratio_low"],
        high=args["clip_ratio_high"],
        cap=args["clip_ratio_c"],
    )
    check(case, data, of(data, token(bound), aggregation(case)))


@cases("dcpo_policy")
def test_dcpo(case: Case) -> None:
    """Ratio ``token`` under ``probability_clip``."""
    data, args = case.load(), case.args
    bound = ProbabilityClip(args["clip_ratio_low"], args["clip_ratio_high"], args["clip_ratio_c"])
    check(case, data, of(data, token(bound), aggregation(case)))


@cases("aspo_policy")
def test_aspo(case: Case) -> None:
    """Ratio ``token`` under ``flipped_clip``: two bounds and two caps, each over its own tokens."""
    data, args = case.load(), case.args
    mask, low_entropy = data["response_mask"], data["high_entropy_mask"].bool()
    rising = data["advantages"] >= 0
    parts: list[Found] = []
    for entropy, tokens in (("low", low_entropy), ("high", ~low_entropy)):
        for sign, side in (("positive", rising), ("negative", ~rising)):
            bound = FlippedClip(
                low=args[f"negative_{entropy}_entropy_clip_ratio_low"],
                high=args[f"positive_{entropy}_entropy_clip_ratio_high"],
                cap=args[f"{sign}_clip_ratio_c"],
            )
            chosen = (mask & tokens & side).double()
            parts.append(
                of(
                    data,
                    token(bound),
                    aggregation(case),
                    token_weights=chosen,
                    count_weights=mask.double(),
                )
            )
    loss = torch.stack([part.loss for part in parts]).sum()
    gradient = torch.stack([part.gradient for part in parts]).sum(0)
    check(case, data, Found(loss, gradient))


@cases("verl_policy_kl_cov")
def test_kl_cov(case: Case) -> None:
    """Ratio ``token`` under ``covariance_penalty``."""
    data, args = case.load(), case.args
    bound = CovariancePenalty(args["kl_cov_ratio"], args["ppo_kl_coef"])
    check(case, data, of(data, token(bound), aggregation(case)))


@cases("verl_policy_clip_cov")
def test_clip_cov(case: Case) -> None:
    """The covariances that are candidates, and ``clip`` without the tokens drawn from them.

    Difference: which are drawn is verl's chance, and taken from the case.
    """
    data, args = case.load(), case.args
    mask, dropped = data["response_mask"], data["dropped"].bool()
    found = covariances(data["log_prob"], data["advantages"], mask)
    clip = Clip(args["clip_ratio_low"], args["clip_ratio_high"])
    x = (data["log_prob"] - data["old_log_prob"]).masked_fill(~mask, 0)
    clipped = clip(x.exp(), x, data["advantages"], data["log_prob"]).clipped
    assert clipped is not None
    inside = (found > args["clip_cov_lb"]) & (found < args["clip_cov_ub"])
    assert torch.equal(mask & inside & ~clipped, data["candidates"].bool())
    left, counted = (mask & ~dropped).double(), mask.double()
    how = aggregation(case)
    check(case, data, of(data, token(clip), how, token_weights=left, count_weights=counted))


@cases("ctpo_policy")
def test_ctpo(case: Case) -> None:
    """Ratio ``prefix`` under ``clip``."""
    data, args = case.load(), case.args
    ratio = PrefixRatio("product" if args["ratio_mode"] == "cumprod" else "geometric")
    bound = Clip(args["clip_ratio_low"], args["clip_ratio_high"], args["clip_ratio_c"])
    check(case, data, of(data, token(bound, ratio), aggregation(case)))


@cases("ctpo_la_policy")
def test_ctpo_la(case: Case) -> None:
    """Ratio ``prefix`` under ``growing_clip``."""
    data, args = case.load(), case.args
    ratio = PrefixRatio("product" if args["ratio_mode"] == "cumprod" else "geometric")
    bound = GrowingClip(
        args["la_clip_low"], args["la_clip_high"], args["la_clip_c"], args["clip_ratio_la_power"]
    )
    check(case, data, of(data, token(bound, ratio), aggregation(case)))


@cases("vespo_policy")
def test_vespo(case: Case) -> None:
    """Ratio ``sequence_product`` under ``gamma_weight``.

    Quirk: the sign of A is read at a row's first column; here rows whose first A is of either sign
    are summed, each with that sign's numbers for all of its tokens. Weights against the sampler
    are factors of W and not of the loss; they are put into the log-ratios.
    """
    data, args = case.load(), case.args
    mask, rising = data["response_mask"], data["advantages"][:, :1] >= 0
    factors = data.pop("rollout_is_weights", torch.ones_like(data["log_prob"]))
    data["old_log_prob"] = data["old_log_prob"] - factors.log()
    parts: list[Found] = []
    for sign, rows in (("pos", rising), ("neg", ~rising)):
        numbers = (args[f"k_{sign}"], args[f"lambda_{sign}"])
        surrogate = token(GammaWeight(numbers, numbers), SequenceProduct())
        chosen, counted, how = (mask & rows).double(), mask.double(), aggregation(case)
        parts.append(of(data, surrogate, how, token_weights=chosen, count_weights=counted))
    first, second = parts
    loss, gradient = first.loss + second.loss, first.gradient + second.gradient
    check(case, data, Found(loss, gradient))


@cases("fipo_policy")
def test_fipo(case: Case) -> None:
    """Ratio ``token`` under ``future_weight`` of ``clip``.

    Difference: rows with several dual-clipped tokens leave the loss there; they are weighed 0.
    """
    data, args = case.load(), case.args
    width, mask = args["future_kl_clip_ratio"], data["response_mask"]
    low, high = (1 - width, 1 + width) if width else (0.0, 1e9)
    bound = FutureWeight(
        Clip(args["clip_ratio_low"], args["clip_ratio_high"], args["clip_ratio_c"]),
        low=1.0 if width and args["future_kl_clip_high_only"] else low,
        high=high,
        half_life=args["decay_rate"],
        most=args["clip_ratio_c"],
        safe=args["safety_thresh"],
    )
    x = (data["log_prob"] - data["old_log_prob"]).masked_fill(~mask, 0)
    weights = bound.weights(x, data["advantages"])
    told = data["influence_weights"].masked_fill(~mask, 0)
    assert_close(case, weights.masked_fill(~mask, 0), told)
    kept = mask & ~data["dropped_rows"].bool()[:, None]
    how = aggregation(case)
    check(case, data, of(data, token(bound), how, token_weights=kept.double()))


@cases("verl_policy_dro")
def test_dro(case: Case) -> None:
    """``none``, and k2 of the step times β: parts that are here, and no setting of a run."""
    data, mask = case.load(), case.load()["response_mask"]
    factors = data.get("rollout_is_weights", torch.ones_like(data["log_prob"]))
    found = of(data, Reinforce(), aggregation(case))
    logprobs = data["log_prob"].clone().requires_grad_()
    step = kl_divergence(logprobs, data["old_log_prob"], "k2") * factors * case.args["dro_beta"]
    loss = aggregate_loss(step, mask.double(), aggregation(case))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    check(case, data, Found(found.loss + loss.detach(), found.gradient + gradient))


@cases("skyrl_dppo")
def test_skyrl_dppo(case: Case) -> None:
    """``divergence_mask`` against the sampler: its gradient; the value is −ρ A of what is left."""
    data, dppo = case.load(), case.args["dppo"]
    kind = dppo["dppo_type"].removeprefix("binary_")
    bound = DivergenceMask(divergence=kind, low=dppo["delta_low"], high=dppo["delta_high"])
    found = of(data, token(bound), aggregation_of("sequence_sum_norm", 1), old="rollout_logprobs")
    assert_close(case, found.gradient, data["grad_log_prob"], atol=2e-6)
    assert_close(case, found.gradient.sum(), data["loss"], atol=2e-5)  # d(ρ A) / d log π is ρ A


@cases("prime_rl_loss")
def test_prime_rl(case: Case) -> None:
    """``divergence_mask`` against the sampler, and k2 of the step on all tokens: the gradient."""
    data, args = {name: x[None] for name, x in case.load().items()}, case.args
    either = args["type"] == "ipo"
    bound = DivergenceMask(
        low=args["ipo_threshold"] if either else args["dppo_mask_low"],
        high=args["ipo_threshold"] if either else args["dppo_mask_high"],
        moves="either" if either else "away",
    )
    data["advantages"] = data["advantages"] * args["adv_tau"]
    weights = data.get("loss_weights", torch.ones_like(data["log_prob"]))
    surrogate = Corrected(token(bound), weights)
    found = of(data, surrogate, aggregation_of("sequence_sum_norm", 1), old="rollout_logprobs")
    x = (data["log_prob"] - data["rollout_logprobs"]).masked_fill(~data["response_mask"], 0)
    far = args["kl_tau"] * weights * x
    assert_close(case, found.gradient + 2 * far, data["grad_log_prob"])
    # The value of −ρ A is its slope by log π.
    assert_close(case, found.gradient.sum() + (far * x).sum(), data["loss"])


@cases("slime_opsm")
def test_slime_opsm(case: Case) -> None:
    """``strayed_rows``: the tokens that it leaves out."""
    data, mask = case.load(), case.load()["response_mask"]
    bound = StrayedRows(Clip(1e8, 1e8), delta=case.args["opsm_delta"])
    x = (data["log_prob"] - data["old_log_prob"]).masked_fill(~mask, 0)
    advantages = data["advantages"][:, None].expand_as(x)
    found = bound.among(mask, whole(mask))(x.exp(), x, advantages, data["log_prob"])
    assert found.clipped is not None
    kept = (data["keep"] > 0) & mask  # theirs is 1 up to a row's length, in its holes as well
    assert torch.equal(mask & ~found.clipped, kept)


SKYRL = 2e-6
"""SkyRL exponentiates in float32, and the loss is a sum over the tokens."""


def check_skyrl(case: Case, data: dict[str, Tensor], found: Found) -> None:
    scale = data["loss"].abs().clamp(min=1)
    assert_close(case, found.loss / scale, data["loss"] / scale, atol=SKYRL)
    assert_close(case, found.gradient, data["grad_log_prob"], atol=SKYRL)


@cases("skyrl_cispo_rollout", "skyrl_rollout_is")
def test_skyrl_truncated(case: Case) -> None:
    """``truncated_is`` against the sampler or the policy before the step; ``rollout_is`` drops."""
    data = case.load()
    cispo = case.args.get("cispo", {})
    low = cispo.get("cispo_eps_clip_low", case.args.get("eps_clip_low"))
    high = cispo.get("cispo_eps_clip_high", case.args.get("eps_clip_high"))
    bound = TruncatedIS(1 - low, 1 + high, "cap" if cispo else "drop")
    old = "old_log_prob" if cispo.get("cispo_anchor") == "old" else "rollout_logprobs"
    found = of(data, token(bound), aggregation_of("sequence_sum_norm", 1), old=old)
    check_skyrl(case, data, found)
