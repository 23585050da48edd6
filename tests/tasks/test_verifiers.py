"""A user's verifier: what it may return, and what becomes of one that hangs, crashes or lies."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest

from segcredit.errors import TaskError
from segcredit.protocols import Prompt
from segcredit.tasks.dataset import Dataset

CODE = '''
import os, time
from segcredit import Verdict

def judge(prompt, text):
    """What the text asks for."""
    print("printed where it harms nothing")
    if text == "hang":
        time.sleep(60)
    if text == "crash":
        os._exit(3)
    if text == "pipe":
        for place in range(3, 4096):  # the descriptor has the number that it has in the parent
            try:
                os.write(place, b"\\x00\\x00\\xff\\xff")
            except OSError:
                pass
        return True
    if text == "memory":
        return bool(bytearray(2**62))
    if text == "child":
        import subprocess
        return float(subprocess.Popen(["sleep", "600"]).pid)
    if text == "exit":
        raise SystemExit(0)
    if text == "raise":
        raise ZeroDivisionError("by me")
    return {
        "yes": True,
        "half": 0.5,
        "two": 2,
        "verdict": Verdict(0.25, True, process_correct=False, answer="mine"),
        "no number": Verdict(float("nan"), True),
        "no reward": Verdict("1", True),
        "no flag": Verdict(1.0, "yes"),
        "text": "right",
        "nan": float("nan"),
        "none": None,
        "answer": prompt.answer["unit"] == "m" if isinstance(prompt.answer, dict) else False,
    }[text]
'''
PROMPT = Prompt("p", "?", "1")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    (tmp_path / "my_verifiers.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Dataset("unread.jsonl", answer="", verifier="my_verifiers:judge", seconds=1.0)


def test_flags_numbers_and_verdicts(task: Dataset) -> None:
    told = {text: task.verify(PROMPT, text, truncated=False) for text in ("yes", "half", "two")}
    assert [(v.reward, v.correct, v.answer) for v in told.values()] == [
        (1.0, True, None),
        (0.5, False, None),
        (2.0, True, None),
    ]
    verdict = task.verify(PROMPT, "verdict", truncated=False)
    assert (verdict.reward, verdict.correct) == (0.25, True)
    assert (verdict.process_correct, verdict.answer) == (False, "mine")
    row = Prompt("p", "?", {"question": "?", "unit": "m"})
    assert task.verify(row, "answer", truncated=False).correct
    assert task.verify(PROMPT, "yes", truncated=True).reward == 0.0


def test_a_hang_and_a_crash_cost_their_completion_alone(task: Dataset) -> None:
    assert task.verify(PROMPT, "yes", truncated=False).correct
    began = time.monotonic()
    for text in ("hang", "crash", "pipe"):
        with pytest.warns(RuntimeWarning, match=f"did not answer within 1 seconds.*{text!r}"):
            assert task.verify(PROMPT, text, truncated=False).reward == 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert task.verify(PROMPT, "yes", truncated=False).correct
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text", r"returned 'right' \(str\) on prompt 'p'; expected a bool"),
        ("nan", r"returned nan \(float\)"),
        ("no number", r"returned a Verdict with reward=nan on prompt 'p'"),
        ("no reward", r"returned a Verdict with reward='1' on prompt 'p'"),
        ("no flag", r"returned a Verdict with correct='yes' on prompt 'p'"),
        ("memory", r"raised MemoryError"),
        ("exit", r"raised SystemExit: 0 on prompt 'p'"),
        ("none", r"returned None \(NoneType\)"),
        ("raise", "raised ZeroDivisionError: by me on prompt 'p'"),
    ],
)
def test_nonsense_and_errors_are_told(task: Dataset, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task.verify(PROMPT, text, truncated=False)


def test_what_a_function_started_ends_with_its_process(task: Dataset) -> None:
    child = int(task.verify(PROMPT, "child", truncated=False).reward)
    assert Path(f"/proc/{child}").exists()
    with pytest.warns(RuntimeWarning, match="did not answer"):
        task.verify(Prompt("q", "?", "1"), "crash", truncated=False)
    until = time.monotonic() + 10
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(child: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{child}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:judge", "cannot start.*ModuleNotFoundError: No module named 'no_such_mod"),
        ("my_verifiers:jugde", "cannot start.*AttributeError: .*'jugde'"),
    ],
)
def test_a_function_that_cannot_be_had(task: Dataset, name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Dataset("unread.jsonl", verifier=name).verify(PROMPT, "yes", truncated=False)
