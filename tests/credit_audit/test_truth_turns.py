"""Audits of several turns: values against enumeration, what is stored of them, metrics by turn."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import segcredit
from segcredit import registry
from segcredit.credit_audit import audit, compare_credits, load_audit, load_audit_config
from segcredit.credit_audit.metric_list import METRICS
from segcredit.credit_audit.metrics import share_within
from segcredit.credit_audit.metrics.arrays import moved_left
from segcredit.credit_audit.table import JUDGES, arrays
from segcredit.credit_audit.truth import load_truth, measure, measure_truth
from segcredit.episodes import complete
from segcredit.errors import StudyError
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.protocols import Environment, Prompt, Task, Transition, Verdict
from segcredit.study.report import write_report
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import SamplingParams
from small import SMALL

COPIES = 300


def number(*said: object) -> float:
    return zlib.crc32(repr(said).encode()) % 97 / 97


@dataclass(frozen=True)
class Two(Environment):
    """Two turns of two letters at most; ``b`` first ends the episode, ``a`` alone is not answered.

    Every turn has a reward of its own, and so has what the task says where the turns ran out.
    """

    max_turns = 2
    stop = (".",)
    turn_tokens = 2

    def start(self, prompt: Prompt) -> tuple[Any, str]:
        return (prompt.key,), "."

    def step(self, state: Any, text: str) -> Transition:
        said = (*state, text)
        observation = "" if text == "a." else "ab"[len(text) % 2] + ";"
        done = text.startswith("b")
        return Transition(
            state=said,
            observation=observation,
            reward=number("reward", *said),
            done=done,
            correct=done or None,
        )


@dataclass(frozen=True)
class Turns(Task):
    def environment(self) -> Environment:
        return Two()

    def prompts(self, count: int, generator: torch.Generator) -> list[Prompt]:
        return self.evaluation(count)

    def evaluation(self, count: int) -> list[Prompt]:
        return [Prompt(key=text, text=text, answer=None) for text in "ab"][:count]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(number("verdict", prompt.key, text, truncated), False)

    def alphabet(self) -> str:
        return "ab.;"


@pytest.fixture(scope="module")
def policy():
    loaded = Tiny(steps=0, initializer_range=0.2).load(Turns(), Generate(), temperature=0.8, seed=1)
    loaded.requires_grad_(False)
    return loaded


def every_episode(policy, prompt, limit):
    """Every episode of a prompt by its token ids: the reward, and each sampled token's place.

    Written from the rules of episodes, without their code: no resuming, no replay.
    """
    tokens = [t for t in range(policy.model.config.vocab_size) if t not in policy.suppressed_ids]
    letters = {t: policy.decode(torch.tensor([[t]]), torch.tensor([[True]]))[0][0] for t in tokens}
    world, found = Two(), {}

    def turns(room):
        for first in tokens:
            if letters[first] in ("", ".") or room == 1:
                yield [first]
            else:
                yield from ([first, second] for second in tokens)

    def play(ids, own, state, count, earned):
        for turn in turns(min(world.turn_tokens, limit - len(ids))):
            text = "".join(letters[t] for t in turn)
            said, mine = [*ids, *turn], [*own, *range(len(ids), len(ids) + len(turn))]
            ended = letters[turn[-1]] in ("", ".")
            if not ended and len(said) >= limit:
                found[tuple(said)] = earned + judged(text), mine
                continue
            answer = world.step(state, text)
            total = earned + answer.reward
            if answer.done:
                found[tuple(said)] = total, mine
                continue
            read = policy.encode_observations([prompt], [answer.observation], turn[-1:])[0]
            if count + 1 == world.max_turns or len(said) + len(read) >= limit:
                found[tuple(said)] = total + judged(text), mine
            else:
                play([*said, *read], mine, answer.state, count + 1, total)

    def judged(text):
        return Turns().verify(prompt, text, truncated=True).reward

    play([], [], world.start(prompt)[0], 0, 0.0)
    return found


def true_values(policy, prompt, limit):
    """Probability-weighted mean reward of every prefix of every episode, by its token ids."""
    start = policy.encode_prompts([Prompt(prompt.key, prompt.text + ".", None)])
    start = start[0][0][start[1][0]]
    mass, paid = dict[tuple[int, ...], float](), dict[tuple[int, ...], float]()
    for ids, (reward, own) in every_episode(policy, prompt, limit).items():
        whole = torch.cat([start, torch.tensor(ids)])
        with torch.no_grad():
            logits_TV = policy.model(input_ids=whole[None]).logits[0].double() / 0.8
        logits_TV[:, list(policy.suppressed_ids)] = -torch.inf
        shares_TV = torch.softmax(logits_TV, 1)
        chance = math.prod(float(shares_TV[len(start) + t - 1, ids[t]]) for t in own)
        for length in range(len(ids) + 1):
            mass[ids[:length]] = mass.get(ids[:length], 0.0) + chance
            paid[ids[:length]] = paid.get(ids[:length], 0.0) + chance * reward
    assert mass[()] == pytest.approx(1, abs=1e-6)
    return {prefix: paid[prefix] / mass[prefix] for prefix in mass}


def sampled(policy, limit, each=5):
    prompts = [prompt for prompt in Turns().evaluation(2) for _ in range(each)]
    completions = complete(
        policy,
        Turns(),
        prompts,
        params=SamplingParams(max_new_tokens=limit),
        generator=torch.Generator().manual_seed(limit),
    )
    return prompts, as_rollouts(completions, policy, micro_tokens=1000)


def valued(policy, prompts, rollouts, limit, copies=1, **options):
    rows = torch.arange(len(rollouts)).repeat(copies)
    return measure(
        policy,
        Turns(),
        [prompts[row] for row in rows.tolist()],
        rollouts.select(rows),
        **{"continuations": 1.0, **options},
        max_new_tokens=limit,
        micro_tokens=10**6,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("limit", [9, 4], ids=["room", "cut"])
def test_every_value_is_that_of_an_enumeration(policy, limit):
    """With a limit of 4, turns and observations run into it."""
    prompts, rollouts = sampled(policy, limit)
    mask = rollouts.action_mask
    assert (mask[:, 1:] & ~mask[:, :-1]).any()
    expected = torch.full((len(rollouts), mask.shape[1] + 1), torch.nan, dtype=torch.float64)
    for row, prompt in enumerate(prompts):
        true = true_values(policy, prompt, limit)
        length = int(mask[row].nonzero().max()) + 1
        ids = tuple(rollouts.completion_ids[row, :length].tolist())
        expected[row, : length + 1] = torch.tensor([true[ids[:t]] for t in range(length + 1)])
        assert true[ids] == pytest.approx(float(rollouts.rewards[row]), abs=1e-6)
    found = valued(policy, prompts, rollouts, limit, COPIES)
    values = found.values.unflatten(0, (COPIES, len(rollouts)))
    there = ~expected.isnan()
    assert torch.equal(values.isnan(), ~there[None, :, None].expand_as(values))
    spread = values.std(0) / math.sqrt(COPIES)
    z = (values.mean(0) - expected[:, None]) / spread.clamp(min=1e-7)
    z = z[there[:, None].expand_as(z)]
    noisy = spread[there[:, None].expand_as(spread)] > 1e-6
    assert z.abs().max() < 4.5
    assert 0.4 < z[noisy].square().mean() < 2
    assert spread[there[:, None].expand_as(spread)].max() < 0.02
    off = (values - expected[:, None]).square().mean((0, 2))[there]
    told = found.errors.unflatten(0, (COPIES, len(rollouts))).square().mean((0, 2))[there]
    assert (told / off.clamp(min=1e-12))[off > 1e-6].mean() == pytest.approx(1, abs=0.15)
    # An observation can neither be left nor move the value.
    holes = ~mask & there[:, 1:]
    assert holes.any()
    counts = found.counts.unflatten(0, (COPIES, len(rollouts)))
    assert (counts[holes[None, :, None].expand_as(counts)] == 0).all()
    jumps = values.diff(dim=3)
    assert (jumps[holes[None, :, None].expand_as(jumps)] == 0).all()


def test_a_hole_without_turns_is_refused(policy):
    prompts, rollouts = sampled(policy, 9)
    with pytest.raises(StudyError, match="without turn_ids has tokens that the policy did not"):
        valued(policy, prompts, rollouts.replace(turn_ids=None), 9)
    with pytest.raises(StudyError, match="max_new_tokens is 3"):
        valued(policy, prompts, rollouts, 3)


def test_tokens_are_moved_to_the_left_over_holes():
    mask = np.array([[True, False, True, True], [False, True, False, False], [True] * 4])
    x = np.arange(12.0).reshape(3, 4)
    moved = moved_left(x, mask, -1)
    assert moved.tolist() == [[0, 2, 3, -1], [5, -1, -1, -1], [8, 9, 10, 11]]
    both = moved_left(np.stack([x, 2 * x], 1), mask, -1)
    assert (both[:, 0] == moved).all()
    assert both[0, 1].tolist() == [0, 4, 6, -1]
    assert moved_left(x, mask[2:].repeat(3, 0), -1) is x


# ---- an audit

GRID = [
    *SMALL,
    'task={name="grid_world", columns=3, rows=3, max_distance=4, key_reward=0.5}',
    "policy.steps=60",
    "rollouts.max_new_tokens=40",
    "audit.prompts=6",
    "audit.completions=3",
    "audit.continuations=0.5",
    "audit.training_steps=1",
    "audit.gradient_samples=24",
    "audit.gradient_batches=3",
    "audit.resamples=50",
    'audit.segmenters=["turns", "whole", "per_token", "entropy"]',
    'audit.estimators=["measured", "critic"]',
    'audit.advantages=["td"]',
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return audit(load_audit_config("sapo", GRID), tmp_path_factory.mktemp("audit") / "out")


def test_what_is_stored_rebuilds_the_rollouts(done):
    truth = load_truth(done / "truth")
    rollouts, mask = truth.rollouts, truth.rollouts.action_mask
    assert torch.equal(rollouts.turn_ids >= 0, mask)
    assert (mask[:, 1:] & ~mask[:, :-1]).any()
    assert (rollouts.anchor_ids[rollouts.turn_ids == 0] == 0).all()
    assert len(rollouts.anchor_ids.unique()) > 3
    assert rollouts.token_rewards.sum(1) == pytest.approx(rollouts.rewards.numpy(), abs=1e-6)
    fetched = rollouts.token_rewards == 0.5
    assert fetched.any()
    # Only what the next token's value counts as earned is behind the key.
    row, place = fetched.nonzero()[0].tolist()
    assert truth.earned[row, : place + 1].sum() == 0
    assert (truth.earned[row, place + 1 :] >= 0.5).all()
    text = rollouts.texts[row]
    first, last = rollouts.token_spans[row, place].tolist()
    assert text[first:last] in "udlr"
    assert "k;" in text[last:]


def test_what_is_sampled_for_credit_is_told_what_the_task_says(tmp_path):
    """Its answers hold tuples, of which JSON makes lists: no door is a list."""
    config = load_audit_config("sapo", GRID).run
    sizes = {"prompts": 3, "completions": 1, "continuations": 0.5}
    expected = list(registry.tasks.from_table(config.task).evaluation(3))
    assert load_truth(measure_truth(config, tmp_path, **sizes).path).prompts != expected
    assert measure_truth(config, tmp_path, **sizes).prompts == expected


def test_metrics_see_sampled_tokens_alone(done):
    found = load_audit(done)
    rollouts = found.truth.rollouts
    judge = arrays(found.truth, found.resampling).keep(JUDGES)
    assert judge.lengths.tolist() == rollouts.action_mask.sum(1).tolist()
    for row in range(len(rollouts)):
        places = rollouts.action_mask[row].nonzero()[:, 0]
        states = [*places.tolist(), int(places[-1]) + 1]
        values = found.truth.values[row, list(JUDGES)][:, states].numpy()
        assert (judge.values[row, :, : len(states)] == values).all()
        assert np.isnan(judge.values[row, :, len(states) :]).all()
        assert (
            judge.scores.logprobs[row, : len(places)] == rollouts.logprobs[row, places].numpy()
        ).all()
        for one in found.credits:
            credit = one.of("td")
            assert (
                credit.advantages[row, : len(places)] == one.advantages["td"][row, places]
            ).all()
            assert (credit.segment_ids[row, len(places) :] == -1).all()
    by_name = {(one.segmenter, one.estimator): one for one in found.credits}
    assert share_within(judge, by_name["per_token", "measured"].sampled_ids).value == pytest.approx(
        0, abs=1e-9
    )
    assert by_name["per_token", "critic"].by_token
    assert by_name["turns", "critic"].by_token  # a turn is one letter here
    assert not by_name["whole", "critic"].by_token
    assert len(compare_credits(found, "share_within", "")) == 6


def test_td_of_measured_values_is_the_change_of_the_value_over_each_turn(done):
    """The reward of a turn is counted once, though it is paid in the middle."""
    found = load_audit(done)
    credit = next(
        one for one in found.credits if (one.segmenter, one.estimator) == ("turns", "measured")
    )
    rollouts, values = found.truth.rollouts, found.truth.values[:, 0].numpy()
    assert (credit.segment_ids == rollouts.turn_ids.numpy()).all()
    for row, ids_T in enumerate(credit.segment_ids):
        for turn in range(ids_T.max() + 1):
            places = np.flatnonzero(ids_T == turn)
            gain = values[row, places[-1] + 1] - values[row, places[0]]
            given = credit.advantages["td"][row, places]
            assert given == pytest.approx(gain, abs=1e-5)
    # So that values are judged as what is still to come, too.
    judge = arrays(found.truth, found.resampling).keep(JUDGES)
    assert judge.earned.max() == 0.5
    where = {"segmenter": "turns", "estimator": "measured", "metric": "bias", "at": "tokens"}
    assert abs(estimates(done, **where).iloc[0].value) < 0.1


def estimates(path, **where):
    found = segcredit.read_runs(path).audit
    for column, value in where.items():
        found = found[found[column] == value]
    return found


def test_the_movement_of_the_value_by_turn(done):
    found = load_audit(done)
    judge = arrays(found.truth, found.resampling).keep(JUDGES)
    turns = found.truth.rollouts.turn_ids
    mask = found.truth.rollouts.action_mask
    jumps = found.truth.values[:, list(JUDGES)].diff(dim=2).nan_to_num(0)
    squares = jumps[:, 0] * jumps[:, 1]
    shares = estimates(done, metric="turn_share")
    assert shares["at"].tolist() == [str(n) for n in range(1, int(turns.max()) + 2)]
    assert shares["value"].sum() == pytest.approx(1)
    assert shares["low"].notna().any()
    for at, value in zip(shares["at"], shares["value"], strict=True):
        inside = turns == int(at) - 1
        assert value == pytest.approx(float(squares[inside].sum() / squares[mask].sum()))
        ratio = estimates(done, metric="turn_ratio", at=at)["value"].item()
        assert ratio == pytest.approx(value / float(inside.sum() / mask.sum()))
        moved = estimates(done, metric="turn_movement", at=at)["value"].item()
        assert moved == pytest.approx(float(squares[inside].sum() / inside.any(1).sum()))
    count = estimates(done, metric="turns")["value"].item()
    assert count == pytest.approx(float((turns.amax(1) + 1).float().mean()))
    assert judge.mask.sum() == mask.sum()


def test_the_table_of_metrics_is_what_an_audit_of_turns_measures(done):
    table = segcredit.read_runs(done).audit
    measured = set(table[["section", "metric"]].itertuples(index=False, name=None))
    assert measured == {(one.section, one.name) for one in METRICS}


def test_an_audit_of_turns_again_keeps_what_is_there(done):
    files = [*done.glob("credits/*"), *done.glob("truth/**/*.parquet")]
    before = [file.stat().st_mtime_ns for file in files]
    audit(load_audit_config("sapo", GRID), done)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_the_report_says_in_which_turns_the_value_moves(done, tmp_path):
    page = write_report(done, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A row a turn" in page
    assert "over share of tokens" in page
