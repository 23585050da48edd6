"""Packages that only some users need: a sentence where one is missing, and all else without it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pandas as pd
import pytest

from segcredit import registry
from segcredit.cli import main
from segcredit.errors import MissingPackageError
from segcredit.protocols import Prompt
from segcredit.tasks.verifiers.verifier import Math
from small import SMALL

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "changepoint": ["ruptures"],
    "docs": ["mkdocstrings_python", "nbconvert", "zensical"],
    "gguf": ["gguf"],
    "learned": ["skops"],
    "lora": ["peft"],
    "problems": ["math_verify", "reasoning_gym"],
    "ray": ["ray"],
    "trackers": ["mlflow", "tensorboard", "trackio", "wandb"],
    "trl": ["trl"],
    "verl": ["verl"],
}
"""The modules of each extra."""
MODULES = {module for modules in EXTRAS.values() for module in modules}
ALONG = {"markupsafe", "pytest", "sympy"}
"""Modules that jinja2 and torch bring, and one that a test of plug-ins runs in."""
ROOMS = ("segcredit", "segmenters", "estimators")
DOORS = {
    "segcredit/integrations/trl.py": {"trl"},
    "segcredit/integrations/verl_trainer.py": {"verl"},
}
"""Files that are of use with an extra alone: classes over another trainer's."""


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w.-]+", each)[0] for each in requirements]  # type: ignore[index]


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("ruptures", "changepoint", lambda _: registry.segmenters.build("surprise_change")),
        ("skops", "learned", lambda _: registry.segmenters.build("learned")),
        (
            "skops",
            "learned",
            lambda _: registry.segmenters.build("shuffled", inner="learned"),
        ),
        ("math_verify", "problems", lambda _: Math(1.0, 0.0).judge(Prompt("1", "1+1", "2"), "2")),
        (
            "reasoning_gym",
            "problems",
            lambda _: registry.tasks.build("reasoning_gym", generator="gcd"),
        ),
        ("trl", "trl", lambda _: import_module("segcredit.integrations.trl")),
    ],
)
def test_what_is_missing_is_a_sentence(
    module: str,
    extra: str,
    use: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    install = f"package {module.replace('_', '-')}, which is not installed. Install it with pip"
    with pytest.raises(MissingPackageError, match=rf"{install} install 'segcredit\[{extra}\]'"):
        use(tmp_path)


def test_a_command_ends_in_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skops", None)
    with pytest.raises(SystemExit, match="1"):
        main(["segment", "one two", "-s", "learned"])
    assert capsys.readouterr().err.startswith("error: segmenter 'learned' needs the package skops")


def test_extras_are_those_of_the_project_and_dev_has_those_that_fit_together() -> None:
    declared = PROJECT["optional-dependencies"]
    found = {name: names(declared[name]) for name in declared if name != "dev"}
    assert {k: [m.replace("_", "-") for m in v] for k, v in EXTRAS.items()} == found
    own = next(each for each in declared["dev"] if each.startswith("segcredit["))
    assert set(own[10:-1].split(",")) == EXTRAS.keys() - {"trackers", "trl", "verl"}


def imports(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.Import():
                yield from (alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case _:
                pass


def test_every_import_is_declared_and_none_of_an_extra_is_at_the_door() -> None:
    core = {name.lower().replace("_", "-") for name in names(PROJECT["dependencies"])}
    homes = packages_distributions()
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        anywhere = set(imports([node for node in ast.walk(tree) if isinstance(node, ast.stmt)]))
        for module in anywhere - {*sys.stdlib_module_names, *ROOMS, *ALONG, *MODULES}:
            owners = {home.lower().replace("_", "-") for home in homes.get(module, [])}
            assert owners & core, f"{file}: {module} is not declared"
        own = DOORS.get(str(file.relative_to(ROOT)), set())
        assert not (MODULES - own) & set(imports(tree.body)), file


WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({sorted(MODULES)!r}))"
COMMANDS = """
import sys
from segcredit.cli import main
for command in {commands!r}:
    try:
        main(command)
    except SystemExit as stop:
        assert not stop.code, command
assert not any(sys.modules.get(name) for name in {modules!r})
"""


def test_training_and_a_grid_need_no_extra(tmp_path: Path) -> None:
    """In a process where none can be imported, and in the grid's workers."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "grid.toml").write_text('method = "sapo"\n[grid]\nsegmenter = ["newline"]\n')
    small = [*(each for each in SMALL if "train.steps" not in each), "train.steps=1"]
    runs = str(tmp_path / "runs")
    commands = [
        ["train", "sapo", *small, "--output", f"{runs}/sapo"],
        ["grid", str(tmp_path / "grid.toml"), *small, "--output", f"{runs}/grid"],
        ["results", runs, "--export", f"{runs}/summary.csv"],
        ["list", "--check"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS.format(commands=commands, modules=sorted(MODULES))],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 cells finished" in done.stdout
    assert len(pd.read_csv(f"{runs}/summary.csv")) == 2
