"""Truths that others measured, at the sentences of a trace."""

from __future__ import annotations

import json

import numpy as np
import pytest
from thought_anchors.trace_truth import anchor_truth, split_truth
from thought_anchors.traces import SUSPECT, AnchorTrace, load_anchors

from segcredit.credit_audit import metrics
from segcredit.credit_audit.metrics.moments import product, segment_gains, square
from segcredit.errors import StudyError

N = 100


def trace(name="t", shares=(0.5, 0.25, 1.0), **changes):
    sentences = [
        {"start": 4 * n, "end": 4 * n + 3, "accuracy": round(share, 6), "function_tags": []}
        for n, share in enumerate(shares)
    ]
    return {
        "id": name,
        "model": "m",
        "problem": "1+1",
        "base_solution_correct": True,
        "text": "One. " * len(shares),
        "chunks": sentences,
        **changes,
    }


def written(path, *records):
    file = path / "anchors.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return file


def test_a_trace_has_values_before_its_sentences(tmp_path):
    (found,) = load_anchors(written(tmp_path, trace()))
    assert (found.name, found.model, found.problem, found.correct) == ("t", "m", "1+1", True)
    assert found.starts.tolist() == [0, 4, 8]
    assert found.ends.tolist() == [3, 7, 11]
    assert found.accuracy.tolist() == [0.5, 0.25, 1.0]
    assert found.jumps.tolist() == [-0.25, 0.75]
    assert found.rollouts.tolist() == [100, 100, 100]
    assert found.noise.tolist() == pytest.approx([0.25 / 99, 0.1875 / 99, 0])
    assert found.jump_noise.tolist() == pytest.approx([0.4375 / 99, 0.1875 / 99])
    assert found.neighbour_noise.tolist() == pytest.approx([-0.1875 / 99])


@pytest.mark.parametrize(("hits", "count"), [(97, 98), (13, 59), (1, 89), (99, 100), (22, 71)])
def test_the_number_of_rollouts_is_read_from_the_share(tmp_path, hits, count):
    (found,) = load_anchors(written(tmp_path, trace(shares=[hits / count])))
    assert found.rollouts.tolist() == [count]


def test_a_number_of_rollouts_that_is_given_counts(tmp_path):
    record = trace()
    record["chunks"][0]["rollouts"] = 30
    (found,) = load_anchors(written(tmp_path, record))
    assert found.rollouts.tolist() == [30, 100, 100]


def test_the_noise_is_what_squares_and_products_of_jumps_are_off_by(tmp_path):
    """Shares drawn at random around known values: what is left without the noise is the truth."""
    chance = np.random.default_rng(0)
    values = np.array([0.5, 0.6, 0.45, 0.5])
    records = [trace(f"t{n}", shares=chance.binomial(40, values) / 40) for n in range(4000)]
    for record in records:
        for sentence in record["chunks"]:
            sentence["rollouts"] = 40
    found = load_anchors(written(tmp_path, *records))
    true = np.diff(values)
    squares = np.stack([trace.jumps**2 for trace in found])
    left = np.stack([trace.jumps**2 - trace.jump_noise for trace in found])
    spread = left.std(0) / np.sqrt(len(found))
    assert (np.abs(left.mean(0) - true**2) < 4 * spread).all()
    assert (np.abs(squares.mean(0) - true**2) > 5 * spread).all()
    products = np.stack([trace.jumps[1:] * trace.jumps[:-1] for trace in found])
    left = products - np.stack([trace.neighbour_noise for trace in found])
    spread = left.std(0) / np.sqrt(len(found))
    assert (np.abs(left.mean(0) - true[1:] * true[:-1]) < 4 * spread).all()
    assert (np.abs(products.mean(0) - true[1:] * true[:-1]) > 5 * spread).all()


