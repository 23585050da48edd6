"""Features of the two stages: hashed windows of tokens, and dense numbers about a candidate.

A candidate is a token after white space before which a segment may begin. Letters as in
``tokens``, and ``F`` features of a candidate, ``K`` kinds of characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .tokens import (
    CALL,
    COLON,
    INSIDE_FORMULA,
    KINDS,
    LOWER,
    OPERATOR,
    STOP,
    Bools,
    Hashes,
    Ints,
    TokenTable,
)

Floats = NDArray[np.float64]
Buckets = NDArray[np.int32]
Candidates = Literal["fast", "all"]

HASH_BITS = 20
"""Weights of the first stage: 2^20, of which those that training never met are 0."""
DENSE_FEATURES = 67
"""Inputs of the second stage, without the policy's signals."""
_WORD_WINDOW = range(-6, 7)
_SHAPE_WINDOW = range(-4, 5)
_NEIGHBOURS = 4
_REACHES = (60, 150, 400, 1000)
"""Characters on either side in which probabilities are summed."""
_PEAKS = (0.25, 0.6)
"""Probabilities that make a candidate a landmark for its neighbours."""
_FAR = 2000.0
_PAIR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_CONTINUES = np.isin(np.arange(KINDS), (LOWER, OPERATOR))


@dataclass(frozen=True, slots=True)
class CandidateTable:
    """The candidates of a token table and where their sentences begin and end."""

    tokens: TokenTable
    places_C: Ints
    """Index of the candidate in the token table."""
    offsets_C: Ints
    """Its first character in its own document."""
    documents_C: Ints
    sentences_C: Ints
    """Index of the first token of the sentence that a boundary here would follow."""
    nexts_C: Ints
    """Index of the first token of the sentence after the candidate's, or of the padding."""
    earlier_C: Ints
    """Index of the first token of the sentence before ``sentences_C``, or of the padding."""
    later_C: Ints
    """Index of the first token of the sentence after ``nexts_C``, or of the padding."""

    def __len__(self) -> int:
        return len(self.places_C)


def find_candidates(tokens: TokenTable, which: Candidates) -> CandidateTable:
    """Finds tokens after white space; ``fast`` leaves out those that hardly ever begin a step.

    ``fast`` drops a lower-case word or an operator unless one of ``. : ! ? ]`` stands before it,
    and so keeps about 30 % of the words of a solution.
    """
    inside_N = (tokens.documents_N >= 0) & (tokens.gaps_N > 0)
    # White space in front of the first token separates nothing.
    inside_N[1:] &= tokens.documents_N[:-1] >= 0
    if which == "fast":
        tails_N = np.concatenate([np.zeros(1, np.int64), tokens.tails_N[:-1]])
        codes_N = np.concatenate([np.zeros(1, np.int64), tokens.tail_characters_N[:-1]])
        closes_N = np.isin(tails_N, (STOP, COLON, CALL)) | (codes_N == ord("]"))
        inside_N &= closes_N | ~_CONTINUES[tokens.heads_N] | (tokens.gaps_N > 1)
    places_C = np.flatnonzero(inside_N)
    documents_C = tokens.documents_N[places_C]
    before_N, after_N = _sentence_bounds(tokens)
    last = len(after_N) - 1
    sentences_C = before_N[places_C - 1]
    nexts_C = after_N[np.minimum(places_C + 1, last)]
    return CandidateTable(
        tokens=tokens,
        places_C=places_C,
        offsets_C=tokens.starts_N[places_C] - tokens.first_characters_D[documents_C],
        documents_C=documents_C,
        sentences_C=sentences_C,
        nexts_C=nexts_C,
        earlier_C=before_N[np.maximum(sentences_C - 1, 0)],
        later_C=after_N[np.minimum(nexts_C + 1, last)],
    )


def _sentence_bounds(tokens: TokenTable) -> tuple[Ints, Ints]:
    """Returns (N,) the sentence start at or before each place, and the one at or after it.

    Padding is its own start, so that no document is looked at from another.
    """
    padding_N = tokens.documents_N < 0
    edges_N = ~padding_N & np.concatenate([np.ones(1, np.bool_), padding_N[:-1]])
    starts_N = edges_N | padding_N | tokens.sentence_starts_N
    places_N = np.arange(len(padding_N))
    before_N = np.maximum.accumulate(np.where(starts_N, places_N, 0))
    last = len(places_N) - 1
    after_N = np.minimum.accumulate(np.where(starts_N, places_N, last)[::-1])[::-1]
    return before_N, after_N


