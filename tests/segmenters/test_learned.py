"""The learned segmenter: its plug-in, the shipped model, what is cut and what is not."""

import json
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from generated_text import records
from hypothesis import given, settings
from hypothesis import strategies as st

from segcredit import errors
from segcredit.testing import make_rollouts, parametrize_with_checks
from segmenters.learned import plugin as plugin_module
from segmenters.learned import stages
from segmenters.learned.agreement import counts_of, measures
from segmenters.learned.corpus import read_corpus
from segmenters.learned.model_file import load_model, save_model
from segmenters.learned.plugin import Learned
from segmenters.learned.training import fit
from segmenters.sentence import Sentence

FRESH = list(records(30, seed=7))
TEXTS = [str(record["text"]) for record in FRESH]
FOREIGN = (
    "The committee met on Tuesday. Nobody objected, although rumours had circulated. Afterwards"
    " delegates lingered. Some whispered."
)


@parametrize_with_checks(
    [Learned(), Learned(unknown="model"), Learned(per_100_tokens=8.0), Learned(threshold=0.2)]
)
def test_contract(check):
    check()


def test_what_the_environment_wrote_is_not_read():
    text = next(text for text in TEXTS if len(Learned().split(text)) > 2)
    half = text.index(" ", len(text) // 2)
    said, observed = (text[:half], text[half:]), "Error. Line 3: nothing. Done?\n\n1. So"
    inside = range(half, half + len(observed))

    def cut(text, holes):
        rollouts = make_rollouts(["a" * len(text)], holes={0: holes}, truncated=[0])
        return Learned().segment(rollouts.replace(texts=(text,))).segment_ids[0].tolist()

    plain = cut("".join(said), [])
    found = cut(observed.join(said), inside)
    assert max(plain) > 1
    assert [id for place, id in enumerate(found) if place not in inside] == plain
    assert {found[place] for place in inside} == {-1}


def test_shipped_model_knows_the_style_it_was_trained_on():
    # Names, numbers and order of styles are drawn anew: seed 7 is not the training's.
    given = [np.asarray(record["boundaries"]) for record in FRESH]
    predicted = [np.asarray(row, int) for row in Learned().split_all(TEXTS)]
    assert measures(counts_of(predicted, given).sum(0))[0] > 0.9


def test_shipped_model_is_small():
    from segmenters.learned.model_file import SHIPPED

    assert SHIPPED.stat().st_size < 1_000_000


def test_foreign_text_is_cut_into_sentences_unless_the_model_is_insisted_on():
    sentences = [start + 1 for start in Sentence().split(FOREIGN)]
    assert [FOREIGN[start:].split()[0] for start in sentences] == ["Nobody", "Afterwards", "Some"]
    assert Learned().split(FOREIGN) == sentences
    model = load_model("default")
    judgement = stages.judge(model, [FOREIGN])
    own = judgement.candidates.offsets_C[judgement.probabilities_C > model.threshold].tolist()
    assert Learned(unknown="model").split(FOREIGN) == own != sentences
    # Whoever gives a threshold has taken the granularity upon himself.
    assert Learned(threshold=model.threshold).split(FOREIGN) == own


def test_what_is_no_style_of_training_is_cut_into_our_sentences():
    # List numbers and formulas are no sentences, Chinese has no white space to look at.
    texts = ["1. First $a. B$ is.\n2. Next e.g. This.", "我们先计算面积。然后$x=1$。", "\n\n"]
    found = Learned().split_all(texts)
    assert [texts[0][k:].split()[0] for k in found[0]] == ["2."]
    assert found[1:] == [[8], []]
    assert Learned(unknown="model").split(texts[1]) == []


@pytest.mark.parametrize(
    ("usual", "told"),
    [("known", r"in 95 % of .* 0.21 to 1.3, in texts of"), (None, "by the median. These")],
)
def test_a_model_that_hardly_cuts_gives_way_to_sentences_and_says_so_once(tmp_path, usual, told):
    shipped = load_model("default")
    kept = shipped.usual if usual else None
    model = replace(shipped, threshold=0.9999, familiar=0.0, usual=kept)
    name = str(tmp_path / "timid.skops")
    save_model(model, tmp_path / "timid.skops")
    text = " ".join(f"Then number {n} is odd." for n in range(20))
    words = "0 cuts in 1 of 2 texts, where sentences would make 19: "
    with pytest.warns(UserWarning, match=f"{words}0.05 segments .*{told}"):
        found = Learned(model=name).split_all([text, "Go."])
    with warnings.catch_warnings(action="error"):
        again = Learned(model=name).split(text)
    assert found == [[start + 1 for start in Sentence().split(text)], []]
    assert again == found[0]
    assert Learned(model=name, unknown="model").split(text) == []
    assert Learned(model=name, threshold=0.9999).split(text) == []


def test_a_model_that_cuts_far_more_than_in_training_gives_way_too(tmp_path):
    model = replace(load_model("default"), threshold=1e-6, familiar=0.0)
    save_model(model, tmp_path / "eager.skops")
    name = str(tmp_path / "eager.skops")
    with pytest.warns(UserWarning, match="likely of another kind"):
        found = Learned(model=name).split_all(TEXTS)
    cut_by_model = Learned(model=name, unknown="model").split_all(TEXTS)
    sentences = [
        [start + text[start].isspace() for start in Sentence().split(text)] for text in TEXTS
    ]
    given_way = [row for row in range(len(TEXTS)) if found[row] != cut_by_model[row]]
    assert given_way
    assert all(found[row] == sentences[row] for row in given_way)


def test_hardly_a_text_like_training_gives_way():
    texts = [str(record["text"]) for record in records(300, seed=11)]
    own, default = (Learned(unknown=kind).split_all(texts) for kind in ("model", "sentences"))
    assert sum(a != b for a, b in zip(own, default, strict=True)) < 0.02 * len(texts)


def test_surprise_is_counted_in_training_and_grows_beyond_it():
    usual = stages.Usual(np.array([0.5, 0.7, 0.9]), np.log([1.0, 2.0, 4.0]), limit=3.0)
    shares_D = np.array([0.9, 0.5, 0.9, 0.9, 0.1])
    rates_D = np.log([2.0, 2.0, 0.25, 16.0, 0.25])
    # Shares at or below: 3, 1, 3, 3, 0 of 3; rates as far out: 2, 2, 0, 0, 0, and 4 times beyond.
    expected = [3.5 / 4 * 1, 1.5 / 4 * 1, 3.5 / 4 / 16, 3.5 / 4 / 16, 0.5 / 4 / 16]
    assert np.allclose(usual.surprise(shares_D, rates_D), -np.log(expected))


def test_texts_like_training_bring_no_warning(recwarn):
    Learned().split_all(TEXTS)
    assert not [told for told in recwarn if "boundary model" in str(told.message)]


def test_text_like_training_is_no_fallback():
    assert stages.judge(load_model("default"), TEXTS).known_D.mean() > 0.9


@given(st.floats(0.5, 60))
@settings(max_examples=15)
def test_granularity_is_segments_per_hundred_words(rate):
    judgement = stages.judge(load_model("default"), TEXTS)
    documents_C = judgement.candidates.documents_C
    all_offsets = Learned(per_100_tokens=rate).split_all(TEXTS)
    for row, (text, offsets) in enumerate(zip(TEXTS, all_offsets, strict=True)):
        of_row = documents_C == row
        probabilities = judgement.probabilities_C[of_row]
        ranked = sorted(zip(-probabilities, judgement.candidates.offsets_C[of_row], strict=True))
        wanted = max(int(np.rint(len(text.split()) * rate / 100)) - 1, 0)
        assert offsets == sorted(int(offset) for _, offset in ranked[:wanted])


def test_a_higher_threshold_keeps_a_part_of_the_boundaries():
    rows = [Learned(threshold=t).split_all(TEXTS) for t in (0.05, 0.5, 0.95)]
    for few, more in ((rows[1], rows[0]), (rows[2], rows[1])):
        assert all({*a} <= {*b} for a, b in zip(few, more, strict=True))
    assert sum(map(len, rows[2])) < sum(map(len, rows[0]))
    assert not any(Learned(threshold=1.0).split_all(TEXTS))


def test_rollouts_are_judged_in_one_batch(monkeypatch):
    texts = ["12 + a = 12. So a", "", "$x$. So 12 = a\n\nStep 2: a"]
    calls = []
    judge = stages.judge
    monkeypatch.setattr(stages, "judge", lambda *args: calls.append(list(args[1])) or judge(*args))
    segmentation = Learned(threshold=0.1).segment(make_rollouts(texts))
    assert calls == [texts]
    for row, text in enumerate(texts):
        starts = segmentation.starts[row].nonzero().flatten().tolist()
        # One token a character: the blanks before a word are of its segment, newlines are not.
        visible = Learned(threshold=0.1).split(text)
        assert [s for s in starts if s] == [len(text[:k].rstrip(" ")) for k in visible]


def test_a_long_batch_is_read_in_parts_with_the_same_result(monkeypatch):
    whole = Learned().split_all(TEXTS)
    monkeypatch.setattr(plugin_module, "_BATCH", 1000)
    assert plugin_module._batches(TEXTS)[-1][1] == len(TEXTS) > len(plugin_module._batches(TEXTS))
    assert len(plugin_module._batches(TEXTS)) > 5
    assert Learned().split_all(TEXTS) == whole


def test_nothing_to_cut():
    assert Learned().split_all([]) == []
    assert Learned().split_all(["", " ", "\n\n", "word", "  word "]) == [[], [], [], [], []]
    assert Learned(per_100_tokens=50.0).split_all(["", "我们先计算面积。然后计算周长。"]) == [
        [],
        [],
    ]


def test_offsets_are_of_visible_characters_after_white_space():
    texts = ["  So \ud83d x.\n\n  Then 🙂 y.  Wait, z. ", *TEXTS]
    for text, offsets in zip(texts, Learned(threshold=0.0).split_all(texts), strict=True):
        assert offsets
        assert all(text[k - 1].isspace() and not text[k].isspace() for k in offsets)
        assert all(text[:k].strip() for k in offsets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "probability between 0 and 1"),
        ({"threshold": math.nan}, "probability between 0 and 1"),
        ({"per_100_tokens": 0.0}, "such as 5"),
        ({"per_100_tokens": math.inf}, "such as 5"),
        ({"per_100_tokens": 5.0, "threshold": 0.5}, "one of them"),
        ({"unknown": "guess"}, "unknown is 'guess'; expected 'sentences' or 'model'"),
    ],
)
def test_options_are_checked(options, words, unchecked):
    with pytest.raises(ValueError, match=words):
        Learned(**options)


