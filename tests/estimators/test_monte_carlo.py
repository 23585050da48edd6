"""Values from continuations: which states are continued, once each, and what fills the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flat_loss import surrogate_loss
from segcredit import registry
from segcredit.config import load_config
from segcredit.errors import RegistryError
from segcredit.objective.returns import advantages, lambda_returns, segment_values, token_rewards
from segcredit.protocols import Simulator
from segcredit.segmentation import Segmentation
from segcredit.testing import ToyPolicy, ToySimulator, check_estimator, make_rollouts, toy_rollouts
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.types import Continuations, RolloutBatch
from small import SMALL
from strategies import cuts

NEWLINE = 2  # the id of "\n" among the toy's symbols
FILLS = ["interpolate", "hold", "return"]


class Outcomes(Simulator):
    """Continuations that are settled by the prompt and the tokens before the position."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, int]]] = []

    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Tensor,
        positions_N: Tensor,
        count: int,
        *,
        greedy: bool = False,
    ) -> Continuations:
        states = [(int(row), int(at)) for row, at in zip(rows_N, positions_N, strict=True)]
        self.calls.append(states)
        drawn = [outcomes(rollouts, row, at, count) for row, at in states]
        return Continuations(
            rewards=torch.tensor([[reward for reward, _ in one] for one in drawn]),
            truncated=torch.tensor([[cut for _, cut in one] for one in drawn]),
            tokens=0,
        )


def outcomes(
    rollouts: RolloutBatch, row: int, position: int, count: int
) -> list[tuple[float, bool]]:
    """Reward and truncation of each continuation of a state."""
    prefix = [int(token) for token in rollouts.completion_ids[row, :position]]
    draws = random.Random(f"{rollouts.prompt_keys[row]}{prefix}")
    return [(draws.random(), draws.random() < 0.3) for _ in range(count)]


def value_of(rollouts: RolloutBatch, row: int, position: int, penalty: float | None) -> float:
    """The mean of three continuations."""
    drawn = outcomes(rollouts, row, position, 3)
    kept = [penalty if cut and penalty is not None else reward for reward, cut in drawn]
    return sum(kept) / 3


def estimate(
    rollouts: RolloutBatch, segmentation: Segmentation, simulator: Any, **options: Any
) -> Tensor:
    plugin = registry.estimators.build("monte_carlo", **options)
    with torch.no_grad():
        return plugin.estimate(nn.Module(), rollouts, segmentation, simulator)


def batch(mask: Tensor, seed: int = 0) -> RolloutBatch:
    """Rollouts with this action mask, two rows a group, in float64."""
    rows, width = mask.shape
    texts = ["".join(random.Random(f"{seed}{row}").choices("a =", k=width)) for row in range(rows)]
    rollouts = make_rollouts(texts, truncated=range(rows), dtype=torch.float64, seed=seed)
    source = torch.Generator().manual_seed(seed)
    penalties = 0.1 * torch.rand(rows, width, generator=source, dtype=torch.float64)
    # NaN outside the mask must reach nothing.
    return rollouts.replace(
        action_mask=mask,
        token_rewards=torch.where(mask, -penalties, torch.nan),
        logprobs=rollouts.logprobs.masked_fill(~mask, torch.nan),
    )


def places_of(ids: Sequence[int], anchor: str) -> list[int]:
    """The position of each segment's anchor."""
    count = max(ids, default=-1) + 1
    inside = [[t for t, number in enumerate(ids) if number == m] for m in range(count)]
    return [tokens[0 if anchor == "start" else -1] for tokens in inside]


