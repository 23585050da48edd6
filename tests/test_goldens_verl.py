"""verl's advantages, losses, aggregation and KL against segcredit's options for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import oracles
from flat_loss import aggregate_loss, surrogate_loss
from golden_cases import (
    FLOAT32,
    FLOAT32_FACTOR,
    Case,
    Given,
    assert_close,
    assert_close_masked,
    cases,
    credit,
    rollouts_of,
    segment,
)
from segcredit import (
    RolloutBatch,
    Segmentation,
    Simulator,
    TokenScores,
    group_mean,
    group_std,
    registry,
)
from segcredit.objective.policy_loss import kl_divergence
from segcredit.objective.returns import lambda_returns, segment_values
from segcredit.testing import make_rollouts
from segcredit.types import SamplingParams

MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum-norm": "sequence_sum_norm",
}
CLIP_RATIO_C = 3.0
"""Default of the reference's vanilla policy loss."""


@cases("verl_gae")
def test_verl_gae(case: Case) -> None:
    """``per_token``, critic values at ``start``, ``whitened`` over ``gae``; holes are passed over
    and their rewards ignored, there as here."""
    data, args = case.load(), case.args
    mask = data["response_mask"]
    batch = rollouts_of(mask, data["token_level_rewards"])
    cut = segment("per_token", batch)
    clock = {"gamma": args["gamma"], "lam": args["lam"]}
    advantage = {"name": "whitened", "inner": {"name": "gae", **clock}}
    found, values = credit(batch, cut, cut.reduce(data["values"], "first"), advantage)
    returns = cut.spread(lambda_returns(values, **clock))
    assert_close_masked(case, returns, data["returns"], mask, scan=True)
    assert_close_masked(case, found, data["advantages"], mask, atol=FLOAT32_FACTOR, scan=True)


FULL_RETURN = {"name": "full_return"}


def group_credit(case: Case, estimator: str, advantage: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What a group baseline gives, and what the reference returned: one segment a completion.

    A group of one row keeps its reward as advantage: ``singleton="reward"``.
    """
    data = case.load()
    batch = rollouts_of(data["response_mask"], data["token_level_rewards"], group=data["index"])
    table = {"name": estimator, "singleton": "reward"}
    found, _ = credit(batch, segment("whole", batch), table, advantage)
    return found, data["advantages"]


def group_scaled(case: Case, **options: float) -> dict[str, Any]:
    if not case.args["norm_adv_by_std_in_grpo"]:
        return FULL_RETURN
    return {"name": "group_scaled", "inner": FULL_RETURN, "eps": case.args["epsilon"], **options}


@cases("verl_grpo")
def test_verl_grpo(case: Case) -> None:
    """``whole``, ``group_mean`` and ``full_return``; scaled, ``group_scaled`` with its eps."""
    found, expected = group_credit(case, "group_mean", group_scaled(case))
    assert_close(case, found, expected, atol=FLOAT32_FACTOR)


@cases("verl_grpo_vectorized")
def test_verl_grpo_vectorized(case: Case) -> None:
    """As ``verl_grpo``, with ``variance_floor`` = eps."""
    scaled = group_scaled(case, variance_floor=case.args["epsilon"])
    found, expected = group_credit(case, "group_mean", scaled)
    doubt = found.abs() * lost_digits(case)[:, None]
    assert_close(case, found, torch.clamp(expected, found - doubt, found + doubt), atol=FLOAT32)


def lost_digits(case: Case) -> Tensor:
    """(B,) the relative error of a group's spread: the reference computes in float32 whatever it
    gets, and its variance is a mean of squares less a squared mean, which cancel."""
    data = case.load()
    scores, group = data["token_level_rewards"].sum(1).double(), data["index"]
    variance = group_std(scores, group).square().nan_to_num(1).clamp(min=case.args["epsilon"])
    return torch.finfo(torch.float32).eps * group_mean(scores.square(), group) / variance


@cases("verl_rloo")
def test_verl_rloo(case: Case) -> None:
    """``whole``, ``leave_one_out`` and ``full_return``."""
    assert_close(case, *group_credit(case, "leave_one_out", FULL_RETURN))


@cases("verl_opo")
def test_verl_opo(case: Case) -> None:
    """``whole``, ``length_weighted_group_mean`` and ``full_return``."""
    assert_close(case, *group_credit(case, "length_weighted_group_mean", FULL_RETURN))


@cases("verl_rfpp_baseline")
def test_verl_rfpp_baseline(case: Case) -> None:
    """``whole``, ``group_mean``, and ``full_return`` whitened over tokens."""
    whitened = {"name": "whitened", "inner": FULL_RETURN}
    assert_close(case, *group_credit(case, "group_mean", whitened), atol=FLOAT32_FACTOR)


@dataclass(frozen=True, slots=True)
class GreedyRewards(Simulator):
    """A simulator whose greedy completions earn what the case says; a prompt's key is its row."""

    rewards: Tensor
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=4))

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        """One completion a key."""
        assert params == SamplingParams(max_new_tokens=4, greedy=True)
        assert count == 1
        drawn = make_rollouts(len(prompt_keys), dtype=self.rewards.dtype)
        return drawn.replace(rewards=self.rewards[torch.tensor([int(key) for key in prompt_keys])])


