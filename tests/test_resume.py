"""Completions continued from any token: what is kept, what is new, and how it is distributed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from segcredit import load_config
from segcredit.episodes import Completions, complete, resume
from segcredit.policy.prefix_cache import PrefixCache
from segcredit.protocols import Prompt, Sampler, Task, Verdict
from segcredit.testing import ToyPolicy
from segcredit.training.build import build
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.training.rollouts.simulator import PolicySimulator
from segcredit.types import RolloutBatch, SampledTokens, SamplingParams
from small import SMALL

LIMIT = 24
LARGE = 100_000


@pytest.fixture(scope="module")
def run() -> Any:
    return build(load_config("grpo", SMALL))


@pytest.fixture
def policy(run: Any) -> Any:
    return run.actor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(run: Any, *, greedy: bool, count: int = 6) -> tuple[list[Prompt], RolloutBatch]:
    prompts = run.task.prompts(count, generator())
    found = complete(
        run.actor,
        run.task,
        prompts,
        params=SamplingParams(max_new_tokens=LIMIT, greedy=greedy),
        generator=generator(1),
    )
    return prompts, as_rollouts(found, run.actor, micro_tokens=LARGE)


def states(rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
    """Every action token of every row, in an order of no meaning, and some of them again."""
    places = rollouts.action_mask.nonzero()
    places = places[torch.randperm(len(places), generator=generator(2))]
    places = torch.cat([places, places[:5]])
    return places[:, 0].contiguous(), places[:, 1].contiguous()


def go_on(
    run: Any,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    rows: Tensor,
    positions: Tensor,
    **options: Any,
) -> tuple[Completions, int]:
    chosen: dict[str, Any] = {"max_new_tokens": LIMIT, "greedy": True, **options}
    micro_tokens = chosen.pop("micro_tokens", LARGE)
    return resume(
        run.actor,
        run.task,
        [prompts[row] for row in rows.tolist()],
        rollouts,
        rows,
        positions,
        params=SamplingParams(**chosen),
        micro_tokens=micro_tokens,
        generator=generator(3),
    )


def tokens(completions: Any, row: int) -> list[int]:
    """What the policy chose, in order."""
    ids = completions.ids if isinstance(completions, Completions) else completions.completion_ids
    mask = completions.mask if isinstance(completions, Completions) else completions.action_mask
    return ids[row][mask[row]].tolist()


def test_greedy_goes_on_as_greedy_did(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=True)
    rows, positions = states(rollouts)
    found, spent = go_on(run, prompts, rollouts, rows, positions)
    for n, row in enumerate(rows.tolist()):
        assert tokens(found, n) == tokens(rollouts, row)
        assert found.texts[n] == rollouts.texts[row]
        assert found.prompts[n] is prompts[row]
        assert float(found.rewards[n]) == float(rollouts.rewards[row])
    assert torch.equal(found.truncated, rollouts.truncated[rows])
    assert torch.equal(found.prompt_ids, rollouts.prompt_ids[rows])
    lengths = rollouts.action_mask.sum(1)
    assert spent == int((lengths[rows] - positions).sum())
    assert len({int(length) for length in lengths}) > 1


def test_the_prefix_keeps_its_nodes_and_every_new_token_is_a_new_one(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    rollouts = rollouts.replace(node_ids=rollouts.node_ids * 3 + 7)
    rows, positions = states(rollouts)
    found, spent = go_on(run, prompts, rollouts, rows, positions, greedy=False)
    new: list[int] = []
    for n, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        nodes = found.node_ids[n][found.mask[n]].tolist()
        assert nodes[:position] == rollouts.node_ids[row, :position].tolist()
        assert tokens(found, n)[:position] == tokens(rollouts, row)[:position]
        new += nodes[position:]
    assert len(new) == len(set(new)) == spent
    assert not set(new) & set(rollouts.node_ids.flatten().tolist())


def test_texts_and_characters_are_those_of_the_joined_tokens(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    rows, positions = states(rollouts)
    found, _ = go_on(run, prompts, rollouts, rows, positions, greedy=False)
    texts, token_spans = run.actor.decode(found.ids, found.mask)
    assert found.texts == texts
    assert torch.equal(found.token_spans, token_spans)
    assert as_rollouts(found, run.actor, micro_tokens=LARGE).logprobs.isfinite().all()


@pytest.mark.parametrize("micro_tokens", [1, 70])
def test_pieces_change_nothing(run: Any, micro_tokens: int) -> None:
    prompts, rollouts = whole(run, greedy=False)
    rows, positions = states(rollouts)
    keep = slice(0, 12)
    large, spent = go_on(run, prompts, rollouts, rows[keep], positions[keep])
    small, again = go_on(
        run, prompts, rollouts, rows[keep], positions[keep], micro_tokens=micro_tokens
    )
    assert torch.equal(large.ids.where(large.mask, 0), small.ids.where(small.mask, 0))
    assert torch.equal(large.mask, small.mask)
    assert torch.equal(large.truncated, small.truncated)
    assert spent == again


def test_cached_keys_and_values_change_no_token(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, rollouts = whole(run, greedy=False)
    rows, positions = states(rollouts)
    caches: list[bool] = []
    sample = type(run.actor.sampler).sample

    def spied(self: Any, *args: Any, cache: Any = None, **options: Any) -> Tensor:
        caches.append(cache is not None)
        return sample(self, *args, cache=cache, **options)

    monkeypatch.setattr(type(run.actor.sampler), "sample", spied)
    cached, _ = go_on(run, prompts, rollouts, rows, positions)
    monkeypatch.setattr("segcredit.policy.prefix_cache._keys_and_values", lambda *_: [])
    plain, _ = go_on(run, prompts, rollouts, rows, positions)
    assert caches == [True, False]
    assert torch.equal(cached.ids.where(cached.mask, 0), plain.ids.where(plain.mask, 0))
    assert torch.equal(cached.mask, plain.mask)


def test_prefixes_need_not_be_cached(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    prefixes = PrefixCache.read(run.actor.model.base_model, rollouts, torch.arange(len(prompts)))
    assert len(prefixes.layers) == 2
    bare = PrefixCache(
        prefixes.rows_R, prefixes.ids_RL, prefixes.mask_RL, prefixes.prompt_width, []
    )
    rows, positions = states(rollouts)
    for one, other in zip(
        prefixes.before(rows, positions)[:2], bare.before(rows, positions)[:2], strict=True
    ):
        assert torch.equal(one, other)
    assert bare.before(rows, positions)[2] is None


def test_a_hole_stays_in_the_prefix_and_the_text(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    assert int(rollouts.action_mask.sum(1).amin()) >= 5
    holed = rollouts.action_mask.clone()
    holed[:, 1:3] = False
    rows = torch.arange(len(prompts))
    positions = torch.full_like(rows, 4)
    found, spent = go_on(run, prompts, rollouts.replace(action_mask=holed), rows, positions)
    plain, same = go_on(run, prompts, rollouts, rows, positions)
    assert spent == same
    assert found.texts == plain.texts
    assert torch.equal(found.ids.where(plain.mask, 0), plain.ids.where(plain.mask, 0))
    assert torch.equal(found.node_ids.where(plain.mask, 0), plain.node_ids.where(plain.mask, 0))
    expected = plain.mask.clone()
    expected[:, 1:3] = False
    assert torch.equal(found.mask, expected)


def test_the_limit_counts_the_prefix(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    rows, positions = states(rollouts)
    limit = 9
    short = positions < limit
    rows, positions = rows[short], positions[short]
    found, _ = go_on(run, prompts, rollouts, rows, positions, greedy=False, max_new_tokens=limit)
    (end,) = run.actor.end_ids
    lengths = found.mask.sum(1)
    for n in range(len(rows)):
        ids = tokens(found, n)
        assert end not in ids[:-1]
        assert bool(found.truncated[n]) == (ids[-1] != end)
        assert len(ids) == limit if found.truncated[n] else len(ids) <= limit
    assert set(found.truncated.tolist()) == {True, False}
    assert int(lengths.amax()) == found.ids.shape[1] == limit


@dataclass(frozen=True, slots=True)
class Script(Sampler):
    """A sampler that says the same to every prompt."""

    says: tuple[int, ...]

    def sample(
        self, model: Any, prompt_ids: Tensor, *_: Any, params: SamplingParams, **__: Any
    ) -> SampledTokens:
        return SampledTokens(
            torch.tensor(self.says)[: params.max_new_tokens].repeat(len(prompt_ids), 1)
        )


def test_an_end_on_the_last_token_allowed_is_no_truncation(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rollouts = whole(run, greedy=False)
    (end,) = run.actor.end_ids
    monkeypatch.setattr(run.actor, "sampler", Script((5, 6, end, 7)))
    rows = torch.tensor([0, 1, 2, 3])
    positions = torch.tensor([0, 2, 1, 3])
    made = run.actor.resume(
        rollouts,
        rows,
        positions,
        params=SamplingParams(max_new_tokens=4, greedy=True),
        micro_tokens=LARGE,
        generator=generator(),
    )
    assert made.mask.sum(1).tolist() == [3, 2, 3, 1]
    found = [made.ids[n][made.mask[n]].tolist() for n in range(4)]
    assert found == [[5, 6, end], [5, 6], [5, 6, end], [5]]
    assert made.truncated.tolist() == [False, True, False, True]


def test_nothing_to_continue(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    nowhere = torch.zeros(0, dtype=torch.long)
    found, spent = go_on(run, prompts, rollouts, nowhere, nowhere)
    assert spent == 0
    assert len(found.ids) == len(found.texts) == 0
    simulator = simulate(run, prompts)
    none = simulator.resume(rollouts, nowhere, nowhere, 3)
    assert none.rewards.shape == none.truncated.shape == (0, 3)


def test_a_state_at_the_limit_is_truncated(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=False)
    rows, positions = torch.tensor([0, 1, 2]), torch.tensor([4, 2, 5])
    found, spent = go_on(run, prompts, rollouts, rows, positions, max_new_tokens=4)
    assert found.mask.sum(1).tolist() == [4, int(found.mask[1].sum()), 5]
    assert tokens(found, 0) == tokens(rollouts, 0)[:4]
    assert found.truncated.tolist()[::2] == [True, True]
    assert spent == int(found.mask[1].sum()) - 2
    alone, spent = go_on(run, prompts, rollouts, rows[:1], positions[:1], max_new_tokens=4)
    assert tokens(alone, 0) == tokens(rollouts, 0)[:4]
    assert spent == 0


def test_no_column_is_left_without_a_token(run: Any) -> None:
    prompts, rollouts = whole(run, greedy=True)
    rows, positions = states(rollouts)
    found, _ = go_on(run, prompts, rollouts, rows, positions)
    assert found.mask.any(0).all()


def simulate(run: Any, prompts: Sequence[Prompt], **options: Any) -> PolicySimulator:
    chosen = {
        "policy": run.actor,
        "task": run.task,
        "params": SamplingParams(max_new_tokens=LIMIT),
    } | options
    return PolicySimulator(
        prompts={prompt.key: prompt for prompt in prompts},
        micro_tokens=LARGE,
        generator=generator(4),
        **chosen,
    )


@dataclass(frozen=True, slots=True)
class Length(Task):
    """Rewards the length of a text, so that a reward tells what it was given for."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        return [Prompt(str(number), str(number), None) for number in range(count)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        return []

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(float(len(text) + 100 * int(prompt.key)), False)