def chosen_of(count: int, most: int | None, choose: str) -> list[int]:
    """The segments whose states are continued."""
    if most is None or most >= count:
        return list(range(count))
    return list(range(most)) if choose == "first" else [i * count // most for i in range(most)]


def filled(known: dict[int, float], count: int, rest: str, reward: float, rewards: list[float]):
    """Every state's value from those that are known."""
    whole = []
    for m in range(count):
        if m in known:
            whole.append(known[m])
        elif rest == "return":
            whole.append(sum(rewards[m:]))
        else:
            before = max(k for k in known if k < m)
            after = min((k for k in known if k > m), default=count)
            end = known.get(after, reward)
            slope = (end - known[before]) / (after - before)
            whole.append(known[before] + (rest == "interpolate") * slope * (m - before))
    return whole


@given(
    cuts(),
    st.sampled_from(["start", "last_token"]),
    st.sampled_from([None, 0.0, -1.0]),
    st.sampled_from([None, 1, 2, 3, 5]),
    st.sampled_from(["first", "even"]),
    st.sampled_from(FILLS),
    st.booleans(),
)
def test_values_are_those_of_a_slow_reading(cut, anchor, penalty, most, choose, rest, share):
    starts, mask = cut
    rollouts = batch(mask)
    segmentation = Segmentation.from_starts(starts, mask)
    options = {"anchor": anchor, "penalty": penalty, "max_states": most, "choose": choose}
    simulator = Outcomes()
    found = estimate(
        rollouts, segmentation, simulator, continuations=3, rest=rest, share=share, **options
    )
    assert found.dtype == torch.float64
    asked = []
    for row, ids in enumerate(segmentation.segment_ids.tolist()):
        places = places_of(ids, anchor)
        known = {
            m: value_of(rollouts, row, places[m], penalty)
            for m in chosen_of(len(places), most, choose)
        }
        asked += [(row, places[m]) for m in known]
        rewards = [
            sum(
                float(x)
                for x, number in zip(rollouts.token_rewards[row], ids, strict=True)
                if number == m
            )
            for m in range(len(places))
        ]
        wanted = filled(known, len(places), rest, float(rollouts.rewards[row]), rewards)
        assert found[row].tolist() == pytest.approx(
            wanted + [0.0] * (segmentation.width - len(wanted)), abs=1e-6
        )
    if share:  # Independent rollouts share their prompt alone.
        groups = rollouts.group.tolist()
        asked = [
            (row, at)
            for row, at in asked
            if at > 0 or not any((r, 0) in asked for r in range(row) if groups[r] == groups[row])
        ]
    assert [sorted(call) for call in simulator.calls] == ([sorted(asked)] if asked else [])


def test_exact_continuations_give_exact_values():
    simulator = ToySimulator(ToyPolicy(seed=1).double())
    rollouts = toy_rollouts(simulator)
    mask = rollouts.action_mask
    for starts in (mask, ~mask, mask.cumsum(1) % 2 == 1):
        segmentation = Segmentation.from_starts(starts, mask)
        for anchor in ("start", "last_token"):
            exact = simulator.values(rollouts).gather(1, segmentation.anchors(anchor))
            found = estimate(rollouts, segmentation, simulator, anchor=anchor)
            assert torch.allclose(found, exact.masked_fill(~segmentation.mask, 0), atol=1e-12)


def tree_rows() -> tuple[RolloutBatch, Segmentation]:
    """Four rows of a prompt, a tree of nodes 0 to 8, and two independent ones of another prompt.

    A segment a token. Rows 0 and 1 share two tokens, rows 0 to 2 the first.
    """
    texts = ["abc", "abd", "aef", "ghi", "abc", "abc"]
    texts = [text.translate(str.maketrans("bcdefghi", "SotWaxip")) for text in texts]
    rollouts = make_rollouts(texts, truncated=range(6), dtype=torch.float64)
    nodes = [[0, 1, 2], [0, 1, 3], [0, 4, 5], [6, 7, 8], [10, 11, 12], [13, 14, 15]]
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    keys = tuple(f"prompt-{number}" for number in group.tolist())
    rollouts = rollouts.replace(node_ids=torch.tensor(nodes), group=group, prompt_keys=keys)
    return rollouts, Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)


