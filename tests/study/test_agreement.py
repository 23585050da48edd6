"""Agreement of segmentations: metrics against definitions and other packages, tables, the page."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.metrics import segmentation as nltk_metrics

from segcredit import registry
from segcredit.errors import StudyError
from segcredit.study.agreement import (
    after_space,
    agreement,
    agreement_figure,
    lengths,
    matrix,
    paired_difference,
    read_annotations,
    segment_table,
    summary,
)
from segcredit.study.agreement.boundaries import boundaries_of
from segcredit.study.agreement.metrics import (
    Matches,
    boundary_edits,
    boundary_similarity,
    default_window,
    inner_boundaries,
    match_boundaries,
    pk,
    segment_lengths,
    segment_ranks,
    window_diff,
    window_errors,
)
from segcredit.study.agreement.summary import METRICS
from segcredit.study.statistics import bootstrap_interval

PAGE = Path(__file__).parents[2] / "docs" / "explain" / "agreement.md"
PEOPLE = Path(__file__).parents[3] / "shared" / "data" / "segmentation" / "rtseg_gold.jsonl"


@st.composite
def pairs_of_sets(draw: st.DrawFn, longest: int = 14) -> tuple[list[int], list[int], int]:
    """Two sets of boundaries in any order, and the length of their document."""
    length = draw(st.integers(1, longest))
    sets = st.lists(st.integers(0, length), max_size=length)
    return draw(sets), draw(sets), length


def from_masses(*masses: int) -> tuple[list[int], int]:
    """Boundaries and length of a document with segments of these lengths."""
    edges = list(itertools.accumulate(masses))
    return edges[:-1], edges[-1]


def mass_pair(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[list[int], list[int], int]:
    (ours, length), (theirs, same) = from_masses(*first), from_masses(*second)
    assert length == same
    return ours, theirs, length


# Oracles: the definitions, by brute force.


def most_pairs(ours: list[int], theirs: list[int], tolerance: int) -> int:
    """Every way to pair boundaries off is tried."""
    if not ours:
        return 0
    first, rest = ours[0], ours[1:]
    best = most_pairs(rest, theirs, tolerance)
    for other in theirs:
        if abs(other - first) <= tolerance:
            left = [position for position in theirs if position != other]
            best = max(best, 1 + most_pairs(rest, left, tolerance))
    return best


def least_edits(ours: set[int], theirs: set[int], n_t: int) -> float:
    """The lowest cost of additions and moves between boundaries of one side alone."""
    if not ours:
        return len(theirs)
    first = min(ours)
    best = 1 + least_edits(ours - {first}, theirs, n_t)
    for other in theirs:
        if abs(other - first) < n_t:
            cost = abs(other - first) / n_t
            best = min(best, cost + least_edits(ours - {first}, theirs - {other}, n_t))
    return best


def slow_windows(ours: list[int], theirs: list[int], length: int, k: int) -> tuple[float, float]:
    """P_k and WindowDiff, pair of units by pair of units."""
    apart = differ = 0
    for i in range(length - k):
        counts = [sum(i < b <= i + k for b in set(side)) for side in (ours, theirs)]
        apart += (counts[0] > 0) != (counts[1] > 0)
        differ += counts[0] != counts[1]
    return apart / (length - k), differ / (length - k)


# Metrics.


@given(pairs_of_sets())
def test_inner_boundaries_separate_something(case: tuple[list[int], list[int], int]) -> None:
    boundaries, _, length = case
    expected = sorted({b for b in boundaries if 0 < b < length})
    assert inner_boundaries(boundaries, length) == expected
    assert inner_boundaries(np.asarray(boundaries, dtype=np.int32), length) == expected


@given(pairs_of_sets(10), st.integers(0, 5))
def test_matching_is_the_largest(case: tuple[list[int], list[int], int], tolerance: int) -> None:
    ours, theirs, length = (
        inner_boundaries(case[0], case[2]),
        inner_boundaries(*case[1:]),
        case[2],
    )
    matched = match_boundaries(case[0], case[1], length, tolerance)
    found = most_pairs(ours[:6], theirs[:6], tolerance)
    assert match_boundaries(ours[:6], theirs[:6], length, tolerance).matches == found
    assert (matched.reference, matched.other) == (len(ours), len(theirs))
    assert matched.swapped() == match_boundaries(case[1], case[0], length, tolerance)
    assert matched.matches <= match_boundaries(case[0], case[1], length, tolerance + 1).matches


def test_a_boundary_never_matches_two() -> None:
    assert match_boundaries([10], [9, 11], 20, 1) == Matches(1, 1, 2)
    # Taking the nearest first, 6 with 5, would leave 3 and 8 without partners.
    assert match_boundaries([3, 6], [5, 8], 20, 2).matches == 2


@given(pairs_of_sets())
def test_f1_is_the_harmonic_mean(case: tuple[list[int], list[int], int]) -> None:
    matched = match_boundaries(*case)
    precision, recall = matched.precision, matched.recall
    mean = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert matched.f1 == pytest.approx(mean)
    assert match_boundaries(case[0], case[0], case[2]).f1 == 1


def test_edges_of_precision_and_recall() -> None:
    none, only_other, only_reference = Matches(0, 0, 0), Matches(0, 0, 2), Matches(0, 2, 0)
    assert (none.precision, none.recall, none.f1) == (1, 1, 1)
    assert (only_other.precision, only_other.recall, only_other.f1) == (0, 0, 0)
    assert (only_reference.precision, only_reference.recall, only_reference.f1) == (0, 0, 0)
    pooled = sum([Matches(3, 3, 6), Matches(0, 2, 0)], Matches(0, 0, 0))
    assert pooled == Matches(3, 5, 6)


@given(pairs_of_sets())
def test_two_positions_apart_the_edits_are_the_fewest(
    case: tuple[list[int], list[int], int],
) -> None:
    ours, theirs = (set(inner_boundaries(side, case[2])) for side in case[:2])
    edits = boundary_edits(*case)
    alone = sorted(ours - theirs)[:6], sorted(theirs - ours)[:6]
    assert boundary_edits(*alone, case[2]).distance == least_edits(set(alone[0]), set(alone[1]), 2)
    assert edits.matches == len(ours & theirs)
    assert 2 * (edits.matches + len(edits.moves)) + edits.additions == len(ours) + len(theirs)


@given(pairs_of_sets(), st.integers(1, 6))
def test_edits_are_symmetric_and_bounded(case: tuple[list[int], list[int], int], n_t: int) -> None:
    edits = boundary_edits(*case, n_t)
    assert edits == boundary_edits(case[1], case[0], case[2], n_t)
    assert 0 <= edits.similarity <= 1
    assert all(1 <= d < n_t for d in edits.moves)
    assert boundary_similarity(case[0], case[0], case[2], n_t) == 1
    ours, theirs = (set(inner_boundaries(side, case[2])) for side in case[:2])
    jaccard = len(ours & theirs) / len(ours | theirs) if ours | theirs else 1
    assert boundary_similarity(*case, n_t=1) == pytest.approx(jaccard)


@pytest.mark.parametrize(
    ("manual", "automatic", "matches", "moves", "additions", "similarity"),
    [
        ("au.to.ma.tic", "au.tom.a.tic", 2, 1, 0, 5 / 6),
        ("seg.men.ta.tion", "seg.ment.ation", 1, 1, 1, 1 / 2),
        ("is", "is", 0, 0, 0, 1),
        ("fun", "f.un", 0, 0, 1, 0),
    ],
)
def test_examples_of_the_authors_package(
    manual: str, automatic: str, matches: int, moves: int, additions: int, similarity: float
) -> None:
    """The table of syllables on the first page of segeval's documentation."""
    case = mass_pair(*(tuple(map(len, word.split("."))) for word in (manual, automatic)))
    edits = boundary_edits(*case)
    assert (edits.matches, len(edits.moves), edits.additions) == (matches, moves, additions)
    assert edits.similarity == pytest.approx(similarity)


