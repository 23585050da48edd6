"""From prompts to verified completions, and from those to scored rollouts.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from segcredit.objective.returns import token_rewards
from segcredit.protocols import (
    Policy,
    Prompt,
    SupportsResume,
    Task,
    Verdict,
    capability,
    judged,
)
from segcredit.types import RolloutBatch, RowTable, SamplingParams, TokenScores


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
    node_ids: Tensor
    """Numbers of sampled tokens, (B,T), equal where rows share one."""
    extras: tuple[Mapping[str, Tensor], ...] = ()
    """Inputs of the policy for each prompt besides its ids; empty where it reads text alone."""
    sampler_logprobs: Tensor | None = None
    """Log-probs in nats, (B,T), as the sampler computed them; None where it does not tell."""

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

    Args:
        policy: samples.
        task: verifies.
        prompts: one for each row; a prompt may come more than once.
        params: length, and greedy or drawn.
        generator: where the draws come from.

    Raises:
        PolicyError: a prompt cannot be encoded, or leaves no room for a completion.
        TaskError: the verifier raised; says on which prompt and completion.
    """
    prompt_ids, prompt_mask, extras = policy.encode_prompts(prompts, room=params.max_new_tokens)
    made = policy.generate(prompt_ids, prompt_mask, extras, params=params, generator=generator)
    texts, token_spans = policy.decode(made.ids, made.mask)
    return Completions(
        prompts=tuple(prompts),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        ids=made.ids,
        mask=made.mask,
        truncated=made.truncated,
        texts=texts,
        token_spans=token_spans,
        verdicts=verify(task, prompts, texts, made.truncated),
        node_ids=torch.arange(made.ids.numel(), device=made.ids.device).view(made.ids.shape),
        extras=extras,
        sampler_logprobs=made.logprobs,
    )


