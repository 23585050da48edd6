"""The rules of the plug-in contract, each a check that names the plug-in and the rule it broke.

A check raises ``PluginError``; scikit-learn's ``parametrize_with_checks`` is the model.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from segcredit.credit import segment_values
from segcredit.errors import PluginError
from segcredit.protocols import AdvantageScheme, Segmenter, ValueEstimator
from segcredit.segmentation import Segmentation
from segcredit.testing.rollouts import change_from, make_rollouts, pad_rollouts
from segcredit.testing.toy import ToySimulator, toy_rollouts
from segcredit.types import RolloutBatch, SegmentValues

Check = tuple[str, Callable[[], None]]
_TOLERANCE = 1e-4
_HISTORY = 12
"""Positions, beside the first six, from which the causality check changes the tokens."""
_FUTURES = 3
"""Other endings tried at each of them."""


def check_segmenter(plugin: Segmenter, causal: bool | None = None) -> None:
    """Run every check of ``segmenter_checks``.

    Raises:
        PluginError: the first rule that the segmenter breaks.
    """
    _run(segmenter_checks(plugin, causal))


def check_estimator(plugin: ValueEstimator) -> None:
    """Run every check of ``estimator_checks``.

    Raises:
        PluginError: the first rule that the value estimator breaks.
    """
    _run(estimator_checks(plugin))


def check_advantage(plugin: AdvantageScheme) -> None:
    """Run every check of ``advantage_checks``.

    Raises:
        PluginError: the first rule that the advantage scheme breaks.
    """
    _run(advantage_checks(plugin))


def segmenter_checks(plugin: Segmenter, causal: bool | None = None) -> list[Check]:
    """The rules for segmenters, each with a name.

    Args:
        plugin: the segmenter.
        causal: whether to hold it to causality; None = if it claims to be causal.
    """
    checks = [
        _segments_action_tokens,
        _segmenter_is_pure,
        _segmenter_is_deterministic,
        _segmenter_ignores_batch_order,
        _segmenter_ignores_padding,
        _segmenter_survives_short_rows,
        _segmenter_pickles,
    ]
    if plugin.causal if causal is None else causal:
        checks.append(_segmenter_is_causal)
    return _named(_Subject("segmenter", plugin), checks)


def estimator_checks(plugin: ValueEstimator) -> list[Check]:
    """The rules for value estimators, each with a name."""
    checks = [
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
        _estimator_pickles,
    ]
    return _named(_Subject("value estimator", plugin), checks)


def advantage_checks(plugin: AdvantageScheme) -> list[Check]:
    """The rules for advantage schemes, each with a name."""
    checks = [
        _advantage_for_each_segment,
        _advantage_is_pure,
        _advantage_ignores_batch_order,
        _advantage_ignores_padding,
        _advantage_survives_short_rows,
        _advantage_pickles,
    ]
    return _named(_Subject("advantage scheme", plugin), checks)


def parametrize_with_checks(plugins: Sequence[object]) -> Callable[[Any], Any]:
    """Decorate a test that takes ``check`` and calls it: one named test for each rule.

    Args:
        plugins: segmenters, value estimators and advantage schemes, mixed as you like.
    """
    import pytest  # only for those who test with it

    cases = [
        pytest.param(check, id=f"{type(plugin).__name__}-{name}")
        for plugin in plugins
        for name, check in _checks_of(plugin)
    ]
    return pytest.mark.parametrize("check", cases)


def _checks_of(plugin: object) -> list[Check]:
    if isinstance(plugin, Segmenter):
        return segmenter_checks(plugin)
    if isinstance(plugin, ValueEstimator):
        return estimator_checks(plugin)
    if isinstance(plugin, AdvantageScheme):
        return advantage_checks(plugin)
    raise PluginError(
        f"{plugin!r} is no plug-in that the kit knows; expected an instance of a segmenter, a value"
        " estimator or an advantage scheme. Give instances rather than classes, and name the"
        " protocol as base."
    )


@dataclasses.dataclass(frozen=True)
class _Subject:
    """The plug-in under test, as messages name it."""

    kind: str
    plugin: Any

    @property
    def name(self) -> str:
        return f"{self.kind} {type(self.plugin).__name__!r}"

    def broke(self, rule: str, *, found: str, expected: str, cause: str) -> NoReturn:
        raise PluginError(
            f"{self.name} breaks the rule that {rule}: found {found}; expected {expected}."
            f" The usual cause: {cause}."
        )

    @contextmanager
    def using(self, what: str) -> Generator[None, None, None]:
        """Anything that the plug-in raises becomes a sentence that names it."""
        try:
            yield
        except PluginError as error:
            raise PluginError(f"{self.name} failed on {what}: {error}") from error
        except Exception as error:
            raise PluginError(
                f"{self.name} raised {type(error).__name__} on {what}: {error}"
            ) from error


def _run(checks: Sequence[Check]) -> None:
    for _, check in checks:
        check()


def _named(subject: _Subject, checks: Sequence[Callable[[_Subject], None]]) -> list[Check]:
    return [(check.__name__.lstrip("_"), _Bound(check, subject)) for check in checks]


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A check of one plug-in, ready to be called."""

    check: Callable[[_Subject], None]
    subject: _Subject

    def __call__(self) -> None:
        self.check(self.subject)


