"""Texts and the characters of each token, for several kinds of tokenizers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from segcredit.policy.token_spans import PieceTable, place_spans, text_and_spans

_BYTES = sorted(ByteLevel.alphabet())


def _byte_level(extra: list[str]) -> Tokenizer:
    """One token a byte, and some of several bytes."""
    vocabulary = {piece: index for index, piece in enumerate([*_BYTES, *extra])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.token_to_id(letter) for piece, _ in pieces for letter in piece]


def _decode_characters(ids: list[int]) -> str:
    """0 and 1 are special; the others stand for one to three letters."""
    return "".join(chr(95 + token) * (1 + token % 3) for token in ids if token > 1)


@given(st.lists(st.lists(st.integers(0, 20), max_size=12), max_size=4))
def test_pieces_that_add_up_have_cumulative_spans(rows: list[list[int]]) -> None:
    texts, spans = text_and_spans(rows, _decode_characters)
    for row, text, found in zip(rows, texts, spans, strict=True):
        assert text == _decode_characters(row)
        assert "".join(text[first:last] for first, last in found) == text
        assert [last - first for first, last in found] == [
            len(_decode_characters([token])) for token in row
        ]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 255), max_size=16))
def test_arbitrary_bytes_keep_the_text_and_never_go_back(ids: list[int]) -> None:
    tokenizer = _byte_level([])
    (text,), (spans,) = text_and_spans([ids], tokenizer.decode)
    assert text == tokenizer.decode(ids)
    edges = [(0, 0), *spans, (len(text), len(text))]
    for (first, last), (next_first, next_last) in itertools.pairwise(edges):
        assert first <= next_first <= len(text)
        assert last <= next_last <= len(text)
    # No character is left to no token.
    assert {i for first, last in spans for i in range(first, last)} == set(range(len(text)))


@settings(deadline=None)
@given(st.text(alphabet="aé語😀 \n", max_size=8))
def test_tokens_of_one_character_share_its_span(text: str) -> None:
    tokenizer = _byte_level([])
    (found,), (spans,) = text_and_spans([_ids_of(tokenizer, text)], tokenizer.decode)
    assert found == text
    expected = [(i, i + 1) for i, letter in enumerate(text) for _ in letter.encode()]
    assert spans == expected


def test_a_token_that_completes_a_character_and_goes_on() -> None:
    first, second = ByteLevel(add_prefix_space=False).pre_tokenize_str("é")[0][0]
    tokenizer = _byte_level([f"a{first}", f"{second}bc"])
    ids = [tokenizer.token_to_id(f"a{first}"), tokenizer.token_to_id(f"{second}bc")]
    assert text_and_spans([ids], tokenizer.decode) == (("aébc",), [[(0, 2), (1, 4)]])


def test_decoders_that_treat_the_first_token_otherwise() -> None:
    pieces = {"▁the": 0, "▁cat": 1, "s": 2, "▁": 3}
    tokenizer = Tokenizer(models.WordLevel(pieces))
    tokenizer.decoder = decoders.Metaspace()
    calls: list[int] = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return tokenizer.decode(ids)

    table = PieceTable(decode)
    expected = [[(0, 3), (3, 7), (7, 8)], [(0, 0), (0, 4), (4, 5)]]
    assert table.text_and_spans([[0, 1, 2], [3, 1, 3]]) == (("the cats", " cat "), expected)
    calls.clear()
    table.text_and_spans([[0, 1, 2] * 10])
    assert calls == [30], "pieces in the cache leave one decode a row"


def test_empty_rows_and_special_tokens() -> None:
    assert text_and_spans([[], [0, 5, 1, 5]], _decode_characters) == (
        ("", "dddddd"),
        [[], [(0, 0), (0, 3), (3, 3), (3, 6)]],
    )
    assert text_and_spans([], _decode_characters) == ((), [])


def test_spans_are_placed_at_masked_columns() -> None:
    mask_BT = torch.tensor([[True, False, True, False], [False, False, False, False]])
    placed = place_spans([[(0, 2), (2, 3)], []], mask_BT)
    assert placed.tolist() == [[[0, 2], [2, 2], [2, 3], [3, 3]], [[0, 0]] * 4]
    assert place_spans([], torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3, 2)


@pytest.mark.parametrize("junk", ["\ufffd", "a\ufffdb"])
def test_replacement_characters_of_the_text_itself(junk: str) -> None:
    (text,), (spans,) = text_and_spans([list(map(ord, junk))], lambda ids: "".join(map(chr, ids)))
    assert text == junk
    assert spans == [(i, i + 1) for i in range(len(junk))]


Decode = Callable[[list[int]], str]


def _slow_spans(ids: list[int], decode: Decode) -> list[tuple[int, int]]:
    """Slow oracle: pieces where they are the text, and every prefix where they are not."""
    spans: list[tuple[int, int]] = []
    text, settled, end = decode(ids), 0, 0
    for count in range(1, len(ids) + 1):
        prefix, start = decode(ids[:count]), settled
        while settled < min(len(prefix), len(text)) and prefix[settled] == text[settled]:
            settled += 1
        inside = prefix.endswith("\ufffd") and len(prefix) > settled
        end = max(end, min(settled + inside, len(text)))
        spans.append((start, end))
    return spans


def _words(pieces: list[str], decoder: decoders.Decoder) -> tuple[Decode, int]:
    """A decoder over words of a vocabulary, the last two of which are special."""
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer.decode, tokenizer.get_vocab_size()


_SENTENCE_PIECE = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
_RAW = ["", " ", "a", " b", "  ", "c ", "\n", ".", " .", "\ufffd", " do", " not", "n't"]
_TIDY = ((" .", "."), (" do not", " don't"), (" n't", "n't"))


def _join(ids: list[int]) -> str:
    return "".join(_RAW[token] for token in ids)


def _tidy(ids: list[int]) -> str:
    text = _join(ids)
    for written, tidied in _TIDY:
        text = text.replace(written, tidied)
    return text.strip()


_LETTERS = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("语é😀€语")[0][0]
_PARTS = [_LETTERS[start : start + 3] for start in range(10)]
"""Tokens that end one character and begin another."""
DECODERS: dict[str, tuple[Decode, int]] = {
    "bytes": _words([*_BYTES, *_PARTS], decoders.ByteLevel()),
    "sentence_piece": _words(
        ["▁", "▁the", "s", "语", *(f"<0x{byte:02X}>" for byte in range(256))], _SENTENCE_PIECE
    ),
    "metaspace": _words(["▁", "▁the", "cat", "▁▁", "é", "\ufffd"], decoders.Metaspace()),
    "word_piece": _words(
        ["the", "##s", "cat", "do", "not", "n", "'", "t", ".", "'s", "##\ufffd"],
        decoders.WordPiece(cleanup=True),
    ),
    "end_of_word": _words(["a", "b</w>", "c", ".</w>", "é</w>"], decoders.BPEDecoder()),
    "strips": (lambda ids: _join(ids).strip(), len(_RAW)),
    "strips_the_front": (lambda ids: _join(ids).lstrip(), len(_RAW)),
    "one_blank": (lambda ids: " ".join(_join(ids).split(" ")), len(_RAW)),
    "tidies": (_tidy, len(_RAW)),
}


def _rows(size: int) -> st.SearchStrategy[list[int]]:
    """Rows of any ids, and rows in which few ids come again and again."""
    token = st.integers(0, size - 1)
    babble = st.tuples(st.lists(token, min_size=1, max_size=4), st.integers(1, 20), token)
    return st.lists(token, max_size=60) | babble.map(lambda row: row[0] * row[1] + [row[2]])


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_windows_find_what_whole_prefixes_find(name: str, data: st.DataObject) -> None:
    decode, size = DECODERS[name]
    row = data.draw(_rows(size))
    (text,), (spans,) = text_and_spans([row], decode)
    assert text == decode(row)
    pieces = [decode([token]) for token in row]
    if "".join(pieces) != text:
        assert spans == _slow_spans(row, decode)


def _written(kind: str, text: str) -> list[int]:
    if kind == "bytes":
        return _ids_of(_byte_level([]), text)
    return [4 + byte for byte in text.encode()]


@pytest.mark.parametrize("kind", ["bytes", "sentence_piece"])
@pytest.mark.parametrize("text", ["x = 12. " * 500 + "👍" + " y = 3." * 500, "语😀é" * 300])
def test_split_characters_in_long_rows_have_each_the_span_of_its_own(kind: str, text: str) -> None:
    decode, _ = DECODERS[kind]
    (found,), (spans,) = text_and_spans([_written(kind, text)], decode)
    assert found == text
    assert spans == [(i, i + 1) for i, letter in enumerate(text) for _ in letter.encode()]


_SPECIAL = len(_BYTES) + len(_PARTS)
LONG: dict[str, Callable[[int], list[int]]] = {
    "one character": lambda n: _written("bytes", "a" * (n - 4) + "👍"),
    "nothing else": lambda n: _written("bytes", "👍" * (n // 4)),
    "never complete": lambda n: _written("bytes", "👍")[:1] * n + _written("bytes", "👍"),
    "never whole": lambda n: _written("bytes", "语" * n)[1 : n + 1],
    "special tokens": lambda n: (
        _written("bytes", "👍") * (n // 8) + [len(_BYTES) + len(_PARTS)] * (n // 2)
    ),
}


@pytest.mark.parametrize("make", LONG.values(), ids=LONG)
def test_the_ids_decoded_grow_with_the_row(make: Callable[[int], list[int]]) -> None:
    decode, _ = DECODERS["bytes"]

    def work(length: int) -> int:
        decoded: list[int] = []

        def counted(ids: list[int]) -> str:
            decoded.append(len(ids))
            return decode(ids)

        text_and_spans([make(length)], counted)
        return sum(decoded)

    assert work(2000) < 4.5 * work(500)
