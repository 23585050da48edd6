"""True values of some completions, and credit that was given them: what an audit compares.

Of several turns the sampled tokens alone: observations move no value. Letters: ``B`` completions,
``T`` tokens, ``E`` = T + 1 states (the one before each token, and the end), ``H`` independent
splits of the truth, ``P`` prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segcredit.credit_audit.metrics.estimates import Resampling
from segcredit.errors import StudyError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Anchor = Literal["start", "last_token"]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of the tokens by the policy that chose them: what their credit can move.

    Args:
        logprobs: (B,T) in nats.
        entropies: (B,T) in nats, of the distributions that the tokens were drawn from.
        logit_gradients: (B,T) w = |e_a − p|² = 1 − 2 p_a + Σ_v p_v², the squared norm of the
            log-prob's gradient by the logits (``SupportsLogitGradients``).
    """

    logprobs: Floats
    entropies: Floats
    logit_gradients: Floats

    def __post_init__(self) -> None:
        for name in ("logprobs", "entropies", "logit_gradients"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))

    @property
    def expected_gradients(self) -> Floats:
        """(B,T) Σ_a p_a w_a = 1 − Σ_v p_v², the mean of w over the tokens that might have come."""
        return np.maximum(2 - 2 * np.exp(self.logprobs) - self.logit_gradients, 0.0)

    @property
    def surprises(self) -> Floats:
        """(B,T) log-probs less their expectation, −entropy: above 0 where a likely token came."""
        return self.logprobs + self.entropies

    def select(self, rows: ArrayLike) -> Scores:
        """Returns the same of some of the completions."""
        index = np.asarray(rows)
        return Scores(self.logprobs[index], self.entropies[index], self.logit_gradients[index])


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The true value of every state of some completions, in independent splits.

    What a token is worth is what it does to the value: its true advantage is V(t+1) − V(t).

    Args:
        values: (B,H,E) V in reward units; NaN beyond a completion's end. An exact truth has equal
            splits. The splits share no continuation: a square is the product of two of them.
        mask: (B,T) True on the tokens of a completion, which come first.
        prompts: (B,) whole numbers, equal for the completions of a prompt: the unit of every
            interval.
        rewards: (B,) of each completion.
        weights: (B,) how much each completion counts, ones by default: probabilities where all
            completions of a prompt were enumerated.
        resampling: how the intervals of all metrics are made.
        scores: of the tokens, by the policy; None = no metrics at the level "gradient".
        earned: (B,T) rewards before each token, a part of its value; zeros by default.

    Raises:
        StudyError: the arrays do not fit, there are fewer than two splits, tokens lie behind a
            hole, or a state of a completion has no value.
    """

    values: Floats
    mask: Bools
    prompts: Ints
    rewards: Floats
    weights: Floats = field(default_factory=lambda: np.empty(0))
    resampling: Resampling = field(default_factory=Resampling)
    scores: Scores | None = None
    earned: Floats = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        arrays = {"values": np.float64, "mask": np.bool_, "prompts": np.int64}
        arrays |= dict.fromkeys(("rewards", "weights", "earned"), np.float64)
        for name, dtype in arrays.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        if not self.earned.size:
            object.__setattr__(self, "earned", np.zeros(self.mask.shape))
        if not self.weights.size:
            object.__setattr__(self, "weights", np.ones(len(self.rewards)))
        self._require()

    @property
    def lengths(self) -> Ints:
        """(B,) tokens of each completion."""
        return self.mask.sum(1)

    @property
    def splits(self) -> int:
        """H."""
        return self.values.shape[1]

    @property
    def advantages(self) -> Floats:
        """(B,H,T) V(t+1) − V(t); 0 off the mask."""
        return np.where(self.mask[:, None], np.diff(self.values, axis=2), 0.0)

    @property
    def states(self) -> Floats:
        """(B,H,T) V before each token, of what is still to come; 0 off the mask."""
        return np.where(self.mask[:, None], self.values[:, :, :-1] - self.earned[:, None], 0.0)

    def keep(self, splits: Sequence[int]) -> Truth:
        """Returns the same with some of the splits, such as those that chose no boundaries."""
        return dataclasses.replace(self, values=self.values[:, list(splits)])

    def select(self, rows: ArrayLike) -> Truth:
        """Returns the same with some of the completions."""
        index = np.asarray(rows)
        names = ("values", "mask", "prompts", "rewards", "weights", "earned")
        chosen = {name: getattr(self, name)[index] for name in names}
        scores = None if self.scores is None else self.scores.select(index)
        return dataclasses.replace(self, **chosen, scores=scores)

    def require_scores(self) -> Scores:
        """Returns the scores of the tokens.

        Raises:
            StudyError: there are none.
        """
        if self.scores is None:
            raise StudyError(
                "the truth has no scores of its tokens; expected log-probs, entropies and squared"
                " gradients by the logits, by which the level 'gradient' weighs. Usually the audit"
                " was made by an older version: run it again, which adds them and keeps the rest."
                " A policy without logit_gradients() has no such metrics."
            )
        return self.scores

    def _require(self) -> None:
        if self.values.ndim != 3 or self.mask.ndim != 2:
            raise StudyError(
                f"values have {self.values.ndim} axes and mask {self.mask.ndim}; expected (B,H,T+1)"
                " and (B,T)."
            )
        rows, splits, states = self.values.shape
        shapes = {"mask": (rows, states - 1), "prompts": (rows,), "earned": (rows, states - 1)}
        for name, shape in (shapes | {"rewards": (rows,), "weights": (rows,)}).items():
            require_shape(name, getattr(self, name), shape)
        for name in () if self.scores is None else Scores.__slots__:
            require_shape(name, getattr(self.scores, name), self.mask.shape)
        if splits < 2:
            raise StudyError(
                "the truth has one split; expected at least two independent ones, since a square is"
                " measured without bias only as the product of two. Repeat an exact truth."
            )
        if (self.mask[:, 1:] & ~self.mask[:, :-1]).any():
            raise StudyError("a completion has tokens behind a hole in its mask; expected none.")
        lived = np.arange(states) <= self.lengths[:, None]
        missing = np.isnan(self.values).any(1) & lived
        if missing.any():
            row, state = np.argwhere(missing)[0]
            raise StudyError(
                f"completion {row} has no value at state {state} of {self.lengths[row]}; expected"
                " one before each of its tokens and at its end."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """Credit that one segmenter, estimator and scheme give the completions of a truth.

    Metrics take it to be independent of the truth's noise: an estimator that uses one split of the
    continuations is judged on the others (``Truth.keep``).

    Args:
        segment_ids: (B,T) −1 off the mask; from 0 on, growing by 0 or 1.
        advantages: (B,T) in reward units; the same for the tokens of a segment.
        state_values: (B,T) the estimator's value at the anchor of each token's segment, NaN where
            there is none; None for an estimator that values no state.
        anchor: the state that was valued: before the segment ("start") or before its last token
            ("last_token").
        token_values: (B,T) the estimator's value of the state before each token; None where it
            values anchors alone.
        token_advantages: (B,T) credit by the same estimator and scheme with a segment for each
            token, which credit noise is held against; None = no ratio.
    """

    segment_ids: Ints
    advantages: Floats
    state_values: Floats | None = None
    anchor: Anchor = "start"
    token_values: Floats | None = None
    token_advantages: Floats | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "segment_ids", np.asarray(self.segment_ids, dtype=np.int64))
        advantages = np.asarray(self.advantages, dtype=np.float64)
        require_shape("advantages", advantages, self.segment_ids.shape)
        object.__setattr__(self, "advantages", np.where(self.segment_ids >= 0, advantages, 0.0))
        for name in ("state_values", "token_values", "token_advantages"):
            if getattr(self, name) is not None:
                found = np.asarray(getattr(self, name), dtype=np.float64)
                require_shape(name, found, self.segment_ids.shape)
                object.__setattr__(self, name, found)
        if self.anchor not in ("start", "last_token"):
            raise StudyError(
                f"the anchor is {self.anchor!r}; expected 'start' or 'last_token', the state that"
                " the estimator valued."
            )


def moved_left(x: NDArray[T], mask: Bools, fill: float) -> NDArray[T]:
    """Moves what is on a mask to the left of each row, over the holes.

    Args:
        x: (B,T) numbers of tokens, or (B,...,T).
        mask: (B,T) True on what is kept. Where nothing lies behind a hole, all stays as it is.
        fill: what follows a row's last entry.
    """
    if not (mask[:, 1:] & ~mask[:, :-1]).any():
        return x
    order_BT = np.argsort(~mask, axis=1, kind="stable")
    there_BT = np.take_along_axis(mask, order_BT, axis=1)
    between = (slice(None), *[None] * (x.ndim - 2), slice(None))
    moved = np.take_along_axis(x, order_BT[between], axis=-1)
    return np.where(there_BT[between], moved, np.asarray(fill, dtype=x.dtype))


def require_shape(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    """Refuses an array of another shape."""
    if array.shape != shape:
        raise StudyError(
            f"{name} has shape {array.shape}; expected {shape}, as the other arrays of these"
            " completions have."
        )


def require_ids(truth: Truth, segment_ids: ArrayLike) -> Ints:
    """Returns (B,T) the ids of segments, once it is sure that they fit the truth.

    Raises:
        StudyError: another shape or mask, or ids that do not begin at 0 and grow by 0 or 1.
    """
    ids_BT = np.asarray(segment_ids, dtype=np.int64)
    require_shape("segment_ids", ids_BT, truth.mask.shape)
    before_BT = np.concatenate([np.full((len(ids_BT), 1), -1), ids_BT[:, :-1]], axis=1)
    growth_BT = ids_BT - before_BT
    wrong_BT = truth.mask & (growth_BT != 0) & (growth_BT != 1) | ((ids_BT >= 0) != truth.mask)
    if wrong_BT.any():
        row, token = np.argwhere(wrong_BT)[0]
        raise StudyError(
            f"completion {row} has segment {ids_BT[row, token]} at token {token}, after"
            f" {before_BT[row, token]}; expected ids from 0 on that grow by 0 or 1, and −1 exactly"
            " off the truth's mask."
        )
    return ids_BT
