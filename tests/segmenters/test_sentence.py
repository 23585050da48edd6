"""Sentence: what misleads a rule for full stops, in two languages, and spaCy's part in it."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

import segmenters.sentence as module
from segcredit import PluginError, Segmentation
from segcredit.testing import check_segmenter, make_rollouts, parametrize_with_checks
from segmenters.sentence import Sentence


def sentences(text: str, **options: Any) -> list[str]:
    edges = [0, *Sentence(**options).split(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


WHOLE = {
    "abbreviations": [
        "We use primes, e.g. Seven, and i.e. Dr. Who vs. Mr. Jones here.",
        "See Fig. 3 and Figs. A and B, cf. Eq. (2), Sec. IV, Thm. $2$ and Prof. Xu.",
        "Take No. 5, nos. 6 and 7, pp. 3-4, ca. 5 and Ex. $2$ of it.",
        "Apples, pears etc. are 5 ft. 3 in. or approx. 6 lbs. of fruit.",
        "It was 3 p.m. and he left at 4 a.m. on foot, said J. K. Rowling to John F. Kennedy.",
        "(E.g. This.)",
    ],
    "numbers": [
        "It is 3.14 or .5 or 1,000.50 and $2.50 or 0.333... of 1.5.2 by 3.",
        "It is 1, 2, ..., 9 and a, b, ... and z... or so.",
        "Now 5! = 120 and 3! 2 and n! is big.",
        "Visit www.example.com or mail a.b@c.org or see utils.py and x.T of it.",
    ],
    "list numbers": [
        "1. First do this.",
        "  2. **Second** do that.",
        "3. \\(x\\) is one.",
        "a. The sum.",
        "B. The product.",
        "iv. The rest.",
        "> 12. The twelfth.",
        "- 7. The seventh.",
        "Step 3. Add them.",
        "(4. Fourth.)",
        "Case II. None.",
        "1.计算面积。",
    ],
    "formulas": [
        "Let $a. B$, \\(c. D!\\) and \\[e. F\\] or $$g. H$$ be.",
        "Then\n\\[\na = 1. \\\\\nB = 2.\n\nC = 3\n\\]\nwhere it is.",
        "We get \\begin{align*}\na &= 1. \\\\\nB &= 2\n\\end{align*} and more.",
        "Call `a.b. C` here.",
        "```python\nx = 1. \nY = 2\n\nZ. W\n```",
        "So $\\left. A \\right. B$ is it.",
    ],
    "quotes": [
        'He said "Stop now." then left.',
        '"Really?" he asked.',
        "It is so (see above.) as it is.",
    ],
    "tables": ["| a . | B . | C", "3 | w |   | . | . |"],
}
CASES = [(kind, text) for kind, texts in WHOLE.items() for text in texts]


@pytest.mark.parametrize(("kind", "text"), CASES, ids=[text[:40] for _, text in CASES])
def test_what_is_left_whole(kind: str, text: str) -> None:
    assert sentences(text) == [text]
    around = [("One\n\n", "\n\nTwo"), ("是一。\n", "\n二")]
    if text.endswith(".") and not text.startswith(">"):
        around.append(("So it is. ", " Then on."))
    for before, after in around:
        found = sentences(before + text + after)
        assert [piece.strip() for piece in found] == [before.strip(), text.strip(), after.strip()]


@pytest.mark.parametrize(
    "expected",
    [
        # Marks, with what closes behind them; what opens belongs to the next sentence.
        ["One is odd.", " Two is even!", " Is three?", " Yes."],
        [
            'He said "five."',
            " (So it is.)",
            " [And so.]",
            " **Done.**",
            " “Good.”",
            " On.",
        ],
        ["One is odd.", ' "Two" is even.', " (Three is odd.)", " **Four** is.", " - Five."],
        ["One is odd.  ", " Two is.\t", "Three."],
        ["What?!", " No!!", " Hmm...", " Let me see... so it is.", " Wait…", " Then on."],
        [
            "one is odd.",
            " two is even.",
            " 3 is odd.",
            " $4$ is even.",
            " \\(5\\) is odd.",
            " 🙂 Yes.",
        ],
        # Numbers and letters at a sentence's end.
        ["It is 3.14.", " Then 5.", " So 0.5.", " Pay $6.", " Pay $7. "],
        [
            "The answer is C.",
            " So point A.",
            " Draw it in 2D.",
            " Let x.",
            " So 2x.",
            " The GCD.",
            " It is I.",
        ],
        ["Is it No. 5.", " The answer is No.", " That is it.", " See Fig. 3.", " Then stop."],
        ["Take Option A.", " Wait, Point B.", " Done."],
        ["We have apples etc.", " They are 5 in.", " So it is."],
        # Lists inside a line: the number opens its sentence.
        ["Do this: 1. Add.", " 2. Multiply.", " (3) Stop.", " 4. The end."],
        ["We get four.", " 2. Then five."],
        # Formulas: a full stop behind one or inside its end closes the sentence.
        ["So $x = 1$.", " Then \\(y = 2\\).", " And $$z$$.", " It is \\[w\\].", " Done."],
        ["So $x = 1.$", " Then \\(y = 2.\\)", " And $$z. $$", " It is \\[w.\n\\]\n", "Done."],
        [
            "So \\begin{a}x.\\end{a}",
            " Then $b!$ is big and $c.$ too.",
            " And $\\left\\{a\\right.$ is.",
        ],
        ["It costs $5.", " He has $6 and pays $7.", " So $13 go."],
        # What is never closed goes on to the end; within a line, to a blank line.
        ["What is \\(open. So it is.\n\n", "And it is so.", " What \\[ open. So it is.\n\nEnd."],
        ["It is.\n", "```python\nx = 1. \nY = 2\n\nZ. W"],
        ["So \\begin{align*}\na. B\n\nC. D"],
        ["So we get $$x. Y"],
        ["It is so.", " Then $x = 1. Y"],
        ["It is \\[ open.\n\n", "Then \\[ x. \\] ends.", " So it is."],
        # Formulas with blanks inside their dollars, over two lines, and environments in others.
        ["So $ x = 1. Y $ is.", " Then $x =\n1. Y$ is.", " It costs $ 5.", " And $ 6 too."],
        ["\\begin{a}\\begin{a}x. Y\\end{a}. Z\\end{a*} is.", " End."],
        # Superscripts, subscripts, signs, letters of other scripts; quotes with backslashes.
        ["It is 3100 cm⁻¹.", " Maybe x₁.", " Then 5€.", " So ℝ.", " By 50%.", " At 30°.", " On π."],
        ['He said \\"No.\\"', ' Then \\"yes\\".', " So it is."],
        # Chinese.
        ["这是一。", "这是二！", "是三吗？", "“是四。”", "他说（是五。）", "第六句"],
        ["所以$x=1$。", "因此\\(y=2\\).", "正确.", "答案是3.", "好.", "完"],
        ["步骤如下：1.计算。", "2.求和。", "3.14是圆周率。", "等等……然后"],
        ["面积是3。", " So it is.\n", "好。\n", "【答案】C"],
        # Newlines end sentences, but not unfinished ones.
        ["# Title\n", "One line\n", "Another\n\n", "- item\n", "- other"],
        ["We have:\n\n- one\n", "- two,\n- three\n", "End"],
        [
            "The sum is\n\\[x\\]\nwhere it is.\n",
            "So\n$$y$$\n",
            "Then z\nand w\n",
            "a = 5\n",
            "foo_bar = 6",
        ],
        ["我们有：\n一，\n二\n", "三"],
        ["One.\r\n\r\n", "Two:\r\nthree\r\n", "Four"],
        [" \n One.\n", " Two.\n\n  "],
        [""],
        [" \n\n"],
        ["```\na. B\n```\n", "Done."],
    ],
)
def test_where_sentences_begin(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


def test_newlines_count_as_asked() -> None:
    text = "One\nTwo.\nThree\n\nFour:\n\nFive. Six"
    assert sentences(text) == ["One\n", "Two.\n", "Three\n\n", "Four:\n\nFive.", " Six"]
    assert sentences(text, newlines="blank") == [
        "One\nTwo.\n",
        "Three\n\n",
        "Four:\n\nFive.",
        " Six",
    ]
    assert sentences(text, newlines="never") == ["One\nTwo.\n", "Three\n\nFour:\n\nFive.", " Six"]


ENDED = st.sampled_from(
    [
        *(
            "The sum is 3.14.",
            "We add $x. Y$.",
            "Is it so?",
            'He said "no."',
            "**Done!**",
            "Take No. 5.",
        ),
        *(
            "(So it is.)",
            "By e.g. Dr. Who it is.",
            "It is \\(a. B.\\)",
            "这是一。",
            "“好吗？”",
            "It is C.",
        ),
    ]
)


@given(
    rows=st.lists(
        st.tuples(ENDED, st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", " \n "])), max_size=8
    ),
    newlines=st.sampled_from(["lines", "blank", "never"]),
)
def test_sentences_side_by_side_are_told_apart(rows: list[tuple[str, str]], newlines: str) -> None:
    text, expected = "It is so.", []
    gap = " "
    for sentence, following in rows:
        expected.append(len(text) + len(gap) - gap.endswith(" "))
        text, gap = text + gap + sentence, following
    assert list(Sentence(newlines=newlines).split(text)) == expected


PIECES = st.sampled_from(
    [
        "e.g. ",
        "1. ",
        "A. ",
        "So ",
        "。",
        ". ",
        ".",
        "! ",
        "...",
        "\n",
        "\n\n",
        "\r",
        "**",
        '"',
        ")",
        "(",
        ":",
    ]
) | st.sampled_from(
    [
        "\\[",
        "\\]",
        "\\(",
        "\\)",
        "$$",
        "$",
        "`",
        "```",
        "\\begin{a}",
        "\\end{a}",
        "\\",
        "a",
        "你",
        "😀",
        " ",
    ]
)
TEXTS = st.text() | st.lists(PIECES, max_size=30).map("".join)


@given(text=TEXTS, newlines=st.sampled_from(["lines", "blank", "never"]))
def test_any_text_is_cut_into_pieces_that_are_not_blank(text: str, newlines: str) -> None:
    found = sentences(text, newlines=newlines)
    assert "".join(found) == text
    assert len(found) == 1 or all(piece.strip() for piece in found)


@given(text=TEXTS.filter(lambda text: "\r" not in text))
def test_windows_newlines_change_nothing(text: str) -> None:
    expected = [piece.replace("\n", "\r\n") for piece in sentences(text)]
    assert sentences(text.replace("\n", "\r\n")) == expected


@pytest.mark.parametrize(
    "unit", ["(", "。", "a.", "$", "x", '"', "...", "\\(", " ", "\n", "甲", "€. "]
)
def test_babble_without_end_is_cut_too(unit: str) -> None:
    # The words that spaCy is given are bounded; unbounded ones would take it minutes here.
    text = unit * (20_000 // len(unit))
    assert "".join(sentences(text)) == text


def saved(folder: Path, *components: tuple[str, dict[str, Any]]) -> str:
    nlp = spacy.blank("en")
    for name, options in components:
        nlp.add_pipe(name, config=options)
    nlp.to_disk(folder)
    return str(folder)


def test_a_pipeline_of_ones_own_proposes_the_sentences(tmp_path: Path) -> None:
    own = saved(tmp_path, ("sentencizer", {"punct_chars": [";"]}))
    text = "One is odd; two is even; (three is $a; b$) odd. Four is"
    assert sentences(text, pipeline=own) == [
        "One is odd;",
        " two is even;",
        " (three is $a; b$) odd. Four is",
    ]


def test_a_pipeline_that_finds_no_sentences_gets_the_sentencizer(tmp_path: Path) -> None:
    own = saved(tmp_path)
    assert sentences("One is odd. Two is even.", pipeline=own) == ["One is odd.", " Two is even."]


def test_blank_pipelines_of_other_languages() -> None:
    text = "Das ist z.B. eins. Das ist 3.14! Gut"
    assert sentences(text, pipeline="blank:de") == ["Das ist z.B. eins.", " Das ist 3.14!", " Gut"]
    text = "We use e.g. Seven, 3.14. 这是一。这是“二。”对"
    expected = ["We use e.g. Seven, 3.14.", " 这是一。", "这是“二。”", "对"]
    assert sentences(text, pipeline="blank:zh") == expected


def test_the_pipeline_is_loaded_when_it_is_first_used() -> None:
    module._load.cache_clear()
    segmenter = pickle.loads(pickle.dumps(Sentence()))
    assert segmenter == Sentence()
    assert module._load.cache_info().currsize == 0
    assert segmenter.split("One. Two.") == Sentence().split("One. Two.") == [4]
    assert module._load.cache_info().misses == 1


def test_the_pipeline_is_loaded_anew_when_it_has_seen_too_many_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Sentence().split("One. Two.")
    assert module._load.cache_info().currsize == 1
    monkeypatch.setattr(module, "_MOST_WORDS", 0)
    assert Sentence().split("One. Two.") == [4]
    assert module._load.cache_info().currsize == 0


def test_the_space_before_a_sentence_goes_with_it_as_in_byte_level_tokens() -> None:
    text = "It is 3.14. So (a). Then\n\nb."
    words = ["It", " is", " 3", ".", "14", ".", " So", " (", "a", ").", " Then", "\n\n", "b", "."]
    ends = list(itertools.accumulate(map(len, words)))
    spans = [(end - len(word), end) for word, end in zip(words, ends, strict=True)]
    rollouts = make_rollouts([""], width=len(words))
    rollouts = rollouts.replace(
        texts=(text,),
        token_spans=rollouts.token_spans.new_tensor([spans]),
        action_mask=rollouts.action_mask.new_ones(1, len(words)),
    )
    found = Sentence(newlines="blank").segment(rollouts)
    assert isinstance(found, Segmentation)
    assert found.segment_ids.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]]


@parametrize_with_checks([Sentence(), Sentence(newlines="never")])
def test_contract(check) -> None:
    check()


def test_it_is_not_causal_and_says_so() -> None:
    assert not Sentence().causal
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(Sentence(), causal=True)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    newlines: Any = "all"
    with pytest.raises(ValueError, match="newlines is 'all'; expected 'lines', 'blank' or 'never'"):
        Sentence(newlines=newlines)
    for missing in ("en_core_web_xl", "", "torch", "no.such/folder"):
        with pytest.raises(ValueError, match=f"'python -m spacy download {missing}'"):
            Sentence(pipeline=missing)
    for language in ("", "qq", "../en"):
        with pytest.raises(ValueError, match="but spaCy has no language"):
            Sentence(pipeline=f"blank:{language}")


TAILS = [". Then it is.", "! So.", "。因此", '." So it.', "... Then", ".) We."]


@pytest.mark.parametrize("word", ["a", "甲", "a1", "-", "=", "\\"])
@pytest.mark.parametrize("tail", TAILS)
def test_sentences_end_after_words_of_any_length(word: str, tail: str) -> None:
    lengths = [len(word) * n for n in (4, *range(20, 130, 7))]
    found = [Sentence().split(word * (n // len(word)) + tail) for n in lengths]
    assert {starts[0] - n for starts, n in zip(found, lengths, strict=True)} == {
        found[0][0] - lengths[0]
    }


def test_long_words_are_not_cut() -> None:
    address, chinese = "https://example.org/" + "a" * 29, "甲" * 48
    assert sentences(f"{address}. Then we stop.") == [f"{address}.", " Then we stop."]
    assert sentences(f"{chinese}。因此是三。") == [f"{chinese}。", "因此是三。"]
    assert len(sentences("x.y;" * 40 + " is it")) == 1
