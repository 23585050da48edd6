"""How many functions and files of the library and its plug-ins one training step visits.

    python benchmarks/files_of_a_step.py                    sapo, on the embedded tiny policy
    python benchmarks/files_of_a_step.py grpo --list        with the functions of each file

Counted are functions with a code object of their own (comprehensions and lambdas are not) in the
packages ``segcredit``, ``segmenters`` and ``estimators``. A step begins when the iterator of
``iterate`` is asked for its row, and ends when the row is recorded: evaluation is left out, since
the step is neither the last nor one to evaluate; tables and checkpoint are written. Imports are
left out: the step before has done them, and module bodies are not counted.

It runs on an older checkout too, by the Python of an environment in which that one is installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import segcredit

ROOMS = ("segcredit", "segmenters", "estimators")
STEP = 2
"""The step that is counted: the first one imports and fills caches."""


def visited(method: str) -> set[CodeType]:
    """Returns the code of every function that the second of three steps enters."""
    settings = ["train.steps=3", "seed=1", "record.every=1", "checkpoint.every=1"]
    config = segcredit.load_config(method, [*settings, "evaluate.every=100"])
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    with tempfile.TemporaryDirectory() as folder:
        rows = _loop().iterate(config, Path(folder) / "run")
        for _ in range(STEP):  # step 0 and the steps before
            next(rows)
        sys.setprofile(note)
        try:
            next(rows)
        finally:
            sys.setprofile(None)
        rows.close()
    return found


def by_file(codes: set[CodeType]) -> dict[str, set[str]]:
    """Groups the named functions of the library and its plug-ins by file, from the root."""
    root = Path(segcredit.__file__).parents[1]
    found: dict[str, set[str]] = defaultdict(set)
    for code in codes:
        path = Path(code.co_filename)
        if path.is_relative_to(root) and not code.co_name.startswith("<"):
            file = path.relative_to(root)
            if file.parts[0] in ROOMS:
                found[str(file)].add(f"{code.co_firstlineno}: {code.co_qualname}")
    return dict(sorted(found.items()))


def _loop() -> Any:
    """Imports the loop where this checkout has it."""
    try:
        return importlib.import_module("segcredit.training.loop")
    except ModuleNotFoundError:
        return importlib.import_module("segcredit.loop")


def main() -> None:
    """Prints both counts, and the functions of each file on request."""
    parser = argparse.ArgumentParser(description="Count what one training step visits.")
    parser.add_argument("method", nargs="?", default="sapo")
    parser.add_argument("--list", action="store_true", help="the functions of each file")
    options = parser.parse_args()
    files = by_file(visited(options.method))
    if options.list:
        for file, names in files.items():
            print(f"{file}  ({len(names)})")
            for name in sorted(names, key=lambda name: int(name.partition(":")[0])):
                print(f"    {name}")
    total = sum(map(len, files.values()))
    print(f"{options.method}: one step visits {total} functions in {len(files)} files")


if __name__ == "__main__":
    main()
