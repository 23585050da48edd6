"""Values of a tree's nodes against a recursion over the tree, and advantages in siblings' units."""

from __future__ import annotations

import dataclasses
import random
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from segcredit import registry
from segcredit.objective.returns import segment_values, token_rewards
from segcredit.segmentation import Segmentation
from segcredit.testing import (
    ToySimulator,
    check_advantage,
    check_estimator,
    make_rollouts,
    pad_rollouts,
)
from segcredit.types import RolloutBatch, SegmentValues


@dataclasses.dataclass
class Node:
    """A sampled token; the prompt is a node without any. ``leaves`` are rows that end here."""

    number: int = -1
    action: bool = True
    penalty: float = 0.0
    children: list[Node] = dataclasses.field(default_factory=list)
    leaves: list[float] = dataclasses.field(default_factory=list)


def grow(draws: random.Random, depth: int, numbers: list[int]) -> Node:
    """A random tree below a token; some rows end where others go on."""
    node = Node(numbers.pop(), draws.random() < 0.7, draws.choice([0.0, 0.1, 0.3]))
    for _ in range(draws.choice([0, 1, 1, 2, 3]) if depth else 0):
        node.children.append(grow(draws, depth - 1, numbers))
    if not node.children or draws.random() < 0.2:
        # The last token of a row is one that the policy chose.
        node.action = True
        node.leaves = [draws.random() for _ in range(draws.choice([1, 1, 2]))]
    return node


def forest(seed: int) -> list[Node]:
    """One to three prompts, each with one to three first tokens; a row may be empty."""
    draws = random.Random(seed)
    numbers = draws.sample(range(1000), 400)
    trees = []
    for _ in range(draws.randint(1, 3)):
        roots = [grow(draws, 3, numbers) for _ in range(draws.randint(1, 3))]
        trees.append(Node(children=roots, leaves=[0.0] * (draws.random() < 0.2)))
    return trees


def paths(node: Node) -> list[tuple[list[Node], float]]:
    """Every row below a node: its tokens and the verifier's reward."""
    below = [(row, reward) for child in node.children for row, reward in paths(child)]
    own = [] if node.number < 0 else [node]
    ending = [([], reward) for reward in node.leaves]
    return [([*own, *row], reward) for row, reward in below + ending]


def row_sum(row: list[Node], reward: float) -> float:
    return (reward if row else 0.0) - sum(node.penalty for node in row if node.action)


def value(node: Node, above: list[Node]) -> float:
    """The mean over the children, by recursion; a leaf is worth its row's sum."""
    prefix = [*above, node] if node.number >= 0 else above
    worth = [value(child, prefix) for child in node.children]
    worth += [row_sum(prefix, reward) for reward in node.leaves]
    return sum(worth) / len(worth)


def batch_of(trees: list[Node], seed: int = 0) -> tuple[RolloutBatch, list[list[Node]]]:
    """The rows of all trees, shuffled; padding holds nodes' ids of other rows and noise."""
    rows = [(group, row, reward) for group, tree in enumerate(trees) for row, reward in paths(tree)]
    random.Random(seed).shuffle(rows)
    count, width = len(rows), max((len(row) for _, row, _ in rows), default=0) + 1
    shape = (count, width)
    action = torch.zeros(shape, dtype=torch.bool)
    nodes = torch.randint(1000, shape, generator=torch.Generator().manual_seed(seed))
    penalty = torch.full(shape, torch.nan, dtype=torch.float64)
    for b, (_, row, _) in enumerate(rows):
        for t, node in enumerate(row):
            action[b, t], nodes[b, t], penalty[b, t] = node.action, node.number, node.penalty
    rollouts = make_rollouts(
        [""] * count, truncated=range(count), width=width, dtype=torch.float64
    ).replace(
        action_mask=action,
        node_ids=nodes,
        group=torch.tensor([7 * group for group, _, _ in rows]),
        rewards=torch.tensor([reward for _, _, reward in rows], dtype=torch.float64),
    )
    rewards = token_rewards(rollouts.rewards, action, penalty)
    # Neither NaN nor a number outside the mask may be read.
    noise = torch.where(nodes % 2 == 0, torch.nan, 1000.0).double()
    rollouts = rollouts.replace(token_rewards=torch.where(action, rewards, noise))
    return rollouts, [[trees[group], *row] for group, row, _ in rows]


def estimate(rollouts: RolloutBatch, segmentation: Segmentation, **options: Any) -> Tensor:
    plugin = registry.estimators.build("tree", **options)
    with torch.no_grad():
        return plugin.estimate(nn.Module(), rollouts, segmentation, ToySimulator())


def cut(rollouts: RolloutBatch, every: int) -> Segmentation:
    """A boundary before every so many action tokens."""
    mask = rollouts.action_mask
    return Segmentation.from_starts((mask.cumsum(1) - 1) % every == 0, mask)


seeds = st.integers(0, 2**32)


