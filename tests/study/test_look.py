"""Completions to look at: which pieces, from rollouts and from runs, and what a terminal shows.

What a browser makes of them: test_look_browser.py.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from io import BytesIO, StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rich
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import segcredit
from segcredit import Advantages, Segmentation, read_runs, registry
from segcredit.errors import ShapeError, StudyError
from segcredit.records.image_files import image_name
from segcredit.records.run_directory import RunRecords
from segcredit.records.tables import Runs
from segcredit.study.look import browser, recorded
from segcredit.study.look.completions import (
    BEGINS,
    CONTINUES,
    OBSERVED,
    Completion,
    Cut,
    Turn,
    cut_at,
)
from segcredit.study.look.recorded import (
    TRAINED,
    cuts_of_texts,
    found_places,
    of_runs,
    spaced_steps,
)
from segcredit.study.look.rollouts import of_rollouts, of_segmentations
from segcredit.testing.rollouts import make_rollouts


def pieces(one: Completion, name: str) -> list[tuple[str, int]]:
    ends = [0]
    for size in one.cuts[name].sizes:
        ends.append(ends[-1] + size)
    kinds = one.cuts[name].kinds
    return [(one.text[a:b], k) for a, b, k in zip(ends[:-1], ends[1:], kinds, strict=True)]


# Rollouts and segmentations in memory.


def test_segments_holes_and_tokens_without_characters_are_pieces() -> None:
    rollouts = make_rollouts(["a+12=12", "12"], holes={0: [2, 3]}, truncated=[1])
    starts = torch.zeros(2, 8)
    starts[0, 4] = 1
    one_B = Segmentation.from_starts(starts, rollouts.action_mask)
    over_hole = Segmentation.from_starts(starts * 0, rollouts.action_mask)
    made, short = of_rollouts(rollouts, {"cut": one_B, "whole": over_hole}, {}, {}, [0, 1])
    assert made.text == "a+12=12⟨1⟩"  # the end token has an id alone
    assert pieces(made, "cut") == [("a+", BEGINS), ("12", OBSERVED), ("=12⟨1⟩", BEGINS)]
    assert pieces(made, "whole") == [("a+", BEGINS), ("12", OBSERVED), ("=12⟨1⟩", CONTINUES)]
    assert (short.text, short.truncated) == ("12", True)
    assert made.facts == "6 tokens and 2 observed"


def test_credit_by_token_or_segment_divides_no_segment_unless_it_differs() -> None:
    rollouts = make_rollouts(["a12", "a"])
    cut = Segmentation.from_starts(torch.tensor([[0, 1, 0, 0], [0] * 4]), rollouts.action_mask)
    by_segment = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    both = Advantages(per_segment=by_segment, per_token=cut.spread(by_segment))
    for credit in (by_segment, cut.spread(by_segment), both):
        made, _ = of_rollouts(rollouts, {"c": cut}, {"c": credit}, {}, [0, 1])
        assert list(made.cuts["c"].credit) == [0.5, -1.0]
        assert pieces(made, "c") == [("a", BEGINS), ("12⟨1⟩", BEGINS)]
    values = torch.tensor([[0.1, 0.2, 0.3, 0.3], [0.0] * 4])
    (made,) = of_rollouts(rollouts, {"c": cut}, {"c": by_segment}, {"c": values}, [0])
    assert [kind for _, kind in pieces(made, "c")] == [BEGINS, BEGINS, CONTINUES]
    assert list(made.cuts["c"].values) == pytest.approx([0.1, 0.2, 0.3])


@given(
    st.lists(st.integers(0, 1), min_size=6, max_size=6),
    st.lists(st.integers(0, 5), max_size=4, unique=True),
)
def test_pieces_are_the_text_and_begin_where_segments_do(
    starts: list[int], hole: list[int]
) -> None:
    rollouts = make_rollouts(["a+12=a"[:6]], holes={0: hole}, truncated=[0])
    cut = Segmentation.from_starts(torch.tensor([starts]), rollouts.action_mask)
    (made,) = of_rollouts(rollouts, {"c": cut}, {}, {}, [0])
    found = pieces(made, "c")
    assert "".join(text for text, _ in found) == made.text == "a+12=a"
    assert sum(kind == BEGINS for _, kind in found) == int(cut.counts[0])
    observed = "".join(t for t, kind in found if kind == OBSERVED)
    assert observed == "".join("a+12=a"[at] for at in sorted(hole))


def in_turns() -> tuple[Any, list[int]]:
    """Rollouts of three turns: ``a+`` and its observation ``12``, ``=1``, and at once ``2``."""
    rollouts = make_rollouts(["a+12=12"], holes={0: [2, 3]})
    turn_ids = [0, 0, -1, -1, 1, 1, 2, 2]
    rewards = torch.tensor([[0, 0.5, 0, 0, 0, 0, 0.25, -1]])
    return rollouts.replace(turn_ids=torch.tensor([turn_ids]), token_rewards=rewards), turn_ids


def test_no_piece_goes_over_the_edge_of_a_turn() -> None:
    rollouts, _ = in_turns()
    whole = Segmentation.from_starts(torch.zeros(1, 8), rollouts.action_mask)
    (made,) = of_rollouts(rollouts, {"whole": whole}, {"whole": torch.ones(1, 1)}, {}, [0])
    parts = [("a+", BEGINS), ("12", OBSERVED), ("=1", CONTINUES), ("2⟨1⟩", CONTINUES)]
    assert pieces(made, "whole") == parts
    assert str(list(made.cuts["whole"].credit)) == "[1.0, nan, 1.0, 1.0]"
    assert [(turn.start, turn.end) for turn in made.turns] == [(0, 2), (4, 6), (6, 10)]
    assert [turn.facts for turn in made.turns] == ["reward 0.5", "reward 0", "reward −0.75"]
    (bare,) = of_rollouts(rollouts, {}, {}, {}, [0])
    assert pieces(bare, "") == parts


def test_a_text_is_cut_at_turns_and_what_is_in_none_is_observed() -> None:
    cut = Cut(sizes=[3, 4, 0, 3], kinds=[BEGINS] * 4, credit=[1.0, 2.0, 3.0, 4.0])
    turns = [Turn(0, 2), Turn(5, 8), Turn(8, 8), Turn(9, 10)]
    made = Completion(text="abcdefghij", cuts={"x": cut}, turns=turns)
    assert pieces(made, "x") == [
        ("ab", BEGINS),
        ("c", OBSERVED),
        ("de", OBSERVED),
        ("fg", BEGINS),
        ("", BEGINS),
        ("h", BEGINS),
        ("i", OBSERVED),
        ("j", CONTINUES),
    ]
    assert str(list(made.cuts["x"].credit)) == "[1.0, nan, nan, 2.0, 3.0, 4.0, nan, 4.0]"
    without = Completion(text="abcde", cuts={}, turns=[Turn(0, 2), Turn(3, 5)])
    assert pieces(without, "") == [("ab", BEGINS), ("c", OBSERVED), ("de", CONTINUES)]
    long = Completion(text="x" * 30_000, cuts={}, turns=[Turn(0, 19_999), Turn(25_000, 30_000)])
    assert [turn.end for turn in long.turns] == [19_999]
    assert list(long.cuts[""].sizes) == [19_999, 1]


def test_a_segmentation_alone_is_a_dot_a_token() -> None:
    cut = Segmentation(torch.tensor([[0, 0, -1, 1, -1], [-1] * 5]))
    made, nothing = of_segmentations({"s": cut}, {}, {}, [0, 1])
    assert pieces(made, "s") == [("··", BEGINS), ("·", OBSERVED), ("·", BEGINS)]
    assert nothing.text == ""


# What is shown, and where.


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(record=True, width=60, file=StringIO())
    monkeypatch.setattr(rich, "get_console", lambda: console)
    return console


def test_a_terminal_shows_marks_credit_values_and_observations(out: Console) -> None:
    rollouts = make_rollouts(["a+12=12", *["12"] * 9], holes={0: [2, 3]})
    cut = registry.segmenters.build("turns").segment(rollouts)
    credit = torch.tensor([[0.5, -0.25]]).expand(10, 2)
    segcredit.show(rollouts, {"turns": cut}, credit, values=credit + 1)
    text = out.export_text(clear=False)
    assert "turns · 2 segments · value 0.75 █▁ 1.5" in text
    assert "a+[+0.5]⟦12⟧¦=12⟨1⟩[−0.25]" in text
    assert "4 of 10 completions; rows=... chooses others." in text
    assert text.count("tokens") == 4
    styled = out.export_text(styles=True)
    assert "\x1b[36ma+" in styled  # cyan, then yellow
    assert "\x1b[33m=12" in styled
    segcredit.show(rollouts, cut, rows=[9])
    assert "row 9" in out.export_text()


def test_a_terminal_begins_a_line_with_each_turn(out: Console) -> None:
    rollouts, _ = in_turns()
    cut = registry.segmenters.build("turns").segment(rollouts)
    segcredit.show(rollouts, cut, torch.tensor([[0.5, -0.25, 1.0]]))
    lines = [line.rstrip() for line in out.export_text().splitlines()]
    assert lines[lines.index("turn 1: reward 0.5") :][:6] == [
        "turn 1: reward 0.5",
        "a+[+0.5]⟦12⟧",
        "turn 2: reward 0",
        "=1[−0.25]",
        "turn 3: reward −0.75",
        "2⟨1⟩[+1]",
    ]


def test_rich_prints_rollouts_segmentations_and_runs_likewise(tmp_path: Path) -> None:
    rollouts = make_rollouts(["a+12"])
    cut = Segmentation.from_starts(torch.tensor([[0, 0, 1, 0, 0]]), rollouts.action_mask)
    record(tmp_path, reward=[1.0], text=["recorded"])
    console = Console(record=True, width=60, file=StringIO())
    console.print(rollouts, cut, read_runs(tmp_path))
    text = console.export_text()
    assert "a+12⟨1⟩" in text
    assert "··¦···" in text
    assert "recorded" in text
    assert "step 1" in text


def test_a_notebook_is_told_and_gets_html(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    module: Any = ModuleType("IPython.display")
    module.HTML, module.display = str, shown.append
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich, "get_console", lambda: Console(force_jupyter=True))
    segcredit.show(make_rollouts(["a"] * 6))
    assert data_of(shown[0])["text"] == ["a⟨1⟩"] * 6


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_what_does_not_fit_is_a_sentence() -> None:
    rollouts = make_rollouts(["a12", "a"])
    cut = Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)
    other = Segmentation.from_starts(rollouts.action_mask[:1], rollouts.action_mask[:1])
    with pytest.raises(ShapeError, match="expected"):
        segcredit.show(rollouts, other)
    with pytest.raises(ShapeError, match=r"the credit has shape \(2, 9\)"):
        segcredit.show(rollouts, cut, torch.zeros(2, 9))
    with pytest.raises(StudyError, match=r"no such segmentation\. Expected names among 'one'"):
        segcredit.show(rollouts, {"one": cut}, {"two": torch.zeros(2, 4)})
    with pytest.raises(StudyError, match="no completion 2; expected rows from 0 to 1"):
        segcredit.show(rollouts, rows=[2])
    nothing: Any = ["a"]
    with pytest.raises(StudyError, match="nothing to show of list"):
        segcredit.show(nothing)


def test_the_data_load_nothing_that_draws() -> None:
    script = (
        "import sys, segcredit; segcredit.Segmentation, segcredit.RolloutBatch;"
        "print([x for x in ('rich', 'jinja2', 'matplotlib', 'pandas') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# Runs.


def image(colour: str = "red", kind: str = "png") -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, kind)
    return file.getvalue()


def record(path: Path, step: int = 1, seed: int = 0, **columns: Any) -> RunRecords:
    """A run with one completion a reward, to prompts p, q, ..."""
    config = {"method": path.name.split("-")[0], "seed": seed, "segmenter": {"name": "newline"}}
    run = RunRecords.create(path, config, {})
    run.metrics({"step": step, "accuracy": 0.5})
    count = len(columns["reward"])
    texts = [f"text {number}" for number in range(count)]
    given = {"prompt": list("pqrstu"[:count]), "completion": [0] * count, "text": texts}
    run.table("completions", step, given | columns)
    return run


def test_of_each_group_the_first_run_that_recorded_any(tmp_path: Path) -> None:
    for number in range(8):
        for seed in range(3):
            path = tmp_path / f"m{number}-{seed}"
            if seed:
                record(path, seed=seed, reward=[1.0, None])
            else:
                RunRecords.create(path, {"method": f"m{number}", "seed": seed}, {})
    found = of_runs(read_runs(tmp_path), ["method"])
    assert [one.source for one in found.completions[::2]] == [f"m{n}: m{n}-1" for n in range(6)]
    assert (found.groups, found.recorded) == (8, 12)
    assert [one.reward for one in found.completions[:2]] == [1.0, None]
    assert found.completions[0].place == "prompt p, completion 0"


def test_rows_are_read_of_what_is_shown_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        run = record(tmp_path / f"sapo-{seed}", seed=seed, reward=[0.0, 1.0])
        run.table("completions", 2, {"prompt": ["p"] * 3, "text": list("xyz"), "reward": [1.0] * 3})
    rows: list[tuple[Any, int]] = []
    read = Runs.read

    def watched(self: Runs, table: Any, columns: Any = None, where: Any = None) -> Any:
        found = read(self, table, columns, where)
        rows.append((columns, len(found)))
        return found

    monkeypatch.setattr(Runs, "read", watched)
    found = of_runs(read_runs(tmp_path), ["method"], most=4)
    assert [one.text for one in found.completions] == list("xyz")
    assert rows[0] == (["step"], 5)
    assert [count for _, count in rows[1:]] == [3, 0, 0]
    # One step is shown in part where even that is too many; so are texts that are too long.
    assert len(of_runs(read_runs(tmp_path), ["method"], most=2).completions) == 2
    monkeypatch.setattr(recorded, "MOST_LETTERS", 2)
    assert [x.text for x in of_runs(read_runs(tmp_path), ["method"]).completions] == ["x", "y"]


@given(st.dictionaries(st.integers(0, 99), st.integers(1, 9), min_size=1), st.integers(1, 100))
def test_steps_are_evenly_spaced_with_the_last_and_not_too_many(
    sizes: dict[int, int], most: int
) -> None:
    chosen = spaced_steps(sizes, most)
    assert max(sizes) in chosen
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 1 or sum(sizes[step] for step in chosen) <= most
    assert len(chosen) == len(sizes) or sum(sizes.values()) > most
    assert spaced_steps(dict.fromkeys(range(1, 101), 1), 4) == [1, 34, 67, 100]


def test_a_damaged_table_is_left_out_and_named(tmp_path: Path) -> None:
    record(tmp_path / "good", reward=[1.0])
    record(tmp_path / "bad", reward=[1.0])
    (tmp_path / "bad" / "completions" / "step_000001.parquet").write_bytes(b"PAR1")
    runs = read_runs(tmp_path, damaged="skip")
    assert [one.source for one in of_runs(runs, ["method"]).completions] == ["good"]
    assert set(runs.left_out) == {"bad"}


def test_segments_are_those_of_the_completion_and_its_step(tmp_path: Path) -> None:
    of = {"prompt": ["p", "q", "p"], "completion": [0, 0, 1]}
    texts = ["one two", "one\ntwo", "one, two"]
    run = record(tmp_path / "sapo", reward=[1.0, 0.0, 0.5], text=texts, **of)
    segments = {
        "prompt": ["p", "q", "p", "p", "p"],
        "completion": [0, 0, 0, 1, 1],
        "segment": [1, 0, 0, 0, 1],
        "text": ["two", "other", "one ", "one", "two"],
        "value": [0.5, 0.0, 0.25, 0.1, 0.2],
        "advantage": [-1.0, 0.0, 1.0, 3.0, 4.0],
    }
    run.table("segments", 1, segments)
    run.table("segments", 0, {**segments, "text": list("xyzuv")})
    first, second, third = of_runs(read_runs(tmp_path), ["method"], ["newline"]).completions
    own = first.cuts[TRAINED]
    assert (list(own.credit), list(own.values)) == ([1.0, -1.0], [0.25, 0.5])
    assert (pieces(first, TRAINED), own.note) == ([("one ", 0), ("two", 0)], "newline")
    assert list(second.cuts) == ["newline"]  # the text does not hold what was recorded
    assert pieces(second, "newline") == [("one\n", BEGINS), ("two", BEGINS)]
    # What no segment covers was no action of the policy.
    assert pieces(third, TRAINED) == [("one", BEGINS), (", ", OBSERVED), ("two", BEGINS)]


@given(st.lists(st.tuples(st.text("ab\n é", max_size=3), st.booleans()), max_size=8))
def test_places_are_those_of_the_segments(parts: list[tuple[str, bool]]) -> None:
    """Where something lies between segments, a search may find one earlier, never out of order."""
    text = "".join(part for part, _ in parts)
    segments = [part for part, is_segment in parts if is_segment]
    places = found_places(text, segments)
    assert places is not None
    cut = cut_at(len(text), *places)
    made = Completion(text=text, cuts={"c": cut})
    assert "".join(part for part, _ in pieces(made, "c")) == text
    assert [part for part, kind in pieces(made, "c") if kind == BEGINS] == segments
    assert found_places("a b", ["a", "x"]) is None
    assert found_places("a b", ["b", "a"]) is None


def test_recorded_turns_are_those_of_the_completion_and_its_step(tmp_path: Path) -> None:
    of = {"prompt": ["p", "p"], "completion": [0, 1]}
    run = record(tmp_path / "sapo", reward=[1.0, 0.0], text=["?a.b;=b.", "=c."], **of)
    turns = {
        "prompt": ["p"] * 3,
        "completion": [0, 0, 1],
        "turn": [1, 0, 0],
        "text": ["=b.", "?a.", "=c."],
        "observation": ["", "b;", ""],
        "reward": [1.0, 0.0, -0.5],
        "value": [0.75, 0.5, 0.5],
        "advantage": [0.25, -0.25, 1.0],
    }
    run.table("turns", 1, turns)
    run.table("turns", 0, {**turns, "text": list("xyz")})
    first, second = of_runs(read_runs(tmp_path), ["method"]).completions
    assert first.turns == [
        Turn(0, 3, "reward 0 · value 0.5 · credit −0.25"),
        Turn(5, 8, "reward 1 · value 0.75 · credit +0.25"),
    ]
    assert pieces(first, "") == [("?a.", BEGINS), ("b;", OBSERVED), ("=b.", CONTINUES)]
    assert second.turns == [Turn(0, 3, "reward −0.5 · value 0.5 · credit +1")]
    again, _ = of_runs(read_runs(tmp_path), ["method"], segmenters=["newline"]).completions
    assert pieces(again, "newline") == [("?a.", BEGINS), ("b;", OBSERVED), ("=b.", BEGINS)]


def test_a_segmenter_that_fails_leaves_its_sentence_and_the_others_go_on() -> None:
    class Fails(segcredit.TextSegmenter):
        causal = True

        def split(self, text: str) -> list[int]:
            return [len(text) + 1]

    cutters = {"fails": Fails(), "newline": registry.segmenters.build("newline")}
    (found,) = cuts_of_texts(["a\nb"], cutters)
    assert "expected ascending offsets" in found["fails"].note
    assert list(found["newline"].sizes) == [2, 1]


def test_images_are_read_once_and_those_that_cannot_be_shown_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "MOST_BYTES", 500)
    files = [image(), image("red", "tiff"), image("green", "bmp") + b"\0" * 500, image("blue")]
    names = [*map(image_name, files), "lost.png"]
    run = record(tmp_path / "sapo", reward=[1.0, 0.0], images=[" ".join(names), names[0]])
    for file in files:
        run.image(file)
    (tmp_path / "sapo" / "images" / names[3]).write_bytes(files[0])
    found = of_runs(read_runs(tmp_path), ["method"]).completions
    assert [len(one.images) for one in found] == [1, 1]
    assert base64.b64decode(found[0].images[0].partition("base64,")[2]) == files[0]
    notes = " ".join(found[0].notes)
    assert f"{names[1]} of the run is of a kind that browsers do not show" in notes
    assert f"{names[2]} of the run is too large for a page" in notes
    assert f"{names[3]} is not what was recorded" in notes
    assert "lost.png cannot be read (No such file or directory)" in notes
    data = data_of(browser.block(found))
    assert sum(word.startswith("data:") for word in data["words"]) == 1
    monkeypatch.setattr(recorded, "MOST_IMAGE_BYTES", 10)
    assert not of_runs(read_runs(tmp_path), ["method"]).completions[1].images


def test_long_texts_are_cut_off_with_their_pieces() -> None:
    cut = Cut(sizes=[19_990, 20, 5], kinds=[0, 0, 0], credit=[1.0, 2.0, 3.0])
    made = Completion(text="x" * 20_015, prompt="p" * 20_007, cuts={"c": cut})
    assert list(made.cuts["c"].sizes) == [19_990, 10]
    assert list(made.cuts["c"].credit) == [1.0, 2.0]
    assert made.notes == ["15 more characters of the completion are left out."]
    assert made.prompt.endswith("p… 7 more characters")


def test_a_notebook_shows_nothing_but_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain text that stands in for scripts is no output of its own."""
    import rich.console
    import rich.jupyter

    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(rich.jupyter, "display", lambda *_: pytest.fail("displayed beside"))
    assert "<script" in make_rollouts(2)._repr_html_()
