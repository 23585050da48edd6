"""Character offsets and token positions: which characters of a text each token stands for.

Generated text is never tokenized again: its tokens may differ from the sampled ones. Spans come
from decoding the sampled ids, by pieces where the pieces add up and by growing prefixes otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Span = tuple[int, int]
_REPLACEMENT = "\ufffd"
"""The character that a decoder writes for the bytes of an incomplete one."""


class PieceTable:
    """Texts of token ids and the characters of each token, with a cache of each id's piece.

    Cost: one decode a row, and two more for each id that was never seen. Rows whose pieces do not
    add up to the text (characters cut in the middle by byte-level tokens, decoders that tidy up
    blanks) take a decode for every prefix, which is quadratic in the row: about 7 ms for 300
    tokens, against 0.1 ms.

    Args:
        decode: Text of a row of ids; ids without characters (special tokens) add nothing to it.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._pieces: dict[int, tuple[str, str]] = {}

    def text_and_spans(
        self, rows: Sequence[Sequence[int]]
    ) -> tuple[tuple[str, ...], list[list[Span]]]:
        """Decodes rows of token ids, and finds the characters that each token stands for.

        Returns:
            Texts equal to ``decode(row)``; and a span for each token, its first character and the
            one after its last. Tokens without characters are zero-width, at the place where they
            stand. Tokens that share a character each have it in their span. Neither starts nor
            ends ever decrease.
        """
        texts: list[str] = []
        spans: list[list[Span]] = []
        for row in rows:
            ids = list(row)
            text = self._decode(ids)
            texts.append(text)
            # [] of a row without tokens is [] either way.
            spans.append(self._by_pieces(ids, text) or _by_prefixes(ids, text, self._decode))
        return tuple(texts), spans

    def _by_pieces(self, ids: list[int], text: str) -> list[Span] | None:
        """Returns spans by cumulative lengths of the pieces; None where they are not the text."""
        pieces: list[str] = []
        first = True
        for token in ids:
            alone, following = self._piece(token)
            pieces.append(alone if first else following)
            # A special token has no characters, so that the one after it is still the first.
            first = first and not following
        return _cumulative(pieces) if "".join(pieces) == text else None

    def _piece(self, token: int) -> tuple[str, str]:
        """Returns an id's characters at the front of a text, and those after another token.

        They differ where decoders strip the first blank (SentencePiece) or put one between words
        (WordPiece); doubling the id shows the latter, as what it adds to the text.
        """
        if token not in self._pieces:
            alone, doubled = self._decode([token]), self._decode([token, token])
            # A byte of a character may decode otherwise beside another one. The pieces are then
            # not the text, and ``_by_pieces`` says so.
            follows = doubled.startswith(alone)
            self._pieces[token] = (alone, doubled[len(alone) :] if follows else alone)
        return self._pieces[token]


def text_and_spans(
    rows: Sequence[Sequence[int]], decode: Callable[[list[int]], str]
) -> tuple[tuple[str, ...], list[list[Span]]]:
    """Decodes rows of token ids as ``PieceTable.text_and_spans`` does, with a table of its own."""
    return PieceTable(decode).text_and_spans(rows)


def place_spans(
    spans: Sequence[Sequence[Span]], mask_BT: Bool[Tensor, "B T"]
) -> Int[Tensor, "B T 2"]:
    """Puts spans at the columns of their tokens; columns outside the mask are zero-width.

    Args:
        spans: A list a row, one span for each True of that row's mask, in order.
        mask_BT: The tokens that the text was decoded from.

    Returns:
        (B,T,2) on the mask's device. A token outside the mask stands where the masked token
        before it ends, and at 0 where none is before it.
    """
    placed: list[list[Span]] = []
    mask = cast(list[list[bool]], mask_BT.tolist())  # pyright: ignore[reportUnknownMemberType]
    for row, keep in zip(spans, mask, strict=True):
        left, end = iter(row), 0
        columns: list[Span] = []
        for kept in keep:
            span = next(left) if kept else (end, end)
            columns.append(span)
            end = span[1]
        placed.append(columns)
    return torch.tensor(placed, dtype=torch.long, device=mask_BT.device).view(*mask_BT.shape, 2)


def _cumulative(pieces: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    end = 0
    for piece in pieces:
        spans.append((end, end + len(piece)))
        end += len(piece)
    return spans


def _by_prefixes(ids: list[int], text: str, decode: Callable[[list[int]], str]) -> list[Span]:
    """Finds spans by decoding every prefix: a token has the characters that it settles.

    A character is settled once the decoded prefix agrees with the text up to it. A token whose
    prefix ends inside a character has that character in its span, as have the tokens that
    complete it.
    """
    spans: list[Span] = []
    settled = end = 0
    for count in range(1, len(ids) + 1):
        start = settled
        prefix = decode(ids[:count]) if count < len(ids) else text
        settled = max(settled, _agreement(prefix, text, settled))
        inside = prefix.endswith(_REPLACEMENT) and len(prefix) > settled
        end = max(end, min(settled + inside, len(text)))
        spans.append((start, end))
    return spans


def _agreement(prefix: str, text: str, known: int) -> int:
    """Counts the characters that both begin with, of which ``known`` are known to agree."""
    for place in range(known, min(len(prefix), len(text))):
        if prefix[place] != text[place]:
            return place
    return min(len(prefix), len(text))
