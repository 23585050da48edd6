"""The metrics of an audit: where each is taken, what is best, and what chance has.

Whatever lists metrics (report, command line, figures, docs/explain/audit.md) takes them from here.
Pure data, so that whoever prints a heading loads neither arrays nor models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Section = Literal["signals", "movement", "credit", "values", "gradient", "cost"]
Place = tuple[str, str]
"""A metric's name, and the level at which it is taken, as in the columns ``metric`` and ``at``."""
Reference = float | str | None
"""A number, the name of the metric that holds it, or None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of an audit, and how its estimates are to be read."""

    name: str
    section: Section
    summary: str
    """One line, as a caption."""
    levels: tuple[str, ...] = ("",)
    """Places where it is taken; none if the audit decides (quantiles, classes, groups)."""
    best: Reference = None
    chance: Reference = None
    """Value for blind credit, or for as many boundaries drawn uniformly."""
    zero: Reference = None
    """Value for credit, or for values, of 0 everywhere."""
    bias: str = "no"
    """Bias by noise in the truth."""
    headlines: tuple[str, ...] = ()
    """Levels at which credits are compared by it, the first before all others'; none = read it
    beside those that have some."""
    reported: tuple[str, ...] = ()
    """Levels in the report's table of its section."""


SIGNALS = ("entropy", "surprisal")
"""Signals of the policy whose Lift is taken."""
HIGH = float("inf")
GRADIENT = "gradient"
"""Level at which tokens are weighed by w, the squared gradient of their log-prob by the logits."""
_LEVELS = (GRADIENT, "token", "segment", "completion")
_FORKS = ("end", "start")
_PARTS = ("tokens", "all", "early", "late")


def lift_name(signal: str, *, of_jumps: bool = False) -> str:
    """Returns the name of a signal's Lift, of squared changes or of jumps above a threshold."""
    return f"lift_{signal}_of_jumps" if of_jumps else f"lift_{signal}"


def _lift(signal: str, of_jumps: bool) -> Metric:
    what = "jumps of the value" if of_jumps else "squared value change"
    return Metric(
        name=lift_name(signal, of_jumps=of_jumps),
        section="signals",
        summary=f"Lift: {what} where the {signal} is high, over that of all tokens.",
        levels=(),
        best=HIGH,
        chance=1.0,
        bias="towards chance" if of_jumps else "no",
    )


