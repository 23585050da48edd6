"""Measured values against enumeration, and against the naive way where nothing can be enumerated.

Copies of a completion are measured at once: each is a measurement of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib

import pytest
import torch

from segcredit.credit_audit.truth import exact_truth, measure
from segcredit.credit_audit.truth.measure import allocation, leaving
from segcredit.episodes import complete, resume
from segcredit.errors import StudyError
from segcredit.policy.causal_lm import _draws
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.testing.toy import ToyPolicy, ToySimulator, toy_reward
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import SamplingParams

COPIES = 400
ROWS = 5
REWARD = functools.cache(toy_reward)


class ToyTask(Task):
    """Verifies by the toy's reward; nobody asks it for prompts."""

    def prompts(self, count, generator):
        raise NotImplementedError

    def evaluation(self, count):
        raise NotImplementedError

    def verify(self, prompt, text, *, truncated):
        return Verdict(reward=REWARD(prompt.key, text), correct=False)


@dataclasses.dataclass(frozen=True)
class Letters(Task):
    """Every text has a reward of its own, and another one where it is truncated."""

    def prompts(self, count, generator):
        return self.evaluation(count)

    def evaluation(self, count):
        return [Prompt(key=text, text=text, answer=None) for text in ["ab", "cc", "a"]][:count]

    def verify(self, prompt, text, *, truncated):
        reward = zlib.crc32(f"{prompt.key}/{text}/{truncated}".encode()) % 97 / 97
        return Verdict(reward=reward, correct=False)

    def demonstrations(self, count, generator):
        return []

    def alphabet(self):
        return "abc "


def toy(sharpness=1.0):
    simulator = ToySimulator(ToyPolicy(prompts=3))
    with torch.no_grad():
        simulator.policy.output.weight *= sharpness
        simulator.policy.output.bias *= sharpness
    return simulator, simulator.sample(["0", "1", "2"], 2).select(range(ROWS))


def prompts_of(rollouts):
    return [Prompt(key=key, text=key, answer=None) for key in rollouts.prompt_keys]


def measured(policy, task, rollouts, copies, *, seed=0, **options):
    """Values and the rest of ``copies`` independent measurements: (copies, ROWS, ...)."""
    repeated = rollouts.select(torch.arange(len(rollouts)).repeat(copies))
    found = measure(
        policy,
        task,
        prompts_of(repeated),
        repeated,
        generator=torch.Generator().manual_seed(seed),
        **{"continuations": 1, "max_new_tokens": 4, "micro_tokens": 10**6, **options},
    )
    parts = (found.values, found.errors, found.jump_errors, found.counts)
    return [x.unflatten(0, (copies, len(rollouts))) for x in parts]


def z_of(samples, expected):
    """Standard errors by which the mean over the first axis is off; 0 where nothing varies."""
    spread = samples.std(0) / math.sqrt(len(samples))
    off = samples.mean(0) - expected
    return torch.where(
        spread > 1e-9, off / spread.clamp(min=1e-9), torch.where(off.abs() < 1e-6, 0.0, 99.0)
    )


def jumps_of(values):
    return values[..., 1:] - values[..., :-1]


# ---- the values


@pytest.fixture(scope="module", params=[0.3, 1, 3], ids=lambda k: f"continuations={k}")
def many(request):
    """Below 1 most states are drawn at by chance; at 3 none is."""
    simulator, rollouts = toy()
    found = measured(
        simulator.policy, ToyTask(), rollouts, COPIES, continuations=request.param, splits=2
    )
    return exact_truth(simulator, rollouts), *found


def test_every_value_is_unbiased(many):
    exact, values, _, _, counts = many
    assert (counts > 0).any()
    z = z_of(values, exact.values)
    assert z.abs().max() < 4.5
    assert 0.3 < z[..., :-1].square().mean() < 2.5
    # Sharp enough to see a bias of a hundredth of the rewards' range.
    assert values.std(0).max() / math.sqrt(COPIES) < 0.02


def test_products_of_splits_are_unbiased_for_squares(many):
    exact, values, *_ = many
    jumps, true = jumps_of(values), jumps_of(exact.values)
    z = z_of(jumps[:, :, 0] * jumps[:, :, 1], true[:, 0] ** 2)
    assert z.abs().max() < 4.5
    z = z_of(values[:, :, 0] * values[:, :, 1], exact.values[:, 0] ** 2)
    assert z.abs().max() < 4.5
    # While the square of one split is not: this is what splits are for.
    alone = jumps[:, :, 0].square().mean() - true.square().mean()
    assert alone > 10 * (jumps[:, :, 0] * jumps[:, :, 1]).mean(0).sub(true[:, 0] ** 2).mean().abs()


