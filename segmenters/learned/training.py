"""Fit a boundary model and say how good it is, by cross-validation over problems.

No probability that is reported of a document was fitted with its problem: the first stage that
judges fold k never saw k; the trees that judge fold k learned from first stages that saw neither k
nor the fold that they judged (one for each pair of folds). Blend and threshold of fold k are chosen
on the other folds' left-out probabilities; fold k took part in the fits behind those, which is all
that these two numbers know of it.
"""

# scikit-learn ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from segcredit import errors

from .corpus import Corpus
from .features import (
    Buckets,
    Candidates,
    CandidateTable,
    Floats,
    dense_features,
    find_candidates,
    hashed_features,
)
from .signals import signal_features
from .stages import (
    BoundaryModel,
    FirstStage,
    Usual,
    familiarity,
    fit_first,
    fit_second,
    mix,
    second_probabilities,
)
from .tokens import Bools, Ints, read_tokens

_BLENDS = (0.25, 0.5, 0.75, 1.0)
_FEW = 200
"""Documents below which the first stage is held closer to 0."""
_STRENGTH, _STRENGTH_OF_FEW = 0.3, 0.1
_KNOWN_SHARE = 0.998
"""The share of training's own documents, left out of training, that count as known. At .98 the
sentences that stand in for the others cost .012 of F1 on `joined_space`, here under .001."""
_MOST_USUAL = 4096
"""Documents' shares and rates that a model file keeps; of more their quantiles."""
_FEWEST_FOLDS = 3

Watch = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A model and what cross-validation found."""

    model: BoundaryModel
    counts_D3: Ints
    """Boundaries hit, predicted, and given, of each document when its fold was left out."""
    predicted: tuple[Ints, ...]
    """The boundaries predicted for each document when its fold was left out."""
    thresholds: tuple[float, ...]
    """One a fold."""
    folds_D: Ints
    """The fold of each document."""
    candidates: CandidateTable
    first_C: Floats
    """The first stage's probabilities when the fold was left out."""
    second_C: Floats
    """The second stage's."""
    reachable: float
    """Share of the given boundaries that are candidates."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """All that is known of the candidates before anything is fitted."""

    candidates: CandidateTable
    buckets_CF: Buckets
    signals_CQ: Floats | None
    labels_C: Bools
    folds_C: Ints
    folds_D: Ints
    given_D: Ints
    strength: float

    def fit_first_without(self, *folds: int) -> FirstStage:
        rows = ~np.isin(self.folds_C, folds)
        return fit_first(self.buckets_CF[rows], self.labels_C[rows], self.strength)

    def dense(self, first_C: Floats) -> Floats:
        return dense_features(self.candidates, first_C, self.signals_CQ)


def fit(
    corpus: Corpus, *, folds: int = 5, which: Candidates = "fast", watch: Watch = lambda _: None
) -> Fitted:
    """Cross-validates and fits both stages.

    Args:
        corpus: at least three problems.
        folds: parts into which the problems are divided; at most one a problem.
        which: candidates, as ``find_candidates`` knows them.
        watch: told what is being done.

    Raises:
        StudyError: too few problems or boundaries.
    """
    watch("reading tokens")
    sample = _sample(corpus, _folds(corpus.problems, folds), which)
    count = int(sample.folds_D.max()) + 1
    _require_both_labels(sample, count)
    watch(f"first stage, {count * (count - 1) // 2 + count + 1} fits")
    pairs = {pair: sample.fit_first_without(*pair) for pair in combinations(range(count), 2)}
    singles = [sample.fit_first_without(fold) for fold in range(count)]
    first_C = _apply(sample, singles)
    watch(f"second stage, {count + 1} fits")
    second_C = np.concatenate(
        [_left_out_second(sample, fold, pairs, singles) for fold in range(count)]
    )
    order = np.concatenate([np.flatnonzero(sample.folds_C == fold) for fold in range(count)])
    second_C[order] = second_C.copy()
    model = _final_model(sample, which, first_C, second_C, singles)
    return _report(sample, model, first_C, second_C, count)


def _folds(problems: Sequence[str], folds: int) -> Ints:
    """Returns (D,) the part of each document; a problem's documents share theirs."""
    from sklearn.model_selection import GroupKFold

    known = len(set(problems))
    if known < _FEWEST_FOLDS:
        raise errors.StudyError(
            f"the data hold {known} problem{'s' * (known != 1)}; expected at least"
            f" {_FEWEST_FOLDS}, better hundreds, since cross-validation keeps whole problems back."
            " If 'problem' names the data set, give each problem a name of its own."
        )
    if folds < _FEWEST_FOLDS:
        raise errors.StudyError(f"folds is {folds}; expected at least {_FEWEST_FOLDS}, such as 5.")
    folds_D = np.zeros(len(problems), np.int64)
    splitter = GroupKFold(min(folds, known))
    for fold, (_, rows) in enumerate(splitter.split(problems, groups=problems)):
        folds_D[rows] = fold
    return folds_D


