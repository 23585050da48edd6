"""Losses with their choices as names and numbers, for tables of cases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segcredit import objective, old_keys
from segcredit.objective import Aggregation, Corrected, Importance, Reinforce, Surrogate

AGGREGATIONS: dict[str, type[Aggregation]] = {
    "token_mean": objective.TokenMean,
    "sequence_mean_token_mean": objective.SequenceMeanTokenMean,
    "sequence_mean_token_sum": objective.SequenceMeanTokenSum,
    "sequence_mean_token_norm": objective.SequenceMeanTokenNorm,
    "sequence_sum_norm": objective.SequenceSumNorm,
}
BOUNDS: dict[str, Any] = {
    "clip": objective.Clip,
    "log_clip": objective.LogClip,
    "truncated_is": objective.TruncatedIS,
    "soft_gate": objective.SoftGate,
}
_OPTIONS = (
    *("clip_low", "clip_high", "clip_bounds", "dual_clip"),
    *("gate_positive", "gate_negative"),
)


def aggregation_of(mode: str, length: float | None = None) -> Aggregation:
    """Returns a mode with its length, of which the modes that divide by none make nothing."""
    plain = AGGREGATIONS[mode]()
    return plain if length is None else plain.for_length(float(length))


def aggregate_loss(
    loss: Tensor, weights: Tensor, aggregate: str, *, norm_length: float | None = None, **rest: Any
) -> Tensor:
    """Calls the public function with the aggregation that the mode and length stand for."""
    how = aggregation_of(aggregate, norm_length)
    return objective.aggregation.aggregate_loss(loss, weights, how, **rest)


def bound_of(options: dict[str, Any]) -> objective.Bound:
    """Takes a bound's options out of ``options``, as configs once gave them, and returns it."""
    flat = {key: options.pop(key) for key in _OPTIONS if key in options}
    name = options.pop("bound", "clip")
    loss = {"bound": name, "clip_low": 0.2, **flat}
    if name != "clip":
        loss.pop("dual_clip", None)
    old_keys.renew({"loss": loss}, {})
    table = dict(loss["bound"])
    return BOUNDS[table.pop("name")](**table)


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
    surrogate: Surrogate = Reinforce() if level == "none" else Importance(ratios[level](), bound)
    if (factors := options.pop("corrections", None)) is not None:
        surrogate = Corrected(surrogate, factors)
    aggregation = aggregation_of(mode, length)
    return objective.surrogate_loss(
        *tensors, surrogate=surrogate, aggregation=aggregation, **options
    )
