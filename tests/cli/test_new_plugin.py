"""``segcredit new-KIND``: what it writes installs, passes its own test and is listed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from segcredit import registry
from segcredit.cli import main
from segcredit.cli.new_plugin import write_package
from segcredit.errors import RecordError, StudyError

ROOT = Path(__file__).parents[2]


def call(*arguments):
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return stopped.value.code


def run(environment, *arguments, cwd=None):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["segmenter", "environment"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    place = tmp_path_factory.mktemp("work") / "deep" / "package"
    assert call(f"new-{kind}", "my_rule2", "--output", place) == 0
    return place


@pytest.fixture(scope="module")
def environment(folder, tmp_path_factory):
    """The package installed beside the project's own."""
    site = tmp_path_factory.mktemp("site")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    run(os.environ, *install, site, folder)
    return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def test_it_writes_a_package_and_nothing_else(kind, folder):
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    assert [f for f in files if "__pycache__" not in f] == [
        "README.md",
        "pyproject.toml",
        "src/segcredit_my_rule2/__init__.py",
        "tests/test_my_rule2.py",
    ]
    assert sorted(folder.parent.iterdir()) == [folder]
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "segcredit-my-rule2"
    points = project["project"]["entry-points"]
    assert points == {f"segcredit.{kind}s": {"my_rule2": "segcredit_my_rule2:MyRule2"}}
    assert folder.stat().st_mode & 0o777 == 0o755
    assert not any(
        "$" in f.read_text() for f in folder.rglob("*.*") if f.suffix in (".md", ".toml")
    )


def test_it_is_clean_to_our_linter(folder):
    run(os.environ, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", folder / "src")
    run(os.environ, "-m", "ruff", "format", "--check", "--line-length", "100", folder)


def test_its_own_test_passes_before_and_after_installation(kind, folder, environment):
    options = ["-q", "-p", "no:cacheprovider"]
    for env in (os.environ, environment):
        shown = run(env, "-m", "pytest", *options, cwd=folder)
        assert "passed" in shown
        if kind == "segmenter":  # the kit's rules, each by name
            assert int(shown.split(" passed")[0].split()[-1]) > 10


def test_installed_it_is_listed_and_used(kind, environment):
    program = "from segcredit.cli import main; main()"
    shown = run(environment, "-c", program, "list")
    assert "my_rule2" in shown
    assert "segcredit-my-rule2 0.1.0" in shown
    if kind == "environment":
        shown = run(environment, "-c", program, "config", "grpo", "environment=my_rule2")
        assert "max_calls = 9" in shown
        return
    options = ["-s", "my_rule2", "-s", '{name="my_rule2", marks="="}', "--quiet"]
    shown = run(environment, "-c", program, "segment", "2+2=4. So; it is", *options)
    assert "my_rule2: 3 segments" in shown
    assert "my_rule2(marks==): 2 segments" in shown


def test_the_default_folder_is_named_like_the_distribution(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("new-segmenter", "my_rule") == 0
    assert "segcredit-my-rule/src/segcredit_my_rule/__init__.py" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["segcredit-my-rule"]
    before = (tmp_path / "segcredit-my-rule" / "README.md").read_bytes()
    assert call("new-segmenter", "my_rule") == 1
    assert "segcredit-my-rule exists already" in capsys.readouterr().err
    assert (tmp_path / "segcredit-my-rule" / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Rule", "such as 'my_rule'"),
        ("1st", "such as 'st'"),
        ("a__b", "such as 'a_b'"),
        ("class", "such as 'my_rule'"),
        ("none", "cannot be named 'none'"),  # the class would be None
        ("", "cannot be named ''"),
        ("../up", "such as 'up'"),
        ("schön", "cannot be named"),
        ("newline", "registered already"),
    ],
)
def test_a_name_that_cannot_be_is_a_sentence(tmp_path, name, words):
    with pytest.raises(StudyError) as caught:
        write_package("segmenter", name, tmp_path / "new")
    assert words in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StudyError, match="nothing is overwritten"):
        write_package("segmenter", "my_rule", file)
    with pytest.raises(StudyError, match="nothing is overwritten"):
        write_package("segmenter", "my_rule", tmp_path)
    with pytest.raises(RecordError, match="choose another --output"):
        write_package("segmenter", "my_rule", file / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    written = Path.write_text

    def full(path, *arguments, **options):
        if path.suffix == ".py":
            raise OSError(28, "No space left on device")
        return written(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RecordError, match="disk or the quota is full"):
        write_package("segmenter", "my_rule", tmp_path / "new")
    assert not any(tmp_path.iterdir())


def test_names_are_taken_from_the_registry(tmp_path):
    assert "my_rule" not in registry.segmenters.names()
    for number, name in enumerate(["x", "text_segmenter", "dataclass", "segmenter2"]):
        folder = write_package("segmenter", name, tmp_path / str(number))
        module = folder / "src" / f"segcredit_{name}" / "__init__.py"
        found: dict[str, object] = {"__name__": name}
        exec(compile(module.read_text().replace("from __future__", "# "), name, "exec"), found)
        made = found["".join(part.capitalize() for part in name.split("_"))]
        assert made().split("a.b") == [2]


def test_an_environments_file_is_used_without_installation(tmp_path):
    folder = write_package("environment", "my_tool3", tmp_path / "new")
    file = folder / "src" / "segcredit_my_tool3" / "__init__.py"
    program = "from segcredit.cli import main; main()"
    shown = run(os.environ, "-c", program, "config", "grpo", "environment=my_tool3", "--code", file)
    assert "max_calls = 9" in shown
    with pytest.raises(StudyError, match="an environment cannot be named '1st'"):
        write_package("environment", "1st", tmp_path / "other")
    with pytest.raises(StudyError, match="environment 'python_tool' is registered already"):
        write_package("environment", "python_tool", tmp_path / "other")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_walk_through_work():
    page = ROOT / "docs" / "learn" / "first-segmenter.md"
    shown = run(os.environ, ROOT / "tests" / "readme_commands.py", page)
    assert "4 of 4 cells finished" in shown