def _sample(corpus: Corpus, folds_D: Ints, which: Candidates) -> _Sample:
    candidates = find_candidates(read_tokens(corpus.texts), which)
    edges = np.searchsorted(candidates.documents_C, np.arange(len(corpus) + 1))
    parts = [candidates.offsets_C[a:b] for a, b in pairwise(edges.tolist())]
    labels = [np.isin(part, given) for part, given in zip(parts, corpus.boundaries, strict=True)]
    signals_CQ = None
    if corpus.signals is not None:
        signals_CQ = signal_features(corpus.signals, candidates.offsets_C, candidates.documents_C)
    return _Sample(
        candidates=candidates,
        buckets_CF=hashed_features(candidates),
        signals_CQ=signals_CQ,
        labels_C=np.concatenate(labels),
        folds_C=folds_D[candidates.documents_C],
        folds_D=folds_D,
        given_D=np.asarray([len(given) for given in corpus.boundaries], np.int64),
        strength=_STRENGTH if len(corpus) >= _FEW else _STRENGTH_OF_FEW,
    )


def _require_both_labels(sample: _Sample, count: int) -> None:
    """Raises where the rest of some two folds lacks boundaries or other candidates."""
    for pair in combinations(range(count), 2):
        labels = sample.labels_C[~np.isin(sample.folds_C, pair)]
        if not len(labels) or labels.all() or not labels.any():
            raise errors.StudyError(
                f"without two of {count} folds, {int(labels.sum())} of {len(labels)} candidates"
                " are boundaries; expected some that are and some that are not. Boundaries stand"
                " at the first character after white space; give more documents, or take"
                " --candidates all if segments begin with lower-case words."
            )


def _apply(sample: _Sample, stages: Sequence[FirstStage]) -> Floats:
    """Returns (C,) each candidate judged by the stage of its fold."""
    first_C = np.zeros(len(sample.labels_C))
    for fold, stage in enumerate(stages):
        rows = sample.folds_C == fold
        first_C[rows] = stage.probabilities(sample.buckets_CF[rows])
    return first_C


def _left_out_second(
    sample: _Sample,
    fold: int,
    pairs: dict[tuple[int, int], FirstStage],
    singles: Sequence[FirstStage],
) -> Floats:
    """Returns the trees' probabilities for a fold that neither they nor what they read ever saw."""
    stages = [
        singles[fold] if other == fold else pairs[min(other, fold), max(other, fold)]
        for other in range(len(singles))
    ]
    first_C = _apply(sample, stages)
    dense_CF = sample.dense(first_C)
    learn, judge = sample.folds_C != fold, sample.folds_C == fold
    trees = fit_second(dense_CF[learn], sample.labels_C[learn], first_C[learn])
    return second_probabilities(trees, dense_CF[judge], first_C[judge])


def _final_model(
    sample: _Sample,
    which: Candidates,
    first_C: Floats,
    second_C: Floats,
    singles: Sequence[FirstStage],
) -> BoundaryModel:
    """Fits both stages on everything, with what the left-out probabilities chose."""
    trees: Any = fit_second(sample.dense(first_C), sample.labels_C, first_C)
    everywhere = np.ones(len(first_C), np.bool_)
    blend, threshold = _choose(sample, first_C, second_C, everywhere, int(sample.given_D.sum()))
    shares_D = _familiarity(sample, singles)
    cut_C = mix(first_C, second_C, blend) > threshold
    return BoundaryModel(
        first=sample.fit_first_without(),
        trees=trees,
        blend=blend,
        threshold=threshold,
        candidates=which,
        signals=sample.signals_CQ is not None,
        familiar=float(np.quantile(shares_D, 1 - _KNOWN_SHARE)),
        usual=_usual(sample, shares_D, cut_C),
    )


