"""A plug-in package from outside the repository: installed, listed, checked, run in a grid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segcredit import read_runs
from small import SMALL

PACKAGE = Path(__file__).parent / "fixtures" / "segcredit_example_plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(PACKAGE)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def run(environment, *arguments):
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def segcredit(environment, *arguments):
    program = "from segcredit.cli import main; main()"
    return run(environment, "-c", program, *[str(a) for a in arguments])


def test_it_is_listed_with_its_distribution(environment):
    shown = segcredit(environment, "list")
    assert "comma" in shown
    assert "segcredit-example-plugin" in shown


def test_it_passes_the_conformance_kit(environment):
    program = (
        "from segcredit import registry, testing;"
        "testing.check_segmenter(registry.segmenters.build('comma')); print('passed')"
    )
    assert run(environment, "-c", program).strip() == "passed"


def test_it_runs_in_a_grid(environment, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text('method = "sapo"\n[grid]\nsegmenter = ["comma", "newline"]\n')
    segcredit(environment, "grid", grid, *SMALL, "--output", tmp_path / "runs")
    runs = read_runs(tmp_path / "runs")
    assert set(runs.runs.segmenter) == {"comma", "newline"}
    assert set(runs.runs.status) == {"finished"}