def test_errors_are_as_large_as_values_are_off(many):
    exact, values, errors, jump_errors, _ = many
    off = (values - exact.values).square().mean((0, 2))
    ratio = errors.square().mean((0, 2))[:, :-1] / off[:, :-1]
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert (ratio - 1).abs().max() < 0.4
    off = (jumps_of(values) - jumps_of(exact.values)).square().mean((0, 2))
    ratio = jump_errors.square().mean((0, 2)) / off
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert (ratio - 1).abs().max() < 0.4


def test_the_mean_number_of_continuations_is_what_was_asked_for():
    simulator, rollouts = toy()
    for asked in (0.7, 1, 5):
        *_, counts = measured(simulator.policy, ToyTask(), rollouts, 40, continuations=asked)
        assert float(counts.double().mean()) == pytest.approx(asked, rel=0.1)


def test_three_splits_are_three():
    simulator, rollouts = toy()
    values, errors, _, counts = measured(simulator.policy, ToyTask(), rollouts, 100, splits=3)
    assert values.shape[2] == counts.shape[2] == 3
    centred = (values - values.mean(0))[:, :, :, 0]
    correlation = torch.corrcoef(centred.transpose(1, 2).reshape(-1, 3).T)
    assert (correlation - torch.eye(3)).abs().max() < 0.2
    assert torch.equal(errors[:, :, 0], errors[:, :, 2])


# ---- certainty


def test_certain_tokens_cost_nothing_and_move_nothing():
    simulator, rollouts = toy(sharpness=25)
    leave = leaving(rollouts)
    assert 0 < (leave == 0).sum() < leave.numel()
    values, _, jump_errors, counts = measured(simulator.policy, ToyTask(), rollouts, 50)
    certain = (leave == 0)[None, :, None].expand_as(counts)
    assert (counts[certain] == 0).all()
    assert (jumps_of(values)[certain] == 0).all()
    assert (jump_errors[certain] == 0).all()
    exact = exact_truth(simulator, rollouts).values
    assert (values.mean((0, 2)) - exact[:, 0]).abs().max() < 0.02


def test_leaving_is_what_is_left_of_the_probability_or_nothing():
    _, rollouts = toy()
    logprobs = torch.tensor([[-0.5, -2e-6, -5e-7, 0.0]] * ROWS)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], *[[1, 1, 0, 0]] * 3]).bool()
    leave = leaving(rollouts.replace(logprobs=logprobs, action_mask=mask))
    assert leave.dtype == torch.float64
    assert leave[0].tolist() == pytest.approx([1 - math.exp(-0.5), 2e-6, 0, 0], rel=1e-5)
    assert (leave[1] == 0).all()
    assert (leave[2, 2:] == 0).all()


def test_a_policy_that_is_certain_of_everything_costs_no_token():
    simulator, rollouts = toy(sharpness=1e4)
    assert (rollouts.logprobs == 0).all()
    found = measure(
        simulator.policy,
        ToyTask(),
        prompts_of(rollouts),
        rollouts,
        continuations=3,
        max_new_tokens=4,
        micro_tokens=1000,
        generator=torch.Generator(),
    )
    assert found.tokens == 0
    assert torch.equal(found.values, rollouts.rewards.double()[:, None, None].expand(-1, 2, 5))
    assert (found.errors == 0).all()


def test_no_completions_have_no_values():
    simulator, rollouts = toy()
    values, errors, jump_errors, counts = measured(
        simulator.policy, ToyTask(), rollouts.select([]), 0
    )
    assert values.shape[2:] == errors.shape[2:] == (2, 5)
    assert jump_errors.shape[2:] == counts.shape[2:] == (2, 4)


