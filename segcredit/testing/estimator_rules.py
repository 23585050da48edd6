"""The rules for value estimators."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from segcredit.objective.returns import segment_values
from segcredit.protocols import readable, readable_scores
from segcredit.rng import forked
from segcredit.segmentation import Segmentation
from segcredit.testing.checked_plugin import CheckedPlugin, Rule, shuffled
from segcredit.testing.rollouts import pad_rollouts, segments_of_two
from segcredit.testing.toy import ToyPolicy, ToySimulator, toy_rollouts
from segcredit.types import RolloutBatch, SegmentValues


@dataclasses.dataclass(frozen=True)
class _Trial:
    """An estimator with its state and rollouts to work on."""

    checked: CheckedPlugin
    state: nn.Module
    rollouts: RolloutBatch
    segmentation: Segmentation
    simulator: ToySimulator

    def estimate(self, what: str = "ragged rollouts") -> Tensor:
        """Returns the plug-in's values, checked; the state of the trial stays as it is."""
        state, keys = copy.deepcopy(self.state), list(dict.fromkeys(self.rollouts.prompt_keys))
        with self.checked.using(what), torch.no_grad():
            self.checked.plugin.meet(state, keys, self.simulator)
            values_BS = self.checked.plugin.estimate(
                state, self.readable, self.segmentation, self.simulator
            )
        self.checked.require_values(values_BS, self.segmentation.mask, f"estimate(), on {what},")
        return values_BS.masked_fill(~self.segmentation.mask, 0)

    @property
    def readable(self) -> RolloutBatch:
        """The rollouts as the loop would give them: without what the plug-in does not read."""
        return readable(self.rollouts, self.checked.plugin.reads)

    def on(self, rollouts: RolloutBatch, segmentation: Segmentation) -> _Trial:
        """Returns the same estimator with its state, on other rollouts."""
        return dataclasses.replace(self, rollouts=rollouts, segmentation=segmentation)


def _trial(checked: CheckedPlugin, rollouts: RolloutBatch | None = None) -> _Trial:
    """Returns the plug-in once its state has seen a step, with segments of two tokens."""
    simulator = ToySimulator(reads=checked.plugin.reads)
    rollouts = toy_rollouts(simulator) if rollouts is None else rollouts
    with checked.using("start()"):
        state = checked.plugin.start(simulator.policy)
    _require_module(checked, state)
    with checked.using("update()"):
        seen = readable(toy_rollouts(simulator), checked.plugin.reads)
        checked.plugin.update(state, seen, simulator)
    return _Trial(checked, state, rollouts, segments_of_two(rollouts), simulator)


def _require_module(checked: CheckedPlugin, state: object) -> None:
    if not isinstance(state, nn.Module):
        checked.broke(
            "start() returns the state as an nn.Module",
            found=f"{type(state).__name__}",
            expected="an nn.Module, an empty one when there is no state",
            cause="a table kept in a dict; put it in a module with get_extra_state",
        )


def _state_is_module(checked: CheckedPlugin) -> None:
    _trial(checked)


