"""From prompts to verified completions: turns of a policy, and the answers of what it acts in.

A completion without turns is an episode whose environment is done at its first step, so that there
is one way for both. Letters as in ``segcredit.types``; ``L`` tokens of the longest completion so
far, ``M`` episodes that go on.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from segcredit.environments import turns_of
from segcredit.protocols import (
    Environment,
    Policy,
    Prompt,
    SupportsResume,
    SupportsTurns,
    Task,
    Transition,
    Verdict,
    asked,
    capability,
    judged,
    opened,
)
from segcredit.types import RolloutBatch, RowTable, SamplingParams

R = TypeVar("R")

_SLOW = 120.0
"""Seconds after which a batch's answers are waited for with a warning."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completions(RowTable):
    """Completions as sampled: token ids, texts, verdicts; not yet scored."""

    prompts: tuple[Prompt, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    ids: Tensor
    mask: Tensor
    truncated: Tensor
    texts: tuple[str, ...]
    token_spans: Tensor
    verdicts: tuple[Verdict, ...]
    """The task's verdicts, each with the reward of the whole episode."""
    node_ids: Tensor
    """Numbers of sampled tokens, (B,T), equal where rows share one."""
    extras: tuple[Mapping[str, Tensor], ...] = ()
    """Inputs of the policy for each prompt besides its ids; empty where it reads text alone."""
    sampler_logprobs: Tensor | None = None
    """Log-probs in nats, (B,T), as the sampler computed them; None where it does not tell."""
    turn_ids: Tensor | None = None
    """Turns, (B,T), see ``RolloutBatch``; None where an episode has one turn alone."""
    anchor_ids: Tensor | None = None
    """States before the turns, (B,T), see ``RolloutBatch``; None where there is one turn alone."""
    turn_rewards: Tensor | None = None
    """The environment's rewards, (B,T), each on its turn's last token; part of the verdicts'."""

    @property
    def rewards(self) -> Tensor:
        """Rewards of the verdicts, (B,) float32."""
        rewards_B = torch.tensor([verdict.reward for verdict in self.verdicts])
        return rewards_B.to(self.ids.device, torch.float32)

    @property
    def group(self) -> Tensor:
        """The first row with the same prompt, (B,)."""
        keys = [prompt.key for prompt in self.prompts]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        return torch.tensor([first[key] for key in keys], device=self.ids.device)

    def renumbered(self, first: int) -> Completions:
        """Returns the same with ``first`` added to the node ids."""
        return replace(self, node_ids=self.node_ids + first)


def complete(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    params: SamplingParams,
    generator: torch.Generator,
) -> Completions:
    """Samples one completion for each entry of ``prompts`` and verifies it.

    Where the task's environment has several turns, a completion is an episode: its turns, with the
    environment's observations between them.

    Args:
        policy: samples.
        task: verifies, and says what completions are made in.
        prompts: one for each row; a prompt may come more than once.
        params: length, and greedy or drawn.
        generator: where the draws come from.

    Raises:
        PolicyError: a prompt cannot be encoded, or leaves no room for a completion.
        TaskError: the verifier or the environment raised; says on which prompt and text.
    """
    environment = task.environment()
    begun = _begun(environment, prompts)
    params = _in_turns(params, environment)
    prompt_ids, prompt_mask, extras = policy.encode_prompts(
        [with_opening(prompt, text) for prompt, (_, text) in zip(prompts, begun, strict=True)],
        room=params.max_new_tokens,
    )
    longest = min(params.max_new_tokens, params.turn_tokens or params.max_new_tokens)
    made = policy.generate(
        prompt_ids,
        prompt_mask,
        extras,
        params=replace(params, max_new_tokens=longest),
        generator=generator,
    )
    episodes = _Episodes(
        policy,
        task,
        environment,
        tuple(prompts),
        prompt_ids,
        prompt_mask,
        extras,
        params,
        generator,
        micro_tokens=len(prompts) * (prompt_ids.shape[1] + params.max_new_tokens),
    )
    numbers = torch.arange(made.ids.numel(), device=made.ids.device).view(made.ids.shape)
    turns = [_Turn(state=state) for state, _ in begun]
    tokens = _tokens(made.ids, made.mask, numbers, made.logprobs, turns)
    return episodes.play(tokens, made.truncated, turns, numbers.numel())


def resume(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    rows_N: Tensor,
    positions_N: Tensor,
    *,
    params: SamplingParams,
    micro_tokens: int,
    generator: torch.Generator,
    instead_N: Tensor | None = None,
) -> tuple[Completions, int]:
    """Continues completions from the prompt and every token before a position, and verifies them.

    Of several turns, the environment is brought to where it was by feeding it the turns before the
    position's again: its steps are pure. A position on the environment's tokens is that of the
    policy's next token.

    Args:
        policy: continues.
        task: verifies, and says what completions are made in.
        prompts: of each state.
        rollouts: whose completions are continued.
        rows_N: (N,) the row of each state.
        positions_N: (N,) the token of it that is drawn anew first.
        params: most tokens of a completion, those before the position included; greedy or drawn.
        micro_tokens: most tokens in one pass.
        generator: where the draws come from.
        instead_N: (N,) what stands in the place of the token just before each position; None =
            what is there.

    Returns:
        The whole completions, which share the node ids of the tokens before their position with
        those that they continue, and the number of tokens sampled.

    Raises:
        TaskError: the verifier or the environment raised; says on which prompt and text.
    """
    environment = task.environment()
    params = _in_turns(params, environment)
    positions_N, numbers = _standing(rollouts, rows_N, positions_N, replaced=instead_N is not None)
    made = capability(policy, SupportsResume, "resuming from a prefix").resume(
        rollouts,
        rows_N,
        positions_N,
        params=params,
        micro_tokens=micro_tokens,
        generator=generator,
        instead_N=instead_N,
    )
    rows = _integers(rows_N)
    turns, rewards_BT = _replayed(policy, environment, prompts, rollouts, rows, numbers)
    known = _known(rollouts, rows_N, positions_N, rewards_BT)
    # Numbers that no token has yet: what is drawn here is shared with nobody.
    unused = int(rollouts.node_ids.max()) + 1 if rollouts.node_ids.numel() else 0
    if instead_N is not None:
        # A token that was put in is another one than the token that stood there, and as new.
        place_N1 = positions_N[:, None] - 1
        new_N1 = torch.arange(len(place_N1), device=place_N1.device)[:, None] + unused
        known = replace(
            known,
            ids=known.ids.scatter(1, place_N1, instead_N[:, None]),
            node_ids=known.node_ids.scatter(1, place_N1, new_N1),
            logprobs=None,
        )
        unused += len(place_N1)
    new_NF = torch.arange(made.ids.numel(), device=made.ids.device).view(made.ids.shape) + unused
    episodes = _Episodes(
        policy,
        task,
        environment,
        tuple(prompts),
        rollouts.prompt_ids[rows_N],
        rollouts.prompt_mask[rows_N],
        rollouts.extras and tuple(rollouts.extras[row] for row in rows),
        params,
        generator,
        micro_tokens,
    )
    fresh = _tokens(made.ids, made.mask, new_NF, made.logprobs, turns)
    whole = episodes.play(known.followed_by(fresh), made.truncated, turns, unused + new_NF.numel())
    return whole, int(whole.mask.sum()) - int(known.sampled.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Demonstration:
    """A completion to imitate, as an episode."""

    prompt: Prompt
    opening: str
    """Text that the environment adds to the prompt's."""
    turns: tuple[tuple[str, bool, str], ...]
    """Text of each turn, whether a stop string ends it, and the observation after it, '' behind the
    last turn."""
    _end: _Turn

    @property
    def characters(self) -> int:
        """Characters of turns and observations, each end token counted as one."""
        return sum(len(text) + (not ends) + len(read) for text, ends, read in self.turns)

    @property
    def texts(self) -> list[str]:
        """Texts of turns and observations, in order."""
        return [text for own, _, read in self.turns for text in (own, read)]

    def verdict(self, task: Task) -> Verdict:
        """Returns the task's verdict.

        Raises:
            TaskError: the verifier raised.
        """
        return self._end.verdict(task, self.prompt)


def demonstrated(task: Task, prompt: Prompt, text: str) -> Demonstration:
    """Plays a demonstration of a task in its environment.

    Args:
        task: whose environment answers.
        prompt: of the demonstration.
        text: the turns, each of which but the last ends with the first stop string in it. What
            follows the end of the episode is left out.

    Raises:
        TaskError: the environment raised.
    """
    environment = task.environment()
    ((state, opening),) = _begun(environment, [prompt])
    turn, turns = _Turn(state=state), list[tuple[str, bool, str]]()
    said, stop = turns_of(text, environment.stop), tuple(environment.stop)
    while said and not turn.done and turn.number < environment.max_turns:
        own, *said = said
        turn = turn.taken(own, asked(environment, turn.state, own))
        going = bool(said) and not turn.done and turn.number < environment.max_turns
        answer = turn.answer.observation if turn.answer and going else ""
        turns.append((own, bool(stop) and own.endswith(stop), answer))
    return Demonstration(prompt, opening, tuple(turns), turn)


def with_opening(prompt: Prompt, opening: str) -> Prompt:
    """Returns a prompt with the text that its environment adds to it."""
    return replace(prompt, text=prompt.text + opening) if opening else prompt


def join(pieces: Sequence[Completions]) -> Completions:
    """Joins completions one under the other, padded to the widest; node ids stay as they are."""
    prompt_width = max(piece.prompt_ids.shape[1] for piece in pieces)
    width = max(piece.ids.shape[1] for piece in pieces)

    def right(name: str, fill: int = 0) -> Tensor | None:
        found = [getattr(piece, name) for piece in pieces]
        if any(x is None for x in found):
            return None
        after = [(0, 0) * (x.ndim - 2) + (0, width - x.shape[1]) for x in found]
        return torch.cat([pad(x, gap, value=fill) for x, gap in zip(found, after, strict=True)])

    def left(name: str) -> Tensor:
        found = [getattr(piece, name) for piece in pieces]
        return torch.cat([pad(x, (prompt_width - x.shape[1], 0)) for x in found])

    def rows(name: str) -> tuple[Any, ...]:
        return tuple(chain.from_iterable(getattr(piece, name) for piece in pieces))

    wide = ("ids", "mask", "token_spans", "node_ids", "sampler_logprobs", "turn_rewards")
    fields: dict[str, Any] = {name: right(name) for name in wide}
    fields |= {name: right(name, -1) for name in ("turn_ids", "anchor_ids")}
    fields |= {name: left(name) for name in ("prompt_ids", "prompt_mask")}
    fields |= {name: rows(name) for name in ("prompts", "texts", "verdicts", "extras")}
    return Completions(truncated=torch.cat([piece.truncated for piece in pieces]), **fields)


def verify(
    task: Task, prompts: Sequence[Prompt], texts: Sequence[str], truncated: Sequence[bool]
) -> tuple[Verdict, ...]:
    """Asks the task for its verdict on each text.

    Raises:
        TaskError: the verifier raised; says on which prompt and completion.
    """
    return tuple(_map(task.judges(), functools.partial(judged, task), prompts, texts, truncated))


def blank_rollouts(
    prompts: Sequence[Prompt],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    ids: Tensor,
    mask: Tensor,
    extras: tuple[Mapping[str, Tensor], ...],
    **known: Any,
) -> RolloutBatch:
    """Builds rollouts of which no more is known than what a policy reads: numbers are 0.

    Args:
        prompts: of each row.
        prompt_ids: (B,Tp) and their mask.
        prompt_mask: (B,Tp) bool.
        ids: (B,T) completions.
        mask: (B,T) bool, tokens that the policy chose.
        extras: of each row, or none.
        known: further fields by name.
    """
    blank_BT = torch.zeros(ids.shape, device=ids.device)
    fields: dict[str, Any] = {
        "group": torch.arange(len(ids), device=ids.device),
        "texts": ("",) * len(ids),
        "token_spans": ids.new_zeros(*ids.shape, 2),
        "rewards": blank_BT.sum(1),
        "token_rewards": blank_BT,
        "truncated": torch.zeros(len(ids), dtype=torch.bool, device=ids.device),
    }
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_keys=tuple(prompt.key for prompt in prompts),
        completion_ids=ids,
        action_mask=mask,
        logprobs=blank_BT,
        entropies=blank_BT,
        extras=extras,
        **fields | known,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """Tokens of episodes so far, (B,L) each, without gaps: what exists stands on the left."""

    ids: Tensor
    exists: Tensor
    sampled: Tensor
    node_ids: Tensor
    turn_ids: Tensor
    anchor_ids: Tensor
    rewards: Tensor
    logprobs: Tensor | None

    def followed_by(self, more: _Tokens) -> _Tokens:
        """Returns these tokens with more of them after each row's last one."""
        exists = torch.cat([self.exists, more.exists], 1)
        # A stable sort closes the gaps. Columns that it leaves empty go: a tree would otherwise
        # grow wider at every level.
        longest = int(exists.sum(1).amax()) if len(exists) else 0
        order = torch.argsort(~exists, dim=1, stable=True)[:, : max(longest, 1)]
        joined: dict[str, Tensor | None] = {}
        for name in (field.name for field in dataclasses.fields(self)):
            old: Tensor | None = getattr(self, name)
            new: Tensor | None = getattr(more, name)
            if old is None or new is None:
                joined[name] = None
            else:
                joined[name] = torch.cat([old, new], 1).gather(1, order)
        return _Tokens(**joined)  # pyright: ignore[reportArgumentType]


def _tokens(
    ids: Tensor,
    mask: Tensor,
    numbers: Tensor,
    logprobs: Tensor | None,
    turns: Sequence[_Turn],
) -> _Tokens:
    """Returns the tokens that a policy drew for the rows' present turns."""
    number_B = torch.tensor([turn.number for turn in turns], device=ids.device)
    anchor_B = torch.tensor([turn.anchor for turn in turns], device=ids.device)
    return _Tokens(
        ids=ids,
        exists=mask,
        sampled=mask,
        node_ids=numbers,
        turn_ids=torch.where(mask, number_B[:, None], -1),
        anchor_ids=torch.where(mask, anchor_B[:, None], -1),
        rewards=torch.zeros(ids.shape, device=ids.device),
        logprobs=logprobs,
    )


def _known(
    rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor, rewards_BT: Tensor
) -> _Tokens:
    """Returns the tokens before each position."""
    width = rollouts.completion_ids.shape[1]
    before_NT = torch.arange(width, device=rows_N.device) < positions_N[:, None]
    after_NT = ~before_NT
    turn_BT, anchor_BT = rollouts.turn_ids, rollouts.anchor_ids
    if turn_BT is None:
        # One turn. Tokens of holes, which are no actions, are in its text where they are in the
        # completion's own. Their characters tell, by which they have a span.
        spans_BT2 = rollouts.token_spans
        written_BT = rollouts.action_mask | (spans_BT2[..., 1] > spans_BT2[..., 0])
        turn_BT = torch.where(written_BT, 0, -1)
    if anchor_BT is None:
        anchor_BT = torch.full_like(turn_BT, -1)
    told = rollouts.sampler_logprobs
    return _Tokens(
        ids=rollouts.completion_ids[rows_N],
        exists=before_NT,
        sampled=before_NT & rollouts.action_mask[rows_N],
        node_ids=rollouts.node_ids[rows_N],
        turn_ids=turn_BT[rows_N].masked_fill(after_NT, -1),
        anchor_ids=anchor_BT[rows_N].masked_fill(after_NT, -1),
        rewards=rewards_BT[rows_N].masked_fill(after_NT, 0),
        logprobs=None if told is None else told[rows_N],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """State that an episode's present turn begins in, and what came before it."""

    state: Any
    number: int = 0
    anchor: int = 0
    earned: float = 0.0
    """Rewards of the turns before, summed."""
    text: str = ""
    """Text of the turn before."""
    answer: Transition | None = None
    """The environment's answer to it."""

    @property
    def done(self) -> bool:
        return self.answer is not None and self.answer.done

    def taken(self, text: str, answer: Transition) -> _Turn:
        """Returns where an episode stands after the present turn."""
        return _Turn(
            state=answer.state,
            number=self.number + 1,
            anchor=_anchor_id(answer.anchor),
            earned=self.earned + answer.reward,
            text=text,
            answer=answer,
        )

    def verdict(self, task: Task, prompt: Prompt) -> Verdict:
        """Returns the environment's verdict, or else the task's on the text of the last turn."""
        answer = self.answer
        if answer is not None and answer.done and answer.correct is not None:
            return Verdict(self.earned, answer.correct, answer.process_correct, answer.answer)
        found = judged(task, prompt, self.text, not self.done)
        return replace(found, reward=found.reward + self.earned) if self.earned else found


@dataclass(frozen=True, slots=True, eq=False)
class _Episodes:
    """Episodes of one batch, as they are played to their ends."""

    policy: Policy
    task: Task
    environment: Environment
    prompts: tuple[Prompt, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    extras: tuple[Mapping[str, Tensor], ...]
    params: SamplingParams
    generator: torch.Generator
    micro_tokens: int

    def play(
        self, tokens: _Tokens, cut_B: Tensor, turns: Sequence[_Turn], unused: int
    ) -> Completions:
        """Answers the turns that were drawn and draws the next ones, until every episode has ended.

        Args:
            tokens: up to the end of each row's present turn.
            cut_B: (B,) whether this turn has no end of its own.
            turns: where each episode stands, before its present turn.
            unused: the first node id that no token has.
        """
        limit, several = self.params.max_new_tokens, self.environment.max_turns > 1
        turns, rows = list(turns), torch.arange(len(turns), device=tokens.ids.device)
        while True:
            own_M1 = rows.new_tensor([turns[row].number for row in _integers(rows)])[:, None]
            texts, spans = self.policy.decode(tokens.ids[rows], tokens.turn_ids[rows] == own_M1)
            lengths_M = tokens.exists[rows].sum(1)
            # A turn that ran into the limit of the whole completion is not the environment's to
            # answer; one that ran into its own limit is as it is.
            over_M = cut_B[rows]
            if self.params.turn_tokens is not None:
                over_M = over_M & (lengths_M >= limit)
            said = dict(zip(_integers(rows), texts, strict=True))
            for row in _integers(rows[over_M]):
                turns[row] = replace(turns[row], text=said[row], answer=None)
            rows, lengths_M = rows[~over_M], lengths_M[~over_M]
            here = _integers(rows)
            answers = _answers(
                self.environment, [turns[row] for row in here], [said[row] for row in here]
            )
            for row, answer in zip(here, answers, strict=True):
                turns[row] = turns[row].taken(said[row], answer)
            if not several:
                break
            earned_M = torch.tensor([answer.reward for answer in answers]).to(tokens.rewards)
            tokens.rewards[rows, (lengths_M - 1).clamp(min=0)] = earned_M
            tokens, rows = self._observed(tokens, turns, rows, unused)
            if not len(rows):
                break
            # A row's observation has fewer tokens than the limit, and its next turn no more.
            tokens, cut_B = self._drawn(tokens, cut_B, turns, rows, unused + len(turns) * limit)
            unused += 2 * len(turns) * limit
        if several:
            texts, spans = self.policy.decode(tokens.ids, tokens.exists)
        return Completions(
            prompts=self.prompts,
            prompt_ids=self.prompt_ids,
            prompt_mask=self.prompt_mask,
            ids=tokens.ids,
            mask=tokens.sampled,
            truncated=torch.tensor([not turn.done for turn in turns]).to(cut_B),
            texts=texts,
            token_spans=spans,
            verdicts=tuple(_map(self.task.judges(), self._verdict, turns, self.prompts)),
            node_ids=tokens.node_ids,
            extras=self.extras,
            sampler_logprobs=tokens.logprobs,
            turn_ids=tokens.turn_ids if several else None,
            anchor_ids=tokens.anchor_ids if several else None,
            turn_rewards=tokens.rewards if several else None,
        )

    def _verdict(self, turn: _Turn, prompt: Prompt) -> Verdict:
        return turn.verdict(self.task, prompt)

    def _observed(
        self, tokens: _Tokens, turns: Sequence[_Turn], rows: Tensor, unused: int
    ) -> tuple[_Tokens, Tensor]:
        """Appends the observations of episodes that go on, and returns these.

        An observation after which there is no room for a token ends the episode unread.
        """
        most = self.environment.max_turns
        left = [r for r in _integers(rows) if not turns[r].done and turns[r].number < most]
        if not left:
            return tokens, rows[:0]
        lengths_B = tokens.exists.sum(1)
        answers = [turns[row].answer for row in left]
        reads = capability(self.policy, SupportsTurns, "an environment of several turns")
        between = reads.encode_observations(
            [self.prompts[row] for row in left],
            [answer.observation for answer in answers if answer is not None],
            _integers(tokens.ids[left, lengths_B[left] - 1]),
        )
        room = _integers(self.params.max_new_tokens - lengths_B)
        ids: list[list[int]] = [[] for _ in turns]
        for row, found in zip(left, between, strict=True):
            ids[row] = found if len(found) < room[row] else []
        going = [row for row, found in zip(left, between, strict=True) if len(found) < room[row]]
        width = max(map(len, ids))
        padded = [[*found, *[0] * (width - len(found))] for found in ids]
        ids_BO = torch.tensor(padded, dtype=torch.long, device=tokens.ids.device)
        ids_BO = ids_BO.view(len(ids), width)
        lengths_B1 = torch.tensor([[len(found)] for found in ids]).to(ids_BO)
        exists_BO = torch.arange(width, device=ids_BO.device) < lengths_B1
        nothing_BO = torch.full_like(ids_BO, -1)
        observed = _Tokens(
            ids=ids_BO,
            exists=exists_BO,
            sampled=torch.zeros_like(exists_BO),
            node_ids=torch.arange(ids_BO.numel(), device=rows.device).view(ids_BO.shape) + unused,
            turn_ids=nothing_BO,
            anchor_ids=nothing_BO,
            rewards=torch.zeros_like(ids_BO, dtype=torch.float32),
            logprobs=None if tokens.logprobs is None else tokens.logprobs.new_zeros(ids_BO.shape),
        )
        return tokens.followed_by(observed), rows.new_tensor(going)

    def _drawn(
        self,
        tokens: _Tokens,
        cut_B: Tensor,
        turns: Sequence[_Turn],
        rows: Tensor,
        unused: int,
    ) -> tuple[_Tokens, Tensor]:
        """Draws the next turn of some episodes; returns all tokens, and which turns were cut."""
        chosen = _integers(rows)
        ids, mask = tokens.ids[rows], torch.zeros_like(tokens.sampled[rows])
        # Nothing here is an action of the turn to come, whose stop strings begin with it.
        given = blank_rollouts(
            [self.prompts[row] for row in chosen],
            self.prompt_ids[rows],
            self.prompt_mask[rows],
            ids,
            mask,
            self.extras and tuple(self.extras[row] for row in chosen),
        )
        made = capability(self.policy, SupportsResume, "an environment of several turns").resume(
            given,
            torch.arange(len(rows), device=rows.device),
            tokens.exists[rows].sum(1),
            params=self.params,
            micro_tokens=self.micro_tokens,
            generator=self.generator,
        )
        shape = (len(cut_B), made.ids.shape[1])
        new_ids = made.ids.new_zeros(shape).index_copy(0, rows, made.ids)
        new_mask = made.mask.new_zeros(shape).index_copy(0, rows, made.mask)
        logprobs = made.logprobs
        if logprobs is not None:
            logprobs = logprobs.new_zeros(shape).index_copy(0, rows, logprobs)
        numbers = torch.arange(new_ids.numel(), device=rows.device).view(shape) + unused
        fresh = _tokens(new_ids, new_mask, numbers, logprobs, turns)
        return tokens.followed_by(fresh), cut_B.index_copy(0, rows, made.truncated)


def _begun(environment: Environment, prompts: Sequence[Prompt]) -> list[tuple[Any, str]]:
    """Returns the first state and the opening of each prompt; of one that comes twice once."""
    found = {
        key: opened(environment, prompt) for key, prompt in {id(p): p for p in prompts}.items()
    }
    return [found[id(prompt)] for prompt in prompts]


def _in_turns(params: SamplingParams, environment: Environment) -> SamplingParams:
    """Returns sampling params with an environment's limit and stop strings of turns."""
    stop = tuple(dict.fromkeys((*params.stop, *environment.stop)))
    return replace(params, stop=stop, turn_tokens=environment.turn_tokens)


def _answers(
    environment: Environment, turns: Sequence[_Turn], texts: Sequence[str]
) -> list[Transition]:
    """Returns the environment's answers to turns; says so where they take long."""
    waiting = threading.Timer(_SLOW, _warn_of_waiting, (type(environment).__name__, len(texts)))
    waiting.daemon = True
    waiting.start()
    try:
        states = [turn.state for turn in turns]
        return _map(environment.workers, functools.partial(asked, environment), states, texts)
    finally:
        waiting.cancel()


def _warn_of_waiting(name: str, count: int) -> None:
    warnings.warn(
        f"environment {name!r} has not answered {count} turns for {_SLOW:g} seconds; it is waited"
        " for. Usually a tool runs without a time limit: give it one, or stop the run and go on"
        " with --resume.",
        RuntimeWarning,
        stacklevel=2,
    )


def _map(threads: int, work: Callable[..., R], *arguments: Iterable[Any]) -> list[R]:
    """Calls a function for each argument in order, from as many threads at once."""
    if threads == 1:
        return list(map(work, *arguments))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, *arguments))


def _anchor_id(anchor: str | None) -> int:
    """Returns a number of an anchor, the same in every process; -1 for none."""
    if anchor is None:
        return -1
    return int.from_bytes(blake2b(anchor.encode(), digest_size=8).digest(), "big") >> 1


def _standing(
    rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor, *, replaced: bool
) -> tuple[Tensor, list[int]]:
    """Returns positions on tokens of the policy, or behind its last one, and the turns they are in.

    Where the token before a position is another one, the position is in that token's turn.
    """
    turn_BT = rollouts.turn_ids
    if turn_BT is None:
        return positions_N, [0] * len(rows_N)
    width = turn_BT.shape[1]
    columns_T = torch.arange(width, device=turn_BT.device)
    lasts_B = torch.where(turn_BT >= 0, columns_T, -1).amax(1)
    if not replaced:
        own_BT = torch.where(turn_BT >= 0, columns_T, width)
        next_BE = pad(own_BT.flip(1).cummin(1).values.flip(1), (0, 1), value=width)
        positions_N = torch.minimum(next_BE[rows_N, positions_N], lasts_B[rows_N] + 1)
    places_N = torch.minimum(positions_N - int(replaced), lasts_B[rows_N]).clamp(min=0)
    return positions_N, _integers(turn_BT[rows_N, places_N].clamp(min=0))


def _replayed(
    policy: Policy,
    environment: Environment,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    rows: Sequence[int],
    numbers: Sequence[int],
) -> tuple[list[_Turn], Tensor]:
    """Feeds an environment the turns before some turns again.

    Returns:
        Where each episode stands before its turn, and (B,T) rewards of the turns before.
    """
    begun = _begun(environment, prompts)
    at = {(row, 0): _Turn(state=state) for row, (state, _) in zip(rows, begun, strict=True)}
    rewards_BT = torch.zeros_like(rollouts.logprobs)
    needed: dict[int, int] = {}
    for row, number in zip(rows, numbers, strict=True):
        needed[row] = max(needed.get(row, 0), number)
    for number in range(max(numbers, default=0)):
        # Only where there are turn ids: else every turn is the first.
        turn_BT = rollouts.turn_ids
        assert turn_BT is not None
        here = [row for row, last in needed.items() if last > number]
        own_MT = turn_BT[here] == number
        texts, _ = policy.decode(rollouts.completion_ids[here], own_MT)
        before = [at[row, number] for row in here]
        answers = _answers(environment, before, texts)
        columns_T = torch.arange(own_MT.shape[1], device=own_MT.device)
        lasts_M = (own_MT * columns_T).amax(1)
        rewards_BT[here, lasts_M] = torch.tensor([x.reward for x in answers]).to(rewards_BT)
        for row, turn, text, answer in zip(here, before, texts, answers, strict=True):
            at[row, number + 1] = turn.taken(text, answer)
    return [at[place] for place in zip(rows, numbers, strict=True)], rewards_BT


def _integers(x: Tensor) -> list[int]:
    return x.cpu().numpy().tolist()
