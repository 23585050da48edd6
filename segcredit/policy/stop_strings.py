"""Stop strings over token ids: the first token of a row that completes one of them.

Whether a token ends a row depends on it and on those before it alone, never on what follows. So
the tokens up to a stop have the distribution that they have without stop strings, and what a prefix
is continued to stops where a whole completion does. Hence a row is not searched at once: a later
token may change the text of earlier ones, as where it makes bytes no character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segcredit.policy.token_spans import REPLACEMENT, PieceTable

_CONTEXT = 4
"""Characters that are decoded before a stop string; a decoder may treat the first ones apart."""
_OTHERS = 0.75
"""Share of the replacement characters that may stand for the other bytes of one character."""


@dataclass(frozen=True, slots=True, eq=False)
class StopStrings:
    """Stop strings of a batch of rows, each of which may go on from tokens before it.

    Cost: most tokens are looked up alone; a row's tail is decoded where a token has the last
    character of a stop string, and the whole row where the tail has all of it.
    """

    strings: tuple[str, ...]
    table: PieceTable
    before: Sequence[Sequence[int]] = ()
    """Tokens in front of each row that are of the same text; empty where no row has any."""
    _known: dict[int, bool] = field(default_factory=dict[int, bool], init=False)
    """Tokens that were looked at, and whether they may end a row."""

    def __call__(self, ids_BT: Int[Tensor, "B T"], rows_N: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Tells of some rows whether their last token completes a stop string, as none before."""
        last_B, rows = _integers(ids_BT[:, -1]), _integers(rows_N)
        found = [self._may_end(last_B[row]) and self._completed(ids_BT, row) for row in rows]
        return torch.tensor(found, dtype=torch.bool, device=ids_BT.device)

    def ends(self, ids_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Marks in each row the first token that completes a stop string."""
        ends_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, ids in enumerate(_integers(ids_BT)):
            before = self._before(row)
            place = self.first([*before, *ids], len(before))
            if place is not None:
                ends_BT[row, place - len(before)] = True
        return ends_BT

    def first(self, ids: Sequence[int], start: int = 0) -> int | None:
        """Finds the first token, from ``start`` on, that completes a stop string; None if none."""
        places = (place for place in range(start, len(ids)) if self._may_end(ids[place]))
        return next((place for place in places if self._completes(ids[: place + 1])), None)

    def _before(self, row: int) -> Sequence[int]:
        return self.before[row] if self.before else ()

    def _completed(self, ids_BT: Tensor, row: int) -> bool:
        return self._completes([*self._before(row), *_integers(ids_BT[row])])

    def _completes(self, ids: Sequence[int]) -> bool:
        """Tells whether a text has a stop string; one that its last token may have completed."""
        # What the tail alone says is wrong where bytes before it made it no character.
        return self._within(self._tail(ids)) and self._within(ids)

    def _within(self, ids: Sequence[int]) -> bool:
        text = self.table.decode(list(ids))
        return any(string in text for string in self.strings)

    def _may_end(self, token: int) -> bool:
        """Tells whether a token may show the last character of a stop string."""
        if token not in self._known:
            piece = "".join(self.table.piece(token))
            lasts = "".join(string[-1] for string in self.strings)
            # Some decoders show a blank, and all a character of several tokens, later than where
            # it stands: neither is then in the piece of the token that shows it.
            late = " " in lasts or (REPLACEMENT in piece and not lasts.isascii())
            self._known[token] = late or any(last in piece for last in lasts)
        return self._known[token]

    def _tail(self, ids: Sequence[int]) -> Sequence[int]:
        """Returns the last tokens, from a whole one on, with more characters than a stop string."""
        left = max(map(len, self.strings)) + _CONTEXT
        for place in range(len(ids) - 1, 0, -1):
            _, piece = self.table.piece(ids[place])
            if left <= 0 and piece and REPLACEMENT not in piece:
                return ids[place:]
            left -= len(piece) - _OTHERS * piece.count(REPLACEMENT)
        return ids


def _integers(x: Tensor) -> list[Any]:
    return x.cpu().numpy().tolist()