def _estimates_each_segment(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    trial.estimate()
    mask_BT = trial.rollouts.action_mask
    for starts_BT, what in ((mask_BT, "a segment a token"), (~mask_BT, "a segment a row")):
        trial.on(trial.rollouts, Segmentation.from_starts(starts_BT, mask_BT)).estimate(what)


def _estimator_is_pure(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    before = copy.deepcopy(trial.rollouts)
    first_BS = trial.estimate()
    checked.require_untouched(before, trial.rollouts, "estimate()")
    torch.rand(3)
    if not torch.equal(first_BS, trial.estimate()):
        checked.broke(
            "estimate() gives the same values for the same state and rollouts",
            found="other values at the second call",
            expected="the same values",
            cause="a random draw from a global generator, or dropout left on",
        )


def _estimator_ignores_batch_order(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    order = shuffled(len(trial.rollouts))
    moved = trial.on(trial.rollouts.select(order), trial.segmentation.select(order))
    moved_BS = moved.estimate("rollouts in another order")
    checked.require_close(
        moved_BS,
        trial.estimate()[order],
        rule="a completion's values do not depend on the order of the batch",
        cause="rows taken for groups by their place; use rollouts.group",
    )


def _estimator_ignores_padding(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    wide = pad_rollouts(trial.rollouts, 3, seed=1)
    padded = trial.on(wide, segments_of_two(wide))
    checked.require_close(
        padded.estimate("rollouts with 3 more columns of padding"),
        trial.estimate(),
        rule="padding is not read",
        cause="the width of the batch used as a length, or a sum taken without the action mask",
    )


def _estimator_survives_short_rows(checked: CheckedPlugin) -> None:
    simulator = ToySimulator()
    for lengths in ([1], [4], [0, 0], [1, 0]):
        rollouts = toy_rollouts(simulator, lengths=lengths, hole=False)
        _trial(checked, rollouts).estimate(f"completions of lengths {lengths}")


def _loss_of(trial: _Trial) -> tuple[Tensor, SegmentValues]:
    """Returns the loss of each segment, checked, with gradients."""
    values = segment_values(trial.rollouts, trial.segmentation, trial.estimate())
    with trial.checked.using("targets()"):
        targets_BS = trial.checked.plugin.targets(values)
    trial.checked.require_values(targets_BS, values.mask, "targets()")
    scores = trial.simulator.policy(trial.rollouts)
    with trial.checked.using("loss()"):
        loss_BS = trial.checked.plugin.loss(
            trial.state,
            trial.readable,
            trial.segmentation,
            readable_scores(scores, trial.checked.plugin.reads),
            values,
            targets_BS.detach() + 1,
        )
    trial.checked.require_values(loss_BS, values.mask, "loss()")
    return loss_BS, values


def _loss_fits_segments(checked: CheckedPlugin) -> None:
    _loss_of(_trial(checked))


def _loss_trains_parameters(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    parameters = [p for p in trial.state.parameters() if p.requires_grad]
    if not parameters:
        return
    loss_BS, values = _loss_of(trial)
    if loss_BS.requires_grad:
        loss_BS.masked_fill(~values.mask, 0).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(bool(gradient.abs().sum() > 0) for gradient in gradients):
        checked.broke(
            "the loss trains the state's parameters",
            found="no gradient on any of them, with targets 1 away from the values",
            expected="a gradient on at least one",
            cause="values computed under no_grad, or `values` used in place of state(...)",
        )


def _prompt_weights_fit(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    keys = [*dict.fromkeys(trial.rollouts.prompt_keys), "a prompt never seen"]
    with checked.using("prompt_weights()"):
        weights_K = checked.plugin.prompt_weights(trial.state, keys)
    fits = tuple(weights_K.shape) == (len(keys),)
    if not fits or not bool((weights_K >= 0).all() & weights_K.isfinite().all()):
        checked.broke(
            "prompt_weights() gives every candidate prompt a weight",
            found=f"{weights_K.tolist()} for {len(keys)} prompts",
            expected=f"{len(keys)} finite numbers of at least 0",
            cause="a weight for known prompts only; give prompts never seen one too",
        )


def _state_round_trips(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    with torch.no_grad():
        for parameter in trial.state.parameters():
            parameter.add_(0.1)
    with checked.using("loading its own state_dict into a new state"):
        again = checked.plugin.start(trial.simulator.policy)
        again.load_state_dict(copy.deepcopy(trial.state.state_dict()))
    checked.require_close(
        dataclasses.replace(trial, state=again).estimate("a state that was loaded"),
        trial.estimate(),
        rule="state_dict() holds the whole state",
        cause="a table kept as a plain attribute; make it a buffer, or write get_extra_state and"
        " set_extra_state",
    )


def _estimator_works_on_another_device(checked: CheckedPlugin) -> None:
    def learned(device: torch.device) -> Tensor:
        """Returns values and losses of a state that has learned of a step, all on the device."""
        with torch.no_grad():
            policy = ToyPolicy().to(device)
            simulator = ToySimulator(policy, reads=checked.plugin.reads)
            rollouts = toy_rollouts(simulator)
        with forked(0, "start"):
            state = checked.plugin.start(policy).to(device)
        checked.plugin.update(state, readable(rollouts, checked.plugin.reads), simulator)
        trial = _Trial(checked, state, rollouts, segments_of_two(rollouts), simulator)
        values_BS = trial.estimate()
        loss_BS, values = _loss_of(trial)
        return torch.stack([values_BS, loss_BS.masked_fill(~values.mask, 0)])

    checked.require_same_elsewhere(learned, "rollouts and a policy")


def _estimator_pickles(checked: CheckedPlugin) -> None:
    again = checked.unpickled()
    trial = _trial(checked)
    other = dataclasses.replace(trial, checked=again)
    checked.require_same_unpickled(other.estimate(), trial.estimate(), "values")


ESTIMATOR_RULES: tuple[Rule, ...] = (
    _state_is_module,
    _estimates_each_segment,
    _estimator_is_pure,
    _estimator_ignores_batch_order,
    _estimator_ignores_padding,
    _estimator_survives_short_rows,
    _loss_fits_segments,
    _loss_trains_parameters,
    _prompt_weights_fit,
    _state_round_trips,
    _estimator_works_on_another_device,
    _estimator_pickles,
)
