"""The value of every state of a frozen policy's completions, by continuations that leave them.

The naive way continues K completions from every state. But the policy's own probability of the
token that it took, p, is known, and one of two things happens at a state: the token that was
taken, after which the value is that of the next state, or another one:

    V(t) = p V(t+1) + (1 - p) U(t),        V(end) = the reward that was earned,

where U(t) is the expected reward after leaving the completion at token t. Only U has to be sampled,
only where 1 - p is not nothing, and its noise is scaled by 1 - p: a token that the policy was
certain of cannot move the value, and costs nothing. This is conditioning on the first token
(Rao and Blackwell), telescoped along the completion; every V is unbiased.

Where ``allocation`` wants less than one continuation, n < 1, one is drawn with probability n, and
what it says counts 1 / n times (Russian roulette): with w = (1 - p) / n where one was drawn and
0 where none was, V(t) = V(t+1) + w (X - V(t+1)) is as unbiased.

Over the observations of several turns V stands still: an environment is a pure function of what
was said. Only sampled tokens can leave, and where another one ends its turn, or the episode, the
environment answers it anew.

How many continuations a state gets depends on the probabilities and lengths alone, which are known
before any is drawn, so that the allocation biases neither a value nor a product of two splits. (An
allocation by the rewards of first continuations would, unless these were thrown away.)

Letters: ``H`` independent splits; ``E`` = T + 1 states of a completion, the last being its end; the
others as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segcredit.episodes import resume
from segcredit.errors import StudyError
from segcredit.protocols import Policy, Prompt, SupportsAlternatives, Task, capability
from segcredit.types import RolloutBatch, SamplingParams

CERTAIN = 1e-6
"""Probability of leaving up to which a token counts as certain: float32 knows no smaller one well.
What a value loses at such a token is at most this, times the range of the rewards."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredValues:
    """V at every state of every completion, in splits that share no continuation."""

    values: Float[Tensor, "B H E"]
    """NaN beyond a completion's end; equal to its reward at its end. What an environment gave for
    turns before a state is part of its value."""
    errors: Float[Tensor, "B H E"]
    """Standard errors of one split's values, from the spread of the continuations of all splits.
    Their squares are unbiased but for a cut at 0: a mean of them over many states says how far
    values are off, the error of a single late state, from few continuations, says little."""
    jump_errors: Float[Tensor, "B H T"]
    """Standard errors of V(t+1) - V(t), whose two ends share most of their noise; NaN beyond."""
    counts: Int[Tensor, "B H T"]
    """Continuations that left at each token."""
    tokens: int
    """Tokens sampled."""


def measure(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    *,
    continuations: float,
    splits: int = 2,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    micro_tokens: int,
    generator: torch.Generator,
) -> MeasuredValues:
    """Measures the value of every state of some completions of a frozen policy.

    Args:
        policy: that sampled them, unchanged since.
        task: verifies the continuations.
        prompts: (B) of each completion.
        rollouts: the completions; their log-probs are the policy's.
        continuations: in each split, for each token, on average over all tokens of ``rollouts``;
            spread by ``allocation``; above 0, and may be below 1.
        splits: independent estimates of every value, at least 2: products of two are unbiased for
            squares.
        max_new_tokens: limit of a completion, that of the ``rollouts``.
        stop: strings that end a completion, likewise.
        micro_tokens: most tokens in one pass.
        generator: where the draws come from.

    Raises:
        StudyError: too few splits or continuations; a mask with holes in one turn, which nobody
            can fill in again; completions of another limit.
    """
    _require(continuations, splits, rollouts, max_new_tokens)
    leave_BT = leaving(rollouts)
    wanted_BT = allocation(leave_BT, rollouts.action_mask, continuations)
    counts_BHT = _counts(wanted_BT, splits, generator)
    rewards_N, tokens = _leave(
        policy,
        task,
        prompts,
        rollouts,
        counts_BHT.sum(1),
        params=SamplingParams(max_new_tokens=max_new_tokens, stop=stop),
        micro_tokens=micro_tokens,
        generator=generator,
    )
    means_BHT, variances_BT = _by_state(rewards_N, counts_BHT)
    weights_BHT = (leave_BT / wanted_BT.clamp(1e-30, 1.0))[:, None] * (counts_BHT > 0)
    values_BHE = _telescope(rollouts.rewards, weights_BHT, means_BHT)
    errors_BE, jump_errors_BT = _errors(
        leave_BT, wanted_BT < 1, values_BHE, variances_BT / counts_BHT[:, 0].clamp(min=1)
    )
    beyond_BE = _beyond(rollouts.action_mask)[:, None]
    nan = torch.nan
    return MeasuredValues(
        values_BHE.masked_fill(beyond_BE, nan),
        errors_BE[:, None].repeat(1, splits, 1).masked_fill(beyond_BE, nan),
        jump_errors_BT[:, None].repeat(1, splits, 1).masked_fill(beyond_BE[..., 1:], nan),
        counts_BHT,
        tokens,
    )


