"""Truths that others measured: the accuracy of long reasoning traces before each sentence.

Thought anchors are traces of real reasoning models, cut into sentences; before each sentence about
a hundred rollouts were started, and the share of them that ended right is V there. What such a
share is off by is binomial, and known: it can be removed from squares and products.

Letters: ``N`` sentences of a trace.

Source: Bogdan et al. 2025, arXiv 2506.19143 (rollouts started before each sentence); the variance
of a share p of n draws, estimated without bias, is p(1 - p) / (n - 1).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from segcredit.errors import StudyError

SUSPECT = ("ta-deepseek-r1-distill-llama-8b-correct-problem_6596",)
"""Left out by default: its accuracy ends at 0, and never passes .23, though its answer is right."""
_MOST = 100
"""Rollouts that were started before a sentence, at most: some could not be judged."""
_DIGITS = 5e-7
"""Accuracies are rounded to six digits."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnchorTrace:
    """One trace with V before each of its sentences."""

    name: str
    model: str
    problem: str
    correct: bool
    """Whether the trace itself ended right."""
    text: str
    starts: Integers
    """(N,) character offsets at which the sentences begin, ascending."""
    ends: Integers
    """(N,) those at which they end; white space may lie between them."""
    accuracy: Floats
    """(N,) share in [0,1] of the rollouts started just before a sentence that ended right."""
    rollouts: Integers
    """(N,) how many these were: as given, or the largest number up to 100 of which the share is a
    whole number, which for a round share may be a few more than there were."""

    @property
    def noise(self) -> Floats:
        """(N,) variance of each accuracy: p(1 - p) / (n - 1)."""
        return self.accuracy * (1 - self.accuracy) / (self.rollouts - 1)

    @property
    def jumps(self) -> Floats:
        """(N-1,) accuracy before the next sentence less that before this one: its true credit."""
        return np.diff(self.accuracy)

    @property
    def jump_noise(self) -> Floats:
        """(N-1,) variance of each jump; its square is too large by this on average."""
        return self.noise[:-1] + self.noise[1:]

    @property
    def neighbour_noise(self) -> Floats:
        """(N-2,) covariance of each jump with the next, which share a term: minus its noise."""
        return -self.noise[1:-1]


def load_anchors(path: str | Path, *, leave_out: Collection[str] = SUSPECT) -> list[AnchorTrace]:
    """Traces of a JSON Lines file, a trace a line.

    Args:
        path: lines with ``id``, ``model``, ``problem``, ``base_solution_correct``, ``text`` and
            ``chunks``: the sentences, each with ``start``, ``end``, ``accuracy`` and, where it is
            known, ``rollouts``.
        leave_out: ids of traces that are not to be used.

    Raises:
        StudyError: the file cannot be read, a line is not of that form, or none is left.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{path} cannot be read ({error}); expected a file of traces with the accuracies"
            " before their sentences, one a line in JSON. Give its path."
        ) from error
    found = [_trace(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    kept = [trace for trace in found if trace.name not in leave_out]
    if not kept:
        raise StudyError(
            f"{path} has {len(found)} traces, of which none is left; expected at least one beside"
            f" those that are left out ({', '.join(leave_out) or 'none'})."
        )
    return kept


def _trace(line: str, place: str) -> AnchorTrace:
    try:
        record = cast("dict[str, Any]", json.loads(line))
        sentences = cast("list[dict[str, Any]]", record["chunks"])
        accuracy = [float(sentence["accuracy"]) for sentence in sentences]
        trace = AnchorTrace(
            name=record["id"],
            model=record["model"],
            problem=record["problem"],
            correct=bool(record["base_solution_correct"]),
            text=record["text"],
            starts=np.array([sentence["start"] for sentence in sentences], dtype=np.int64),
            ends=np.array([sentence["end"] for sentence in sentences], dtype=np.int64),
            accuracy=np.array(accuracy, dtype=np.float64),
            rollouts=np.array(
                [
                    int(sentence.get("rollouts") or _rollouts(share))
                    for sentence, share in zip(sentences, accuracy, strict=True)
                ],
                dtype=np.int64,
            ),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{place} is no trace ({type(error).__name__}: {error}); expected the keys id, model,"
            " problem, base_solution_correct, text and chunks, and start, end and accuracy in"
            " each of the chunks. Usually a line is cut, or the file is another one."
        ) from error
    _require_fit(trace, place)
    return trace


def _rollouts(share: float) -> int:
    """The largest number up to 100 of which a share, rounded to six digits, is a whole number."""
    numbers = np.arange(2, _MOST + 1)
    off = np.abs(share * numbers - np.rint(share * numbers))
    fitting = numbers[off <= numbers * _DIGITS * 1.01]
    return int(fitting[-1]) if len(fitting) else _MOST


def _require_fit(trace: AnchorTrace, place: str) -> None:
    edges = np.stack([trace.starts, trace.ends], 1).ravel()
    faults = {
        "it has no sentence": not len(trace.starts),
        "its sentences are not in order within the text": len(edges) > 0
        and bool((np.diff(edges) < 0).any() or edges[0] < 0 or edges[-1] > len(trace.text)),
        "an accuracy is not between 0 and 1": not bool(
            ((trace.accuracy >= 0) & (trace.accuracy <= 1)).all()
        ),
        "an accuracy is that of fewer than 2 rollouts": bool((trace.rollouts < 2).any()),
    }
    for fault, found in faults.items():
        if found:
            raise StudyError(
                f"{place}, trace {trace.name!r}: {fault}; expected ascending sentences with"
                " accuracies in [0,1], each of at least 2 rollouts, since one says nothing of its"
                " noise. Leave the trace out, or mend the file."
            )