def test_the_suspect_trace_is_left_out_unless_asked_for(tmp_path):
    file = written(tmp_path, trace(SUSPECT[0]), trace("good"))
    assert [t.name for t in load_anchors(file)] == ["good"]
    assert [t.name for t in load_anchors(file, leave_out=())] == [SUSPECT[0], "good"]
    with pytest.raises(StudyError, match="2 traces, of which none is left"):
        load_anchors(file, leave_out=[SUSPECT[0], "good"])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"id": "t"}, "line 2 is no trace .KeyError: 'chunks'"),
        ([], "line 2 is no trace"),
        (trace(chunks=[]), "trace 't': it has no sentence"),
        (trace(shares=[0.5, 1.5]), "not between 0 and 1"),
        (trace(shares=[float("nan")]), "not between 0 and 1"),
        (trace(text="One"), "not in order within the text"),
        (trace(chunks=trace()["chunks"][::-1]), "not in order within the text"),
        (trace(chunks=[{"start": 0, "end": 1, "accuracy": None}]), "line 2 is no trace"),
        (trace(chunks=[{"start": 0, "end": 1, "accuracy": 1, "rollouts": 1}]), "fewer than 2"),
    ],
)
def test_what_is_no_trace_is_a_sentence(tmp_path, record, words):
    with pytest.raises(StudyError, match=words):
        load_anchors(written(tmp_path, trace("good"), record))