@given(seeds, st.integers(1, 3), st.sampled_from(["start", "last_token"]))
def test_closed_form_is_the_recursion(seed, every, anchor):
    rollouts, rows = batch_of(forest(seed), seed)
    segmentation = cut(rollouts, every)
    found = estimate(rollouts, segmentation, anchor=anchor)
    assert found.dtype == torch.float64
    wanted = torch.zeros_like(found)
    for b, row in enumerate(rows):
        for m in range(int(segmentation.counts[b])):
            at = int(segmentation.anchors(anchor)[b, m])
            above, node = row[1:at], row[at]
            passed = [one for one in row[1 : at + 1] if one.action]
            wanted[b, m] = value(node, above) + sum(one.penalty for one in passed)
    assert torch.allclose(found, wanted, atol=1e-12, rtol=0)


@given(seeds)
def test_neither_order_nor_padding_nor_other_prompts_matter(seed):
    rollouts, _ = batch_of(forest(seed), seed)
    found = estimate(rollouts, cut(rollouts, 2))
    order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(seed % 2**31))
    moved = rollouts.select(order)
    assert torch.allclose(estimate(moved, cut(moved, 2)), found[order], atol=1e-12, rtol=0)
    wide = pad_rollouts(rollouts, 2, seed=1)
    assert torch.allclose(estimate(wide, cut(wide, 2)), found, atol=1e-12, rtol=0)
    mine = (rollouts.group == rollouts.group[0]).nonzero()[:, 0]
    alone = rollouts.select(mine)
    width = cut(alone, 2).width
    assert torch.allclose(
        estimate(alone, cut(alone, 2)), found[mine][:, :width], atol=1e-12, rtol=0
    )


def test_a_small_tree_by_hand():
    """Two first tokens, one with three leaves (1, 0, 0), one with one (1): 2/3, not 1/2."""
    rollouts = make_rollouts(["aa"] * 4, truncated=range(4), group_size=4, dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    rollouts = rollouts.replace(
        node_ids=torch.tensor([[0, 1], [0, 2], [0, 3], [4, 5]]),
        token_rewards=token_rewards(rewards, rollouts.action_mask),
    )
    segmentation = cut(rollouts, 1)
    found = estimate(rollouts, segmentation)
    third = 1 / 3
    wanted = [[2 * third, third]] * 3 + [[2 * third, 1.0]]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64))
    credit = registry.advantages.build("td")(segment_values(rollouts, segmentation, found))
    wanted = [[-third, 2 * third], [-third, -third], [-third, -third], [third, 0.0]]
    assert torch.allclose(credit, torch.tensor(wanted, dtype=torch.float64))


def test_independent_rollouts_have_the_group_mean_and_then_their_own_return():
    rollouts = make_rollouts(7, group_size=3, dtype=torch.float64, holes={2: [0, 3], 5: [1]})
    segmentation = cut(rollouts, 2)
    # Row 2 begins with a token that the policy did not choose, and so behind the prompt.
    found = estimate(rollouts, segmentation)
    mean = registry.estimators.build("group_mean").estimate(
        nn.Module(), rollouts, segmentation, ToySimulator()
    )
    first = [b for b in range(7) if b != 2]
    assert torch.allclose(found[first, 0], mean[first, 0])
    assert found[2, 0] == rollouts.rewards[2] != mean[2, 0]
    later = segmentation.mask[:, 1:]
    own = rollouts.rewards[:, None].expand_as(later)
    assert torch.equal(found[:, 1:][later], own[later])


@pytest.mark.parametrize("rows", [1, 2])
def test_empty_completions_are_leaves_of_the_prompt(rows):
    rollouts = make_rollouts(["aa", *[""] * rows], truncated=range(rows + 1), group_size=rows + 1)
    found = estimate(rollouts, cut(rollouts, 1))
    assert float(found[0, 0]) == pytest.approx(float(rollouts.rewards[0]) / (rows + 1))
    empty = rollouts.select(list(range(1, rows + 1)))
    assert torch.equal(estimate(empty, cut(empty, 1)), torch.zeros(rows, 1))


def scaled(values: SegmentValues, **options: Any) -> Tensor:
    options = {"inner": "td", **options}
    return registry.advantages.build("sibling_scaled", **options)(values)


def slow_scaled(values: SegmentValues, ddof: int) -> Tensor:
    """Children of each state by dictionary, states as (kind, id)."""
    inner = registry.advantages.build("td")(values)
    rows, width = values.mask.shape
    siblings: dict[tuple[str, int], dict[int, list[float]]] = {}
    edges: dict[tuple[int, int], tuple[str, int]] = {}
    for b in range(rows):
        for m in range(width):
            if not values.mask[b, m]:
                continue
            before = int(values.node_ids[b, m - 1]) if m else int(values.group[b])
            edges[b, m] = ("node" if m else "prompt", before)
            following = float(values.values[b, m + 1]) if m + 1 < width else 0.0
            children = siblings.setdefault(edges[b, m], {})
            q = float(values.rewards[b, m]) + following
            children.setdefault(int(values.node_ids[b, m]), []).append(q)
    found = torch.zeros_like(inner)
    for (b, m), state in edges.items():
        worth = [statistics.fmean(child) for child in siblings[state].values()]
        alike = max(worth) - min(worth) < 1e-11
        size = max(abs(float(inner[at])) for at, other in edges.items() if other == state)
        far = size > 2 * (max(worth) - min(worth))
        std = statistics.stdev if ddof else statistics.pstdev
        unit = 1.0 if alike else std(worth) + 1e-8
        found[b, m] = inner[b, m] / (max(unit, 1.0) if far else unit)
    return found


