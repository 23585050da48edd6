"""From prompts to verified, scored rollouts; and what estimators may ask for on top of them.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit.credit import token_rewards
from segcredit.errors import TaskError
from segcredit.protocols import Policy, Prompt, Simulator, Task, Verdict
from segcredit.types import Continuations, RolloutBatch, TokenScores


@dataclass(frozen=True, slots=True, eq=False)
class Completions:
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


def complete(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    greedy: bool,
    generator: torch.Generator,
) -> Completions:
    """Sample one completion for each entry of ``prompts`` and verify it.

    Raises:
        TaskError: the verifier raised; says on which prompt and completion.
    """
    prompt_ids, prompt_mask = policy.encode([prompt.text for prompt in prompts])
    ids, mask, truncated = policy.generate(
        prompt_ids,
        prompt_mask,
        max_new_tokens=max_new_tokens,
        greedy=greedy,
        generator=generator,
    )
    texts, token_spans = policy.decode(ids, mask)
    verdicts = verify(task, prompts, texts, truncated)
    return Completions(
        prompts=tuple(prompts),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        ids=ids,
        mask=mask,
        truncated=truncated,
        texts=texts,
        token_spans=token_spans,
        verdicts=verdicts,
    )


def verify(
    task: Task, prompts: Sequence[Prompt], texts: Sequence[str], truncated: Tensor
) -> tuple[Verdict, ...]:
    """The task's verdict on each completion."""
    rows = zip(prompts, texts, _integers(truncated), strict=True)
    return tuple(_judge(task, prompt, text, bool(cut)) for prompt, text, cut in rows)


def _judge(task: Task, prompt: Prompt, text: str, truncated: bool) -> Verdict:
    try:
        return task.verify(prompt, text, truncated=truncated)
    except Exception as error:
        raise TaskError(
            f"the verifier of task {type(task).__name__!r} raised {type(error).__name__}: {error}"
            f" on prompt {prompt.key!r} with the completion {text[:200]!r}. A verifier must judge"
            " any text; give what it cannot read a reward of 0."
        ) from error


def as_rollouts(completions: Completions, policy: Policy, *, micro_tokens: int) -> RolloutBatch:
    """Score completions under the policy that sampled them; rewards on the last action token."""
    rewards_B = torch.tensor([verdict.reward for verdict in completions.verdicts])
    rewards_B = rewards_B.to(completions.ids.device, torch.float32)
    blank_BT = torch.zeros_like(completions.ids, dtype=torch.float32)
    keys = tuple(prompt.key for prompt in completions.prompts)
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    unscored = RolloutBatch(
        prompt_ids=completions.prompt_ids,
        prompt_mask=completions.prompt_mask,
        prompt_keys=keys,
        completion_ids=completions.ids,
        action_mask=completions.mask,
        logprobs=blank_BT,
        entropies=blank_BT,
        group=torch.tensor([first[key] for key in keys], device=completions.ids.device),
        texts=completions.texts,
        token_spans=completions.token_spans,
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, completions.mask),
        truncated=completions.truncated,
    )
    scores = score(policy, unscored, micro_tokens=micro_tokens)
    return unscored.replace(logprobs=scores.logprobs, entropies=scores.entropies)


@torch.no_grad()
def score(policy: Policy, rollouts: RolloutBatch, *, micro_tokens: int) -> TokenScores:
    """Log-probs, entropies and hidden states without gradients, in pieces of similar length."""
    pieces = list(micro_batches(rollouts.action_mask, micro_tokens))
    scored = [policy(rollouts.select(rows)) for rows in pieces]
    back = torch.cat(pieces).argsort()
    return TokenScores(
        logprobs=torch.cat([piece.logprobs for piece in scored])[back],
        entropies=torch.cat([piece.entropies for piece in scored])[back],
        hidden=torch.cat([piece.hidden for piece in scored])[back],
    )


