"""Character offsets and token positions: which characters of a text each token stands for.

Generated text is never tokenized again: its tokens may differ from the sampled ones. Spans come
from decoding the sampled ids: by pieces where these go on with the text, and where they do not, as
around a character whose bytes are several tokens, by growing windows of a few tokens.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Span = tuple[int, int]
REPLACEMENT = "\ufffd"
"""The character that a decoder writes for the bytes of an incomplete one."""
_CONTEXT = 4
"""Visible characters before a window; a decoder may treat the first ones otherwise."""
_WINDOW = 32
"""Tokens after which a window is to begin later."""
_RUN = 256
"""Tokens that are compared with the text at once."""
_ALIKE = 4
"""Tokens at whose ends a later beginning must make no difference."""


class PieceTable:
    """Texts of token ids and the characters of each token, with a cache of each id's piece.

    Cost: one decode a row, and two more for each id that was never seen. Where pieces do not add
    up to the text (characters cut in the middle by byte-level tokens, decoders that tidy up
    blanks), each of their tokens takes one or two decodes of some ten tokens more: linear in the
    row. Only a decoder in which distant tokens change each other takes a decode for every prefix.

    Args:
        decode: Text of a row of ids; ids without characters (special tokens) add nothing to it.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
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
        texts = tuple(self.decode(list(row)) for row in rows)
        return texts, [self._spans(list(row), text) for row, text in zip(rows, texts, strict=True)]

    def _spans(self, ids: list[int], text: str) -> list[Span]:
        pieces = self._following(ids)
        if "".join(pieces) == text:
            return _cumulative(pieces)
        # Special tokens are not decoded: without them, the parts of a character stand together.
        shown = [place for place, token in enumerate(ids) if any(self.piece(token))]
        bare = [ids[place] for place in shown]
        if len(bare) == len(ids) or self.decode(bare) != text:
            return self._read(ids, pieces, text)
        found = self._read(bare, self._following(bare), text)
        return _between(dict(zip(shown, found, strict=True)), len(ids), len(text))

    def _read(self, ids: list[int], pieces: Sequence[str], text: str) -> list[Span]:
        """Finds spans by windows; by whole prefixes where those do not lead to the text."""
        found = _Reader(ids, text, self.decode).by_windows(pieces)
        return found or _Reader(ids, text, self.decode).by_prefixes()

    def _following(self, ids: list[int]) -> list[str]:
        """Returns the characters that each token has where it stands, but for its neighbours."""
        pieces: list[str] = []
        first = True
        for token in ids:
            alone, following = self.piece(token)
            pieces.append(alone if first else following)
            # A special token has no characters, so that the one after it is still the first.
            first = first and not following
        return pieces

    def piece(self, token: int) -> tuple[str, str]:
        """Returns an id's characters at the front of a text, and those after another token.

        They differ where decoders strip the first blank (SentencePiece) or put one between words
        (WordPiece); doubling the id shows the latter, as what it adds to the text.
        """
        if token not in self._pieces:
            alone, doubled = self.decode([token]), self.decode([token, token])
            # A byte of a character may decode otherwise beside another one. The pieces are then
            # not the text, and ``_spans`` sees that.
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


def _cumulative(pieces: Sequence[str], end: int = 0) -> list[Span]:
    spans: list[Span] = []
    for piece in pieces:
        spans.append((end, end + len(piece)))
        end += len(piece)
    return spans


def _between(found: Mapping[int, Span], count: int, length: int) -> list[Span]:
    """Returns spans of a row some of whose tokens have none yet: these have no characters.

    One inside a character that is several tokens has it in its span, as they have.
    """
    starts = (found.get(place, (length, 0))[0] for place in reversed(range(count)))
    ends = (found.get(place, (0, 0))[1] for place in range(count))
    nearest = reversed([*itertools.accumulate(starts, min)])
    return list(zip(nearest, itertools.accumulate(ends, max), strict=True))