def _choose(
    sample: _Sample, first_C: Floats, second_C: Floats, rows: Bools, given: int
) -> tuple[float, float]:
    """Picks the blend of highest likelihood, then the threshold of highest F1, on these rows."""
    labels = sample.labels_C[rows]
    first, second = first_C[rows], second_C[rows]
    losses = [_log_loss(mix(first, second, blend), labels) for blend in _BLENDS]
    blend = _BLENDS[int(np.argmin(losses))]
    return blend, best_threshold(mix(first, second, blend), labels, given)


def _log_loss(probabilities_C: Floats, labels_C: Bools) -> float:
    safe_C = np.clip(np.where(labels_C, probabilities_C, 1 - probabilities_C), 1e-7, 1)
    return float(-np.log(safe_C).mean())


def best_threshold(probabilities_C: Floats, labels_C: Bools, given: int) -> float:
    """Returns the threshold above which boundaries have the highest F1, half-way to the next value.

    Args:
        probabilities_C: of candidates.
        labels_C: True at boundaries.
        given: boundaries in all, those that are no candidates included.
    """
    order = np.argsort(-probabilities_C, kind="stable")
    ranked = probabilities_C[order]
    hits = np.cumsum(labels_C[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + given)
    ends = np.append(ranked[1:] < ranked[:-1], True)
    best = int(np.argmax(np.where(ends, f1, -1.0)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def _familiarity(sample: _Sample, singles: Sequence[FirstStage]) -> Floats:
    """Returns (D,) the familiarity of each document with the stage that did not see it."""
    shares_D = np.zeros(len(sample.folds_D))
    for fold, stage in enumerate(singles):
        rows = sample.folds_D == fold
        shares_D[rows] = familiarity(stage, sample.buckets_CF, sample.candidates, len(rows))[rows]
    return shares_D


def _usual(sample: _Sample, shares_D: Floats, cut_C: Bools) -> Usual:
    """Describes training's documents; on either side of the rates the same share counts as known.

    Args:
        sample: all documents.
        shares_D: their familiarity with stages that did not see them.
        cut_C: the boundaries that such stages find.
    """
    cuts_D = np.bincount(sample.candidates.documents_C[cut_C], minlength=len(shares_D))
    rates_D = sample.candidates.tokens.log_rates(cuts_D)
    places_K = np.linspace(0, 1, min(len(shares_D), _MOST_USUAL))
    known = Usual(np.quantile(shares_D, places_K), np.quantile(rates_D, places_K), np.inf)
    surprises_D = known.surprise(shares_D, rates_D)
    limit = float(np.quantile(surprises_D, 1 - 2 * (1 - _KNOWN_SHARE)))
    return replace(known, limit=limit)


def _report(
    sample: _Sample, model: BoundaryModel, first_C: Floats, second_C: Floats, count: int
) -> Fitted:
    """Predicts each fold with the blend and the threshold of the others."""
    chosen_C = np.zeros(len(first_C), np.bool_)
    thresholds: list[float] = []
    for fold in range(count):
        given = int(sample.given_D[sample.folds_D != fold].sum())
        blend, threshold = _choose(sample, first_C, second_C, sample.folds_C != fold, given)
        rows = sample.folds_C == fold
        chosen_C[rows] = mix(first_C[rows], second_C[rows], blend) > threshold
        thresholds.append(threshold)
    documents, size = sample.candidates.documents_C, len(sample.folds_D)
    hits_D = np.bincount(documents[chosen_C & sample.labels_C], minlength=size)
    predicted_D = np.bincount(documents[chosen_C], minlength=size)
    offsets = sample.candidates.offsets_C[chosen_C]
    predicted = np.split(offsets, np.cumsum(predicted_D)[:-1])
    return Fitted(
        model=model,
        counts_D3=np.stack([hits_D, predicted_D, sample.given_D], axis=1),
        predicted=tuple(predicted),
        thresholds=tuple(thresholds),
        folds_D=sample.folds_D,
        candidates=sample.candidates,
        first_C=first_C,
        second_C=second_C,
        reachable=float(sample.labels_C.sum() / max(sample.given_D.sum(), 1)),
    )