STARGAZER = {
    1: (2, 3, 3, 1, 3, 6, 3),
    2: (2, 8, 2, 4, 2, 3),
    3: (2, 1, 2, 3, 1, 3, 1, 3, 2, 2, 1),
    4: (2, 1, 4, 1, 1, 3, 1, 4, 3, 1),
    7: (2, 3, 2, 2, 3, 1, 3, 2, 3),
}
"""Paragraphs a segment by five of the seven people who segmented Hearst's (1997) Stargazers."""


@pytest.mark.parametrize(
    ("one", "two", "similarity"),
    [(1, 2, 0.5), (1, 3, 0.6), (1, 4, 0.45), (1, 7, 0.6875), (2, 4, 0.3), (3, 4, 0.6818)],
)
def test_stargazers_as_segeval_has_them(one: int, two: int, similarity: float) -> None:
    """Values of segeval 2.0.11, n_t = 2."""
    case = mass_pair(STARGAZER[one], STARGAZER[two])
    assert boundary_similarity(*case) == pytest.approx(similarity, abs=5e-5)


def test_longer_moves_are_chosen_greedily() -> None:
    """As segeval 2.0.11 chooses them."""
    edits = boundary_edits([2, 5], [4, 7], 10, n_t=4)
    assert (edits.moves, edits.additions, edits.distance) == ((1,), 2, 2.25)
    assert least_edits({2, 5}, {4, 7}, 4) == 1
    # Of the moves 1-2 and 2-3 the earlier is taken, which leaves 3 for 5.
    assert boundary_edits([1, 3], [2, 5], 10, n_t=3).moves == (1, 2)


