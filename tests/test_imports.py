"""Commands that need no model load no library of models."""

import subprocess
import sys

import pytest

HEAVY = (
    *("accelerate", "transformers", "pandas", "pyarrow", "sklearn", "spacy", "matplotlib"),
    *("scipy", "segcredit.credit_audit", "segcredit.training"),
)
RUN = """
import sys
from segcredit.cli import main
sys.argv = ["segcredit", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", *(name for name in {heavy!r} if name in sys.modules))
"""


def python(script):
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], ("torch", *HEAVY)),
        (["segment", "--help"], ("torch", *HEAVY)),
        (["list"], ("torch", "segmenters", "estimators", *HEAVY)),
        (["segment", "one\ntwo", "-s", "newline"], HEAVY),
    ],
)
def test_a_command_loads_what_it_needs(arguments, heavy):
    script = RUN.format(arguments=arguments, heavy=heavy)
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_metrics_of_an_audit_load_no_model():
    script = "import sys, segcredit.credit_audit.metrics; print('transformers' in sys.modules)"
    done = python(script)
    assert done.stdout.strip() == "False", done.stderr
