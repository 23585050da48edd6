"""pass@k and votes against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit.errors import ShapeError
from segcredit.training.pass_at_k import maj_at_k, pass_at_k, powers_of_two


def test_pass_at_k_is_the_mean_over_all_sets_of_k() -> None:
    for completions in range(1, 8):
        for correct in range(completions + 1):
            right = [n < correct for n in range(completions)]
            for k in range(1, completions + 1):
                sets = list(itertools.combinations(right, k))
                expected = sum(any(chosen) for chosen in sets) / len(sets)
                assert pass_at_k(completions, correct, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_what_does_not_exist_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ShapeError, match="does not exist; expected a k from 1"):
        pass_at_k(*wrong)


def test_large_numbers_keep_their_digits() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-12)


def slow_maj_at_k(answers: Sequence[str], correct: Sequence[bool]) -> float:
    """The share of right ones in every answer that no other has more votes than, averaged."""
    voting = [answer for answer in answers if answer]
    if not voting:
        return 0.0
    winners = {a for a in voting if all(voting.count(a) >= voting.count(b) for b in voting)}
    shares = []
    for winner in winners:
        flags = [c for a, c in zip(answers, correct, strict=True) if a == winner]
        shares.append(sum(flags) / len(flags))
    return sum(shares) / len(shares)


@given(st.lists(st.tuples(st.sampled_from(["", "1", "2", "3"]), st.booleans()), max_size=7))
def test_the_majority_is_that_of_counting_and_of_no_order(votes: list[tuple[str, bool]]) -> None:
    answers, correct = [a for a, _ in votes], [c for _, c in votes]
    found = maj_at_k(answers, correct)
    assert found == pytest.approx(slow_maj_at_k(answers, correct), abs=1e-12)
    assert found == pytest.approx(maj_at_k(answers[::-1], correct[::-1]), abs=1e-12)


def test_a_tie_is_worth_its_share() -> None:
    assert maj_at_k(["4", "5"], [True, False]) == 0.5
    assert maj_at_k(["4", "5", "6", ""], [True, False, False, False]) == pytest.approx(1 / 3)
    assert maj_at_k(["5", "4", "5"], [False, True, False]) == 0.0
    assert powers_of_two(9) == (1, 2, 4, 8)
