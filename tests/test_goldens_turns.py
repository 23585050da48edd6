"""Credit over turns against verl-agent, HGPO, MT-GRPO, VAGEN, ROLL and AT2PO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flat_loss import surrogate_loss
from golden_cases import (
    FLOAT32_FACTOR,
    Case,
    assert_close,
    assert_close_masked,
    cases,
    credit,
    rollouts_of,
    segment,
)
from segcredit.objective.returns import lambda_returns
from segcredit.types import RolloutBatch

Places = tuple[Tensor, Tensor]


def episodes(
    trajectory: Tensor, step: Tensor, group: Tensor, rewards: Tensor, anchors: Tensor | None = None
) -> tuple[RolloutBatch, Places]:
    """Lays one row a step out as one row an episode: a token a turn.

    Returns:
        The rollouts, and row and token of each step.
    """
    _, row = torch.unique(trajectory, return_inverse=True)
    rows, width = int(row.max()) + 1, int(step.max()) + 1
    place = (row, step.long())

    def table(x: Tensor, fill: float) -> Tensor:
        return torch.full((rows, width), fill, dtype=x.dtype).index_put(place, x)

    mask = table(torch.ones_like(step, dtype=torch.bool), False)
    found = rollouts_of(
        mask,
        table(rewards, 0),
        group=torch.zeros(rows, dtype=torch.long).index_put((row,), group.long()),
        turn_ids=table(step.long(), -1),
        anchor_ids=None if anchors is None else table(anchors.long(), -1),
    )
    return found, place


def last_step(x: Tensor, trajectory: Tensor, step: Tensor) -> Tensor:
    """Keeps what stands at an episode's last step."""
    later = (trajectory[:, None] == trajectory) & (step[:, None] < step)
    return x.masked_fill(later.any(1), 0)


@cases("gigpo")
def test_gigpo(case: Case) -> None:
    """``turns`` twice: the outcome by ``anchor_group`` over all turns of a prompt, and the rewards
    over those from one state; ``anchor_scaled`` where they are scaled."""
    data, args = case.load(), case.args
    place = (data["traj_index"], data["step"])
    scores = last_step(data["episode_scores"], *place)
    outcome, at = episodes(*place, data["index"], scores)
    rewards, _ = episodes(*place, data["index"], data["step_rewards_raw"], data["anchor"])
    cut, gamma = segment("turns", rewards), float(args["gamma"])

    def scheme(match: str, gamma: float) -> dict[str, Any]:
        inner = {"name": "full_return", "gamma": gamma}
        scaled = {"name": "anchor_scaled", "inner": inner, "match": match, "eps": args["epsilon"]}
        return inner if args["mode"] == "mean_norm" else scaled

    assert args["compute_mean_std_cross_steps"]
    every = {"name": "anchor_group", "match": "prompt", "singleton": "reward"}
    episode, _ = credit(outcome, cut, every, scheme("prompt", 1.0))
    same = {"name": "anchor_group", "gamma": gamma}
    step, values = credit(rewards, cut, same, scheme("anchor", gamma))
    returns = cut.spread(lambda_returns(values, gamma=gamma))
    assert_close(case, returns[at], data["step_returns"])
    want = data["advantages"][:, 0]
    assert_close(case, (episode + args["step_advantage_w"] * step)[at], want)


@cases("hgpo")
def test_hgpo(case: Case) -> None:
    """``anchor_group`` with a history; scaled, ``anchor_scaled`` by the population's spread."""
    data, args = case.load(), case.args
    place = (data["traj_index"], data["step"])
    rollouts, at = episodes(
        *place, data["index"], torch.zeros_like(data["step_returns"]), data["anchor"]
    )
    table = {
        "name": "anchor_group",
        "history": args["history_length"],
        "history_weight": args["length_weight_alpha"],
    }
    # The returns are given: as rewards of turns that a discount of 0 keeps apart.
    rewards = torch.zeros_like(rollouts.token_rewards).index_put(at, data["step_returns"])
    rollouts = rollouts.replace(token_rewards=rewards)
    cut = segment("turns", rollouts)
    scheme: dict[str, Any] = {"name": "full_return", "gamma": 0.0}
    if args["mode"] != "mean_norm":
        scheme = {"name": "anchor_scaled", "inner": scheme, "ddof": 0}
    found, _ = credit(rollouts, cut, table | {"gamma": 0.0}, scheme)
    assert_close(case, found[at], data["advantages"][:, 0])


