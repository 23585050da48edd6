"""Steps 2 and 3 of the loop: segment, value, credit, over the rollouts of step 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from segcredit.config import LossConfig, RewardSource
from segcredit.errors import PolicyError, blame
from segcredit.objective import loss_masks, returns
from segcredit.objective.group_statistics import group_mean, group_size
from segcredit.protocols import AdvantageScheme, Prompt, checked_segments, readable
from segcredit.rng import stream
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run
from segcredit.training.distributed.all_gather import all_rows, own_rows
from segcredit.training.rollouts.sampling import Sampled, sample, with_reference
from segcredit.training.rollouts.simulator import PolicySimulator, SharedSimulator
from segcredit.types import Advantages, RolloutBatch, SegmentValues, require_values


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """One step's rollouts and the credit drawn from them: this process's rows."""

    rollouts: RolloutBatch
    simulator: PolicySimulator
    """Knows the prompts of all processes."""
    segmentation: Segmentation
    ratio_segmentation: Segmentation
    values: SegmentValues
    """The values at the segments' anchors, and the segments' rewards."""
    states: Segmentation
    """The segments that the estimator values, and learns at: ``segmentation``, or one a token."""
    state_values: SegmentValues
    """The values of ``states``."""
    targets: Tensor
    """Regression targets of ``state_values``, one for each of ``states``."""
    segment_targets: Tensor
    """The targets at the segments' anchors, (B,S)."""
    advantages: Advantages
    token_weights: Tensor
    """Weights of tokens in the loss, (B,T), in [0,1]."""
    count_weights: Tensor
    """Weights of tokens in the loss's denominators, (B,T), in [0,1]."""
    corrections: Tensor | None
    """Factors of tokens' losses, (B,T), where sampler and policy differ; None = 1 each."""
    sampled: Sampled
    """The sampling step that the rollouts are of."""
    whole: SegmentValues
    """``state_values`` of all processes, process 0's first."""
    clamped_share: Tensor | None
    """Share of the batch's squared credit that the scheme's bound cut off; None without one."""
    further: tuple[TrainingBatch, ...] = ()
    """The same rollouts with each of the further credits, by itself and before its weight."""
    own_advantages: Advantages | None = None
    """The method's own credit where there are further ones, and ``advantages`` are the sum: that
    of each token, and of a segment the mean over its tokens. None without further credits."""

    def each_credit(self) -> tuple[Tensor, ...]:
        """Returns (B,T) each credit of the sum, the method's own first, before its weight."""
        own = self.own_advantages or self.advantages
        return (own.per_token, *(each.advantages.per_token for each in self.further))

    @property
    def simulated_tokens(self) -> int:
        """Tokens that estimators sampled, those of further credits included."""
        return self.simulator.tokens + sum(each.simulator.tokens for each in self.further)


def collect(run: Run, step: int) -> TrainingBatch:
    """Samples a batch under the current policy and assigns credit to its segments.

    Raises:
        TrainingError: every completion is empty, or another process failed.
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    return assign(run, sample(run, step), step)


def assign(run: Run, sampled: Sampled, step: int, *, in_hindsight: bool = False) -> TrainingBatch:
    """Assigns credit to rollouts that are there already: cuts and values their segments first.

    Args:
        run: whose plug-ins do it.
        sampled: the rollouts, and the prompts that an estimator may ask for again.
        step: names the random generators.
        in_hindsight: take the undiscounted returns that came for values, in the place of the
            estimator's, so that regression targets are free of bootstrapping whatever its lambda.

    Raises:
        TrainingError: another process failed; gives its sentence.
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    with run.processes.error_barrier():
        sampled = replace(sampled, rollouts=_with_what_is_read(run, sampled.rollouts))
    own, *others = (
        _assigned(each, sampled, step, in_hindsight=in_hindsight) for each in run.credits
    )
    return own if not others else _summed(run, replace(own, further=tuple(others)))