def leaving(rollouts: RolloutBatch) -> Float[Tensor, "B T"]:
    """Computes 1 - p of each token in float64; 0 off the mask and up to ``CERTAIN``."""
    leave_BT = -torch.expm1(rollouts.logprobs.double()).clamp(max=0.0)
    return leave_BT.masked_fill(~rollouts.action_mask | (leave_BT <= CERTAIN), 0.0)


def allocation(
    leave_BT: Float[Tensor, "B T"], mask_BT: Tensor, continuations: float
) -> Float[Tensor, "B T"]:
    """Allots continuations to each token, in each split; below 1, the probability of one.

    In proportion to (1 - p) sqrt(w / c), which, were U equally noisy everywhere, would make the
    mean squared error of V smallest for a number of tokens (Neyman's allocation with costs): c
    tokens are left, which a continuation costs, and U's noise enters V(t) and, as far as the
    tokens between are certain, every earlier value: w(t) = 1 + p(t-1)² w(t-1), where an
    observation adds no value of its own. Never less than 1 - p, so that a value stays between the
    rewards. Above 1 it is whole.
    """
    left_BT = _still_to_come(mask_BT)
    reach_BT = mask_BT.to(leave_BT)
    for t in range(1, mask_BT.shape[1]):
        reach_BT[:, t] += (1 - leave_BT[:, t - 1]) ** 2 * reach_BT[:, t - 1]
    wish_BT = leave_BT * (reach_BT / left_BT.clamp(min=1)).sqrt()
    share_BT = wish_BT / wish_BT.sum().clamp(min=1e-30)
    wanted_BT = torch.maximum(share_BT * mask_BT.sum() * continuations, leave_BT)
    return torch.where(wanted_BT < 1, wanted_BT, wanted_BT.round())


def _counts(wanted_BT: Tensor, splits: int, generator: torch.Generator) -> Tensor:
    """Draws (B,H,T) the numbers of continuations: as wanted, or one with the wanted probability."""
    shape = (wanted_BT.shape[0], splits, wanted_BT.shape[1])
    drawn_BHT = torch.rand(shape, dtype=torch.float64, generator=generator)
    wanted_B1T = wanted_BT[:, None]
    some_BHT = drawn_BHT.to(wanted_BT.device) < wanted_B1T
    return torch.where(wanted_B1T < 1, some_BHT.double(), wanted_B1T).long()