def test_missing_model_is_a_sentence(tmp_path):
    with pytest.raises(errors.ConfigError, match="fit-boundaries"):
        Learned(model=str(tmp_path / "none.skops")).split("a b")


# Signals of the policy: texts that betray nothing, entropies that betray everything.


def _betrayed(number, *, with_signals):
    """Words drawn from five, a boundary before every word whose entropy is high."""
    draw = np.random.default_rng(number)
    words = draw.choice(["Go", "Up", "On", "By", "At"], 60)
    high = draw.random(60) < 0.15
    high[0] = False
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    record = {
        "text": " ".join(words),
        "problem": f"p{number}",
        "boundaries": starts[high].tolist(),
        # Tokens begin with the blank before their word, as those of byte-level BPE do.
        "token_starts": np.maximum(starts - 1, 0).tolist(),
        "entropies": np.where(high, 2.0, 0.3).tolist(),
        "logprobs": (-draw.random(60)).tolist(),
    }
    if not with_signals:
        record = {key: record[key] for key in ("text", "problem", "boundaries")}
    return record


def _fitted(folder, *, with_signals):
    data = folder / f"{with_signals}.jsonl"
    rows = [_betrayed(number, with_signals=with_signals) for number in range(24)]
    data.write_text("\n".join(map(json.dumps, rows)))
    return fit(read_corpus(data), folds=3)