def test_a_shared_state_is_continued_once_and_serves_all_its_rows():
    rollouts, segmentation = tree_rows()
    shared, apart = Outcomes(), Outcomes()
    found = estimate(rollouts, segmentation, shared)
    alone = estimate(rollouts, segmentation, apart, share=False)
    (states,), (all_states,) = shared.calls, apart.calls
    # Prompts 0 and 1; behind tokens 0, 6, 10, 13; behind 1, 4, 7, 11, 14.
    assert sorted(states) == sorted(
        [(0, 0), (4, 0), (0, 1), (3, 1), (4, 1), (5, 1), (0, 2), (2, 2), (3, 2), (4, 2), (5, 2)]
    )
    assert len(all_states) == 18
    # Here the outcome is settled by the state, so that sharing must change nothing.
    assert torch.equal(found, alone)
    assert found[0, 0] == found[3, 0] != found[4, 0]
    assert found[0, 2] == found[1, 2] != found[2, 2]


def test_a_prompt_is_not_taken_for_a_node_of_the_same_number():
    rollouts, segmentation = tree_rows()
    same = rollouts.replace(node_ids=rollouts.node_ids * 0 + rollouts.group[:, None])
    same = same.select([0, 4])
    simulator = Outcomes()
    estimate(same, segmentation.select([0, 4]), simulator)
    assert [state for state in sorted(simulator.calls[0]) if state[1] == 0] == [(0, 0), (1, 0)]
    assert len(simulator.calls[0]) == 4


@pytest.mark.parametrize("rows", [1, 3])
def test_without_any_state_nothing_is_asked(rows):
    rollouts = make_rollouts([""] * rows, truncated=range(rows))
    segmentation = Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)
    simulator = Outcomes()
    for most in (None, 2):
        found = estimate(rollouts, segmentation, simulator, max_states=most)
        assert torch.equal(found, torch.zeros(rows, 1))
    assert simulator.calls == []


def credit_of(
    rollouts: RolloutBatch, segmentation: Segmentation, **options: Any
) -> tuple[Tensor, Tensor]:
    """One-step advantages and values, for an outcome reward."""
    placed = token_rewards(rollouts.rewards, rollouts.action_mask)
    rollouts = rollouts.replace(token_rewards=placed)
    values_BS = estimate(rollouts, segmentation, Outcomes(), **options)
    values = segment_values(rollouts, segmentation, values_BS)
    return registry.advantages.build("td")(values), values_BS


@pytest.mark.parametrize("choose", ["first", "even"])
@pytest.mark.parametrize("rest", FILLS)
def test_every_fill_conserves_the_sum_and_shares_it_as_it_says(choose, rest):
    rollouts = batch(torch.ones(4, 10, dtype=torch.bool))
    mask = rollouts.action_mask
    segmentation = Segmentation.from_starts(mask, mask)
    credit, values = credit_of(rollouts, segmentation, max_states=3, choose=choose, rest=rest)
    assert torch.allclose(credit.sum(1), rollouts.rewards - values[:, 0])
    gaps = {"first": [(2, 10)], "even": [(0, 3), (3, 6), (6, 10)]}[choose]
    for first, end in gaps:
        gap = credit[:, first:end]
        if rest == "interpolate":
            assert torch.allclose(gap, gap.mean(1, keepdim=True).expand_as(gap))
            assert bool((gap.abs() > 1e-3).all())
        elif rest == "hold":
            assert torch.equal(gap[:, :-1], torch.zeros_like(gap[:, :-1]))
            assert bool((gap[:, -1].abs() > 1e-3).all())
        elif choose == "first":
            assert torch.allclose(gap[:, 0], rollouts.rewards - values[:, first])
            assert torch.allclose(gap[:, 1:], torch.zeros_like(gap[:, 1:]))


