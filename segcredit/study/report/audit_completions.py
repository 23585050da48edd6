"""A few completions of an audit, token by token: values, segments and credit."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segcredit.credit_audit.metrics.moments import square
from segcredit.errors import StudyError
from segcredit.study.plots import completion_credit
from segcredit.study.report.drawings import drawn
from segcredit.study.report.view import Block, Note, Pictures, image_source

if TYPE_CHECKING:
    from segcredit.credit_audit import Audit
    from segcredit.protocols import Prompt

MOST_PANELS, MOST_LINES = 6, 4
"""Segmenters whose credit is drawn, and estimators of each."""
MOST_TOKENS = 60
"""Most tokens of a completion that can be named along the axis of a page."""
_DWARFS = 5.0
"""Times the largest true advantage: credit above that, such as one scaled by its group's spread, is
drawn over its root mean square."""


def completions_drawn(path: Path, name: str, scheme: str) -> Iterator[Block]:
    """Yields one completion that did best and one that did worst, where the value moved most.

    Args:
        path: the audit's directory.
        name: what the ids of the figures begin with.
        scheme: of the credit that is drawn.
    """
    # Loads torch and transformers, which a report on training runs does without.
    from segcredit.credit_audit import load_audit
    from segcredit.credit_audit.table import JUDGES

    try:
        audit = load_audit(path)
    except StudyError as error:
        yield Note(f"No completion is drawn: {error}")
        return
    values_BHE = audit.truth.values[:, list(JUDGES)].numpy()
    rewards_B = audit.truth.rollouts.rewards.double().numpy()
    yield Note(
        "Of the completions with the highest reward, and of those with the lowest, the one whose"
        " true value moves most (in squares, product of the truth's two parts that no plug-in has"
        f" seen). Credit is that of {scheme}, the scheme that correlates best with the truth on"
        f" average, of at most {MOST_LINES} estimators and {MOST_PANELS} segmenters in the order of"
        " the config."
    )
    for row in moving_rows(values_BHE, rewards_B):
        asked = audit.truth.prompts[int(audit.truth.prompt_numbers[row])]
        prompt = asked.key
        length = int(audit.truth.rollouts.action_mask[row].sum())
        part = moving_part(values_BHE[row, :, : length + 1])
        shown = _arrays(audit, row, part, list(JUDGES), scheme)
        title = f"{prompt}: reward {rewards_B[row]:g}"
        if asked.images:
            yield pictures(asked)
        yield drawn(
            f"{name}-{row}",
            lambda width, shown=shown, title=title: completion_credit(
                **shown, title=title, width=width
            ),
            f"Completion {row} of the truth, to the prompt {prompt}; its reward is"
            f" {rewards_B[row]:g}. {_extent(part, length)}",
            outlines=False,
        )


def pictures(prompt: Prompt) -> Pictures:
    """Returns the images of a prompt, and its text."""
    return Pictures(
        list(filter(None, map(image_source, prompt.images))),
        f"What the prompt {prompt.key} shows; its text is: {prompt.text}",
    )


def moving_rows(values_BHE: NDArray[np.float64], rewards_B: NDArray[np.float64]) -> list[int]:
    """Picks among the best and the worst completions those whose true value moves most.

    Args:
        values_BHE: true values in independent splits, NaN beyond a completion's end.
        rewards_B: of the completions.

    Returns:
        One row with the highest and one with the lowest reward, one where all earned the same; of
        equals the first.
    """
    moved_B = square(np.nan_to_num(np.diff(values_BHE, axis=2))).sum(1)
    ends = dict.fromkeys([float(rewards_B.max()), float(rewards_B.min())])
    return [int(np.where(rewards_B == end, moved_B, -np.inf).argmax()) for end in ends]


def moving_part(values_HE: NDArray[np.float64], most: int = MOST_TOKENS) -> slice:
    """Returns the run of at most so many tokens in which the true value of a completion moves most.

    Args:
        values_HE: true values in independent splits, without padding.
        most: tokens.

    Returns:
        Of tokens; the whole completion where it is short, of equals the first.
    """
    moved_T = square(np.diff(values_HE)[None])[0]
    sums_N = np.convolve(moved_T, np.ones(min(most, len(moved_T))), mode="valid")
    first = int(sums_N.round(12).argmax())
    return slice(first, min(first + most, len(moved_T)))


def _extent(part: slice, length: int) -> str:
    if part.stop - part.start == length:
        return f"All of its {length} tokens are drawn."
    return (
        f"Tokens {part.start + 1} to {part.stop} of {length} are drawn, where its value moves most."
    )


def _arrays(
    audit: Audit, row: int, part: slice, splits: Sequence[int], scheme: str
) -> dict[str, Any]:
    """Returns the arguments of ``completion_credit`` for some tokens of one completion."""
    truth, rollouts = audit.truth, audit.truth.rollouts
    text = rollouts.texts[row]
    spans = rollouts.token_spans[row, part].tolist()
    states = slice(part.start, part.stop + 1)
    segments: dict[str, Any] = {}
    credit: dict[str, dict[str, Any]] = {}
    for found in audit.credits:
        segments.setdefault(found.segmenter, found.segment_ids[row, part])
        lines = credit.setdefault(found.segmenter, {})
        if len(lines) < MOST_LINES:
            lines[found.estimator] = found.advantages[scheme][row, part]
    values_HE = truth.values[row, splits, states].numpy()
    credit = dict(list(credit.items())[:MOST_PANELS])
    return {
        "tokens": [text[first:beyond] for first, beyond in spans],
        "values_HE": values_HE,
        "errors_HE": truth.errors[row, splits, states].numpy(),
        "segments": segments,
        "credit": credit,
        "normalised": _dwarfs(credit, values_HE),
    }


def _dwarfs(credit: dict[str, dict[str, Any]], values_HE: NDArray[np.float64]) -> bool:
    """Tells whether the truth could not be seen beside the credit on one scale."""
    given = [np.abs(x_T).max() for by_name in credit.values() for x_T in by_name.values()]
    return bool(max(given, default=0.0) > _DWARFS * np.abs(np.diff(values_HE.mean(0))).max())
