"""Segmentation: which segment each action token belongs to, and the algebra on top of it.

Shape suffixes in this package: ``B`` completions, ``T`` completion tokens, ``S`` segments
(the widest row's count), ``K`` boundaries given as characters.

Everything is vectorised over the batch. The width S is read once, when a segmentation is built;
no later call makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from segcredit.errors import ShapeError
from segcredit.showable import Showable

Reduction = Literal["sum", "mean", "first", "last", "max"]
Anchor = Literal["start", "last_token"]


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation(Showable):
    """A cut of every completion's action tokens into consecutive segments.

    Args:
        segment_ids: (B,T) long. Along the action tokens of a row the ids begin at 0 and grow by
            0 or 1; -1 exactly where a token is no action (padding, tool or environment tokens).

    Raises:
        ShapeError: the ids have a gap, decrease, or do not begin at 0; names row and token.

    A segment may continue across a hole in the action mask. A row without action tokens has no
    segments.
    """

    segment_ids: Int[Tensor, "B T"]
    counts: Int[Tensor, "B"] = field(init=False)
    """(B,) long: the number of segments of each row, 0 for a row without action tokens."""
    starts: Bool[Tensor, "B T"] = field(init=False)
    """(B,T) True on the first action token of each segment."""
    width: int = field(init=False)
    """S, at least 1: the largest of ``counts`` when it was built; ``select`` keeps it."""

    def __post_init__(self) -> None:
        if self.segment_ids.ndim != 2:
            raise ShapeError(
                f"segment_ids has shape {tuple(self.segment_ids.shape)}; expected (B,T), a row for"
                " each completion."
            )
        ids_BT = self.segment_ids.long()
        carried_BT = _running_max(ids_BT)
        growth_BT = ids_BT - _shift_right(carried_BT, fill=-1)
        action_BT = ids_BT >= 0
        wrong_BT = action_BT & (growth_BT != 0) & (growth_BT != 1) | (ids_BT < -1)
        counts_B = carried_BT[:, -1] + 1 if ids_BT.shape[1] else ids_BT.new_zeros(len(ids_BT))
        width, faults = _read(counts_B.max() if len(counts_B) else counts_B.sum(), wrong_BT.sum())
        if faults:
            raise ShapeError(_describe_fault(ids_BT, wrong_BT, carried_BT))
        self._fill(ids_BT, counts_B, action_BT & (growth_BT == 1), width)

    def require_covers(self, action_mask: Bool[Tensor, "B T"]) -> None:
        """Raises a ShapeError where the segments are not those of exactly these action tokens."""
        if torch.equal(self.action_mask, action_mask):
            return
        found = tuple(self.segment_ids.shape)
        if found != tuple(action_mask.shape):
            raise ShapeError(
                f"the segments are of a batch of shape {found}; expected"
                f" {tuple(action_mask.shape)}, a row for each completion and a column for each"
                " token. Build them from rollouts.action_mask."
            )
        row = int((self.action_mask != action_mask).any(1).nonzero()[0])
        raise ShapeError(
            f"the segments do not cover exactly the action tokens of completion {row}: padding and"
            " holes must have segment -1 and every action token a segment. Pass"
            " rollouts.action_mask to Segmentation.from_starts."
        )

    @classmethod
    def from_starts(
        cls, starts: Shaped[Tensor, "B T"], action_mask: Shaped[Tensor, "B T"]
    ) -> Segmentation:
        """Cuts before every token that ``starts`` marks.

        Args:
            starts: (B,T) any dtype, non-zero where a segment begins. The first action token of a
                row begins a segment whether marked or not; a mark in a hole takes effect at the
                next action token; a mark in padding has none.
            action_mask: (B,T) any dtype, non-zero on action tokens; may have holes.
        """
        _require_same_shape("starts", starts, action_mask)
        return cls._from_ranks(starts.bool().cumsum(1), action_mask.bool())

    @classmethod
    def from_ends(
        cls, ends: Shaped[Tensor, "B T"], action_mask: Shaped[Tensor, "B T"]
    ) -> Segmentation:
        """Cuts after every token that ``ends`` marks; the last action token ends one regardless.

        Args:
            ends: (B,T) any dtype, non-zero where a segment ends.
            action_mask: (B,T) any dtype, non-zero on action tokens; may have holes.
        """
        _require_same_shape("ends", ends, action_mask)
        return cls.from_starts(_shift_right(ends.bool(), fill=False), action_mask)

    @classmethod
    def from_char_starts(
        cls,
        offsets: Sequence[Sequence[int]],
        token_spans: Int[Tensor, "B T 2"],
        action_mask: Shaped[Tensor, "B T"],
    ) -> Segmentation:
        """Cuts where characters say so: a token belongs to the segment of its first character.

        Args:
            offsets: for each row the ascending character offsets at which segments begin; 0 may
                be left out. An offset equal to the text's length cuts before a token without
                characters, such as an end token.
            token_spans: (B,T,2) first character of each token and the one after its last.
            action_mask: (B,T) any dtype, non-zero on action tokens; may have holes.
        """
        if len(offsets) != len(action_mask):
            raise ShapeError(
                f"offsets has {len(offsets)} rows but action_mask has {len(action_mask)}; expected"
                " one list of character offsets for each completion."
            )
        beyond = torch.iinfo(torch.long).max
        longest = max((len(row) for row in offsets), default=0)
        padded = [[*row, *[beyond] * (longest - len(row))] for row in offsets]
        offsets_BK = torch.tensor(padded, dtype=torch.long, device=token_spans.device)
        first_BT = token_spans[..., 0].contiguous()
        ranks_BT = torch.searchsorted(offsets_BK.view(len(offsets), longest), first_BT, right=True)
        return cls._from_ranks(ranks_BT, action_mask.bool())

    @classmethod
    def _from_ranks(
        cls, ranks_BT: Int[Tensor, "B T"], action_BT: Bool[Tensor, "B T"]
    ) -> Segmentation:
        """Cuts wherever the rank grows from one action token to the next."""
        seen_BT = _running_max(ranks_BT.masked_fill(~action_BT, -1))
        begins_BT = action_BT & (ranks_BT > _shift_right(seen_BT, fill=-1))
        ids_BT = (begins_BT.cumsum(1) - 1).masked_fill_(~action_BT, -1)
        counts_B = begins_BT.sum(1)
        (width,) = _read(counts_B.max() if len(counts_B) else counts_B.sum())
        return cls._trusted(ids_BT, counts_B, begins_BT, width)

    @classmethod
    def _trusted(
        cls, ids_BT: Tensor, counts_B: Tensor, starts_BT: Tensor, width: int
    ) -> Segmentation:
        """Builds without the checks: ids that were counted up cannot break the rule."""
        made = object.__new__(cls)
        made._fill(ids_BT, counts_B, starts_BT, width)
        return made

    def _fill(self, ids_BT: Tensor, counts_B: Tensor, starts_BT: Tensor, width: int) -> None:
        object.__setattr__(self, "segment_ids", ids_BT)
        object.__setattr__(self, "counts", counts_B)
        object.__setattr__(self, "starts", starts_BT)
        object.__setattr__(self, "width", max(width, 1))

    @property
    def action_mask(self) -> Bool[Tensor, "B T"]:
        """(B,T) True on the tokens that belong to a segment."""
        return self.segment_ids >= 0

    @property
    def mask(self) -> Bool[Tensor, "B S"]:
        """(B,S) True where a row has a segment."""
        return torch.arange(self.width, device=self.counts.device) < self.counts[:, None]

    @property
    def lengths(self) -> Int[Tensor, "B S"]:
        """(B,S) long: action tokens of each segment, 0 where there is none."""
        return self._sum(self.action_mask.long())

    @property
    def ends(self) -> Bool[Tensor, "B T"]:
        """(B,T) True on the last action token of each segment."""
        if not self.segment_ids.numel():
            return self.starts
        ends_BT = torch.zeros_like(self.segment_ids)
        ends_BT = ends_BT.scatter_add(1, self.anchors("last_token"), self.mask.long())
        return ends_BT > 0

    def anchors(self, how: Anchor = "start") -> Int[Tensor, "B S"]:
        """Returns (B,S) long: the token position before which each segment's value is taken.

        ``start``: the segment's first action token, so that the state is the prefix before the
        segment (SAPO, arXiv 2605.01327, section 4.1). ``last_token``: its last one, so that the
        state is the prefix before that token (SAPO's released code). 0 where there is no segment.
        """
        positions_BT = torch.arange(self.segment_ids.shape[1], device=self.counts.device)
        positions_BT = positions_BT.expand_as(self.segment_ids)
        if how == "start":
            return self._sum(positions_BT * self.starts)
        if how == "last_token":
            blank_BS = self.counts.new_zeros(len(self.counts), self.width + 1)
            lasts_BS = blank_BS.scatter_reduce(1, self._slots(), positions_BT, "amax")
            return lasts_BS[:, :-1]
        raise ShapeError(f"anchor {how!r} does not exist; expected 'start' or 'last_token'.")

    def reduce(self, x: Shaped[Tensor, "B T"], how: Reduction = "sum") -> Shaped[Tensor, "B S"]:
        """Reduces token values to one a segment; differentiable, and blind to masked tokens.

        Args:
            x: (B,T) of any dtype; what stands on masked tokens, NaN included, is not read.
            how: ``sum``, ``mean`` (integers become floats), ``first``, ``last`` or ``max``.

        Returns:
            (B,S), 0 where a row has no such segment.
        """
        _require_same_shape("x", x, self.segment_ids)
        if how == "sum":
            return self._sum(x)
        if how == "mean":
            total_BS = self._sum(x if x.is_floating_point() else x.to(torch.get_default_dtype()))
            return total_BS / self.lengths.clamp(min=1).to(total_BS.dtype)
        if how in ("first", "last"):
            anchors_BS = self.anchors("start" if how == "first" else "last_token")
            return _pick(x, anchors_BS).masked_fill(~self.mask, 0)
        if how == "max":
            blank_BS = x.new_zeros(len(x), self.width + 1)
            # The gradient of a largest value compares all of them: NaN in the spare column spreads.
            x_BT = x.masked_fill(self.segment_ids < 0, 0)
            largest_BS = blank_BS.scatter_reduce(1, self._slots(), x_BT, "amax", include_self=False)
            return largest_BS[:, :-1].masked_fill(~self.mask, 0)
        raise ShapeError(
            f"reduction {how!r} does not exist; expected sum, mean, first, last or max."
        )

    def spread(self, x: Shaped[Tensor, "B S"]) -> Shaped[Tensor, "B T"]:
        """Gives every action token its segment's value; 0 elsewhere. Differentiable.

        Args:
            x: (B,S), one value a segment.
        """
        if tuple(x.shape) != (len(self.counts), self.width):
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; expected {(len(self.counts), self.width)}, one"
                " value for each segment of this segmentation."
            )
        return _pick(x, self.segment_ids.clamp(min=0)).masked_fill(self.segment_ids < 0, 0)

    def cut_before(self, starts: Shaped[Tensor, "B T"]) -> Segmentation:
        """Cuts before the marked tokens as well, as an environment's turns do.

        Args:
            starts: (B,T) any dtype, non-zero where a segment is to begin. A mark in a hole takes
                effect at the next action token.
        """
        return Segmentation.from_starts(self.starts | starts.bool(), self.action_mask)

    def select(self, rows: Shaped[Tensor, "N"] | Sequence[int]) -> Segmentation:
        """Returns the given rows, in the order given; both axes keep their widths."""
        index = _as_index(rows, self.segment_ids)
        return self._trusted(
            self.segment_ids[index], self.counts[index], self.starts[index], self.width
        )

    def _slots(self) -> Int[Tensor, "B T"]:
        """Returns each token's column in a (B,S+1) table whose last one collects the masked."""
        return torch.where(self.segment_ids < 0, self.width, self.segment_ids)

    def _sum(self, x_BT: Shaped[Tensor, "B T"]) -> Shaped[Tensor, "B S"]:
        """Sums within segments; half precisions are accumulated in float32."""
        half = x_BT.dtype in (torch.float16, torch.bfloat16)
        wide_BT = x_BT.float() if half else x_BT.long() if x_BT.dtype == torch.bool else x_BT
        table_BS = wide_BT.new_zeros(len(wide_BT), self.width + 1)
        total_BS = table_BS.scatter_add(1, self._slots(), wide_BT)[:, :-1]
        return total_BS.to(x_BT.dtype) if half else total_BS


def top_fraction(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], fraction: float
) -> Bool[Tensor, "B T"]:
    """Marks the largest values of each row: max(ceil(fraction n), 1) of its n unmasked tokens.

    Args:
        x: (B,T) what to rank; masked tokens are not read.
        mask: (B,T) tokens that take part.
        fraction: in [0,1].

    Returns:
        (B,T) True on the selected tokens. Of equal values the earlier token is taken first, so
        that the number selected is always exact. A row without unmasked tokens has none.

    Source:
        The selection of SAPO (arXiv 2605.01327, section 4.2); the rule for ties is ours.
    """
    if not 0 <= fraction <= 1:
        raise ShapeError(f"fraction is {fraction}; expected a share between 0 and 1, such as 0.3.")
    if not x.numel():
        return torch.zeros_like(mask)
    counts_B = mask.sum(1)
    # Rounding to nine digits first: 0.07 * 100 is 7.000000000000001 in binary.
    wanted_B = (counts_B.double() * fraction).mul(1e9).round().div(1e9).ceil().long()
    wanted_B = torch.minimum(wanted_B.clamp(min=1), counts_B)
    ranked_BT = x.masked_fill(~mask, -torch.inf)
    lowest_B1 = _largest(ranked_BT, wanted_B, int(x.shape[1] * fraction) + 1)
    above_BT = mask & (ranked_BT > lowest_B1)
    equal_BT = mask & (ranked_BT == lowest_B1)
    room_B1 = wanted_B[:, None] - above_BT.sum(1, keepdim=True)
    return above_BT | (equal_BT & (equal_BT.cumsum(1) <= room_B1))