def test_files_that_cannot_be_read_are_a_sentence(tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        load_anchors(tmp_path / "absent")
    (tmp_path / "torn").write_text('{"id": ')
    with pytest.raises(StudyError, match="line 1 is no trace"):
        load_anchors(tmp_path / "torn")


def measured(shares, rollouts, problem="p", name="t"):
    """A trace of sentences of four characters."""
    count = len(shares)
    starts = 5 * np.arange(count)
    return AnchorTrace(
        name=name,
        model="m",
        problem=problem,
        correct=True,
        text="One. " * count,
        starts=starts,
        ends=starts + 4,
        accuracy=np.asarray(shares, dtype=float),
        rollouts=np.broadcast_to(rollouts, count).astype(np.int64),
    )


def ragged(seed=0, lengths=(9, 2, 5)):
    chance = np.random.default_rng(seed)
    numbers = [chance.integers(20, 101, size=length) for length in lengths]
    return [
        measured(chance.binomial(n, chance.random(len(n))) / n, n, problem=f"p{row % 2}")
        for row, n in enumerate(numbers)
    ]


def test_squares_of_changes_are_freed_of_their_noise():
    traces = ragged()
    truth = anchor_truth(traces)
    assert truth.lengths.tolist() == [8, 1, 4]
    assert truth.prompts.tolist() == [0, 1, 0]
    assert anchor_truth(traces, unit="trace").prompts.tolist() == [0, 1, 2]
    neighbours_BT = product(truth.advantages[:, :, 1:], truth.advantages[:, :, :-1])
    for row, found in enumerate(traces):
        known = len(found.jumps)
        expected = found.jumps**2 - found.jump_noise
        assert square(truth.advantages)[row, :known] == pytest.approx(expected, abs=1e-12)
        expected = found.jumps[1:] * found.jumps[:-1] - found.neighbour_noise
        assert neighbours_BT[row, : known - 1] == pytest.approx(expected, abs=1e-12)
        assert truth.values[row].mean(0)[: known + 1] == pytest.approx(found.accuracy)


def test_so_are_squares_of_any_weighted_sum_of_states():
    chance = np.random.default_rng(1)
    traces = ragged(2)
    truth = anchor_truth(traces)
    for row, found in enumerate(traces):
        for _ in range(20):
            weights_N = chance.normal(size=len(found.accuracy))
            sums_H = truth.values[row, :, : len(weights_N)] @ weights_N
            expected = (weights_N @ found.accuracy) ** 2 - weights_N**2 @ found.noise
            assert square(sums_H[None, :, None])[0, 0] == pytest.approx(expected, abs=1e-10)


def test_changes_over_segments_lose_the_noise_of_their_two_ends_alone():
    traces = ragged(3)
    truth = anchor_truth(traces)
    ids_BT = np.where(truth.mask, np.arange(truth.mask.shape[1]) // 3, -1)
    gains_BS = square(segment_gains(truth, ids_BT))
    for row, found in enumerate(traces):
        last = len(found.accuracy) - 1
        for segment, first in enumerate(range(0, last, 3)):
            end = min(first + 3, last)
            change = found.accuracy[end] - found.accuracy[first]
            expected = change**2 - found.noise[end] - found.noise[first]
            assert gains_BS[row, segment] == pytest.approx(expected, abs=1e-12)


def drawn(values, rollouts, count, seed=0):
    """Traces with known values, measured with rollouts of their own."""
    chance = np.random.default_rng(seed)
    return [
        measured(chance.binomial(rollouts, values) / rollouts, rollouts, problem=str(n))
        for n in range(count)
    ]


def test_shares_of_measured_traces_are_those_of_the_values_behind_them():
    values = np.array([0.5, 0.55, 0.7, 0.68, 0.68, 0.5, 0.45])
    traces = drawn(values, 25, 4000)
    exact = np.broadcast_to(values, (1, 2, len(values)))
    true = metrics.Truth(exact, np.ones((1, len(values) - 1), bool), [0], [1.0])
    ids = [0, 0, 1, 1, 1, 2]
    found = metrics.share_on_boundaries(anchor_truth(traces), [ids] * len(traces))
    expected = metrics.share_on_boundaries(true, [ids]).value
    assert found.low < expected < found.high
    within = metrics.share_within(anchor_truth(traces), [ids] * len(traces))
    assert within.low < metrics.share_within(true, [ids]).value < within.high
    random = metrics.random_share_within(anchor_truth(traces), [ids] * len(traces))
    assert random.low < metrics.random_share_within(true, [ids]).value < random.high
    noisy = np.stack([np.stack([trace.accuracy] * 2) for trace in traces])
    mask = np.ones((len(traces), len(ids)), bool)
    naive = metrics.Truth(noisy, mask, np.arange(len(traces)), np.ones(len(traces)))
    assert not (
        (biased := metrics.share_on_boundaries(naive, [ids] * len(traces))).low
        < expected
        < biased.high
    )


def test_dealt_halves_hold_all_rollouts_and_are_independent():
    values = np.array([0.5, 0.2, 0.9, 0.6])
    traces = drawn(values, 50, 3000)
    truth = split_truth(traces, 3, seed=4)
    sizes = np.array([16, 17, 17])
    right_BHN = truth.values * sizes[None, :, None]
    assert right_BHN == pytest.approx(np.rint(right_BHN))
    shares_BN = np.stack([trace.accuracy for trace in traces])
    assert right_BHN.sum(1) == pytest.approx(50 * shares_BN)
    for state, value in enumerate(values):
        parts_BH = truth.values[:, :, state]
        covariance = np.cov(parts_BH.T)
        spread = value * (1 - value) / sizes
        assert np.diag(covariance) == pytest.approx(spread, rel=0.12)
        off = covariance[np.triu_indices(3, 1)]
        assert np.abs(off).max() < 4 * spread.max() / np.sqrt(len(traces))
    true = np.diff(values)[0] ** 2
    squares_B = square(truth.advantages)[:, 0]
    assert abs(squares_B.mean() - true) < 4 * squares_B.std() / np.sqrt(len(traces))
    assert np.array_equal(split_truth(traces, 3, seed=4).values, truth.values)
    assert not np.array_equal(split_truth(traces, 3, seed=5).values, truth.values)


def test_traces_that_know_no_change_are_a_sentence():
    one = measured([0.5], 20, name="short")
    for make in (anchor_truth, lambda traces: split_truth(traces, 2)):
        with pytest.raises(StudyError, match="trace 'short' has one sentence"):
            make([measured([0.5, 0.5], 20), one])
    for splits in (1, 6):
        with pytest.raises(StudyError, match="5 rollouts that are to be dealt"):
            split_truth([measured([0.4, 0.6], 5)], splits)


def test_sentences_that_overlap_and_empty_files_are_a_sentence(tmp_path):
    sentences = [{"start": s, "end": e, "accuracy": 0.5} for s, e in [(0, 6), (5, 9)]]
    with pytest.raises(StudyError, match="not in order within the text"):
        load_anchors(written(tmp_path, trace(chunks=sentences)))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(StudyError, match="0 traces, of which none is left"):
        load_anchors(tmp_path / "empty")
