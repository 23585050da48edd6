"""A running estimate of how often each prompt is solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from annotated_types import Interval, Le
from torch import Tensor, nn

from segcredit import Policy, Reading, RolloutBatch, Segmentation, Simulator, ValueEstimator


class PromptTable(nn.Module):
    """Knowledge of each prompt, by its key: two counts and its latest completions."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, tuple[float, float]] = {}
        """alpha and beta: successes and failures that are still remembered."""
        self.latest: dict[str, dict[str, Tensor]] = {}
        """(K,T) ids, mask and log-probs at sampling time of the last step's completions."""

    def get_extra_state(self) -> dict[str, Any]:
        """Returns dicts, tuples, numbers and tensors alone: checkpoints load nothing else."""
        return {"counts": dict(self.counts), "latest": dict(self.latest)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the state that ``get_extra_state`` gave."""
        self.counts = dict(state["counts"])
        self.latest = dict(state["latest"])

    def solved(self, keys: Sequence[str]) -> Tensor:
        """Returns (K,) float64 alpha / (alpha + beta) of each prompt; 1/2 if not yet met."""
        pairs = [self.counts.get(key, (0.5, 0.5)) for key in keys]
        return torch.tensor([alpha / (alpha + beta) for alpha, beta in pairs], dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Tracker(ValueEstimator):
    """V = α / (α + β) of the prompt's Beta distribution, the same at every segment.

    After each step, for every prompt of it, with r the mean reward of its completions::

        α ← ρ α + r        β ← ρ β + 1 − r        ρ = clamp(2^(−D / half_life), low, high)

    D is the mean of |log p − log p'| over the action tokens of the prompt's previous completions,
    p being the policy that sampled them and p' the policy now: what was seen of a policy is
    forgotten as the policy moves away from it. A prompt met for the first time draws n =
    ``warm_samples`` completions, of which s is the sum of rewards, and starts with the weight
    N = 1 / (1 − low) of the shortest memory::

        α = N (s + ½) / (n + 1)        β = N (n − s + ½) / (n + 1)

    Assumption: rewards in [0,1], prompts that come again, and all states of a prompt worth the
    same. V does not depend on the step's own completions and leaves the expected gradient as it
    is. Degenerate case: a prompt that never comes again has its first estimate only. Cost:
    ``warm_samples`` completions at the first meeting, later one scoring pass a step; the latest
    completions of every prompt are kept, 9 bytes a token.

    Args:
        half_life: the D, in nats a token, at which half is forgotten.
        low, high: bounds of ρ; the memory is 1 / (1 − ρ) completions long, 8 to 25.
        warm_samples: completions drawn for a prompt's first estimate; 0 = none, and
            α = β = ½, a weight of one completion that the first rewards soon outweigh.
        exploration: added to sqrt(V (1 − V)), a prompt's weight when prompts are drawn.

    Source:
        Single-stream policy optimisation (SPO), Xu & Ding 2025, arXiv 2509.13232; constants and
        the half added to each count are those of the authors' recipe for verl. Its advantage is
        ``whitened`` with weight ``segment`` over ``whole``. Differences: the first estimate is
        made when a prompt is met, by the policy of that step, instead of for all prompts before
        training; D is measured from the policy that sampled the previous completions, where the
        recipe takes that policy one update later; several completions of a prompt count as one
        observation of their mean; rewards between 0 and 1 are not rounded up in the first estimate.
    """

    half_life: Annotated[float, Interval(ge=1e-9, le=1e9)] = 0.06
    low: float = 0.875
    high: float = 0.96
    warm_samples: Annotated[int, Le(10**5)] = 8
    exploration: Annotated[float, Le(1e6)] = 0.05

    def __post_init__(self) -> None:
        if self.half_life <= 0:
            raise ValueError(
                f"half_life is {self.half_life}; expected a number of nats above 0, such as 0.06."
            )
        if not 0 <= self.low <= self.high <= 1 or self.low == 1:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; expected 0 <= low <= high <= 1 with"
                " low below 1, such as 0.875 and 0.96."
            )
        if self.warm_samples < 0 or self.exploration < 0:
            raise ValueError(
                f"warm_samples is {self.warm_samples} and exploration is {self.exploration};"
                " expected neither to be negative, such as 8 and 0.05."
            )

    @property
    def reads(self) -> frozenset[Reading]:
        """The policy's log-probs, by which its movement is measured; nothing is trained on them."""
        return frozenset({"logprobs"})

    def start(self, policy: Policy) -> nn.Module:
        """Makes an empty table."""
        return PromptTable()

    def meet(self, state: nn.Module, prompt_keys: Sequence[str], simulator: Simulator) -> None:
        """Makes a first estimate for the prompts that are not in the table."""
        table = cast(PromptTable, state)
        # Sorted, so that the batch's order does not decide what is drawn for which prompt.
        keys = sorted(set(prompt_keys) - table.counts.keys())
        count = self.warm_samples
        if not keys or not count:
            table.counts.update(dict.fromkeys(keys, (0.5, 0.5)))
            return
        drawn = simulator.sample(keys, count)
        _require_unit_rewards(drawn)
        scale = 1 / (1 - self.low) / (count + 1)
        solved_P = _numbers(drawn.rewards.double().view(len(keys), count).sum(1))
        for key, solved in zip(keys, solved_P, strict=True):
            table.counts[key] = (scale * (solved + 0.5), scale * (count - solved + 0.5))

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the prompt's mean in every column; prompts not yet met enter the table."""
        table = cast(PromptTable, state)
        self._meet(table, rollouts, simulator)
        values_B = table.solved(rollouts.prompt_keys).to(rollouts.rewards)
        return values_B[:, None] * segmentation.mask

    def update(self, state: nn.Module, rollouts: RolloutBatch, simulator: Simulator) -> None:
        """Forgets as far as the policy has moved, then counts the step's rewards."""
        table = cast(PromptTable, state)
        self._meet(table, rollouts, simulator)
        drifts = _drifts(table, rollouts, simulator)
        rewards_B = rollouts.rewards.double()
        for key, rows_K in _rows_of_prompts(rollouts).items():
            rho = min(max(2 ** (-drifts.get(key, 0.0) / self.half_life), self.low), self.high)
            alpha, beta = table.counts[key]
            reward = float(rewards_B[rows_K].mean())
            table.counts[key] = (rho * alpha + reward, rho * beta + 1 - reward)
            table.latest[key] = _stored(rollouts, rows_K)

    def prompt_weights(self, state: nn.Module, prompt_keys: Sequence[str]) -> Tensor:
        """Returns (K,) sqrt(V (1 − V)) + ``exploration``, most for prompts solved half the time."""
        solved_K = cast(PromptTable, state).solved(prompt_keys)
        return ((solved_K * (1 - solved_K)).sqrt() + self.exploration).float()

    def _meet(self, table: PromptTable, rollouts: RolloutBatch, simulator: Simulator) -> None:
        """Enters the prompts of rollouts whose rewards can be counted."""
        _require_unit_rewards(rollouts)
        self.meet(table, rollouts.prompt_keys, simulator)


def _drifts(table: PromptTable, rollouts: RolloutBatch, simulator: Simulator) -> dict[str, float]:
    """Computes D of every prompt of these rollouts that has been met before."""
    rows = {key: row for row, key in reversed(list(enumerate(rollouts.prompt_keys)))}
    rows = {key: rows[key] for key in sorted(rows) if key in table.latest}
    if not rows:
        return {}
    counts_P = torch.tensor([len(table.latest[key]["ids"]) for key in rows])
    rows_N = torch.tensor(list(rows.values())).repeat_interleave(counts_P)
    index_N = torch.arange(len(rows)).repeat_interleave(counts_P)
    past = _with_completions(rollouts.select(rows_N), [table.latest[key] for key in rows])
    moved_NT = (simulator.score(past).logprobs - past.logprobs).abs()
    moved_N = moved_NT.masked_fill(~past.action_mask, 0).double().sum(1).cpu()
    tokens_N = past.action_mask.sum(1).double().cpu()
    blank_P = torch.zeros(len(rows), dtype=torch.float64)
    tokens_P = blank_P.index_add(0, index_N, tokens_N).clamp(min=1)
    drift_P = blank_P.index_add(0, index_N, moved_N) / tokens_P
    return dict(zip(rows, _numbers(drift_P), strict=True))


def _with_completions(rollouts: RolloutBatch, stored: Sequence[dict[str, Tensor]]) -> RolloutBatch:
    """Attaches stored completions to prompts, images included: enough to be scored."""
    width = max(one["ids"].shape[1] for one in stored)

    def joined(name: str) -> Tensor:
        wide = [nn.functional.pad(one[name], (0, width - one[name].shape[1])) for one in stored]
        return torch.cat(wide).to(rollouts.completion_ids.device)

    logprobs_NT = joined("logprobs")
    blank_NT = torch.zeros_like(logprobs_NT)
    return rollouts.replace(
        completion_ids=joined("ids").long(),
        action_mask=joined("mask"),
        logprobs=logprobs_NT,
        entropies=blank_NT,
        texts=("",) * len(blank_NT),
        token_spans=torch.zeros((*blank_NT.shape, 2), dtype=torch.long, device=blank_NT.device),
        token_rewards=blank_NT,
        sampler_logprobs=None,
        reference_logprobs=None,
        reference_entropies=None,
        reference_hidden=None,
        token_values=None,
        node_ids=torch.arange(blank_NT.numel(), device=blank_NT.device).view(blank_NT.shape),
    )


def _stored(rollouts: RolloutBatch, rows_K: Tensor) -> dict[str, Tensor]:
    """Keeps the fields of these rows that scoring needs, without padding behind the longest."""
    used = rollouts.action_mask[rows_K].any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return {
        "ids": rollouts.completion_ids[rows_K, :width].int().cpu(),
        "mask": rollouts.action_mask[rows_K, :width].cpu(),
        "logprobs": rollouts.logprobs[rows_K, :width].cpu(),
    }


def _rows_of_prompts(rollouts: RolloutBatch) -> dict[str, Tensor]:
    """Groups rows by prompt key: groups of two processes may share a prompt."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(rollouts.prompt_keys):
        rows.setdefault(key, []).append(row)
    device = rollouts.completion_ids.device
    return {key: torch.tensor(found, device=device) for key, found in rows.items()}


def _require_unit_rewards(rollouts: RolloutBatch) -> None:
    rewards_B = rollouts.rewards
    inside_B = (rewards_B >= 0) & (rewards_B <= 1)
    if not bool(inside_B.all()):
        row = int((~inside_B).nonzero()[0])
        raise ValueError(
            f"the reward of a completion of prompt {rollouts.prompt_keys[row]!r} is"
            f" {float(rewards_B[row]):g}; expected a number between 0 and 1, since the tracker"
            " counts successes. Scale the task's rewards, or choose another estimator, such as"
            " 'leave_one_out'."
        )


def _numbers(x: Tensor) -> list[float]:
    return x.cpu().numpy().tolist()
