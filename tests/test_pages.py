"""README.md and docs/: every block of code is run, parsed or read, and what pages name is there.

A block's language says what is done with it. ``title="not run: REASON"`` behind the language,
which readers see as well, spares Python the running. What commands do is ``make check``'s part.
"""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import matplotlib as mpl
import pytest
import typer

import segcredit
from segcredit import load_config, registry
from segcredit.cli import app
from segcredit.config import presets
from segcredit.credit_audit.settings import load_audit_config
from segcredit.study.grid import plan
from small import SMALL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(.*?)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\b")
OTHERS = {"cat", "grep", "jq", "make", "pip", "printf", "pytest", "python", "ray"}
"""Programs that a page may call beside segcredit."""
NAMES = re.compile(r"`+(segcredit(?:\.[a-zA-Z_]\w*)+)(?:\(.*?\))?`+")
"""A dotted name of ours, in backticks."""
PATHS = re.compile(r"(?<![\w/.\[])(?:docs|experiments|benchmarks|tests)/[\w./-]*\w")
"""A path in the repository; a link's text, in brackets, may be shorter."""


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: Path, language: str = "") -> list[Block]:
    found = [Block(*match) for match in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if not language or block.language == language]


def having(*languages: str) -> pytest.MarkDecorator:
    """Parametrises a test over the pages that have such a block."""
    chosen = [page for page in PAGES if any(blocks(page, language) for language in languages)]
    names = [page.relative_to(ROOT).as_posix() for page in chosen]
    return pytest.mark.parametrize("page", chosen, ids=names)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in blocks(page):
            assert block.language in {"bash", "python", "toml", "text"}, f"{page}: {block}"
            assert not block.title or block.title.startswith("not run: "), f"{page}: {block}"
        assert text.count("```") == 2 * len(blocks(page)), page
        bare = FENCE.sub("", text)
        assert not re.search(r"\n\n {4,}(?![-*\d])\S", bare), f"{page}: an indented block of code"


# Commands.


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, those behind pipes by themselves."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    found: list[list[str]] = []
    for line in filter(None, words):
        found.append([])
        for word in line:
            if word in {"|", "&&"}:
                found.append([])
            elif word == ">":
                break
            else:
                found[-1].append(word)
    return found


