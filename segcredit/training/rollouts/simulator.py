"""The simulator that estimators ask for further completions, continuations, and scores.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segcredit.episodes import complete, resume
from segcredit.errors import ShapeError
from segcredit.protocols import (
    Policy,
    Prompt,
    Reading,
    Simulator,
    SupportsLogitGradients,
    Task,
    capability,
    readable_scores,
)
from segcredit.training.distributed.all_gather import join_rows
from segcredit.training.distributed.processes import CPU, Processes
from segcredit.training.rollouts.completions import as_rollouts, score
from segcredit.types import Continuations, RolloutBatch, SamplingParams, TokenScores


@dataclass(slots=True, eq=False)
class PolicySimulator(Simulator):
    """Continues and samples with the current policy, and verifies what comes out.

    Args:
        policy: the current policy.
        task: whose verifier judges.
        prompts: the prompts that may be asked for, by key.
        params: how completions are sampled where the asker does not say; the limit includes what
            stands before a position.
        micro_tokens: most tokens in one scoring pass.
        generator: where the draws come from.
        reads: what the asker may see of scores, see ``ValueEstimator.reads``; None = all.
        known: completion ids whose scores under the policy are known, and these scores.
    """

    policy: Policy
    task: Task
    prompts: Mapping[str, Prompt]
    params: SamplingParams
    micro_tokens: int
    generator: torch.Generator
    reads: Set[Reading] | None = None
    known: tuple[Tensor, TokenScores] | None = None
    tokens: int = 0
    """Tokens sampled so far for whoever asked."""

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        """Samples and verifies ``count`` completions of each prompt, in the order of the keys.

        Raises:
            ShapeError: a key is not of this step.
            TaskError: the verifier raised.
        """
        prompts = [self._prompt(key) for key in prompt_keys for _ in range(count)]
        completions = complete(
            self.policy,
            self.task,
            prompts,
            params=params or self.params,
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
        params: SamplingParams | None = None,
    ) -> Continuations:
        """Continues from the prompt and every token before each position, holes included.

        Args:
            rollouts: whose completions are continued.
            rows_N: (N,) the row of each state.
            positions_N: (N,) the token of it that is drawn anew first.
            count: continuations of each state.
            params: how they are sampled; None = the run's own.

        Returns:
            (N, count) rewards still to come, and whether each completion was truncated. They are
            those of the whole completions, less what an environment gave for the turns before.

        Raises:
            ShapeError: a prompt is not of this step.
            TaskError: the verifier raised.
        """
        rows_M, positions_M = rows_N.repeat_interleave(count), positions_N.repeat_interleave(count)
        resumed, tokens = resume(
            self.policy,
            self.task,
            [self._prompt(rollouts.prompt_keys[row]) for row in map(int, rows_M)],
            rollouts,
            rows_M,
            positions_M,
            params=params or self.params,
            micro_tokens=self.micro_tokens,
            generator=self.generator,
        )
        self.tokens += tokens
        rewards_M = resumed.rewards
        if resumed.turn_rewards is not None:
            columns = torch.arange(resumed.ids.shape[1], device=positions_M.device)
            before = columns < positions_M[:, None]
            rewards_M = rewards_M - (resumed.turn_rewards * before).sum(1)
        return Continuations(
            rewards=rewards_M.view(-1, count),
            truncated=resumed.truncated.view(-1, count),
            tokens=tokens,
        )

    def score(self, rollouts: RolloutBatch) -> TokenScores:
        """Computes log-probs, entropies and hidden states under the current policy.

        What ``reads`` does not name is NaN.
        """
        if self.known is not None and self.known[0] is rollouts.completion_ids:
            scores = self.known[1]
        else:
            scores = score(self.policy, rollouts, micro_tokens=self.micro_tokens)
        return scores if self.reads is None else readable_scores(scores, self.reads)

    def logit_gradients(self, rollouts: RolloutBatch) -> Tensor:
        """Computes (B,T) squared norms of log-probs' gradients by the logits.

        Raises:
            PolicyError: the policy cannot tell.
        """
        policy = capability(self.policy, SupportsLogitGradients, "this value estimator")
        return policy.logit_gradients(rollouts, micro_tokens=self.micro_tokens)

    def _prompt(self, key: str) -> Prompt:
        if key not in self.prompts:
            raise ShapeError(
                f"prompt {key!r} is not among the {len(self.prompts)} prompts of this step. An"
                " estimator may ask only for prompts whose keys it was given."
            )
        return self.prompts[key]


@dataclass(frozen=True, slots=True, eq=False)
class SharedSimulator(Simulator):
    """A simulator that all processes ask the same, each answering a part: all get the whole.

    Args:
        own: this process's, which answers its part.
        processes: those that ask.
    """

    own: PolicySimulator
    processes: Processes
    params: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", self.own.params)

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        """Samples and verifies ``count`` completions of each prompt, in the order of the keys.

        Raises:
            ShapeError: a key is not of this step.
            TaskError: the verifier raised.
            TrainingError: another process failed; gives its sentence.
        """
        found: list[RolloutBatch] = []
        with self.processes.error_barrier():
            if share := self.processes.share(prompt_keys):
                found = [self.own.sample(share, count, params=params)]
        if self.processes.count == 1:
            return found[0]
        # A process without a share has nothing to send, and still takes part in gathering.
        shares = self.processes.gather([one.to(CPU) for one in found])
        every = join_rows([one for share in shares for one in share])
        return every.to(self.processes.device)

    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Tensor,
        positions_N: Tensor,
        count: int,
        *,
        params: SamplingParams | None = None,
    ) -> Continuations:
        """Continues from the prompt and every token before each position, holes included.

        Rollouts and states are the same on all processes; arguments, result and errors as of
        ``PolicySimulator.resume``.

        Raises:
            TrainingError: another process failed; gives its sentence.
        """
        here = self._share_of(rows_N)
        with self.processes.error_barrier():
            found = self.own.resume(rollouts, rows_N[here], positions_N[here], count, params=params)
        tokens = self.processes.gather(found.tokens)
        return Continuations(
            rewards=self.processes.all_gather(found.rewards),
            truncated=self.processes.all_gather(found.truncated),
            tokens=sum(tokens),
        )

    def score(self, rollouts: RolloutBatch) -> TokenScores:
        """Computes log-probs, entropies and hidden states under the current policy."""
        here = self._share_of(rollouts.group)
        with self.processes.error_barrier():
            # A row, at least: the network cannot read nothing.
            rows = here if len(here) else torch.zeros_like(rollouts.group[:1])
            found = self.own.score(rollouts.select(rows))
        return TokenScores(
            logprobs=self.processes.all_gather(found.logprobs[: len(here)]),
            entropies=self.processes.all_gather(found.entropies[: len(here)]),
            hidden=self.processes.all_gather(found.hidden[: len(here)]),
        )

    def logit_gradients(self, rollouts: RolloutBatch) -> Tensor:
        """Computes (B,T) squared norms of log-probs' gradients by the logits."""
        here = self._share_of(rollouts.group)
        with self.processes.error_barrier():
            # A row, at least: the network cannot read nothing.
            rows = here if len(here) else torch.zeros_like(rollouts.group[:1])
            found_RT = self.own.logit_gradients(rollouts.select(rows))
        return self.processes.all_gather(found_RT[: len(here)])

    def _share_of(self, rows_N: Tensor) -> Tensor:
        """Returns the places of this process's part."""
        share = self.processes.share(range(len(rows_N)))
        return torch.tensor(list(share), dtype=torch.long, device=rows_N.device)
