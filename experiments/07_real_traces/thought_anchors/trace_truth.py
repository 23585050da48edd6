"""Anchor traces as the truth of an audit: sentences in the place of tokens.

The accuracy is known before each sentence. So a trace of ``N`` sentences has N states and N - 1
changes, of which the last sentence has none: nobody measured the state after it.

Letters: ``N`` sentences of a trace; as in ``segcredit.credit_audit.metrics.arrays``, with ``T`` =
N - 1 sentences in the place of tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from scipy.linalg import helmert

from segcredit.credit_audit.metrics import Resampling, Truth
from segcredit.errors import StudyError
from thought_anchors.traces import AnchorTrace, Floats

Unit = Literal["problem", "trace"]
"""What intervals draw: traces of one problem share what is hard about it."""


def anchor_truth(
    traces: Sequence[AnchorTrace],
    *,
    unit: Unit = "problem",
    resampling: Resampling | None = None,
) -> Truth:
    """A truth whose squares and products are freed of the binomial noise, exactly.

    A share p of n rollouts is one number, and an audit takes squares as products of splits. The
    splits here are p + e_h with Σ_h e_h = 0, made such that the mean product over pairs of
    different splits is, for every weighted sum L of a trace's states,

        L(p)² − Σ_t L_t² p_t (1 − p_t) / (n_t − 1),

    whose mean is the square of the true L: neighbouring changes, which share a state, and changes
    over whole segments are right by themselves. Split by split these are no measurements: metrics
    that choose with one split, such as the oracle's, need ``split_truth``.

    Args:
        traces: each of at least two sentences.
        unit: of the intervals.
        resampling: of the intervals.

    Returns:
        As many splits as the longest trace has sentences, and one. Rewards are 1 where a trace
        itself ended right, and 0 else.

    Raises:
        StudyError: a trace has fewer than two sentences, so that no change is known.
    """
    splits = max((len(trace.accuracy) for trace in traces), default=1) + 1
    contrasts_HN = helmert(splits).T * np.sqrt(splits * (splits - 1))
    rows = [
        trace.accuracy + contrasts_HN[:, : len(trace.accuracy)] * np.sqrt(trace.noise)
        for trace in traces
    ]
    return _truth(traces, rows, unit, resampling)


def split_truth(
    traces: Sequence[AnchorTrace],
    splits: int,
    *,
    seed: int = 0,
    unit: Unit = "problem",
    resampling: Resampling | None = None,
) -> Truth:
    """A truth whose splits are independent: the rollouts of each state, dealt at random.

    Of k right ones among n, a part of m rollouts has a hypergeometric number. The parts are then
    as independent as if they had been sampled one by one, and each is noisier than all of them.

    Args:
        traces: each of at least two sentences.
        splits: at least two, and no more than any state has rollouts.
        seed: of the dealing.
        unit: of the intervals.
        resampling: of the intervals.

    Raises:
        StudyError: a trace has fewer than two sentences, or a state fewer rollouts than splits.
    """
    generator = np.random.default_rng(seed)
    rows = [_dealt(trace, splits, generator) for trace in traces]
    return _truth(traces, rows, unit, resampling)


def _dealt(trace: AnchorTrace, splits: int, generator: np.random.Generator) -> Floats:
    """(H,N) the share of right rollouts in each part."""
    fewest = int(trace.rollouts.min())
    if not 2 <= splits <= fewest:
        raise StudyError(
            f"trace {trace.name!r} has a state with {fewest} rollouts that are to be dealt into"
            f" {splits} splits; expected at least two splits, and a rollout for each."
        )
    left_N = trace.rollouts.copy()
    right_N = np.rint(trace.accuracy * left_N).astype(np.int64)
    parts: list[Floats] = []
    for remaining in range(splits, 0, -1):
        size_N = left_N // remaining
        found_N = generator.hypergeometric(right_N, left_N - right_N, size_N)
        parts.append(found_N / size_N)
        left_N, right_N = left_N - size_N, right_N - found_N
    return np.stack(parts)


def _truth(
    traces: Sequence[AnchorTrace],
    rows: Sequence[Floats],
    unit: Unit,
    resampling: Resampling | None,
) -> Truth:
    """Rows (H,N) side by side, NaN behind them."""
    for trace in traces:
        if len(trace.accuracy) < 2:
            raise StudyError(
                f"trace {trace.name!r} has one sentence; expected at least two, since a change"
                " lies between the accuracies before two sentences. Leave the trace out."
            )
    lengths_B = np.array([len(trace.accuracy) for trace in traces])
    splits = rows[0].shape[0] if rows else 2
    values_BHE = np.full((len(rows), splits, lengths_B.max(initial=1)), np.nan)
    for values_HE, row_HN in zip(values_BHE, rows, strict=True):
        values_HE[:, : row_HN.shape[1]] = row_HN
    return Truth(
        values=values_BHE,
        mask=np.arange(values_BHE.shape[2] - 1) < lengths_B[:, None] - 1,
        prompts=_numbered([t.problem if unit == "problem" else n for n, t in enumerate(traces)]),
        rewards=np.array([trace.correct for trace in traces], dtype=np.float64),
        resampling=Resampling() if resampling is None else resampling,
    )


def _numbered(units: Sequence[Hashable]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(B,) equal numbers for equal units, in the order in which they come."""
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return np.array([numbers[unit] for unit in units], dtype=np.int64)
