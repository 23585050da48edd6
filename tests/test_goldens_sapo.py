"""Segment-Aligned PPO's released code (a fork of verl 0.4.1) against the same four axes here.

Its selection: in each row the ``k`` highest entropies, and the last token, end a segment. Its
advantages and its critic are those of the segmenter ``entropy``, the estimator ``critic`` at the
anchor ``last_token`` and the scheme ``whitened(gae, clamp=5)``. Where a case holds ``seg_end``,
the reference's own choice, credit is compared under that cut; whether ``entropy`` makes the same
choice is a test of its own. What the reference does with masks that are no prefix, with its two
readings of a percentage and with rounding is not imitated: those cases state our own answer.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oracles
from flat_loss import aggregate_loss, surrogate_loss
from golden_cases import (
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
from segcredit import RolloutBatch, Segmentation, TokenScores, registry, top_fraction
from segcredit.errors import RegistryError
from segcredit.objective.returns import lambda_returns, segment_values

SAPO = ("sapo_adv", "sapo_segmean", "sapo_policy", "sapo_value")
MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum-norm": "sequence_sum_norm",
}
TOPK_PERCENT = 30
CLIP_RATIO_C = 3.0
"""Defaults of the reference's policy loss."""


def has_its_own_cut(case: Case) -> bool:
    """False where the mask has holes or a row is empty, and where there are no entropies."""
    return "seg_end" in case.arrays


def is_per_token(case: Case) -> bool:
    """Without entropies the reference's policy loss is PPO's."""
    return "entropys" not in case.arrays


def fraction(case: Case) -> float:
    """``topk_percent`` as a share: up to 1 it is one already."""
    percent = case.args.get("topk_percent", TOPK_PERCENT)
    return percent if percent <= 1 else min(percent / 100, 1.0)


def last_action(mask: Tensor) -> Tensor:
    """True on each row's last action token."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def rollouts(data: dict[str, Tensor]) -> RolloutBatch:
    rewards = data.get("token_level_rewards", torch.zeros_like(data["entropys"]))
    return rollouts_of(data["response_mask"], rewards, entropies=data["entropys"])


def given_cut(data: dict[str, Tensor]) -> Segmentation:
    """The reference's own segments; where it has none, one a token."""
    mask = data["response_mask"]
    return Segmentation.from_ends(data.get("seg_end", mask), mask)


def slow_ids(data: dict[str, Tensor], share: float) -> list[list[int]]:
    """Segment ids by plain loops: top entropies of the action tokens alone end segments."""
    rows = zip(data["entropys"].tolist(), data["response_mask"].tolist(), strict=True)
    return [
        oracles.segment_ids_from_ends(oracles.top_fraction(x, mask, share), mask)
        for x, mask in rows
    ]


def slow_returns(data: dict[str, Tensor], ids: list[list[int]], gamma: float, lam: float) -> Tensor:
    """(B,T) segment GAE by plain loops, a segment's value taken at its last action token."""
    rows = []
    for row, numbers in enumerate(ids):
        width = max([*numbers, -1]) + 1
        found = oracles.lambda_returns(
            oracles.reduce(data["values"][row], numbers, "last", width),
            oracles.reduce(data["token_level_rewards"][row], numbers, "sum", width),
            [numbers.count(m) for m in range(width)],
            gamma=gamma,
            lam=lam,
            clock="segment",
        )
        rows.append(oracles.spread(found, numbers))
    return torch.tensor(rows, dtype=torch.float64)


@cases(*SAPO, untagged=("ties", "quirk_k_rounding"), where=has_its_own_cut)
def test_the_same_tokens_end_segments(case: Case) -> None:
    """``topk_percent`` p is ``top_fraction`` p/100, or p where p is at most 1."""
    data = case.load()
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    assert torch.equal(cut.ends, data["seg_end"])


