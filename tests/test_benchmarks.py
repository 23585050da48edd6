"""Every benchmark runs, at its smallest size: what is run by nothing stops working unseen."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TEXTS = "(a file of texts)"
SMALLEST = {
    "audit.py": "--rounds 1 --naive 2 --continuations 0.5",
    "boundaries.py": TEXTS,
    "credit_step.py": "--seconds 0",
    "files_of_a_step.py": "grpo",
    "gpu_check.py": "--device cpu --output gpu-check --limit 1100 --patience 9",
    "loop_vs_trl.py": "--steps 2 --prompts 2 --completions 2 --tokens 4 --letters 4",
    "read_runs.py": "--runs 2 --steps 3 --segments 2 --repeats 1",
    "sampling.py": "--rounds 1 --rows 2 --group 1",
    "scoring.py": "--layers 1 --rounds 1",
    "segment_speed.py": "--seconds 0 --texts 2",
    "token_spans.py": "500",
}
QUICK = ("credit_step.py", "segment_speed.py", "token_spans.py")


def test_every_benchmark_is_run_here() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.py")) == sorted(SMALLEST)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALLEST],
)
@pytest.mark.timeout(1200)
def test_a_benchmark_runs_and_prints_numbers(name: str, tmp_path: Path) -> None:
    if name == "loop_vs_trl.py":
        pytest.importorskip("trl")
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "First, add 2. Then, 5. So it is 7."}), encoding="utf-8")
    words = [str(texts)] if SMALLEST[name] == TEXTS else SMALLEST[name].split()
    # A process of its own: credit_step.py starts itself again in the place of whoever runs it.
    command = [sys.executable, str(FOLDER / name), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(letter.isdigit() for letter in done.stdout)


@pytest.mark.slow
def test_parts_of_the_gpu_check_that_fail_or_hang_leave_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_check
    from gpu_check import Part

    broken = Part("broken", 300, ("tests/there_is_none.py",))
    options = Namespace(
        device="cpu", model=None, server=None, output=tmp_path, limit=900, patience=1
    )
    assert gpu_check.check(options, [Part("train", 1), broken, Part("machine", 300)]) == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(rows) == ["part", "install", "train", "broken", "machine"]
    assert "failed: took too long" in rows["train"]
    assert "failed: pytest ended with" in rows["broken"]
    assert "passed: torch" in rows["machine"]
    options.limit = 0
    assert gpu_check.check(options, [Part("machine", 300)]) == 1
    assert "failed: no time was left" in capsys.readouterr().out
