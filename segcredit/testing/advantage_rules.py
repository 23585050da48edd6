"""The rules for advantage schemes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segcredit.testing.checked_plugin import CheckedPlugin, Rule, inside, shuffled
from segcredit.types import LARGE_ADVANTAGE, SegmentValues


def _values(lengths: Sequence[int] = (3, 1, 0, 5, 2, 4, 1), seed: int = 0) -> SegmentValues:
    """Draws values and rewards of rows with so many segments, two or three rows a group."""
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


def _advantage(
    checked: CheckedPlugin, values: SegmentValues, what: str = "ragged segments"
) -> Tensor:
    """Returns the scheme's advantages, checked, and 0 outside the mask."""
    with checked.using(what):
        advantages_BS = checked.plugin(values)
    checked.require_values(advantages_BS, values.mask, f"its call, on {what},")
    return advantages_BS.masked_fill(~values.mask, 0)


def _advantage_for_each_segment(checked: CheckedPlugin) -> None:
    _advantage(checked, _values())


def _advantage_is_pure(checked: CheckedPlugin) -> None:
    values = _values()
    first_BS = _advantage(checked, values)
    checked.require_untouched(_values(), values, "its call")
    torch.rand(3)
    if not torch.equal(first_BS, _advantage(checked, values)):
        checked.broke(
            "the same values always give the same advantages",
            found="other advantages at the second call",
            expected="the same",
            cause="a random draw, or statistics carried over from earlier batches",
        )


def _advantage_ignores_batch_order(checked: CheckedPlugin) -> None:
    values = _values()
    order = shuffled(len(values.mask))
    checked.require_close(
        _advantage(checked, values.select(order), "rows in another order"),
        _advantage(checked, values)[order],
        rule="a row's advantages do not depend on the order of the batch",
        cause="rows taken for groups by their place; use values.group",
    )


def _advantage_ignores_padding(checked: CheckedPlugin) -> None:
    values = _values()
    names = ("values", "rewards", "lengths", "weights", "node_ids")
    tables = {name: getattr(values, name) for name in names}
    wide = {name: torch.cat([x, torch.zeros_like(x)], dim=1) for name, x in tables.items()}
    mask_BS = torch.cat([values.mask, torch.zeros_like(values.mask)], dim=1)
    padded = _advantage(
        checked, values.replace(**wide, mask=mask_BS), "twice as many columns of segments"
    )
    checked.require_close(
        padded[:, : values.mask.shape[1]],
        _advantage(checked, values),
        rule="columns without segments are not read",
        cause="a mean over the table instead of over values.mask",
    )


def _advantage_survives_short_rows(checked: CheckedPlugin) -> None:
    for lengths in ([1], [4], [0, 0], [1, 0], [1, 1, 1]):
        _advantage(checked, _values(lengths), f"rows of {lengths} segments")
    same = _values()
    _advantage(checked, same.replace(rewards=same.mask.float()), "rewards that are all equal")


def _advantage_is_bounded(checked: CheckedPlugin) -> None:
    """Checks rows that all earn 1, or nearly, under values between 0 and 1."""
    values = _values((3, 1, 5, 2, 4, 1))
    last_BS = values.mask & (values.mask.cumsum(1) == values.mask.sum(1, keepdim=True))
    odd_B1 = torch.arange(len(last_BS))[:, None] % 2
    for gap, what in ((0.0, "returns that are all equal"), (1e-3, "returns of 1 and 0.999")):
        rewards_BS = last_BS * (1 - gap * odd_B1)
        largest = float(_advantage(checked, values.replace(rewards=rewards_BS), what).abs().max())
        if largest > LARGE_ADVANTAGE:
            checked.broke(
                "advantages stay small where returns hardly differ",
                found=f"an advantage of {largest:g} on {what}, of values between 0 and 1",
                expected=f"at most {LARGE_ADVANTAGE} in size",
                cause="a division by a standard deviation that is nearly 0; divide only where"
                " segcredit.measured_by_std says so",
            )


def _advantage_works_on_another_device(checked: CheckedPlugin) -> None:
    def of(device: torch.device) -> Tensor:
        values = _values().to(device)
        return inside(checked.plugin(values), values.mask)

    checked.require_same_elsewhere(of, "ragged segments")


def _advantage_pickles(checked: CheckedPlugin) -> None:
    again = checked.unpickled()
    again_BS = _advantage(again, _values())
    checked.require_same_unpickled(again_BS, _advantage(checked, _values()), "advantages")


ADVANTAGE_RULES: tuple[Rule, ...] = (
    _advantage_for_each_segment,
    _advantage_is_pure,
    _advantage_ignores_batch_order,
    _advantage_ignores_padding,
    _advantage_survives_short_rows,
    _advantage_is_bounded,
    _advantage_works_on_another_device,
    _advantage_pickles,
)