@given(seeds, st.integers(1, 3), st.sampled_from([0, 1]))
def test_scaling_by_the_spread_of_the_distinct_children(seed, every, ddof):
    rollouts, _ = batch_of(forest(seed), seed)
    segmentation = cut(rollouts, every)
    values = segment_values(rollouts, segmentation, estimate(rollouts, segmentation))
    found = scaled(values, ddof=ddof)
    assert torch.allclose(found, slow_scaled(values, ddof), atol=1e-9, rtol=1e-9)
    # Values that are no tree's: nothing may hang on the mean over the children.
    other = torch.randn(values.values.shape, generator=torch.Generator().manual_seed(every))
    values = values.replace(values=other.double() * values.mask)
    assert torch.allclose(scaled(values, ddof=ddof), slow_scaled(values, ddof), rtol=1e-9)


def made(
    nodes: list[list[int]],
    values: list[list[float]],
    rewards: list[float],
    group: list[int],
    dtype: torch.dtype = torch.float64,
) -> SegmentValues:
    """Rows of as many segments as they have nodes; the reward comes with the last."""
    width = max(len(row) for row in nodes)
    mask = torch.tensor([[m < len(row) for m in range(width)] for row in nodes])
    return SegmentValues(
        values=torch.tensor([row + [0.0] * (width - len(row)) for row in values], dtype=dtype),
        rewards=token_rewards(torch.tensor(rewards, dtype=dtype), mask),
        lengths=mask.long(),
        weights=mask.to(dtype),
        mask=mask,
        group=torch.tensor(group),
        # Padding holds a number that is also a node's.
        node_ids=torch.tensor([row + [0] * (width - len(row)) for row in nodes]),
    )


def test_a_state_is_its_node_whatever_the_column():
    """Row 0 reaches node 1 in two segments, row 1 in one; behind it they are siblings."""
    values = made(
        [[0, 1, 2], [1, 3], [4]],
        [[0.4, 0.5, 0.5], [0.4, 0.5], [0.4]],
        [1.0, 0.0, 0.0],
        [0, 0, 0],
    )
    found = scaled(values)
    assert float(found[0, 2]) == pytest.approx(0.5 / (0.5 + 1e-8))
    assert float(found[1, 1]) == pytest.approx(-0.5 / (0.5 + 1e-8))
    # Children of the prompt: nodes 0, 1 and 4, with q 0.5, 0.5 and 0.
    spread = statistics.pstdev([0.5, 0.5, 0.0]) + 1e-8
    assert found[:, 0].tolist() == pytest.approx([0.1 / spread, 0.1 / spread, -0.4 / spread])
    assert float(found[0, 1]) == 0.0  # node 0 has one child


def test_a_single_child_is_left_unscaled():
    values = made(
        [[0, 1], [0, 2], [3]], [[0.1, 0.7], [0.1, 0.7], [0.2]], [1.0, 1.0, 1.0], [0, 0, 5]
    )
    for ddof in (0, 1):
        found = scaled(values, ddof=ddof)
        # One child of each prompt; two of node 0, whose q do not differ.
        assert found[:, 0].tolist() == pytest.approx([0.6, 0.6, 0.8])
        assert found[:2, 1].tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("reward", [1.0, 0.7, -3.3])
def test_rounding_is_not_blown_up_where_all_rewards_are_equal(reward):
    """In float32 the mean of equal numbers is not equal to them, and eps is below its rounding."""
    rollouts = make_rollouts(["aaaa"] * 343, truncated=range(343), group_size=343)
    leaf = torch.arange(343)[:, None]
    depths = torch.tensor([49, 7, 1, 1])
    rollouts = rollouts.replace(
        node_ids=leaf // depths + torch.tensor([0, 1000, 2000, 3000]),
        token_rewards=token_rewards(torch.full((343,), reward), rollouts.action_mask),
    )
    segmentation = cut(rollouts, 1)
    values = segment_values(rollouts, segmentation, estimate(rollouts, segmentation))
    assert float(registry.advantages.build("td")(values).abs().max()) > 0
    assert float(scaled(values).abs().max()) < 1e-4


def test_options_keep_the_contract():
    check_estimator(registry.estimators.build("tree", anchor="last_token"))
    check_advantage(registry.advantages.build("sibling_scaled", inner="td", ddof=1))