# ---------------------------------------------------------------- segmenters


def _ragged() -> RolloutBatch:
    """Rows of one token and of many, two with holes, one truncated, one without tokens."""
    return make_rollouts(
        ["1", *make_rollouts(5).texts, "", "a + 12\n\nWait, a. Step 2: 12 = a\n#### 12", ""],
        holes={3: [1, 2], 7: [0, 4, 5]},
        truncated=[4, 6],
        token_values=True,
    )


def _segment(
    subject: _Subject, rollouts: RolloutBatch, what: str = "ragged rollouts"
) -> Segmentation:
    with subject.using(what):
        segmentation = subject.plugin.segment(rollouts)
    if not isinstance(segmentation, Segmentation):
        subject.broke(
            "segment() returns a Segmentation",
            found=f"{type(segmentation).__name__} on {what}",
            expected="a segcredit.Segmentation",
            cause="ids returned bare; build them with Segmentation.from_starts",
        )
    if not torch.equal(segmentation.action_mask, rollouts.action_mask):
        _broken_mask(subject, segmentation, rollouts, what)
    return segmentation


def _broken_mask(
    subject: _Subject, segmentation: Segmentation, rollouts: RolloutBatch, what: str
) -> NoReturn:
    shapes = tuple(segmentation.segment_ids.shape), tuple(rollouts.action_mask.shape)
    if shapes[0] == shapes[1]:
        wrong_BT = segmentation.action_mask != rollouts.action_mask
        row, token = (int(place) for place in wrong_BT.nonzero()[0])
        inside = bool(rollouts.action_mask[row, token])
        found = (
            f"token {token} of completion {row}, {'an action' if inside else 'no action'},"
            f" with segment {int(segmentation.segment_ids[row, token])}, on {what}"
        )
    else:
        found = f"ids of shape {shapes[0]} for an action mask of {shapes[1]}, on {what}"
    subject.broke(
        "every action token, and no other token, has a segment",
        found=found,
        expected="-1 exactly where rollouts.action_mask is False (padding and holes)",
        cause="a mask computed from ids, texts or lengths instead of rollouts.action_mask",
    )


def _segments_action_tokens(subject: _Subject) -> None:
    _segment(subject, _ragged())


def _segmenter_is_pure(subject: _Subject) -> None:
    rollouts = _ragged()
    before = copy.deepcopy(rollouts)
    _segment(subject, rollouts)
    _require_untouched(subject, before, rollouts, "segment()")


def _segmenter_is_deterministic(subject: _Subject) -> None:
    first = _segment(subject, _ragged())
    torch.rand(3)
    again = _segment(subject, _ragged())
    if not torch.equal(first.segment_ids, again.segment_ids):
        subject.broke(
            "the same rollouts are always cut alike",
            found="other segments at the second call",
            expected="the same segments",
            cause="a random draw from a global generator; derive it from a seed, the prompt's key"
            " and the completion's ids",
        )


def _segmenter_ignores_batch_order(subject: _Subject) -> None:
    rollouts = _ragged()
    whole = _segment(subject, rollouts)
    orders = [_shuffled(len(rollouts)), [2], [5, 1, 2]]
    for order in orders:
        part = _segment(subject, rollouts.select(order), f"the rows {order} alone")
        same = (part.segment_ids == whole.segment_ids[order]).all(1)
        if not bool(same.all()):
            row = order[int((~same).nonzero()[0])]
            subject.broke(
                "a completion's segments do not depend on the rest of the batch",
                found=f"other segments for completion {row} when the batch is the rows {order}",
                expected="those of the whole batch",
                cause="a statistic over the batch, or draws taken in the order of the rows",
            )


