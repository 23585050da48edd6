"""Texts as arrays: spaCy's tokens and their lexical attributes, many documents at once.

Letters: ``D`` documents, ``N`` places in the token table, ``M`` tokens as spaCy gives them, ``X``
characters of all documents end to end, ``C`` candidates. Nothing here loops over tokens.
"""

# spaCy ships partial types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Bools = NDArray[np.bool_]

PADDING = 8
"""Empty places between documents: a window of features that ends inside them sees zeros."""
_ATTRIBUTES = ("LOWER", "SHAPE", "SUFFIX", "LENGTH", "SPACY", "IS_SPACE", "LIKE_NUM")
_MOST_WORDS = 300_000
"""Entries of the vocabulary at which a fresh one is begun: about 100 MB."""
_UNBROKEN = re.compile(r"\S{49}(?=\S{12})")
"""spaCy's time grows with the square of a word's length."""
_NO_CHARACTER = re.compile("[\ud800-\udfff]")
"""Halves of a surrogate pair, which no string store takes."""

_KINDS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    ".",
    ",",
    ":",
    ";",
    "!?",
    "([{",
    ")]}",
    "+-*/=<>^|",
    "$",
    "\\",
    "\"'`",
    "#_~&%@",
)
LOWER, UPPER, DIGIT, STOP, COMMA, COLON, SEMICOLON, CALL = range(1, 9)
OPENING, CLOSING, OPERATOR, DOLLAR, BACKSLASH, QUOTE, MARK, OTHER = range(9, 17)
KINDS = 17
"""Kinds of characters; 0 stands for no character."""
_SENTENCE_ENDS = np.isin(np.arange(KINDS), (STOP, CALL))
_SENTENCE_HEADS = ~np.isin(np.arange(KINDS), (0, LOWER, OPERATOR, COMMA, STOP, CLOSING, SEMICOLON))

INSIDE_ROUND, INSIDE_SQUARE, INSIDE_DOLLARS, INSIDE_BRACKETS, INSIDE_BOLD = 1, 2, 4, 8, 16
INSIDE_FORMULA = INSIDE_ROUND | INSIDE_SQUARE | INSIDE_DOLLARS
_STYLES = ("\\[", "\\(", "$", "**", "Step", "\n", " 1. ", "Wait", ":", "$$")


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Tokens of several documents, white space left out, ``PADDING`` empty places around each."""

    words_N: Hashes
    """Lower-case form; numbers by their shape."""
    shapes_N: Hashes
    suffixes_N: Hashes
    heads_N: Ints
    """Kind of the first character."""
    tails_N: Ints
    """Kind of the last character."""
    tail_characters_N: Ints
    """Code point of the last character."""
    starts_N: Ints
    """First character, counted over all documents end to end; on padding that of the document
    after it, which is where the one before it ends."""
    ends_N: Ints
    gaps_N: Ints
    """White space before the token: 0 none, 1 blanks, 2 a newline, 3 more newlines."""
    states_N: Ints
    """Formula, brackets, or bold type around the token, as bits ``INSIDE_...``."""
    documents_N: Ints
    """-1 on padding."""
    first_characters_D: Ints
    """Start of each document when all are laid end to end, and the end of the last one."""
    styles_D: Ints
    """Marks that the document uses, as bits."""
    sentence_starts_N: Bools
    """True where a capital, digit or formula follows white space after a full stop."""

    @property
    def sentences_D(self) -> Ints:
        """Sentences of each document after its first one."""
        opened_N = self.documents_N[self.sentence_starts_N]
        return np.bincount(opened_N[opened_N >= 0], minlength=len(self.styles_D))

    def log_rates(self, cuts_D: Ints) -> NDArray[np.float64]:
        """Computes (D,) the logarithm of segments per sentence, from each document's cuts."""
        return np.log((cuts_D + 1) / (self.sentences_D + 1))


@lru_cache(maxsize=1)
def language() -> Any:
    """Returns the blank English pipeline, whose tokenizer needs no download."""
    import spacy

    return spacy.blank("en")


def without_surrogates(text: str) -> str:
    """Returns the text with half characters replaced, of the same length."""
    return text if text.isascii() else _NO_CHARACTER.sub("\ufffd", text)


