"""docs/explain/statistics.md: its table of coverage."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "explain" / "statistics.md"


def script() -> ModuleType:
    path = PAGE.with_name("statistics_coverage.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed() -> dict[tuple[str, str], list[float]]:
    """The coverages of the page, in percent, by interval and distribution."""
    rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text("utf-8").splitlines()]
    return {
        (row[0], row[1]): [float(cell.rstrip("%")) for cell in row[2:]]
        for row in rows
        if len(row) == 7 and row[-1].endswith("%")
    }


def test_the_defaults_are_what_the_table_speaks_for() -> None:
    table = printed()
    assert len(table) == 30
    for default, other in [("student", "bootstrap"), ("newcombe", "bootstrap")]:
        mine = {key: cells for key, cells in table.items() if key[0].endswith(default)}
        assert mine
        for (interval, values), cells in mine.items():
            theirs = table[interval.replace(default, other), values]
            assert all(a >= b for a, b in zip(cells, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("values", ["normal", "skewed", "collapsing"])
def test_the_table_is_what_the_script_counts(values: str) -> None:
    seeds = 3
    module = script()
    place = module.SEEDS.index(seeds)
    for interval, covered in module.column(values, seeds):
        assert 100 * covered == pytest.approx(printed()[interval, values][place], abs=1)