def _summed(run: Run, batch: TrainingBatch) -> TrainingBatch:
    """Adds the further credits to a batch's own."""
    weights = [1.0, *(each.weight for each in run.further)]
    sum_BT = torch.stack([w * x for w, x in zip(weights, batch.each_credit(), strict=True)]).sum(0)
    plugin, table, clamped = run.method.credit_scheme, run.config.credit_scheme, None
    if plugin is not None and table is not None:
        mask_BT = batch.rollouts.action_mask
        every = Segmentation.from_starts(mask_BT, mask_BT)
        credit = returns.segment_values(
            batch.rollouts.replace(token_rewards=sum_BT),
            every,
            torch.zeros(every.mask.shape).to(sum_BT),
            token_weights=batch.token_weights,
        )
        whole = all_rows(run.processes, credit)
        with run.processes.error_barrier():
            scaled_BS, clamped = _scheme(plugin, str(table["name"]), whole)
        own_BS = own_rows(run.processes, scaled_BS, len(sum_BT))[:, : every.width]
        sum_BT = every.spread(own_BS.masked_fill(~every.mask, 0))
    mean_BS = batch.segmentation.reduce(sum_BT, "mean")
    return replace(
        batch,
        advantages=Advantages(per_segment=mean_BS, per_token=sum_BT),
        own_advantages=batch.advantages,
        clamped_share=clamped,
    )


def _assigned(run: Run, sampled: Sampled, step: int, *, in_hindsight: bool) -> TrainingBatch:
    """Assigns one credit: that of the run's own method, see ``assign``."""
    config, processes, estimator = run.config, run.processes, run.method.estimator
    rollouts = _of_source(sampled.rollouts, config.reward_source)
    simulator = _simulator(run, sampled, rollouts, step)
    weights_BT, counts_BT = _loss_tokens(run, rollouts)
    # Prompts of all processes: each meets every one, so that the state stays the same on all.
    with torch.no_grad(), blame("estimator", config.estimator["name"], estimator):
        keys = list(simulator.prompts)
        estimator.meet(run.state.module, keys, SharedSimulator(simulator, processes))
    with processes.error_barrier():
        segmentation, ratio_segmentation = _segmentations(run, rollouts)
        corrections_BT = _corrections(run, rollouts, ratio_segmentation)
        states, values, state_values = _valued(
            run, rollouts, segmentation, simulator, weights_BT, in_hindsight=in_hindsight
        )
    # Schemes read statistics of the whole batch, such as a standard deviation: every process
    # computes the advantages of all rows, and keeps its own.
    whole, size = all_rows(processes, values), values.mask.shape
    whole_states = whole if states is segmentation else all_rows(processes, state_values)
    with processes.error_barrier():
        every_target_BN, every_BS, clamped = _credited(run, whole, whole_states)
    # The widest process decides the columns of all rows; beyond its own there are no segments.
    own_BS = own_rows(processes, every_BS, len(rollouts))[:, : size[1]]
    targets_BN = own_rows(processes, every_target_BN, len(rollouts))[:, : states.width]
    return TrainingBatch(
        rollouts=rollouts,
        simulator=simulator,
        segmentation=segmentation,
        ratio_segmentation=ratio_segmentation,
        values=values,
        states=states,
        state_values=state_values,
        targets=targets_BN,
        segment_targets=_at_anchors(run, states, segmentation, targets_BN),
        advantages=returns.advantages(segmentation, values, own_BS),
        token_weights=weights_BT,
        count_weights=counts_BT,
        corrections=corrections_BT,
        sampled=sampled,
        whole=whole_states,
        clamped_share=clamped,
    )


def _valued(
    run: Run,
    rollouts: RolloutBatch,
    segmentation: Segmentation,
    simulator: PolicySimulator,
    weights_BT: Tensor,
    *,
    in_hindsight: bool,
) -> tuple[Segmentation, SegmentValues, SegmentValues]:
    """Returns the states that the estimator values, and the values of segments and of states."""
    joined = partial(returns.segment_values, rollouts, token_weights=weights_BT)
    states = segmentation
    if run.method.estimator.value_states == "tokens":
        states = Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)
    earned_BS = earned_BN = _process(run, rollouts, segmentation)
    if earned_BS is not None and states is not segmentation:  # by a segment's last token
        earned_BN = states.reduce(segmentation.spread(earned_BS) * segmentation.ends)
    if in_hindsight:
        nothing_BN = torch.zeros(states.mask.shape).to(rollouts.token_rewards)
        values_BN = returns.lambda_returns(joined(states, nothing_BN, process_rewards_BS=earned_BN))
    else:
        values_BN = _values(run, rollouts, states, simulator)
    state_values = joined(states, values_BN, process_rewards_BS=earned_BN)
    if states is segmentation:
        return states, state_values, state_values
    values_BS = _at_anchors(run, states, segmentation, values_BN)
    return states, joined(segmentation, values_BS, process_rewards_BS=earned_BS), state_values


