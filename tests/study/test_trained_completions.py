"""The completions that a report on training runs shows: which, and what stands beside them.

What a browser makes of them: test_report_browser.py.
"""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_report import EVIL, FIGURES, Page, leave_undrawn

from segcredit.records.image_files import image_name
from segcredit.records.run_directory import RunRecords
from segcredit.records.tables import Runs, read_runs
from segcredit.study.report import trained_completions, write_report
from segcredit.study.report.trained_completions import completions_section, marked
from segcredit.study.report.view import Completion, Note, Piece


def image(colour: str = "red", kind: str = "png") -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, kind)
    return file.getvalue()


def record(path: Path, step: int = 1, seed: int = 0, **columns: Any) -> RunRecords:
    """A run with one completion a reward, to prompts p, q, ..."""
    run = RunRecords.create(path, {"method": path.name.split("-")[0], "seed": seed}, {})
    run.metrics({"step": step, "accuracy": 0.5})
    count = len(columns["reward"])
    texts = [f"text {number}" for number in range(count)]
    given = {"prompt": list("pqrstu"[:count]), "completion": [0] * count, "text": texts}
    run.table("completions", step, given | columns)
    return run


def shown(path: Path, by: Any = ("method",)) -> list[Any]:
    return [b for b in completions_section(read_runs(path), by).blocks if isinstance(b, Completion)]


def written(completion: Completion) -> str:
    return "".join(piece.text for piece in completion.pieces)


# Which.


def test_the_best_and_the_worst_of_the_last_step_the_first_of_equals(tmp_path: Path) -> None:
    run = record(tmp_path / "sapo", reward=[9.0, -9.0])
    run.table(
        "completions",
        3,
        {
            "prompt": list("pppqq"),
            "completion": [0, 1, 2, 0, 1],
            "text": list("abcde"),
            "reward": [0.5, 0.0, 1.0, 0.0, 1.0],
            "tokens": [1, 2, 3, 4, 1000],
            "truncated": [False, True, False, False, False],
        },
    )
    best, worst = shown(tmp_path)
    assert (written(best), written(worst)) == ("c", "b")
    assert best.title == "sapo: the highest reward, 1"
    assert worst.title == "sapo: the lowest reward, 0"
    assert best.facts == (
        "Run sapo, step 3, 5 completions. Prompt p, completion 2, 3 tokens, not truncated."
    )
    assert worst.facts.endswith("Prompt p, completion 1, 2 tokens, truncated.")


def test_one_where_all_earned_the_same_and_none_without_a_reward(tmp_path: Path) -> None:
    record(tmp_path / "same", reward=[0.25, 0.25, None])
    record(tmp_path / "none", reward=[None, None])
    (only,) = shown(tmp_path)
    assert only.title == "same: the reward of all, 0.25"
    notes = [
        block.text
        for block in completions_section(read_runs(tmp_path), ["method"]).blocks
        if isinstance(block, Note)
    ]
    assert "none: the run none has no completion with a reward that can be read." in notes


def test_the_first_run_of_a_group_that_recorded_any_in_a_few_groups(tmp_path: Path) -> None:
    for number in range(8):
        for seed in range(3):
            path = tmp_path / f"m{number}-{seed}"
            if seed:
                record(path, seed=seed, reward=[1.0])
            else:
                RunRecords.create(path, {"method": f"m{number}", "seed": seed}, {})
    found = shown(tmp_path)
    assert [completion.facts.split(",")[0] for completion in found] == [
        f"Run m{number}-1" for number in range(6)
    ]
    said: Any = completions_section(read_runs(tmp_path), ["method"]).blocks[0]
    assert "6 of 8 groups are shown" in said.text
    assert len(shown(tmp_path, ["run"])) == 6
    assert shown(tmp_path, ["method", "seed"])[0].title.startswith("m0, 1: ")


def test_rows_are_read_of_what_is_shown_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        run = record(tmp_path / f"sapo-{seed}", seed=seed, reward=[0.0, 1.0])
        run.table("completions", 2, {"prompt": ["p"], "text": ["x"], "reward": [1.0]})
    rows: list[tuple[Any, int]] = []
    read = Runs.read

    def watched(self: Runs, table: Any, columns: Any = None, where: Any = None) -> Any:
        found = read(self, table, columns, where)
        rows.append((columns, len(found)))
        return found

    monkeypatch.setattr(Runs, "read", watched)
    assert len(shown(tmp_path)) == 1
    assert rows[0] == (["step"], 3)
    assert [count for _, count in rows[1:]] == [1, 0]


def test_a_damaged_table_is_left_out_and_named(tmp_path: Path) -> None:
    record(tmp_path / "good", reward=[1.0])
    record(tmp_path / "bad", reward=[1.0])
    (tmp_path / "bad" / "completions" / "step_000001.parquet").write_bytes(b"PAR1")
    runs = read_runs(tmp_path, damaged="skip")
    found = completions_section(runs, ["method"]).blocks
    assert [block.title for block in found if isinstance(block, Completion)] == [
        "good: the reward of all, 1"
    ]
    assert set(runs.left_out) == {"bad"}


# Segments.


