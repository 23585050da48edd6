"""Rewards of steps by a rule: are the equations that a segment completes true?"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval, Le
from torch import Tensor

from segcredit import ProcessReward, RolloutBatch, Segmentation

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_GAP = r"[ \t]*"
_JOIN = r"[-+*/^×÷·]"
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+(?:\.[0-9]+)?)"
# The whole of what is joined by operators: 2+3=6 must not be found in 1+2+3=6, nor in x+2+3=6.
_RUN = re.compile(
    rf"(?:[A-Za-z)]{_GAP}{_JOIN}{_GAP})?"
    rf"(?<![0-9.])-?{_NUMBER}(?:{_GAP}(?:{_JOIN}|=){_GAP}-?{_NUMBER})+"
    rf"(?:{_GAP}{_JOIN}{_GAP}[A-Za-z(])?"
)
# Python refuses to read integers of more than 4300 digits, and a policy may well write them.
_INTEGER = r"(-?[0-9,]{1,1000})"
_EQUATION = re.compile(rf"{_INTEGER}{_GAP}([-+*]){_GAP}{_INTEGER}{_GAP}={_GAP}{_INTEGER}")


@dataclass(frozen=True, slots=True)
class Equations(ProcessReward):
    """``right`` for a segment whose equations are all true, ``wrong`` if any of them is false.

    Equations are ``a+b=c``, ``a-b=c`` and ``a*b=c`` of integers, blanks allowed. Each belongs to
    the segment of its last character, in which its result is settled: that is the segment that it
    stands in, or the last of those over which a boundary inside it spreads it. So no boundary
    makes ``2+3=15`` of ``12+3=15``. What ends in a hole of the action mask is nobody's.

    Assumption: what a step does is stated as an equation, and a true equation is a good step. It
    cannot see a wrong operand that is then worked out rightly, and is earned again by every true
    equation that is written: under a sum, padding pays (``min_form`` bounds it). Degenerate case:
    text without equations earns ``none`` everywhere. Longer runs (``1+2+3=6``), decimals and
    unknowns (``x+2=5``) are no equations. Cost: two regular expressions over each text.

    Args:
        modulus: None, or the modulus at which both sides have to be equal, such as 10 for the
            arithmetic task, where ``9+3=2`` is true.
        right: reward of a segment whose equations are all true, in reward units.
        wrong: reward of a segment with a false equation.
        none: reward of a segment in which no equation ends.

    Source:
        Ours. It stands where PURE (Cheng et al. 2025, arXiv 2504.15275) has a process reward
        model, whose rewards are between -1 and 1 too: the probability that the step is right less
        that it is wrong.
    """

    modulus: Annotated[int, Le(10**9)] | None = None
    right: Annotated[float, Interval(ge=-1e6, le=1e6)] = 1.0
    wrong: Annotated[float, Interval(ge=-1e6, le=1e6)] = -1.0
    none: Annotated[float, Interval(ge=-1e6, le=1e6)] = 0.0

    def __post_init__(self) -> None:
        if self.modulus is not None and self.modulus < 2:
            raise ValueError(
                f"modulus is {self.modulus}; expected None or a whole number of at least 2, such"
                " as 10 for the arithmetic task."
            )
        for name in ("right", "wrong", "none"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a finite reward, such as 1.0."
                )

    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor:
        """Returns (B,S) ``right``, ``wrong`` or ``none``; 0 where there is no segment."""
        judged = [self._judge(text) for text in rollouts.texts]
        true = [[place for place, holds in row if holds] for row in judged]
        false = [[place for place, holds in row if not holds] for row in judged]
        true_BS = _count(true, rollouts, segmentation)
        false_BS = _count(false, rollouts, segmentation)
        rewards_BS = rollouts.token_rewards.new_full(true_BS.shape, self.none)
        rewards_BS = rewards_BS.masked_fill(true_BS > 0, self.right)
        rewards_BS = rewards_BS.masked_fill(false_BS > 0, self.wrong)
        return rewards_BS.masked_fill(~segmentation.mask, 0)

    def _judge(self, text: str) -> list[tuple[int, bool]]:
        """Returns the place of each equation's last character, and whether the equation holds."""
        return [
            (run.end() - 1, self._holds(*equation.groups()))
            for run in _RUN.finditer(text)
            if (equation := _EQUATION.fullmatch(run[0]))
        ]

    def _holds(self, left: str, sign: str, right: str, result: str) -> bool:
        a, b, c = (int(number.replace(",", "")) for number in (left, right, result))
        excess = _OPERATIONS[sign](a, b) - c
        return excess == 0 if self.modulus is None else excess % self.modulus == 0


def _count(
    places: Sequence[Sequence[int]], rollouts: RolloutBatch, segmentation: Segmentation
) -> Tensor:
    """Returns (B,S) how many of each row's characters lie in each segment."""
    spans = rollouts.token_spans
    most = max((len(row) for row in places), default=0)
    padded = [[*row, *[-1] * (most - len(row))] for row in places]
    places_BK = torch.tensor(padded, dtype=torch.long, device=spans.device).view(len(places), most)
    # Padding may hold any span; with it out of the way, first characters never decrease.
    later_BT = segmentation.action_mask.flip(1).cumsum(1).flip(1)
    beyond = torch.iinfo(torch.long).max
    firsts_BT = spans[..., 0].masked_fill(later_BT == 0, beyond).contiguous()
    tokens_BK = torch.searchsorted(firsts_BT, places_BK, right=True) - 1
    known_BK = tokens_BK >= 0
    tokens_BK = tokens_BK.clamp(min=0)
    inside_BK = known_BK & (places_BK < spans[..., 1].gather(1, tokens_BK))
    marks_BT = torch.zeros_like(firsts_BT).scatter_add(1, tokens_BK, inside_BK.long())
    return segmentation.reduce(marks_BT, "sum")
