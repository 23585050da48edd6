"""Segments between boundaries that a classifier learned from segmented texts."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from segcredit import RolloutBatch, Segmentation, SegmenterReading, TextSegmenter, errors

if TYPE_CHECKING:
    from .stages import BoundaryModel, Judgement, Usual

_BATCH = 4_000_000
"""Characters that are read at once, which bounds the memory of their features (about 1 GB)."""
_SENTENCES, _SPARSE = 12, 5
"""Sentences of a text from which on one can tell, and sentences for which a model makes at least
a cut, where its file does not say how often training's texts were cut."""
_EXPECTED = 1 / 20
"""Share of texts of another kind from which on they are told of; of training's it is .006."""
_warned: set[str] = set()
"""Models that were told to cut texts of another kind."""


@dataclass(frozen=True, slots=True)
class Learned(TextSegmenter):
    """Boundaries where a classifier trained on segmented texts sees them.

    A segment begins at a word c after white space where p(c) > threshold, with

        p₁(c) = σ(b + Σ_f w[h_f(c)]),  p(c) = (1 - blend) p₁(c) + blend · trees(c, p₁ around c):

    a logistic regression over hashed windows of spaCy's tokens, and gradient-boosted trees over
    its probabilities at the neighbours. `segcredit fit-boundaries DATA --output FILE` trains a
    model and prints its cross-validated F1.

    Assumption: the texts are segmented as those of training were. The shipped model learned from
    worked solutions that we generate ourselves; its F1 of .98 says that it learned their style, and
    nothing of real traces. Such a classifier does not transfer to another source at its own
    threshold, and most of the loss is granularity. So a text of which fewer features were met in
    training than of nearly every document of training is cut into sentences (``unknown``): all
    real texts tried, for the shipped model. Sources of one subject share their words; so are texts
    whose words and whose number of cuts, per sentence, are together as unusual as those of 1 in
    250 documents of training, and a warning says so once. ``per_100_tokens`` sets the granularity
    without labels. Sentences are those of the segmenter ``sentence``.

    Degenerate case: a text without white space, as in Chinese, has nothing that the model could
    look at, and is cut into sentences. Cost: some 800,000 characters a second on one core in
    batches, a twentieth of it text by text.

    Args:
        model: "default" for the shipped one, or a file that `segcredit fit-boundaries` wrote.
        threshold: probability above which there is a boundary, in [0,1]; None = the one that was
            calibrated in training.
        per_100_tokens: if given, each text is cut into this many segments per 100 words (words
            are what white space separates), at its most probable boundaries.
        unknown: what cuts a text that is unlike those of training: ``sentences``, or the ``model``
            regardless. Not asked where ``threshold`` or ``per_100_tokens`` is given.

    Source:
        The combination is ours: a hashed linear model (Weinberger et al., 2009, arXiv 0902.2206)
        stacked (Wolpert, 1992) under histogram gradient boosting (Ke et al., 2017, LightGBM, as
        in scikit-learn).
    """

    model: str = "default"
    threshold: float | None = None
    per_100_tokens: float | None = None
    unknown: Literal["sentences", "model"] = "sentences"

    def __post_init__(self) -> None:
        errors.require_package("skops", "learned", "segmenter 'learned'")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold is {self.threshold}; expected a probability between 0 and 1, such as"
                " 0.4, or None for the model's own."
            )
        rate = self.per_100_tokens
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(
                f"per_100_tokens is {rate}; expected segments per 100 words, such as 5, or None"
                " for a threshold."
            )
        if rate is not None and self.threshold is not None:
            raise ValueError(
                f"threshold is {self.threshold} and per_100_tokens is {rate}; expected one of"
                " them, since either decides how many segments there are."
            )
        if self.unknown not in ("sentences", "model"):
            raise ValueError(f"unknown is {self.unknown!r}; expected 'sentences' or 'model'.")

    @property
    def causal(self) -> bool:
        """The words after a boundary, and all of the text's, decide on it."""
        return False

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Texts; entropies and log-probs too where the model was trained with them."""
        signals = self._load().signals
        return frozenset({"text", "entropies", "logprobs"} if signals else {"text"})

    def split(self, text: str) -> Sequence[int]:
        """Returns the first visible character of each segment; many texts are faster together."""
        return self.split_all([text])[0]

    def split_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Splits several texts at once.

        Raises:
            PluginError: the model reads the policy's signals, which texts alone do not have.
            ConfigError: the model's file cannot be read.
        """
        model = self._load()
        if model.signals:
            raise errors.PluginError(
                f"the boundary model {self.model!r} was trained with the policy's entropies and"
                " log-probs, and a text alone has none. Segment rollouts, or train it without"
                " 'entropies' and 'logprobs' in the data."
            )
        return self._offsets(model, texts, None)

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts all texts of the batch in one go, with the policy's signals if the model has them.

        The blanks before a word go with it, since many tokenizers have them in the word's token.
        What tools or the environment wrote is not read: no training text has any.
        """
        model = self._load()
        rollouts = _sampled_alone(rollouts)
        signals = _signals(rollouts) if model.signals else None
        offsets = self._offsets(model, rollouts.texts, signals)
        starts = [
            [_before_blanks(text, offset) for offset in row]
            for text, row in zip(rollouts.texts, offsets, strict=True)
        ]
        return Segmentation.from_char_starts(starts, rollouts.token_spans, rollouts.action_mask)

    def _load(self) -> BoundaryModel:
        from .model_file import load_model

        return load_model(self.model)

    def _offsets(
        self, model: BoundaryModel, texts: Sequence[str], signals: Sequence[Any] | None
    ) -> list[list[int]]:
        from .stages import judge

        offsets: list[list[int]] = []
        for first, last in _batches(texts):
            part = None if signals is None else signals[first:last]
            judgement = judge(model, texts[first:last], part)
            offsets += self._cut(model, judgement, texts[first:last])
        return offsets

    def _cut(
        self, model: BoundaryModel, judgement: Judgement, texts: Sequence[str]
    ) -> list[list[int]]:
        candidates = judgement.candidates
        if self.per_100_tokens is None:
            own = model.threshold if self.threshold is None else self.threshold
            chosen_C = judgement.probabilities_C > own
        else:
            chosen_C = _most_probable(judgement, self.per_100_tokens, len(texts))
        counts_D = np.bincount(candidates.documents_C[chosen_C], minlength=len(texts))
        parts = np.split(candidates.offsets_C[chosen_C], np.cumsum(counts_D)[:-1])
        offsets: list[list[int]] = [part.tolist() for part in parts[: len(texts)]]
        if self.threshold is None and self.per_100_tokens is None and self.unknown == "sentences":
            for row in self._foreign(model, judgement, counts_D):
                offsets[row] = _sentences(texts[row])
        return offsets

    def _foreign(self, model: BoundaryModel, judgement: Judgement, cuts_D: Any) -> list[int]:
        """Returns the texts that are not left to the model; warns of those that look known."""
        seen_D = np.bincount(judgement.candidates.documents_C, minlength=len(cuts_D))
        unknown_D = ~judgement.known_D | (seen_D == 0)
        odd_D = _oddly_cut(model.usual, judgement, cuts_D) & ~unknown_D
        if odd_D.sum() > _EXPECTED * len(odd_D) and self.model not in _warned:
            _warned.add(self.model)
            _warn(self.model, model.usual, judgement, cuts_D, odd_D)
        return np.flatnonzero(unknown_D | odd_D).tolist()


def _oddly_cut(usual: Usual | None, judgement: Judgement, cuts_D: Any) -> Any:
    """Returns (D,) True for texts that training makes unlikely to be cut so often."""
    tokens = judgement.candidates.tokens
    if usual is not None:
        return usual.surprise(judgement.shares_D, tokens.log_rates(cuts_D)) > usual.limit
    return (tokens.sentences_D >= _SENTENCES) & (cuts_D * _SPARSE < tokens.sentences_D)


def _warn(model: str, usual: Usual | None, judgement: Judgement, cuts_D: Any, odd_D: Any) -> None:
    """Says that texts are likely of another kind than those of training."""
    tokens = judgement.candidates.tokens
    sentences = tokens.sentences_D[odd_D].sum()
    middle = np.exp(np.median(tokens.log_rates(cuts_D)[odd_D]))
    of_training = ""
    if usual is not None:
        low, high = np.exp(np.quantile(usual.rates_K, [0.025, 0.975]))
        of_training = (
            f"; in 95 % of the texts of its training it is {low:.2g} to {high:.2g}, in texts of"
            " more familiar words"
        )
    warnings.warn(
        f"the boundary model {model!r} makes {int(cuts_D[odd_D].sum())} cuts in {int(odd_D.sum())}"
        f" of {len(odd_D)} texts, where sentences would make {int(sentences)}: {middle:.2g}"
        f" segments per sentence, by the median{of_training}. These texts are likely of another"
        " kind than those that it was trained on, and are cut into sentences. Train a model on"
        " such texts, set per_100_tokens, or keep its cuts with unknown='model'.",
        stacklevel=2,
    )


def _sentences(text: str) -> list[int]:
    """Returns the first visible character of each sentence but the first."""
    from ..sentence import Sentence  # not by name: a namesake may stand before this package

    return [start + text[start].isspace() for start in Sentence().split(text)]


def _before_blanks(text: str, offset: int) -> int:
    """Returns the start of the blanks that stand directly before an offset."""
    while offset and text[offset - 1] in " \t":
        offset -= 1
    return offset


def _batches(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Gathers consecutive texts of bounded length; one that is longer goes alone."""
    ends = list(itertools.accumulate(map(len, texts), initial=0))
    edges = [0]
    while edges[-1] < len(texts):
        fits = bisect.bisect_right(ends, ends[edges[-1]] + _BATCH) - 1
        edges.append(max(fits, edges[-1] + 1))
    return list(itertools.pairwise(edges))


