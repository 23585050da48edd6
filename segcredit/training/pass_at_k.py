"""Metrics of several completions of one prompt: pass@k, and maj@k of the commonest answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from segcredit.errors import ShapeError


def pass_at_k(completions: int, correct: int, k: int) -> float:
    """Computes the probability that one of k completions is right: 1 − C(n−c, k) / C(n, k).

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


def maj_at_k(answers: Sequence[str], correct: Sequence[bool]) -> float:
    """Computes maj@k, whether the commonest of k answers is right; the mean where several are.

    Args:
        answers: of one prompt's k completions; '' is no answer, and is not counted.
        correct: whether each is right; equal answers may differ in it, and then count their share.

    Returns:
        A share in [0,1]; 0 where there is no answer.

    Source:
        Self-consistency, Wang et al., 2022, arXiv 2203.11171; ties there are not spoken of.
    """
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return 0.0
    most = max(counts.values())
    right = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    first = [answer for answer, count in counts.items() if count == most]
    return sum(right[answer] / most for answer in first) / len(first)


def powers_of_two(most: int) -> tuple[int, ...]:
    """Lists 1, 2, 4, ... up to a number; nothing below 1."""
    return tuple(2**power for power in range(most.bit_length()))
