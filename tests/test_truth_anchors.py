"""Truths that others measured, at the sentences of a trace."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segcredit.errors import StudyError
from segcredit.study.truth.anchors import SUSPECT, load_anchors

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
