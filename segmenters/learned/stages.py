"""The classifier: hashed windows into a logistic regression, its probabilities into trees.

    p₁(c) = σ(b + Σ_f w[h_f(c)])
    p₂(c) = trees(p₁ of c and of its neighbours, lengths, positions, signals of the policy)
    p(c)  = (1 - blend) p₁(c) + blend p₂(c)

The trees are asked only where p₁ is not negligible. Letters as in ``features``.
"""

# scikit-learn ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportIndexIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .features import (
    HASH_BITS,
    Buckets,
    Candidates,
    CandidateTable,
    Floats,
    dense_features,
    find_candidates,
    hashed_features,
)
from .signals import TokenSignals, signal_features
from .tokens import Bools, read_tokens

_NEGLIGIBLE = 0.003
"""A first probability below which the trees are not asked."""
_GRAIN = 2.0**20
"""First probabilities are multiples of 1/2^20: their sums are then exact, and do not depend on
what else is in the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class FirstStage:
    """A logistic regression over hashed features."""

    weights: Floats
    """(2^20,), 0 where training met no feature."""
    intercept: float

    def probabilities(self, buckets_CF: Buckets) -> Floats:
        """Returns (C,) probability of a boundary, in grains."""
        logits_C = self.weights[buckets_CF].sum(axis=1) + self.intercept
        return np.round(_GRAIN / (1 + np.exp(-np.clip(logits_C, -40, 40)))) / _GRAIN


@dataclass(frozen=True, slots=True, eq=False)
class Usual:
    """Familiarity and rates of training's own documents, to models that did not see them.

    A document is the more surprising, the fewer of training's are as unfamiliar as it is, and the
    fewer have a rate as low, or as high. Either alone says little where the subject is the same.
    """

    shares_K: Floats
    """Shares of features that were met in training, ascending."""
    rates_K: Floats
    """Logarithms of the rates, ascending."""
    limit: float
    """A document that is more surprising is of another kind."""

    def surprise(self, shares_D: Floats, rates_D: Floats) -> Floats:
        """Computes -ln P(share) - ln P(rate), as if they were independent.

        Beyond the rates of training, where nothing can be counted, P falls with the rate.
        """
        low_D, high_D = _tail(self.rates_K, rates_D), _tail(-self.rates_K[::-1], -rates_D)
        beyond_D = np.abs(rates_D - np.clip(rates_D, self.rates_K[0], self.rates_K[-1]))
        rate_D = np.log(np.minimum(2 * np.minimum(low_D, high_D), 1)) - beyond_D
        return -np.log(_tail(self.shares_K, shares_D)) - rate_D


def _tail(known_K: Floats, values_D: Floats) -> Floats:
    """Returns the share of known values, given in ascending order, at or below each value."""
    return (np.searchsorted(known_K, values_D, side="right") + 0.5) / (len(known_K) + 1)


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryModel:
    """A fitted classifier and how to use it."""

    first: FirstStage
    trees: Any
    """A fitted HistGradientBoostingClassifier."""
    blend: float
    """Weight of the trees in the probability, in [0,1]."""
    threshold: float
    """The probability above which there is a boundary."""
    candidates: Candidates
    signals: bool
    """True where the trees read the policy's entropies and log-probs."""
    familiar: float
    """A document of which a smaller share of features was met in training is unknown."""
    usual: Usual | None
    """None for files of before 2026-11-29."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """The probabilities that a model gives a batch of D texts."""

    candidates: CandidateTable
    probabilities_C: Floats
    shares_D: Floats
    """Share of each document's features that training met."""
    known_D: Bools
    """True where that is as large as in training."""


def judge(
    model: BoundaryModel, texts: Sequence[str], signals: Sequence[TokenSignals] | None = None
) -> Judgement:
    """Computes probabilities of all candidates of a batch; no text influences another one's.

    Args:
        model: with or without signals.
        texts: read all at once: many short calls cost several times as much.
        signals: one entry a text, where the model uses them.
    """
    candidates = find_candidates(read_tokens(texts), model.candidates)
    buckets_CF = hashed_features(candidates)
    first_C = model.first.probabilities(buckets_CF)
    signals_CQ = _signals(candidates, signals) if model.signals else None
    dense_CF = dense_features(candidates, first_C, signals_CQ)
    second_C = second_probabilities(model.trees, dense_CF, first_C)
    shares_D = familiarity(model.first, buckets_CF, candidates, len(texts))
    return Judgement(
        candidates=candidates,
        probabilities_C=mix(first_C, second_C, model.blend),
        shares_D=shares_D,
        known_D=shares_D >= model.familiar,
    )


def _signals(candidates: CandidateTable, signals: Sequence[TokenSignals] | None) -> Floats | None:
    if signals is None:
        return None
    return signal_features(signals, candidates.offsets_C, candidates.documents_C)


def mix(first_C: Floats, second_C: Floats, blend: float) -> Floats:
    """Returns the mean of both stages' probabilities; the first's where it is negligible."""
    return (1 - blend) * first_C + blend * second_C


def second_probabilities(trees: Any, dense_CF: Floats, first_C: Floats) -> Floats:
    """Returns (C,) the trees' probabilities, and the first stage's where that is negligible."""
    second_C = first_C.copy()
    asked = np.flatnonzero(first_C > _NEGLIGIBLE)
    if len(asked):
        second_C[asked] = trees.predict_proba(dense_CF[asked])[:, 1]
    return second_C


def familiarity(
    first: FirstStage, buckets_CF: Buckets, candidates: CandidateTable, count: int
) -> Floats:
    """Returns (D,) the share of a document's features met in training; 1 without a candidate.

    Some of the features that training never met share a bucket with one that it did, so that
    even foreign text has a share above 0.
    """
    met_C = (first.weights[buckets_CF] != 0).sum(axis=1).astype(np.float64)
    seen_D = np.bincount(candidates.documents_C, met_C, count)
    all_D = np.bincount(candidates.documents_C, minlength=count) * buckets_CF.shape[1]
    return np.where(all_D > 0, seen_D / np.maximum(all_D, 1), 1.0)


def fit_first(buckets_CF: Buckets, labels_C: Bools, strength: float) -> FirstStage:
    """Fits a logistic regression in its dual form.

    Args:
        buckets_CF: of the candidates to learn from.
        labels_C: True at boundaries; both values occur.
        strength: scikit-learn's C: the smaller, the closer the weights are to 0.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows, width = buckets_CF.shape
    # A copy of the indices, since scikit-learn sorts those of a sparse matrix in place.
    matrix = csr_matrix(
        (np.ones(rows * width), buckets_CF.ravel().copy(), np.arange(rows + 1) * width),
        shape=(rows, 2**HASH_BITS),
    )
    regression = LogisticRegression(
        C=strength, solver="liblinear", dual=True, tol=0.1, random_state=0
    )
    regression.fit(matrix, labels_C)
    weights = regression.coef_[0].astype(np.float32).astype(np.float64)
    return FirstStage(weights, float(regression.intercept_[0]))


def fit_second(dense_CF: Floats, labels_C: Bools, first_C: Floats) -> Any:
    """Fits gradient-boosted trees on the candidates that they will be asked about.

    Args:
        dense_CF: made from ``first_C``.
        labels_C: True at boundaries.
        first_C: of first stages that did not see the candidate's problem.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    asked = np.flatnonzero(first_C > _NEGLIGIBLE)
    trees = HistGradientBoostingClassifier(
        max_iter=250,
        learning_rate=0.05,
        max_leaf_nodes=15,
        min_samples_leaf=25,
        max_features=0.5,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    return trees.fit(dense_CF[asked], labels_C[asked])
