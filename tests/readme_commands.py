"""Runs the blocks of the README and of docs/learn in order: ``make check`` calls this.

    python tests/readme_commands.py [FILE.md ...]

Python and TOML blocks that begin with ``# NAME.py`` or ``# NAME.toml`` are written to that file,
other Python blocks are run, and bash blocks are run line by line, all in a scratch folder whose
``.venv`` sees everything that the project's has, so that a block may install a package there. A
file in a folder of its own is written in its turn, after the command that makes the folder. Left
out are make, since ``make check`` calls this, and blocks whose title says why they are not run.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "learn").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\b")
SCRIPTS = {
    "segcredit": "from segcredit.cli import main\n\nif __name__ == '__main__':\n    main()\n",
    "pip": "from runpy import run_module\n\nrun_module('pip', run_name='__main__')\n",
    "pytest": "from runpy import run_module\n\nrun_module('pytest', run_name='__main__')\n",
}
"""What pip would have put into the environment's bin folder."""


def main() -> None:
    """Run every page; the first command that fails ends it with its exit status."""
    for page in [Path(name) for name in sys.argv[1:]] or PAGES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            environment = make_environment(folder / ".venv")
            run_page(page.read_text(encoding="utf-8"), folder, environment)


def make_environment(place: Path) -> dict[str, str]:
    """An environment of its own, in which all that the project's has can be imported."""
    venv.create(place, symlinks=True)
    paths = {key: sysconfig.get_path(key) for key in ("purelib", "platlib")}
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    lines = [f"import site; site.addsitedir({path!r})" for path in {*paths.values()}]
    (inside / "project.pth").write_text("\n".join(lines), encoding="utf-8")
    for name, program in SCRIPTS.items():
        script = place / "bin" / name
        script.write_text(f"#!{place}/bin/python\n{program}", encoding="utf-8")
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        # Everything that a package needs to be built is there already.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def run_page(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Every block of a page."""
    blocks = BLOCK.findall(text)
    # Files first: a command may stand above the file that it reads.
    for _, block in blocks:
        if (named := FILE.match(block)) and "/" not in named[1]:
            (folder / named[1]).write_text(block, encoding="utf-8")
    for language, block in blocks:
        named = FILE.match(block)
        if named and "/" in named[1]:
            (folder / named[1]).write_text(block, encoding="utf-8")
        elif not named:
            run(language, block, folder, environment)


def run(language: str, text: str, folder: Path, environment: dict[str, str]) -> None:
    """One block's commands."""
    lines = [text] if language == "python" else text.splitlines()
    for line in lines:
        if language == "toml" or line.startswith("make ") or not line.strip():
            continue
        print(f"$ {line.strip()}", flush=True)
        python = str(folder / ".venv" / "bin" / "python")
        command = [python, "-c", line] if language == "python" else ["bash", "-c", line]
        done = subprocess.run(command, cwd=folder, env=environment, check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