@given(pairs_of_sets(), st.integers(1, 14))
def test_windows_are_their_definitions(case: tuple[list[int], list[int], int], window: int) -> None:
    *sides, length = case
    found = pk(*sides, length, window), window_diff(*sides, length, window)
    if length < 2:
        assert found == (0, 0)
        return
    inner = [inner_boundaries(side, length) for side in sides]
    assert found == pytest.approx(slow_windows(*inner, length, min(window, length - 1)))
    assert 0 <= found[0] <= found[1] <= 1
    assert pk(sides[0], sides[0], length) == window_diff(sides[0], sides[0], length) == 0
    assert pk(sides[1], sides[0], length, window) == pytest.approx(found[0])


@given(pairs_of_sets(40))
def test_windows_are_those_of_nltk(case: tuple[list[int], list[int], int]) -> None:
    """nltk's strings have a digit for each place between two units."""
    ours, theirs, length = case
    strings = ["".join(str(int(b in side)) for b in range(1, length)) for side in (ours, theirs)]
    for window in {1, 2, default_window(ours, length)}:
        if window < length:
            assert pk(*case, window) == pytest.approx(nltk_metrics.pk(*strings, window))
            found = window_diff(*case, window)
            assert found == pytest.approx(nltk_metrics.windowdiff(*strings, window))


def test_default_window_is_half_a_mean_segment() -> None:
    assert default_window([10, 20], 30) == 5
    assert default_window([], 30) == 15
    assert default_window(range(30), 30) == 1
    assert default_window([], 1) == 1
    ours, theirs, length = [4, 9, 15], [5, 9], 21
    assert pk(ours, theirs, length) == pk(ours, theirs, length, 3)
    assert pk(theirs, ours, length) == pk(theirs, ours, length, 4)


@given(pairs_of_sets())
def test_window_errors_of_many_are_those_of_each(case: tuple[list[int], list[int], int]) -> None:
    *sides, length = case
    ranks_DN = segment_ranks([*sides, []], length)
    for reference, boundaries in enumerate([*sides, []]):
        errors, differences = window_errors(ranks_DN, reference)
        assert errors[0] == pk(boundaries, sides[0], length)
        assert differences[1] == window_diff(boundaries, sides[1], length)


@given(pairs_of_sets(), st.lists(st.integers(0, 14)))
def test_lengths_add_up(case: tuple[list[int], list[int], int], units: list[int]) -> None:
    boundaries, _, length = case
    units = sorted(min(unit, length) for unit in units)
    found, inside = segment_lengths(boundaries, length), segment_lengths(boundaries, length, units)
    edges = [0, *inner_boundaries(boundaries, length), length]
    assert found.tolist() == [end - start for start, end in itertools.pairwise(edges)]
    assert len(inside) == len(found)
    for size, (start, end) in zip(inside, itertools.pairwise(edges), strict=True):
        assert size == sum(start <= unit < end or unit == end == length for unit in units)