def hashed_features(candidates: CandidateTable) -> Buckets:
    """Returns (C,F) the bucket of each feature of each candidate, in [0, 2^20)."""
    columns = _windows(candidates) + _conjunctions(candidates)
    table_CF = np.empty((len(candidates), len(columns)), np.int32)
    for number, column_C in enumerate(columns):
        table_CF[:, number] = _bucket(column_C, number)
    return table_CF


def _bucket(column_C: Hashes, number: int) -> Hashes:
    """Distributes 64 bits over the buckets; each feature by its own function."""
    salt = np.uint64((number + 1) * int(_PAIR) % 2**64)
    mixed_C = (column_C + salt) * _MIX
    mixed_C ^= mixed_C >> np.uint64(33)
    mixed_C *= _MIX
    return mixed_C >> np.uint64(64 - HASH_BITS)


def _join(*columns: NDArray[np.generic]) -> Hashes:
    """Combines several hashes into one; their order counts."""
    joined = columns[0].astype(np.uint64)
    for column in columns[1:]:
        joined = (joined ^ (joined >> np.uint64(29))) * _PAIR + column.astype(np.uint64)
    return joined


def _windows(candidates: CandidateTable) -> list[Hashes]:
    """Hashes single words, shapes and suffixes around the candidate."""
    tokens, at = candidates.tokens, candidates.places_C
    words = [tokens.words_N[at + k] for k in _WORD_WINDOW]
    shapes = [tokens.shapes_N[at + k] for k in _SHAPE_WINDOW]
    return [*words, *shapes, tokens.suffixes_N[at - 1], tokens.suffixes_N[at]]


def _conjunctions(candidates: CandidateTable) -> list[Hashes]:
    """Hashes several properties at once, which a linear model cannot combine for itself."""
    tokens, at = candidates.tokens, candidates.places_C
    sentence, following = candidates.sentences_C, candidates.nexts_C

    def word(k: int) -> Hashes:
        return tokens.words_N[at + k]

    def shape(k: int) -> Hashes:
        return tokens.shapes_N[at + k]

    head, tail = tokens.heads_N, tokens.tails_N
    gap, state = tokens.gaps_N[at], tokens.states_N[at]
    style = tokens.styles_D[candidates.documents_C]
    opening = tokens.words_N[sentence]
    opening_pair = _join(opening, tokens.words_N[sentence + 1])
    later = tokens.words_N[following]
    size = _log_bucket(tokens.starts_N[at] - tokens.starts_N[sentence])
    next_size = _log_bucket(tokens.starts_N[following] - tokens.starts_N[at])
    position = _log_bucket(candidates.offsets_C)
    return [
        _join(word(-1), word(0)),
        _join(word(-2), word(-1)),
        _join(word(0), word(1)),
        _join(word(1), word(2)),
        _join(word(-1), word(0), word(1)),
        _join(word(-2), word(-1), word(0)),
        _join(word(0), word(1), word(2)),
        _join(word(-3), word(-2), word(-1)),
        _join(shape(-1), shape(0)),
        _join(shape(-2), shape(-1), shape(0)),
        _join(shape(-1), shape(0), shape(1)),
        _join(shape(0), shape(1), shape(2)),
        _join(tail[at - 2], tail[at - 1], head[at], head[at + 1]),
        _join(tail[at - 3], tail[at - 2], tail[at - 1], head[at], head[at + 1], head[at + 2]),
        _join(tokens.suffixes_N[at - 1], word(0)),
        _join(word(-1), head[at]),
        _join(tail[at - 1], word(0)),
        _join(gap, tail[at - 1], head[at]),
        _join(gap, word(0)),
        _join(state, word(-1)),
        _join(state, word(0)),
        _join(opening, word(0)),
        _join(opening_pair, tail[at - 1]),
        _join(opening_pair, word(0)),
        _join(later, word(0)),
        _join(later, tail[at - 1]),
        _join(size, tail[at - 1]),
        _join(size, word(0)),
        _join(next_size, tail[at - 1]),
        _join(size, next_size, tail[at - 1]),
        _join(position, tail[at - 1]),
        _join(style, tail[at - 1]),
        _join(style, word(0)),
        _join(style, head[at], tail[at - 1], size),
        _join(style, word(-1), head[at]),
        _join(tokens.gaps_N[at], tokens.gaps_N[at + 1], tokens.gaps_N[at - 1], tail[at - 1]),
        _join(tail[at - 1], head[at], later),
        _join(style, opening, tail[at - 1]),
        *_distant_conjunctions(candidates),
    ]