def micro_batches(action_mask: Tensor, micro_tokens: int) -> Iterator[Tensor]:
    """Rows in pieces whose padded size stays within a token budget, longest first.

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


@dataclass(slots=True, eq=False)
class PolicySimulator(Simulator):
    """Continues and samples with the current policy, and verifies what comes out.

    Args:
        policy: the current policy.
        task: whose verifier judges.
        prompts: the prompts that may be asked for, by key.
        max_new_tokens: limit of a completion, prefix included.
        micro_tokens: most tokens in one scoring pass.
        generator: where the draws come from.
    """

    policy: Policy
    task: Task
    prompts: Mapping[str, Prompt]
    max_new_tokens: int
    micro_tokens: int
    generator: torch.Generator
    tokens: int = 0
    """Tokens sampled so far for whoever asked."""

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, greedy: bool = False
    ) -> RolloutBatch:
        """``count`` rewarded completions of each prompt, in the order of the keys."""
        prompts = [self._prompt(key) for key in prompt_keys for _ in range(count)]
        completions = complete(
            self.policy,
            self.task,
            prompts,
            max_new_tokens=self.max_new_tokens,
            greedy=greedy,
            generator=self.generator,
        )
        self.tokens += int(completions.mask.sum())
        return as_rollouts(completions, self.policy, micro_tokens=self.micro_tokens)

    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Tensor,
        positions_N: Tensor,
        count: int,
        *,
        greedy: bool = False,
    ) -> Continuations:
        """Continue from the prompt and every token before each position, holes included."""
        rows_M, positions_M = rows_N.repeat_interleave(count), positions_N.repeat_interleave(count)
        prefix_ids, prefix_mask = _prefixes(rollouts, rows_M, positions_M)
        ids, mask, truncated = self.policy.generate(
            prefix_ids,
            prefix_mask,
            max_new_tokens=self.max_new_tokens - int(positions_M.min()),
            greedy=greedy,
            generator=self.generator,
        )
        room_M1 = (self.max_new_tokens - positions_M)[:, None]
        late_BT = mask & (torch.arange(mask.shape[1], device=mask.device) >= room_M1)
        mask, truncated = mask & ~late_BT, truncated | late_BT.any(1)
        texts = self._texts(rollouts, rows_M, positions_M, ids, mask)
        prompts = [self._prompt(rollouts.prompt_keys[row]) for row in _integers(rows_M)]
        verdicts = verify(self.task, prompts, texts, truncated)
        rewards = torch.tensor([verdict.reward for verdict in verdicts], device=ids.device)
        tokens = int(mask.sum())
        self.tokens += tokens
        return Continuations(
            rewards=rewards.to(torch.float32).view(-1, count),
            truncated=truncated.view(-1, count),
            tokens=tokens,
        )

    def score(self, rollouts: RolloutBatch) -> TokenScores:
        """Log-probs, entropies and hidden states under the current policy."""
        return score(self.policy, rollouts, micro_tokens=self.micro_tokens)

    def _texts(
        self, rollouts: RolloutBatch, rows: Tensor, positions: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[str, ...]:
        """Whole completions: the tokens before each position and what was sampled after."""
        before_ids = rollouts.completion_ids[rows]
        before = torch.arange(before_ids.shape[1], device=rows.device) < positions[:, None]
        kept = torch.cat([before, mask], 1)
        front = torch.argsort(~kept, dim=1, stable=True)
        joined = torch.cat([before_ids, ids], 1).gather(1, front)
        return self.policy.decode(joined, kept.gather(1, front))[0]

    def _prompt(self, key: str) -> Prompt:
        if key not in self.prompts:
            raise TaskError(
                f"prompt {key!r} is not among the {len(self.prompts)} prompts of this step. An"
                " estimator may ask only for prompts whose keys it was given."
            )
        return self.prompts[key]


def _prefixes(rollouts: RolloutBatch, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt and completion up to each position, left-padded, with its mask."""
    places = torch.arange(rollouts.completion_ids.shape[1], device=rows.device)
    kept = torch.cat([rollouts.prompt_mask[rows], places < positions[:, None]], 1)
    ids = torch.cat([rollouts.prompt_ids[rows], rollouts.completion_ids[rows]], 1)
    # A stable sort of the mask moves what is not kept to the front and leaves the rest in order.
    order = torch.argsort(kept, dim=1, stable=True)
    width = int(kept.sum(1).max())
    return ids.gather(1, order)[:, -width:], kept.gather(1, order)[:, -width:]


def _integers(x: Tensor) -> list[int]:
    return x.cpu().numpy().tolist()