@cases("mt_grpo_assign")
def test_mt_grpo_assign(case: Case) -> None:
    """``whole`` with the outcome's advantage plus ``turns`` with the turn's, on the first turn.

    Difference: a row without a tool result has a third advantage there, of rewards of its own.
    """
    data = case.load()
    mask = data["completion_mask"]
    asked = data["result_segment"] >= 0
    rollouts = rollouts_of(mask, torch.zeros_like(mask, dtype=torch.float32))
    whole, turns = segment("whole", rollouts), segment("turns", rollouts)
    first = torch.zeros(turns.mask.shape).index_fill(1, torch.tensor([0]), 1.0)
    turn = turns.spread(first * data["turn_advantages"][:, None])
    found = whole.spread(data["outcome_advantages"][:, None].expand(-1, whole.width))
    found = found + case.args["turn_advantage_coef"] * turn
    with_result = mask & asked[:, None]
    assert with_result.any()
    assert_close_masked(case, found, data["advantages"], with_result)


@cases("vagen_turn_gae")
def test_vagen_turn_gae(case: Case) -> None:
    """``turns``, and ``whitened`` over ``gae``, each turn by its tokens; values at ``start``, or at
    ``last_token`` by the estimator's anchor. A turn that stands there twice is one."""
    data, args = case.load(), case.args
    mask, group = data["response_mask"], data["group"]
    tokens = segment("whole", rollouts_of(mask, data["token_level_scores"]))
    how = "first" if args["anchor"] == "first_token" else "last"
    values = tokens.reduce(data["values"], how)[:, 0]
    rewards = tokens.reduce(data["token_level_scores"])[:, 0]
    trajectory = group * (1 + data["traj"].max()) + data["traj"]
    _, of = torch.unique(torch.stack([trajectory, data["turn"]]), dim=1, return_inverse=True)
    kept = (of[:, None] == torch.arange(int(of.max()) + 1)).int().argmax(0)
    rollouts, at = episodes(trajectory[kept], data["turn"][kept], group[kept], rewards[kept])
    blank = torch.zeros_like(rollouts.token_rewards)
    counts = mask.sum(1)[kept].to(blank)
    gae = {"name": "gae", "gamma": args["gamma"], "lam": args["lam"]}
    found, made = credit(
        rollouts,
        segment("turns", rollouts),
        blank.index_put(at, values[kept]),
        {"name": "whitened", "inner": gae},
        token_weights=blank.index_put(at, counts),
    )
    assert_close(case, found[at][of], data["advantages"][:, 0], atol=FLOAT32_FACTOR)
    returns = lambda_returns(made, gamma=args["gamma"], lam=args["lam"])
    told = data["returns"].where(mask & (data["returns"] != args["ignore_value"]), 0).sum(1)
    assert_close(case, returns[at][of], told)


@cases("roll_turns")
def test_roll_turns(case: Case) -> None:
    """``turns``, ``zero`` and ``full_return``: a discount a turn; and the mean of a turn's tokens.

    Difference: rewards before a turn's last token count here, and not there.
    """
    data, mask = case.load(), case.load()["response_mask"]
    cut = segment("turns", rollouts_of(mask, data["token_level_rewards"]))
    assert_close_masked(case, cut.spread(cut.reduce(data["x"], "mean")), data["segment_mean"], mask)
    ends = data["token_level_rewards"] * cut.ends
    rollouts = rollouts_of(mask, ends)
    found, _ = credit(rollouts, cut, "zero", {"name": "full_return", "gamma": case.args["gamma"]})
    assert_close_masked(case, found, data["returns"], mask, atol=1e-5)
    if "reward_inside_turn" in case.tags:
        assert not torch.equal(ends, data["token_level_rewards"] * mask)


@cases("atpo_turn_ratio")
def test_atpo_turn_ratio(case: Case) -> None:
    """Ratio ``segment`` over ``turns``, its gradient through the own token, under ``clip``."""
    data, args = case.load(), case.args
    mask = data["response_mask"]
    cut = segment("turns", rollouts_of(mask, data["advantages"]))
    logprobs = data["log_prob"].requires_grad_()
    loss, _ = surrogate_loss(
        logprobs,
        data["old_log_prob"],
        data["advantages"],
        mask,
        cut,
        ratio="segment",
        ratio_gradient="own_token",
        clip_low=args["clip_ratio_low"],
        clip_high=args["clip_ratio_high"],
        aggregate="sequence_mean_token_mean",
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert_close(case, loss, data["loss"])
    assert_close(case, gradient, data["grad_log_prob"])