def read_tokens(texts: Sequence[str]) -> TokenTable:
    """Builds the token table of a batch of texts."""
    texts = [without_surrogates(text) for text in texts]
    columns_MA, counts_D = _attributes(texts)
    characters_X = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).astype(np.int64)
    lengths_D = np.fromiter(map(len, texts), np.int64, len(texts))
    first_D = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_D)])
    return _table(texts, columns_MA, np.asarray(counts_D, np.int64), characters_X, first_D)


def _attributes(texts: Sequence[str]) -> tuple[Hashes, list[int]]:
    """Returns (M,A) spaCy's attributes of all tokens, and how many tokens each document has."""
    # Every new word stays in a vocabulary (spaCy's memory zones would free it, but switch the
    # tokenizer's cache off): a full one is thrown away.
    if len(language().vocab) > _MOST_WORDS:
        language.cache_clear()
    pipeline = language()
    arrays = [_read_attributes(pipeline, text) for text in texts]
    blank = np.zeros((0, len(_ATTRIBUTES)), np.uint64)
    return np.concatenate([blank, *arrays]), [len(array) for array in arrays]


def _read_attributes(pipeline: Any, text: str) -> Hashes:
    """Returns (M,A) the attributes of one text's tokens, its longest words in pieces."""
    breaks = [match.end() for match in _UNBROKEN.finditer(text)]
    edges = itertools.pairwise([0, *breaks, len(text)])
    document = pipeline.make_doc(" ".join(text[start:end] for start, end in edges))
    columns_MA: Hashes = document.to_array(list(_ATTRIBUTES))
    if breaks:
        # The blanks between the pieces are not the text's.
        wide, spacy = _ATTRIBUTES.index("LENGTH"), _ATTRIBUTES.index("SPACY")
        ends_M = columns_MA[:, [wide, spacy]].sum(1).cumsum().astype(np.int64)
        put = np.asarray(breaks) + np.arange(1, len(breaks) + 1)
        columns_MA[np.isin(ends_M, put), spacy] = 0
    return columns_MA


def _table(
    texts: Sequence[str], columns_MA: Hashes, counts_D: Ints, characters_X: Ints, first_D: Ints
) -> TokenTable:
    lower_M, shape_M, suffix_M, wide_M, spacy_M, space_M, number_M = columns_MA.T
    length_M, steps_M = wide_M.astype(np.int64), (wide_M + spacy_M).astype(np.int64)
    starts_M = np.cumsum(steps_M) - steps_M
    documents_M = np.repeat(np.arange(len(counts_D)), counts_D)
    kept = np.flatnonzero(space_M == 0)
    starts, ends = starts_M[kept], starts_M[kept] + length_M[kept]
    documents = documents_M[kept]
    kinds_X = _kinds(characters_X)
    gaps = _gaps(starts, ends, documents, characters_X, first_D)
    heads, tails = kinds_X[starts], kinds_X[ends - 1]
    before = np.concatenate([np.zeros(1, np.int64), tails[:-1]])
    opens = (gaps > 0) & (_SENTENCE_ENDS[before] | (gaps > 1)) & _SENTENCE_HEADS[heads]
    words_M = lower_M.copy()
    words_M[number_M > 0] = shape_M[number_M > 0]
    layout = _Layout(documents, len(texts), first_D)
    return TokenTable(
        words_N=layout.spread(words_M[kept]),
        shapes_N=layout.spread(shape_M[kept]),
        suffixes_N=layout.spread(suffix_M[kept]),
        heads_N=layout.spread(heads),
        tails_N=layout.spread(tails),
        tail_characters_N=layout.spread(characters_X[ends - 1]),
        starts_N=layout.spread_places(starts),
        ends_N=layout.spread(ends),
        gaps_N=layout.spread(gaps),
        states_N=layout.spread(_states(characters_X, first_D)[starts]),
        documents_N=layout.spread(documents + 1) - 1,
        first_characters_D=first_D,
        styles_D=np.fromiter(map(_style, texts), np.int64, len(texts)),
        sentence_starts_N=layout.spread(opens),
    )


