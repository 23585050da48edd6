"""The audit's metrics of boundaries on anchor traces, as rows of a table.

Letters as in ``segcredit.credit_audit.metrics.arrays``, with sentences in the place of tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from segcredit.credit_audit import metrics
from segcredit.credit_audit.metrics.arrays import Bools, Floats, Ints
from segcredit.credit_audit.metrics.estimates import quotient
from segcredit.credit_audit.metrics.moments import Fork, candidates, ids_from, of
from thought_anchors import budgets as budgets
from thought_anchors.cuts import sentence_lengths
from thought_anchors.trace_truth import anchor_truth, split_truth
from thought_anchors.traces import AnchorTrace

CHANCE, BY_LENGTH, ORACLE = "chance", "chance by length", "oracle"
FORKS: tuple[Fork, ...] = ("end", "start")
_SPLITS = 20
"""Dealings of the rollouts into independent parts, over which metrics that choose are averaged."""
_PARTS = 3
"""One chooses, and two judge a square."""

Row = dict[str, Any]
Estimates = dict[str, metrics.Estimate]


@dataclass(frozen=True, eq=False)
class AnchorMetrics:
    """Metrics of boundaries on some traces.

    Rows have the columns ``segmenter``, ``fork``, ``metric``, ``other`` (what it is compared with),
    ``value``, ``low`` and ``high`` (95 %, over problems), ``low_traces`` and ``high_traces`` (as if
    each trace had a problem of its own), ``problems`` and ``traces`` (how many were drawn).
    """

    traces: Sequence[AnchorTrace]
    """Each of three sentences or more, so that there is a choice."""

    @cached_property
    def truth(self) -> metrics.Truth:
        """Freed of noise. Every trace is a unit; ``_row`` makes problems of their sums."""
        return anchor_truth(self.traces, unit="trace")

    @cached_property
    def splits(self) -> list[metrics.Truth]:
        """Truths with independent parts, noisier."""
        return [split_truth(self.traces, _PARTS, seed=n, unit="trace") for n in range(_SPLITS)]

    @cached_property
    def lengths(self) -> Floats:
        """(B,T) characters of each sentence."""
        return sentence_lengths(self.traces)

    @property
    def places(self) -> Floats:
        """(B,T) which sentence of its trace it is, in [0,1]."""
        counts_B1 = self.truth.lengths[:, None]
        return np.minimum(np.arange(self.truth.mask.shape[1]) / counts_B1, 1.0)

    @cached_property
    def problems(self) -> Ints:
        """(B,) the number of each trace's problem."""
        return anchor_truth(self.traces).prompts

    def at_own_count(self, name: str, marks: Mapping[Fork, Bools]) -> Iterator[Row]:
        """What a definition catches with all of its boundaries, beside chance and the oracle.

        ``boundary_ratio`` is that to chance; the same ``over chance by length``, which draws as
        many sentences, but long ones more often; and ``of chance by length`` itself to chance.
        ``drawn_shares`` is what random boundaries catch on these traces: the median, and between
        what ends 95 % lie; ``drawn_shares_as_high`` how many catch what the definition does.
        """
        for fork, marks_BT in marks.items():
            ids_BT = ids_from(self.truth, marks_BT, fork)
            estimates = self._shares(ids_BT, fork) | self._oracle(ids_BT, fork)
            yield from (self._row(name, fork, label, one) for label, one in estimates.items())
            by_length = self._by_length(marks_BT, fork)
            for other, found in by_length.items():
                yield self._row(name, fork, "boundary_ratio", found, other)
            yield from self._drawn(name, marks_BT, fork)

    def at_budget(
        self,
        fraction: float,
        marks: Mapping[str, Mapping[Fork, Bools]],
        signals: Mapping[str, Floats],
    ) -> Iterator[Row]:
        """The share of the change on equally many boundaries, and the difference of each pair.

        Args:
            fraction: of a trace's places, rounded up.
            marks: of definitions, by name; thinned or filled up at random, in expectation.
            signals: by name (B,T); the places at which they are highest.
        """
        for fork in FORKS:
            shares = self._budget_shares(fraction, marks, signals, fork)
            label = f"share_at_{fraction:g}"
            for name, found in shares.items():
                yield self._row(name, fork, label, found)
            for one, other in itertools.combinations(shares, 2):
                found = metrics.difference(shares[one], shares[other])
                yield self._row(one, fork, f"{label}_less", found, other)

    def lifts(self, signals: Mapping[str, Floats], quantiles: Sequence[float]) -> Iterator[Row]:
        """Mean squared change of the sentences above a signal's quantile, over that of all."""
        for name, signal_BT in signals.items():
            for q, found in metrics.lift(self.truth, signal_BT, quantiles).items():
                yield self._row(name, "", f"lift_{q:g}", found)

    def ratio(self, name: str, marks_BT: Bools, fork: Fork) -> Row:
        """``boundary_ratio`` alone: the change on the boundaries over that of as many at random."""
        found = metrics.boundary_ratio(self.truth, ids_from(self.truth, marks_BT, fork), fork=fork)
        return self._row(name, fork, "boundary_ratio", found)

    def _shares(self, ids_BT: Ints, fork: Fork) -> Estimates:
        truth = self.truth
        within = metrics.share_within(truth, ids_BT)
        random_within = metrics.random_share_within(truth, ids_BT)
        cuts_B, places_B = ids_BT.max(1, initial=0), candidates(truth, fork).sum(1)
        return {
            "boundaries": of(truth, quotient, cuts_B, places_B),
            "share_on_boundaries": metrics.share_on_boundaries(truth, ids_BT, fork=fork),
            "random_share": metrics.random_share_on_boundaries(truth, ids_BT, fork=fork),
            "boundary_ratio": metrics.boundary_ratio(truth, ids_BT, fork=fork),
            "share_within": within,
            "random_share_within": random_within,
            "share_within_less_random": metrics.difference(within, random_within),
        }

    def _by_length(self, marks_BT: Bools, fork: Fork) -> Estimates:
        counts_B = (marks_BT & candidates(self.truth, fork)).sum(1)
        uniform_BT = budgets.uniform_places(self.truth, counts_B, fork=fork)
        sized_BT = budgets.sized_places(self.truth, counts_B, self.lengths, fork=fork)
        return {
            "over chance by length": budgets.weighted_ratio(
                self.truth, marks_BT, sized_BT, fork=fork
            ),
            "of chance by length": budgets.weighted_ratio(
                self.truth, sized_BT, uniform_BT, fork=fork
            ),
        }

    def _oracle(self, ids_BT: Ints, fork: Fork) -> Estimates:
        shares = [metrics.oracle_share(split, ids_BT, fork=fork) for split in self.splits]
        jumps = [metrics.jump_agreement(split, ids_BT, fork=fork) for split in self.splits]
        agreements = {
            f"jump_{name}": _averaged([found[name] for found in jumps]) for name in jumps[0]
        }
        return {"oracle_share": _averaged(shares)} | agreements

    def _drawn(self, name: str, marks_BT: Bools, fork: Fork) -> Iterator[Row]:
        """Where random boundaries lie on these very traces: a range, and how many reach it."""
        counts_B = (marks_BT & candidates(self.truth, fork)).sum(1)
        shares_R = budgets.drawn_shares(self.truth, counts_B, fork=fork)
        found = budgets.weighted_share(self.truth, marks_BT, fork=fork).value
        low, median, high = np.quantile(shares_R, [0.025, 0.5, 0.975])
        same = {"segmenter": name, "fork": fork, "other": "", "traces": len(self.traces)}
        same["problems"] = len(np.unique(self.problems))
        yield same | {"metric": "drawn_shares", "value": median, "low": low, "high": high}
        # Equal but for the order of a sum is equal.
        reached = float((shares_R >= found - 1e-9).mean())
        yield same | {"metric": "drawn_shares_as_high", "value": reached}

    def _budget_shares(
        self,
        fraction: float,
        marks: Mapping[str, Mapping[Fork, Bools]],
        signals: Mapping[str, Floats],
        fork: Fork,
    ) -> Estimates:
        truth = self.truth
        counts_B = budgets.budget(truth, fraction, fork=fork)
        weights: dict[str, Floats | Bools] = {}
        for name, by_fork in marks.items():
            weights[name] = budgets.at_budget(truth, by_fork[fork], counts_B, fork=fork)
        for name, signal_BT in signals.items():
            weights[name] = budgets.strongest(truth, signal_BT, counts_B, fork=fork)
        weights[BY_LENGTH] = budgets.sized_places(truth, counts_B, self.lengths, fork=fork)
        weights[CHANCE] = budgets.uniform_places(truth, counts_B, fork=fork)
        shares = {
            name: budgets.weighted_share(truth, chosen_BT, fork=fork)
            for name, chosen_BT in weights.items()
        }
        some_BT = budgets.strongest(truth, self.lengths, counts_B, fork=fork)
        as_many_BT = ids_from(truth, some_BT, fork)
        oracles = [metrics.oracle_share(split, as_many_BT, fork=fork) for split in self.splits]
        return shares | {ORACLE: _averaged(oracles)}

    def _row(
        self, name: str, fork: str, label: str, found: metrics.Estimate, other: str = ""
    ) -> Row:
        problems_P = self.problems[found.keys]
        by_problem = metrics.estimate(problems_P, found.moments, found.combine)
        return {
            "segmenter": name,
            "fork": fork,
            "metric": label,
            "other": other,
            "value": found.value,
            "low": by_problem.low,
            "high": by_problem.high,
            "low_traces": found.low,
            "high_traces": found.high,
            "problems": by_problem.prompts,
            "traces": found.prompts,
        }


def _averaged(found: Sequence[metrics.Estimate]) -> metrics.Estimate:
    """A metric of the mean sums of some, all of the same kind and units."""
    moments = np.mean([one.moments for one in found], axis=0)
    return metrics.estimate(found[0].keys, moments, found[0].combine)