class _Reader:
    """Reads a row of ids from left to right: a token has the characters that it settles.

    A character is settled once the decoded prefix agrees with the text up to it. A token whose
    prefix ends inside a character has that character in its span, as have the tokens that
    complete it.
    """

    def __init__(self, ids: list[int], text: str, decode: Callable[[list[int]], str]) -> None:
        self._ids, self._text, self._decode = ids, text, decode
        self._spans: list[Span] = []
        self._settled = self._end = 0

    def by_prefixes(self) -> list[Span]:
        """Decodes every prefix, from the first token: right for any decoder, and quadratic."""
        self._grow(0, bounded=False)
        return self._spans

    def by_windows(self, pieces: Sequence[str]) -> list[Span] | None:
        """Goes by pieces while the text goes on with them, and by windows until it does again.

        Returns:
            None where the row does not end where the text does: what was decoded apart does not
            belong together.
        """
        # Special tokens are not among them: what is empty here is a blank that may yet be shown.
        broken = [n for n, piece in enumerate(pieces) if not piece or REPLACEMENT in piece]
        # Tokens before which the text is what those before them decode to.
        clean = [0]
        while (place := len(self._spans)) < len(self._ids):
            ahead = bisect_left(broken, place)
            stop = min([place + _RUN, len(pieces), *broken[ahead : ahead + 1]])
            run = self._matching(pieces[place:stop])
            if run:
                self._spans += _cumulative(run, self._settled)
                self._settled = self._end = self._spans[-1][1]
            else:
                self._grow(self._context(clean), bounded=True)
            clean += range(place + 1 if run else len(self._spans), len(self._spans) + 1)
        return self._spans if self._settled == len(self._text) else None

    def _matching(self, pieces: Sequence[str]) -> Sequence[str]:
        """Returns the pieces, from the first on, with which the text goes on."""
        if self._text.startswith("".join(pieces), self._settled):
            return pieces
        ends = itertools.accumulate(map(len, pieces), initial=self._settled)
        return [
            piece
            for piece, _ in itertools.takewhile(
                lambda pair: self._text.startswith(*pair), zip(pieces, ends, strict=False)
            )
        ]

    def _take(self, settled: int, *, inside: bool = False) -> None:
        """Gives the next token its span."""
        self._end = max(self._end, min(settled + inside, len(self._text)))
        self._spans.append((self._settled, self._end))
        self._settled = settled

    def _context(self, clean: Sequence[int]) -> int:
        """Returns a token to decode from: some visible characters keep it from being the first."""
        for token in itertools.islice(reversed(clean), 1, None):
            if len(self._text[self._spans[token][0] : self._settled].strip()) >= _CONTEXT:
                return token
        return 0

    def _grow(self, first: int, *, bounded: bool) -> None:
        """Decodes from a token on, one more each time, until that is the text once more."""
        known = self._ids[first : len(self._spans)]
        shift, limit = self._settled - len(self._decode(known)), first + _WINDOW
        while (count := len(self._spans)) < len(self._ids):
            window = self._decode(self._ids[first : count + 1])
            length, broken = shift + len(window), window.endswith(REPLACEMENT)
            settled = max(self._settled, self._agreement(window, shift))
            self._take(settled, inside=broken and length > settled)
            if bounded and self._end == settled == length and not broken:
                return
            if bounded and count >= limit:
                later, lost = self._shortened(first, count, self._settled - shift)
                limit = later + _WINDOW if lost is not None else count + (count - first)
                first, shift = later, shift + (lost or 0)

    def _agreement(self, window: str, shift: int) -> int:
        """Counts the characters that the text and a shifted window have in common."""
        most = min(shift + len(window), len(self._text))
        place = self._settled
        while place < most and window[place - shift] == self._text[place]:
            place += 1
        return min(place, most)

    def _shortened(self, first: int, count: int, most: int) -> tuple[int, int | None]:
        """Returns a later beginning of a window, and how many characters it loses by it.

        A window may begin inside a character, whose bytes are then replaced, each by itself; from
        the next character on it is as the longer one. It has to be so for the last few tokens.
        """
        ends = range(count - _ALIKE, count + 1)
        whole = [self._decode(self._ids[first:end]) for end in ends]
        for later in range(count - 2 * _ALIKE - 3, count - 2 * _ALIKE + 1):
            parts = [self._decode(self._ids[later:end]) for end in ends]
            lost = len(whole[0]) - len(parts[0])
            tails = [part.lstrip(REPLACEMENT) for part in parts]
            if lost <= most and all(
                len(one) == lost + len(part) and one.endswith(tail)
                for one, part, tail in zip(whole, parts, tails, strict=True)
            ):
                return later, lost
        return first, None
