"""The kit holds process rewards to their contract, and names the rule that a wrong one breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segcredit import registry
from segcredit.errors import PluginError
from segcredit.protocols import ProcessReward
from segcredit.testing import (
    check_process_reward,
    parametrize_with_checks,
    process_reward_checks,
)

build = registry.process_rewards.build
PURE = {"name": "min_form", "inner": "equations"}
REGISTERED = [
    build("equations"),
    build("min_form", inner="equations"),
    build("leave_one_out_centered", inner="equations"),
]
OPTIONS = [
    ("equations", {"modulus": 10, "none": -0.1}),
    ("min_form", {"inner": "equations", "form": "strict"}),
    ("leave_one_out_centered", {"inner": PURE, "per": "segment"}),
    ("leave_one_out_centered", {"inner": PURE, "singleton": "reward"}),
    ("min_form", {"inner": {"name": "leave_one_out_centered", "inner": "equations"}}),
]


@parametrize_with_checks(REGISTERED)
def test_registered_process_rewards_keep_the_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    check_process_reward(build(name, **options))


def test_the_rules_have_names() -> None:
    assert [name for name, _ in process_reward_checks(REGISTERED[0])] == [
        "rewards_each_segment",
        "process_reward_is_pure",
        "process_reward_ignores_batch_order",
        "process_reward_ignores_padding",
        "process_reward_ignores_spare_columns",
        "process_reward_respects_holes",
        "process_reward_survives_short_rows",
        "process_reward_works_on_another_device",
        "process_reward_pickles",
    ]


class OneARow(ProcessReward):
    def reward(self, rollouts, segmentation):
        return rollouts.rewards


class NotFinite(ProcessReward):
    def reward(self, rollouts, segmentation):
        return segmentation.mask / torch.zeros(())


class Whole(ProcessReward):
    def reward(self, rollouts, segmentation):
        return segmentation.mask.long()


class Overwrites(ProcessReward):
    def reward(self, rollouts, segmentation):
        rollouts.rewards.sub_(rollouts.rewards.mean())
        return torch.zeros(segmentation.mask.shape)


class OverwritesSegments(ProcessReward):
    def reward(self, rollouts, segmentation):
        segmentation.counts.clamp_(max=1)
        return torch.zeros(segmentation.starts.shape[0], segmentation.width)


class Draws(ProcessReward):
    def reward(self, rollouts, segmentation):
        return torch.rand(segmentation.mask.shape)


class Remembers(ProcessReward):
    def __init__(self) -> None:
        self.calls = 0

    def reward(self, rollouts, segmentation):
        self.calls += 1
        return segmentation.mask * float(self.calls)


class Neighbours(ProcessReward):
    """Takes two rows in a row for a group."""

    def reward(self, rollouts, segmentation):
        others = rollouts.rewards.roll(1)
        return segmentation.mask * others[:, None]


class PaddedLength(ProcessReward):
    """The source's verl branch: a row's mean over the width of the batch."""

    def reward(self, rollouts, segmentation):
        width = max(rollouts.action_mask.shape[1], 1)
        return segmentation.lengths / width


class TableMean(ProcessReward):
    def reward(self, rollouts, segmentation):
        lengths = segmentation.lengths.float()
        return lengths - lengths.mean(1, keepdim=True)


class Product(ProcessReward):
    """A mask by multiplication, which keeps NaN."""

    def reward(self, rollouts, segmentation):
        surprise = (rollouts.logprobs * rollouts.action_mask).sum(1)
        return segmentation.mask * surprise[:, None]


class NoEmptyRows(ProcessReward):
    def reward(self, rollouts, segmentation):
        rollouts.logprobs[rollouts.action_mask].max()
        return torch.zeros(segmentation.mask.shape)


class CPUZeros(ProcessReward):
    def reward(self, rollouts, segmentation):
        return torch.zeros(segmentation.mask.shape)


class LocalLambda(ProcessReward):
    def __init__(self) -> None:
        self.rule = lambda mask: mask.float()

    def reward(self, rollouts, segmentation):
        return self.rule(segmentation.mask)


WRONG = [
    (OneARow(), "rewards_each_segment", "one finite number for each segment"),
    (NotFinite(), "rewards_each_segment", "a number that is not finite"),
    (Whole(), "rewards_each_segment", "torch.int64"),
    (Overwrites(), "process_reward_is_pure", "changed RolloutBatch.rewards"),
    (OverwritesSegments(), "process_reward_is_pure", "changed Segmentation.counts"),
    (Draws(), "process_reward_is_pure", "always earn the same process rewards"),
    (Remembers(), "process_reward_is_pure", "always earn the same process rewards"),
    (Neighbours(), "process_reward_ignores_batch_order", "on the order of the batch"),
    (PaddedLength(), "process_reward_ignores_padding", "padding is not read"),
    (TableMean(), "process_reward_ignores_spare_columns", "columns without segments are not"),
    (Product(), "process_reward_respects_holes", "on tokens that are no actions"),
    (NoEmptyRows(), "process_reward_survives_short_rows", "on completions of width 0"),
    (CPUZeros(), "process_reward_works_on_another_device", "the device of what it is given"),
    (LocalLambda(), "process_reward_pickles", "on pickling"),
]


def class_name(case: object) -> str:
    return "" if isinstance(case, str) else type(case).__name__


# Wrong on purpose; run-time shape checks would speak before the kit does.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "rule", "sentence"), WRONG, ids=class_name)
def test_wrong_process_rewards_are_caught_by_name(plugin: Any, rule: str, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_process_reward(plugin)
    assert f"process reward {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)
    # That rule, run by itself, speaks: it is not another one that happens to come first.
    with pytest.raises(PluginError):
        dict(process_reward_checks(plugin))[rule]()


def test_what_is_no_plugin_is_refused() -> None:
    with pytest.raises(PluginError, match="a sampler, a policy"):
        parametrize_with_checks([3])