def test_completions_cut_at_the_limit_are_valued_up_to_it():
    """With a limit of 2 the toy's values are those of its first two symbols."""
    simulator, whole = toy()
    short = whole.replace(
        completion_ids=whole.completion_ids[:, :2],
        action_mask=whole.action_mask[:, :2],
        logprobs=whole.logprobs[:, :2],
        entropies=whole.entropies[:, :2],
        token_spans=whole.token_spans[:, :2],
        token_rewards=whole.token_rewards[:, :2],
        node_ids=whole.node_ids[:, :2],
        texts=tuple(text[:2] for text in whole.texts),
        rewards=torch.tensor(
            [toy_reward(k, t[:2]) for k, t in zip(whole.prompt_keys, whole.texts, strict=True)]
        ),
        truncated=torch.ones(len(whole), dtype=torch.bool),
    )
    values, *_ = measured(simulator.policy, ToyTask(), short, COPIES, max_new_tokens=2)
    everything = [simulator.enumerate(key) for key in short.prompt_keys]
    for row, space in enumerate(everything):
        shares = space.logprobs.double().sum(1).exp()
        rewards = torch.tensor([toy_reward(short.prompt_keys[row], t[:2]) for t in space.texts])
        for state in (0, 1):
            fits = (space.completion_ids[:, :state] == short.completion_ids[row, :state]).all(1)
            true = (shares * rewards)[fits].sum() / shares[fits].sum()
            assert z_of(values[:, row, :, state], true).abs().max() < 4.5


# ---- a language model: end tokens, padding, limits


@pytest.fixture(scope="module")
def tiny():
    """An untrained model: completions of unequal lengths, some of them truncated."""
    policy = Tiny(steps=0, initializer_range=0.2).load(
        Letters(), Generate(), temperature=0.8, seed=3
    )
    prompts = [prompt for prompt in Letters().evaluation(3) for _ in range(4)]
    completions = complete(
        policy,
        Letters(),
        prompts,
        params=SamplingParams(max_new_tokens=5),
        generator=torch.Generator().manual_seed(3),
    )
    return policy, as_rollouts(completions, policy, micro_tokens=1000)


def naive(policy, rollouts, count):
    """(B,E) values and standard errors, every state continued anew; NaN beyond the end."""
    lengths = rollouts.action_mask.sum(1)
    values = torch.full((len(rollouts), rollouts.action_mask.shape[1] + 1), torch.nan)
    errors = values.clone()
    for row in range(len(rollouts)):
        n = int(lengths[row])
        places = torch.arange(n).repeat_interleave(count)
        rows = torch.full_like(places, row)
        found, _ = resume(
            policy,
            Letters(),
            [prompts_of(rollouts)[row]] * len(rows),
            rollouts,
            rows,
            places,
            params=SamplingParams(max_new_tokens=5),
            micro_tokens=10**5,
            generator=torch.Generator().manual_seed(row),
        )
        rewards = found.rewards.view(n, count)
        values[row, :n], errors[row, :n] = rewards.mean(1), rewards.std(1) / math.sqrt(count)
        values[row, n], errors[row, n] = rollouts.rewards[row], 0
    return values.double(), errors.double()


def test_ragged_completions_of_a_language_model_agree_with_the_naive_way(tiny):
    policy, rollouts = tiny
    lengths = rollouts.action_mask.sum(1)
    assert len(set(lengths.tolist())) > 2
    assert 0 < int(rollouts.truncated.sum()) < len(rollouts)
    values, errors, jump_errors, counts = measured(
        policy, Letters(), rollouts, 40, continuations=1, max_new_tokens=5
    )
    expected, off = naive(policy, rollouts, 500)
    there = torch.arange(6) <= lengths[:, None]
    for x in (values, errors):
        assert torch.equal(x.isnan(), ~there[None, :, None].expand_as(x))
    assert torch.equal(jump_errors.isnan(), ~there[None, :, None, 1:].expand_as(jump_errors))
    assert (counts[~there[None, :, None, 1:].expand_as(counts)] == 0).all()
    mean = values.mean((0, 2))
    z = (mean - expected) / (values.var((0, 2)) / 80 + off**2).sqrt().clamp(min=1e-9)
    assert z[there].abs().max() < 4.5
    assert torch.equal(mean.gather(1, lengths[:, None])[:, 0], rollouts.rewards.double())


def test_micro_tokens_changes_no_statistic(tiny):
    policy, rollouts = tiny
    found = [
        measured(policy, Letters(), rollouts, 40, max_new_tokens=5, micro_tokens=size, seed=seed)[0]
        for seed, size in enumerate((400, 10**6))
    ]
    one, other = (values.mean(2).nan_to_num(0) for values in found)
    spread = ((one.var(0) + other.var(0)) / 40).sqrt()
    z = (one.mean(0) - other.mean(0)) / spread.clamp(min=1e-6)
    assert z.abs().max() < 4.5