def top_batch_fraction(
    x: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,
    *,
    among: Float[Tensor, "N"] | None = None,
) -> Bool[Tensor, "B T"]:
    """Marks the values that reach the (1 − fraction)-quantile of the whole batch's tokens.

    Args:
        x: (B,T) what to rank; masked tokens are not read.
        mask: (B,T) tokens that take part.
        fraction: in (0,1].
        among: (N,) values of the whole batch's tokens, inf in other places, where these rows are
            a part of it; None = these rows are the batch.

    Returns:
        (B,T) True where x is at least the quantile, linear between neighbours; ties with it are
        all in. At least one token is marked where any takes part.

    Raises:
        ShapeError: the fraction is not in (0,1].

    Source:
        Wang et al. 2025, arXiv 2506.01939. The quantile is NumPy's and TRL's
        (``torch.quantile``), with its rank as the exact product gives it.
    """
    if not 0 < fraction <= 1:
        raise ShapeError(
            f"fraction is {fraction}; expected a share above 0 and at most 1, such as 0.2."
        )
    if not x.numel():
        return mask
    every_N = x.masked_fill(~mask, torch.inf).flatten() if among is None else among
    sorted_N = every_N.double().sort().values
    # Rounding to nine digits: 10 (1 − 0.7) is 3.0000000000000004 in binary, above the fourth.
    last = (sorted_N.isfinite().sum() - 1).clamp(min=0).double()
    place = last.mul(1 - fraction).mul(1e9).round() / 1e9
    below = sorted_N.gather(0, place.floor().long()[None])
    above = sorted_N.gather(0, place.ceil().long()[None])
    return mask & (x >= torch.lerp(below, above, place - place.floor()))


