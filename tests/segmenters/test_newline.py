"""Newline: lines, blank ones, and those of formulas and code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit import PluginError
from segcredit.testing import check_segmenter, parametrize_with_checks
from segmenters.newline import Newline


def lines(text: str, **options: Any) -> list[str]:
    edges = [0, *Newline(**options).split(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges) if start < end]


BLANKS = {
    "before": ["a\n\n\n", "b\r\n \r\n", " c\n", "一\n\n  "],
    "after": ["a\n", "\n\nb\r\n", " \r\n c\n", "一\n", "\n  "],
    "own": ["a\n", "\n", "\n", "b\r\n", " \r\n", " c\n", "一\n", "\n", "  "],
}


@pytest.mark.parametrize("way", BLANKS)
def test_blank_lines_join_a_neighbour(way: Any) -> None:
    assert lines("".join(BLANKS[way]), blank_lines=way) == BLANKS[way]
    first = ["\n", "\n", "a\n"] if way == "own" else ["\n\na\n"]
    assert lines("\n\na\nb", blank_lines=way) == [*first, "b"]


@pytest.mark.parametrize(
    "expected",
    [
        ["So:\n", "\\[\nx\n\ny\n\\]\n", "Then\n", "$$\nz\n$$\n\n", "End"],
        ["```py\na\n\nb\n```\n", "c\n", "\\begin{align}\nd\n\\end{align}\n", "e\n", "~~~\nf"],
        ["It is $x$\n", "and `y`\n", "\\[\nz\n\nw"],
    ],
)
def test_formulas_and_code_are_whole(expected: list[str]) -> None:
    assert lines("".join(expected)) == expected
    every = "".join(expected).splitlines(keepends=True)
    assert lines("".join(expected), blank_lines="own", whole=False) == every


@given(text=st.text(alphabet="a \n\t$\\[]`你"))
def test_no_line_is_blank(text: str) -> None:
    found = lines(text)
    assert "".join(found) == text
    assert len(found) <= 1 or all(line.strip() for line in found)


@parametrize_with_checks([Newline(), Newline(blank_lines="after"), Newline("own", whole=False)])
def test_contract(check) -> None:
    check()


def test_it_is_causal_unless_it_waits_for_blank_lines() -> None:
    assert Newline(blank_lines="after").causal
    assert Newline(blank_lines="own").causal
    assert not Newline().causal
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(Newline(), causal=True)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    way: Any = "both"
    with pytest.raises(
        ValueError, match="blank_lines is 'both'; expected one of 'before', 'after', 'own'"
    ):
        Newline(blank_lines=way)