METRICS: tuple[Metric, ...] = (
    *(_lift(signal, of_jumps) for signal in SIGNALS for of_jumps in (False, True)),
    Metric(
        name="class_share",
        section="signals",
        summary="Share of the squared value change on a class of tokens.",
        levels=(),
    ),
    Metric(
        name="class_ratio",
        section="signals",
        summary="Share of the change on a class of tokens, over its share of the tokens.",
        levels=(),
        chance=1.0,
    ),
    Metric(
        name="turns",
        section="signals",
        summary="Turns of a completion.",
    ),
    Metric(
        name="turn_share",
        section="signals",
        summary="Share of the squared value change in a turn, counted from 1.",
        levels=(),
    ),
    Metric(
        name="turn_ratio",
        section="signals",
        summary="Share of the change in a turn, over its share of the tokens.",
        levels=(),
        chance=1.0,
    ),
    Metric(
        name="turn_movement",
        section="signals",
        summary="Squared value change in a turn, mean of the completions that reach it.",
        levels=(),
    ),
    Metric(
        name="split_correlation",
        section="signals",
        summary="Correlation of the judging splits' value changes with each other.",
        best=1.0,
    ),
    Metric(
        name="segments",
        section="movement",
        summary="Segments of a completion.",
        reported=("",),
    ),
    Metric(
        name="share_on_boundaries",
        section="movement",
        summary="Share of the squared value change on the tokens at boundaries.",
        levels=_FORKS,
        best="oracle_share",
        chance="random_share_on_boundaries",
        reported=("end",),
    ),
    Metric(
        name="random_share_on_boundaries",
        section="movement",
        summary="The same for as many boundaries drawn uniformly.",
        levels=_FORKS,
        reported=("end",),
    ),
    Metric(
        name="boundary_ratio",
        section="movement",
        summary="Share on boundaries, over that of as many drawn uniformly.",
        levels=_FORKS,
        best=HIGH,
        chance=1.0,
        reported=("end",),
    ),
    Metric(
        name="oracle_share",
        section="movement",
        summary="Share on the oracle's boundaries: as many, at the largest changes.",
        levels=_FORKS,
        bias="downwards",
        reported=("end",),
    ),
    Metric(
        name="jump_agreement",
        section="movement",
        summary="Share of the boundaries that the oracle has too.",
        levels=_FORKS,
        best="jump_ceiling",
        chance="jump_chance",
        bias="towards chance",
        reported=("end",),
    ),
    Metric(
        name="jump_chance",
        section="movement",
        summary="The same for as many boundaries drawn uniformly.",
        levels=_FORKS,
    ),
    Metric(
        name="jump_ceiling",
        section="movement",
        summary="The same for the oracle of another split.",
        levels=_FORKS,
        bias="downwards",
    ),
    Metric(
        name="share_within",
        section="movement",
        summary="Share of the squared value change that credit constant in segments cannot show.",
        best=0.0,
        chance="random_share_within",
        reported=("",),
    ),
    Metric(
        name="random_share_within",
        section="movement",
        summary="The same for as many boundaries drawn uniformly.",
        reported=("",),
    ),
    Metric(
        name="baseline_bias",
        section="movement",
        summary="Dependence of a segment's baseline on the tokens that it is for.",
        levels=("start", "last_token"),
        best=0.0,
        reported=("start",),
    ),
    Metric(
        name="true_noise_ratio",
        section="movement",
        summary="Credit noise of exact values with td, over that of a token a segment.",
        levels=(GRADIENT,),
        reported=(GRADIENT,),
    ),
    Metric(
        name="correlation",
        section="credit",
        summary="Correlation of each token's advantage with its true one.",
        levels=_LEVELS,
        best=1.0,
        chance=0.0,
        zero=0.0,
        headlines=(GRADIENT, "token"),
    ),
    Metric(
        name="credit_noise_ratio",
        section="credit",
        summary="Credit noise, over that of the same estimator and scheme with a token a segment.",
        levels=(GRADIENT,),
        zero=0.0,
        headlines=(GRADIENT,),
    ),
    Metric(
        name="credit_noise",
        section="credit",
        summary="Noise that credit puts into the gradient: Σ w A² of a completion.",
        levels=(GRADIENT,),
        zero=0.0,
    ),
    Metric(
        name="sharpening",
        section="credit",
        summary="Slope of credit on the token's log-prob at equal true advantage, in deviations.",
        levels=(GRADIENT,),
        best=0.0,
        chance=0.0,
        zero=0.0,
        headlines=(GRADIENT,),
    ),
    Metric(
        name="slope",
        section="credit",
        summary="Change of the advantage where the true one changes by 1.",
        levels=_LEVELS,
        best=1.0,
        chance=0.0,
        zero=0.0,
        headlines=(GRADIENT,),
    ),
    Metric(
        name="noise",
        section="credit",
        summary="Variance of the advantages about their slope, over that of the true ones.",
        levels=_LEVELS,
        best=0.0,
        zero=0.0,
    ),
    Metric(
        name="sign_agreement",
        section="credit",
        summary="Agreement of signs with the true advantages, large ones counting more.",
        levels=_LEVELS,
        best="sign_ceiling",
        chance=0.0,
        zero=0.0,
        headlines=("token",),
    ),
    Metric(
        name="sign_ceiling",
        section="credit",
        summary="The same for the signs of another split of the truth.",
        levels=_LEVELS,
        bias="downwards",
    ),
    Metric(
        name="mass_kept",
        section="credit",
        summary="What credit adds up to, over what the completion earned beyond its prompt.",
        best=1.0,
        chance=0.0,
        zero=0.0,
        headlines=("",),
    ),
    Metric(
        name="mass_error",
        section="credit",
        summary="Squared error of what credit adds up to, over the square of what was earned.",
        best=0.0,
        chance=1.0,
        zero=1.0,
    ),
    Metric(
        name="explained_variance",
        section="values",
        summary="Share of the variance of the true values that the estimator's explain.",
        levels=_PARTS,
        best=1.0,
        chance=0.0,
        zero=0.0,
        headlines=("tokens",),
        reported=_PARTS,
    ),
    Metric(
        name="calibration_slope",
        section="values",
        summary="Change of the true value where the estimator's changes by 1.",
        levels=_PARTS,
        best=1.0,
        chance=0.0,
        reported=("all",),
    ),
    Metric(
        name="calibration_intercept",
        section="values",
        summary="True value where the estimator's is 0, on the line of that slope.",
        levels=_PARTS,
        best=0.0,
    ),
    Metric(
        name="bias",
        section="values",
        summary="Mean of the estimator's values less the true ones, in reward units.",
        levels=_PARTS,
        best=0.0,
        reported=("all",),
    ),
    Metric(
        name="error",
        section="values",
        summary="Mean squared error of the values, over the variance of the true ones.",
        levels=_PARTS,
        best=0.0,
        chance=1.0,
        reported=("all",),
    ),
    Metric(
        name="consistency_spread",
        section="values",
        summary="Variance of the estimator's values inside segments, over that of the true ones.",
        reported=("",),
    ),
    Metric(
        name="consistency_true_spread",
        section="values",
        summary="The same for the true values: small where segments are coherent.",
        reported=("",),
    ),
    Metric(
        name="consistency_noise",
        section="values",
        summary="The same for the difference of the two.",
        best=0.0,
        chance="consistency_true_spread",
        reported=("",),
    ),
    Metric(
        name="cosine",
        section="gradient",
        summary="Cosine of one batch's policy gradient with the reference.",
        levels=(),
        best=1.0,
        chance=0.0,
        zero=0.0,
        headlines=("all",),
        reported=("all",),
    ),
    Metric(
        name="projection",
        section="gradient",
        summary="Mean gradient along the reference, over the reference's length.",
        levels=(),
        best=1.0,
        chance=0.0,
        zero=0.0,
        reported=("all",),
    ),
    Metric(
        name="gradient_noise",
        section="gradient",
        summary="Variance of one batch's gradient, over the reference's squared length.",
        levels=(),
        best=0.0,
        zero=0.0,
        reported=("all",),
    ),
    Metric(
        name="signal_to_noise",
        section="gradient",
        summary="Mean gradient along the reference, over the deviation of one batch's.",
        levels=(),
        best=HIGH,
        chance=0.0,
        zero=0.0,
        headlines=("all",),
    ),
    Metric(
        name="reference_cosine",
        section="gradient",
        summary="Cosine of the reference gradient's two splits.",
        best=1.0,
    ),
    Metric(
        name="tokens",
        section="cost",
        summary="Tokens sampled for an estimator's values.",
        headlines=("",),
        reported=("",),
    ),
    Metric(
        name="cpu_seconds",
        section="cost",
        summary="CPU-seconds of learning and valuing.",
        reported=("",),
    ),
    Metric(
        name="truth_tokens",
        section="cost",
        summary="Tokens sampled for the truth.",
    ),
    Metric(
        name="truth_cpu_seconds",
        section="cost",
        summary="CPU-seconds of measuring the truth.",
    ),
)