def test_alternatives_follow_the_distribution_without_the_token_that_is_there(tiny):
    policy, rollouts = tiny
    counts = rollouts.action_mask.long() * 400
    counts[1] = 0
    counts[0, 0] = 1
    drawn = policy.alternatives(
        rollouts, counts, micro_tokens=60, generator=torch.Generator().manual_seed(5)
    )
    assert len(drawn) == counts.sum()
    assert not torch.isin(drawn, torch.tensor(policy.suppressed_ids)).any()
    taken = rollouts.completion_ids[counts > 0].repeat_interleave(counts[counts > 0])
    assert (drawn != taken).all()
    assert torch.isin(drawn, torch.tensor(policy.end_ids)).any()
    # The probability of every token, by scoring it in the place of the one that is there.
    statistic, degrees = 0.0, 0
    pieces = drawn.split(counts[counts > 0].tolist())
    for (row, place), piece in zip((counts > 0).nonzero().tolist(), pieces, strict=True):
        if len(piece) < 400:
            continue
        shares = shares_at(policy, rollouts, row, place)
        shares[rollouts.completion_ids[row, place]] = 0
        expected = 400 * shares / shares.sum()
        found = torch.bincount(piece, minlength=len(shares)).double()
        some = expected > 0
        statistic += float(((found - expected)[some] ** 2 / expected[some]).sum())
        degrees += int(some.sum()) - 1
    assert degrees > 40
    assert abs(statistic - degrees) < 4 * math.sqrt(2 * degrees)


def test_logit_gradients_are_those_of_autograd_by_the_logits(tiny):
    """Row by row without padding, through log_softmax of the logits that are sampled from."""
    policy, rollouts = tiny
    row = int(rollouts.action_mask.sum(1).argmax())
    mask = rollouts.action_mask.clone()
    mask[row, 1] = False  # an environment's answer: read, and not the policy's
    some = rollouts.replace(action_mask=mask)
    found = policy.logit_gradients(some, micro_tokens=60)
    assert not found.requires_grad
    assert not found[~mask].any()
    assert float(found.max()) > 0.1
    for row in range(len(some)):
        prompt = some.prompt_ids[row][some.prompt_mask[row]]
        ids = torch.cat([prompt, some.completion_ids[row]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids[None]).logits[0] / policy.temperature
        logits[:, list(policy.suppressed_ids)] = -torch.inf
        for t in mask[row].nonzero()[:, 0].tolist():
            at = logits[len(prompt) + t - 1].clone().requires_grad_()
            torch.log_softmax(at, 0)[ids[len(prompt) + t]].backward()
            expected = float(at.grad.nan_to_num().square().sum())
            assert float(found[row, t]) == pytest.approx(expected, abs=1e-5)
    empty = policy.logit_gradients(some.replace(action_mask=mask & False), micro_tokens=60)
    assert not empty.any()


def test_the_smallest_chance_draws_nothing_impossible(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 0.0).double())
    shares = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 0.1]])
    assert _draws(shares, torch.tensor([2, 1]), torch.Generator()).tolist() == [1, 1, 2]


def shares_at(policy, rollouts, row, place):
    size = policy.model.config.vocab_size
    copies = rollouts.select([row] * size)
    ids = copies.completion_ids.clone()
    ids[:, place] = torch.arange(size)
    with torch.no_grad():
        return policy(copies.replace(completion_ids=ids)).logprobs[:, place].double().exp()


def test_the_toys_alternatives_follow_its_distribution():
    simulator, rollouts = toy()
    counts = torch.full((ROWS, 4), 500)
    drawn = simulator.policy.alternatives(
        rollouts, counts, micro_tokens=1, generator=torch.Generator().manual_seed(1)
    ).view(ROWS, 4, 500)
    assert (drawn != rollouts.completion_ids[..., None]).all()
    for symbol in (1, 2, 3):
        ids = torch.where(rollouts.completion_ids == symbol, 0, symbol)
        shares = torch.zeros(ROWS, 4)
        for t in range(4):
            changed = rollouts.completion_ids.clone()
            changed[:, t] = symbol
            with torch.no_grad():
                scores = simulator.policy(rollouts.replace(completion_ids=changed))
            shares[:, t] = scores.logprobs[:, t].exp()
        expected = torch.where(ids > 0, shares / (1 - rollouts.logprobs.exp()), 0.0)
        found = (drawn == symbol).float().mean(2)
        assert (found - expected).abs().max() < 5 * 0.5 / math.sqrt(500)