def _leave(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    counts_BT: Tensor,
    *,
    params: SamplingParams,
    micro_tokens: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Samples (N,) rewards after leaving, row by row and token by token, and counts tokens."""
    asked_BT = counts_BT > 0
    rows_N, places_N = (
        x.repeat_interleave(counts_BT[asked_BT]) for x in asked_BT.nonzero(as_tuple=True)
    )
    if not len(rows_N):
        return rollouts.rewards.new_empty(0, dtype=torch.float64), 0
    other = capability(policy, SupportsAlternatives, "the audit's truth")
    instead_N = other.alternatives(
        rollouts, counts_BT, micro_tokens=micro_tokens, generator=generator
    )
    found, tokens = resume(
        policy,
        task,
        [prompts[row] for row in rows_N.tolist()],
        rollouts,
        rows_N,
        places_N + 1,
        params=params,
        instead_N=instead_N,
        micro_tokens=micro_tokens,
        generator=generator,
    )
    return found.rewards.double(), tokens + len(rows_N)


def _by_state(rewards_N: Tensor, counts_BHT: Tensor) -> tuple[Tensor, Tensor]:
    """Computes (B,H,T) means of each split's continuations, and (B,T) the variance of one.

    The draws of a state are in one run, splits one after the other. Its splits draw alike, so
    that their spreads are pooled: two splits of one continuation each still say something.
    """
    counts_BTH = counts_BHT.transpose(1, 2)
    cells = torch.arange(counts_BTH.numel(), device=rewards_N.device)
    cells_N = cells.repeat_interleave(counts_BTH.flatten())
    sums = rewards_N.new_zeros(counts_BTH.numel()).index_add(0, cells_N, rewards_N)
    means_BTH = sums.view(counts_BTH.shape) / counts_BTH.clamp(min=1)

    n_BT = counts_BTH.sum(2)
    state_means_BT = sums.view(counts_BTH.shape).sum(2) / n_BT.clamp(min=1)
    states_N = cells_N // counts_BTH.shape[2]
    off_N = rewards_N - state_means_BT.flatten()[states_N]
    squares = rewards_N.new_zeros(n_BT.numel()).index_add(0, states_N, off_N**2)
    return means_BTH.transpose(1, 2), squares.view(n_BT.shape) / (n_BT - 1).clamp(min=1)


def _telescope(rewards_B: Tensor, weights_BHT: Tensor, means_BHT: Tensor) -> Tensor:
    """Computes (B,H,E) values from the end to the beginning; behind the end they are the reward.

    V(t) = V(t+1) + w (mean - V(t+1)): each state needs the one after it.
    """
    value_BH = rewards_B.double()[:, None].expand(weights_BHT.shape[:2])
    values = [value_BH]
    for t in reversed(range(weights_BHT.shape[2])):
        value_BH = value_BH + weights_BHT[:, :, t] * (means_BHT[:, :, t] - value_BH)
        values.append(value_BH)
    return torch.stack(values[::-1], 2)


def _errors(
    leave_BT: Tensor, roulette_BT: Tensor, values_BHE: Tensor, noise_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes (B,E) and (B,T) the standard errors of one split's values and jumps.

    With q = 1 - p and v the variance of V(t+1), a token that every split draws at adds U's noise:
    var V(t) = p² v + q² noise, var jump = q² (v + noise). At one of the roulette the jump's
    variance s² is that between the splits, and since E[jump | V(t+1)] = q (V(t+1) - U):
    var V(t) = (1 - 2q) v + s².
    """
    jumps_BHT = values_BHE[..., 1:] - values_BHE[..., :-1]
    between_BT = (jumps_BHT - jumps_BHT.mean(1, keepdim=True)).square().sum(1)
    between_BT = between_BT / (jumps_BHT.shape[1] - 1)
    variances_BE, jumps_BT = torch.zeros_like(values_BHE[:, 0]), torch.zeros_like(leave_BT)
    for t in reversed(range(leave_BT.shape[1])):
        leave_B, after_B = leave_BT[:, t], variances_BE[:, t + 1]
        drawn_B = leave_B**2 * (after_B + noise_BT[:, t])
        jumps_BT[:, t] = torch.where(roulette_BT[:, t], between_BT[:, t], drawn_B)
        variances_BE[:, t] = (1 - 2 * leave_B) * after_B + jumps_BT[:, t]
    return variances_BE.clamp(min=0).sqrt(), jumps_BT.clamp(min=0).sqrt()


def _beyond(mask_BT: Tensor) -> Tensor:
    """Marks (B,E) the states behind a completion's end."""
    states_E = torch.arange(mask_BT.shape[1] + 1, device=mask_BT.device)
    return states_E > lengths(mask_BT)[:, None]


def lengths(mask_BT: Tensor) -> Tensor:
    """Counts (B,) the tokens of each completion up to its last sampled one, observations too."""
    return (_still_to_come(mask_BT) > 0).sum(1)


def _still_to_come(mask_BT: Tensor) -> Tensor:
    """Counts (B,T) the sampled tokens from each place on."""
    return mask_BT.flip(1).cumsum(1).flip(1)


def _require(
    continuations: float, splits: int, rollouts: RolloutBatch, max_new_tokens: int
) -> None:
    if not continuations > 0 or splits < 2:
        raise StudyError(
            f"continuations are {continuations} and splits {splits}; expected more than 0 and at"
            " least 2: a square is measured without bias only as the product of two independent"
            " values."
        )
    mask_BT, several = rollouts.action_mask, rollouts.turn_ids is not None
    if not several and bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
        raise StudyError(
            "a completion without turn_ids has tokens that the policy did not choose between those"
            " that it did; expected none in a completion of one turn, since nobody could fill them"
            " in again. Usually the turns of these rollouts were dropped: keep their turn_ids."
        )
    lengths_B = lengths(mask_BT)
    # Of several turns, the limit of turns cuts, too.
    if bool((lengths_B > max_new_tokens).any()) or bool(
        (rollouts.truncated & (lengths_B != max_new_tokens)).any() and not several
    ):
        raise StudyError(
            f"max_new_tokens is {max_new_tokens}, but the completions have up to"
            f" {int(lengths_B.max())} tokens, or were cut at another limit; expected the limit with"
            " which they were sampled, since a value is that of completions up to it."
        )
