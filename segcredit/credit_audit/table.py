"""An audit's table: every metric of every definition, estimator and scheme, a row a metric."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from segcredit.credit_audit import metric_functions
from segcredit.credit_audit.credits import Bases, Credits
from segcredit.credit_audit.metrics import Estimate, Resampling, Scores, Truth
from segcredit.credit_audit.metrics.arrays import Floats, Ints, moved_left
from segcredit.credit_audit.policy_gradients import Parameters
from segcredit.credit_audit.settings import AuditSettings
from segcredit.credit_audit.truth import StoredTruth

Row = dict[str, Any]

SEEN, JUDGES = 0, (1, 2)
"""Split of the truth that plug-ins may read, and those that they are judged on."""
SPLITS = 1 + len(JUDGES)


def arrays(truth: StoredTruth, resampling: Resampling) -> Truth:
    """Returns all splits of a truth, in the form that metrics take: of sampled tokens alone."""
    mask_BT, rollouts = truth.rollouts.action_mask.numpy(), truth.rollouts
    places_T = np.arange(1, mask_BT.shape[1] + 1)
    # The values before each sampled token, and the one at the end.
    ends_BE = np.arange(len(places_T) + 1) == (mask_BT * places_T).max(1)[:, None]
    states_BE = ends_BE | np.pad(mask_BT, ((0, 0), (0, 1)))

    def sampled(x_BT: Tensor) -> Floats:
        return moved_left(x_BT.numpy(), mask_BT, 0.0)

    return Truth(
        values=moved_left(truth.values.numpy(), states_BE, np.nan),
        mask=moved_left(mask_BT, mask_BT, False),
        prompts=truth.prompt_numbers.numpy(),
        rewards=rollouts.rewards.numpy(),
        resampling=resampling,
        scores=None
        if truth.logit_gradients is None
        else Scores(
            sampled(rollouts.logprobs),
            sampled(rollouts.entropies),
            sampled(truth.logit_gradients),
        ),
        earned=sampled(truth.earned),
    )


def rows(
    truth: StoredTruth,
    credits: Sequence[Credits],
    bases: Bases,
    settings: AuditSettings,
    reference: Parameters | None,
) -> Iterator[Row]:
    """Yields the whole table.

    Args:
        truth: with the split that plug-ins have seen, and those that judge.
        credits: of every unit.
        bases: credits with a segment for each token, which credit noise is held against.
        settings: quantiles, classes, and how intervals are made.
        reference: (2,D) splits of the reference gradient; None where there is none.
    """
    whole = arrays(truth, settings.resampling)
    judge = whole.keep(JUDGES)
    yield from _of_truth(truth, judge, settings, reference)
    seen: set[str] = set()
    for found in credits:
        if found.segmenter not in seen:
            seen.add(found.segmenter)
            labels = _labels(found, "movement", segmenter_alone=True)
            yield from _rows(labels, metric_functions.movement(judge, whole, found.sampled_ids))
        yield from _of_unit(judge, found, bases.get(found.estimator))


def _of_unit(judge: Truth, found: Credits, base: Credits | None) -> Iterator[Row]:
    first = found.of(next(iter(found.advantages)))
    yield from _rows(_labels(found, "values"), metric_functions.values(judge, first))
    costs = {"tokens": float(found.tokens), "cpu_seconds": found.cpu_seconds}
    yield from _plain(_labels(found, "cost"), costs)
    for scheme in found.advantages:
        labels = _labels(found, "credit", scheme)
        yield from _rows(labels, metric_functions.credit(judge, found.of(scheme, base)))
        moments = found.gradients.get(scheme, {})
        labels = _labels(found, "gradient", scheme)
        yield from _rows(labels, metric_functions.gradients(moments, judge.resampling))


def _of_truth(
    truth: StoredTruth, judge: Truth, settings: AuditSettings, reference: Parameters | None
) -> Iterator[Row]:
    """Yields the metrics in which no definition of segments has a part."""
    rollouts = truth.rollouts
    mask_BT = rollouts.action_mask.numpy()
    signals = {"entropy": rollouts.entropies.numpy(), "surprisal": -rollouts.logprobs.numpy()}
    signals = {name: moved_left(x_BT, mask_BT, 0.0) for name, x_BT in signals.items()}
    of, names = token_classes(rollouts.texts, rollouts.token_spans.numpy(), settings.classes)
    classes = moved_left(of, mask_BT, -1), names
    found = metric_functions.signals(judge, signals, settings.quantiles, settings.jump, classes)
    yield from _rows({"section": "signals"}, found)
    if rollouts.turn_ids is not None:
        turns_BT = moved_left(rollouts.turn_ids.numpy(), mask_BT, -1)
        yield from _rows({"section": "signals"}, metric_functions.turns(judge, turns_BT))
    first_N, second_N = np.moveaxis(judge.advantages, 1, 0)[:, judge.mask]
    reliability = {"split_correlation": _correlation(first_N, second_N)}
    yield from _plain({"section": "signals"}, reliability)
    costs = {"truth_tokens": float(truth.tokens), "truth_cpu_seconds": truth.cpu_seconds}
    yield from _plain({"section": "cost"}, costs)
    if reference is not None:
        yield from _plain({"section": "gradient"}, {"reference_cosine": _cosine(*reference)})


def token_classes(
    texts: Sequence[str], spans_BT2: Ints, patterns: Mapping[str, str]
) -> tuple[Ints, list[str]]:
    """Sorts tokens into classes, by what stands at their first character.

    Args:
        texts: of the completions.
        spans_BT2: (B,T,2) first character and the one after the last, of each token.
        patterns: a regular expression by class; the first that matches there wins, lookbehinds
            included.

    Returns:
        (B,T) numbers of the classes, and their names: those given, then "other", which has the
        tokens without text (an end token).
    """
    tried = [re.compile(pattern) for pattern in patterns.values()]
    classes_BT = np.full(spans_BT2.shape[:2], len(tried), dtype=np.int64)
    for row, text in enumerate(texts):
        first_T, after_T = spans_BT2[row].T
        for token in np.flatnonzero(first_T < after_T):
            fitting = (n for n, found in enumerate(tried) if found.match(text, int(first_T[token])))
            classes_BT[row, token] = next(fitting, len(tried))
    return classes_BT, [*patterns, "other"]


def _labels(
    found: Credits, section: str, scheme: str | None = None, *, segmenter_alone: bool = False
) -> Row:
    return {
        "segmenter": found.segmenter,
        "estimator": None if segmenter_alone else found.estimator,
        "advantage": scheme,
        "causal": found.causal,
        "section": section,
    }


def _rows(labels: Row, found: metric_functions.Found) -> Iterator[Row]:
    for name, at, estimate in found:
        yield {**labels, "metric": name, "at": at, **_numbers(estimate)}


def _numbers(estimate: Estimate) -> Row:
    names = ("value", "low", "high", "error", "prompts")
    return {name: getattr(estimate, name) for name in names}


def _plain(labels: Row, numbers: Mapping[str, float]) -> Iterator[Row]:
    """Numbers without an interval."""
    for name, value in numbers.items():
        yield {**labels, "metric": name, "at": "", "value": value}


def _correlation(first: Floats, second: Floats) -> float:
    return _cosine(first - first.mean(), second - second.mean())


def _cosine(first: Floats | Parameters, second: Floats | Parameters) -> float:
    one, two = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN where one of them is 0 everywhere
        return float(one @ two / np.sqrt((one @ one) * (two @ two)))
