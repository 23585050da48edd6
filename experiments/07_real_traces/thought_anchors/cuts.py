"""Where a text was cut, in sentences of an anchor trace; and what a signal is in each of them.

Letters: ``N`` sentences of a trace, ``T`` those whose change is known, ``C`` cuts, ``L`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics.moments import Fork
from thought_anchors.traces import AnchorTrace, Floats

Bools = npt.NDArray[np.bool_]


def marked_sentences(traces: Sequence[AnchorTrace], cuts: Sequence[ArrayLike]) -> dict[Fork, Bools]:
    """The sentences that are at a boundary, for boundaries at any characters.

    A cut between two sentences, at the end of the first, at the start of the second or in the
    white space between them, marks the first under fork "end", since it ended a segment, and the
    second under "start". A cut inside a sentence marks that sentence under both: the segment
    before the cut ends in it, and the one after it starts in it.

    Args:
        traces: see ``trace_truth``.
        cuts: for each trace the character offsets (C,) at which segments begin, in any order.

    Returns:
        By fork (B,T), T = the longest trace's sentences less its last one, of which no change is
        known; cuts behind it, and before the first sentence, mark nothing.
    """
    width = max((len(trace.starts) for trace in traces), default=1)
    ends_BN = np.zeros((len(traces), width), dtype=bool)
    starts_BN = ends_BN.copy()
    for row, (trace, offsets) in enumerate(zip(traces, cuts, strict=True)):
        ended, started = _at(trace, np.asarray(offsets, dtype=np.int64))
        ends_BN[row, ended] = True
        starts_BN[row, started] = True
        ends_BN[row, len(trace.starts) - 1 :] = False
        starts_BN[row, len(trace.starts) - 1 :] = False
    return {"end": ends_BN[:, :-1], "start": starts_BN[:, :-1]}


def _at(
    trace: AnchorTrace, offsets_C: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The sentence in which a segment ends, and that in which one starts, of each cut."""
    # The first sentence that goes on behind the cut.
    place_C = np.searchsorted(trace.ends, offsets_C, side="right")
    known = place_C < len(trace.ends)
    place_C, offsets_C = place_C[known], offsets_C[known]
    between_C = offsets_C <= trace.starts[place_C]
    within_text = (place_C > 0) | ~between_C
    place_C, between_C = place_C[within_text], between_C[within_text]
    return place_C - between_C, place_C


def sentence_signals(
    traces: Sequence[AnchorTrace],
    token_spans: Sequence[ArrayLike],
    signals: Sequence[ArrayLike],
) -> dict[str, Floats]:
    """What a signal of tokens is in each sentence: its highest there, and its mean.

    A token counts for the first sentence that goes on behind its first character: one that holds
    the end of a sentence and white space for that sentence, white space alone for the next.

    Args:
        traces: see ``trace_truth``.
        token_spans: for each trace (L,2) the first character of each token and one after its last.
        signals: for each trace (L,), such as entropies.

    Returns:
        ``highest`` and ``mean`` (B,T), T as in ``marked_sentences``; −∞ in a sentence without a
        token, and behind a trace's last sentence.
    """
    width = max((len(trace.starts) for trace in traces), default=1)
    highest_BN = np.full((len(traces), width), -np.inf)
    mean_BN = highest_BN.copy()
    for row, (trace, spans, signal) in enumerate(zip(traces, token_spans, signals, strict=True)):
        count = len(trace.ends)
        place_L = np.searchsorted(trace.ends, np.asarray(spans)[:, 0], side="right")
        inside_L = place_L < count
        place_L, signal_L = place_L[inside_L], np.asarray(signal, dtype=np.float64)[inside_L]
        np.maximum.at(highest_BN[row], place_L, signal_L)
        tokens_N = np.bincount(place_L, minlength=count)
        sums_N = np.bincount(place_L, signal_L, minlength=count)
        some_N = tokens_N > 0
        mean_BN[row, :count][some_N] = sums_N[some_N] / tokens_N[some_N]
    return {"highest": highest_BN[:, :-1], "mean": mean_BN[:, :-1]}


def sentence_lengths(traces: Sequence[AnchorTrace]) -> Floats:
    """(B,T) characters of each sentence, at least 1; 1 behind a trace's last one too."""
    width = max((len(trace.starts) for trace in traces), default=1)
    lengths_BN = np.ones((len(traces), width))
    for row, trace in enumerate(traces):
        lengths_BN[row, : len(trace.starts)] = np.maximum(trace.ends - trace.starts, 1)
    return lengths_BN[:, :-1]