def _distant_conjunctions(candidates: CandidateTable) -> list[Hashes]:
    """Hashes the words that a candidate shares with the sentences before and after it."""
    tokens, at = candidates.tokens, candidates.places_C
    sentence, following = candidates.sentences_C, candidates.nexts_C
    earlier, later = candidates.earlier_C, candidates.later_C
    words, tails, starts = tokens.words_N, tokens.tails_N, tokens.starts_N
    tail, word = tails[at - 1], words[at]
    style = tokens.styles_D[candidates.documents_C]
    return [
        _join(tails[following - 1], tail, tokens.heads_N[at]),
        _join(words[following - 1], words[at - 1]),
        _join(tails[following - 1], word),
        _join(words[earlier], tail, word),
        _join(words[later], tail),
        _join(tails[sentence - 1], tail, word),
        _join(words[following], word, tail),
        _join(style, word, words[at + 1]),
        _join(style, word, tail, words[at + 1], words[at + 2]),
        _join(style, _log_bucket(starts[following] - starts[at]), tail),
        _join(style, _log_bucket(starts[at] - starts[earlier]), tail),
    ]


def _log_bucket(x: Ints) -> Ints:
    """Rounds logarithms to half-octaves."""
    return (2 * np.log2(1 + np.maximum(x, 0))).astype(np.int64)


def dense_features(
    candidates: CandidateTable, first_C: Floats, signals_CQ: Floats | None
) -> Floats:
    """Returns (C,F) the inputs of the second stage, above all the first's at neighbours.

    Args:
        candidates: all candidates of their documents.
        first_C: the first stage's probabilities.
        signals_CQ: the policy's signals, where the model uses them; NaN where there are none.
    """
    if not len(candidates):
        return np.zeros((0, 1))
    columns = [
        first_C,
        *_around(candidates, first_C),
        *_sums(candidates, first_C),
        *_landmarks(candidates, first_C),
        *_document_means(candidates, first_C),
        *_at_sentences(candidates, first_C),
        *_shape_of_text(candidates),
        *_contents(candidates),
    ]
    if signals_CQ is not None:
        columns += list(signals_CQ.T)
    return np.stack(columns, axis=1)


def _around(candidates: CandidateTable, first_C: Floats) -> list[Floats]:
    """Returns the probabilities of the candidates before and after; 0 beyond the document."""
    blank, nowhere = np.zeros(_NEIGHBOURS), np.full(_NEIGHBOURS, -1)
    padded = np.concatenate([blank, first_C, blank])
    documents = np.concatenate([nowhere, candidates.documents_C, nowhere])
    columns: list[Floats] = []
    for step in (*range(-_NEIGHBOURS, 0), *range(1, _NEIGHBOURS + 1)):
        other = np.arange(len(first_C)) + _NEIGHBOURS + step
        same = documents[other] == candidates.documents_C
        columns.append(np.where(same, padded[other], 0.0))
    return columns


def _apart(candidates: CandidateTable) -> Ints:
    """Counts characters from the beginning of the batch, documents far from each other."""
    starts_C = candidates.tokens.starts_N[candidates.places_C]
    return starts_C + candidates.documents_C * (2 * max(_REACHES))


def _sums(candidates: CandidateTable, first_C: Floats) -> list[Floats]:
    """Sums expected boundaries within so many characters, on both sides."""
    at_C = _apart(candidates)
    total = np.concatenate([np.zeros(1), np.cumsum(first_C)])
    here = np.arange(len(first_C))
    columns: list[Floats] = []
    for reach in _REACHES:
        columns.append(total[here] - total[np.searchsorted(at_C, at_C - reach)])
        columns.append(total[np.searchsorted(at_C, at_C + reach, "right")] - total[here + 1])
    return columns


def _landmarks(candidates: CandidateTable, first_C: Floats) -> list[Floats]:
    """Measures characters to the nearest likely boundary on both sides, and how likely it is."""
    at_C = _apart(candidates).astype(np.float64)
    here = np.arange(len(first_C))
    columns: list[Floats] = []
    for peak in _PEAKS:
        likely = first_C > peak
        last = np.maximum.accumulate(np.where(likely, here, -1))
        last = np.concatenate([np.full(1, -1), last[:-1]])
        beyond = len(here)
        soon = np.minimum.accumulate(np.where(likely, here, beyond)[::-1])[::-1]
        soon = np.concatenate([soon[1:], np.full(1, beyond)])
        for other, known in ((last, last >= 0), (soon, soon < beyond)):
            place = np.clip(other, 0, beyond - 1)
            away = np.abs(at_C - at_C[place])
            columns.append(np.where(known, np.minimum(away, _FAR), _FAR))
    return columns