def _segmenter_ignores_padding(subject: _Subject) -> None:
    rollouts = _ragged()
    width = rollouts.completion_ids.shape[1]
    narrow = _segment(subject, rollouts)
    for seed in (1, 2):
        padded = pad_rollouts(rollouts, 3 * seed, seed=seed)
        wide = _segment(subject, padded, f"rollouts with {3 * seed} more columns of padding")
        same = (wide.segment_ids[:, :width] == narrow.segment_ids).all(1)
        if not bool(same.all()):
            subject.broke(
                "padding is not read",
                found=f"other segments for completion {int((~same).nonzero()[0])} after"
                f" {3 * seed} columns of padding were added",
                expected="the same segments at any width of padding, whatever stands in it",
                cause="the width of the batch used as a length, or a statistic taken without the"
                " action mask",
            )


def _segmenter_survives_short_rows(subject: _Subject) -> None:
    _segment(subject, make_rollouts([""]), "a single completion of one token")
    _segment(subject, make_rollouts(["12 + a"]), "a batch of one row")
    _segment(subject, make_rollouts(["", ""], truncated=[0, 1]), "completions of width 0")
    _segment(subject, make_rollouts(["", ""], truncated=[0, 1], width=3), "empty completions")
    _segment(subject, make_rollouts(["a", "1"], holes={0: [0, 1]}), "a row of holes only")


def _segmenter_pickles(subject: _Subject) -> None:
    with subject.using("pickling"):
        again = pickle.loads(pickle.dumps(subject.plugin))
    ids_BT = _segment(subject, _ragged()).segment_ids
    if not torch.equal(_segment(_Subject(subject.kind, again), _ragged()).segment_ids, ids_BT):
        _broken_pickle(subject, "segments")


def _segmenter_is_causal(subject: _Subject) -> None:
    rollouts = make_rollouts(8, holes={5: [2, 3]}, token_values=True)
    whole = _segment(subject, rollouts)
    longest = rollouts.completion_ids.shape[1]
    positions = sorted({round(k * (longest - 1) / _HISTORY) for k in range(_HISTORY + 1)})
    for position in [*range(min(6, longest)), *(p for p in positions if p >= 6)]:
        for future in range(_FUTURES):
            other = change_from(rollouts, position, seed=1 + future)
            changed = _segment(subject, other, "rollouts with another ending")
            _compare_past(subject, whole, changed, position)


def _compare_past(
    subject: _Subject, whole: Segmentation, changed: Segmentation, position: int
) -> None:
    """Same boundaries before the position and right before it, where both rows have the token."""
    kept = min(position + 1, whole.starts.shape[1], changed.starts.shape[1])
    both = whole.action_mask[:, :kept] & changed.action_mask[:, :kept]
    # A row that ended before the position has another past: its end token was replaced.
    places_T = torch.arange(1, whole.starts.shape[1] + 1)
    lengths_B1 = (whole.action_mask * places_T).amax(1, keepdim=True)
    same_past = both & (lengths_B1 > position)
    moved = same_past & (whole.starts[:, :kept] != changed.starts[:, :kept])
    if not bool(moved.any()):
        return
    row, token = (int(place) for place in moved.nonzero()[0])
    subject.broke(
        "a causal segmenter decides on a boundary from the tokens before it alone",
        found=f"that the boundary before token {token} of completion {row}"
        f" {'vanished' if bool(whole.starts[row, token]) else 'appeared'} when the tokens from"
        f" {position} on were changed",
        expected="the same boundaries up to there",
        cause="a rule that looks at the token after the boundary (a marker that starts a segment),"
        " or ranks tokens over the whole completion. Return False from `causal`, or close segments"
        " after what is already there",
    )


# ---------------------------------------------------------------- value estimators