def _largest(x_BT: Tensor, ranks_B: Tensor, most: int) -> Tensor:
    """Returns (B,1) the value of each row's given rank, 1 for the largest, at most ``most``."""
    if x_BT.device.type == "cpu":
        # NumPy's sort is several times as fast as torch's sort or topk on this side.
        sorted_BT = x_BT.detach().float() if x_BT.dtype == torch.bfloat16 else x_BT.detach().clone()
        sorted_BT.numpy().sort(axis=1)
        place_B1 = (x_BT.shape[1] - ranks_B).clamp(max=x_BT.shape[1] - 1)[:, None]
        return sorted_BT.gather(1, place_B1).to(x_BT.dtype)
    highest_BK = x_BT.topk(min(most, x_BT.shape[1]), dim=1).values
    return highest_BK.gather(1, (ranks_B - 1).clamp(min=0)[:, None])


def _pick(x_BN: Tensor, index_BM: Tensor) -> Tensor:
    """Gathers along the second axis; an empty axis gives zeros, since nothing can be picked."""
    if x_BN.shape[1] == 0:
        return x_BN.new_zeros(index_BM.shape)
    return x_BN.gather(1, index_BM)


def _running_max(x_BT: Tensor) -> Tensor:
    """Returns the largest value so far along each row."""
    return x_BT.cummax(1).values if x_BT.numel() else x_BT


