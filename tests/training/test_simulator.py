"""What estimators may ask for: samples, continuations from any prefix, scores."""

from dataclasses import replace

import pytest
import torch

from segcredit import Verdict, load_config
from segcredit.errors import ShapeError
from segcredit.policy.prefix_cache import PrefixCache
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from small import SMALL


@pytest.fixture(scope="module")
def batch():
    return collect(build(load_config("sapo", [*SMALL, "policy.steps=200"])), 1)


def test_samples_come_in_the_order_of_the_keys(batch):
    simulator = batch.simulator
    keys = list(simulator.prompts)[::-1]
    rollouts = simulator.sample(keys, 3)
    assert rollouts.prompt_keys == tuple(key for key in keys for _ in range(3))
    assert rollouts.group.tolist() == [3 * (row // 3) for row in range(3 * len(keys))]


def test_a_greedy_continuation_of_a_greedy_completion_ends_alike(batch):
    simulator = batch.simulator
    likeliest = replace(simulator.params, greedy=True)
    greedy = simulator.sample(list(simulator.prompts), 1, params=likeliest)
    lengths = greedy.action_mask.sum(1)
    for position in (0, 1, 3):
        rows = (lengths > position).nonzero()[:, 0]
        found = simulator.resume(greedy, rows, torch.full_like(rows, position), 2, params=likeliest)
        assert torch.equal(found.rewards, greedy.rewards[rows][:, None].expand(-1, 2))
        assert torch.equal(found.truncated, greedy.truncated[rows][:, None].expand(-1, 2))
        assert found.tokens == 2 * int((lengths[rows] - position).sum())


def test_states_of_unequal_depth_are_continued_together(batch):
    simulator = batch.simulator
    likeliest = replace(simulator.params, greedy=True)
    greedy = simulator.sample(list(simulator.prompts), 1, params=likeliest)
    rows = torch.tensor([0, 0, 1, 2])
    positions = torch.tensor([0, 4, 2, 1])
    together = simulator.resume(greedy, rows, positions, 1, params=likeliest)
    alone = [
        simulator.resume(greedy, rows[i : i + 1], positions[i : i + 1], 1, params=likeliest)
        for i in range(4)
    ]
    assert torch.equal(together.rewards, torch.cat([one.rewards for one in alone]))
    assert together.tokens == sum(one.tokens for one in alone)


def test_a_prefix_is_the_prompt_and_every_token_before_the_position(batch):
    rollouts, policy = batch.rollouts, batch.simulator.policy
    rows, positions = torch.tensor([3, 0, 3]), torch.tensor([2, 0, 5])
    base = policy.model.base_model
    prefixes = PrefixCache.read(base, rollouts, torch.tensor([0, 3]))
    ids, mask, cache = prefixes.before(rows, positions)
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        expected = torch.cat([prompt, rollouts.completion_ids[row][:position]])
        assert torch.equal(ids[i][mask[i]], expected)
        assert mask[i].tolist() == sorted(mask[i].tolist())
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = base(input_ids=ids, attention_mask=mask.long(), position_ids=places)
        resumed = base(
            input_ids=ids[:, -1:],
            attention_mask=mask.long(),
            position_ids=places[:, -1:],
            past_key_values=cache,
        )
    found, want = resumed.last_hidden_state[:, -1], plain.last_hidden_state[:, -1]
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shown", [True, False])
def test_continuations_are_verified_on_a_text_like_the_completions_own(batch, shown, monkeypatch):
    """A tool's tokens are in both texts or in neither, so that V and R are of one function."""
    rollouts, policy = batch.rollouts, batch.simulator.policy
    holes = rollouts.action_mask.clone()
    holes[:, 1:3] = False
    texts, spans = policy.decode(rollouts.completion_ids, rollouts.action_mask if shown else holes)
    rollouts = rollouts.replace(action_mask=holes, texts=texts, token_spans=spans)
    judged = []

    def verify(task, prompt, text, *, truncated):
        judged.append(text)
        return Verdict(reward=0.0, correct=False)

    monkeypatch.setattr("segcredit.tasks.arithmetic.Arithmetic.verify", verify)
    rows = (holes.sum(1) > 3).nonzero()[:, 0]
    lasts = (holes * torch.arange(holes.shape[1])).amax(1)[rows]
    batch.simulator.resume(rollouts, rows, lasts, 1)
    for row, last, text in zip(rows.tolist(), lasts.tolist(), judged, strict=True):
        before = texts[row][: int(spans[row, last, 0])]
        assert len(before) > 0
        assert text.startswith(before)


def test_a_foreign_prompt_is_refused(batch):
    with pytest.raises(ShapeError, match="not among the 4 prompts of this step"):
        batch.simulator.sample(["1+1"], 1)


def test_scores_are_those_of_sampling(batch):
    scores = replace(batch.simulator, reads=None).score(batch.rollouts)
    torch.testing.assert_close(scores.logprobs, batch.rollouts.logprobs)
