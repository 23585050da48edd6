"""The Python tool: what calls are answered, within which limits."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segcredit import Prompt, registry
from segcredit.environments import InEnvironment, played
from segcredit.errors import RegistryError
from segcredit.protocols import asked, judged
from segcredit.tasks.python_tool import PythonTool

PROMPT = Prompt("k", "6 times 7?", "42")
TOOL = PythonTool(timeout=0.3, memory=256)


def answer(code: str, tool: PythonTool = TOOL) -> str:
    """What a call is answered, its frame removed."""
    found = asked(tool, PROMPT, f"Let me see. <python>{code}</python>")
    assert not found.done
    head, _, rest = found.observation.partition("\n<output>\n")
    said, _, tail = rest.rpartition("\n</output>\n")
    assert (head, tail) == ("", "")
    return said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(6 * 7)", "42"),
        ("\n6 * 7\n", "42"),
        ("x = 6 * 7", "(nothing was printed)"),
        ("for i in range(3):\n    print(i)", "0\n1\n2"),
        ("def f(n):\n    return n and n + f(n - 1)\nf(10)", "55"),
        ("print('a')\n1 / 0", "a\nZeroDivisionError: division by zero"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("raise ValueError('a\\nb')", "ValueError: a"),
        ("import sys; print(1); sys.exit(3)", "1"),
        ("import os; os._exit(1)", "(nothing was printed)"),
        ("input()", "EOFError: EOF when reading a line"),
        ("print('é数')", "é数"),
        ("print('\\ud800')", "?"),
        ("import sympy; sympy.sqrt(8)", "2*sqrt(2)"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("while True: pass", "TimeoutError: it ran longer than 0.3 s"),
        ("print(1, flush=True)\nwhile True: pass", "TimeoutError: it ran longer than 0.3 s"),
        ("import time; time.sleep(100)", "TimeoutError: it ran longer than 0.3 s"),
        ("'a' * 10**10", "MemoryError: it took more than 256 MiB"),
        ("import os; os.remove('/nothing')", "PermissionError: os.remove is not allowed here"),
        ("import os; os.fork()", "PermissionError: os.fork is not allowed here"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError: os.kill is not allowed here"),
    ],
)
def test_calls_are_answered(code: str, said: str) -> None:
    assert answer(code) == said


def test_files_are_not_written(tmp_path: Path) -> None:
    said = "PermissionError: writing files is not allowed here"
    assert answer(f"open({str(tmp_path / 'a')!r}, 'w')") == said
    assert "not allowed" in answer(f"import pathlib; pathlib.Path({str(tmp_path / 'b')!r}).mkdir()")
    assert "not allowed" in answer(
        f"import subprocess; subprocess.run(['touch', {str(tmp_path)!r}])"
    )
    assert not any(tmp_path.iterdir())


def test_endless_output_is_cut() -> None:
    started = time.monotonic()
    said = answer("while True: print('abc' * 100)")
    assert said.endswith("OutputError: it printed more than 10,000 characters")
    assert len(said) < 10_100
    assert time.monotonic() - started < 5


def test_calls_do_not_meet_each_other() -> None:
    assert answer("import math; math.pi = 3; y = 1") == "(nothing was printed)"
    assert answer("import math; print(math.pi > 3, 'y' in globals())") == "True False"
    draws = "import random; print(random.random())"
    assert answer(draws) == answer(draws)
    orders = "print({f'{i}' for i in range(20)})"
    fresh = PythonTool(timeout=0.31, memory=256)  # another process
    assert answer(orders) == answer(orders, fresh)


def test_calls_run_at_once() -> None:
    codes = [f"print({n} ** 2)" for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(answer, codes)) == [f"{n**2}" for n in range(40)]


@pytest.mark.parametrize("text", ["The answer is 42.", "", "print(1)", "```python\nprint(1)\n```"])
def test_a_turn_without_a_call_is_the_last_and_left_to_the_task(text: str) -> None:
    found = asked(TOOL, PROMPT, text)
    assert (found.done, found.correct, found.reward) == (True, None, 0.0)


@pytest.mark.parametrize(
    "text", ["</python>", "<python>1 + 1", "<python>1</python> is it", "1</python> and </python>"]
)
def test_what_is_begun_like_a_call_is_answered_by_a_sentence(text: str) -> None:
    found = asked(TOOL, PROMPT, text)
    assert not found.done
    assert "no call was found; expected <python>, code and </python>" in found.observation


def test_the_last_call_of_a_turn_is_run() -> None:
    found = asked(TOOL, PROMPT, "<python>print(1)</python> or <python>print(2)</python>")
    assert found.observation == "\n<output>\n2\n</output>\n"


def test_fenced_blocks_are_an_option() -> None:
    tool = PythonTool(call="fence")
    for text in ("So:\n```python\nprint(1)\nprint(2)\n```\n", "```python\nprint(1)\nprint(2)```"):
        assert asked(tool, PROMPT, text).observation == "```output\n1\n2\n```\n"
    assert "expected ```python, code and ```" in asked(tool, PROMPT, "a\n```\n").observation
    assert asked(tool, PROMPT, "it is 3").done
    assert not any(stop in "So:\n```python\n" for stop in tool.stop)


def test_problems_of_a_file_are_worked_on_with_the_tool(tmp_path: Path) -> None:
    rows = [{"problem": f"{n} times 7?", "answer": f"{7 * n}"} for n in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    problems = registry.tasks.build("problems", source=str(file))
    prompt = problems.evaluation(1)[0]
    task = InEnvironment(problems, PythonTool())
    calls = [f"I call <python>{prompt.text.split()[0]} * 7</python>", f"\\boxed{{{prompt.answer}}}"]
    called, last = played(task.environment(), prompt, calls)
    assert called.observation == f"\n<output>\n{prompt.answer}\n</output>\n"
    assert (last.done, last.correct) == (True, None)
    assert judged(task, prompt, calls[1], truncated=False).correct
    assert not judged(task, prompt, "I do not know", truncated=False).correct


@pytest.mark.parametrize(
    ("option", "value"), [("max_turns", 1), ("timeout", 0.0), ("memory", 1), ("turn_tokens", 0)]
)
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(RegistryError, match=f"{option} is {value}; expected a number from"):
        registry.environments.build("python_tool", **{option: value})