def test_an_end_token_instead_ends_the_completion_there(tiny):
    policy, rollouts = tiny
    lengths = rollouts.action_mask.sum(1)
    rows = (lengths > 2).nonzero()[:2, 0]
    found, tokens = resume(
        policy,
        Letters(),
        [prompts_of(rollouts)[int(row)] for row in rows],
        rollouts,
        rows,
        torch.tensor([2, 2]),
        params=SamplingParams(max_new_tokens=5),
        micro_tokens=1000,
        generator=torch.Generator(),
        instead_N=torch.tensor([policy.end_ids[0]] * 2),
    )
    assert tokens == 0
    assert not found.truncated.any()
    assert found.texts == tuple(rollouts.texts[int(row)][:1] for row in rows)
    assert found.mask.sum(1).tolist() == [2, 2]


def test_another_last_token_at_the_limit_is_truncated(tiny):
    policy, rollouts = tiny
    row = int(rollouts.truncated.nonzero()[0])
    other = next(i for i in (3, 4) if i != rollouts.completion_ids[row, 4])
    for token, cut in ((other, True), (policy.end_ids[0], False)):
        found, tokens = resume(
            policy,
            Letters(),
            [prompts_of(rollouts)[row]],
            rollouts,
            torch.tensor([row]),
            torch.tensor([5]),
            params=SamplingParams(max_new_tokens=5),
            micro_tokens=1000,
            generator=torch.Generator(),
            instead_N=torch.tensor([token]),
        )
        assert (tokens, found.truncated.tolist()) == (0, [cut])


# ---- the allocation


def test_the_allocation_is_the_best_for_its_cost():
    """No other spread of as many tokens makes the expected squared error of V smaller.

    The error is that of an obvious recursion, with continuations of variance 1.
    """
    generator = torch.Generator().manual_seed(0)
    leave = torch.rand(3, 6, generator=generator, dtype=torch.float64) * 0.6 + 0.2
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    leave = leave * mask
    wanted = allocation(leave, mask, 10**6)[mask]
    left = (mask.sum(1, keepdim=True) - torch.arange(6)).double()[mask]

    def error(counts_N):
        counts = torch.ones(3, 6, dtype=torch.float64).masked_scatter(mask, counts_N)
        variance, total = torch.zeros(3, dtype=torch.float64), 0.0
        for t in reversed(range(6)):
            variance = (1 - leave[:, t]) ** 2 * variance + leave[:, t] ** 2 / counts[:, t]
            total += float(variance[mask[:, t]].sum())
        return total

    # A token more buys the same everywhere: nothing is gained by moving one.
    gains = []
    for place in range(len(wanted)):
        more = wanted.clone()
        more[place] *= 1 + 1e-4
        gains.append((error(wanted) - error(more)) / float((more - wanted)[place] * left[place]))
    assert [gain / gains[0] for gain in gains] == pytest.approx([1] * len(gains), rel=1e-3)


def test_the_allocation_reads_nothing_but_probabilities_and_lengths():
    simulator, rollouts = toy()
    turned = rollouts.replace(rewards=1 - rollouts.rewards)
    counts = [
        measured(simulator.policy, ToyTask(), x, 3, continuations=8)[3] for x in (rollouts, turned)
    ]
    assert torch.equal(*counts)


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"continuations": 0}, "continuations are 0"),
        ({}, {"continuations": math.nan}, "continuations are nan"),
        ({}, {"splits": 1}, "splits 1"),
        ({}, {"max_new_tokens": 3}, "max_new_tokens is 3"),
        ({"truncated": torch.ones(ROWS, dtype=torch.bool)}, {"max_new_tokens": 9}, "another limit"),
        ({"action_mask": torch.tensor([[1, 0, 1, 1]] * ROWS).bool()}, {}, "did not choose"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(changes, options, words):
    simulator, rollouts = toy()
    with pytest.raises(StudyError, match=words):
        measured(simulator.policy, ToyTask(), rollouts.replace(**changes), 1, **options)