def _shift_right(x_BT: Tensor, *, fill: int | bool) -> Tensor:
    """Shifts each row right by one token, ``fill`` in front."""
    if x_BT.shape[1] == 0:
        return x_BT
    return torch.cat([x_BT.new_full((len(x_BT), 1), fill), x_BT[:, :-1]], dim=1)


def _read(*scalars: Tensor) -> list[int]:
    """Reads several scalars in one transfer from the device."""
    read: list[int] = torch.stack([scalar.long() for scalar in scalars]).cpu().numpy().tolist()
    return read


def _as_index(rows: Tensor | Sequence[int], like: Tensor) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.long, device=like.device)


def _require_same_shape(name: str, x: Tensor, like: Tensor) -> None:
    if x.ndim != 2 or x.shape != like.shape:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)} but the action mask has {tuple(like.shape)};"
            " expected both to be (B,T)."
        )


def _describe_fault(ids_BT: Tensor, wrong_BT: Tensor, carried_BT: Tensor) -> str:
    """Returns the sentence for the first token at which the ids break the rule."""
    row, token = _read(*wrong_BT.nonzero()[0])
    found = int(ids_BT[row, token])
    before = int(carried_BT[row, token - 1]) if token else -1
    if found < -1:
        what = f"a negative id in completion {row}: token {token} has segment {found}"
    elif before < 0:
        what = f"no segment 0 in completion {row}: token {token}, its first, has segment {found}"
    else:
        kind = "a gap" if found > before else "a decrease"
        what = (
            f"{kind} in completion {row}: token {token} has segment {found} after segment {before}"
        )
    return (
        f"segment_ids has {what}. Ids must begin at 0 and grow by 0 or 1 along the action tokens"
        " and be -1 elsewhere; build them with Segmentation.from_starts."
    )