def test_the_simulator_answers_state_by_state(run: Any) -> None:
    drawn, rollouts = whole(run, greedy=True)
    prompts = [Prompt(str(row), prompt.text, None) for row, prompt in enumerate(drawn)]
    rollouts = rollouts.replace(prompt_keys=tuple(prompt.key for prompt in prompts))
    simulator = simulate(run, prompts, task=Length())
    likeliest = dataclasses.replace(simulator.params, greedy=True)
    rows, positions = states(rollouts)
    found = simulator.resume(rollouts, rows, positions, 3, params=likeliest)
    expected = [len(rollouts.texts[row]) + 100 * row for row in rows.tolist()]
    assert found.rewards.tolist() == [[number] * 3 for number in expected]
    assert torch.equal(found.truncated, rollouts.truncated[rows][:, None].expand(-1, 3))
    lengths = rollouts.action_mask.sum(1)
    assert found.tokens == simulator.tokens == 3 * int((lengths[rows] - positions).sum())
    simulator.resume(rollouts, rows[:1], positions[:1], 1, params=likeliest)
    assert simulator.tokens == found.tokens + int(lengths[rows[0]] - positions[0])


# How continuations are distributed.


def chi_square(counts: Tensor, shares: Tensor) -> float:
    """Of cells that expect at least five."""
    expected = shares.double() / shares.double().sum() * counts.sum()
    kept = expected >= 5
    assert float(expected[~kept].sum()) < 0.2 * float(expected.sum())
    return float(((counts - expected).square() / expected)[kept].sum())


