"""Segments between the tokens at which the policy was least certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Le
from torch import Tensor
from torch.nn import functional

from segcredit import (
    RolloutBatch,
    Segmentation,
    Segmenter,
    SegmenterReading,
    top_batch_fraction,
    top_fraction,
)
from segcredit.errors import require_one_of

_RULES = ("top_fraction", "batch_fraction", "threshold", "peaks")
_FORKS = ("ends", "starts", "isolate")


@dataclass(frozen=True, slots=True)
class Entropy(Segmenter):
    """Boundaries at the top fraction of each completion's token entropies.

    ``rule`` says which action tokens are forks:

    - ``top_fraction``: of a row of n action tokens max(ceil(top_fraction n), 1); of equal
      entropies the earlier.
    - ``batch_fraction``: those at least as high as the (1 − top_fraction)-quantile of all action
      tokens of the batch, linear between neighbours; of equal entropies all.
    - ``threshold``: H_t > threshold.
    - ``peaks``: H_t > threshold, above the ``window`` action tokens before t, not below the
      ``window`` after it, and at least ``prominence`` above the lowest of the window on each
      side. Tokens in holes are passed over. Beyond the row's ends there is nothing to exceed.

    Causality: H_t is settled by the tokens before t. So ``threshold`` is causal with every
    ``fork``; ``peaks`` with a window of 1 and fork ``ends`` alone, where the boundary before token
    t + 1 looks at H_{t+1} and no further. The fractions depend on later tokens.

    ``batch_fraction`` breaks one rule of the contract on purpose: a completion's segments depend
    on which other completions are in the batch, though not on their order. Segments then mean
    something for whole steps alone: a part of the batch, or one process's share, is cut otherwise.

    Assumption: where the policy hesitates, the outcome is decided. Degenerate case: of equal
    entropies ``top_fraction`` selects the first tokens of the row, ``batch_fraction`` all,
    ``threshold`` all or none, ``peaks`` the row's first at most. Cost: one selection a row (one
    sort of the batch, one window a token), no forward pass.

    Args:
        top_fraction: share of the action tokens selected, in (0,1]; the paper's is 0.3. For the
            two rules named after it.
        fork: a selected token ``ends`` its segment (SAPO), ``starts`` the next, or is a segment of
            its own (``isolate``).
        rule: ``top_fraction`` (SAPO), ``batch_fraction``, ``threshold`` or ``peaks``.
        threshold: nats, at least 0, that forks exceed under the rules ``threshold`` and ``peaks``.
        window: action tokens on either side that a peak is compared with, at least 1.
        prominence: nats, at least 0, by which a peak stands out; 0 asks nothing.

    Source:
        SAPO, arXiv 2605.01327, section 4.2 and eq. 11. The last action token always ends a
        segment, as there. The paper's "top k %" is a fraction here. The quantile over the batch is
        that by which Wang et al. 2025, arXiv 2506.01939, choose the tokens of the loss; the other
        rules and ``isolate`` are ours.
    """

    top_fraction: float = 0.3
    fork: Literal["ends", "starts", "isolate"] = "ends"
    rule: Literal["top_fraction", "batch_fraction", "threshold", "peaks"] = "top_fraction"
    threshold: Annotated[float, Le(1000)] = 0.7
    window: Annotated[int, Le(10**6)] = 4
    prominence: Annotated[float, Le(1000)] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.top_fraction <= 1:
            raise ValueError(
                f"top_fraction is {self.top_fraction}; expected a share above 0 and at most 1,"
                " such as 0.3 for 30 %."
            )
        require_one_of("fork", self.fork, _FORKS)
        require_one_of("rule", self.rule, _RULES)
        _require_nats("threshold", self.threshold)
        _require_nats("prominence", self.prominence)
        if self.window < 1:
            raise ValueError(f"window is {self.window}; expected at least 1 token, such as 4.")

    @property
    def causal(self) -> bool:
        """True for a threshold; a share, and most peaks, depend on the tokens after them."""
        if self.rule == "peaks":
            return self.window == 1 and self.fork == "ends"
        return self.rule == "threshold"

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Entropies alone."""
        return frozenset({"entropies"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts at the forks."""
        mask_BT = rollouts.action_mask
        forks_BT = self._forks(rollouts.entropies, mask_BT)
        if self.fork == "ends":
            return Segmentation.from_ends(forks_BT, mask_BT)
        before = Segmentation.from_starts(forks_BT, mask_BT)
        if self.fork == "starts":
            return before
        after = Segmentation.from_ends(forks_BT, mask_BT)
        return Segmentation.from_starts(before.starts | after.starts, mask_BT)

    def _forks(self, entropies_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns (B,T) the selected action tokens."""
        if self.rule == "top_fraction":
            return top_fraction(entropies_BT, mask_BT, self.top_fraction)
        if self.rule == "batch_fraction":
            return top_batch_fraction(entropies_BT, mask_BT, self.top_fraction)
        high_BT = mask_BT & (entropies_BT > self.threshold)
        if self.rule == "threshold":
            return high_BT
        return high_BT & _peaks(entropies_BT, mask_BT, self.window, self.prominence)


def _peaks(x_BT: Tensor, mask_BT: Tensor, window: int, prominence: float) -> Tensor:
    """Returns (B,T) whether x is a local maximum among the row's unmasked x within a window."""
    if not x_BT.numel():
        return mask_BT
    place_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    row_BT = _packed(x_BT.double(), mask_BT, place_BT)
    before_BTW, after_BTW = _neighbours(row_BT, window, -torch.inf)
    highest_BT = (row_BT > before_BTW.amax(2)) & (row_BT >= after_BTW.amax(2))
    lower_BTW, later_BTW = _neighbours(row_BT.masked_fill(row_BT == -torch.inf, torch.inf), window)
    # Where one side has no token, the other decides; infinity stands for nothing on that side.
    sides_BT2 = torch.stack([lower_BTW.amin(2), later_BTW.amin(2)], dim=2)
    base_BT = sides_BT2.masked_fill(sides_BT2 == torch.inf, -torch.inf).amax(2)
    found_BT = highest_BT & (row_BT - base_BT >= prominence)
    return mask_BT & found_BT.gather(1, place_BT)


def _packed(x_BT: Tensor, mask_BT: Tensor, place_BT: Tensor) -> Tensor:
    """Returns (B,T) the unmasked numbers of each row side by side, −infinity behind them."""
    spare = x_BT.shape[1]
    blank_BT = x_BT.new_full((len(x_BT), spare + 1), -torch.inf)
    return blank_BT.scatter(1, place_BT.masked_fill(~mask_BT, spare), x_BT)[:, :-1]


def _neighbours(x_BT: Tensor, window: int, fill: float = torch.inf) -> tuple[Tensor, Tensor]:
    """Returns (B,T,W) the entries before and after each token, ``fill`` beyond the row; views."""
    wide = functional.pad(x_BT, (window, window), value=fill)
    around_BTW = wide.unfold(1, 2 * window + 1, 1)
    return around_BTW[..., :window], around_BTW[..., window + 1 :]


def _require_nats(name: str, found: float) -> None:
    if not found >= 0:
        raise ValueError(f"{name} is {found}; expected nats of at least 0, such as 0.7.")