def test_an_empty_document_has_no_segments() -> None:
    assert segment_lengths([], 0).tolist() == segment_lengths([], 0, [0]).tolist() == []


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: match_boundaries([1], [7], 5), "A boundary is at 7 in a document of length 5"),
        (lambda: boundary_edits([-1], [], 5), "A boundary is at -1"),
        (lambda: match_boundaries([], [], 5, -1), "tolerance is -1"),
        (lambda: boundary_edits([], [], 5, 0), "n_t is 0"),
        (lambda: pk([], [], 5, 0), "window is 0"),
    ],
)
def test_metrics_refuse_what_has_no_meaning(call, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        call()


# Boundaries of documents.


@given(st.text("ab \n\u3000", max_size=12), st.data())
def test_boundaries_move_to_the_next_character(text: str, data: st.DataObject) -> None:
    boundaries = data.draw(st.lists(st.integers(0, len(text))))
    moved = {
        next((i for i in range(b, len(text)) if not text[i].isspace()), len(text))
        for b in boundaries
    }
    expected = sorted(b for b in moved if text[:b].strip() and text[b:].strip())
    assert after_space(boundaries, text) == expected
    assert after_space(expected, text) == expected


def annotated(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_annotations_are_read(tmp_path: Path) -> None:
    spans = [[4, 6, "Plan"], [0, 3, "Facts"]]
    records = [
        {"id": "x", "text": "One two", "annotations": [{"annotator": "A", "spans": spans}]},
        {"id": "y", "text": "a b c", "boundaries": [2, 4]},
    ]
    found = read_annotations(annotated(tmp_path / "a.jsonl", records))
    assert found.documents == {"x": "One two", "y": "a b c"}
    assert found.boundaries == {"A": [[4], None], "gold": [None, [2, 4]]}


def test_only_newlines_end_a_record(tmp_path: Path) -> None:
    """JSON may hold a line separator of Unicode as it is."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "a\u2028b", "boundaries": [2]}\n\n', encoding="utf-8")
    assert read_annotations(path).documents == {"1": "a\u2028b"}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"id": "x", "text": "a"}, "line 2 is no annotated text .KeyError: 'boundaries'"),
        ({"id": "x", "text": "a", "boundaries": [3]}, "'gold', document 'x': A boundary is at 3"),
        ({"id": "w", "text": "a", "boundaries": []}, "line 2 repeats the id 'w'"),
        ([], "line 2 is no annotated text"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, record: object, sentence: str) -> None:
    good = {"id": "w", "text": "a b", "boundaries": [2]}
    with pytest.raises(StudyError, match=sentence):
        read_annotations(annotated(tmp_path / "a.jsonl", [good, record]))
    with pytest.raises(StudyError, match="cannot be read"):
        read_annotations(tmp_path / "missing.jsonl")


def test_boundaries_of_segmenters_and_lists() -> None:
    texts = {"x": "a\nb", "y": "", "z": "a \n c"}
    cuts = {"newline": registry.segmenters.build("newline"), "mine": [[1], None, [0, 1, 5]]}
    table, found = boundaries_of(texts, cuts)
    assert table.to_dict("list") == {"document": ["x", "y", "z"], "length": [3, 0, 5]}
    assert found == {"newline": [[2], [], [3]], "mine": [[1], None, [1]]}
    _, moved = boundaries_of(texts, cuts, skip_space=True)
    assert moved == {"newline": [[2], [], [4]], "mine": [[2], None, [4]]}


@pytest.mark.parametrize(
    ("documents", "cuts", "sentence"),
    [
        (["a", "b"], {"x": [[]]}, "'x' has boundaries for 1 documents; expected 2"),
        ([5], {"x": registry.segmenters.build("newline")}, "'x' is a segmenter"),
        ({"doc": "abc"}, {"x": [[9]]}, "'x', document 'doc': A boundary is at 9"),
    ],
)
def test_boundaries_that_do_not_fit(documents, cuts, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        boundaries_of(documents, cuts)


# Tables.


def random_cuts(documents: int = 12, seed: int = 0) -> tuple[list[int], dict[str, list[list[int]]]]:
    """Lengths, and three segmentations of which b is nearer to a than c is."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(20, 60, documents).tolist()
    a = [sorted(draw.choice(np.arange(1, n), n // 8, replace=False).tolist()) for n in sizes]
    b = [
        [x if draw.random() < 0.8 else min(x + 1, n - 1) for x in cut]
        for cut, n in zip(a, sizes, strict=True)
    ]
    c = [draw.choice(np.arange(1, n), n // 5, replace=False).tolist() for n in sizes]
    return sizes, {"a": a, "b": b, "c": c}


def test_pairs_are_the_metrics_of_each_document() -> None:
    sizes, cuts = random_cuts()
    options = {"tolerance": 1, "window": 4, "n_t": 3}
    table = agreement(sizes, cuts, **options).set_index(["document", "reference", "other"])
    assert len(table) == 12 * 6
    for (document, reference, other), row in table.iterrows():
        case = cuts[reference][document], cuts[other][document], sizes[document]
        matched = match_boundaries(*case, 1)
        assert row["matches"] == matched.matches
        assert row["reference_boundaries"] == matched.reference
        assert row["precision"] == matched.precision
        assert row["recall"] == matched.recall
        assert row["f1"] == matched.f1
        assert row["pk"] == pk(*case, 4)
        assert row["window_diff"] == window_diff(*case, 4)
        assert row["boundary_similarity"] == boundary_similarity(*case, 3)
        assert row["edit_distance"] == boundary_edits(*case, 3).distance


def test_references_and_missing_annotations() -> None:
    sizes, cuts = random_cuts(3)
    cuts["c"] = [None, cuts["c"][1], cuts["c"][2]]
    whole = agreement(sizes, cuts)
    some = agreement(sizes, cuts, references=["c"])
    assert set(zip(some["reference"], some["other"], strict=True)) == {("c", "a"), ("c", "b")}
    assert sorted(some["document"]) == [1, 1, 2, 2]
    kept = whole[whole["reference"] == "c"].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, kept)
    counts = summary(whole).set_index(["reference", "other"])["documents"]
    assert counts["a", "b"].eq(3).all()
    assert counts["a", "c"].eq(2).all()


def test_summary_pools_counts_and_averages_the_rest() -> None:
    sizes, cuts = random_cuts()
    table = agreement(sizes, cuts)
    found = summary(table).set_index(["reference", "other", "metric"])
    rows = table[(table["reference"] == "a") & (table["other"] == "b")]
    cases = list(zip(cuts["a"], cuts["b"], sizes, strict=True))
    pooled = sum((match_boundaries(*case) for case in cases), Matches(0, 0, 0))
    assert list(found.loc["a", "b"].index) == list(METRICS)
    values = found.loc["a", "b"]["value"]
    assert values["f1"] == pytest.approx(pooled.f1)
    assert values["precision"] == pytest.approx(pooled.precision)
    assert values["recall"] == pytest.approx(pooled.recall)
    for metric, column in [("document_f1", "f1"), ("pk", "pk"), ("window_diff", "window_diff")]:
        row = found.loc["a", "b", metric]
        assert row["value"] == pytest.approx(rows[column].mean())
        assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(rows[column]))
    assert (found["low"] <= found["value"] + 1e-12).all()
    assert (found["value"] <= found["high"] + 1e-12).all()


def test_interval_of_pooled_f1_is_over_documents() -> None:
    sizes, cuts = random_cuts()
    table = agreement(sizes, {"a": cuts["a"], "c": cuts["c"]}, references=["a"])
    found = summary(table, resamples=400, seed=3).set_index("metric").loc["f1"]
    generator = np.random.default_rng(3)
    pooled = []
    for _ in range(400):
        drawn = table.iloc[generator.integers(12, size=12)]
        boundaries = drawn["reference_boundaries"].sum() + drawn["other_boundaries"].sum()
        pooled.append(2 * drawn["matches"].sum() / boundaries)
    expected = np.quantile(pooled, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected))


def test_documents_without_boundaries_agree() -> None:
    table = agreement([5, 5], {"a": [[], []], "b": [[], []], "c": [[2], []]})
    found = summary(table).set_index(["reference", "other", "metric"])["value"]
    assert [found["a", "b", metric] for metric in METRICS] == [1, 1, 1, 1, 0, 0, 1]
    assert found["a", "c", "f1"] == 0
    assert found["a", "c", "document_f1"] == 0.5


def test_one_document_has_no_interval() -> None:
    found = summary(agreement([9], {"a": [[3]], "b": [[4]]}))
    assert found[["low", "high"]].isna().all(axis=None)
    assert found.loc[found["metric"] == "boundary_similarity", "value"].tolist() == [0.5, 0.5]


def test_paired_difference_shares_its_documents() -> None:
    sizes, cuts = random_cuts()
    cuts["b"] = [*cuts["b"][:-1], None]
    table = agreement(sizes, cuts, references=["a"])
    found = paired_difference(table, "a", "b", "c", resamples=500).set_index("metric")
    back = paired_difference(table, "a", "c", "b", resamples=500).set_index("metric")
    assert (found["documents"] == 11).all()
    common = table[table["document"] < 11].set_index("other")
    expected = common.loc["b", "f1"].mean() - common.loc["c", "f1"].mean()
    assert found.loc["document_f1", "difference"] == pytest.approx(expected)
    paired = common.loc["b", "pk"].to_numpy() - common.loc["c", "pk"].to_numpy()
    interval = bootstrap_interval(paired, resamples=500)
    assert (found.loc["pk", "low"], found.loc["pk", "high"]) == pytest.approx(interval)
    assert found.loc["f1", "low"] > 0 > found.loc["pk", "high"]
    assert (-back["high"]).tolist() == pytest.approx(found["low"].tolist())


def test_matrix_has_every_pair() -> None:
    sizes, cuts = random_cuts()
    table = agreement(sizes, cuts)
    found = summary(table).set_index(["metric", "reference", "other"])["value"]
    for metric in METRICS:
        square = matrix(table, metric)
        assert list(square.index) == list(square.columns) == ["a", "b", "c"]
        for one, two in itertools.product("abc", repeat=2):
            perfect = 0 if metric in ("pk", "window_diff") else 1
            expected = perfect if one == two else found[metric, one, two]
            assert square.loc[one, two] == pytest.approx(expected)
    assert matrix(table, "precision").equals(
        matrix(table, "recall").T.rename_axis(index="reference", columns="other")
    )
    some = matrix(agreement(sizes, cuts, references=["c"]))
    assert some.shape == (1, 3)
    assert some.loc["c", "c"] == 1


def test_segments_and_their_lengths() -> None:
    texts = {"x": "one\ntwo three", "y": "", "z": "four"}
    tokens = [[0, 3, 4, 8, 13], [0], [0, 2]]
    cuts = {"newline": registry.segmenters.build("newline"), "mine": [[8], [], None]}
    table = segment_table(texts, cuts, tokens=tokens)
    expected = [
        ("x", "newline", 0, 0, 4, 2),
        ("x", "newline", 1, 4, 9, 3),
        ("z", "newline", 0, 0, 4, 2),
        ("x", "mine", 0, 0, 8, 3),
        ("x", "mine", 1, 8, 5, 2),
    ]
    assert list(table.itertuples(index=False, name=None)) == expected
    found = lengths(table).set_index(["segmenter", "unit"])
    row = found.loc["newline", "length"]
    assert (row["documents"], row["segments"], row["per_document"]) == (2, 3, 1.5)
    assert (row["low"], row["high"], row["whole"]) == (1, 2, 0.5)
    assert (row["min"], row["median"], row["max"]) == (4, 4, 9)
    assert row["mean"] == pytest.approx(17 / 3)
    assert row["std"] == pytest.approx(math.sqrt(np.var([4, 9, 4])))
    assert found.loc["newline", "tokens"]["mean"] == pytest.approx(7 / 3)
    assert math.isnan(found.loc["mine", "length"]["low"])


def test_lengths_by_more_than_the_segmenter() -> None:
    table = segment_table(
        ["a\nb", "c", "d\ne\nf"], {"newline": registry.segmenters.build("newline")}
    )
    styles = pd.DataFrame({"document": [0, 1, 2], "style": ["short", "short", "long"]})
    found = lengths(table.merge(styles), by=["segmenter", "style"]).set_index("style")
    assert found["segments"].to_dict() == {"short": 3, "long": 3}
    assert found["per_document"].to_dict() == {"short": 1.5, "long": 3}
    assert "tokens" not in found["unit"].tolist()


def test_segments_without_tokens_do_not_count_in_tokens() -> None:
    table = segment_table([6], {"a": [[2, 4]]}, tokens=[[0, 5]])
    found = lengths(table).set_index("unit")
    assert found.loc["length", "segments"] == 3
    assert found.loc["tokens", "segments"] == 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: agreement(["ab"], {"a": [[1]]}), "Only 1 segmentation"),
        (
            lambda: agreement(["ab"], {"ann": [[1]], "b": [[1]]}, references=["anna"]),
            "there is no segmentation 'anna'; did you mean 'ann'",
        ),
        (lambda: summary(agreement([], {"a": [], "b": []})), "no pair of segmentations"),
        (lambda: matrix(agreement([5], {"a": [[1]], "b": [[1]]}), "f2"), "no metric 'f2'"),
        (
            lambda: summary(agreement([5], {"a": [[1]], "b": [[1]]}), confidence=95),
            "between 0 and 1",
        ),
        (
            lambda: paired_difference(agreement([5], {"a": [[1]], "b": [[1]]}), "a", "b", "c"),
            "no segmentation compared with it 'c'",
        ),
        (
            lambda: paired_difference(
                agreement([5, 5], {"a": [[1], [1]], "b": [[1], None], "c": [None, [1]]}),
                *("a", "b", "c"),
            ),
            "No document has boundaries of 'a', 'b' and 'c'",
        ),
        (lambda: segment_table([5], {"a": [[1]]}, tokens=[]), "Tokens are given for 0 documents"),
        (lambda: segment_table([5], {}), "No segmentation was given"),
        (lambda: lengths(segment_table([5], {"a": [[1]]}), by=[]), "No column to group by"),
        (lambda: lengths(segment_table([5], {"a": [[1]]}), by="style"), "no column of segments"),
    ],
)
def test_tables_refuse_what_has_no_meaning(call, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        call()


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_figure_is_the_same_each_time(tmp_path: Path, kind: str) -> None:
    sizes, cuts = random_cuts()
    table = agreement(sizes, cuts)
    first = agreement_figure(table, tmp_path / f"first.{kind}", "pk").read_bytes()
    assert agreement_figure(table, tmp_path / f"second.{kind}", "pk").read_bytes() == first
    with pytest.raises(StudyError, match="no figure format 'gif'"):
        agreement_figure(table, tmp_path / "first.gif")


def test_the_figure_shows_every_value(tmp_path: Path) -> None:
    sizes, cuts = random_cuts()
    drawn = agreement_figure(agreement(sizes, cuts, references=["a"]), tmp_path / "a.svg")
    text = drawn.read_text(encoding="utf-8")
    values = matrix(agreement(sizes, cuts, references=["a"])).loc["a"]
    for value in values:
        assert f"<!-- {value:.2f} -->".replace(" 0.", " .") in text
    assert "<!-- boundary F1, pooled, 12 documents -->" in text


# The page, and people.


@pytest.mark.skipif(not PEOPLE.is_file(), reason="the annotations are not part of the repository")
def test_people_agree_as_the_page_says() -> None:
    data = read_annotations(PEOPLE)
    pairs = agreement(data.documents, data.boundaries, references=["A"])
    found = summary(pairs).set_index("metric")
    assert found.loc["f1", "value"] == pytest.approx(0.732, abs=5e-4)
    assert found.loc["f1", "low"] == pytest.approx(0.686, abs=3e-3)
    assert found.loc["f1", "high"] == pytest.approx(0.773, abs=3e-3)
    page = PAGE.read_text(encoding="utf-8")
    for metric in METRICS:
        row = found.loc[metric]
        shown = f"{row['value']:.3f} | {row['low']:.3f} | {row['high']:.3f}"
        assert re.search(rf"\| `{metric}` \| {re.escape(shown)} \|", page), (metric, shown)