@dataclasses.dataclass(frozen=True)
class _Trial:
    """An estimator with its state and rollouts to work on."""

    subject: _Subject
    state: nn.Module
    rollouts: RolloutBatch
    segmentation: Segmentation
    simulator: ToySimulator

    def estimate(self, what: str = "ragged rollouts") -> Tensor:
        """Checked values; the state of the trial stays as it is."""
        with self.subject.using(what), torch.no_grad():
            values_BS = self.subject.plugin.estimate(
                copy.deepcopy(self.state), self.rollouts, self.segmentation, self.simulator
            )
        _require_values(self.subject, values_BS, self.segmentation.mask, f"estimate(), on {what},")
        return values_BS.masked_fill(~self.segmentation.mask, 0)

    def on(self, rollouts: RolloutBatch, segmentation: Segmentation) -> _Trial:
        """The same estimator on something else."""
        return dataclasses.replace(self, rollouts=rollouts, segmentation=segmentation)


def _trial(subject: _Subject, rollouts: RolloutBatch | None = None) -> _Trial:
    """The plug-in once its state has seen a step, with segments of two tokens."""
    simulator = ToySimulator()
    rollouts = toy_rollouts(simulator) if rollouts is None else rollouts
    with subject.using("start()"):
        state = subject.plugin.start(simulator.policy)
    _require_module(subject, state)
    with subject.using("update()"):
        subject.plugin.update(state, toy_rollouts(simulator), simulator)
    return _Trial(subject, state, rollouts, _pairs(rollouts), simulator)


def _pairs(rollouts: RolloutBatch) -> Segmentation:
    """A boundary before every second action token."""
    place_BT = rollouts.action_mask.cumsum(1)
    return Segmentation.from_starts(place_BT % 2 == 1, rollouts.action_mask)


def _require_module(subject: _Subject, state: object) -> None:
    if not isinstance(state, nn.Module):
        subject.broke(
            "start() returns the state as an nn.Module",
            found=f"{type(state).__name__}",
            expected="an nn.Module, an empty one when there is no state",
            cause="a table kept in a dict; put it in a module with get_extra_state",
        )


def _state_is_module(subject: _Subject) -> None:
    _trial(subject)


def _estimates_each_segment(subject: _Subject) -> None:
    trial = _trial(subject)
    trial.estimate()
    mask_BT = trial.rollouts.action_mask
    for starts_BT, what in ((mask_BT, "a segment a token"), (~mask_BT, "a segment a row")):
        trial.on(trial.rollouts, Segmentation.from_starts(starts_BT, mask_BT)).estimate(what)


def _estimator_is_pure(subject: _Subject) -> None:
    trial = _trial(subject)
    before = copy.deepcopy(trial.rollouts)
    first_BS = trial.estimate()
    _require_untouched(subject, before, trial.rollouts, "estimate()")
    torch.rand(3)
    if not torch.equal(first_BS, trial.estimate()):
        subject.broke(
            "estimate() gives the same values for the same state and rollouts",
            found="other values at the second call",
            expected="the same values",
            cause="a random draw from a global generator, or dropout left on",
        )


def _estimator_ignores_batch_order(subject: _Subject) -> None:
    trial = _trial(subject)
    order = _shuffled(len(trial.rollouts))
    moved = trial.on(trial.rollouts.select(order), trial.segmentation.select(order))
    moved_BS = moved.estimate("rollouts in another order")
    _require_close(
        subject,
        moved_BS,
        trial.estimate()[order],
        rule="a completion's values do not depend on the order of the batch",
        cause="rows taken for groups by their place; use rollouts.group",
    )


def _estimator_ignores_padding(subject: _Subject) -> None:
    trial = _trial(subject)
    wide = pad_rollouts(trial.rollouts, 3, seed=1)
    padded = trial.on(wide, _pairs(wide))
    _require_close(
        subject,
        padded.estimate("rollouts with 3 more columns of padding"),
        trial.estimate(),
        rule="padding is not read",
        cause="the width of the batch used as a length, or a sum taken without the action mask",
    )


def _estimator_survives_short_rows(subject: _Subject) -> None:
    simulator = ToySimulator()
    for lengths in ([1], [4], [0, 0], [1, 0]):
        rollouts = toy_rollouts(simulator, lengths=lengths, hole=False)
        _trial(subject, rollouts).estimate(f"completions of lengths {lengths}")