_BY_NAME = {metric.name: metric for metric in METRICS}


def metric(name: str) -> Metric:
    """Returns the metric of a name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def headlines(*sections: Section) -> list[Place]:
    """Returns the places by which credits are compared, of some sections or of all.

    The first level of every metric, in the order of the list, then the second ones.
    """
    chosen = [one for one in METRICS if not sections or one.section in sections]
    ranks = range(max(len(one.headlines) for one in chosen))
    return [
        (one.name, one.headlines[rank])
        for rank in ranks
        for one in chosen
        if rank < len(one.headlines)
    ]


def reported(section: Section) -> list[Place]:
    """Returns the places that the report's table of a section shows."""
    chosen = (one for one in METRICS if one.section == section)
    return [(one.name, level) for one in chosen for level in one.reported]


def with_references(name: str) -> tuple[str, ...]:
    """Returns a metric, and the metrics that hold what chance and the best have of it."""
    one = metric(name)
    return name, *(other for other in (one.chance, one.best) if isinstance(other, str))


def markdown() -> Iterator[str]:
    """Yields the lines of the table in docs/explain/audit.md; headlines are bold."""
    yield "| section | metric | at | what it is | best | chance | zero | biased by noise |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in METRICS:
        name = f"**`{one.name}`**" if one.headlines else f"`{one.name}`"
        references = (_shown(value) for value in (one.best, one.chance, one.zero))
        levels = ", ".join(filter(None, one.levels)) or ("" if one.levels else "the audit's")
        cells = (one.section, name, levels, one.summary, *references, one.bias)
        yield f"| {' | '.join(cells)} |"


def _shown(value: Reference) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"`{value}`"
    return "high" if value == HIGH else f"{value:g}"