def test_the_toys_continuations_follow_its_probabilities() -> None:
    policy = ToyPolicy(length=4, prompts=2, seed=3)
    everything = policy.enumerate("1")
    row = 47
    for position in (0, 1, 3):
        count = 20_000
        rows = torch.full((count,), row)
        made = policy.resume(
            everything,
            rows,
            torch.full_like(rows, position),
            params=SamplingParams(max_new_tokens=4),
            micro_tokens=LARGE,
            generator=generator(position),
        )
        assert made.mask.sum(1).eq(4 - position).all()
        assert not made.truncated.any()
        prefix = everything.completion_ids[row, :position].expand(count, -1)
        drawn = torch.cat([prefix, made.ids[:, : 4 - position]], 1)
        numbers = ((drawn - 1) * 3 ** torch.tensor([3, 2, 1, 0])).sum(1)
        like = (everything.completion_ids[:, :position] == prefix[0]).all(1)
        counts = torch.bincount(numbers, minlength=81)
        assert int(counts[~like].sum()) == 0
        cells = int(like.sum())
        shares = everything.logprobs.sum(1).exp()[like]
        # The chance of more than this is one in ten thousand.
        limit = {81: 133.0, 27: 63.2, 3: 18.5}[cells]
        assert chi_square(counts[like], shares) < limit