@cases(*SAPO, tagged="ties")
def test_ties_change_which_tokens_but_not_how_many(case: Case) -> None:
    """Of equal entropies the reference takes any; here it is the earlier token."""
    data = case.load()
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    inner = ~last_action(data["response_mask"])
    for row, entropies in enumerate(data["entropys"]):
        ours, theirs = [
            sorted(entropies[ends[row] & inner[row]].tolist(), reverse=True)
            for ends in (cut.ends, data["seg_end"])
        ]
        # The last token, an end in any case, may be a fork of one and tie with the other's lowest.
        assert abs(len(ours) - len(theirs)) <= 1
        shared = min(len(ours), len(theirs))
        assert ours[:shared] == theirs[:shared]


@cases("sapo_adv", where=has_its_own_cut)
def test_sapo_adv(case: Case) -> None:
    """Critic values at ``last_token``, then ``whitened`` over ``gae`` with the clamp at 5.

    The stored returns are advantage + value before whitening: ``lambda_returns``.
    """
    data, args = case.load(), case.args
    cut, mask = given_cut(data), data["response_mask"]
    clock = {"gamma": args["gamma"], "lam": args["lam"]}
    anchored = cut.reduce(data["values"], "last")
    advantage = {"name": "whitened", "inner": {"name": "gae", **clock}, "clamp": 5.0}
    found, values = credit(rollouts(data), cut, anchored, advantage)
    returns = cut.spread(lambda_returns(values, **clock))
    assert_close_masked(case, returns, data["returns"], mask, scan=True)
    assert_close_masked(case, found, data["advantages"], mask, atol=FLOAT32_FACTOR, scan=True)


@cases("sapo_adv", tagged="quirk_empty_row")
def test_a_row_without_action_tokens_has_no_segments_and_no_credit(case: Case) -> None:
    """It gets advantage 0, where the reference gives it the whitened image of 0; the other rows
    agree with the reference, since an empty row has no weight in the statistics."""
    data, args = case.load(), case.args
    mask = data["response_mask"]
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    clock = {"gamma": args["gamma"], "lam": args["lam"]}
    advantage = {"name": "whitened", "inner": {"name": "gae", **clock}, "clamp": 5.0}
    found, _ = credit(rollouts(data), cut, cut.reduce(data["values"], "last"), advantage)
    empty = ~mask.any(1)
    assert bool(empty.any())
    assert bool((cut.counts[empty] == 0).all())
    assert bool((found[empty] == 0).all())
    assert_close_masked(case, found, data["advantages"], mask, atol=FLOAT32_FACTOR, scan=True)


@cases("sapo_adv", tagged="quirk_mask_holes")
def test_segment_gae_passes_over_holes(case: Case) -> None:
    """Holes take no part: forks are sought among action tokens, credit carries across, and the
    reward of the last action token reaches the first one. The reference takes the number of
    action tokens for the length of a prefix, and drops the rest of the row."""
    data, args = case.load(), case.args
    mask = data["response_mask"]
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    ids = slow_ids(data, fraction(case))
    assert cut.segment_ids.tolist() == ids
    clock = {"gamma": args["gamma"], "lam": args["lam"]}
    values = segment_values(rollouts(data), cut, cut.reduce(data["values"], "last"))
    returns = cut.spread(lambda_returns(values, **clock))
    expected = slow_returns(data, ids, **clock)
    assert_close_masked(case, returns, expected, mask, scan=True)
    later = rollouts_of(mask, data["token_level_rewards"] + last_action(mask).double())
    moved = segment_values(later, cut, values.values)
    reached = cut.spread(lambda_returns(moved, **clock)) - returns
    steps = (cut.counts[:, None] - 1 - cut.segment_ids).clamp(min=0)
    assert_close_masked(case, reached, (args["gamma"] * args["lam"]) ** steps.double(), mask)


