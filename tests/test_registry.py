"""The registry: names, decorators, duplicates, failing imports, identities."""

import ast
import importlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from segcredit import TextSegmenter, register, registry
from segcredit.errors import RegistryError


@dataclass(frozen=True, slots=True)
class Commas(TextSegmenter):
    """Commas close segments."""

    @property
    def causal(self):
        return True

    def split(self, text):
        return [i + 1 for i, c in enumerate(text) if c == ","]


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(registry.segmenters, "_local", {})
    return monkeypatch


def test_a_decorated_class_is_found_and_may_be_defined_again(clean):
    assert register.segmenter("commas")(Commas) is Commas
    register.segmenter("commas")(Commas)
    assert "commas" in registry.segmenters.names()
    assert registry.segmenters.build("commas").split("a,b") == [2]
    assert registry.segmenters.identity("commas").startswith("sha256:")


def test_a_taken_name_is_refused_with_its_owner(clean):
    with pytest.raises(RegistryError, match="registered already, by segcredit"):
        register.segmenter("newline")(Commas)


def _with_points(monkeypatch, *points):
    monkeypatch.setattr(registry.segmenters, "_points", lambda: list(points))


def test_two_distributions_with_one_name(clean):
    point = EntryPoint("twice", "somewhere:Thing", registry.segmenters.group)
    _with_points(clean, point, point)
    with pytest.raises(RegistryError, match="offered by two distributions"):
        registry.segmenters.find("twice")


def test_a_failing_import_is_named_and_listed(clean):
    point = EntryPoint("broken", "no_such_package.module:Thing", registry.segmenters.group)
    _with_points(clean, point)
    with pytest.raises(RegistryError, match="failed to import: ModuleNotFoundError"):
        registry.segmenters.find("broken")
    assert "failed to import" in registry.segmenters.info("broken").error


def test_names_import_nothing(clean):
    _with_points(clean, EntryPoint("broken", "no_such_package:Thing", "x"))
    assert registry.segmenters.names() == ["broken"]


def test_a_plugin_alone_in_its_package_is_all_of_its_files(tmp_path, monkeypatch):
    package = tmp_path / "outer_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text("class Plugin:\n    pass\n")
    (package / "parts.py").write_text("SIZE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = importlib.import_module("outer_package.plugin").Plugin
    alone = [EntryPoint("it", "outer_package.plugin:Plugin", "segcredit.segmenters")]
    beside = [*alone, EntryPoint("other", "outer_package.other:Other", "segcredit.segmenters")]
    found = []
    for points in (alone, beside):
        modules = frozenset(point.module for point in points)
        monkeypatch.setattr(registry, "_registered_modules", lambda modules=modules: modules)
        for size in (1, 2):
            (package / "parts.py").write_text(f"SIZE = {size}\n")
            found.append(registry._source(plugin))
    assert found[0] != found[1]
    assert found[2] == found[3] == (package / "plugin.py").read_bytes()


def test_a_distribution_that_comes_later_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = registry.segmenters.names()
    place = tmp_path / "later-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text("[segcredit.segmenters]\nlater = later:Later\n")
    assert sorted({*registry.segmenters.names()} - {*before}) == ["later"]


NAMESAKES = """
import segmenters, estimators
from segcredit import registry
found = registry.segmenters.find("learned"), registry.estimators.find("critic")
print(segmenters.MINE, estimators.MINE, *(plugin.__qualname__ for plugin in found))
print(registry.segmenters.identity("learned"))
print([name for name in registry.segmenters.names() if registry.segmenters.info(name).error])
"""


@pytest.mark.parametrize(
    "command", [pytest.param(["script.py"], marks=pytest.mark.slow), ["-m", "script"]]
)
def test_a_namesake_in_the_working_folder_breaks_nothing_and_stays_the_users(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "segmenters.py").write_text("MINE = 'my own'")
    (tmp_path / "estimators").mkdir()
    (tmp_path / "estimators" / "__init__.py").write_text("MINE = 'and this'")
    (tmp_path / "script.py").write_text(NAMESAKES)
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = ["my own and this Learned Critic", registry.segmenters.identity("learned"), "[]"]
    assert done.stdout.splitlines() == said


@pytest.mark.parametrize("folder", ["segmenters", "estimators"])
def test_our_plugins_import_each_other_by_relative_imports_alone(folder: str) -> None:
    """So that they can be imported under another name where a namesake stands before them."""
    for file in (Path(registry.__file__).parents[1] / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            own = [name for name in names if name.split(".")[0] in ("segmenters", "estimators")]
            assert not own or node.level, (file, own)
