"""The rules for process rewards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from segcredit.segmentation import Segmentation
from segcredit.testing.checked_plugin import CheckedPlugin, Rule, inside, shuffled
from segcredit.testing.rollouts import make_rollouts, pad_rollouts, segments_of_two
from segcredit.types import RolloutBatch

_WORKING = "12-1=11\n11+1=12\nSo 1+1=1, 2-1=1\n#### 12"
"""Steps with something to judge: true ones and a false one."""


def _ragged() -> RolloutBatch:
    """Groups of three rows and less, with holes, a truncated row and rows without actions."""
    rollouts = make_rollouts(
        ["1", _WORKING, *make_rollouts(4).texts, "", _WORKING[:20], "", "1+1=2"],
        group_size=3,
        holes={1: [2, 3, 9], 5: [0, 4, 5], 9: [0, 1, 2, 3, 4, 5]},
        truncated=[4, 8],
        token_values=True,
    )
    return rollouts.replace(reference_logprobs=rollouts.logprobs - 0.1)


def _reward(
    checked: CheckedPlugin,
    rollouts: RolloutBatch,
    segmentation: Segmentation | None = None,
    what: str = "ragged rollouts",
) -> Tensor:
    """Returns process rewards, checked, and 0 outside the mask; by default of segments of two."""
    cut = segments_of_two(rollouts) if segmentation is None else segmentation
    with checked.using(what), torch.no_grad():
        rewards_BS = checked.plugin.reward(rollouts, cut)
    checked.require_values(rewards_BS, cut.mask, f"reward(), on {what},")
    return rewards_BS.masked_fill(~cut.mask, 0)


def _rewards_each_segment(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    _reward(checked, rollouts)
    mask_BT = rollouts.action_mask
    for starts_BT, what in ((mask_BT, "a segment a token"), (~mask_BT, "a segment a row")):
        _reward(checked, rollouts, Segmentation.from_starts(starts_BT, mask_BT), what)


def _process_reward_is_pure(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    cut = segments_of_two(rollouts)
    first_BS = _reward(checked, rollouts, cut)
    checked.require_untouched(_ragged(), rollouts, "reward()")
    checked.require_untouched(segments_of_two(_ragged()), cut, "reward()")
    torch.rand(3)
    if not torch.equal(first_BS, _reward(checked, copy.deepcopy(rollouts))):
        checked.broke(
            "the same segments always earn the same process rewards",
            found="other rewards at the second call",
            expected="the same",
            cause="a random draw from a global generator, dropout left on, or statistics carried"
            " over from earlier batches",
        )


def _process_reward_ignores_batch_order(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    cut = segments_of_two(rollouts)
    order = shuffled(len(rollouts))
    moved_BS = _reward(
        checked, rollouts.select(order), cut.select(order), "rollouts in another order"
    )
    checked.require_close(
        moved_BS,
        _reward(checked, rollouts, cut)[order],
        rule="a completion's process rewards do not depend on the order of the batch",
        cause="rows taken for groups by their place; use rollouts.group",
    )


def _process_reward_ignores_padding(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    wide = pad_rollouts(rollouts, 3, seed=1)
    checked.require_close(
        _reward(checked, wide, what="rollouts with 3 more columns of padding"),
        _reward(checked, rollouts),
        rule="padding is not read",
        cause="the width of the batch used as a length, or a sum taken without the action mask",
    )


def _process_reward_ignores_spare_columns(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    cut = segments_of_two(rollouts)
    # The group of the longest row is left out; select keeps the columns that were its.
    rows = [row for row in range(len(rollouts)) if rollouts.group[row] != rollouts.group[1]]
    spare = cut.select(rows)
    alone = rollouts.select(rows)
    fitting_BS = _reward(checked, alone, segments_of_two(alone), "the rows of some groups")
    spare_BS = _reward(checked, alone, spare, "a table with columns without segments")
    checked.require_close(
        spare_BS[:, : fitting_BS.shape[1]],
        fitting_BS,
        rule="columns without segments are not read",
        cause="a mean or a minimum over the table instead of over segmentation.mask",
    )


def _process_reward_respects_holes(checked: CheckedPlugin) -> None:
    rollouts = _ragged()
    names = ("logprobs", "entropies", "reference_logprobs", "token_values")
    signals = {name: getattr(rollouts, name) for name in names}
    blind = rollouts.replace(
        **{name: x.masked_fill(~rollouts.action_mask, torch.nan) for name, x in signals.items()}
    )
    wanted_BS = _reward(checked, rollouts)
    cut = segments_of_two(blind)
    with checked.using("rollouts with NaN in holes and padding"), torch.no_grad():
        blind_BS = checked.plugin.reward(blind, cut).masked_fill(~cut.mask, 0)
    # Not through the check for finite numbers, which would tell of another cause.
    checked.require_close(
        blind_BS,
        wanted_BS,
        rule="what stands on tokens that are no actions is not read",
        cause="a product with the action mask, which keeps NaN, or a sum without it; use"
        " segmentation.reduce or masked_fill",
    )


def _process_reward_survives_short_rows(checked: CheckedPlugin) -> None:
    _reward(checked, make_rollouts([""]), what="a single completion of one token")
    _reward(checked, make_rollouts(["12 + a"]), what="a batch of one row")
    _reward(checked, make_rollouts([""] * 2, truncated=[0, 1]), what="completions of width 0")
    _reward(checked, make_rollouts([""] * 2, truncated=[0, 1], width=3), what="empty completions")
    _reward(checked, make_rollouts(["a", "1"], holes={0: [0, 1]}), what="a row of holes only")
    _reward(checked, make_rollouts(["1", "1", "1"], group_size=3), what="rows that are all alike")


def _process_reward_works_on_another_device(checked: CheckedPlugin) -> None:
    def of(device: torch.device) -> Tensor:
        rollouts = _ragged().to(device)
        cut = segments_of_two(rollouts)
        return inside(checked.plugin.reward(rollouts, cut), cut.mask)

    checked.require_same_elsewhere(of, "ragged rollouts")


def _process_reward_pickles(checked: CheckedPlugin) -> None:
    again_BS = _reward(checked.unpickled(), _ragged())
    checked.require_same_unpickled(again_BS, _reward(checked, _ragged()), "process rewards")


PROCESS_REWARD_RULES: tuple[Rule, ...] = (
    _rewards_each_segment,
    _process_reward_is_pure,
    _process_reward_ignores_batch_order,
    _process_reward_ignores_padding,
    _process_reward_ignores_spare_columns,
    _process_reward_respects_holes,
    _process_reward_survives_short_rows,
    _process_reward_works_on_another_device,
    _process_reward_pickles,
)
