"""Values of states that an environment named alike: the worked example, and plain loops."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segcredit import Segmentation, registry, turn_starts
from segcredit.errors import RegistryError
from segcredit.objective.returns import segment_values
from segcredit.testing import ToySimulator, make_rollouts
from segcredit.types import RolloutBatch


def episodes(
    anchors: list[list[int]], rewards: list[list[float]], group: list[int] | None = None
) -> RolloutBatch:
    """One episode a row: turns of two tokens, an observation after each, rewards at their ends."""
    rows, turns = len(anchors), max(map(len, anchors))
    places = torch.tensor([[0, 0, -1] * turns]).expand(rows, -1)
    numbers = torch.arange(3 * turns).expand(rows, -1) // 3
    lasting = numbers < torch.tensor([[len(row)] for row in anchors])
    mask = (places == 0) & lasting
    blank = make_rollouts([""] * rows, truncated=range(rows), width=3 * turns, dtype=torch.float64)
    anchor_ids, token_rewards = torch.full_like(numbers, -1), torch.zeros(rows, 3 * turns).double()
    for row, (own, earned) in enumerate(zip(anchors, rewards, strict=True)):
        for turn, (anchor, reward) in enumerate(zip(own, earned, strict=True)):
            anchor_ids[row, 3 * turn : 3 * turn + 2] = anchor
            token_rewards[row, 3 * turn + 1] = reward
    return blank.replace(
        action_mask=mask,
        token_rewards=token_rewards,
        turn_ids=numbers.masked_fill(~mask, -1),
        anchor_ids=anchor_ids.masked_fill(~mask, -1),
        group=torch.tensor(group or [0] * rows),
    )


def turns_of(rollouts: RolloutBatch) -> Segmentation:
    assert rollouts.turn_ids is not None
    return Segmentation.from_starts(turn_starts(rollouts.turn_ids), rollouts.action_mask)


def credit(
    rollouts: RolloutBatch, *, gamma: float = 1.0, scaled: dict[str, Any] | None = None, **own: Any
) -> Tensor:
    """(B,S) advantages of turns by ``anchor_group`` and ``full_return``."""
    cut = turns_of(rollouts)
    estimator = registry.estimators.build("anchor_group", gamma=gamma, **own)
    values_BS = estimator.estimate(nn.Module(), rollouts, cut, ToySimulator())
    values = segment_values(rollouts, cut, values_BS)
    scheme: dict[str, Any] = {"name": "full_return", "gamma": gamma}
    if scaled is not None:
        scheme = {"name": "anchor_scaled", "inner": scheme, **scaled}
    return registry.advantages.build(**scheme)(values).masked_fill(~cut.mask, 0)


P, Q, S = 3, 8, 1
EXAMPLE = episodes([[P, Q], [P, P, S]], [[0, 1.0], [0, 0, 0]])


def test_the_worked_example() -> None:
    """Episode a: anchors p, q, return 1 at its end; episode b: p, p, s, return 0; γ = 0.5."""
    step = credit(EXAMPLE, gamma=0.5)
    want = torch.tensor([[1 / 3, 0.0, 0.0], [-1 / 6, -1 / 6, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(step, want, atol=1e-12, rtol=0)
    last = episodes([[0, 0], [0, 0, 0]], [[0, 1.0], [0, 0, 0.0]])
    by_turn = credit(last, match="prompt", singleton="reward")
    assert by_turn[:, 0].tolist() == pytest.approx([0.6, -0.4])
    whole = Segmentation.from_starts(torch.zeros_like(last.action_mask), last.action_mask)
    mean = registry.estimators.build("group_mean")
    values = mean.estimate(nn.Module(), last, whole, ToySimulator())
    assert (last.token_rewards.sum(1) - values[:, 0]).tolist() == [0.5, -0.5]


def test_each_visit_counts_and_a_state_alone_has_no_credit() -> None:
    found = credit(EXAMPLE, gamma=0.5)
    assert found[0, 1] == 0
    assert found[1, 2] == 0
    alone = credit(EXAMPLE, gamma=0.5, singleton="reward")
    assert alone[0, 1] == 1.0


@pytest.mark.parametrize("match", ["anchor", "turn", "prompt"])
@pytest.mark.parametrize("scaled", [False, True])
def test_against_plain_loops(match: str, scaled: bool) -> None:
    source = torch.Generator().manual_seed(4)
    lengths = [3, 1, 4, 2, 2, 5, 1]
    group = [0, 0, 0, 1, 1, 1, 2]
    anchors = [torch.randint(0, 3, (n,), generator=source).tolist() for n in lengths]
    anchors[2][1] = -1  # a state without a name
    rewards = [torch.randn(n, generator=source).tolist() for n in lengths]
    gamma, eps = 0.9, 1e-6
    returns = [
        [sum(gamma ** (j - k) * r[j] for j in range(k, len(r))) for k in range(len(r))]
        for r in rewards
    ]
    scheme = {"match": match, "eps": eps} if scaled else None
    found = credit(episodes(anchors, rewards, group), gamma=gamma, match=match, scaled=scheme)
    visits = [(i, k) for i, own in enumerate(anchors) for k in range(len(own))]
    several = 0
    for i, k in visits:
        same = {
            "anchor": [(j, m) for j, m in visits if anchors[j][m] == anchors[i][k] >= 0],
            "turn": [(j, m) for j, m in visits if m == k],
            "prompt": visits,
        }[match]
        every = [returns[j][m] for j, m in same if group[j] == group[i]] or [returns[i][k]]
        want = returns[i][k] - sum(every) / len(every)
        several += len(every) > 1
        if scaled:
            want /= statistics.stdev(every) + eps if len(every) > 1 else 1
        assert float(found[i, k]) == pytest.approx(want, abs=1e-5 if scaled else 1e-9)
    assert several > 5


def test_completions_of_one_turn_are_compared_as_group_mean_does() -> None:
    """With anchors and without, with turn ids and without: A^S = A^E."""
    rollouts = make_rollouts(6, group_size=3, dtype=torch.float64)
    whole = Segmentation.from_starts(torch.zeros_like(rollouts.action_mask), rollouts.action_mask)
    mean = registry.estimators.build("group_mean")
    want = mean.estimate(nn.Module(), rollouts, whole, ToySimulator())
    ids = torch.zeros_like(rollouts.completion_ids).masked_fill(~rollouts.action_mask, -1)
    anchor = registry.estimators.build("anchor_group")
    for turn_ids in (None, ids):
        for anchor_ids in (None, ids + 5 * (ids >= 0)):
            batch = rollouts.replace(turn_ids=turn_ids, anchor_ids=anchor_ids)
            found = anchor.estimate(nn.Module(), batch, whole, ToySimulator())
            torch.testing.assert_close(found, want, atol=1e-12, rtol=0)


def test_without_anchors_first_turns_are_alike_and_others_alone() -> None:
    batch = episodes([[P, Q], [P, P, S]], [[1.0, 1.0], [0, 0, 0]]).replace(anchor_ids=None)
    found = credit(batch)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]).double())


def test_segments_inside_a_turn_have_the_value_of_the_turn() -> None:
    estimator = registry.estimators.build("anchor_group", gamma=0.5)
    every = Segmentation.from_starts(EXAMPLE.action_mask, EXAMPLE.action_mask)
    by_token = estimator.estimate(nn.Module(), EXAMPLE, every, ToySimulator())
    by_turn = estimator.estimate(nn.Module(), EXAMPLE, turns_of(EXAMPLE), ToySimulator())
    assert torch.equal(every.spread(by_token), turns_of(EXAMPLE).spread(by_turn))


def test_a_history_compares_turns_by_the_anchors_before_them_too() -> None:
    """Turn 1 of both rows began in q, after p and after s; turn 2 of both in p, after q."""
    batch = episodes([[P, Q, P], [S, Q, P], [P, P, P]], [[0, 0, 1.0], [0, 0, 0], [0, 0, 0.5]])
    plain, found = credit(batch), credit(batch, history=1, history_weight=1.0)
    last_two, one = (1.0 + 0) / 2, (1.0 + 0 + 0.5 * 3 + 1.0) / 6  # turn 2; p at any turn
    assert float(plain[0, 2]) == pytest.approx(1 - one)
    assert float(found[0, 2]) == pytest.approx(1 - (2 * one + 3 * last_two) / 5)
    assert float(found[0, 1]) == float(plain[0, 1]) == 0.5  # the pairs (p, q) and (s, q) differ
    assert float(found[0, 0]) == float(plain[0, 0])  # no turn came before


def test_senseless_options_are_refused() -> None:
    for options, sentence in (
        ({"history": 1, "match": "turn"}, "history is 1 and match is 'turn'; expected"),
        ({"match": "state"}, "match"),
        ({"gamma": 1.5}, "gamma"),
    ):
        with pytest.raises(RegistryError, match=sentence):
            registry.estimators.build("anchor_group", **options)


def test_equal_returns_are_not_divided_by_their_spread() -> None:
    batch = episodes([[P, Q], [P, Q]], [[0, 1.0], [0, 1.0 + 1e-9]])
    for gamma in (1.0, 0.5):
        found = credit(batch, gamma=gamma, scaled={"match": "anchor"})
        assert float(found.abs().max()) < 1e-2