def _loss_of(trial: _Trial) -> tuple[Tensor, SegmentValues]:
    """The checked loss of each segment, with gradients."""
    values = segment_values(trial.rollouts, trial.segmentation, trial.estimate())
    with trial.subject.using("targets()"):
        targets_BS = trial.subject.plugin.targets(values)
    _require_values(trial.subject, targets_BS, values.mask, "targets()")
    scores = trial.simulator.policy(trial.rollouts)
    with trial.subject.using("loss()"):
        loss_BS = trial.subject.plugin.loss(
            trial.state, trial.rollouts, trial.segmentation, scores, values, targets_BS.detach() + 1
        )
    _require_values(trial.subject, loss_BS, values.mask, "loss()")
    return loss_BS, values


def _loss_fits_segments(subject: _Subject) -> None:
    _loss_of(_trial(subject))


def _loss_trains_parameters(subject: _Subject) -> None:
    trial = _trial(subject)
    parameters = [p for p in trial.state.parameters() if p.requires_grad]
    if not parameters:
        return
    loss_BS, values = _loss_of(trial)
    if loss_BS.requires_grad:
        loss_BS.masked_fill(~values.mask, 0).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(bool(gradient.abs().sum() > 0) for gradient in gradients):
        subject.broke(
            "the loss trains the state's parameters",
            found="no gradient on any of them, with targets 1 away from the values",
            expected="a gradient on at least one",
            cause="values computed under no_grad, or `values` used in place of state(...)",
        )


def _prompt_weights_fit(subject: _Subject) -> None:
    trial = _trial(subject)
    keys = [*dict.fromkeys(trial.rollouts.prompt_keys), "a prompt never seen"]
    with subject.using("prompt_weights()"):
        weights_K = subject.plugin.prompt_weights(trial.state, keys)
    fits = tuple(weights_K.shape) == (len(keys),)
    if not fits or not bool((weights_K >= 0).all() & weights_K.isfinite().all()):
        subject.broke(
            "prompt_weights() gives every candidate prompt a weight",
            found=f"{weights_K.tolist()} for {len(keys)} prompts",
            expected=f"{len(keys)} finite numbers of at least 0",
            cause="a weight for known prompts only; give prompts never seen one too",
        )


def _state_round_trips(subject: _Subject) -> None:
    trial = _trial(subject)
    with torch.no_grad():
        for parameter in trial.state.parameters():
            parameter.add_(0.1)
    with subject.using("loading its own state_dict into a new state"):
        again = subject.plugin.start(trial.simulator.policy)
        again.load_state_dict(copy.deepcopy(trial.state.state_dict()))
    _require_close(
        subject,
        dataclasses.replace(trial, state=again).estimate("a state that was loaded"),
        trial.estimate(),
        rule="state_dict() holds the whole state",
        cause="a table kept as a plain attribute; make it a buffer, or write get_extra_state and"
        " set_extra_state",
    )


def _estimator_pickles(subject: _Subject) -> None:
    with subject.using("pickling"):
        again = pickle.loads(pickle.dumps(subject.plugin))
    trial = _trial(subject)
    other = dataclasses.replace(trial, subject=_Subject(subject.kind, again))
    if not torch.equal(other.estimate(), trial.estimate()):
        _broken_pickle(subject, "values")


# ---------------------------------------------------------------- advantage schemes


