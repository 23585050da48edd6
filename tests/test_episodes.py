"""Episodes of several turns: by hand with a sampler that says what it is told, and at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from segcredit import episodes
from segcredit.episodes import Completions, complete, demonstrated, join, resume
from segcredit.errors import PolicyError, TaskError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.policy.tiny.warm_start import END
from segcredit.protocols import (
    Environment,
    Prompt,
    Sampler,
    Task,
    Transition,
    Verdict,
    checked_segments,
)
from segcredit.tasks.grid_world import GridWorld
from segcredit.tasks.pointer import Pointer
from segcredit.training.distributed.all_gather import join_rows
from segcredit.training.rollouts.completions import as_rollouts, score, unscored_rollouts
from segcredit.types import RolloutBatch, SampledTokens, SamplingParams, turn_starts
from segmenters.entropy import Entropy
from segmenters.newline import Newline
from segmenters.per_token import PerToken
from segmenters.turns import Turns
from segmenters.whole import Whole

LETTERS = "abcdefgh.;!?:"


@dataclass(frozen=True)
class Counts(Environment):
    """Answers every turn by the number of turns so far, as letters; ends with ``!``."""

    max_turns: int = 4
    stop: tuple[str, ...] = (".",)
    turn_tokens: int | None = None
    workers: int = 1
    silent: bool = False
    judges: bool = True
    opening: str = ""

    def start(self, prompt: Prompt) -> tuple[Any, str]:
        return (0, prompt.key), self.opening

    def step(self, state: Any, text: str) -> Transition:
        turns, key = state
        if "raise" in key:
            raise RuntimeError("the server is down")
        done = "!" in text
        return Transition(
            state=(turns + 1, key),
            observation="" if self.silent else "abcdefgh"[turns] + ";",
            reward=0.25 * (turns + 1),
            done=done,
            anchor=f"{turns}",
            correct=None if self.judges else done,
        )


@dataclass(frozen=True)
class Counting(Task):
    """Reward 1 to a last turn that has an ``h`` and was not cut."""

    world: Environment = Counts()

    def environment(self) -> Environment:
        return self.world

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        return [Prompt(f"p{i}", "abcd"[i % 4] + ":", None) for i in range(count)]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        return [Prompt(f"e{i}", "efgh"[i % 4] + ":", None) for i in range(count)]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        right = "h" in text and not truncated
        return Verdict(float(right), right, answer=text)

    def alphabet(self) -> str:
        return LETTERS


@dataclass(frozen=True)
class Says(Sampler):
    """Says what it is told to after each text; ``$`` is the end token."""

    script: Mapping[str, str]

    def sample(
        self, model, prompt_ids, prompt_mask, *, params, pad_id, generator, cache=None, inputs=None
    ) -> SampledTokens:
        names = {3 + n: letter for n, letter in enumerate(LETTERS)} | {END: "$"}
        ids_of = {letter: n for n, letter in names.items()}
        rows: list[list[int]] = []
        for ids, mask in zip(prompt_ids.tolist(), prompt_mask.tolist(), strict=True):
            kept = [token for token, keep in zip(ids, mask, strict=True) if keep]
            text = "".join(names.get(token, "") for token in kept)
            said = self.script[text][: params.max_new_tokens]
            rows.append([ids_of[letter] for letter in said])
        width = max(map(len, rows))
        # What follows a row's end is ignored: here it is one letter, over and over.
        ids = torch.tensor([[*row, *[3] * (width - len(row))] for row in rows])
        return SampledTokens(ids, torch.full(ids.shape, -0.5))


def policy_that(says: Mapping[str, str]) -> CausalPolicy:
    return replaced(Tiny(steps=0).load(Counting(), Generate(), temperature=1.0, seed=0), Says(says))


def replaced(policy: Any, sampler: Sampler) -> CausalPolicy:
    policy.sampler = sampler
    return policy


def params(limit: int = 24, **more: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=limit, **more)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def played(
    says: Mapping[str, str], world: Environment = Counts(), limit: int = 24, **more: Any
) -> Completions:
    prompt = Prompt("p", "a:", None)
    return complete(
        policy_that(says),
        Counting(world),
        [prompt],
        params=params(limit, **more),
        generator=generator(),
    )


def row(found: Completions, name: str, number: int = 0) -> list[Any]:
    return getattr(found, name)[number].tolist()


def test_an_episode_by_hand() -> None:
    found = played({"a:": "bc.", "a:bc.a;": "d.", "a:bc.a;d.b;": "h!$"})
    assert found.texts == ("bc.a;d.b;h!",)
    assert row(found, "mask") == [True] * 3 + [False] * 2 + [True] * 2 + [False] * 2 + [True] * 3
    assert row(found, "turn_ids") == [0, 0, 0, -1, -1, 1, 1, -1, -1, 2, 2, 2]
    assert row(found, "turn_rewards") == [0, 0, 0.25, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.75]
    # The verifier judges the last turn's text alone, and its reward comes on top.
    assert found.verdicts == (Verdict(2.5, True, answer="h!"),)
    assert row(found, "sampler_logprobs") == [-0.5 * keep for keep in row(found, "mask")]
    assert not found.truncated.any()
    rollouts = unscored_rollouts(found)
    assert rollouts.token_rewards.tolist() == [[0, 0, 0.25, 0, 0, 0, 0.5, 0, 0, 0, 0, 1.75]]
    assert rollouts.token_rewards.sum() == rollouts.rewards.sum() == 2.5
    anchors = row(found, "anchor_ids")
    assert anchors[:5] == [0, 0, 0, -1, -1]
    assert len({*anchors}) == 4


def test_a_turn_may_end_with_an_end_token_and_the_next_begins_after_it() -> None:
    found = played({"a:": "bc$", "a:bc$a;": "!$"})
    assert found.texts == ("bca;!",)
    assert row(found, "turn_ids") == [0, 0, 0, -1, -1, 1, 1]
    assert row(found, "ids")[2] == END


def test_two_turns_with_nothing_between_them_are_two() -> None:
    found = played({"a:": "b.", "a:b.": "c.", "a:b.c.": "!."}, Counts(silent=True))
    assert found.texts == ("b.c.!.",)
    assert row(found, "turn_ids") == [0, 0, 1, 1, 2, 2]
    assert row(found, "mask") == [True] * 6
    rollouts = unscored_rollouts(found)
    cuts = checked_segments(Turns(), "turns", rollouts)
    assert cuts.segment_ids.tolist() == [[0, 0, 1, 1, 2, 2]]
    # A rule that knows nothing of turns is cut at them as well; one segment alone spans them.
    assert checked_segments(Newline(), "newline", rollouts).segment_ids.tolist() == [
        [0, 0, 1, 1, 2, 2]
    ]
    assert checked_segments(Whole(), "whole", rollouts).counts.tolist() == [1]


def test_a_stop_string_does_not_reach_over_a_turn() -> None:
    world = Counts(stop=("ab", "."), silent=True)
    found = played(
        {
            "a:": "ca.",
            "a:ca.": "b!.",
        },
        world,
    )
    assert found.texts == ("ca.b!.",)
    # Two turns that together show the string: "ca" ends by its own limit.
    world = Counts(stop=("ab",), silent=True, turn_tokens=2)
    found = played({"a:": "caa", "a:ca": "b!$"}, world)
    assert found.texts == ("cab!",)
    assert row(found, "turn_ids") == [0, 0, 1, 1]


def test_limits_of_turns_and_of_tokens() -> None:
    says = {"a:": "b.", "a:b.a;": "c.", "a:b.a;c.b;": "h.", "a:b.a;c.b;h.c;": "!."}
    at_turns = played(says, Counts(max_turns=3))
    assert at_turns.texts == ("b.a;c.b;h.",)
    assert at_turns.truncated.tolist() == [True]
    # An episode that is not done is a cut one: of its last turn nothing is right.
    assert at_turns.verdicts[0] == Verdict(1.5, False, answer="h.")
    for limit, text, rewards in (
        (24, "b.a;c.b;h.c;!.", 2.5),
        (13, "b.a;c.b;h.c;!", 1.5),  # the last turn is cut: the environment never sees it
        (12, "b.a;c.b;h.", 1.5),  # no room behind the observation: it is left out
        (11, "b.a;c.b;h.", 1.5),
        (10, "b.a;c.b;h.", 1.5),
        (9, "b.a;c.b;h", 0.75),
        (1, "b", 0.0),
    ):
        found = played(says, limit=limit)
        assert found.texts == (text,), limit
        assert found.truncated.tolist() == [limit < 24]
        assert float(found.rewards) == rewards
        assert found.ids.shape[1] <= limit


def test_a_turns_own_limit() -> None:
    says = {"a:": "bcdef", "a:bcda;": "h!efg"}
    found = played(says, Counts(turn_tokens=3))
    assert found.texts == ("bcda;h!e",)
    assert found.truncated.tolist() == [False]


def test_rows_at_different_turns_are_one_batch() -> None:
    says = {
        "a:": "b!.",
        "b:": "c.",
        "b:c.a;": "!.",
        "c:": "d.",
        "c:d.a;": "e.",
        "c:d.a;e.b;": "f!.",
    }
    prompts = [Prompt(letter, f"{letter}:", None) for letter in "abc"]
    together = complete(
        policy_that(says), Counting(), prompts, params=params(), generator=generator()
    )
    assert together.texts == ("b!.", "c.a;!.", "d.a;e.b;f!.")
    assert len({*together.node_ids[together.mask].tolist()}) == int(together.mask.sum())
    for number, prompt in enumerate(prompts):
        alone = complete(
            policy_that(says), Counting(), [prompt], params=params(), generator=generator()
        )
        width = alone.ids.shape[1]
        for name in ("ids", "mask", "turn_ids", "turn_rewards", "anchor_ids"):
            kept = getattr(together, name)[number]
            assert torch.equal(kept[:width][alone.mask[0]], getattr(alone, name)[0][alone.mask[0]])
        assert not together.mask[number, width:].any()


def test_the_opening_is_read_before_the_first_turn() -> None:
    found = played({"a:gg;": "!."}, Counts(opening="gg;"))
    assert found.prompts[0].text == "a:"
    assert found.texts == ("!.",)


def test_one_turn_is_as_it_always_was() -> None:
    prompt = Prompt("p", "a:", None)
    policy = policy_that({"a:": "bh.c$"})
    plain = complete(
        policy, Counting(episodes_of_one()), [prompt], params=params(), generator=generator()
    )
    assert plain.texts == ("bh.c",)
    assert plain.turn_ids is plain.anchor_ids is plain.turn_rewards is None
    assert plain.verdicts == (Verdict(1.0, True, answer="bh.c"),)


def episodes_of_one() -> Environment:
    return Task.environment(Counting())


# Continuing: from any token, as the whole episode went.


@pytest.fixture(scope="module", params=["pointer", "grid_world"])
def drawn(request: pytest.FixtureRequest):
    task = {"pointer": Pointer(), "grid_world": GridWorld()}[request.param]
    # A little imitation: queries that mean something, and enough that do not.
    policy: Any = Tiny(steps=60).load(task, Generate(), temperature=1.0, seed=0)
    likeliest = params(40, greedy=True)
    prompts = [prompt for prompt in task.evaluation(6) for _ in range(2)]
    found = complete(policy, task, prompts, params=params(40), generator=generator(1))
    greedy = complete(policy, task, prompts[::2], params=likeliest, generator=generator())
    return task, policy, found, greedy


def as_batch(policy: Any, found: Completions) -> RolloutBatch:
    return as_rollouts(found, policy, micro_tokens=4096)


def test_what_was_drawn_is_consistent(drawn) -> None:
    _, policy, found, _ = drawn
    rollouts = as_batch(policy, found)
    turns = rollouts.turn_ids
    assert torch.equal(turns >= 0, rollouts.action_mask)
    assert int(turns.max()) > 0
    # Turns count up by one along a row, without holes inside.
    starts = turn_starts(turns)
    assert torch.equal((starts.cumsum(1) - 1).masked_fill(turns < 0, -1), turns)
    assert torch.allclose(rollouts.token_rewards.sum(1), rollouts.rewards)
    assert not rollouts.token_rewards[~rollouts.action_mask].any()
    assert (rollouts.anchor_ids[turns == 0] == 0).all()
    assert (rollouts.anchor_ids[turns < 0] == -1).all()
    for name in ("logprobs", "entropies"):
        assert not getattr(rollouts, name)[~rollouts.action_mask].any()
    for number in range(len(rollouts)):
        lone = score(policy, rollouts.select([number]), micro_tokens=4096)
        assert torch.allclose(lone.logprobs[0], rollouts.logprobs[number], atol=1e-5)


def test_every_segmenter_keeps_within_turns(drawn) -> None:
    _, policy, found, _ = drawn
    rollouts = as_batch(policy, found)
    for segmenter in (Turns(), Newline(), PerToken(), Entropy(top_fraction=0.2)):
        cuts = checked_segments(segmenter, "any", rollouts)
        highest = cuts.reduce(rollouts.turn_ids, "max")
        assert torch.equal(cuts.reduce(rollouts.turn_ids, "first"), highest)


def test_a_likeliest_episode_goes_on_alike_from_every_token(drawn) -> None:
    task, policy, _, greedy = drawn
    rollouts = as_batch(policy, greedy)
    rows, positions = rollouts.action_mask.nonzero(as_tuple=True)
    again, tokens = resumed(task, policy, rollouts, greedy, rows, positions, greedy=True)
    before = torch.stack(
        [rollouts.action_mask[r, :p].sum() for r, p in zip(rows, positions, strict=True)]
    )
    assert tokens == int((rollouts.action_mask[rows].sum(1) - before).sum())
    assert again.texts == tuple(greedy.texts[r] for r in rows.tolist())
    assert again.verdicts == tuple(greedy.verdicts[r] for r in rows.tolist())
    assert torch.equal(again.truncated, greedy.truncated[rows])
    whole = rollouts.select(rows)
    for name in ("ids", "turn_ids", "anchor_ids", "turn_rewards"):
        old = getattr(greedy, name)[rows]
        assert torch.equal(getattr(again, name)[again.mask], old[whole.action_mask]), name
    for number, (r, p) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        assert torch.equal(again.node_ids[number, :p], rollouts.node_ids[r, :p])
    assert again.node_ids[again.mask].max() > rollouts.node_ids.max()


def test_a_position_on_an_observation_is_that_of_the_next_token(drawn) -> None:
    task, policy, _, greedy = drawn
    rollouts = as_batch(policy, greedy)
    starts = turn_starts(rollouts.turn_ids) & (rollouts.turn_ids > 0)
    rows, positions = starts.nonzero(as_tuple=True)
    early, _ = resumed(task, policy, rollouts, greedy, rows, positions - 1, greedy=True)
    assert early.texts == tuple(greedy.texts[r] for r in rows.tolist())


def test_another_token_in_a_turns_place_goes_on_in_that_turn(drawn) -> None:
    task, policy, found, _ = drawn
    rollouts = as_batch(policy, found)
    rows, places = rollouts.action_mask.nonzero(as_tuple=True)
    # The same token: the same prefix, however it ends the turn.
    again, _ = resumed(
        task, policy, rollouts, found, rows, places + 1, instead=found.ids[rows, places]
    )
    for number, (r, p) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
        assert torch.equal(again.ids[number, : p + 1], found.ids[r, : p + 1])
        assert torch.equal(again.turn_ids[number, : p + 1], found.turn_ids[r, : p + 1])
        assert again.node_ids[number, p] != found.node_ids[r, p]
    # A stop string in its place ends the turn there: the next token is the environment's.
    stop = policy.tokenizer.convert_tokens_to_ids(task.environment().stop[0])
    instead = torch.full_like(rows, stop)
    cut, _ = resumed(task, policy, rollouts, found, rows, places + 1, instead=instead)
    for number, p in enumerate(places.tolist()):
        row_turns = cut.turn_ids[number].tolist()
        assert row_turns[p] not in row_turns[p + 1 :]


def resumed(
    task: Task,
    policy: Any,
    rollouts: RolloutBatch,
    found: Completions,
    rows: Tensor,
    positions: Tensor,
    *,
    greedy: bool = False,
    instead: Tensor | None = None,
) -> tuple[Completions, int]:
    return resume(
        policy,
        task,
        [found.prompts[r] for r in rows.tolist()],
        rollouts,
        rows,
        positions,
        params=params(40, greedy=greedy),
        micro_tokens=512,
        generator=generator(2),
        instead_N=instead,
    )


def test_rewards_of_turns_before_a_position_are_kept() -> None:
    says = {"a:": "b.", "a:b.a;": "c.", "a:b.a;c.b;": "h!."}
    found = played(says)
    policy = policy_that(says)
    rollouts = as_batch(policy, found)
    again, tokens = resume(
        policy,
        Counting(),
        found.prompts * 2,
        rollouts,
        torch.tensor([0, 0]),
        torch.tensor([8, 4]),
        params=params(),
        micro_tokens=99,
        generator=generator(),
    )
    assert again.texts == found.texts * 2
    assert again.verdicts == found.verdicts * 2
    assert again.turn_rewards.tolist() == found.turn_rewards.tolist() * 2
    assert tokens == 3 + 5


def test_joined_batches_keep_turns_apart_from_padding() -> None:
    short = played({"a:": "!."})
    long = played({"a:": "b.", "a:b.a;": "!."})
    both = join([short, long])
    assert both.turn_ids.tolist() == [[0, 0, -1, -1, -1, -1], [0, 0, -1, -1, 1, 1]]
    assert both.turn_rewards.tolist() == [[0, 0.25, 0, 0, 0, 0], [0, 0.25, 0, 0, 0, 0.5]]
    shares = join_rows([unscored_rollouts(short), unscored_rollouts(long)])
    assert torch.equal(shares.turn_ids, both.turn_ids)
    assert torch.equal(shares.anchor_ids, both.anchor_ids)


# Bad input.


def test_an_environment_that_raises_is_named() -> None:
    prompt = Prompt("raise", "a:", None)
    policy = policy_that({"a:": "b."})
    with pytest.raises(TaskError, match=r"Counts.*the server is down"):
        complete(policy, Counting(), [prompt], params=params(), generator=generator())


def test_an_observation_that_the_tokenizer_does_not_know_is_refused() -> None:
    class Foreign(Counts):
        def step(self, state: Any, text: str) -> Transition:
            return replace(super().step(state, text), observation="é")

    with pytest.raises(PolicyError, match=r"observation 'é'.*alphabet"):
        played({"a:": "b."}, Foreign())


def test_special_tokens_in_an_observation_are_text(drawn) -> None:
    _, policy, _, _ = drawn
    with pytest.raises(PolicyError, match="cannot encode the observation '<eos>'"):
        policy.encode_observations([Prompt("p", "a", None)], ["<eos>"], [3])


def test_waiting_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    class Slow(Counts):
        def step(self, state: Any, text: str) -> Transition:
            time.sleep(0.3)
            return super().step(state, text)

    said: list[tuple[str, int]] = []
    monkeypatch.setattr(episodes, "_SLOW", 0.05)
    monkeypatch.setattr(episodes, "_warn_of_waiting", lambda *what: said.append(what))
    found = played({"a:": "!."}, Slow())
    assert found.texts == ("!.",)
    assert said == [("Slow", 1)]


def test_steps_from_threads_are_in_order() -> None:
    says = {f"{letter}:": f"{letter}!." for letter in "abcd"}
    found = complete(
        policy_that(says),
        Counting(Counts(workers=3)),
        Counting().prompts(4, generator()),
        params=params(),
        generator=generator(),
    )
    assert [verdict.answer for verdict in found.verdicts] == ["a!.", "b!.", "c!.", "d!."]


def test_a_demonstration_is_played() -> None:
    shown = demonstrated(Counting(Counts(opening="gg;")), Prompt("p", "a:", None), "b.ch!.ignored.")
    assert shown.turns == (("b.", True, "a;"), ("ch!.", True, ""))
    assert shown.opening == "gg;"
    assert shown.characters == 8
    assert shown.verdict(Counting()) == Verdict(1.75, True, answer="ch!.")
    plain = demonstrated(Counting(episodes_of_one()), Prompt("p", "a:", None), "b.h")
    assert plain.turns == (("b.h", False, ""),)
    assert plain.characters == 4
