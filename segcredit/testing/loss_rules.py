"""The rules for the parts of a loss: importance ratios, bounds, corrections and aggregations."""

from __future__ import annotations

import torch
from torch import Tensor

from segcredit.objective.aggregation import Aggregation
from segcredit.objective.importance_ratio import Importance, TokenRatio
from segcredit.objective.policy_loss import LOG_RATIO_LIMIT
from segcredit.segmentation import Segmentation
from segcredit.testing.checked_plugin import CheckedPlugin, Rule

_SHAPE = (5, 8)


def _mask() -> Tensor:
    """Returns a ragged mask with a hole, and a row without tokens."""
    mask_BT = torch.arange(_SHAPE[1]) < torch.tensor([8, 3, 0, 5, 1])[:, None]
    mask_BT[0, 2] = False
    return mask_BT


def _normal(seed: int) -> Tensor:
    return torch.randn(_SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _loss(checked: CheckedPlugin, log_ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a bound's losses over token ratios, and their slopes by the log-probs."""
    logprobs = _normal(2).sub(3).requires_grad_()
    moving = log_ratio + (logprobs - logprobs.detach())
    mask_BT = torch.ones(_SHAPE, dtype=torch.bool)
    cut = Segmentation.from_starts(mask_BT, mask_BT)
    with checked.using("token ratios"):
        surrogate = Importance(TokenRatio(), checked.plugin)
        loss = surrogate(moving, advantages, logprobs, mask_BT, cut)[1].loss
    with checked.using("the slope of its losses"):
        slopes = torch.autograd.grad(loss.sum(), logprobs)[0]
    return loss.detach(), slopes


def _bound_is_finite(checked: CheckedPlugin) -> None:
    for log_ratio in (_normal(0) * 0.5, *(torch.full(_SHAPE, x).double() for x in _EXTREMES)):
        for found in _loss(checked, log_ratio, _normal(1)):
            _require_finite(checked, found, "a loss and its slope are finite for every ratio")


_EXTREMES = (-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _bound_leaves_what_has_no_credit(checked: CheckedPlugin) -> None:
    loss, slopes = _loss(checked, _normal(0) * 0.5, torch.zeros(_SHAPE).double())
    for found in (loss, slopes):
        checked.require_close(
            found,
            torch.zeros(_SHAPE).double(),
            rule="a token without advantage has neither loss nor slope",
            cause="a term that is not multiplied by the advantage",
        )


def _bound_is_the_policy_gradient_at_first(checked: CheckedPlugin) -> None:
    _, slopes = _loss(checked, torch.zeros(_SHAPE).double(), _normal(1))
    checked.require_close(
        slopes,
        -_normal(1),
        rule="where the ratio is 1, the slope by a token's log-prob is minus its advantage",
        cause="a wrong sign, or a factor that is not 1 under the policy that sampled",
    )


def _bound_pickles(checked: CheckedPlugin) -> None:
    given = _normal(0), _normal(1)
    again, first = _loss(checked.unpickled(), *given)[0], _loss(checked, *given)[0]
    checked.require_same_unpickled(again, first, "losses")


def _average(checked: CheckedPlugin, log_ratio: Tensor, mask_BT: Tensor) -> Tensor:
    starts_BT = torch.arange(mask_BT.shape[1]).expand_as(mask_BT) % 3 == 0
    cut = Segmentation.from_starts(starts_BT, mask_BT)
    with checked.using("ragged rows"):
        found = checked.plugin.average(log_ratio.masked_fill(~mask_BT, 0), mask_BT, cut)
    rule = "average gives a log-ratio for each token"
    if not isinstance(found, Tensor) or found.shape != mask_BT.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        cause = "one number a row or a segment; spread it over its tokens"
        checked.broke(rule, found=f"{shape}", expected=f"{tuple(mask_BT.shape)}", cause=cause)
    found = found.masked_fill(~mask_BT, 0)
    _require_finite(checked, found, rule)
    return found


def _ratio_is_one_at_first(checked: CheckedPlugin) -> None:
    checked.require_close(
        _average(checked, torch.zeros(_SHAPE).double(), _mask()),
        torch.zeros(_SHAPE).double(),
        rule="the ratio is 1 under the policy that sampled",
        cause="a constant that is added to the log-ratio",
    )


def _ratio_ignores_padding_and_other_rows(checked: CheckedPlugin) -> None:
    x_BT, mask_BT, some = _normal(0), _mask(), [3, 1]
    wide = torch.nn.functional.pad(x_BT, (0, 3)), torch.nn.functional.pad(mask_BT, (0, 3))
    first_BT = _average(checked, x_BT, mask_BT)
    rule = "a row's ratios depend neither on padding nor on the other rows"
    cause = "a mean over the table instead of over the action tokens"
    found = _average(checked, *wide)[:, : _SHAPE[1]]
    checked.require_close(found, first_BT, rule=rule, cause=cause)
    found = _average(checked, x_BT[some], mask_BT[some])
    checked.require_close(found, first_BT[some], rule=rule, cause=cause)


def _ratio_pickles(checked: CheckedPlugin) -> None:
    again, first = (_average(c, _normal(0), _mask()) for c in (checked.unpickled(), checked))
    checked.require_same_unpickled(again, first, "ratios")


def _factors(checked: CheckedPlugin, x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns the factors of ragged rows, those of masked tokens 0."""
    starts_BT = torch.arange(mask_BT.shape[1]).expand_as(mask_BT) % 3 == 0
    with checked.using("ragged rows"):
        cut = Segmentation.from_starts(starts_BT, mask_BT)
        factors_BT = checked.plugin(x_BT.masked_fill(~mask_BT, 0), mask_BT, cut)
    if not isinstance(factors_BT, Tensor) or factors_BT.shape != x_BT.shape:
        checked.broke(
            "its call gives a factor for each token",
            found=type(factors_BT).__name__,
            expected=f"a tensor of shape {tuple(x_BT.shape)}",
            cause="one number a row or a segment; spread it over its tokens",
        )
    _require_finite(checked, factors_BT[mask_BT], "factors are finite for every ratio")
    return factors_BT.masked_fill(~mask_BT, 0)


def _correction_is_one_where_sampler_and_trainer_agree(checked: CheckedPlugin) -> None:
    mask_BT = _mask()
    checked.require_close(
        _factors(checked, torch.zeros(_SHAPE).double(), mask_BT),
        mask_BT.double(),
        rule="where sampler and trainer agree, every factor is 1",
        cause="a normalisation over the batch, or a band without 1",
    )


def _correction_is_no_smaller_than_0(checked: CheckedPlugin) -> None:
    for x_BT in (_normal(0), *(torch.full(_SHAPE, x).double() for x in _EXTREMES)):
        if bool((_factors(checked, x_BT, _mask()) < 0).any()):
            checked.broke(
                "factors are at least 0",
                found="a negative one",
                expected="weights of at least 0",
                cause="a log-weight that was not exponentiated",
            )


def _correction_ignores_padding_and_other_rows(checked: CheckedPlugin) -> None:
    x_BT, mask_BT, some = _normal(0), _mask(), [3, 1]
    wide = torch.nn.functional.pad(x_BT, (0, 3)), torch.nn.functional.pad(mask_BT, (0, 3))
    first_BT = _factors(checked, x_BT, mask_BT)
    rule = "a row's factors depend neither on padding nor on the other rows"
    cause = "a mean over the table instead of over the action tokens"
    found = _factors(checked, *wide)[:, : _SHAPE[1]]
    checked.require_close(found, first_BT, rule=rule, cause=cause)
    found = _factors(checked, x_BT[some], mask_BT[some])
    checked.require_close(found, first_BT[some], rule=rule, cause=cause)


def _correction_pickles(checked: CheckedPlugin) -> None:
    again, first = (_factors(c, _normal(0), _mask()) for c in (checked.unpickled(), checked))
    checked.require_same_unpickled(again, first, "factors")


def _parts(checked: CheckedPlugin, loss: Tensor, counts: Tensor) -> Tensor:
    """Returns numerator and denominator, as (2,); 1 where the aggregation counts nothing."""
    with checked.using("ragged rows"):
        plugin: Aggregation = checked.plugin.for_length(10.0)
        above, below = plugin.numerator(loss * counts, counts), plugin.denominator(counts)
        found = torch.stack([above, torch.ones_like(above) if below is None else below.to(above)])
    if found.shape != (2,):
        checked.broke(
            "numerator and denominator are single numbers",
            found=f"shape {tuple(found.shape[1:])}",
            expected="no dimension",
            cause="one number a row; sum the rows",
        )
    _require_finite(checked, found, "numerator and denominator are finite, also of empty rows")
    return found


def _aggregation_adds_up(checked: CheckedPlugin) -> None:
    loss, counts = _normal(0), _mask().double()
    whole = _parts(checked, loss, counts)
    pieces = torch.stack([_parts(checked, loss[r], counts[r]) for r in ([0, 2], [1], [3, 4])])
    constant = checked.plugin.denominator(counts) is None
    checked.require_close(
        torch.stack([pieces[:, 0].sum(), whole[1] if constant else pieces[:, 1].sum()]),
        whole,
        rule="what the pieces of a minibatch add is what the whole of it has",
        cause="a division by the number of rows or tokens inside the numerator",
    )


def _aggregation_is_linear(checked: CheckedPlugin) -> None:
    loss, counts = _normal(0), _mask().double()
    checked.require_close(
        _parts(checked, 3 * loss, counts),
        _parts(checked, loss, counts) * torch.tensor([3.0, 1.0]),
        rule="losses three times as large are a numerator three times as large",
        cause="a constant that is added, or a maximum",
    )


def _aggregation_ignores_padding(checked: CheckedPlugin) -> None:
    loss, counts = _normal(0), _mask().double()
    wide = (torch.nn.functional.pad(x, (0, 3)) for x in (loss, counts))
    checked.require_close(
        _parts(checked, *wide),
        _parts(checked, loss, counts),
        rule="columns that count nothing are not read, once a length is given",
        cause="a mean over the table instead of over the counts",
    )


def _aggregation_pickles(checked: CheckedPlugin) -> None:
    given = _normal(0), _mask().double()
    again, first = (_parts(c, *given) for c in (checked.unpickled(), checked))
    checked.require_same_unpickled(again, first, "sums")


def _require_finite(checked: CheckedPlugin, found: Tensor, rule: str) -> None:
    if not bool(found.isfinite().all()):
        checked.broke(
            rule,
            found="a number that is not finite",
            expected="finite numbers",
            cause="a division by the length of an empty row, or an exponential of a ratio",
        )


BOUND_RULES: tuple[Rule, ...] = (
    _bound_is_finite,
    _bound_leaves_what_has_no_credit,
    _bound_is_the_policy_gradient_at_first,
    _bound_pickles,
)
RATIO_RULES: tuple[Rule, ...] = (
    _ratio_is_one_at_first,
    _ratio_ignores_padding_and_other_rows,
    _ratio_pickles,
)
CORRECTION_RULES: tuple[Rule, ...] = (
    _correction_is_one_where_sampler_and_trainer_agree,
    _correction_is_no_smaller_than_0,
    _correction_ignores_padding_and_other_rows,
    _correction_pickles,
)
AGGREGATION_RULES: tuple[Rule, ...] = (
    _aggregation_adds_up,
    _aggregation_is_linear,
    _aggregation_ignores_padding,
    _aggregation_pickles,
)
