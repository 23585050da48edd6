"""Steps 2 and 3 of the loop: segment, value, credit, over the rollouts of step 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit import credit, loss_tokens
from segcredit.build import Run
from segcredit.config import LossConfig
from segcredit.errors import PluginError, blame
from segcredit.protocols import Segmenter
from segcredit.sampling import Sampled, sample
from segcredit.segmentation import Segmentation
from segcredit.simulator import PolicySimulator
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
    """(B,T) how far the loss takes each token."""
    count_weights: Tensor
    """(B,T) how far its denominators count each token."""
    sampled: Sampled


def collect(run: Run, step: int) -> Experience:
    """Sample a batch under the current policy and assign credit to its segments.

    Raises:
        TrainingError: every completion is empty (``segcredit.sampling``).
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    return assign(run, sample(run, step), step)


def assign(run: Run, sampled: Sampled, step: int) -> Experience:
    """Segment, value and credit rollouts that are there already.

    Args:
        run: whose plug-ins do it.
        sampled: the rollouts, and the prompts that an estimator may ask for again.
        step: names the random streams.

    Raises:
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    rollouts, config = sampled.rollouts, run.config
    simulator = PolicySimulator(
        policy=run.actor,
        task=run.task,
        prompts={prompt.key: prompt for prompt in sampled.prompts},
        max_new_tokens=config.rollouts.max_new_tokens,
        micro_tokens=config.train.micro_tokens,
        generator=stream(config.seed, "estimator", step),
    )
    weights_BT, counts_BT = _loss_tokens(config.loss, rollouts)
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
            token_weights=weights_BT,
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
        token_weights=weights_BT,
        count_weights=counts_BT,
        sampled=sampled,
    )


def _loss_tokens(loss: LossConfig, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
    """(B,T) how far the loss takes each token, and how far its denominators count it."""
    every_BT = rollouts.action_mask.to(rollouts.logprobs.dtype)
    if loss.shared_tokens == "once":
        every_BT = loss_tokens.shared_token_weights(rollouts.node_ids, rollouts.action_mask)
    if loss.tokens == "low_probability":
        chosen_BT = loss_tokens.low_probability(
            rollouts.logprobs, rollouts.action_mask, loss.probability_below
        )
    elif loss.tokens == "high_entropy":
        chosen_BT = loss_tokens.high_entropy(
            rollouts.entropies, rollouts.action_mask, loss.entropy_share
        )
    else:
        chosen_BT = rollouts.action_mask
    weights_BT = every_BT * chosen_BT
    return weights_BT, every_BT if loss.count == "all" else weights_BT


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
