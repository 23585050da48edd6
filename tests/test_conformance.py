"""The kit holds every registered plug-in to its contract, and catches those that break it."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segcredit import registry
from segcredit.errors import PluginError
from segcredit.objective.returns import segment_values, token_rewards
from segcredit.protocols import AdvantageScheme, Segmenter, TextSegmenter, ValueEstimator
from segcredit.segmentation import Segmentation
from segcredit.testing import (
    ToyPolicy,
    ToySimulator,
    check_advantage,
    check_estimator,
    check_segmenter,
    check_task,
    parametrize_with_checks,
    toy_rollouts,
)
from segcredit.types import RolloutBatch, SegmentValues

# Wrappers hold other plug-ins, so they need some to be built.
INNER = {
    "segmenters": "newline",
    "estimators": "zero",
    "advantages": "gae",
    "process_rewards": "equations",
    "ratios": "",
    "bounds": "clip",
    "corrections": "",
    "aggregations": "",
}
WRAPPED = ("inner", "first", "second", "to")
OPTIONS = {"process_value": {"reward": "equations"}, "step_model": None}
"""Options of plug-ins that hold one of another kind; None: it takes a trained model."""


def fields_of(plugin: Any) -> dict[str, Any]:
    return getattr(plugin, "__dataclass_fields__", {})


def registered(axis: str) -> list[Any]:
    """An instance of every plug-in of a kind that needs no further file or model."""
    found: list[Any] = []
    offers = getattr(registry, axis)
    for name in offers.names():
        if (options := OPTIONS.get(name, {})) is None:
            continue
        fields = fields_of(offers.find(name))
        needed = {
            field: INNER[axis]
            for field in WRAPPED
            if field in fields and fields[field].default is dataclasses.MISSING
        }
        found.append(offers.build(name, **needed, **options))
    return found


@parametrize_with_checks([plugin for axis in INNER for plugin in registered(axis)])
def test_registered_plugins_keep_the_contract(check: Any) -> None:
    check()


def problem_rows(folder: Path, largest: int = 1000) -> str:
    """Returns a file of sums, as a data set's; their results stay below ``largest``."""
    sums = [(f"{n}+{n}?", 2 * n % largest) for n in range(60)]
    rows = [{"question": text, "problem": text, "answer": answer} for text, answer in sums]
    file = folder / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


ROWS = "(a file of rows)"
TASKS: dict[str, dict[str, Any]] = {
    "dataset": {"source": ROWS, "verifier": "exact"},
    "geo3k": {"source": ROWS, "images": ""},
    "problems": {"source": ROWS, "images": ""},
    "instructed": {"inner": "arithmetic"},
    "reasoning_gym": {"generator": "chain_sum"},
}
"""Options that a task cannot be built without, or that keep it off the network."""
PACKAGES = {"geo3k": "math_verify", "problems": "math_verify", "reasoning_gym": "reasoning_gym"}


@pytest.mark.parametrize("name", registry.tasks.names())
def test_registered_tasks_keep_the_contract(name: str, tmp_path: Path) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason=f"the task needs {PACKAGES[name]}")
    options = TASKS.get(name, {})
    if options.get("source") == ROWS:
        options = options | {"source": problem_rows(tmp_path)}
    check_task(registry.tasks.build(name, **options))


@pytest.mark.parametrize(("verifier", "streaming"), [("choice", False), ("exact", True)])
def test_data_sets_keep_the_contract(verifier: str, streaming: bool, tmp_path: Path) -> None:
    source = problem_rows(tmp_path, largest=26)  # numbers that count the letters of a choice
    options = {"verifier": verifier, "streaming": streaming}
    check_task(registry.tasks.build("dataset", source=source, **options))


def needs_nothing(plugin: Any) -> bool:
    """Whether it is built without options: one that has to be told a server needs that to run."""
    absent = dataclasses.MISSING
    fields = fields_of(plugin).values()
    return all(not (each.default is each.default_factory is absent) for each in fields)


SAMPLERS = {name: registry.samplers.find(name) for name in registry.samplers.names()}


@parametrize_with_checks([plugin() for plugin in SAMPLERS.values() if needs_nothing(plugin)])
def test_registered_samplers_keep_the_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize("name", ["critic"])
@pytest.mark.parametrize(
    "options",
    [
        {"network": "head"},
        {"anchor": "last_token"},
        {"objective": "bce", "low": -2.0, "high": 3.0},
        {"network": "head", "objective": "hl_gauss", "high": 2.0},
        {"network": "reader"},
        {"network": "reader", "states": "live", "logprobs": "none", "group_mean": False},
        {"network": "reader", "logprobs": "live", "tokens": 0, "objective": "hl_gauss"},
        {"network": "reader", "ensemble": 3, "objective": "mse", "value_clip": 0.2},
    ],
)
def test_options_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    check_estimator(registry.estimators.build(name, **options))


