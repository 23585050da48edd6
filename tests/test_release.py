"""Wheel and sdist: what they hold, and that the wheel alone works in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel

ROOT = Path(__file__).parents[1]
ROOMS = ("segcredit", "segmenters", "estimators")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist, by kind."""
    folder = tmp_path_factory.mktemp("dist")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return {kind: folder / make(str(folder)) for kind, make in MAKERS.items()}
    finally:
        os.chdir(before)


MAKERS = {"wheel": build_wheel, "sdist": build_sdist}


def sources() -> set[str]:
    """Every file of the three packages that a user needs."""
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*") if file.is_file())
    return {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}


def test_both_hold_the_packages_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == sources()
    assert {f"{room}/py.typed" for room in ROOMS} <= inside
    beside = {"pyproject.toml", "README.md", "LICENSE", "DATA_LICENSES.md", "CHANGELOG.md"}
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names == sources() | beside | {"CITATION.cff", "PKG-INFO", ".gitignore"}
    assert built["wheel"].stat().st_size < 2_000_000


def test_the_version_stands_in_one_place() -> None:
    """Nowhere but in pyproject.toml, from which pip and ``segcredit.__version__`` have it."""
    files = [ROOT / "CITATION.cff", *(ROOT / room / "__init__.py" for room in ROOMS)]
    for file in filter(Path.exists, files):
        assert PROJECT["version"] not in file.read_text(encoding="utf-8"), file


def test_the_wheel_alone_works_in_an_empty_environment(
    built: dict[str, Path], tmp_path: Path
) -> None:
    """Of the project's own environment it sees the requirements, which pip would install."""
    place = tmp_path / "venv"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    paths = {key: sysconfig.get_path(key) for key in ("purelib", "platlib")}
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(inside)
    # Appended after its own folder: what the wheel brings is found first.
    lines = [f"import site; site.addsitedir({path!r})" for path in {*paths.values()}]
    (inside / "requirements.pth").write_text("\n".join(lines), encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for arguments, said in {
        ("-c", "import segcredit, segmenters, estimators; print(segcredit.__file__)"): str(inside),
        ("-m", "segcredit", "--version"): PROJECT["version"],
        ("-m", "segcredit", "list"): f"{inside}/segmenters/entropy.py",
        ("-m", "segcredit", "segment", "a. B c.", "-s", "sentence", "--json"): '"segments"',
        ("-m", "segcredit", "demo", "--help"): "five seeds",
    }.items():
        done = subprocess.run(
            [python, *arguments],
            cwd=empty,
            env={**environment, "COLUMNS": "300"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout, (arguments, done.stdout)
    assert not list(empty.iterdir())
