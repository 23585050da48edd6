"""From verified completions to scored rollouts.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from segcredit.episodes import Completions, blank_rollouts
from segcredit.objective.returns import token_rewards
from segcredit.protocols import Policy, Prompt
from segcredit.types import RolloutBatch, TokenScores


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
    """Builds rollouts with their rewards, and log-probs and entropies of 0.

    The verifier's reward is on the last action token, an environment's on its turn's last one.
    """
    rewards_B, mask_BT = completions.rewards, completions.mask
    rewards_BT, turn_rewards_BT = token_rewards(rewards_B, mask_BT), completions.turn_rewards
    if turn_rewards_BT is not None:
        rest_B = rewards_B - turn_rewards_BT.sum(1)
        rewards_BT = token_rewards(rest_B, mask_BT) + turn_rewards_BT
    return blank_rollouts(
        completions.prompts,
        completions.prompt_ids,
        completions.prompt_mask,
        completions.ids,
        mask_BT,
        completions.extras,
        group=completions.group,
        texts=completions.texts,
        token_spans=completions.token_spans,
        rewards=rewards_B,
        token_rewards=rewards_BT,
        truncated=completions.truncated,
        node_ids=completions.node_ids,
        sampler_logprobs=completions.sampler_logprobs,
        turn_ids=completions.turn_ids,
        anchor_ids=completions.anchor_ids,
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