def _values(lengths: Sequence[int] = (3, 1, 0, 5, 2, 4, 1), seed: int = 0) -> SegmentValues:
    """Random values and rewards of rows with so many segments, two or three rows a group."""
    source = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(*lengths, 1))
    mask_BS = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    tokens_BS = torch.randint(1, 6, shape, generator=source) * mask_BS
    return SegmentValues(
        values=torch.rand(shape, generator=source) * mask_BS,
        rewards=torch.randn(shape, generator=source) * mask_BS,
        lengths=tokens_BS,
        weights=tokens_BS.float(),
        mask=mask_BS,
        group=torch.tensor([min(row // 2, 2) for row in range(len(lengths))]),
    )


def _advantage(subject: _Subject, values: SegmentValues, what: str = "ragged segments") -> Tensor:
    """Checked advantages, 0 outside the mask."""
    with subject.using(what):
        advantages_BS = subject.plugin(values)
    _require_values(subject, advantages_BS, values.mask, f"its call, on {what},")
    return advantages_BS.masked_fill(~values.mask, 0)


def _advantage_for_each_segment(subject: _Subject) -> None:
    _advantage(subject, _values())


def _advantage_is_pure(subject: _Subject) -> None:
    values = _values()
    first_BS = _advantage(subject, values)
    _require_untouched(subject, _values(), values, "its call")
    torch.rand(3)
    if not torch.equal(first_BS, _advantage(subject, values)):
        subject.broke(
            "the same values always give the same advantages",
            found="other advantages at the second call",
            expected="the same",
            cause="a random draw, or statistics carried over from earlier batches",
        )


def _advantage_ignores_batch_order(subject: _Subject) -> None:
    values = _values()
    order = _shuffled(len(values.mask))
    _require_close(
        subject,
        _advantage(subject, values.select(order), "rows in another order"),
        _advantage(subject, values)[order],
        rule="a row's advantages do not depend on the order of the batch",
        cause="rows taken for groups by their place; use values.group",
    )


def _advantage_ignores_padding(subject: _Subject) -> None:
    values = _values()
    tables = {name: getattr(values, name) for name in ("values", "rewards", "lengths", "weights")}
    wide = {name: torch.cat([x, torch.zeros_like(x)], dim=1) for name, x in tables.items()}
    mask_BS = torch.cat([values.mask, torch.zeros_like(values.mask)], dim=1)
    padded = _advantage(
        subject, values.replace(**wide, mask=mask_BS), "twice as many columns of segments"
    )
    _require_close(
        subject,
        padded[:, : values.mask.shape[1]],
        _advantage(subject, values),
        rule="columns without segments are not read",
        cause="a mean over the table instead of over values.mask",
    )


def _advantage_survives_short_rows(subject: _Subject) -> None:
    for lengths in ([1], [4], [0, 0], [1, 0], [1, 1, 1]):
        _advantage(subject, _values(lengths), f"rows of {lengths} segments")
    same = _values()
    _advantage(subject, same.replace(rewards=same.mask.float()), "rewards that are all equal")


def _advantage_pickles(subject: _Subject) -> None:
    with subject.using("pickling"):
        again = pickle.loads(pickle.dumps(subject.plugin))
    other_BS = _advantage(_Subject(subject.kind, again), _values())
    if not torch.equal(other_BS, _advantage(subject, _values())):
        _broken_pickle(subject, "advantages")


# ---------------------------------------------------------------- shared


def _shuffled(count: int) -> list[int]:
    """An order that leaves no row in place and tears neighbours apart."""
    return [*range(1, count, 2), *range(0, count, 2)] if count > 1 else [0]


def _require_values(subject: _Subject, found: object, mask_BS: Tensor, source: str) -> None:
    rule = f"{source.rstrip(',')} gives one finite number for each segment"
    expected = f"a float tensor of shape {tuple(mask_BS.shape)}, finite wherever a segment is"
    if not isinstance(found, Tensor) or found.shape != mask_BS.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        subject.broke(
            rule,
            found=f"{shape}",
            expected=expected,
            cause="one value a row or a token instead of one a segment",
        )
    if not found.is_floating_point() or not bool(found[mask_BS].isfinite().all()):
        kind = "a number that is not finite" if found.is_floating_point() else f"{found.dtype}"
        subject.broke(
            rule,
            found=kind,
            expected=expected,
            cause="a division by the size or the spread of a group of one, or of an empty row",
        )


def _require_untouched(subject: _Subject, before: Any, after: Any, source: str) -> None:
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
        if not same:
            subject.broke(
                "inputs are not changed",
                found=f"that {source} changed {type(before).__name__}.{field.name}",
                expected="the same numbers bit for bit",
                cause="an in-place operation (x[...] = , x += , x.add_()); work on a new tensor",
            )


def _require_close(
    subject: _Subject, found: Tensor, wanted: Tensor, *, rule: str, cause: str
) -> None:
    if found.shape == wanted.shape and torch.allclose(
        found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE
    ):
        return
    apart = (
        f"numbers that differ by {float((found - wanted).abs().max()):.3g}"
        if found.shape == wanted.shape
        else f"shape {tuple(found.shape)}"
    )
    subject.broke(rule, found=apart, expected=f"the same numbers within {_TOLERANCE}", cause=cause)


def _broken_pickle(subject: _Subject, what: str) -> NoReturn:
    subject.broke(
        "a plug-in survives pickling",
        found=f"other {what} from the unpickled plug-in",
        expected=f"the same {what}",
        cause="state outside the dataclass's fields",
    )