@having("bash")
def test_commands_are_understood(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in blocks(page, "bash"):
        for program, *arguments in commands(block.text):
            if program == "torchrun":
                arguments = arguments[arguments.index("segcredit") + 1 :]
            elif Path(program).name != "segcredit":
                assert Path(program).name in OTHERS, f"{page}: {program}"
                assert program != "make" or arguments[0] in targets, f"{page}: make {arguments}"
                continue
            parse(arguments)


def parse(arguments: list[str]) -> None:
    """Parses a command line as segcredit does, and the config of a preset with its overrides."""
    group = typer.main.get_command(app)
    above = group.make_context("segcredit", list(arguments))
    name, command, rest = group.resolve_command(above, list(arguments))
    given = command.make_context(name, rest, parent=above).params
    if given.get("config") in presets() and name in {"train", "evaluate"}:
        load_config(given["config"], given.get("overrides") or [])


@pytest.mark.parametrize(
    "line",
    [
        "segcredit trian sapo",
        "segcredit train sapo --stepz 3",
        "segcredit train sapo train.stepz=2",
    ],
)
def test_a_wrong_command_is_seen(line: str) -> None:
    with pytest.raises(Exception, match=r"trian|stepz"):
        parse(commands(line)[0][1:])


# Configs and Python.


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins that a page registers are gone afterwards."""
    for plugins in registry.ALL.values():
        monkeypatch.setattr(plugins, "_local", {})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segmenters of two seeds, in seconds."""
    place = tmp_path_factory.mktemp("study") / "runs"
    for segmenter in ("newline", "entropy"):
        for seed in range(2):
            own = [f"segmenter={segmenter}", f"seed={seed}", "train.steps=2"]
            segcredit.train(load_config("grpo", [*SMALL, *own]), place / f"{segmenter}-{seed}")
    return place


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audit") / "audit"
    small = {"prompts": 2, "completions": 2, "gradient_samples": 0, "continuations": 0.05}
    own = {"segmenters": ["entropy", "newline"], "advantages": ["td"], "estimators": ["measured"]}
    layer = {"method": "grpo", "policy": {"name": "tiny", "steps": 40}, "audit": small | own}
    return segcredit.audit(layer, place)


def run_python(page: Path, monkeypatch: pytest.MonkeyPatch, *, files_alone: bool) -> None:
    """Runs a page's blocks in their order; one that is a file is a module for those behind it."""
    everything: dict[str, object] = {}
    for block in blocks(page, "python"):
        if block.title or block.text.startswith(">>>"):
            continue
        code = compile(block.text, str(page), "exec")
        if not (named := FILE.match(block.text)):
            if not files_alone:
                exec(code, everything)
            continue
        path = Path(named[1])
        module = ModuleType(path.parent.name if path.stem == "__init__" else path.stem)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(code, vars(module))
        register_package(module)


def register_package(module: ModuleType) -> None:
    """Registers the segmenter of a package that a page installs, as its entry point does."""
    for plugin in vars(module).values():
        is_segmenter = isinstance(plugin, type) and issubclass(plugin, segcredit.TextSegmenter)
        if is_segmenter and plugin not in registry.segmenters.local().values():
            registry.segmenters.add(plugin.__name__.lower(), plugin)


@pytest.mark.usefixtures("own_registry")
@having("python", "toml")
def test_configs_are_read_and_python_compiles(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_python(page, monkeypatch, files_alone=True)
    for block in blocks(page, "toml"):
        read_toml(tomllib.loads(block.text))


@pytest.mark.slow
@pytest.mark.usefixtures("own_registry")
@having("python")
def test_python_runs(
    page: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r'"(runs(?:/[\w-]+)*)', text)):
        link = tmp_path / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(request.getfixturevalue("audit" if "audit" in name else "study"))
    backend = mpl.get_backend()
    mpl.use("agg")
    run_python(page, monkeypatch, files_alone=False)
    mpl.use(backend)


def read_toml(layer: dict[str, object]) -> None:
    """Reads a config, or a part of one, as the command does that it is for."""
    layer = {"method": "grpo"} | layer
    if "grid" in layer:
        assert plan(layer, Path("runs"))
    elif "audit" in layer:
        load_audit_config(layer)
    else:
        load_config(layer)


EXAMPLES = [page for page in PAGES if ">>>" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", EXAMPLES, ids=[page.stem for page in EXAMPLES])
def test_examples_say_what_the_functions_say(page: Path) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(
        str(page), module_relative=False, encoding="utf-8", optionflags=flags
    )
    assert tried >= 20
    assert not failed


# What pages and docstrings name.


def test_dotted_names_and_paths_are_there() -> None:
    """In pages and in our own source, whose docstrings are pages as well."""
    written = [*PAGES, ROOT / "CONTRIBUTING.md"]
    source = (ROOT / "segcredit").rglob("*.py")
    for file in [*written, *source]:
        text = file.read_text(encoding="utf-8")
        for name in set(NAMES.findall(text)):
            assert is_there(name), f"{file}: {name}"
        for path in set(PATHS.findall(text)):
            if file in written or path.startswith("docs/"):  # source also writes paths
                assert (ROOT / path).exists() or "NAME" in path, f"{file}: {path}"


def is_there(name: str) -> bool:
    """Tells whether a dotted name is a module, or reached by attributes from one."""
    if name.split(".")[1] in GROUPS:
        return True
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


GROUPS = {plugins.group.split(".")[1] for plugins in registry.ALL.values()} | {"commands"}
"""Groups of entry points, which are named as modules are."""


def test_a_name_that_is_not_there_is_seen() -> None:
    assert is_there("segcredit.study.statistics.compare")
    assert not is_there("segcredit.study.statistics.performance_profile")