def join(pieces: Sequence[Completions]) -> Completions:
    """Joins completions one under the other, padded to the widest; node ids stay as they are."""
    prompt_width = max(piece.prompt_ids.shape[1] for piece in pieces)
    width = max(piece.ids.shape[1] for piece in pieces)

    untold = any(piece.sampler_logprobs is None for piece in pieces)

    def right(name: str) -> Tensor:
        found = [getattr(piece, name) for piece in pieces]
        after = [(0, 0) * (x.ndim - 2) + (0, width - x.shape[1]) for x in found]
        return torch.cat([pad(x, gap) for x, gap in zip(found, after, strict=True)])

    def left(name: str) -> Tensor:
        found = [getattr(piece, name) for piece in pieces]
        return torch.cat([pad(x, (prompt_width - x.shape[1], 0)) for x in found])

    def rows(name: str) -> tuple[Any, ...]:
        return tuple(chain.from_iterable(getattr(piece, name) for piece in pieces))

    return Completions(
        prompts=rows("prompts"),
        prompt_ids=left("prompt_ids"),
        prompt_mask=left("prompt_mask"),
        ids=right("ids"),
        mask=right("mask"),
        truncated=torch.cat([piece.truncated for piece in pieces]),
        texts=rows("texts"),
        token_spans=right("token_spans"),
        verdicts=rows("verdicts"),
        node_ids=right("node_ids"),
        extras=rows("extras"),
        sampler_logprobs=None if untold else right("sampler_logprobs"),
    )


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

    Args:
        policy: continues.
        task: verifies.
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
        TaskError: the verifier raised; says on which prompt and completion.
    """
    made = capability(policy, SupportsResume, "resuming from a prefix").resume(
        rollouts,
        rows_N,
        positions_N,
        params=params,
        micro_tokens=micro_tokens,
        generator=generator,
        instead_N=instead_N,
    )
    ids_NF, fresh_NF = made.ids, made.mask
    width = rollouts.completion_ids.shape[1]
    before_NT = torch.arange(width, device=rows_N.device) < positions_N[:, None]
    exists_NL = torch.cat([before_NT, fresh_NF], 1)
    # A stable sort of the mask closes the gap between what was there and what is new. Columns
    # that it leaves empty go: a tree would otherwise grow wider at every level.
    longest = int(exists_NL.sum(1).amax()) if len(rows_N) else 0
    order_NL = torch.argsort(~exists_NL, dim=1, stable=True)[:, : max(longest, 1)]

    def joined(old_NT: Tensor, new_NF: Tensor) -> Tensor:
        return torch.cat([old_NT, new_NF], 1).gather(1, order_NL)

    # Numbers that no token has yet: what is drawn here is shared with nobody.
    unused = int(rollouts.node_ids.max()) + 1 if rollouts.node_ids.numel() else 0
    new_NF = torch.arange(ids_NF.numel(), device=ids_NF.device).view(ids_NF.shape) + unused
    old_NT, nodes_NT = rollouts.completion_ids[rows_N], rollouts.node_ids[rows_N]
    if instead_N is not None:
        # A token that was put in is another one than the token that stood there, and as new.
        place_N1 = positions_N[:, None] - 1
        numbers_N1 = torch.arange(len(place_N1), device=place_N1.device)[:, None]
        old_NT = old_NT.scatter(1, place_N1, instead_N[:, None])
        nodes_NT = nodes_NT.scatter(1, place_N1, unused + new_NF.numel() + numbers_N1)
    ids_NL = joined(old_NT, ids_NF)
    # Verified on a text like the completion's own: tokens of holes, which are no actions, are in
    # the one where they are in the other. Their characters tell, by which they have a span.
    spans_BT2 = rollouts.token_spans
    written_BT = rollouts.action_mask | (spans_BT2[..., 1] > spans_BT2[..., 0])
    texts, token_spans = policy.decode(ids_NL, joined(before_NT & written_BT[rows_N], fresh_NF))
    sampler_NL = None
    if made.logprobs is not None and rollouts.sampler_logprobs is not None and instead_N is None:
        sampler_NL = joined(rollouts.sampler_logprobs[rows_N], made.logprobs)
    whole = Completions(
        prompts=tuple(prompts),
        prompt_ids=rollouts.prompt_ids[rows_N],
        prompt_mask=rollouts.prompt_mask[rows_N],
        ids=ids_NL,
        mask=joined(before_NT & rollouts.action_mask[rows_N], fresh_NF),
        truncated=made.truncated,
        texts=texts,
        token_spans=token_spans,
        verdicts=verify(task, prompts, texts, made.truncated),
        node_ids=joined(nodes_NT, new_NF),
        extras=rollouts.extras and tuple(rollouts.extras[row] for row in map(int, rows_N)),
        sampler_logprobs=sampler_NL,
    )
    return whole, int(fresh_NF.sum())


def verify(
    task: Task, prompts: Sequence[Prompt], texts: Sequence[str], truncated: Tensor
) -> tuple[Verdict, ...]:
    """Asks the task for its verdict on each completion.

    Raises:
        TaskError: the verifier raised; says on which prompt and completion.
    """
    judge = functools.partial(judged, task)
    rows = (prompts, texts, map(bool, _integers(truncated)))
    if task.judges() == 1:
        return tuple(map(judge, *rows))
    with ThreadPoolExecutor(task.judges()) as threads:
        return tuple(threads.map(judge, *rows))


def as_rollouts(completions: Completions, policy: Policy, *, micro_tokens: int) -> RolloutBatch:
    """Builds rollouts, scored under the policy that sampled them, of verified completions.

    Args:
        completions: one for each row; their rewards go to their last action tokens.
        policy: scores.
        micro_tokens: most tokens in one pass.
    """
    unscored = unscored_rollouts(completions)
    return with_scores(unscored, score(policy, unscored, micro_tokens=micro_tokens))


def unscored_rollouts(completions: Completions) -> RolloutBatch:
    """Builds rollouts with rewards on the last action tokens, and log-probs and entropies of 0."""
    rewards_B = completions.rewards
    blank_BT = torch.zeros_like(completions.ids, dtype=torch.float32)
    return RolloutBatch(
        prompt_ids=completions.prompt_ids,
        prompt_mask=completions.prompt_mask,
        prompt_keys=tuple(prompt.key for prompt in completions.prompts),
        completion_ids=completions.ids,
        action_mask=completions.mask,
        logprobs=blank_BT,
        entropies=blank_BT,
        group=completions.group,
        texts=completions.texts,
        token_spans=completions.token_spans,
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, completions.mask),
        truncated=completions.truncated,
        node_ids=completions.node_ids,
        extras=completions.extras,
        sampler_logprobs=completions.sampler_logprobs,
    )


def with_scores(rollouts: RolloutBatch, scores: TokenScores) -> RolloutBatch:
    """Returns rollouts with the log-probs and entropies of their scores, without gradients."""
    return rollouts.replace(logprobs=scores.logprobs.detach(), entropies=scores.entropies.detach())


def with_extras(rollouts: RolloutBatch, policy: Policy, prompts: Sequence[Prompt]) -> RolloutBatch:
    """Adds to stored rollouts what the policy reads of prompts besides ids, such as images.

    Args:
        rollouts: as they were stored, without.
        policy: reads the prompts again.
        prompts: at least those of the rollouts.
    """
    named = {prompt.key: prompt for prompt in prompts}
    _, _, extras = policy.encode_prompts([named[key] for key in rollouts.prompt_keys])
    return rollouts.replace(extras=extras)


@torch.no_grad()
def score(policy: Policy, rollouts: RolloutBatch, *, micro_tokens: int) -> TokenScores:
    """Computes log-probs, entropies and hidden states without gradients.

    Args:
        policy: scores.
        rollouts: at least one row.
        micro_tokens: most completion tokens in one pass, padding included.
    """
    pieces = list(micro_batches(rollouts.action_mask, micro_tokens))
    scored = [policy(rollouts.select(rows)) for rows in pieces]
    # The pieces are in the order of length; this undoes it.
    back = torch.cat(pieces).argsort()
    return TokenScores(
        logprobs=torch.cat([piece.logprobs for piece in scored])[back],
        entropies=torch.cat([piece.entropies for piece in scored])[back],
        hidden=torch.cat([piece.hidden for piece in scored])[back],
    )


def micro_batches(action_mask: Tensor, micro_tokens: int) -> Iterator[Tensor]:
    """Cuts rows into pieces whose padded size stays within a token budget, longest first.

    Args:
        action_mask: (B,T) bool.
        micro_tokens: most tokens in a piece, padding included; a longer row is a piece of its own.

    Yields:
        (n,) long row numbers; together every row once.
    """
    places_T = torch.arange(1, action_mask.shape[1] + 1, device=action_mask.device)
    reach_B = (action_mask * places_T).amax(1)
    order_B = reach_B.argsort(descending=True, stable=True)
    reaches = _integers(reach_B[order_B])
    start = 0
    while start < len(reaches):
        rows = max(micro_tokens // max(reaches[start], 1), 1)
        yield order_B[start : start + rows]
        start += rows


def _integers(x: Tensor) -> list[int]:
    return x.cpu().numpy().tolist()
