"""Runs the README's own blocks in order: ``make check`` calls this.

Python and TOML blocks that begin with ``# NAME.py`` or ``# NAME.toml`` are written to that file,
other Python blocks are run, and bash blocks are run line by line, all in a scratch folder in which
``.venv`` is the project's. The two make commands are left out: ``make check`` is one of them.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(bash|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|toml))\b")


def main() -> None:
    """Run every block; the first that fails ends it with its exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
        # Files first: a command may stand above the file that it reads.
        for _, text in blocks:
            if named := FILE.match(text):
                (folder / named[1]).write_text(text, encoding="utf-8")
        for language, text in blocks:
            if not FILE.match(text):
                run(language, text, folder)


def run(language: str, text: str, folder: Path) -> None:
    """One block's commands."""
    lines = [text] if language == "python" else text.splitlines()
    for line in lines:
        if language == "toml" or line.startswith("make ") or not line.strip():
            continue
        print(f"$ {line.strip()}", flush=True)
        command = [sys.executable, "-c", line] if language == "python" else ["bash", "-c", line]
        done = subprocess.run(command, cwd=folder, check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
