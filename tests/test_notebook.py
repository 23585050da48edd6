"""The notebook of docs/: every cell runs, here with a small grid; whole when asked to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from segcredit import registry
from small import SMALL

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "segmenter_to_figure.ipynb"


def cells() -> list[Any]:
    book: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry.segmenters, "_local", dict(registry.segmenters._local))
    # As in a kernel, where what a cell defines is the main module's.
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    found = vars(main)
    for cell in cells():
        exec(compile(cell.source.replace("STEPS, SEEDS =", "_ ="), "cell", "exec"), found)
        found.setdefault("STEPS", 2)
        found.setdefault("SEEDS", [0, 1])
        if "grid = {" in cell.source:
            from segcredit.config import override

            pretraining = "train.value.pretraining={completions=16, epochs=1}"
            found["grid"] = override(found["grid"], [*SMALL[:-2], pretraining])
    assert len(found["runs"].runs) == 6
    assert set(found["found"]["b"]) | set(found["found"]["a"]) >= {"answers", "newline", "whole"}
    assert (tmp_path / "runs" / "answers" / "curves.pdf").exists()


def test_it_is_shown_with_the_outputs_of_a_whole_run() -> None:
    """Of the fifteen runs, in order, and without an error."""
    found = cells()
    assert [cell.execution_count for cell in found] == list(range(1, len(found) + 1))
    kinds = [output.output_type for cell in found for output in cell.outputs]
    assert "error" not in kinds
    assert "15 runs finished" in str([cell.outputs for cell in found])
    assert sum("image/png" in output.get("data", {}) for c in found for output in c.outputs) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_whole_in_a_kernel(tmp_path: Path) -> None:
    book: Any = nbformat.read(NOTEBOOK, as_version=4)
    started = time.monotonic()
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    print(f"{time.monotonic() - started:.0f} s")