def _credited(
    run: Run, whole: SegmentValues, whole_states: SegmentValues
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes the states' regression targets, the segments' advantages and the share clamped."""
    config, estimator = run.config, run.method.estimator
    known = (whole.values, whole.rewards)
    with torch.no_grad(), blame("estimator", config.estimator["name"], estimator):
        targets_BN = estimator.targets(whole_states)
        require_values("targets", targets_BN, whole_states.mask, *known)
    return targets_BN, *_scheme(run.method.advantage, config.advantage["name"], whole)


def _scheme(
    scheme: AdvantageScheme, name: str, whole: SegmentValues
) -> tuple[Tensor, Tensor | None]:
    """Asks a scheme for the advantages of all rows; tells the share that its bound cut off."""
    with blame("advantage", name, scheme):
        advantages_BS = scheme(whole)
        known = (whole.values, whole.rewards)
        require_values("the advantage scheme", advantages_BS, whole.mask, *known)
        unclamped_BS = scheme.unclamped(whole)
        clamped = None if unclamped_BS is None else _cut(advantages_BS, unclamped_BS, whole)
    return advantages_BS, clamped


def _of_source(rollouts: RolloutBatch, source: RewardSource) -> RolloutBatch:
    """Returns rollouts whose token rewards are those that a credit is drawn from."""
    if source == "all":
        return rollouts
    mask_BT = rollouts.action_mask
    every_BT = rollouts.token_rewards.masked_fill(~mask_BT, 0)
    last_BT = returns.token_rewards(torch.ones_like(rollouts.rewards), mask_BT)
    kept_BT = {
        "outcome": last_BT * every_BT.sum(1, keepdim=True),
        "last": last_BT * every_BT,
        "turn": (1 - last_BT) * every_BT,
        "process": torch.zeros_like(every_BT),
    }[source]
    return rollouts.replace(token_rewards=kept_BT)


def _with_what_is_read(run: Run, rollouts: RolloutBatch) -> RolloutBatch:
    """Adds what estimators may read of groups and of the starting policy."""
    others_B = (group_size(rollouts.group) - 1).to(rollouts.rewards.dtype)
    total_B = group_mean(rollouts.rewards, rollouts.group) * (others_B + 1)
    # 0 / 0 is NaN, for the only completion of its prompt.
    others_reward = (total_B - rollouts.rewards).masked_fill(others_B == 0, 0) / others_B
    for each in run.credits:
        rollouts = with_reference(each, rollouts)
    return rollouts.replace(others_reward=others_reward)


def _at_anchors(run: Run, states: Segmentation, segmentation: Segmentation, x_BN: Tensor) -> Tensor:
    """Reads off numbers of valued states at the anchors of segments: (B,S), 0 where is none."""
    if states is segmentation:
        return x_BN
    anchors_BS = segmentation.anchors(run.method.estimator.anchor)
    return states.spread(x_BN).gather(1, anchors_BS).masked_fill(~segmentation.mask, 0)


def _cut(clamped_BS: Tensor, unclamped_BS: Tensor, values: SegmentValues) -> Tensor:
    """Computes the share of the loss's squared credit that a bound cut off; 0 where none is."""
    kept, every = (
        (x_BS.masked_fill(~values.mask, 0).square() * values.weights).sum()
        for x_BS in (clamped_BS, unclamped_BS)
    )
    return torch.where(every > 0, 1 - kept / every, 0)


def _simulator(run: Run, sampled: Sampled, rollouts: RolloutBatch, step: int) -> PolicySimulator:
    """Builds a simulator for the prompts of all processes, with this process's own generator."""
    scores = sampled.scores
    here: dict[str, Prompt] = {prompt.key: prompt for prompt in sampled.prompts}
    return PolicySimulator(
        policy=run.actor,
        task=run.task,
        prompts={
            key: prompt for share in run.processes.gather(here) for key, prompt in share.items()
        },
        params=run.config.rollouts.sampling(),
        micro_tokens=run.config.train.micro_tokens,
        generator=stream(run.config.seed, run.processes.named("estimator"), step),
        reads=run.method.estimator.reads,
        known=None if scores is None else (rollouts.completion_ids, scores.detached()),
    )


def _segmentations(run: Run, rollouts: RolloutBatch) -> tuple[Segmentation, Segmentation]:
    """Cuts the rollouts into segments of credit, and into those of the importance ratio."""
    config = run.config
    segmentation = checked_segments(run.method.segmenter, config.segmenter["name"], rollouts)
    if run.method.ratio_segmenter is None or config.loss.ratio_segmenter is None:
        return segmentation, segmentation
    name = config.loss.ratio_segmenter["name"]
    return segmentation, checked_segments(run.method.ratio_segmenter, name, rollouts)


def _values(
    run: Run, rollouts: RolloutBatch, states: Segmentation, simulator: PolicySimulator
) -> Tensor:
    """Estimates the value of each of ``states``.

    Raises:
        PluginError: the estimator raised, or returned what does not fit.
    """
    estimator = run.method.estimator
    read = readable(rollouts, estimator.reads)
    with torch.no_grad(), blame("estimator", run.config.estimator["name"], estimator):
        values_BN = estimator.estimate(run.state.module, read, states, simulator)
        require_values("estimate", values_BN, states.mask, rollouts.rewards)
    return values_BN


def _loss_tokens(run: Run, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
    """Computes (B,T) weights of tokens in the loss, and those in its denominators."""
    loss: LossConfig = run.config.loss
    every_BT = rollouts.action_mask.to(rollouts.logprobs.dtype)
    if loss.shared_tokens == "once":
        every_BT = loss_masks.shared_token_weights(rollouts.node_ids, rollouts.action_mask)
    if loss.tokens == "low_probability":
        chosen_BT = loss_masks.low_probability(
            rollouts.logprobs, rollouts.action_mask, loss.probability_below
        )
    elif loss.tokens == "high_entropy":
        own_N = loss_masks.action_entropies(rollouts.entropies, rollouts.action_mask)
        chosen_BT = loss_masks.high_entropy(
            rollouts.entropies,
            rollouts.action_mask,
            loss.entropy_share,
            among=run.processes.all_gather(own_N),
        )
    else:
        chosen_BT = rollouts.action_mask
    weights_BT = every_BT * chosen_BT
    return weights_BT, every_BT if loss.count == "all" else weights_BT


def _corrections(run: Run, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor | None:
    """Computes factors of tokens' losses, (B,T), where the sampler's distribution is another.

    Raises:
        PolicyError: the sampler does not tell its log-probs.
        PluginError: the correction raised, or returned what does not fit.
    """
    plugin, table = run.method.correction, run.config.loss.correction
    if plugin is None or table is None:
        return None
    if (sampler_BT := rollouts.sampler_logprobs) is None:
        raise PolicyError(
            f"loss.correction is {table['name']!r}, but sampler {run.config.sampler['name']!r}"
            " does not tell the log-probs it drew with; expected one that returns them"
            " (SampledTokens.logprobs), as inference engines can. A sampler that runs the"
            " trainer's own model has nothing to correct: set loss.correction = 'none'."
        )
    mask_BT = rollouts.action_mask
    ratio_BT = (rollouts.logprobs - sampler_BT).masked_fill(~mask_BT, 0)
    with blame("correction of the sampler", table["name"], plugin):
        factors_BT = plugin(ratio_BT, mask_BT, segmentation)
        require_values("its call", factors_BT, mask_BT)
    return factors_BT


def _process(run: Run, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor | None:
    """Computes (B,S) process rewards; None where the method has none."""
    if run.method.process_reward is None or run.config.process_reward is None:
        return None
    plugin = run.method.process_reward
    with blame("process reward", run.config.process_reward["name"], plugin):
        rewards_BS = plugin.reward(rollouts, segmentation)
        require_values("reward", rewards_BS, segmentation.mask)
    return rewards_BS