def _document_means(candidates: CandidateTable, first_C: Floats) -> list[Floats]:
    """Measures how the document treats candidates of the same kind, and how dense its cuts are."""
    tokens, at = candidates.tokens, candidates.places_C
    document = candidates.documents_C
    length_D = np.diff(tokens.first_characters_D)
    sums_D = np.bincount(document, first_C, len(length_D))
    counts_D = np.bincount(document, minlength=len(length_D))
    strong_D = np.bincount(document, first_C > 0.5, len(length_D))
    opens = tokens.sentence_starts_N[at]
    columns: list[NDArray[Any]] = [
        _mean_of_others(_join(document, tokens.tails_N[at - 1]), first_C),
        _mean_of_others(_join(document, tokens.words_N[at]), first_C),
        _mean_of_others(_join(document, tokens.words_N[at - 1], tokens.heads_N[at]), first_C),
        _mean_of_others(
            _join(document, tokens.tails_N[at - 1], tokens.heads_N[at], tokens.gaps_N[at]), first_C
        ),
        _mean_of_others(_join(document, opens), first_C),
        _mean_of_others(_join(document, tokens.words_N[at], tokens.words_N[at + 1]), first_C),
        (sums_D / np.maximum(length_D, 1))[document],
        (length_D / (1 + sums_D))[document],
        sums_D[document],
        (strong_D / np.maximum(counts_D, 1))[document],
        counts_D[document],
        length_D[document],
        _largest_of_document(document, first_C, len(length_D)),
    ]
    return [column.astype(np.float64) for column in columns]


def _mean_of_others(keys_C: Hashes, first_C: Floats) -> Floats:
    """Averages the probability of other candidates with this key; -1 where there is none."""
    _, inverse = np.unique(keys_C, return_inverse=True)
    counts = np.bincount(inverse)[inverse] - 1
    sums = np.bincount(inverse, first_C)[inverse] - first_C
    return np.where(counts > 0, sums / np.maximum(counts, 1), -1.0)


def _largest_of_document(document_C: Ints, first_C: Floats, count: int) -> Floats:
    largest_D = np.zeros(count)
    np.maximum.at(largest_D, document_C, first_C)
    return largest_D[document_C]


def _at_sentences(candidates: CandidateTable, first_C: Floats) -> list[Floats]:
    """Returns the probabilities where the sentences around begin; 0 if that is no candidate."""
    first_N = np.zeros(len(candidates.tokens.words_N))
    first_N[candidates.places_C] = first_C
    around = (
        candidates.sentences_C,
        candidates.nexts_C,
        candidates.earlier_C,
        candidates.later_C,
    )
    return [first_N[places] for places in around]


def _shape_of_text(candidates: CandidateTable) -> list[Floats]:
    """Measures lengths, positions and kinds of characters, without any probability."""
    tokens, at = candidates.tokens, candidates.places_C
    starts = tokens.starts_N
    length_C = np.diff(tokens.first_characters_D)[candidates.documents_C]
    columns: list[NDArray[np.generic]] = [
        starts[at] - starts[candidates.sentences_C],
        starts[candidates.nexts_C] - starts[at],
        candidates.offsets_C,
        length_C - candidates.offsets_C,
        candidates.offsets_C / np.maximum(length_C, 1),
        tokens.tails_N[at - 1],
        tokens.heads_N[at],
        tokens.tails_N[at - 2],
        tokens.heads_N[at + 1],
        tokens.tail_characters_N[at - 1],
        tokens.gaps_N[at],
        tokens.states_N[at],
        (tokens.states_N[at] & INSIDE_FORMULA) > 0,
        tokens.styles_D[candidates.documents_C],
        tokens.sentence_starts_N[at],
        tokens.ends_N[at] - starts[at],
    ]
    return [column.astype(np.float64) for column in columns]


def _contents(candidates: CandidateTable) -> list[Floats]:
    """Counts tokens, equals signs and formulas of the sentences on both sides, and their ends."""
    tokens, at = candidates.tokens, candidates.places_C
    sentence, following = candidates.sentences_C, candidates.nexts_C
    earlier, later = candidates.earlier_C, candidates.later_C
    equals = _running(tokens.tail_characters_N == ord("="))
    formulas = _running((tokens.states_N & INSIDE_FORMULA) > 0)
    columns: list[Ints] = [
        tokens.tails_N[following - 1],
        tokens.tails_N[sentence - 1],
        tokens.tail_characters_N[following - 1],
        tokens.heads_N[following],
        tokens.heads_N[sentence],
        tokens.starts_N[sentence] - tokens.starts_N[earlier],
        tokens.starts_N[later] - tokens.starts_N[following],
        equals[at] - equals[sentence],
        equals[following] - equals[at],
        formulas[at] - formulas[sentence],
        formulas[following] - formulas[at],
        at - sentence,
        following - at,
    ]
    return [column.astype(np.float64) for column in columns]


def _running(marks_N: Bools) -> Ints:
    """Marks before each place."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(marks_N, dtype=np.int64)])
