"""What several completions of one prompt show: pass@k, and the answer of the majority."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from segcredit.errors import ShapeError


def pass_at_k(completions: int, correct: int, k: int) -> float:
    """The chance that at least one of k completions is right: 1 − C(n−c, k) / C(n, k).

    Unbiased: the mean over all sets of k of the n completions that were drawn. With k = 1 the
    share of right ones.

    Args:
        completions: n, how many were drawn.
        correct: c, how many of them are right.
        k: how many one may choose from, 1 to n.

    Returns:
        A share in [0,1].

    Raises:
        ShapeError: a number is out of its range.

    Source:
        Chen et al., 2021, "Evaluating large language models trained on code", arXiv 2107.03374,
        equation 1; by exact whole numbers instead of its product.
    """
    if not 1 <= k <= completions or not 0 <= correct <= completions:
        raise ShapeError(
            f"pass@{k} of {completions} completions, {correct} of them right, does not exist;"
            " expected a k from 1 to the number of completions. Draw more completions of each"
            " prompt, or lower k."
        )
    return 1.0 - math.comb(completions - correct, k) / math.comb(completions, k)


def majority(answers: Sequence[str], correct: Sequence[bool]) -> float:
    """How right the commonest answer is; where several are, the mean of these.

    Args:
        answers: of one prompt's completions; '' does not vote.
        correct: whether each is right; equal answers may differ in it, and then count their share.

    Returns:
        A share in [0,1]; 0 where nothing votes.
    """
    votes = Counter(answer for answer in answers if answer)
    if not votes:
        return 0.0
    most = max(votes.values())
    right = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    first = [answer for answer, count in votes.items() if count == most]
    return sum(right[answer] / most for answer in first) / len(first)


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to a number."""
    return tuple(2**power for power in range(most.bit_length()))
