"""Steps: the markers of each family in two languages, where they count, and what is no marker."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit import PluginError, Segmentation
from segcredit.testing import check_segmenter, make_rollouts, parametrize_with_checks
from segmenters.steps import Steps


def steps(text: str, **options: Any) -> list[str]:
    edges = [0, *Steps(**options).split(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


LINES = {
    "step": [
        "Step 3: add.",
        "step 12",
        "STEP 3 - add.",
        "**Step 3** Add.",
        "**Step 3: Add.**",
        "### Step 3: Add",
        "## **Step 3.** Add",
        "> Step 3) Add.",
        "Step three: add.",
        "第一步：求和。",
        "第 2 步，求和。",
        "步骤3：求和。",
        "**步骤十二** 求和。",
        "### Case 1:",
        "Case II. None.",
        "**Part b:** Add.",
        "Move 2:",
        "Round three - add.",
        "情况一：求和。",
        "第二种情况：求和。",
        "方法2：",
    ],
    "numbered": [
        "3. Add.",
        "3) Add.",
        "(3) Add.",
        "12. **Add**.",
        "**3. Add**",
        "3. \\(x = 1\\)",
        "(3) $x$",
        "3. -1 is odd.",
        "1.计算。",
        "1.**计算**。",
        "（3）求和。",
        "(1)【解析】求和。",
        "三、求和。",
        "（十二）求和。",
        "3、求和。",
        "③求和。",
    ],
    "bullet": ["- Add.", "* Add.", "• Add.", "- **Add**.", "* __Add__", "- 3 apples", "- \\(x\\)"],
    "connective": [
        "First, add.",
        "First we add.",
        "Second, add.",
        "Next, add.",
        "Then add.",
        "Finally, add.",
        "Therefore, it is.",
        "Thus it is.",
        "So x = 3.",
        "so it is.",
        "**Therefore**, it is.",
        "首先，求和。",
        "其次求积。",
        "然后求差。",
        "接着求商。",
        "最后得三。",
        "因此是三。",
        "所以是三。",
    ],
}
MARKED = [(family, line) for family, lines in LINES.items() for line in lines]
UNMARKED = [
    "3.14 is pi.",
    "2.5x + 1",
    "(3) + 4 = 7",
    "(1) = (2)",
    "3.",
    "3)",
    "2007. ",
    "-1 + x",
    "-",
    "***",
    "* * *",
    "---",
    "*emphasis* here.",
    "First term is 3.",
    "Second place.",
    "Nextdoor.",
    "Some so and so.",
    "Soon.",
    "So far it is.",
    "Thusly.",
    "Stepping 3 times.",
    "Steps 3 and 4.",
    "As Step 3 says.",
    "Part 2 of it.",
    "In case 1: add.",
    "Move on: add.",
    "Row 3: add.",
    "We use 3. Adding.",
    "我们首先求和。",
    "十分好。",
    "一共三个。",
    "🙂 fine.",
]


@pytest.mark.parametrize(("family", "line"), MARKED, ids=[line for _, line in MARKED])
def test_markers_open_a_step_where_a_line_begins(family: str, line: str) -> None:
    for before, after in (("Take it.\n", "\nIt is."), ("a = b\n\n", ""), ("好：\r\n", "\r\n好")):
        assert steps(before + line + after) == [before, line + after]
        assert steps(before + line + after, markers=(family,)) == [before, line + after]
        others = tuple(other for other in LINES if other != family)
        assert len(steps(before + line + after, markers=others)) == 1
    assert steps(f"One.\n   {line}") == ["One.\n  ", f" {line}"]
    assert steps(f"  \n{line}\n好") == [f"  \n{line}\n好"]


@pytest.mark.parametrize("line", UNMARKED)
def test_other_lines_do_not(line: str) -> None:
    assert len(steps(f"Take it.\n{line}\n\n{line}\n")) == 1


@pytest.mark.parametrize(
    "expected",
    [
        # Labels and connectives also where a sentence begins; numbers and bullets do not.
        ["Step 1: add 2.", " Step 2: add 3.", " **Step 3.** Done. By step 2 it is."],
        ["It is so.", " So it is.", ' "Therefore, no."', " (Thus yes.) Is it?", " Then, on!"],
        ["求和。", "第二步：求积。", "因此是三。第三步很难。", "“所以是四。”", "然后结束"],
        ["We add. 2. More. - And more. (3) That is."],
        ["It is 3.So it is. See e.g.then it."],
        ["Step 2 is done. Step 3 is hard."],
        # A marker opens one step however many families it belongs to.
        ["To add:\n", "1. **Step 1:** First, we add.\n", "- So what.\n", "- Therefore, three."],
        ["<think>\n", "Step 1: a\n</think>\n", "<answer> Step 2: b"],
        ["好\n", "【解析】首先，求和。\n【答案】三"],
        # Formulas and code are whole; what is not closed goes on to the end of the text.
        ["So:\n\\[\n a\n- b\n\n- c\n\\]\n", "- So"],
        ["$$\n- a\n$$\n", "- b\n```\n- c\n\n1. d\n```\n", "1. e"],
        ["\\begin{align*}\n- a \\\\\n- b\n\\end{align*}\n", "- c"],
        ["```\n\\[\n- a\n```\n", "- b\n\\]"],
        ["\\[ a\n", "- b\n\\[\n- c\n\\]\n", "- d\n```\n- e\n\n- f"],
        ["- a\n", "- \\(b\n- c\n\n", "- d\n", "- $x\n- y$\n", "- `c\n", "- \\[\n\n- e"],
        ["a \\\\[2pt]\n", "- b\n\\]"],
        ["It is $$5\n- z\n\n", "- a\n$$\n- b$$\n$$\n\n- a\n\n$$\n", "- b"],
        # Blanks: one space goes with the marker, what comes before it does not.
        ["One.  ", " So.\n\n\t", "- a\n    ", " - b\r\n\r\n", "2) c"],
        # Any words are a label where they recur with another counter.
        ["Take it.\n", "Row 1: a\n", "## Row 2: b\nOn it.\n\n", "**Row 3:** c\nRow four"],
        ["On.", " Day 1: a.", " Day 2: b. By day 3 c.", " Day 3: d"],
        ["好。\n", "选项A：一。\n", "选项B：二。\n选项很多"],
        ["One is a.", " Case 2: b. In case 3 c.", " Case 3: d"],
        ["Row 1: a\nRow 1: a\nIt is 3.\nIt is 4.\n12:30\n12:45"],
        # A paragraph that is not indented ends an item, unless the item announces it.
        ["- a\n\n   b\n\n", "c\n\nd\n", "1. e\n\n", "f"],
        ["- a.", " So b.\n\n", "c\n\nd"],
        ["So\n", "1. **a:**\n\nb\n\n", "c\n", "2. d\n\n\\[\ne\n\\]\n\n", "f\n\n", "Step 3: a\n\nb"],
        ["甲\n", "(1)【解析】\n乙。\n\n", "丙"],
        [""],
        ["\n \n"],
        ["Step 1: a\n", "Step 2: b"],
    ],
)
def test_where_markers_count(expected: list[str]) -> None:
    assert steps("".join(expected)) == expected


FILLED = st.sampled_from([line for line in UNMARKED if line not in ("3.", "3)", "-")])
BLANKS = st.sampled_from(["\n", "\n\n", "\r\n", "\n  ", "\n\t", " \n \n "])


@given(rows=st.lists(st.tuples(BLANKS, FILLED | st.sampled_from(MARKED)), max_size=8))
def test_steps_begin_at_the_marked_lines_and_nowhere_else(rows: list[Any]) -> None:
    text, expected, in_item = "Take it", [], False
    for blanks, line in rows:
        # A paragraph that is not indented ends an item.
        paragraph = blanks == "\n\n" and line[0] not in "<\\$`~"
        if isinstance(line, tuple):
            expected.append(len(text) + len(blanks) - blanks.endswith(" "))
            in_item = line[0] in ("numbered", "bullet") or (in_item and line[0] != "step")
            line = line[1]
        elif in_item and paragraph:
            expected.append(len(text) + len(blanks))
            in_item = False
        text += f"{blanks}{line} It is"
    assert list(Steps().split(text)) == expected


PIECES = st.sampled_from(
    ["Step 2: ", "1. ", "- ", "So ", "所以", "一、", "。", ". ", "\n", "\n\n", "\r", "**", "(3) "]
) | st.sampled_from(
    ["\\[", "\\]", "$$", "$", "```", "\\begin{a}", "\\end{a}", "\\", "a", "<b>", " "]
)
TEXTS = st.text() | st.lists(PIECES, max_size=30).map("".join)


@given(text=TEXTS)
def test_any_text_is_cut_into_pieces_that_are_not_blank(text: str) -> None:
    found = steps(text)
    assert "".join(found) == text
    assert len(found) == 1 or all(piece.strip() for piece in found)


@given(text=TEXTS.filter(lambda text: "\r" not in text))
def test_windows_newlines_change_nothing(text: str) -> None:
    expected = [piece.replace("\n", "\r\n") for piece in steps(text)]
    assert steps(text.replace("\n", "\r\n")) == expected


def test_connectives_are_ones_own_to_choose() -> None:
    text = "One. Also, two. So three. Now four. Nowhere. 且五。"
    own = ("Also,", "now", "且")
    assert steps(text, connectives=own) == [
        "One.",
        " Also, two. So three.",
        " Now four. Nowhere.",
        " 且五。",
    ]
    assert steps("One. Also two.", connectives=own) == ["One. Also two."]
    assert steps("One. Also,two.", connectives=own) == ["One.", " Also,two."]


def test_a_pattern_opens_steps_wherever_it_matches() -> None:
    text = "x Claim 1 so.\nClaim 2: y\n- z\n```\nClaim 3\n```"
    own = {"pattern": r"^Claim [0-9]+"}
    assert steps(text, **own) == ["x Claim 1 so.\n", "Claim 2: y\n", "- z\n```\n", "Claim 3\n```"]
    assert steps(text, markers=(), **own) == [
        "x Claim 1 so.\n",
        "Claim 2: y\n- z\n```\n",
        "Claim 3\n```",
    ]
    assert steps(text, markers=(), pattern="Claim|(?=so)") == [
        "x",
        " Claim 1",
        " so.\n",
        "Claim 2: y\n- z\n```\n",
        "Claim 3\n```",
    ]
    # Where a match and a marker meet there is one step.
    assert steps("a\n- b", pattern="-") == ["a\n", "- b"]


def test_the_space_before_a_marker_goes_with_it_as_in_byte_level_tokens() -> None:
    text = "To add:\n  - one. So two.\nStep 2"
    words = ["To", " add", ":\n", " ", " -", " one", ".", " So", " two", ".\n", "Step", " ", "2"]
    ends = list(itertools.accumulate(map(len, words)))
    spans = [(end - len(word), end) for word, end in zip(words, ends, strict=True)]
    rollouts = make_rollouts([""], width=len(words))
    rollouts = rollouts.replace(
        texts=(text,),
        token_spans=rollouts.token_spans.new_tensor([spans]),
        action_mask=rollouts.action_mask.new_ones(1, len(words)),
    )
    found = Steps().segment(rollouts)
    assert isinstance(found, Segmentation)
    assert found.segment_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]]


@parametrize_with_checks([Steps(), Steps(markers=(), pattern="a|#"), Steps(markers=("bullet",))])
def test_contract(check) -> None:
    check()


def test_it_is_not_causal_and_says_so() -> None:
    assert not Steps().causal
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(Steps(connectives=("a", "So")), causal=True)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    markers: Any = ("step", "dash")
    with pytest.raises(
        ValueError, match="markers holds 'dash'; expected some of 'step', 'numbered'"
    ):
        Steps(markers=markers)
    with pytest.raises(ValueError, match="markers is empty and there is no pattern"):
        Steps(markers=())
    with pytest.raises(ValueError, match="connectives is empty, or holds an empty word"):
        Steps(connectives=("So", ""))
    with pytest.raises(
        ValueError, match=r"pattern is '\[', which is no regular expression: unterm"
    ):
        Steps(pattern="[")
    with pytest.raises(ValueError, match="matches the empty text and would cut everywhere"):
        Steps(pattern="a*")
    assert Steps(markers=("bullet",), connectives=()).split("a\n- b") == [2]