@cases("sapo_adv", tagged="quirk_topk_fraction")
def test_a_fraction_is_a_share(case: Case) -> None:
    """``top_fraction`` is a share throughout: 1.0 is everything and 150 an error, where the
    reference reads 1.0 as 100 %, 1.1 as 1.1 % and 150 as 100 %."""
    data, share = case.load(), case.args["topk_percent"]
    if share > 1:
        with pytest.raises(RegistryError, match="expected a share above 0 and at most 1"):
            segment("entropy", rollouts(data), top_fraction=share)
        return
    cut = segment("entropy", rollouts(data), top_fraction=share)
    assert cut.segment_ids.tolist() == slow_ids(data, share)
    if share == 1:
        assert torch.equal(cut.ends, data["response_mask"])


@cases(*SAPO, tagged="quirk_k_rounding")
def test_the_number_of_forks_is_free_of_the_hair_of_a_float(case: Case) -> None:
    """k = max(ceil(round(n f, 9)), 1) everywhere: 7 % of 100 tokens are 7, where two of the
    reference's functions take 8, because 100 times 0.07 is 7.000000000000001."""
    data = case.load()
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    assert cut.segment_ids.tolist() == slow_ids(data, fraction(case))
    forks = top_fraction(data["entropys"], data["response_mask"], fraction(case))
    billionths = data["response_mask"].sum(1) * round(1e9 * fraction(case))
    assert torch.equal(forks.sum(1), (-(-billionths // 10**9)).clamp(min=1))


@cases("sapo_segmean", where=has_its_own_cut)
def test_sapo_segmean(case: Case) -> None:
    """``spread(reduce(x, "mean"))``, with its gradient; padding is 0 here and kept there."""
    data = case.load()
    cut, mask = given_cut(data), data["response_mask"]
    x = data["x"].clone().requires_grad_()
    means = cut.spread(cut.reduce(x, "mean"))
    (grad,) = torch.autograd.grad(means, x, data["grad_out"].masked_fill(~mask, 0))
    assert_close_masked(case, means, data["out"], mask)
    assert_close_masked(case, grad, data["grad_x"], mask)


@cases("sapo_segmean", tagged="quirk_mask_holes")
def test_segment_means_leave_holes_alone(case: Case) -> None:
    """A mean is over the segment's action tokens and is written to them alone; holes are 0, where
    the reference writes the mean over holes too and leaves the row's end as it was."""
    data = case.load()
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    ids = slow_ids(data, fraction(case))
    expected = [
        oracles.spread(oracles.reduce(x, numbers, "mean", len(numbers)), numbers)
        for x, numbers in zip(data["x"], ids, strict=True)
    ]
    assert_close(
        case, cut.spread(cut.reduce(data["x"], "mean")), torch.tensor(expected, dtype=torch.float64)
    )


def policy_options(case: Case) -> dict[str, object]:
    args = case.args
    return {
        "ratio": "segment",
        "clip_low": args.get("cliprange_low", args["cliprange"]),
        "clip_high": args.get("cliprange_high", args["cliprange"]),
        "dual_clip": args.get("clip_ratio_c", CLIP_RATIO_C),
        "aggregate": MODES[args.get("loss_agg_mode", "token-mean")],
    }


@cases("sapo_policy", where=lambda case: has_its_own_cut(case) or is_per_token(case))
def test_sapo_policy(case: Case) -> None:
    """``ratio="segment"``, ``bound="clip"`` with ``dual_clip``; one segment a token without
    entropies, which is PPO. ``ppo_kl`` is ``kl``."""
    data, options = case.load(), policy_options(case)
    mask = data["response_mask"]
    if options["aggregate"].startswith("sequence_mean"):
        options["denominator"] = float(len(mask))  # The fork counts rows without tokens, too.
    new = data["log_prob"].clone().requires_grad_()
    loss, metrics = surrogate_loss(
        new, data["old_log_prob"], data["advantages"], mask, given_cut(data), **options
    )
    (grad,) = torch.autograd.grad(loss, new)
    assert_close(case, loss, data["loss"])
    assert_close_masked(case, grad, data["grad_log_prob"], mask)
    assert not bool(grad[~mask].any())
    assert_close(case, metrics["kl"], data["ppo_kl"])
    for ours, theirs in (("clip_fraction", "clipfrac"), ("dual_clip_fraction", "clipfrac_lower")):
        assert_close(case, metrics[ours], data[theirs], atol=FLOAT32_FACTOR)


@cases("sapo_policy", tagged="quirk_mask_holes")
def test_segment_ratios_pass_over_holes(case: Case) -> None:
    """The ratio is the mean over the segment's action tokens, wherever the holes are, and the
    loss counts every action token; the reference's segments end with the prefix."""
    data, options = case.load(), policy_options(case)
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    new = data["log_prob"].clone().requires_grad_()
    signals = (data["old_log_prob"], data["advantages"])
    loss, _ = surrogate_loss(new, *signals, data["response_mask"], cut, **options)
    expected = oracles.surrogate_loss(new, *signals, slow_ids(data, fraction(case)), **options)
    assert_close(case, loss, expected.detach())
    grads = [torch.autograd.grad(x, new)[0] for x in (loss, expected)]
    assert_close(case, *grads)


def value_errors(case: Case, data: dict[str, Tensor], cut: Segmentation) -> tuple[Tensor, Given]:
    """(B,S) losses of a critic that predicts what the case says."""
    state, batch = Given(data["vpreds"]), rollouts(data)
    values = segment_values(batch, cut, cut.reduce(data["values"], "last"))
    critic = registry.estimators.build(
        "critic", anchor="last_token", value_clip=float(case.args["cliprange_value"])
    )
    blank = torch.zeros_like(data["vpreds"])
    scores = TokenScores(logprobs=blank, entropies=blank, hidden=blank[..., None])
    targets = cut.reduce(data["returns"], "last")
    return critic.loss(state, batch, cut, scores, values, targets), state


@cases("sapo_value", where=has_its_own_cut)
def test_sapo_value(case: Case) -> None:
    """``critic`` at the anchor ``last_token`` with ``value_clip``, reduced over segments as over
    end tokens there. The reference's loss is halved, ours is not."""
    data = case.load()
    cut, mode = given_cut(data), MODES[case.args["loss_agg_mode"]]
    errors, state = value_errors(case, data, cut)
    loss = 0.5 * aggregate_loss(
        errors,
        cut.mask.to(errors.dtype),
        mode,
        norm_length=float(data["vpreds"].shape[1]),
        denominator=float(len(errors)) if mode.startswith("sequence_mean") else None,
    )
    loss.backward()
    assert_close(case, loss, data["loss"])
    assert_close(case, state.values_BT.grad, data["grad_vpreds"])


@cases("sapo_value", tagged="quirk_mask_holes")
def test_the_critic_learns_at_the_last_action_tokens(case: Case) -> None:
    """Only end tokens of segments move the critic, and each row's last action token is one even
    behind a hole; the reference's last segment ends with the prefix."""
    data, clip = case.load(), float(case.args["cliprange_value"])
    cut = segment("entropy", rollouts(data), top_fraction=fraction(case))
    errors, state = value_errors(case, data, cut)
    aggregate_loss(errors, cut.mask.double(), "token_mean").backward()
    expected = []
    for row, numbers in enumerate(slow_ids(data, fraction(case))):
        for m in range(max(numbers) + 1):
            end = max(t for t, number in enumerate(numbers) if number == m)
            new, old, goal = (float(data[x][row, end]) for x in ("vpreds", "values", "returns"))
            near = min(max(new, old - clip), old + clip)
            expected.append(max((new - goal) ** 2, (near - goal) ** 2))
    found = errors[cut.mask]
    assert_close(case, found, torch.tensor(expected, dtype=torch.float64))
    assert not bool(state.values_BT.grad[~cut.ends].any())
    assert bool(cut.ends[last_action(data["response_mask"])].all())


@cases("verl041_gae")
def test_verl041_gae(case: Case) -> None:
    """``per_token``, critic values at ``start``, ``whitened`` over ``gae``: ordinary GAE. Its scan
    knows no mask, and its inputs are 0 on padding."""
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