def test_the_toys_greedy_continuation_is_the_likeliest_symbol() -> None:
    policy = ToyPolicy(length=3, seed=1)
    everything = policy.enumerate()
    rows = torch.arange(27)
    made = policy.resume(
        everything,
        rows,
        torch.full_like(rows, 2),
        params=SamplingParams(max_new_tokens=3, greedy=True),
        micro_tokens=LARGE,
        generator=generator(),
    )
    best = everything.logprobs[:, 2].view(9, 3).argmax(1).repeat_interleave(3) + 1
    assert torch.equal(made.ids[:, 0], best)


def test_sampled_continuations_follow_the_scores(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rollouts = whole(run, greedy=False)
    policy = run.actor
    monkeypatch.setattr(policy, "temperature", 1.7)
    row, position, count = 2, 3, 20_000
    made = policy.resume(
        rollouts,
        torch.full((count,), row),
        torch.full((count,), position),
        params=SamplingParams(max_new_tokens=position + 1),
        micro_tokens=LARGE,
        generator=generator(5),
    )
    vocabulary = policy.model.config.vocab_size
    every = rollouts.select([row] * vocabulary)
    changed = every.completion_ids.clone()
    changed[:, position] = torch.arange(vocabulary)
    with torch.no_grad():
        shares = policy(every.replace(completion_ids=changed)).logprobs[:, position].exp()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    counts = torch.bincount(made.ids[:, 0], minlength=vocabulary)
    assert int(counts[list(policy.suppressed_ids)].sum()) == 0
    # 17 degrees of freedom at most; the chance of more is one in ten thousand.
    assert chi_square(counts, shares) < 46.0