@given(st.lists(st.tuples(st.text("ab\n é", max_size=3), st.booleans()), max_size=8))
def test_pieces_are_the_text_and_segments_stand_apart(parts: list[tuple[str, bool]]) -> None:
    """Where something lies between segments, a search may find one earlier, never out of order."""
    text = "".join(part for part, _ in parts)
    segments = [part for part, is_segment in parts if is_segment]
    pieces = marked(text, segments)
    assert "".join(piece.text for piece in pieces) == text
    assert [p.text for p in pieces if p.is_segment] == [part for part in segments if part]
    if len(segments) == len(parts):
        assert all(piece.is_segment for piece in pieces)


def test_segments_that_are_not_in_the_text_leave_it_plain() -> None:
    assert marked("a b", ["a", "x"]) == [Piece("a b")]
    assert marked("a b", ["b", "a"]) == [Piece("a b")]
    assert marked("a b", []) == [Piece("a b")]
    assert marked("", ["a"]) == [Piece("")]


def test_segments_are_those_of_the_completion_and_its_step(tmp_path: Path) -> None:
    of = {"prompt": ["p", "q", "p"], "completion": [0, 0, 1]}
    run = record(tmp_path / "sapo", reward=[1.0, 0.0, 0.5], text=["one two"] * 3, **of)
    segments = {
        "prompt": ["p", "q", "p", "p"],
        "completion": [0, 0, 0, 1],
        "segment": [1, 0, 0, 0],
        "text": ["two", "one two", "one ", "one t"],
    }
    run.table("segments", 1, segments)
    run.table("segments", 0, {**segments, "text": list("xyzu")})
    best, worst = shown(tmp_path)
    assert best.pieces == [Piece("one ", is_segment=True), Piece("two", is_segment=True)]
    assert worst.pieces == [Piece("one two", is_segment=True)]
    assert "2 segments" in best.facts


# Images, and the page.


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return leave_undrawn(monkeypatch, FIGURES)


def test_images_are_in_the_page_beside_their_completion(tmp_path: Path, undrawn: list[str]) -> None:
    files = [image("red"), image("green", "jpeg"), image("blue")]
    names = list(map(image_name, files))
    both = [f"{names[0]} {names[1]}", names[2]]
    run = record(tmp_path / "sapo", reward=[0.0, 1.0], images=both)
    for file in files:
        run.image(file)
    page = Page(write_report(tmp_path))
    sources = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)"', page.source)
    assert [kind for kind, _ in sources] == ["png", "png", "jpeg"]
    assert [base64.b64decode(each) for _, each in sources] == [files[2], *files[:2]]
    assert not re.search(r"<img(?! src=\"data:)", page.source)
    assert page.tags["article"] == 2


def test_an_image_that_is_not_there_or_not_fit_is_a_sentence(
    tmp_path: Path, undrawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_completions, "MOST_BYTES", 500)
    files = [image(), image("red", "tiff"), image("green", "bmp") + b"\0" * 500, image("blue")]
    names = [*map(image_name, files), "lost.png"]
    run = record(tmp_path / "sapo", reward=[1.0], images=[" ".join(names)])
    for file in files:
        run.image(file)
    (tmp_path / "sapo" / "images" / names[3]).write_bytes(files[0])
    page = Page(write_report(tmp_path))
    assert page.tags["img"] == 1
    text = page.of("completions")
    assert f"{names[1]} of the run is of a kind that browsers do not show" in text
    assert f"{names[2]} of the run is too large for a page" in text
    assert f"{names[3]} is not what was recorded" in text
    assert "lost.png cannot be read (No such file or directory)" in text


def test_texts_are_escaped_folded_and_bounded(
    tmp_path: Path, undrawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_completions, "MOST_CHARACTERS", 3_000)
    texts = [f"{EVIL}\n  kept  ", "long " * 400, "x" * 3_007]
    of = {"prompt": [EVIL, "q", "r"], "prompt_text": [EVIL, "p" * 1_300, "r"], "text": texts}
    run = record(tmp_path / "a", reward=[1.0, 0.0, 0.5], **of)
    run.table("segments", 1, {"prompt": [EVIL], "completion": [0], "segment": [0], "text": [EVIL]})
    record(tmp_path / "b", reward=[0.5], text=[texts[2]])
    record(tmp_path / "c", reward=[0.5], text=[""])
    page = Page(write_report(tmp_path))
    assert (page.tags["script"], page.tags["img"]) == (1, 0)
    assert page.of("completions").count(EVIL) == 3  # the prompt's key, its text, the completion
    assert "\n  kept  </p>" in page.source
    text = page.of("completions")
    assert "The prompt, 1,300 characters" in text
    assert "The completion, 2,000 characters" in text
    assert "x… 7 more characters" in text
    assert "nothing" in text


def test_a_run_of_an_earlier_version_has_completions_without_images(tmp_path: Path) -> None:
    """Its table lacks the column."""
    record(tmp_path / "sapo", reward=[1.0])
    file = tmp_path / "sapo" / "completions" / "step_000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["images"]), file)
    (only,) = shown(tmp_path)
    assert (only.images, only.notes) == ([], [])
