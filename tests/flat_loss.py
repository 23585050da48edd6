"""Losses with their choices as names and numbers, for tables of cases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segcredit import objective
from segcredit.objective import Aggregation, Importance, Reinforce


def aggregation_of(mode: str, length: float | None = None) -> Aggregation:
    """Returns a mode with its length, of which the modes that divide by none make nothing."""
    return Aggregation(mode) if length is None else Aggregation(mode).for_length(float(length))


def aggregate_loss(
    loss: Tensor, weights: Tensor, aggregate: str, *, norm_length: float | None = None, **rest: Any
) -> Tensor:
    """Calls the public function with the aggregation that the mode and length stand for."""
    how = aggregation_of(aggregate, norm_length)
    return objective.aggregation.aggregate_loss(loss, weights, how, **rest)


def bound_of(options: dict[str, Any]) -> objective.Bound:
    """Takes a bound's options out of ``options``, and returns the bound."""
    name, low, high = (
        options.pop("bound", "clip"),
        options.pop("clip_low"),
        options.pop("clip_high"),
    )
    absolute = options.pop("clip_bounds", "around_one") == "absolute"
    dual = options.pop("dual_clip", None)
    gates = options.pop("gate_positive", 1.0), options.pop("gate_negative", 1.05)
    if name == "clip":
        return objective.Clip(*((1 - low, high - 1) if absolute else (low, high)), dual)
    if name == "log_clip":
        return objective.LogClip(low, high)
    if name == "capped_weight":
        interval = (low, high) if absolute else (max(1 - low, 0.0), 1 + high)
        return objective.TruncatedIS(*interval)
    return {"soft_gate": objective.SoftGate}[name](*gates)


def surrogate_loss(*tensors: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Calls the public function with the objects that the names stand for."""
    level, gradient = options.pop("ratio"), options.pop("ratio_gradient", "full")
    bound, mode = bound_of(options), options.pop("aggregate")
    length = options.pop("norm_length", None)
    ratios = {
        "token": lambda: objective.TokenRatio(),
        "segment": lambda: objective.SegmentRatio(gradient),
        "sequence": lambda: objective.SequenceRatio(gradient),
    }
    surrogate = Reinforce() if level == "none" else Importance(ratios[level](), bound)
    aggregation = aggregation_of(mode, length)
    return objective.surrogate_loss(
        *tensors, surrogate=surrogate, aggregation=aggregation, **options
    )
