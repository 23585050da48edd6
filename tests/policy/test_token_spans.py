"""Texts and the characters of each token, for several kinds of tokenizers."""

from __future__ import annotations

import itertools

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
