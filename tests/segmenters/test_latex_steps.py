"""LatexSteps: the reference's numbers, a slow oracle for lines, and the rule for sentences."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segcredit import PluginError, Segmenter, registry
from segcredit.formulas import formulas
from segcredit.testing import check_segmenter, make_rollouts

OPTIONS: dict[str, dict[str, Any]] = {
    "math_inplace": {"reference": True},
    "math_newline": {"delimiter": "newline", "reference": True, "answer_prefix": "\n\n# Answer\n"},
    "math_newline_noprefix_double": {
        "delimiter": "paragraph",
        "reference": True,
        "answer_prefix": "#### ",
    },
    "gsm8k_newline": {"delimiter": "newline", "reference": True, "answer_prefix": "\n#### "},
    "gsm8k_newline_noanswer": {"delimiter": "newline", "reference": True},
}
GOLDENS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "goldens/text_split.jsonl").read_text().splitlines()
]


def latex_steps(**options: Any) -> Any:
    return registry.segmenters.build("latex_steps", **options)


def own_steps(text: str, **options: Any) -> list[str]:
    edges = [0, *latex_steps(**options).split(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def steps(text: str, **options: Any) -> list[str]:
    """Steps by the rules of the released code."""
    return own_steps(text, **{"reference": True, **options})


@pytest.mark.parametrize("mode", OPTIONS)
def test_boundaries_of_the_released_code(mode: str) -> None:
    rows = [row for row in GOLDENS if row["mode"] == mode]
    assert len(rows) >= 20
    segmenter = latex_steps(**OPTIONS[mode])
    for row in rows:
        edges = [0, *segmenter.split(row["text"]), len(row["text"])]
        # The reference has no step, rather than an empty one, in a text without characters.
        assert edges == (row["boundaries"] if row["text"] else [0, 0]), row["text"]


def joined_lines(text: str, delimiter: str, prefix: str | None) -> list[str]:
    """Slow oracle: pieces of text, joined as the rule for lines says; the delimiter in front."""
    halves = text.split(prefix) if prefix else [text]
    body, answer = halves if len(halves) == 2 else (text, None)
    first, *others = body.split(delimiter)
    pieces = [first, *(delimiter + other for other in others)]
    while len(pieces) > 1 and not pieces[0].strip() and body.strip():
        pieces[:2] = [pieces[0] + pieces[1]]
    if answer is not None:
        while len(pieces) > 1 and not pieces[-1].strip():
            pieces[-2:] = [pieces[-2] + pieces[-1]]
        pieces[-1] += prefix + answer
    return pieces


LINES = st.lists(st.sampled_from(["a", " ", "\n", "\n\n", "#### ", "\n#### ", "b. C"]), max_size=12)


@given(pieces=LINES, mode=st.sampled_from([*OPTIONS][1:]))
@example(pieces=["\n#### ", "a"], mode="gsm8k_newline")
@example(pieces=["a", "\n\n", "\n#### ", "b"], mode="gsm8k_newline")
@example(pieces=["a", "\n#### ", "a", "\n#### ", "b"], mode="gsm8k_newline")
def test_lines_agree_with_a_slow_oracle(pieces: list[str], mode: str) -> None:
    text, options = "".join(pieces), OPTIONS[mode]
    delimiter = "\n\n" if options["delimiter"] == "paragraph" else "\n"
    assert steps(text, **options) == joined_lines(text, delimiter, options.get("answer_prefix"))


SENTENCES = [
    # Periods end sentences before a capital only, and not after initials or words of two letters.
    [
        "The value of pi is 3.14159 or so, e.g. this one.",
        " Then J. S. Bach and Dr. Who came in for tea.",
    ],
    ["Take any number now.", "  Take another number.", " Take the third one."],
    ["nothing ends here. no capital follows. $x$ neither"],
    # Lines begin with their newline; blank and short ones join the next, and at the end the last.
    ["The first line is here", "\n\n\nThe second line is here"],
    ["The first line is here", "\nso\nwe have the third one."],
    ["The first line is here\nand\n\n  "],
    # Formulas are whole; periods and newlines in them count where they end a formula or a line.
    ["We have $a. B$ and \\(c. D\\) and $$e. F$$ there.", " So \\[g. H\\] it was then."],
    [
        "So $x = 1.$",
        " So $$y = 2.$$",
        " So \\(z = 3.\\)",
        " So \\[w = 4.\\]",
        " So take all of it now.",
    ],
    ["$$\nx + y = 4", "\n$$ is what is given here."],
    ["[asy]\ndraw(a. B);", "\ndraw(b);", "\n[/asy] shows the drawing."],
    # What is joined before formulas are looked into stays joined: a short finished line, or one
    # with a formula, leaves the line after it to the third, and then joins both.
    ["It is all so.\nabcdefgh\nThe remaining line here"],
    ["So we take $x$\nabcdefgh\nThe remaining line here"],
    # A dollar sign behind a backslash, and what opens and never closes, is prose.
    ["Now it all costs \\$5.", " Really it costs $x$ here."],
    ["\\begin{x \\begin{b} as we see. This too \\end{b} is what it is."],
    ["An open $x. Then we go on there.", " And then, \\[ and never close."],
    # The reference fails on a formula in a formula; here it is part of it.
    ["See \\begin{cases} $a. B.$ \\\\ c. D \\end{cases} for all here.", " Then we stop at once."],
]


@pytest.mark.parametrize("wanted", SENTENCES, ids=lambda wanted: wanted[0][:20])
def test_sentences(wanted: list[str]) -> None:
    assert steps("".join(wanted)) == wanted


def test_a_formula_that_repeats_in_a_step_is_cut_once() -> None:
    table = "\\begin{tabular}{c} 1 \\\\\n2 \\end{tabular}"
    head, tail = table.split("\n")
    assert steps(f"{table} is {table} again.") == [head, f"\n{tail} is {table} again."]


def test_long_steps_are_halved_where_they_pause() -> None:
    clause = "a clause of more than forty letters in total"
    assert steps(f"{clause}, {clause}, {clause}") == [f"{clause},", f" {clause}, {clause}"]
    # A comma too near to an end gives way to "and", then to a colon, then to "to".
    assert steps(f"so, {clause} and {clause}: x y") == [f"so, {clause} and", f" {clause}: x y"]
    assert steps(f"so, {clause}: {clause} to x y") == [f"so, {clause}:", f" {clause} to x y"]
    assert steps(f"so, {clause} to {clause} then x") == [f"so, {clause} to", f" {clause} then x"]
    assert len(steps(f"so, {clause} or {clause} then x: y")) == 1
    # Nothing of a hundred characters or fewer is broken.
    assert [len(step) for step in steps(f"{clause}," + 55 * "x")] == [100]
    assert [len(step) for step in steps(f"{clause}," + 56 * "x")] == [45, 56]


def test_a_formula_weighs_sixty_characters_where_a_step_is_halved() -> None:
    opening, formula = 45 * "a" + ",", "$" + 98 * "x" + "$"
    closing = 41 * "c" + ", " + 41 * "d"
    # The first comma is 46 + 60 | 60 + 46 in weight; by length the second would be as good.
    assert steps(f"{opening} {formula} {closing}") == [
        opening,
        f" {formula} {closing[:42]}",
        closing[42:],
    ]
    # A piece that a formula fills is too long still, and is cut at an operator if it has one.
    plus = "$" + 49 * "x" + "+" + 48 * "x" + "$"
    assert f" {plus[:51]}" in steps(f"{opening} {plus} {closing}")


def test_long_formulas_are_cut_after_operators() -> None:
    terms = "+".join(["ab"] * 50)
    found = steps(f"${terms}$")
    assert "".join(found) == f"${terms}$"
    assert all(len(step) <= 100 for step in found)
    assert all(step.endswith("+") for step in found[:-1])


PROSE = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "\n\n", ". ", "So ", "Dr. ", "3.14", ", ", " and ", ": ", " to ", "+", "="]
    )
    | st.sampled_from(
        ["$x$", "$y.$", "$", "\\[", "\\(z.\\)", "$$\nu\n$$", "\\begin{b}\nv\n\\end{b}", "[asy]"]
    )
    | st.sampled_from(["the quick brown fox jumps over ", "é数", "\\$", "\r\n", "#### "]),
    max_size=60,
).map("".join)


@given(text=PROSE)
def test_steps_cut_nothing_away_and_are_never_tiny(text: str) -> None:
    found = steps(text)
    assert "".join(found) == text
    if len(found) > 1:
        assert all(len(step) >= 3 for step in found)


def test_pieces_of_a_cut_formula_are_not_searched_for_clauses() -> None:
    """Offsets of the released code, whose range of such pieces mixes two origins."""
    text = (
        "to then $x$ all is to p, q= of this, of $x$ a+b of is $x$ a a a to of then sum we is then"
        " value a+b $x$ now, sum now, the to a $y=3.$ value the and a+b is of and so all the p, q="
        " to and is then of this: $a+b+c+d=e$ all all so $x$ this: all value we then is p, q= a sum"
        " sum is sum of and so of the we to so is then value then so is and a we we and of value to"
        " and of sum $a+b+c+d=e$ and a $y=3.$ sum then to is the to a"
    )
    assert list(latex_steps(reference=True).split(text)) == [66, 133, 175, 259, 373, 394]


@given(text=st.text(alphabet="aB. \n,+=", max_size=19))
def test_a_very_short_text_is_one_step(text: str) -> None:
    assert steps(text) == [text]


def test_an_answer_joins_the_last_sentence() -> None:
    thought, answer = "First we add two and three there.", "\n\n# Answer\nThe number is the five."
    assert steps(thought + answer) == [thought, answer]
    assert steps(thought + answer, answer_prefix="\n# Answer\n") == [thought + answer]


def test_tokens_follow_their_characters() -> None:
    text = "a = 12\n\nSo a, a + 12\n#### 12"
    segmenter = latex_steps(delimiter="newline", answer_prefix="\n#### ", reference=True)
    rollouts = make_rollouts([text, "\n\na\na"], holes={0: [0, 8]})
    found = segmenter.segment(rollouts)
    ids = found.segment_ids.tolist()
    assert ids[0] == [-1, 0, 0, 0, 0, 0, 1, 2, -1, *[2] * 19, 2]
    # Leading blanks and the end token have no step of their own.
    assert ids[1][:6] == [0, 0, 0, 1, 1, 1]


OWN = [
    # Formulas are whole however they are delimited, closed or not.
    [
        "首先，我们知道$\\vec{a}=(2,3)$，$\\vec{b}=(x_1+x_2, y_1+y_2=3)$，其中$x_1+x_2=3$。",
        "因此我们得到答案是三，就是这样。",
    ],
    ["So we have this:\n\\[\nx = 1, \\\\\ny = 2.\n\\]", "\nThen we go on from there."],
    ["It is the case that $$\na = b.\n\n$$ here.", " Then we go on from there."],
    ["We take \\begin{align*}\na. B\n\\end{align*} as it is.", " Then we go on from there."],
    ["We take all of this now.", " So \\(x. Y\\) and \\[z = 1. A\n\nAnd so on, to the end."],
    ["We take all of this:", "\n```\nx = 1, 2\nY. Z\n```", "\nThen we go on from there."],
    # A full stop at a formula's end closes the step, as does one behind it.
    [
        "So it is then $x = 1.$",
        " Then we go on from there.",
        " Is it $y$ after all?",
        " $z$ is all that there is.",
    ],
    # What is short joins the next, whatever its end, and at the end the last.
    ["It is. $x$ is. And all of the rest.", " So it is as we have said. Done."],
    ["We have two things to do:", "\n1. Add all of it to that.", "\n12. Take it from the rest."],
    ["所以$x=1$。因此我们得到三。", "所以我们知道答案是三。好。"],
    ["\n\n \nThe first line is here.", "\n\n\nThe second line is here.\n\n  "],
]


@pytest.mark.parametrize("wanted", OWN, ids=lambda wanted: wanted[0][:20])
def test_steps_leave_formulas_whole_and_are_not_short(wanted: list[str]) -> None:
    assert own_steps("".join(wanted)) == wanted


def test_long_steps_are_halved_outside_formulas() -> None:
    clause = "a clause of more than forty letters in total"
    formula = "$" + "+".join(["ab, c"] * 30) + "$"
    assert own_steps(f"{clause}, {formula}, {clause}") == [
        f"{clause},",
        f" {formula},",
        f" {clause}",
    ]
    assert own_steps(f"{clause} and {clause} to {clause}") == [
        f"{clause}",
        f" and {clause} to {clause}",
    ]
    assert own_steps(formula) == [formula]
    chinese = "我们首先需要知道这个三角形的面积是多少"
    assert own_steps(f"{chinese}，{chinese}，{chinese}。") == [
        f"{chinese}，",
        f"{chinese}，{chinese}。",
    ]


@pytest.mark.parametrize("delimiter", ["newline", "paragraph"])
def test_lines_leave_formulas_whole_and_none_is_blank(delimiter: str) -> None:
    gap = "\n\n" if delimiter == "paragraph" else "\n"
    wanted = ["a\n\n\n", f"{gap}\\[\n\nx\n\n\\]", f"{gap}```\nb\n\nc\n\n"]
    found = own_steps("".join(wanted), delimiter=delimiter)
    assert "".join(found) == "".join(wanted)
    assert [step.strip() for step in found] == [step.strip() for step in wanted]


@given(text=PROSE)
def test_own_steps_are_never_short_nor_begin_in_a_formula(text: str) -> None:
    found = own_steps(text)
    assert "".join(found) == text
    if len(found) > 1:
        assert all(len(" ".join(step.split())) >= 9 for step in found)
    spans = list(formulas(text))
    starts = latex_steps().split(text)
    assert not any(first < start < last for start in starts for first, last in spans)


@pytest.mark.parametrize("mode", OPTIONS)
def test_it_is_not_causal_and_says_so(mode: str) -> None:
    segmenter: Segmenter = latex_steps(**OPTIONS[mode])
    assert not segmenter.causal
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(segmenter, causal=True)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    kind = type(latex_steps())
    with pytest.raises(ValueError, match="delimiter is 'comma'; expected 'sentence'"):
        kind(delimiter="comma")
    with pytest.raises(ValueError, match="answer_prefix is empty"):
        kind(answer_prefix="")