@pytest.mark.parametrize("count", range(1, 12))
def test_even_states_are_as_many_as_allowed_and_never_far_apart(count):
    mask = torch.ones(1, count, dtype=torch.bool)
    segmentation = Segmentation.from_starts(mask, mask)
    for most in range(1, 13):
        simulator = Outcomes()
        estimate(batch(mask), segmentation, simulator, max_states=most)
        places = sorted(at for _, at in simulator.calls[0])
        assert places[0] == 0
        assert len(places) == min(most, count)
        steps = [late - early for early, late in zip(places, [*places[1:], count], strict=True)]
        assert max(steps) - min(steps) <= 1


def gradient_error(scheme: str, **options: Any) -> float:
    """Distance of the expected surrogate gradient from that of the expected reward, relative.

    Every completion of the toy is weighed by its probability; continuations are exact.
    """
    policy = ToyPolicy(length=4, prompts=1, hidden_size=6, seed=3).double()
    with torch.no_grad():
        policy.output.weight.mul_(3)
    source = ToySimulator(policy)
    everything = source.enumerate()
    mask = everything.action_mask
    segmentation = Segmentation.from_ends(everything.completion_ids == NEWLINE, mask)
    values_BS = estimate(everything, segmentation, source, **options)
    values = segment_values(everything, segmentation, values_BS)
    lam = {"td": 0.0, "full_return": 1.0}[scheme]
    credit = advantages(segmentation, values, lambda_returns(values, lam=lam) - values.values)
    shares = everything.logprobs.sum(1).exp()
    loss, _ = surrogate_loss(
        policy(everything).logprobs,
        everything.logprobs,
        credit.per_token * shares[:, None],
        mask,
        segmentation,
        ratio="none",
        clip_low=0.2,
        clip_high=0.2,
        aggregate="sequence_mean_token_sum",
        denominator=1.0,
    )
    expected = policy(everything).logprobs.sum(1).exp() @ everything.rewards
    parameters = list(policy.parameters())
    found, true = (
        torch.cat([x.flatten() for x in torch.autograd.grad(total, parameters)])
        for total in (-loss, expected)
    )
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize(
    ("scheme", "options", "unbiased"),
    [
        ("td", {}, True),
        ("full_return", {}, True),
        ("full_return", {"max_states": 2, "choose": "first", "rest": "hold"}, True),
        ("full_return", {"max_states": 2, "choose": "even", "rest": "hold"}, False),
        ("full_return", {"max_states": 2, "choose": "first", "rest": "interpolate"}, False),
        ("full_return", {"max_states": 2, "choose": "first", "rest": "return"}, False),
        ("td", {"max_states": 2, "choose": "first", "rest": "hold"}, False),
    ],
)
def test_which_fills_leave_the_gradient_unbiased(scheme, options, unbiased):
    error = gradient_error(scheme, **options)
    assert error < 1e-12 if unbiased else error > 1e-3


def test_the_policy_itself_continues_every_state():
    run = build(
        load_config(
            "sapo",
            [
                *SMALL,
                "policy.steps=1",
                'estimator={name = "monte_carlo", continuations = 2, max_states = 3}',
            ],
        )
    )
    experience = collect(run, 1)
    values = experience.values
    assert experience.simulator.tokens > 0
    assert bool(((values.values >= 0) & (values.values <= 1.0)).all())
    first = values.values[:, 0]
    for group in values.group.unique():
        assert len(first[values.group == group].unique()) == 1


@pytest.mark.parametrize(("rest", "share"), [("interpolate", True), ("return", False)])
def test_options_keep_the_contract(rest, share):
    options = {"rest": rest, "share": share, "anchor": "last_token", "max_states": 1}
    check_estimator(registry.estimators.build("monte_carlo", **options))


@pytest.mark.parametrize("options", [{"continuations": 0}, {"max_states": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RegistryError, match="expected a whole number of at least 1"):
        registry.estimators.build("monte_carlo", **options)
