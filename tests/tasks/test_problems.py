"""Problems of data sets: where they come from, whose images they have, and how answers compare."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit.errors import TaskError
from segcredit.protocols import Prompt
from segcredit.tasks.problems import BOXED, Problems
from segcredit.tasks.verifiers.answer_extraction import FinalAnswer
from segcredit.tasks.verifiers.verifier import Math, _process
from vision_models import image

COLUMNS = {"question": "question", "images": "image", "key": "id"}


def _written(folder: Path, count: int = 30, **more: Any) -> str:
    (folder / "images").mkdir()
    for n in range(count):
        (folder / "images" / f"{n}.png").write_bytes(image(n))
    rows = [
        {"id": f"p{n}", "question": f"What is {n}?", "answer": n, "image": f"images/{n}.png"} | more
        for n in range(count)
    ]
    file = folder / "problems.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return str(file)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_json_lines_with_paths_of_images(tmp_path: Path) -> None:
    task = Problems(_written(tmp_path), **COLUMNS)
    training = task.prompts(25, _generator())
    held_out = task.evaluation(2)
    for prompt in [*training, *held_out]:
        number = int(prompt.key[1:])
        assert prompt.text == f"What is {number}?\n\n{BOXED}"
        assert prompt.answer == str(number)
        assert prompt.images == (image(number),)
    assert {p.key for p in training}.isdisjoint(p.key for p in held_out)
    assert list(training) == list(task.prompts(25, _generator()))
    assert len({p.key for p in training}) == 25
    assert len(task.prompts(70, _generator())) == 70  # more than there are: some come again


@pytest.mark.parametrize("several", [False, True])
def test_a_local_parquet_file_with_images_in_it(tmp_path: Path, several: bool) -> None:
    datasets: Any = pytest.importorskip("datasets")
    held = [{"bytes": image(n), "path": None} for n in range(30)]
    feature = datasets.Image()
    found = datasets.Dataset.from_dict(
        {
            "problem": [f"<image>{n}?" for n in range(30)],
            "answer": [str(n) for n in range(30)],
            "images": [[one, one] for one in held] if several else held,
        },
        features=datasets.Features(
            problem=datasets.Value("string"),
            answer=datasets.Value("string"),
            images=datasets.List(feature) if several else feature,
        ),
    )
    found.to_parquet(str(tmp_path / "p.parquet"))
    for prompt in Problems(str(tmp_path / "p.parquet"), instruction="").prompts(5, _generator()):
        number = int(prompt.key)
        assert prompt.text == f"<image>{number}?"
        assert prompt.images == (image(number),) * (2 if several else 1)


def test_problems_without_images_in_any_language(tmp_path: Path) -> None:
    source = _written(tmp_path)
    Path(source).write_text(Path(source).read_text("utf-8").replace("What is", "三角形"), "utf-8")
    (prompt,) = Problems(source, question="question", images="").prompts(1, _generator())
    assert prompt.text.startswith("三角形 ")
    assert prompt.images == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere.jsonl"}, r"'nowhere\.jsonl' cannot be read"),
        ({"source": "nowhere.parquet"}, r"'nowhere\.parquet', split 'train', cannot be had"),
        (
            {"question": "text"},
            r"row 0, line 1 of .* has no 'text'; it has answer, id, image, question",
        ),
        ({"key": "name"}, "has no 'name'"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, change: Any, message: str) -> None:
    options = {"source": _written(tmp_path), **COLUMNS, **change}
    with pytest.raises(TaskError, match=message):
        Problems(**options).prompts(1, _generator())


def test_files_and_images_that_are_broken(tmp_path: Path) -> None:
    source = _written(tmp_path)
    (tmp_path / "images" / "7.png").unlink()
    with pytest.raises(TaskError, match=r"7\.png' of problem 'p7' in .* cannot be read"):
        Problems(source, **COLUMNS).prompts(28, _generator())
    cut = tmp_path / "cut.jsonl"
    cut.write_text(Path(source).read_text()[:-30])
    with pytest.raises(TaskError, match=r"line 30 of .* is no JSON"):
        Problems(str(cut), **COLUMNS).prompts(1, _generator())
    cut.write_text("\n")
    with pytest.raises(TaskError, match="has no problems for training"):
        Problems(str(cut), **COLUMNS).prompts(1, _generator())
    with pytest.raises(TaskError, match="problems for evaluation; 29 were asked for"):
        Problems(source, **COLUMNS).evaluation(29)


MATH = "segcredit.tasks.verifiers.math_answers:comparison"


def right(answer: str, text: str, seconds: float = 5.0, tolerance: float = 0.0) -> bool:
    return Math(seconds, tolerance).judge(Prompt("p", "?", answer), text).correct


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("12", "so it is \\boxed{12}", True),
        ("12", "first \\boxed{11}, no: \\boxed{12}", True),
        ("12", "so it is \\boxed{13}", False),
        ("116", "\\boxed{116^\\circ}", True),
        ("2*sqrt(3)", "\\boxed{2\\sqrt{3}}", True),
        ("2*sqrt(3)", "\\boxed{\\sqrt{12}}", True),
        ("180*acos(17/24)/pi", "\\boxed{\\frac{180\\arccos(17/24)}{\\pi}}", True),
        ("180*acos(17/24)/pi", "\\boxed{44.9}", False),
        ("\\frac{1}{2}", "the answer is 0.5", True),
        ("3", "", False),
        ("3", "no idea", False),
    ],
)
def test_answers_are_compared_as_mathematics(answer: str, text: str, expected: bool) -> None:
    assert right(answer, text) is expected


def test_rounded_answers_are_right_where_that_is_asked_for() -> None:
    assert right("180*acos(17/24)/pi", "\\boxed{44.9}", tolerance=0.005)
    assert not right("180*acos(17/24)/pi", "\\boxed{46}", tolerance=0.005)


def test_what_takes_too_long_or_too_much_is_wrong_and_costs_its_time_alone() -> None:
    assert right("1", "\\boxed{1}", seconds=1.0)
    began = time.monotonic()
    for text in ("\\boxed{9^{9^{9^{9}}}+1}", "\\boxed{" + "(1+x)^{99999}" * 30 + "}"):
        assert not right("10000000", text, seconds=1.0)
    assert time.monotonic() - began < 30
    assert right("1", "\\boxed{1}", seconds=1.0)


def test_threads_may_ask_at_once() -> None:
    said: dict[int, bool] = {}

    def ask(n: int) -> None:
        said[n] = right(str(n % 3), f"\\boxed{{{n % 4}}}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {n: n % 3 == n % 4 for n in range(12)}


def test_a_killed_process_is_replaced() -> None:
    assert right("1", "\\boxed{1}")
    process = _process(FinalAnswer(), MATH, (0.0, False), 5.0)
    for worker in process._idle:
        worker._process.kill()
        worker._process.wait()
    assert right("1", "\\boxed{1}")


def test_a_verdict_tells_the_answer_and_nothing_of_the_steps(tmp_path: Path) -> None:
    task = Problems(_written(tmp_path), **COLUMNS)
    prompt = Prompt("p", "?", "7")
    verdict = task.verify(prompt, "\\boxed{7}", truncated=False)
    assert (verdict.reward, verdict.correct, verdict.process_correct) == (1.0, True, None)
    assert task.verify(prompt, "\\boxed{7}", truncated=True).reward == 0.0