def class_name(case: object) -> str:
    """The plug-in's class; nothing for the sentence."""
    return "" if isinstance(case, str) else type(case).__name__


class Wrong(Segmenter):
    """What wrong segmenters have in common."""

    causal = False


class Gap(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        places = 2 * rollouts.action_mask.cumsum(1) - 2
        return Segmentation(places.masked_fill(~rollouts.action_mask, -1))


class Padding(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        return Segmentation(torch.zeros_like(rollouts.completion_ids))


class BareIds(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Any:
        return torch.zeros_like(rollouts.completion_ids)


class Impure(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        rollouts.entropies.clamp_(max=0.5)
        return Segmentation.from_ends(rollouts.entropies > 0.4, rollouts.action_mask)


class GlobalDraws(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        mask = rollouts.action_mask
        return Segmentation.from_ends(torch.rand(mask.shape) < 0.5, mask)


class PaddedWidth(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        mask = rollouts.action_mask
        middle = torch.arange(mask.shape[1]) == mask.shape[1] // 2
        return Segmentation.from_starts(middle.expand_as(mask), mask)


class BatchMean(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        mask = rollouts.action_mask
        level = rollouts.entropies[mask].mean() if mask.any() else 0.0
        return Segmentation.from_ends(rollouts.entropies > level, mask)


class RowNumber(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        mask = rollouts.action_mask
        odd = torch.arange(len(mask))[:, None] % 2 == 1
        return Segmentation.from_starts(odd.expand_as(mask), mask)


class NoEmptyRows(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        mask = rollouts.action_mask
        rollouts.entropies.max()
        return Segmentation.from_starts(mask, mask)


class StartsAtMarker(TextSegmenter):
    """Looks at the token after the boundary, and says that it does not."""

    causal = True

    def split(self, text: str) -> Sequence[int]:
        return [place for place, character in enumerate(text) if character in "SW"]


class CPUColumns(Wrong):
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        mask = rollouts.action_mask
        return Segmentation.from_starts(torch.arange(mask.shape[1]).expand_as(mask) % 3 == 0, mask)


class LocalLambda(Wrong):
    def __init__(self) -> None:
        self.rule = lambda mask: mask

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        return Segmentation.from_starts(self.rule(rollouts.action_mask), rollouts.action_mask)


class BytesOffsets(TextSegmenter):
    causal = False

    def split(self, text: str) -> Sequence[int]:
        return [2 * len(text) + 1]


class ReadsUntold(Wrong):
    reads = frozenset({"logprobs"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        return Segmentation.from_ends(rollouts.entropies > 0.5, rollouts.action_mask)


class ReadsMisspelt(Wrong):
    reads = frozenset({"entropy"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        return Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)


WRONG_SEGMENTERS = [
    (ReadsUntold(), "what reads does not name is not read: found other segments when"),
    (ReadsMisspelt(), "reads names parts of rollouts"),
    (Gap(), "raised ShapeError on ragged rollouts: segment_ids has a gap in completion"),
    (Padding(), "every action token, and no other token, has a segment"),
    (BareIds(), "returns a Segmentation"),
    (Impure(), "changed RolloutBatch.entropies"),
    (GlobalDraws(), "the same rollouts are always cut alike"),
    (PaddedWidth(), "padding is not read"),
    (BatchMean(), "do not depend on the rest of the batch"),
    (RowNumber(), "do not depend on the rest of the batch"),
    (NoEmptyRows(), "on completions of width 0"),
    (StartsAtMarker(), "from the tokens before it alone"),
    (CPUColumns(), "ragged rollouts on another device than the CPU"),
    (LocalLambda(), "on pickling"),
    (BytesOffsets(), "count characters rather than bytes"),
]


@pytest.mark.parametrize(("plugin", "sentence"), WRONG_SEGMENTERS, ids=class_name)
def test_wrong_segmenters_are_caught_by_name(plugin: Any, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_segmenter(plugin)
    assert f"segmenter {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["entropy", "random"])
def test_segmenters_that_admit_it_are_held_to_causality_when_asked(name: str) -> None:
    plugin = registry.segmenters.build(name)
    check_segmenter(plugin)
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(plugin, causal=True)


class OneARow(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return rollouts.rewards


class NotFinite(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return segmentation.mask / torch.zeros(())


class ByPlace(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return torch.arange(len(rollouts.rewards))[:, None] * segmentation.mask.float()


class ByWidth(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return rollouts.token_rewards.mean(1, keepdim=True) * segmentation.mask


class Overwrites(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        rollouts.rewards.sub_(rollouts.rewards.mean())
        return torch.zeros(segmentation.mask.shape)


class DictState(ValueEstimator):
    def start(self, policy) -> Any:
        return {}

    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return torch.zeros(segmentation.mask.shape)


class Hidden(nn.Module):
    """A table that its state_dict does not know."""

    seen = 0.0


class LostState(ValueEstimator):
    def start(self, policy) -> nn.Module:
        return Hidden()

    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return segmentation.mask * state.seen

    def update(self, state, rollouts, simulator) -> None:
        state.seen = state.seen + 1.0 + float(rollouts.rewards.mean())


class Untrained(ValueEstimator):
    def start(self, policy) -> nn.Module:
        return nn.Linear(1, 1)

    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return torch.zeros(segmentation.mask.shape)


class NegativeWeights(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return torch.zeros(segmentation.mask.shape)

    def prompt_weights(self, state, prompt_keys) -> Tensor:
        return -torch.ones(len(prompt_keys))


class ReducedLoss(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return torch.zeros(segmentation.mask.shape)

    def loss(self, state, minibatch, segmentation, scores, values, targets_BS) -> Tensor:
        return targets_BS.square().mean()


class CPUValues(ValueEstimator):
    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        return torch.zeros(segmentation.mask.shape)


WRONG_ESTIMATORS = [
    (OneARow(), "one finite number for each segment"),
    (NotFinite(), "a number that is not finite"),
    (ByPlace(), "do not depend on the order of the batch"),
    (ByWidth(), "padding is not read"),
    (Overwrites(), "changed RolloutBatch.rewards"),
    (DictState(), "as an nn.Module"),
    (LostState(), "holds the whole state"),
    (Untrained(), "trains the state's parameters"),
    (NegativeWeights(), "gives every candidate prompt a weight"),
    (CPUValues(), "a policy on another device than the CPU"),
    (ReducedLoss(), "loss() gives one finite number for each segment"),
]


# The plug-ins below are wrong on purpose; run-time shape checks would speak before the kit does.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "sentence"), WRONG_ESTIMATORS, ids=class_name)
def test_wrong_estimators_are_caught_by_name(plugin: Any, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_estimator(plugin)
    assert f"value estimator {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


class Returns(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        return values.rewards.sum(1)


class TableMean(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        return values.rewards - values.rewards.mean()


class Neighbours(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        return values.rewards - values.rewards.roll(1, 0).sum(1, keepdim=True)


class InPlace(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        values.rewards.sub_(values.values)
        return values.rewards.clone()


class NoSpread(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        rewards = values.rewards[values.mask]
        return values.rewards / rewards.std()


class TinySpread(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        returns = values.rewards.sum(1)
        return (returns[:, None] - values.values) / (returns.std(correction=0) + 1e-6)


class Remembers(AdvantageScheme):
    mean = 0.0

    def __call__(self, values: SegmentValues) -> Tensor:
        self.mean += 1.0
        return values.rewards - self.mean


class ThereAndNotBack(AdvantageScheme):
    def __call__(self, values: SegmentValues) -> Tensor:
        return torch.from_numpy(values.rewards.cpu().numpy().copy())


WRONG_ADVANTAGES = [
    (Returns(), "one finite number for each segment"),
    (TableMean(), "columns without segments are not read"),
    (Neighbours(), "do not depend on the order of the batch"),
    (InPlace(), "changed SegmentValues.rewards"),
    (NoSpread(), "a number that is not finite"),
    (TinySpread(), "advantages stay small where returns hardly differ"),
    (Remembers(), "the same values always give the same advantages"),
    (ThereAndNotBack(), "on the device of what it is given"),
]


@pytest.mark.parametrize(("plugin", "sentence"), WRONG_ADVANTAGES, ids=class_name)
def test_wrong_advantages_are_caught_by_name(plugin: Any, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_advantage(plugin)
    assert f"advantage scheme {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


DEGENERATE: dict[str, tuple[list[int], list[float], int]] = {
    "equal rewards": ([4, 3, 1, 2, 4, 2, 4, 1], [1.0] * 4 + [0.0] * 4, 4),
    "near-equal rewards": ([4, 3, 1, 2], [0.99, 1.0, 1.0, 1.0], 4),
    "equal but for rounding": ([4, 3, 1, 2], [1.0, 1.0, 1.0, 1 - 6e-8], 4),
    "one completion a group": ([4, 3, 1], [1.0, 0.0, 1.0], 1),
    "empty completions": ([4, 0, 0, 2, 0, 0], [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], 2),
}
"""Lengths, rewards, and how many rows share a group."""


# Some 15,000 calls, whose shape checks would take nine tenths of the time.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case == "near-equal rewards" else pytest.mark.slow)
        for case in DEGENERATE
    ],
)
def test_no_cell_of_the_cross_product_blows_up_where_returns_hardly_differ(case: str) -> None:
    """Every segmenter x estimator x scheme.

    A scaled advantage is at most the larger of the unscaled one and 2 sqrt(2 n), n numbers being
    compared: the factor that ``group_scaled`` documents.
    """
    lengths, rewards, group_size = DEGENERATE[case]
    simulator = ToySimulator(ToyPolicy(prompts=4))
    rewards_B = torch.tensor(rewards)
    rollouts = toy_rollouts(simulator, lengths=lengths)
    rollouts = rollouts.replace(
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, rollouts.action_mask),
        group=torch.arange(len(rewards)) // group_size,
    )
    plain = [each for each in registered("advantages") if "inner" not in fields_of(each)]
    scaled = [
        (registry.advantages.build(name, inner=each), place)
        for name in registry.advantages.names()
        for place, each in enumerate(plain)
        if "inner" in fields_of(registry.advantages.find(name))
    ]
    assert len(scaled) == 8 * len(plain)
    group_scaled = registry.advantages.find("group_scaled")
    cuts = [segmenter.segment(rollouts) for segmenter in registered("segmenters")]
    for estimator in registered("estimators"):
        state = estimator.start(simulator.policy)
        with torch.no_grad():
            estimator.meet(state, list(dict.fromkeys(rollouts.prompt_keys)), simulator)
        for segmentation in cuts:
            with torch.no_grad():
                values_BS = estimator.estimate(state, rollouts, segmentation, simulator)
            values = segment_values(rollouts, segmentation, values_BS)
            factor = 2 * (2 * int(values.mask.sum())) ** 0.5
            unscaled = [largest(each, values) for each in plain]
            for scheme, place in scaled:
                found = largest(scheme, values)
                most = unscaled[place] * (1 + 1e-5)
                assert found <= max(most, factor), (segmentation, estimator, scheme)
                if case == "equal rewards" and type(scheme) is group_scaled:
                    assert found <= most, (segmentation, estimator, scheme)


def largest(scheme: AdvantageScheme, values: SegmentValues) -> float:
    return float(scheme(values).masked_fill(~values.mask, 0).abs().max())


def test_what_is_no_plugin_is_refused() -> None:
    with pytest.raises(PluginError, match="is no plug-in that the kit knows"):
        parametrize_with_checks([3])


@dataclass(frozen=True)
class Exact(ValueEstimator):
    """Monte-Carlo values, which the toy simulator makes exact."""

    def estimate(self, state, rollouts, segmentation, simulator) -> Tensor:
        rows, columns = segmentation.mask.nonzero(as_tuple=True)
        positions = segmentation.anchors()[rows, columns]
        found = simulator.resume(rollouts, rows, positions, 3).rewards.mean(1)
        values = found.new_zeros(segmentation.mask.shape)
        values[rows, columns] = found
        return values


def test_an_estimator_that_resumes_keeps_the_contract_and_is_exact() -> None:
    check_estimator(Exact())
    simulator = ToySimulator(ToyPolicy().double())
    rollouts = toy_rollouts(simulator)
    segmentation = Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)
    values = Exact().estimate(nn.Module(), rollouts, segmentation, simulator)
    want = segmentation.reduce(simulator.values(rollouts), "first")
    assert torch.allclose(values, want, atol=1e-12)


def test_the_toy_is_consistent() -> None:
    simulator = ToySimulator(ToyPolicy().double())
    everything = simulator.enumerate("1")
    shares = everything.logprobs.sum(1).exp()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-12)
    expected = float((shares * everything.rewards).sum())
    values = simulator.values(everything)
    assert torch.allclose(values[:, 0], torch.full_like(values[:, 0], expected))
    # The value before the last token is the mean over the three symbols that may come.
    last = (shares * everything.rewards).view(-1, 3).sum(1) / shares.view(-1, 3).sum(1)
    assert torch.allclose(values[:, 3].view(-1, 3), last[:, None].expand(-1, 3))
    ends = torch.full((len(everything),), 4)
    rows = torch.arange(len(everything))
    assert torch.allclose(
        simulator.resume(everything, rows, ends, 1).rewards[:, 0], everything.rewards
    )
    likeliest = dataclasses.replace(simulator.params, greedy=True)
    best = simulator.sample(["1"], 1, params=likeliest).rewards
    again = simulator.resume(everything, rows[:1], ends[:1] * 0, 2, params=likeliest).rewards
    assert torch.allclose(again, best.expand(1, 2))


def test_the_example_package_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fixtures/segcredit_example_plugin"))
    comma = importlib.import_module("segcredit_example_plugin").Comma()
    assert comma.split("1+2=3, a") == [2, 4, 6]
    check_segmenter(comma)