class _Layout:
    """Places of the tokens among the padding."""

    def __init__(self, documents: Ints, count: int, first_D: Ints) -> None:
        self._places = np.arange(len(documents)) + PADDING * (documents + 1)
        self._size = len(documents) + PADDING * (count + 1)
        before = np.searchsorted(documents, np.arange(count + 1))
        self._paddings = before + PADDING * np.arange(count + 1)
        self._first = first_D

    def spread(self, x: NDArray[Any]) -> NDArray[Any]:
        """Places values among the padding, which is 0."""
        table_N = np.zeros(self._size, x.dtype)
        table_N[self._places] = x
        return table_N

    def spread_places(self, x: Ints) -> Ints:
        """Places the padding where one document ends and the next one begins."""
        table_N = self.spread(x)
        table_N[self._paddings] = self._first
        return np.maximum.accumulate(table_N)


@lru_cache(maxsize=1)
def _kind_table() -> Ints:
    table = np.full(128, OTHER, np.int64)
    for kind, characters in enumerate(_KINDS, start=1):
        table[[ord(character) for character in characters]] = kind
    return table


def _kinds(characters_X: Ints) -> Ints:
    """Returns the kind of every character; letters beyond ASCII count as others."""
    return _kind_table()[np.minimum(characters_X, 127)]


def _gaps(starts: Ints, ends: Ints, documents: Ints, characters_X: Ints, first_D: Ints) -> Ints:
    """Returns the kind of white space before each token."""
    newlines = np.concatenate([np.zeros(1, np.int64), np.cumsum(characters_X == ord("\n"))])
    previous = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    previous = np.maximum(previous, first_D[documents])
    lines = newlines[starts] - newlines[previous]
    return np.where(starts > previous, 1 + np.minimum(lines, 2), 0)


def _states(characters_X: Ints, first_D: Ints) -> Ints:
    """Marks what encloses each character; an opening never closed lasts to the document's end."""
    following_X = np.concatenate([characters_X[1:], np.zeros(1, np.int64)])[: len(characters_X)]
    begins_X = np.zeros(len(characters_X), np.int64)
    inner = first_D[:-1][first_D[:-1] < len(characters_X)]
    begins_X[inner] = inner
    begins_X = np.maximum.accumulate(begins_X) if len(begins_X) else begins_X
    escape_X = characters_X == ord("\\")

    def inside(opening: Bools, closing: Bools) -> Bools:
        return _latest(opening) > np.maximum(_latest(closing), begins_X - 1)

    def pair(first: str, last: str) -> Bools:
        return inside(escape_X & (following_X == ord(first)), escape_X & (following_X == ord(last)))

    brackets_X = inside(characters_X == ord("("), characters_X == ord(")"))
    dollars_X = _odd(_formula_dollars(characters_X, following_X, escape_X, first_D), begins_X)
    stars_X = characters_X == ord("*")
    twice_X = stars_X & (following_X == ord("*"))
    return (
        INSIDE_ROUND * pair("(", ")")
        + INSIDE_SQUARE * pair("[", "]")
        + INSIDE_DOLLARS * dollars_X
        + INSIDE_BRACKETS * brackets_X
        + INSIDE_BOLD * _odd(twice_X, begins_X)
    )


def _latest(marks_X: Bools) -> Ints:
    """Returns the place of the latest mark up to each place, -1 before the first."""
    return np.maximum.accumulate(np.where(marks_X, np.arange(len(marks_X)), -1))


def _odd(marks_X: Bools, begins_X: Ints) -> Bools:
    """Tells whether an odd number of marks stands before each place in its document."""
    counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(marks_X)])
    return (counts[:-1] - counts[begins_X]) % 2 == 1


def _formula_dollars(
    characters_X: Ints, following_X: Ints, escape_X: Bools, first_D: Ints
) -> Bools:
    """Marks dollars that open or close a formula: a pair counts once, sums of money do not.

    In a document without any backslash a dollar before a digit is money.
    """
    dollars_X = characters_X == ord("$")
    escaped_X = np.concatenate([np.zeros(1, np.bool_), (escape_X | dollars_X)[:-1]])
    dollars_X = dollars_X & ~escaped_X[: len(dollars_X)]
    before_D = np.concatenate([np.zeros(1, np.int64), np.cumsum(escape_X)])[first_D]
    plain_X = np.repeat(np.diff(before_D) == 0, np.diff(first_D))
    digits_X = (following_X >= ord("0")) & (following_X <= ord("9"))
    return dollars_X & ~(plain_X & digits_X)


def _style(text: str) -> int:
    return sum((mark in text) << bit for bit, mark in enumerate(_STYLES))