@cases("verl_remax")
def test_verl_remax(case: Case) -> None:
    """``per_token``, ``greedy`` and ``full_return``; the stored returns are without the baseline,
    as ``zero`` gives them."""
    data = case.load()
    mask = data["response_mask"]
    batch = rollouts_of(mask, data["token_level_rewards"])
    cut, simulator = segment("per_token", batch), GreedyRewards(data["reward_baselines"])
    found, _ = credit(batch, cut, "greedy", FULL_RETURN, simulator=simulator)
    returns, _ = credit(batch, cut, "zero", FULL_RETURN)
    assert_close_masked(case, found, data["advantages"], mask)
    assert_close_masked(case, returns, data["returns"], mask)


def reward_to_go(case: Case, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B,T) whitened and plain discounted rewards-to-go: ``per_token``, ``zero``."""
    batch = rollouts_of(data["response_mask"], data["token_level_rewards"])
    cut = segment("per_token", batch)
    inner = {"name": "full_return", "gamma": case.args["gamma"]}
    plain, _ = credit(batch, cut, "zero", inner)
    white, _ = credit(batch, cut, "zero", {"name": "whitened", "inner": inner})
    return white, plain


@cases("verl_rfpp", untagged=["quirk_mask_holes"])
def test_verl_rfpp(case: Case) -> None:
    """``per_token``, ``zero``, and ``full_return`` with its discount, whitened over tokens."""
    data = case.load()
    white, plain = reward_to_go(case, data)
    mask = data["response_mask"]
    assert_close_masked(case, plain, data["returns"], mask)
    assert_close_masked(case, white, data["advantages"], mask, atol=FLOAT32_FACTOR)


@cases("verl_rfpp", tagged="quirk_mask_holes")
def test_reward_behind_a_hole_reaches_the_tokens_before_it(case: Case) -> None:
    """A hole is passed over without discount, and every action token has the whole reward-to-go;
    the reference starts from 0 at each hole."""
    data, gamma = case.load(), case.args["gamma"]
    mask, rewards = data["response_mask"], data["token_level_rewards"]
    white, plain = reward_to_go(case, data)
    expected = torch.tensor(
        [
            oracles.token_gae([0.0] * len(kept), row, kept, gamma=gamma, lam=1.0)
            for row, kept in zip(rewards.tolist(), mask.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    assert_close_masked(case, plain.double(), expected, mask)
    tokens = expected[mask]
    expected = (expected - tokens.mean()) / (tokens.var() + 1e-8).sqrt()
    assert_close_masked(case, white.double(), expected, mask)


def batch_counts(mode: str, counts: dict[str, Any]) -> dict[str, float | None]:
    """``denominator`` is one process's share of the batch's tokens, or of its rows.

    ``seq-mean-token-sum-norm`` has a constant instead of a count.
    """
    counted = {"token-mean": "batch_num_tokens", "seq-mean-token-sum-norm": None}
    whole = counts.get(counted.get(mode, "global_batch_size"))
    factor = counts.get("loss_scale_factor")
    return {
        "norm_length": None if factor is None else float(factor),
        "denominator": None if whole is None else whole / counts.get("dp_size", 1),
    }


def aggregation(case: Case, mode: str) -> dict[str, Any]:
    return {"aggregate": MODES[mode], **batch_counts(mode, case.args["global_batch_info"])}


def policy_loss(case: Case, data: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Compare loss, gradient and KL; return the metrics."""
    args, mask = case.args, data["response_mask"]
    new = data["log_prob"].clone().requires_grad_()
    loss, metrics = surrogate_loss(
        new,
        data["old_log_prob"],
        data["advantages"],
        mask,
        Segmentation.from_starts(mask, mask),
        clip_low=args.get("clip_ratio_low", args.get("clip_ratio", 0.0)),
        clip_high=args.get("clip_ratio_high", args.get("clip_ratio", 0.0)),
        **options,
    )
    (grad,) = torch.autograd.grad(loss, new)
    assert_close(case, loss, data["loss"])
    assert_close_masked(case, grad, data["grad_log_prob"], mask)
    assert not bool(grad[~mask].any())
    assert_close(case, metrics["kl"], data["ppo_kl"])
    return metrics