def test_entropy_that_betrays_the_boundary_is_used(tmp_path):
    with_them, without = (_fitted(tmp_path, with_signals=yes) for yes in (True, False))
    assert with_them.model.signals
    assert not without.model.signals
    assert measures(with_them.counts_D3.sum(0))[0] > 0.97
    assert measures(without.counts_D3.sum(0))[0] < 0.5

    save_model(with_them.model, tmp_path / "signals.skops")
    segmenter = Learned(model=str(tmp_path / "signals.skops"), unknown="model")
    with pytest.raises(errors.PluginError, match="a text alone has none"):
        segmenter.split("Go Up")
    _check_rollouts(segmenter)


def _check_rollouts(segmenter):
    """New rollouts, with NaN on masked tokens."""
    rows = [_betrayed(number, with_signals=True) for number in (100, 101)]
    width = 62
    starts_BT = torch.tensor([[*row["token_starts"], 0, 0] for row in rows])
    entropies_BT = torch.tensor([[*row["entropies"], math.nan, math.nan] for row in rows])
    blank = make_rollouts(["a" * (width - 1)] * 2)
    mask_BT = torch.ones(2, width, dtype=torch.bool)
    mask_BT[:, 60:] = False
    rollouts = replace(
        blank,
        texts=tuple(row["text"] for row in rows),
        entropies=entropies_BT,
        logprobs=torch.zeros(2, width),
        token_spans=torch.stack([starts_BT, starts_BT + 1], dim=2),
        action_mask=mask_BT,
    )
    segmentation = segmenter.segment(rollouts)
    for row, record in enumerate(rows):
        firsts = [k - 1 for k in record["boundaries"]]
        tokens = [record["token_starts"].index(first) for first in firsts]
        found = segmentation.starts[row].nonzero().flatten().tolist()
        assert len({*found} ^ {0, *tokens}) <= 1
    again = pickle.loads(pickle.dumps(segmenter)).segment(rollouts)
    assert torch.equal(again.segment_ids, segmentation.segment_ids)
