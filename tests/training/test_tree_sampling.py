"""Trees of completions: their shape, what rows share, what they cost, and how they are drawn."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segcredit import Segmenter, load_config, read_runs, registry, train
from segcredit.episodes import Completions, complete
from segcredit.objective.returns import token_rewards
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.testing import ToyPolicy
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.training.rollouts.tree_sampling import grow
from segcredit.types import SamplingParams
from small import SMALL

LARGE = 100_000
TREE = [
    "rollouts.layout=tree",
    "rollouts.branches=[2,2]",
    "segmenter={name='fixed_length',tokens=3}",
    "estimator=tree",
    "advantage=td",
]


@dataclass(frozen=True, slots=True)
class Toy(Task):
    """The toy policy's prompts, with a reward for every text."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        return [Prompt(str(number), str(number), None) for number in range(count)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        return []

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(zlib.crc32(f"{prompt.key}:{text}".encode()) % 97 / 97, False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by(name: str, **options: Any) -> Segmenter:
    return registry.segmenters.build(name, **options)


def toy_tree(
    segmenter: Segmenter,
    branches: Sequence[int],
    *,
    prompts: int = 3,
    length: int = 4,
    seed: int = 0,
    limit: int | None = None,
) -> tuple[Completions, int]:
    return grow(
        ToyPolicy(length=length, prompts=3, seed=7),
        Toy(),
        Toy().prompts(prompts, generator()),
        segmenter,
        branches,
        max_new_tokens=limit or length,
        micro_tokens=LARGE,
        generator=generator(seed),
    )


def check_nodes(leaves: Completions, tokens: int) -> None:
    """Equal nodes have equal prefixes; every node is a token that was sampled, and paid for."""
    prefixes: dict[int, Any] = {}
    for row, prompt in enumerate(leaves.prompts):
        chosen = leaves.mask[row]
        ids, nodes = leaves.ids[row][chosen].tolist(), leaves.node_ids[row][chosen].tolist()
        for place, node in enumerate(nodes):
            prefix = prompt.key, ids[: place + 1], nodes[: place + 1]
            assert prefixes.setdefault(node, prefix) == prefix
    assert len(prefixes) == tokens
    keys = [prompt.key for prompt in leaves.prompts]
    runs = [key for row, key in enumerate(keys) if row == 0 or keys[row - 1] != key]
    assert len(runs) == len(set(keys))


@pytest.mark.parametrize(
    ("branches", "widths"),
    [
        ([2, 3, 2], [2, 6, 12, 12]),
        ([1, 1, 4], [1, 1, 4, 4]),
        ([3, 1, 2], [3, 3, 6, 6]),
        ([1, 2, 2, 2], [1, 2, 4, 8]),
        ([5], [5, 5, 5, 5]),
    ],
)
def test_a_tree_has_its_branches_at_every_level(branches: list[int], widths: list[int]) -> None:
    # One segment a token: the level of a fork is a column.
    leaves, tokens = toy_tree(by("per_token"), branches)
    assert [prompt.key for prompt in leaves.prompts] == [
        key for key in "012" for _ in range(widths[-1])
    ]
    check_nodes(leaves, tokens)
    for key in "012":
        rows = [row for row, prompt in enumerate(leaves.prompts) if prompt.key == key]
        nodes = leaves.node_ids[rows]
        assert [len(column.unique()) for column in nodes.T] == widths
    assert tokens == 3 * sum(widths)
    assert leaves.ids.shape[1] == 4


def test_branches_leave_from_the_end_of_a_segment() -> None:
    leaves, tokens = toy_tree(by("fixed_length", tokens=2), [2, 3], length=5)
    check_nodes(leaves, tokens)
    for key in "012":
        rows = [row for row, prompt in enumerate(leaves.prompts) if prompt.key == key]
        assert [len(column.unique()) for column in leaves.node_ids[rows].T] == [2, 2, 6, 6, 6]
    assert tokens == 3 * (2 * 2 + 6 * 3)


def test_a_row_with_too_few_segments_grows_no_further() -> None:
    leaves, tokens = toy_tree(by("whole"), [2, 3])
    assert len(leaves.ids) == 3 * 2
    assert tokens == 3 * 2 * 4
    segmenter = by("newline", blank_lines="own")
    trunks, _ = toy_tree(segmenter, [4], prompts=3, seed=1)
    leaves, tokens = toy_tree(segmenter, [4, 3], prompts=3, seed=1)
    # A newline ends a segment, so that a row goes on where one stands before its last token.
    forks = ["\n" in text[:-1] for text in trunks.texts]
    assert 0 < sum(forks) < len(forks)
    assert len(leaves.ids) == sum(3 if fork else 1 for fork in forks)
    check_nodes(leaves, tokens)
    after = [len(text) - text.index("\n") - 1 for text in trunks.texts if "\n" in text[:-1]]
    assert tokens == 4 * 12 + 2 * sum(after)


def test_one_level_is_independent_sampling() -> None:
    leaves, tokens = toy_tree(by("newline", blank_lines="own"), [4], seed=5)
    prompts = [prompt for prompt in Toy().prompts(3, generator()) for _ in range(4)]
    plain = complete(
        ToyPolicy(length=4, prompts=3, seed=7),
        Toy(),
        prompts,
        params=SamplingParams(max_new_tokens=4),
        generator=generator(5),
    )
    assert torch.equal(leaves.ids, plain.ids)
    assert torch.equal(leaves.node_ids, plain.node_ids)
    assert leaves.verdicts == plain.verdicts
    assert tokens == int(plain.mask.sum())


def test_the_limit_holds_for_branches_too() -> None:
    leaves, tokens = toy_tree(by("per_token"), [2, 2, 2], length=6, limit=4)
    check_nodes(leaves, tokens)
    assert leaves.mask.sum(1).tolist() == [4] * 24
    assert leaves.truncated.all()


def test_rewards_and_texts_are_each_leafs_own() -> None:
    leaves, _ = toy_tree(by("per_token"), [2, 2, 2])
    for row, prompt in enumerate(leaves.prompts):
        text = "".join(" \na"[number - 1] for number in leaves.ids[row].tolist())
        assert leaves.texts[row] == text
        assert leaves.verdicts[row] == Toy().verify(prompt, text, truncated=False)


def test_siblings_are_independent_draws_from_the_policy() -> None:
    # Pairs that share the first symbol: 3 stems x 9 endings of the trunk x 9 of the branch.
    policy, count = ToyPolicy(length=3, prompts=3, seed=7), 8000
    leaves, _ = grow(
        policy,
        Toy(),
        [Prompt(str(number), "1", None) for number in range(count)],
        by("per_token"),
        [1, 2],
        max_new_tokens=3,
        micro_tokens=10 * LARGE,
        generator=generator(11),
    )
    assert len(leaves.ids) == 2 * count
    numbers = ((leaves.ids - 1) * torch.tensor([9, 3, 1])).sum(1).view(count, 2)
    assert torch.equal(numbers[:, 0] // 9, numbers[:, 1] // 9)
    found = torch.bincount(numbers[:, 0] * 9 + numbers[:, 1] % 9, minlength=243)
    shares = policy.enumerate("1").logprobs.double().sum(1).exp().view(3, 9)
    stems = shares.sum(1, keepdim=True)
    expected = count * (shares[:, :, None] * shares[:, None, :] / stems[:, :, None]).flatten()
    common = expected >= 5
    assert int(common.sum()) > 150
    rest = found[~common].sum(), expected[~common].sum()
    cells = [(found[common], expected[common]), (rest[0][None], rest[1][None])]
    statistic = sum(float(((a - b).square() / b.clamp(min=1e-9)).sum()) for a, b in cells)
    freedom = int(common.sum())
    # About four standard deviations of a chi-square.
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


# The tiny transformer, and a whole run.


@pytest.fixture(scope="module")
def batch() -> Any:
    return collect(build(load_config("grpo", [*SMALL, *TREE])), 1)


def test_a_transformers_tree_shares_what_it_shares(batch: Any) -> None:
    rollouts = batch.rollouts
    leaves = Completions(
        prompts=batch.sampled.prompts,
        prompt_ids=rollouts.prompt_ids,
        prompt_mask=rollouts.prompt_mask,
        ids=rollouts.completion_ids,
        mask=rollouts.action_mask,
        truncated=rollouts.truncated,
        texts=rollouts.texts,
        token_spans=rollouts.token_spans,
        verdicts=(),
        node_ids=rollouts.node_ids,
    )
    check_nodes(leaves, batch.sampled.tokens)
    assert rollouts.completion_ids.shape[1] <= 24
    shared = batch.token_weights[rollouts.action_mask] < 1
    assert 0 < int(shared.sum()) < int(rollouts.action_mask.sum())


def test_a_shared_token_has_its_share_of_the_weight(batch: Any) -> None:
    rollouts, weights = batch.rollouts, batch.token_weights
    rows_of: dict[int, int] = defaultdict(int)
    for node in rollouts.node_ids[rollouts.action_mask].tolist():
        rows_of[node] += 1
    expected = [
        [1 / rows_of[node] if action else 0 for node, action in zip(nodes, actions, strict=True)]
        for nodes, actions in zip(
            rollouts.node_ids.tolist(), rollouts.action_mask.tolist(), strict=True
        )
    ]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert torch.equal(batch.count_weights, weights)
    assert float(weights.sum()) == pytest.approx(batch.sampled.tokens, abs=1e-3)


def mean_of_children(rows: list[tuple[list[int], float]], depth: int = 0) -> float:
    """The mean over the distinct next tokens; a row that ends is a child of its own."""
    ended = [reward for nodes, reward in rows if len(nodes) == depth]
    going: dict[int, list[tuple[list[int], float]]] = defaultdict(list)
    for nodes, reward in rows:
        if len(nodes) > depth:
            going[nodes[depth]].append((nodes, reward))
    values = ended + [mean_of_children(group, depth + 1) for group in going.values()]
    return sum(values) / len(values)


def test_the_prompts_value_is_the_mean_over_trunks() -> None:
    wide = ["rollouts.branches=[2,2,3]", "rollouts.completions=12"]
    run = build(load_config("grpo", [*SMALL, *TREE, *wide]))
    batch = collect(run, 1)
    rollouts = batch.rollouts
    rewards = torch.rand(len(rollouts), generator=generator())
    rollouts = rollouts.replace(
        rewards=rewards, token_rewards=token_rewards(rewards, rollouts.action_mask)
    )
    values: Tensor = run.method.estimator.estimate(
        run.state.module, rollouts, batch.segmentation, batch.simulator
    )
    uneven = False
    for group in rollouts.group.unique().tolist():
        members = (rollouts.group == group).nonzero()[:, 0].tolist()
        rows = [
            (rollouts.node_ids[row][rollouts.action_mask[row]].tolist(), float(rewards[row]))
            for row in members
        ]
        trunks: dict[int, list[tuple[list[int], float]]] = defaultdict(list)
        for nodes, reward in rows:
            trunks[nodes[0]].append((nodes, reward))
        over_trunks = [mean_of_children(own, 1) for own in trunks.values()]
        expected = sum(over_trunks) / len(over_trunks)
        for row in members:
            assert float(values[row, 0]) == pytest.approx(expected, abs=1e-5)
        plain = sum(reward for _, reward in rows) / len(rows)
        uneven = uneven or abs(plain - expected) > 1e-3
    assert uneven


def test_a_run_of_trees_trains_and_is_recorded(tmp_path: Any) -> None:
    runs = read_runs(train(load_config("grpo", [*SMALL, *TREE]), tmp_path / "run"))
    steps = runs.steps
    assert np.isfinite(steps.loss[1:]).all()
    assert (steps.gradient_norm[1:] > 0).any()
    assert (steps.tokens_sampled.diff()[1:] > 0).all()
    sampled = steps.tokens_sampled.diff()[1:].to_numpy()
    assert (sampled < runs.completions.groupby("step").tokens.sum().to_numpy()).all()
    assert steps.sampling_rounds[1:].eq(1).all()
