"""Paragraph: a slow oracle of its rule, and examples of what counts as a blank line."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit import Segmentation
from segcredit.testing import make_rollouts, parametrize_with_checks
from segmenters.paragraph import Paragraph


def paragraphs(text: str) -> list[str]:
    edges = [0, *Paragraph().split(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def closed_after_blank_lines(text: str) -> list[int]:
    """Slow oracle: line by line, what is open closes at its first blank line."""
    ends, place, has_words = [], 0, False
    for line in text.split("\n")[:-1]:
        place += len(line) + 1
        if line.strip():
            has_words = True
        elif has_words:
            ends.append(place)
            has_words = False
    return ends


BLANKS = st.lists(st.sampled_from(["a", "你", "😀", " ", "\t", "\r", "\n", "\n\n", "\u2028"]))


@given(text=BLANKS.map("".join) | st.text())
def test_it_agrees_with_a_slow_oracle(text: str) -> None:
    assert list(Paragraph().split(text)) == closed_after_blank_lines(text)


@given(text=BLANKS.map("".join), later=BLANKS.map("".join))
def test_what_comes_later_moves_no_boundary(text: str, later: str) -> None:
    before = list(Paragraph().split(text))
    assert list(Paragraph().split(text + later))[: len(before)] == before
    assert all(offset > len(text) for offset in Paragraph().split(text + later)[len(before) :])


@pytest.mark.parametrize(
    "expected",
    [
        [""],
        ["one line\nand another"],
        ["第一段。\n\n", "Second.\n\n", "🙂 third"],
        ["a\n\n", "\n\n\nb\n\n", "c"],
        ["\n\n\n a\n\n", "b"],
        ["a  \n \t\n", "  b"],
        ["a\r\n\r\n", "b\r\nc"],
        ["a\n\n", ""],
        ["\n\n"],
        ["\\[\na\n\\]\n\n", "Then"],
        # Formulas and code are whole, and belong to what announces them.
        ["So we get:\n\n\\[\na\n\nb\n\\]\n\n", "**Then：**\n\n1. c\n\n", "2. d: e\n\n", "f"],
        ["a\n\n", "```\nb\n\nc\n```\n\n", "$$\n\nd\n$$\n\n", "\\begin{cases}\ne\n\nf"],
    ],
)
def test_blank_lines_close(expected: list[str]) -> None:
    assert paragraphs("".join(expected)) == expected


def test_tokens_that_reach_over_a_blank_line_belong_to_the_paragraph_before_it() -> None:
    text = "a.\n\nb\n\n"
    spans = [(0, 1), (1, 4), (4, 6), (6, 7), (7, 7)]
    rollouts = make_rollouts([""], width=len(spans))
    rollouts = rollouts.replace(
        texts=(text,),
        token_spans=rollouts.token_spans.new_tensor([spans]),
        action_mask=rollouts.action_mask.new_ones(1, len(spans)),
    )
    found = Paragraph().segment(rollouts)
    assert isinstance(found, Segmentation)
    # The end token comes after a closed paragraph, hence in one of its own.
    assert found.segment_ids.tolist() == [[0, 0, 1, 1, 2]]


@parametrize_with_checks([Paragraph()])
def test_contract(check) -> None:
    check()


def test_it_says_that_it_is_causal() -> None:
    assert Paragraph().causal