@cases("verl_policy_vanilla")
def test_verl_policy_vanilla(case: Case) -> None:
    """``ratio="token"``, ``bound="clip"`` with ``dual_clip``."""
    data = case.load()
    metrics = policy_loss(
        case,
        data,
        ratio="token",
        dual_clip=case.args.get("clip_ratio_c", CLIP_RATIO_C),
        **aggregation(case, case.args["loss_agg_mode"]),
    )
    assert_close(case, metrics["clip_fraction"], data["pg_clipfrac"], atol=FLOAT32_FACTOR)
    dual = metrics["dual_clip_fraction"]
    assert_close(case, dual, data["pg_clipfrac_lower"], atol=FLOAT32_FACTOR)


@cases("verl_policy_gspo")
def test_verl_policy_gspo(case: Case) -> None:
    """``ratio="sequence"`` with ``ratio_gradient="own_token"``, ``bound="clip"``; always
    ``sequence_mean_token_mean``, whatever its ``loss_agg_mode`` says."""
    data = case.load()
    metrics = policy_loss(
        case,
        data,
        ratio="sequence",
        ratio_gradient="own_token",
        **aggregation(case, "seq-mean-token-mean"),
    )
    assert_close(case, metrics["clip_fraction"], data["pg_clipfrac"], atol=FLOAT32_FACTOR)


@cases("verl_policy_geo_mean")
def test_verl_policy_geo_mean(case: Case) -> None:
    """``ratio="sequence"`` with ``bound="log_clip"``; a mean over all rows, empty ones too. Its
    clip fractions count log-ratios beyond either bound, ours those that lost their gradient."""
    data = case.load()
    policy_loss(
        case,
        data,
        ratio="sequence",
        bound="log_clip",
        aggregate="sequence_mean_token_mean",
        denominator=float(len(data["response_mask"])),
    )


@cases("verl_policy_cispo")
def test_verl_policy_cispo(case: Case) -> None:
    """``ratio="token"`` with ``bound="truncated_is"``."""
    data = case.load()
    mode = aggregation(case, case.args["loss_agg_mode"])
    metrics = policy_loss(case, data, ratio="token", bound="truncated_is", **mode)
    assert_close(case, metrics["clip_fraction"], data["pg_clipfrac"], atol=FLOAT32_FACTOR)


@cases("verl_policy_sapo")
def test_verl_policy_sapo(case: Case) -> None:
    """Soft adaptive policy optimisation: ``ratio="token"`` with ``bound="soft_gate"``; always
    ``sequence_mean_token_mean``."""
    policy_loss(
        case,
        case.load(),
        ratio="token",
        bound="soft_gate",
        gate_positive=case.args["tau_pos"],
        gate_negative=case.args["tau_neg"],
        **aggregation(case, "seq-mean-token-mean"),
    )


@cases("verl_agg")
def test_verl_agg(case: Case) -> None:
    """The four modes, with and without the counts of a whole batch."""
    data, mode = case.load(), case.args["loss_agg_mode"]
    losses = data["loss_mat"].clone().requires_grad_()
    loss = aggregate_loss(
        losses,
        data["loss_mask"].to(losses.dtype),
        MODES[mode],
        **batch_counts(mode, case.args),
    )
    loss.backward()
    assert_close(case, loss, data["loss"])
    assert_close(case, losses.grad, data["grad_loss_mat"])


@cases("verl_value")
def test_verl_value(case: Case) -> None:
    """``per_token`` and ``critic`` with ``value_clip``. The reference's loss is halved, ours is
    not."""
    data, clip = case.load(), float(case.args["cliprange_value"])
    batch = rollouts_of(data["response_mask"], torch.zeros_like(data["vpreds"]))
    cut, state = segment("per_token", batch), Given(data["vpreds"])
    values = segment_values(batch, cut, cut.reduce(data["values"], "first"))
    critic = registry.estimators.build("critic", value_clip=clip)
    blank = torch.zeros_like(data["vpreds"])
    scores = TokenScores(logprobs=blank, entropies=blank, hidden=blank[..., None])
    targets = cut.reduce(data["returns"], "first")
    errors = critic.loss(state, batch, cut, scores, values, targets)
    loss = 0.5 * aggregate_loss(
        errors,
        cut.mask.to(errors.dtype),
        MODES[case.args["loss_agg_mode"]],
        norm_length=float(blank.shape[1]),
    )
    loss.backward()
    assert_close(case, loss, data["loss"])
    assert_close(case, state.values_BT.grad, data["grad_vpreds"])


KINDS = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}


@cases("verl_kl")
def test_verl_kl(case: Case) -> None:
    """The kinds by name, with verl's clamps of k3, which are the defaults here."""
    data, kind = case.load(), case.args["kl_penalty"]
    new = data["logprob"].clone().requires_grad_()
    found = kl_divergence(new, data["ref_logprob"], KINDS.get(kind, kind))
    (grad,) = torch.autograd.grad(found.sum(), new)
    assert_close(case, found, data["kl"])
    assert_close(case, grad, data["grad_logprob"])