def _most_probable(judgement: Judgement, rate: float, count: int) -> Any:
    """Returns (C,) the candidates that give each document so many segments per 100 words."""
    candidates = judgement.candidates
    tokens, documents_C = candidates.tokens, candidates.documents_C
    first_N = np.concatenate([np.ones(1, np.bool_), tokens.documents_N[:-1] < 0])
    words_N = (tokens.documents_N >= 0) & ((tokens.gaps_N > 0) | first_N)
    words_D = np.bincount(tokens.documents_N[words_N], minlength=count)
    wanted_D = np.rint(words_D * rate / 100).astype(np.int64) - 1
    # By document, then from the most probable down; of equals the earlier one first.
    order_C = np.lexsort((-judgement.probabilities_C, documents_C))
    starts_D = np.searchsorted(documents_C, np.arange(count))
    ranks_C = np.arange(len(order_C)) - starts_D[documents_C[order_C]]
    chosen_C = np.zeros(len(order_C), np.bool_)
    chosen_C[order_C] = ranks_C < wanted_D[documents_C[order_C]]
    return chosen_C


def _sampled_alone(rollouts: RolloutBatch) -> RolloutBatch:
    """Returns rollouts whose texts are those of the action tokens alone."""
    spans_BT2 = rollouts.token_spans
    others_BT = (spans_BT2[..., 1] - spans_BT2[..., 0]) * ~rollouts.action_mask
    if not others_BT.any():
        return rollouts
    texts: list[str] = []
    cuts = spans_BT2.cpu().numpy()
    for text, spans, foreign in zip(rollouts.texts, cuts, others_BT.cpu().numpy(), strict=True):
        places = [(int(start), int(end)) for start, end in spans[foreign > 0]]
        ends = [0, *(end for _, end in places)]
        begins = [*(start for start, _ in places), len(text)]
        texts.append("".join(text[a:b] for a, b in zip(ends, begins, strict=True)))
    # What stands before a token's first character, and before the one after its last.
    before_BT = others_BT.cumsum(1)
    shift_BT2 = torch.stack([before_BT - others_BT, before_BT], 2)
    return rollouts.replace(texts=tuple(texts), token_spans=spans_BT2 - shift_BT2)


def _signals(rollouts: RolloutBatch) -> list[Any]:
    """Returns the action tokens' first characters, entropies and log-probs, a row each."""
    from .signals import TokenSignals

    mask_BT = rollouts.action_mask.cpu().numpy()
    starts_BT = rollouts.token_spans[..., 0].cpu().numpy()
    entropies_BT = rollouts.entropies.detach().double().cpu().numpy()
    logprobs_BT = rollouts.logprobs.detach().double().cpu().numpy()
    return [
        TokenSignals(starts_T[mask_T], entropies_T[mask_T], logprobs_T[mask_T])
        for mask_T, starts_T, entropies_T, logprobs_T in zip(
            mask_BT, starts_BT, entropies_BT, logprobs_BT, strict=True
        )
    ]
