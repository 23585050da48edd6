"""Boundaries on anchor traces: where cuts fall, equal budgets, signals, the whole command."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from thought_anchors import budgets as budgets
from thought_anchors.cuts import (
    marked_sentences,
    sentence_lengths,
    sentence_signals,
)
from thought_anchors.metric_rows import (
    BY_LENGTH,
    CHANCE,
    ORACLE,
    AnchorMetrics,
)
from thought_anchors.signals import scored_trace, token_cuts
from thought_anchors.trace_truth import anchor_truth
from thought_anchors.traces import SUSPECT, AnchorTrace

from segcredit import registry
from segcredit.credit_audit import metrics
from segcredit.credit_audit.metrics.moments import candidates, ids_from
from segcredit.errors import PolicyError, StudyError
from segcredit.study.segmenting.cut import load_policy
from segcredit.training.rollouts.from_texts import rollouts_of_texts

SCRIPT = Path(__file__).parents[1] / "experiments" / "07_real_traces" / "anchors.py"
TINY = '{name="tiny", steps=0}'


def trace(text, sentences, shares=None, problem="p", name="t"):
    """A trace whose sentences are (start, end); all accuracies are of 50 rollouts."""
    starts, ends = np.array(sentences, dtype=np.int64).reshape(-1, 2).T
    shares = np.linspace(0, 1, len(starts)) if shares is None else shares
    return AnchorTrace(
        name=name,
        model="m",
        problem=problem,
        correct=True,
        text=text,
        starts=starts,
        ends=ends,
        accuracy=np.asarray(shares, dtype=float),
        rollouts=np.full(len(starts), 50),
    )


FOUR = trace("Aa. Bb.  Cc.\nDd. tail", [(0, 3), (4, 7), (9, 12), (13, 16)])


@pytest.mark.parametrize(
    ("cut", "ends", "starts"),
    [
        (0, [], []),  # nothing is cut before the first character
        (1, [0], [0]),  # inside a sentence: at that one
        (2, [0], [0]),
        (3, [0], [1]),  # at its end, in the space, at the next one's start: between them
        (4, [0], [1]),
        (5, [1], [1]),
        (7, [1], [2]),
        (8, [1], [2]),
        (9, [1], [2]),
        (11, [2], [2]),
        (12, [2], []),  # the last sentence has no known change, under "start" nothing is marked
        (13, [2], []),
        (14, [], []),
        (16, [], []),
        (20, [], []),
    ],
)
def test_a_cut_marks_the_sentences_beside_it(cut, ends, starts):
    marks = marked_sentences([FOUR], [[cut]])
    assert np.flatnonzero(marks["end"][0]).tolist() == ends
    assert np.flatnonzero(marks["start"][0]).tolist() == starts


def random_trace(chance, shares=None, problem="p"):
    """Sentences of some letters, with white space of 0 to 2 characters between them."""
    count = int(chance.integers(3, 9))
    edges, at, text = [], 0, ""
    for _ in range(count):
        length, gap = int(chance.integers(1, 6)), int(chance.integers(0, 3))
        edges.append((at, at + length))
        text += "a" * length + " " * gap
        at += length + gap
    return trace(text + "end", edges, chance.random(count) if shares is None else shares, problem)


def test_marks_are_those_of_a_walk_along_the_characters():
    chance = np.random.default_rng(0)
    for _ in range(200):
        traces = [random_trace(chance) for _ in range(2)]
        cuts = [np.flatnonzero(chance.random(len(t.text)) < 0.2).tolist() for t in traces]
        marks = marked_sentences(traces, cuts)
        width = max(len(t.starts) for t in traces) - 1
        for row, (found, offsets) in enumerate(zip(traces, cuts, strict=True)):
            ends, starts = set(), set()
            for cut in offsets:
                inside = [
                    n
                    for n, (s, e) in enumerate(zip(found.starts, found.ends, strict=True))
                    if s < cut < e
                ]
                before = [n for n, e in enumerate(found.ends) if e <= cut]
                behind = [n for n, s in enumerate(found.starts) if s >= cut]
                if inside:
                    ends.add(inside[0])
                    starts.add(inside[0])
                elif before and behind:
                    ends.add(before[-1])
                    starts.add(behind[0])
            known = len(found.starts) - 1
            assert marks["end"].shape == marks["start"].shape == (2, width)
            assert set(np.flatnonzero(marks["end"][row])) == {n for n in ends if n < known}
            assert set(np.flatnonzero(marks["start"][row])) == {n for n in starts if n < known}


def test_a_signal_belongs_to_the_sentence_of_its_token():
    #                 "Aa" "." " Bb" ".  " "Cc" ".\n" "Dd." " tail": the last two count nowhere
    spans = [(0, 2), (2, 3), (3, 6), (6, 9), (9, 11), (11, 13), (13, 16), (16, 21)]
    signal = [1.0, 3.0, 5.0, 2.0, 0.5, 0.25, 9.0, 9.0]
    found = sentence_signals([FOUR], [spans], [signal])
    assert found["highest"][0].tolist() == [3.0, 5.0, 0.5]
    assert found["mean"][0].tolist() == [2.0, 3.5, 0.375]
    # White space alone counts for the sentence behind it, and a sentence without a token has −∞.
    found = sentence_signals([FOUR], [[(7, 9), (0, 3)]], [[4.0, 1.0]])
    assert found["mean"][0].tolist() == [1.0, -np.inf, 4.0]
    assert sentence_lengths([FOUR]).tolist() == [[3.0, 3.0, 3.0]]


@pytest.fixture(scope="module")
def some():
    chance = np.random.default_rng(1)
    traces = [random_trace(chance, problem=f"p{n // 2}") for n in range(8)]
    return traces, anchor_truth(traces, unit="trace"), chance


@pytest.mark.parametrize("fork", ["end", "start"])
def test_weights_say_what_the_audit_says(some, fork):
    _, truth, _ = some
    chance = np.random.default_rng(2)
    marks_BT = chance.random(truth.mask.shape) < 0.5
    ids_BT = ids_from(truth, marks_BT, fork)
    counts_B = (marks_BT & candidates(truth, fork)).sum(1)
    share = metrics.share_on_boundaries(truth, ids_BT, fork=fork)
    assert budgets.weighted_share(truth, marks_BT, fork=fork).value == pytest.approx(share.value)
    random_BT = budgets.uniform_places(truth, counts_B, fork=fork)
    expected = metrics.random_share_on_boundaries(truth, ids_BT, fork=fork).value
    assert budgets.weighted_share(truth, random_BT, fork=fork).value == pytest.approx(expected)
    ratio = metrics.boundary_ratio(truth, ids_BT, fork=fork).value
    found = budgets.weighted_ratio(truth, marks_BT, random_BT, fork=fork)
    assert found.value == pytest.approx(ratio)
    drawn_R = budgets.drawn_shares(truth, counts_B, fork=fork, draws=20000)
    spread = drawn_R.std() / np.sqrt(len(drawn_R))
    assert abs(drawn_R.mean() - expected) < 4 * spread


@pytest.mark.parametrize("fork", ["end", "start"])
def test_a_definition_at_a_budget_is_the_mean_of_its_draws(some, fork):
    _, truth, _ = some
    chance = np.random.default_rng(3)
    places_BT = candidates(truth, fork)
    counts_B = budgets.budget(truth, 0.5, fork=fork)
    marks_BT = chance.random(truth.mask.shape) < 0.5
    weights_BT = budgets.at_budget(truth, marks_BT, counts_B, fork=fork)
    assert weights_BT.sum(1) == pytest.approx(counts_B)
    assert not weights_BT[~places_BT].any()
    tallied_BT = np.zeros(truth.mask.shape)
    for _ in range(2000):
        for row, count in enumerate(counts_B):
            own = np.flatnonzero(marks_BT[row] & places_BT[row])
            other = np.flatnonzero(~marks_BT[row] & places_BT[row])
            taken = chance.permutation(own)[:count]
            tallied_BT[row, taken] += 1
            tallied_BT[row, chance.permutation(other)[: count - len(taken)]] += 1
    assert tallied_BT / 2000 == pytest.approx(weights_BT, abs=0.05)


def test_thinning_at_random_leaves_the_ratio_to_chance(some):
    _, truth, _ = some
    all_BT = np.ones(truth.mask.shape, bool)
    all_BT[:, ::3] = False
    counts_B = np.ones(len(all_BT), int)
    own_B = (all_BT & candidates(truth, "end")).sum(1)
    thin = budgets.weighted_ratio(
        truth.select([0]),
        budgets.at_budget(truth, all_BT, counts_B)[:1],
        budgets.uniform_places(truth, counts_B)[:1],
    )
    full = budgets.weighted_ratio(
        truth.select([0]), all_BT[:1], budgets.uniform_places(truth, own_B)[:1]
    )
    assert thin.value == pytest.approx(full.value)


def test_chance_by_size_is_proportional_and_full():
    truth = anchor_truth([trace("a" * 9, [(n, n + 1) for n in range(7)])])
    sizes = [[1.0, 1.0, 2.0, 4.0, 8.0, 100.0]]  # the last is no candidate of fork "end"
    found = budgets.sized_places(truth, [2], sizes)
    # 8 of 16 twice is certain; 1 is left for 8.
    assert found[0].tolist() == pytest.approx([1 / 8, 1 / 8, 2 / 8, 4 / 8, 1, 0])
    assert budgets.sized_places(truth, [9], sizes)[0].tolist() == [1, 1, 1, 1, 1, 0]
    assert budgets.sized_places(truth, [0], sizes)[0].tolist() == [0] * 6
    equal = budgets.sized_places(truth, [2], np.ones((1, 6)), fork="start")
    assert equal[0].tolist() == pytest.approx([0, 0.4, 0.4, 0.4, 0.4, 0.4])


def test_the_strongest_places_are_the_highest_and_then_the_earlier():
    truth = anchor_truth([trace("a" * 9, [(n, n + 1) for n in range(6)])])
    signal = [[9.0, 1.0, 3.0, 3.0, 7.0]]
    assert budgets.strongest(truth, signal, [2]).tolist() == [[True, False, True, False, False]]
    starts = budgets.strongest(truth, signal, [2], fork="start")
    assert starts.tolist() == [[False, False, True, False, True]]
    nothing = np.full((1, 5), -np.inf)
    assert budgets.strongest(truth, nothing, [2]).tolist() == [[True, True, False, False, False]]
    assert budgets.budget(truth, 0.25).tolist() == [1]
    for fraction in (0, 1.5):
        with pytest.raises(StudyError, match="fraction is"):
            budgets.budget(truth, fraction)


def test_metrics_find_the_boundaries_at_which_accuracy_moves():
    """Accuracy moves over every third sentence; a definition that ends there has all of it."""
    chance = np.random.default_rng(5)
    traces = []
    for number in range(40):
        steps = np.where(np.arange(12) % 3 == 2, chance.choice([-0.15, 0.15], 12), 0)
        values = np.clip(0.5 + steps.cumsum() - steps, 0.05, 0.95)
        shares = chance.binomial(50, values) / 50
        traces.append(trace("a" * 20, [(n, n + 1) for n in range(12)], shares, f"p{number}"))
    judged = AnchorMetrics(traces)
    good = np.broadcast_to(np.arange(11) % 3 == 2, (40, 11))
    marks = {"end": good, "start": np.roll(good, 1, axis=1)}
    rows = pd.DataFrame(judged.at_own_count("good", marks)).set_index(["fork", "metric", "other"])
    value, columns = rows["value"], ["low", "high"]
    assert rows.loc[("end", "share_on_boundaries", ""), columns].between(0.7, 1.2).all()
    assert value["end", "boundary_ratio", ""] > 2.5
    assert value["end", "drawn_shares_as_high", ""] == 0
    assert value["start", "boundary_ratio", ""] < 0.5
    assert value["start", "drawn_shares_as_high", ""] > 0.9
    assert value["end", "jump_agreement", ""] > value["end", "jump_chance", ""] + 0.05
    # All are as long, so that chance by length is chance.
    assert value["end", "boundary_ratio", "of chance by length"] == pytest.approx(1)
    held = pd.DataFrame(judged.at_budget(0.2, {"good": marks}, {"signal": good.astype(float)}))
    held = held[held.fork == "end"].set_index(["segmenter", "metric", "other"])["value"]
    less = "share_at_0.2_less"
    assert held["good", "share_at_0.2", ""] == pytest.approx(
        held["signal", "share_at_0.2", ""], abs=0.25
    )
    for one, other in itertools.combinations(["good", "signal", BY_LENGTH, CHANCE, ORACLE], 2):
        difference = held[one, "share_at_0.2", ""] - held[other, "share_at_0.2", ""]
        assert held[one, less, other] == pytest.approx(difference)


CHAIN = "9-3=6\n6+2=8\n8-1=7\n7+2=9\n9-5=4\n" * 8 + "#4"


def chain_trace():
    lines = [(n, n + 5) for n in range(0, len(CHAIN) - 2, 6)]
    return trace(CHAIN, lines, problem="9-3+2=")


@torch.no_grad()
def test_a_trace_that_fits_is_read_in_one_piece():
    policy = load_policy(TINY)
    whole = rollouts_of_texts(policy, ["9-3+2="], [CHAIN])
    found = scored_trace(policy, chain_trace(), context=512)
    for name in ("completion_ids", "action_mask", "logprobs", "entropies", "token_spans"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    assert found.texts == (CHAIN,)


@torch.no_grad()
def test_a_longer_one_is_read_in_pieces_that_follow_each_other():
    policy = load_policy(TINY)
    found = scored_trace(policy, chain_trace(), context=64)
    whole = rollouts_of_texts(policy, ["9-3+2="], [CHAIN])
    assert torch.equal(found.completion_ids, whole.completion_ids)
    assert torch.equal(found.token_spans, whole.token_spans)
    # A token a character; 32 of them reach into the sixth line, so that five are read at once,
    # without the newline, which is the next piece's first.
    edges = [0, 29, 59, 89, 119, 149, 179, 209, 239, 242]
    before = ["9-3+2=", *(CHAIN[a:b] for a, b in itertools.pairwise(edges[:-1]))]
    for prompt, (start, end) in zip(before, itertools.pairwise(edges), strict=True):
        piece = rollouts_of_texts(policy, [prompt], [CHAIN[start:end]])
        assert torch.allclose(found.entropies[0, start:end], piece.entropies[0], atol=1e-5)
        assert torch.allclose(found.logprobs[0, start:end], piece.logprobs[0], atol=1e-5)
    with pytest.raises(StudyError, match="the context is 10 tokens"):
        scored_trace(policy, chain_trace(), context=10)


@torch.no_grad()
def test_token_segments_are_cut_at_the_characters_of_their_tokens():
    rollouts = scored_trace(load_policy(TINY), chain_trace())
    newlines = [n + 1 for n, letter in enumerate(CHAIN) if letter == "\n"]
    assert token_cuts(registry.segmenters.build("newline"), rollouts) == newlines
    assert token_cuts(registry.segmenters.build("whole"), rollouts) == []


def script():
    spec = importlib.util.spec_from_file_location("anchors_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(name, problem, chance, lines=12):
    """Accuracy moves on the second line of each paragraph."""
    text, sentences, value = "", [], 0.5
    for number in range(lines):
        start = len(text)
        text += f"Line {number} adds {number}."
        share = chance.binomial(100, value) / 100
        sentences.append({"start": start, "end": len(text), "accuracy": share, "rollouts": 100})
        text += "\n\n" if number % 2 else " "
        if number % 2:
            value = float(np.clip(value + chance.choice([-0.2, 0.2]), 0.1, 0.9))
    return {
        "id": name,
        "model": "m",
        "problem": problem,
        "base_solution_correct": True,
        "text": text + "Done.",
        "chunks": sentences,
    }


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_the_command_judges_a_file_of_traces(tmp_path, capsys):
    chance = np.random.default_rng(7)
    records = [record(f"t{n}", f"p{n // 2}", chance) for n in range(8)]
    records += [record(SUSPECT[0], "p0", chance), record("short", "p0", chance, lines=2)]
    output = tmp_path / "found.csv"
    module = script()
    module.run(module.read(write(tmp_path / "a.jsonl", records)), None, 8192, output)
    printed = capsys.readouterr().out
    assert "8 traces of 4 problems" in printed
    assert "left out: short" in printed
    found = pd.read_csv(output).set_index(["segmenter", "fork", "metric"])
    newline = found.loc[("paragraph", "end", "boundary_ratio")]
    assert newline[newline.other.isna()].value.item() > 1.6
    assert set(found.traces) == {8}
    assert output.with_suffix(".png").stat().st_size > 5000


def test_what_the_command_cannot_judge_is_a_sentence(tmp_path):
    chance = np.random.default_rng(8)
    short = write(tmp_path / "a.jsonl", [record("short", "p", chance, lines=2)])
    read = script().read
    with pytest.raises(StudyError, match=r"none of the 1 traces .* has 3 sentences"):
        read(short)
    with pytest.raises(StudyError, match="0 traces, of which none is left"):
        read(write(tmp_path / "c.jsonl", []))
    with pytest.raises(StudyError, match="1 traces, of which none is left"):
        read(short, ["short"])


@torch.no_grad()
def test_the_command_adds_what_a_local_model_says(tmp_path):
    """Digits, since the tiny policy knows no words."""
    chance = np.random.default_rng(9)
    lines = [{"start": n, "end": n + 5, "accuracy": 0.5, "rollouts": 50} for n in range(0, 60, 6)]
    records = []
    for number in range(4):
        sentences = [{**line, "accuracy": chance.integers(51) / 50} for line in lines]
        new = {"id": f"d{number}", "problem": "9-3+2=", "text": CHAIN, "chunks": sentences}
        records.append({**record("", "", chance), **new})
    module, output = script(), tmp_path / "found.csv"
    module.run(module.read(write(tmp_path / "a.jsonl", records)), TINY, 128, output)
    found = pd.read_csv(output)
    named = {name for name in found.segmenter if name.endswith("(tiny)")}
    assert {f"{name} (tiny)" for name in module.TOKENS} < named
    assert "highest entropy (tiny)" in named
    # Four traces of one problem: one unit, of which there is no interval.
    assert found.low_traces.notna().any()
    assert found[found.metric == "boundary_ratio"].low.isna().all()
    with pytest.raises(PolicyError, match="trace 'w' cannot be read"):
        scored_trace(load_policy(TINY), trace("words", [(0, 2), (3, 5)], name="w"))


def test_columns_of_a_model_bear_its_name():
    named = script().model_name
    assert named('{name="hf", model="hub/SmolLM2-135M-Instruct"}') == "SmolLM2-135M-Instruct"
    assert named("tiny") == "tiny"
