"""Signals of the policy at a candidate: entropy and log-prob of the token that begins there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SIGNAL_FEATURES = 6


@dataclass(frozen=True, slots=True)
class TokenSignals:
    """One completion's sampled tokens (T of them), ordered by their first character."""

    starts_T: Ints
    entropies_T: Floats
    """Nats, of the distribution that the token was drawn from."""
    logprobs_T: Floats
    """Nats."""


def signal_features(signals: Sequence[TokenSignals], offsets_C: Ints, documents_C: Ints) -> Floats:
    """Returns (C,6) entropy, its change, its height above the mean; the same of log-probs.

    The token is the one that holds the candidate's first character. NaN in a completion without
    tokens, and for the change at its first token.
    """
    edges = np.searchsorted(documents_C, np.arange(len(signals) + 1))
    rows = [
        _of_one(signal, offsets_C[first:last])
        for signal, first, last in zip(signals, edges[:-1], edges[1:], strict=True)
    ]
    return np.concatenate([np.zeros((0, 6)), *rows])


def _of_one(signal: TokenSignals, offsets_C: Ints) -> Floats:
    if not len(signal.starts_T):
        return np.full((len(offsets_C), 6), np.nan)
    token_C = np.maximum(np.searchsorted(signal.starts_T, offsets_C, "right") - 1, 0)
    columns: list[Floats] = []
    for x_T in (signal.entropies_T, signal.logprobs_T):
        change_T = np.concatenate([np.full(1, np.nan), np.diff(x_T)])
        columns += [x_T[token_C], change_T[token_C], x_T[token_C] - x_T.mean()]
    return np.stack(columns, axis=1)
