"""Steps 1 to 3 of the loop: sample, verify, score, segment, value, credit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit import credit
from segcredit.build import Run
from segcredit.errors import PluginError, SegcreditError, TrainingError
from segcredit.objective import kl_divergence
from segcredit.protocols import Segmenter
from segcredit.segmentation import Segmentation
from segcredit.simulator import PolicySimulator, as_rollouts, complete, score
from segcredit.streams import stream
from segcredit.types import Advantages, RolloutBatch, SegmentValues


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """One step's rollouts and the credit drawn from them."""

    rollouts: RolloutBatch
    simulator: PolicySimulator
    segmentation: Segmentation
    ratio_segmentation: Segmentation
    values: SegmentValues
    targets: Tensor
    """(B,S) regression targets of the values."""
    advantages: Advantages
    token_weights: Tensor
    """(B,T) how far the loss counts each token."""


def collect(run: Run, step: int) -> Experience:
    """Sample a batch under the current policy and assign credit to its segments.

    Raises:
        TrainingError: every completion is empty.
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    rollouts, simulator = _sample(run, step)
    config = run.config
    segmentation = _segment(run.segmenter, config.segmenter["name"], rollouts)
    ratio_segmentation = segmentation
    if run.ratio_segmenter is not None and config.loss.ratio_segmenter is not None:
        name = config.loss.ratio_segmenter["name"]
        ratio_segmentation = _segment(run.ratio_segmenter, name, rollouts)
    with torch.no_grad(), blame("estimator", config.estimator["name"]):
        values_BS = run.estimator.estimate(run.state.module, rollouts, segmentation, simulator)
        values = credit.segment_values(
            rollouts,
            segmentation,
            values_BS,
            process_rewards_BS=_process(run, rollouts, segmentation),
        )
        targets_BS = run.estimator.targets(values)
    with blame("advantage", config.advantage["name"]):
        advantages = credit.advantages(segmentation, values, run.advantage(values))
    return Experience(
        rollouts=rollouts,
        simulator=simulator,
        segmentation=segmentation,
        ratio_segmentation=ratio_segmentation,
        values=values,
        targets=targets_BS,
        advantages=advantages,
        token_weights=rollouts.action_mask.to(rollouts.logprobs.dtype),
    )


def _sample(run: Run, step: int) -> tuple[RolloutBatch, PolicySimulator]:
    """Prompts x completions, verified and scored, with the token rewards of the config."""
    config = run.config
    policy = run.actor
    sizes = config.rollouts
    prompts = run.task.prompts(sizes.prompts, stream(config.seed, "prompts", step))
    completions = complete(
        policy,
        run.task,
        [prompt for prompt in prompts for _ in range(sizes.completions)],
        max_new_tokens=sizes.max_new_tokens,
        greedy=False,
        generator=stream(config.seed, "sampling", step),
    )
    rollouts = as_rollouts(completions, policy, micro_tokens=config.train.micro_tokens)
    if not rollouts.action_mask.any():
        raise TrainingError(
            f"all {len(rollouts)} completions of step {step} are empty: there is no token to give"
            " credit to. The usual cause is a prompt template that already ends the answer, or a"
            " policy that masks its own tokens. Look at rollouts.max_new_tokens and the task's"
            " prompts."
        )
    simulator = PolicySimulator(
        policy=policy,
        task=run.task,
        prompts={prompt.key: prompt for prompt in prompts},
        max_new_tokens=sizes.max_new_tokens,
        micro_tokens=config.train.micro_tokens,
        generator=stream(config.seed, "estimator", step),
    )
    return _with_reference(run, rollouts), simulator


def _with_reference(run: Run, rollouts: RolloutBatch) -> RolloutBatch:
    """Reference log-probs where a KL term needs them, and its penalty in the token rewards."""
    if run.reference is None:
        return rollouts
    reference_BT = score(
        run.reference, rollouts, micro_tokens=run.config.train.micro_tokens
    ).logprobs
    penalty_BT = run.config.loss.kl_penalty * kl_divergence(rollouts.logprobs, reference_BT, "k1")
    return rollouts.replace(
        reference_logprobs=reference_BT,
        token_rewards=credit.token_rewards(rollouts.rewards, rollouts.action_mask, penalty_BT),
    )


def _segment(segmenter: Segmenter, name: str, rollouts: RolloutBatch) -> Segmentation:
    with blame("segmenter", name):
        segmentation = segmenter.segment(rollouts)
    if not torch.equal(segmentation.action_mask, rollouts.action_mask):
        rows = (segmentation.action_mask != rollouts.action_mask).any(1).nonzero()
        raise PluginError(
            f"segmenter {name!r} returned segments that do not cover exactly the action tokens of"
            f" completion {int(rows[0])}: padding and holes must have segment -1 and every action"
            " token a segment. Pass rollouts.action_mask to Segmentation.from_starts."
        )
    return segmentation


def _process(run: Run, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor | None:
    if run.process_reward is None or run.config.process_reward is None:
        return None
    with blame("process reward", run.config.process_reward["name"]):
        return run.process_reward.reward(rollouts, segmentation)


@contextmanager
def blame(kind: str, name: str) -> Generator[None]:
    """Name the plug-in in whatever it raises."""
    try:
        yield
    except SegcreditError as error:
        raise PluginError(f"{kind} {name!r}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"{kind} {name!r} raised {type(error).__name__}: {error}. Run segcredit.testing's"
            " checks over it to find the case that it does not bear."
        ) from error
