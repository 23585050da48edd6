"""The learned segmenter: tokens, cross-validation without leaks, model files, bad input."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skops.io
import spacy
from generated_text import records
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import FunctionTransformer

from segcredit import errors
from segmenters.learned import stages, tokens
from segmenters.learned.agreement import counts_of, intervals, measures, paired_difference
from segmenters.learned.command import fit_boundaries
from segmenters.learned.corpus import read_corpus
from segmenters.learned.features import (
    DENSE_FEATURES,
    dense_features,
    find_candidates,
    hashed_features,
)
from segmenters.learned.model_file import _TRUSTED, SHIPPED, load_model, save_model
from segmenters.learned.sentences import sentence_starts
from segmenters.learned.signals import SIGNAL_FEATURES, signal_features
from segmenters.learned.tokens import read_tokens
from segmenters.learned.training import best_threshold, fit

SMALL = list(records(30, seed=3))
PIPELINE = spacy.blank("en")
ALPHABET = "ab A1.,:;!?()[]+=-$\\*#'\" \n\té中"
texts = st.lists(st.text(ALPHABET, max_size=25), max_size=5)


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return read_corpus(written(tmp_path_factory.mktemp("learned") / "small.jsonl", SMALL))


@pytest.fixture(scope="module")
def fitted(corpus):
    return fit(corpus, folds=3)


# Tokens and candidates against loops over spaCy's own tokens.


@given(texts)
def test_token_table_is_spacys_tokens_without_white_space(rows):
    table = tokens.read_tokens(rows)
    for number, text in enumerate(rows):
        inside = table.documents_N == number
        starts = table.starts_N[inside] - table.first_characters_D[number]
        ends = table.ends_N[inside] - table.first_characters_D[number]
        expected = [(t.idx, t.idx + len(t)) for t in PIPELINE.make_doc(text) if not t.is_space]
        assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected
        gaps = [text[end:start] for end, start in zip([0, *ends], starts, strict=False)]
        assert table.gaps_N[inside].tolist() == [
            0 if not gap else 1 + min(gap.count("\n"), 2) for gap in gaps
        ]


@given(texts)
def test_candidates_are_tokens_after_white_space(rows):
    table = tokens.read_tokens(rows)
    every, fast = (find_candidates(table, which) for which in ("all", "fast"))
    for number, text in enumerate(rows):
        visible = [match.start() for match in re.finditer(r"(?<=\s)\S", text)]
        expected = [place for place in visible if text[:place].strip()]
        assert every.offsets_C[every.documents_C == number].tolist() == expected
        kept = [place for place in expected if likely(text, place)]
        assert fast.offsets_C[fast.documents_C == number].tolist() == kept


def likely(text, place):
    before = text[:place].rstrip()
    continues = text[place] in "abcdefghijklmnopqrstuvwxyz+-*/=<>^|"
    return not continues or before[-1] in ".:!?]" or "\n" in text[len(before) : place]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"a \(b c\) d", "b c"),
        (r"a \[b \] c \( d", "b d"),
        ("pay $5 and $6 now", ""),
        ("so $x $ is $y$ and", "x y"),
        (r"\alpha $5 $ and 6", "5"),
        ("so $$x y$$ z", "x y"),
    ],
)
def test_formulas_are_seen(text, inside):
    for other in ("", "never \\( closed $x "):  # the document before must not matter
        table = tokens.read_tokens([other, text])
        chosen = (table.documents_N == 1) & ((table.states_N & 7) > 0)
        first = table.first_characters_D[1]
        words = [
            text[a - first : b - first]
            for a, b in zip(table.starts_N[chosen], table.ends_N[chosen], strict=True)
        ]
        assert "".join(re.findall(r"\w", "".join(words))) == inside.replace(" ", "")


@given(st.lists(st.text(ALPHABET, max_size=40), min_size=2, max_size=4))
@settings(max_examples=15)
def test_no_text_influences_another_to_the_last_bit(rows):
    model = load_model("default")
    whole = stages.judge(model, rows)
    for number, text in enumerate(rows):
        alone = stages.judge(model, [text])
        of_row = whole.candidates.documents_C == number
        assert np.array_equal(whole.probabilities_C[of_row], alone.probabilities_C)
        assert whole.known_D[number] == alone.known_D[0]


def test_a_full_vocabulary_is_begun_anew(monkeypatch):
    before = tokens.read_tokens(["Some words here."])
    known = tokens.language()
    monkeypatch.setattr(tokens, "_MOST_WORDS", 1)
    after = tokens.read_tokens(["Some words here."])
    assert tokens.language() is not known
    assert np.array_equal(before.words_N, after.words_N)


def test_surrogates_are_read():
    table = tokens.read_tokens(["a \ud83d b. C"])
    assert table.first_characters_D.tolist() == [0, 8]


# Cross-validation.


def test_learns_generated_solutions(fitted, corpus):
    learned = measures(fitted.counts_D3.sum(0))[0]
    sentences_D3 = counts_of(sentence_starts(corpus.texts), corpus.boundaries)
    assert learned > 0.8 > 0.65 > measures(sentences_D3.sum(0))[0]
    difference, (low, high) = paired_difference(fitted.counts_D3, sentences_D3)
    assert 0 < low < difference < high
    assert fitted.counts_D3.tolist() == counts_of(fitted.predicted, corpus.boundaries).tolist()


def test_problems_are_never_apart(fitted, corpus):
    folds = {}
    for problem, fold in zip(corpus.problems, fitted.folds_D.tolist(), strict=True):
        assert folds.setdefault(problem, fold) == fold
    assert len(set(folds.values())) == 3


def test_a_folds_own_labels_never_reach_its_probabilities(fitted, corpus):
    hidden = fitted.folds_D == 1
    boundaries = tuple(
        given[:1] if hide else given for given, hide in zip(corpus.boundaries, hidden, strict=True)
    )
    other = fit(replace(corpus, boundaries=boundaries), folds=3)
    in_fold = hidden[fitted.candidates.documents_C]
    for ours, theirs in ((fitted.first_C, other.first_C), (fitted.second_C, other.second_C)):
        assert np.array_equal(ours[in_fold], theirs[in_fold])
        assert not np.array_equal(ours[~in_fold], theirs[~in_fold])


@given(
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_threshold_is_the_best_of_all(pairs, unreachable):
    probabilities = np.array([p for p, _ in pairs]) / 8
    labels = np.array([label for _, label in pairs])
    given_count = int(labels.sum()) + unreachable

    def f1(threshold):
        chosen = probabilities > threshold
        return 2 * (labels & chosen).sum() / max(chosen.sum() + given_count, 1)

    found = best_threshold(probabilities, labels, given_count)
    assert f1(found) == pytest.approx(max(f1(t) for t in (-1.0, *probabilities - 1e-9)))


def test_figures_of_a_worked_example():
    predicted = [np.array([3, 9]), np.array([], int), np.array([4])]
    given_ = [np.array([3, 7, 9]), np.array([5]), np.array([4])]
    counts_D3 = counts_of(predicted, given_)
    assert counts_D3.tolist() == [[2, 2, 3], [0, 0, 1], [1, 1, 1]]
    assert measures(counts_D3.sum(0)) == (6 / 8, 1.0, 3 / 5)
    (low, high), *_ = intervals(counts_D3)
    assert 0 <= low <= 6 / 8 <= high <= 1
    assert paired_difference(counts_D3, counts_D3)[1].tolist() == [0, 0]


# Model files.


def test_a_saved_model_says_the_same(fitted, tmp_path):
    path = tmp_path / "below" / "model.skops"
    save_model(fitted.model, path)
    rows = [str(record["text"]) for record in SMALL[:9]]
    ours, theirs = stages.judge(fitted.model, rows), stages.judge(load_model(str(path)), rows)
    assert np.array_equal(ours.probabilities_C, theirs.probabilities_C)
    assert np.array_equal(ours.known_D, theirs.known_D)
    assert load_model(str(path)).threshold == fitted.model.threshold
    assert load_model(str(path)) is load_model(str(path))


def test_no_pickle_in_the_shipped_model():
    names = zipfile.ZipFile(Path(tokens.__file__).parent / "default.skops").namelist()
    assert {name.rpartition(".")[2] for name in names} == {"json", "npy"}


def test_foreign_types_are_refused(tmp_path):
    path = tmp_path / "evil.skops"
    skops.io.dump({"trees": FunctionTransformer(Path.exists)}, path)
    with pytest.raises(errors.ConfigError, match=r"types pathlib.*do not trust"):
        load_model(str(path))


@pytest.mark.parametrize("content", [b"", b"PK no zip", {"format": "other"}, [1], 5])
def test_what_is_no_model_is_a_sentence(content, tmp_path):
    path = tmp_path / "model.skops"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        skops.io.dump(content, path)
    for name in (path, tmp_path):
        with pytest.raises(errors.ConfigError, match="is no boundary model"):
            load_model(str(name))
    with pytest.raises(errors.ConfigError, match=r"cannot be read: No such file.*fit-boundaries"):
        load_model(str(tmp_path / "none.skops"))


def rewritten(path, **changes):
    """Stores the shipped model with other nodes in its first tree, or other entries."""
    table = skops.io.load(SHIPPED, trusted=list(_TRUSTED))
    nodes = table["trees"]._predictors[0][0].nodes
    for name, (place, value) in changes.pop("nodes", {}).items():
        nodes[name][place] = value
    table["trees"]._predictors[0][0].nodes = nodes[: changes.pop("length", None)]
    skops.io.dump(table | changes, path)
    return path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nodes": {"left": (0, 10**6)}}, "leads back or out"),
        ({"nodes": {"right": (1, 0)}}, "leads back or out"),
        ({"nodes": {"right": (1, 1)}}, "leads back or out"),
        ({"nodes": {"is_leaf": (-1, 0)}}, "leads back or out"),
        ({"nodes": {"feature_idx": (0, 67)}}, "a feature beyond"),
        ({"nodes": {"feature_idx": (0, -1)}}, "a feature beyond"),
        ({"nodes": {"is_categorical": (0, 1)}}, "no training makes"),
        ({"nodes": {"num_threshold": (0, np.nan)}}, "no training makes"),
        ({"nodes": {"value": (2, np.inf)}}, "not finite"),
        ({"length": 0}, "no nodes"),
        ({"length": 3}, "leads back or out"),
        ({"trees": "none"}, "no attribute"),
        ({"weights": np.full(2, np.nan, np.float32), "buckets": np.arange(2)}, "finite"),
        ({"weights": np.ones(2, np.float32), "buckets": np.array([0, 2**20])}, "beyond"),
        ({"weights": np.ones(2, np.float32), "buckets": np.array([-1, 0])}, "beyond"),
        ({"threshold": float("nan")}, "entry 'threshold' is nan"),
        ({"blend": 2.0}, "entry 'blend' is 2.0"),
        ({"candidates": "some"}, "entry 'candidates'"),
        ({"signals": True}, "read 67 inputs, and there are 73"),
        ({"usual_shares_K": np.array([0.9, 0.1])}, "finite and ascending"),
        ({"usual_rates_K": np.array([0.1, np.nan])}, "finite and ascending"),
        ({"usual_rates_K": np.zeros(0)}, "finite and ascending"),
        ({"usual_shares_K": np.array(["a"])}, "no numbers"),
        ({"usual_rates_K": None}, "no numbers"),
        ({"usual_limit": float("inf")}, "entry 'usual_limit' is inf"),
    ],
)
def test_a_hostile_model_is_a_sentence(changes, why, tmp_path):
    path = rewritten(tmp_path / "model.skops", **changes)
    with pytest.raises(errors.ConfigError, match=f"is no boundary model .*{why}"):
        load_model(str(path))


def test_what_unpacks_to_more_than_a_model_is_not_unpacked(tmp_path):
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("1.npy", bytes(2**26))
    with pytest.raises(errors.ConfigError, match="it unpacks to 2 parts of"):
        load_model(str(path))


def test_the_inputs_of_the_trees_are_as_many_as_they_are_checked_for():
    found = find_candidates(read_tokens(["One two. Three four."]), "all")
    assert dense_features(found, np.zeros(len(found)), None).shape[1] == DENSE_FEATURES
    assert signal_features([], *np.zeros((2, 0), np.int64)).shape[1] == SIGNAL_FEATURES


def test_a_model_with_a_wrong_entry_is_a_sentence(tmp_path):
    path = tmp_path / "model.skops"
    skops.io.dump({"format": "segcredit boundaries 1", "buckets": "many"}, path)
    with pytest.raises(errors.ConfigError, match="entry 'buckets' is str"):
        load_model(str(path))


# Bad input.

GOOD = {"text": "One. Two. Three.", "boundaries": [5, 10], "problem": "p"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": None}, "line 2 has no 'text'"),
        ({"boundaries": None}, "line 2 has no 'boundaries'"),
        ({"problem": None}, "line 2 has no 'problem'"),
        ({"boundaries": "5"}, "whole numbers"),
        ({"boundaries": [5.0]}, "whole numbers"),
        ({"boundaries": [True]}, "whole numbers"),
        ({"boundaries": [16]}, r"line 2: boundaries has the offset 16 for a text of 16"),
        ({"boundaries": [-1]}, "offset -1"),
        ({"entropies": [0.1]}, "no 'token_starts'"),
        ({"token_starts": [0], "entropies": [0.1], "logprobs": []}, "1, 1 and 0 entries"),
        (
            {"token_starts": [0, 4], "entropies": [0.1, 0.2], "logprobs": [0.1, 0.2]},
            "for 1 of 2 documents",
        ),
    ],
)
def test_bad_records_are_sentences(change, words, tmp_path):
    changed = {**GOOD, **change}
    record = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(errors.StudyError, match=words):
        read_corpus(written(tmp_path / "data.jsonl", [GOOD, record]))


def test_bad_files_are_sentences(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(errors.StudyError, match="cannot be read"):
        read_corpus(path)
    path.write_text(json.dumps(GOOD) + "\n\n{oops\n")
    with pytest.raises(errors.StudyError, match="line 3 is not JSON"):
        read_corpus(path)
    path.write_text("[1]")
    with pytest.raises(errors.StudyError, match="no JSON object"):
        read_corpus(path)
    with pytest.raises(errors.StudyError, match="not one boundary"):
        read_corpus(written(path, [{**GOOD, "boundaries": []}]))
    with pytest.raises(errors.StudyError, match="no annotation by 'A'"):
        read_corpus(written(path, [GOOD]), "A")


def test_too_little_to_learn_from_is_a_sentence(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(errors.StudyError, match="1 problem; expected at least 3"):
        fit(read_corpus(written(path, [GOOD, GOOD])))
    several = [{**GOOD, "problem": f"p{k}"} for k in range(3)]
    with pytest.raises(errors.StudyError, match="some that are not"):
        fit(read_corpus(written(path, several)))


def test_offsets_are_moved_to_visible_characters(tmp_path):
    text = "  One.\n\n Two.  Three. "
    row = {"text": text, "id": 7, "boundaries": [6, 13, 0, 21]}
    read = read_corpus(written(tmp_path / "data.jsonl", [row]))
    assert [text[k:].split()[0] for k in read.boundaries[0]] == ["Two.", "Three."]
    assert read.problems == ("7",)


def test_annotators_are_told_apart(tmp_path):
    row = {
        "text": "One. Two. Three.",
        "id": "x",
        "annotations": [
            {"annotator": "A", "spans": [[0, 4, "l"], [4, 16, "l"]]},
            {"annotator": "B", "spans": [[0, 9, "l"], [10, 16, "l"]]},
        ],
    }
    path = written(tmp_path / "data.jsonl", [row])
    assert [read_corpus(path, who).boundaries[0].tolist() for who in "AB"] == [[5], [10]]


# The command, and the text that the shipped model learned from.


def test_command_prints_a_table_and_writes_the_same_model_again(fitted, tmp_path, capsys):
    data = written(tmp_path / "small.jsonl", SMALL)
    fit_boundaries(data, tmp_path / "model.skops", folds=3)
    shown = capsys.readouterr().out
    assert "spaCy" in shown
    assert "prose" in shown
    assert "Threshold" in shown
    model = load_model(str(tmp_path / "model.skops"))
    assert model.candidates == "fast"
    assert model.threshold == fitted.model.threshold
    assert np.array_equal(model.first.weights, fitted.model.first.weights)
    rows = [str(record["text"]) for record in SMALL]
    ours, theirs = stages.judge(model, rows), stages.judge(fitted.model, rows)
    assert np.array_equal(ours.probabilities_C, theirs.probabilities_C)


def test_command_prints_its_table_as_json_and_nothing_else(fitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("segmenters.learned.training.fit", lambda *_, **__: fitted)
    data = written(tmp_path / "small.jsonl", SMALL)
    fit_boundaries(data, tmp_path / "model.skops", folds=3, as_json=True)
    rows = json.loads(capsys.readouterr().out)["boundaries"]
    assert [rows[0]["name"], rows[-1]["name"]] == ["learned", "spaCy's sentences"]
    assert rows[0]["f1_low"] <= rows[0]["f1"] <= rows[0]["f1_high"]
    assert rows[0]["documents"] == sum(row["documents"] for row in rows[1:-1])


def test_generated_solutions_are_true_and_their_boundaries_begin_steps():
    rows = list(records(60, seed=11))
    assert rows == list(records(60, seed=11)) != list(records(60, seed=12))
    assert len({row["source"] for row in rows}) >= 8
    equations = []
    for row in rows:
        text, starts = row["text"], row["boundaries"]
        assert all(text[k - 1].isspace() and not text[k].isspace() for k in starts)
        assert starts == sorted(set(starts))
        plain = text.replace(r"\times", "*").replace(r"\div", "/")
        equations += re.findall(r"([\d.]+(?: [-+*/] [\d.]+)+) = ([\d.]*\d)", plain)
    assert len(equations) > 4 * len(rows) / 2
    for left, right in equations:
        assert eval(left) == pytest.approx(float(right), rel=1e-3)


def test_hashed_features_use_all_buckets_evenly(corpus):
    buckets = hashed_features(find_candidates(tokens.read_tokens(corpus.texts), "all"))
    assert buckets.min() >= 0
    assert buckets.max() < 2**20
    halves = np.bincount(np.unique(buckets) * 8 // 2**20, minlength=8)
    assert halves.max() < 1.3 * halves.min()


@pytest.mark.slow
def test_the_shipped_model_is_what_the_command_makes(tmp_path):
    path = written(tmp_path / "generated.jsonl", list(records()))
    again, shipped = fit(read_corpus(path)).model, load_model("default")
    assert np.array_equal(again.first.weights, shipped.first.weights)
    assert again.threshold == shipped.threshold
    rows = [str(record["text"]) for record in records(50, seed=5)]
    ours, theirs = stages.judge(again, rows), stages.judge(shipped, rows)
    assert np.array_equal(ours.probabilities_C, theirs.probabilities_C)
