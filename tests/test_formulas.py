"""Formulas and code: what is found, what is money, and a time linear in the text."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit.formulas import formulas, outside

FOUND = [
    (r"We have $x. Y$ and \(z. W\) and `a. B` here.", ["$x. Y$", r"\(z. W\)", "`a. B`"]),
    ("价格是$x$和$y=\\frac{1}{2}$。", ["$x$", "$y=\\frac{1}{2}$"]),
    ("He has $6 and pays $7. So $13 and $ 5 + 3 and $ 6 go. US$ is $AAPL.", []),
    ("So $ x = 1. Y $ and $x =\n1$ here.", ["$ x = 1. Y $", "$x =\n1$"]),
    ("$$\na\n\nb\n$$ and $$\nc\n\n$$ d", ["$$\na\n\nb\n$$", "$$\nc\n\n$$"]),
    ("So $$5 is\n\nb $$c$$", ["$$5 is", "$$c$$"]),
    ("\\[a\n\nb\\] then \\\\[2pt] and \\$x and $y", ["\\[a\n\nb\\]"]),
    ("```py\n\\[ a\n\n$$\n``` b\n~~~\nc\n~~~", ["```py\n\\[ a\n\n$$\n```", "~~~\nc\n~~~"]),
    ("````\n```\na\n```\n````\nb", ["````\n```\na\n```\n````"]),
    (r"\begin{a}\begin{a}b\end{a}\end{a*} c", [r"\begin{a}\begin{a}b\end{a}\end{a*}"]),
    (r"\begin{itemize}\item a\end{itemize}", []),
    ("[asy]\na\n[/asy] b", ["[asy]\na\n[/asy]"]),
    # What is never closed goes on to the end, or to the end of the thought, or of its line.
    ("a \\[ b\n\nc", ["\\[ b\n\nc"]),
    ("a ```py\nb\n\nc", ["```py\nb\n\nc"]),
    ("a \\begin{cases}b\n\nc", ["\\begin{cases}b\n\nc"]),
    ("a \\(b\n\nc $\\frac{1}{2}. D", ["\\(b", "$\\frac{1}{2}. D"]),
    ("<think>a \\[ b</think>\n\nc", ["\\[ b"]),
    ("a \\[ b\n\nc \\[d\\]", ["\\[d\\]"]),
]


@pytest.mark.parametrize(("text", "found"), FOUND, ids=[text[:20] for text, _ in FOUND])
def test_formulas_of_every_kind(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in formulas(text)] == found


PIECES = st.sampled_from(
    ["\\[", "\\]", "\\(", "\\)", "$$", "$", "```", "`", "~~~", "\\begin{a}", "\\end{a}", "\\", "a"]
) | st.sampled_from(["\n", "\n\n", " ", "5", "语", "[asy]", "[/asy]", "</think>"])
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@given(text=TEXTS, inline=st.booleans())
def test_spans_are_in_order_and_apart(text: str, inline: bool) -> None:
    edges = [0, *itertools.chain(*formulas(text, inline=inline)), len(text)]
    assert edges == sorted(edges)


@given(text=TEXTS, inline=st.booleans())
def test_a_text_that_need_not_be_searched_has_what_is_found_behind_a_formula(
    text: str, inline: bool
) -> None:
    begin = "\\[a\\]\n"
    found = [
        (start - len(begin), end - len(begin))
        for start, end in formulas(begin + text, inline=inline)
    ]
    assert list(formulas(text, inline=inline)) == found[1:]


@given(text=TEXTS, later=TEXTS)
def test_without_what_is_in_a_line_nothing_depends_on_what_comes_later(
    text: str, later: str
) -> None:
    blanks = [place for place in range(1, len(text) + 1) if text[place - 1] == "\n"]

    def cuts(whole: str) -> list[int]:
        return outside(blanks, list(formulas(whole, inline=False)))

    assert cuts(text + "\n") == cuts(text + "\n" + later)


UNITS = ["$", "$x", "$ ", "$x\n", "$$a", "`a", "\\(", "\\[", "\\", "\n", " "]


@pytest.mark.parametrize("unit", UNITS)
def test_the_time_grows_with_the_text(unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        # The least of three: a collection of garbage, or another thread, only ever adds.
        return min(once(text) for _ in range(3))

    def once(text: str) -> float:
        started = time.process_time()
        list(formulas(text))
        return time.process_time() - started

    assert seconds(100_000) < 12 * max(seconds(20_000), 0.01)
