"""Reflection: markers in two languages, where they count, and where they do not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit import PluginError, Segmentation
from segcredit.testing import check_segmenter, make_rollouts, parametrize_with_checks
from segmenters.reflection import Reflection


def segments(text: str, **options: Any) -> list[str]:
    edges = [0, *Reflection(**options).split(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


MARKED = {
    "doubt": [
        "Wait, no.",
        "wait a second.",
        "Hmm.",
        "Hmmm, that is odd.",
        "Hold on.",
        "Oops, a slip.",
        "But wait, there is more.",
        "So wait.",
        "No, wait, it is four.",
        "Oh, hold on.",
        "That's wrong.",
        "That is not right.",
        "Something’s off here.",
        "I made a mistake.",
        "Oh no, I must have slipped.",
        "I must have mixed up the rows.",
        "That can't be right.",
        "等等，这里有问题。",
        "等一下。",
        "不对，应该是三。",
        "嗯，好像是。",
        "哦，等等。",
        "我算错了。",
    ],
    "check": [
        "Let me check.",
        "Let me restart.",
        "Let me confirm once more:",
        "So, we need to recalculate.",
        "I should double-check that.",
        "所以，我们需要重新计算。",
        "Let me re-check the sum.",
        "Let's verify it.",
        "Let us double-check.",
        "Let me just reconsider.",
        "Let me re-express this.",
        "let me carefully recount them.",
        "Let me try again.",
        "Upon re-examination it fails.",
        "On closer inspection it holds.",
        "Looking back, it is five.",
        "Double-checking: yes.",
        "让我再想想。",
        "让我们重新检查。",
        "重新计算一遍。",
        "仔细想想。",
        "验证一下。",
        "我们再检查一次。",
    ],
    "change": [
        "Actually, it is five.",
        "Alternatively, use sines.",
        "On second thought, no.",
        "Another approach is this.",
        "Let's try a different method.",
        "Let me consider another case.",
        "其实是四。",
        "实际上不成立。",
        "换一种方法。",
        "换个思路。",
        "另一种方法是这样。",
    ],
}
UNMARKED = [
    "We wait for it.",
    "Let's check:",
    "**Let's verify:**",
    "检查一下：",
    "I might have three.",
    "Wait times are long.",
    "Wait for three days.",
    "Waiting is hard.",
    "Waiters come.",
    "The actual value is 3.14.",
    "I can check it later.",
    "Let me add them.",
    "Let me remember this.",
    "Let us represent it.",
    "Upon receiving three, stop.",
    "That is right.",
    "Humming is nice.",
    "So the sum is five.",
    "No, it is not.",
    "But it holds.",
    "等式成立。",
    "不对称的图形。",
    "不对应的边。",
    "我们算出面积。",
    "首先，求和。",
    "这等等都对。",
    "🙂 fine.",
    "Take $x$. Then \\(y\\) is one.",
]
KINDS = [(kind, marker) for kind, markers in MARKED.items() for marker in markers]


@pytest.mark.parametrize(("kind", "marker"), KINDS, ids=[marker for _, marker in KINDS])
def test_markers_open_a_segment_and_belong_to_their_kind(kind: str, marker: str) -> None:
    assert segments(f"Take it. {marker} So on.") == ["Take it.", f" {marker} So on."]
    assert segments(f"面积是三。{marker}好。") == ["面积是三。", f"{marker}好。"]
    others = tuple(other for other in MARKED if other != kind)
    assert segments(f"Take it.\n{marker}", kinds=(kind,)) == ["Take it.\n", marker]
    assert len(segments(f"Take it.\n{marker}", kinds=others)) == 1


@pytest.mark.parametrize("sentence", UNMARKED)
def test_other_words_do_not(sentence: str) -> None:
    assert len(segments(f"Take it. {sentence}\n{sentence} 好。{sentence}")) == 1


@pytest.mark.parametrize(
    "expected",
    [
        # The number of a list item opens with its marker.
        ["So:\n", "6. **Let's revisit it.**\n  ", " 12) Let me recount."],
        # Line and sentence starts, behind bullets, quotes, emphasis and tags; any case.
        ["a = 1\n\n", "Wait, a = 2.", " hmm, no.", " WAIT."],
        ["One.\n", "- Wait, two.\n", "> Actually, three.\n", "**Hold on**, four.\n", '"Wait," he'],
        ["<think>\n", "Wait. Is it?\n</think>\n", "<answer>Actually 4"],
        ["Is it (so)?", " Wait!", " (Hmm, yes.)", " Alternatively, no."],
        ['He said "five."', " Wait, six."],
        ["One...", " Wait... two…", " hmm."],
        ["他说“是三。”", "等等，“四？”", "不对。"],
        # Not in the middle of a sentence, nor behind a full stop inside a word.
        ["I said wait, and let me check, hmm, actually: alternatively."],
        ["See a.Wait and b.actually"],
        # Markers with nothing but punctuation between them open one segment.
        ["No.", " Hmm. Wait, actually, let me check. It is."],
        ["三。", "等等，不对。重新计算。四。"],
        ["No.", " Wait.\n", "Hmm."],
        # Blanks: one space goes with the marker, what comes before it does not.
        ["One.  ", " Wait.\n   ", " Hmm.\n\t", "Wait."],
        [" \n Wait. One."],
        ["One.\r\n\r\n", "Wait, two.\r\n", "hmm."],
        [""],
        ["  \n "],
    ],
)
def test_where_markers_count(expected: list[str]) -> None:
    assert segments("".join(expected)) == expected


BLANKS = st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "  \n ", "\n\t"])
OPENINGS = st.sampled_from(["", "- ", "> **", '"', "(", "* _"])
SENTENCES = st.sampled_from([*((m, True) for _, m in KINDS), *((s, False) for s in UNMARKED)])


@given(rows=st.lists(st.tuples(BLANKS, OPENINGS, SENTENCES), max_size=8))
def test_segments_begin_at_the_marked_sentences_and_nowhere_else(rows: list[Any]) -> None:
    text, expected = "Take it.", []
    for blanks, opening, (sentence, marked) in rows:
        if marked:
            expected.append(len(text) + len(blanks) - blanks.endswith(" "))
        text += f"{blanks}{opening}{sentence} It is so."
    assert list(Reflection().split(text)) == expected


PIECES = st.sampled_from(
    [
        "Wait",
        "等等",
        "Hmm",
        ", ",
        ".",
        "。",
        " ",
        "\n",
        "\r",
        "- ",
        "**",
        "a",
        "But ",
        "let me check",
    ]
)
TEXTS = st.text() | st.lists(PIECES, max_size=30).map("".join)


@given(text=TEXTS)
def test_any_text_is_cut_into_pieces_that_are_not_blank(text: str) -> None:
    found = segments(text)
    assert "".join(found) == text
    assert len(found) == 1 or all(piece.strip() for piece in found)


@given(text=TEXTS.filter(lambda text: "\r" not in text))
def test_windows_newlines_change_nothing(text: str) -> None:
    expected = [piece.replace("\n", "\r\n") for piece in segments(text)]
    assert segments(text.replace("\n", "\r\n")) == expected


def test_extra_markers_are_literal_and_may_stand_alone() -> None:
    text = "One. Scratch that! Two. Wait. 且慢，三。 a.b four. axb"
    extra = ("scratch that", "且慢", "a.b")
    assert segments(text, kinds=(), extra=extra) == [
        "One.",
        " Scratch that! Two. Wait.",
        " 且慢，三。",
        " a.b four. axb",
    ]
    assert segments("One. Wait. Scratch that.", extra=extra) == ["One.", " Wait. Scratch that."]
    # A marker ends where its word does.
    assert segments("One. Nayless.", kinds=(), extra=("nay",)) == ["One. Nayless."]


def test_the_space_before_a_marker_goes_with_it_as_in_byte_level_tokens() -> None:
    text = "One. Wait, two.\n\nHmm."
    words = ["One", ".", " Wait", ",", " two", ".\n\n", "Hmm", "."]
    ends = list(itertools.accumulate(map(len, words)))
    spans = [(end - len(word), end) for word, end in zip(words, ends, strict=True)]
    rollouts = make_rollouts([""], width=len(words))
    rollouts = rollouts.replace(
        texts=(text,),
        token_spans=rollouts.token_spans.new_tensor([spans]),
        action_mask=rollouts.action_mask.new_ones(1, len(words)),
    )
    found = Reflection().segment(rollouts)
    assert isinstance(found, Segmentation)
    assert found.segment_ids.tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]]


@parametrize_with_checks([Reflection(), Reflection(kinds=(), extra=("So", "等等"))])
def test_contract(check) -> None:
    check()


def test_it_is_not_causal_and_says_so() -> None:
    assert not Reflection().causal
    with pytest.raises(PluginError, match="from the tokens before it alone"):
        check_segmenter(Reflection(kinds=(), extra=("a", "So")), causal=True)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    kinds: Any = ("doubt", "anger")
    with pytest.raises(ValueError, match="kinds holds 'anger'; expected some of 'doubt', 'check'"):
        Reflection(kinds=kinds)
    with pytest.raises(ValueError, match="extra holds an empty marker"):
        Reflection(extra=("nay", " "))
    with pytest.raises(ValueError, match="kinds and extra are both empty"):
        Reflection(kinds=())
