"""Tables as CSV, Parquet, Markdown and LaTeX."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit.errors import RecordError, StudyError
from segcredit.study.export_tables import write_table

NASTY = "_a_ a|b \\ & 50% $x$ # {~^} <b>\n`c` *d* [e]"


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "segmenter": pd.Categorical(["min_length", NASTY]),
            "mean": [0.123456789012345, math.nan],
            "seeds": pd.array([3, None], dtype="Int64"),
            "tiny": [1e-8, 0.5],
            "tokens_sampled": [230520.0, 3.0],
            "paired": [True, False],
        }
    )


def test_parquet_keeps_values_and_types(tmp_path: Path) -> None:
    found = pd.read_parquet(write_table(table(), tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(found, table())


@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1
            ),
            st.floats(allow_nan=False),
            st.integers(-(2**62), 2**62),
        )
    )
)
def test_csv_keeps_every_value(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float, int]]
) -> None:
    frame = pd.DataFrame(rows, columns=["text", "value", "count"])
    path = write_table(frame, tmp_path_factory.mktemp("csv") / "t.csv")
    found = pd.read_csv(
        path, float_precision="round_trip", keep_default_na=False, dtype={"text": str}
    )
    assert [tuple(row) for row in found.itertuples(index=False)] == rows


def test_markdown_is_a_pipe_table_that_shows_what_was_there(tmp_path: Path) -> None:
    lines = write_table(table(), tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == list(table().columns)
    assert [cell[-1] == ":" for cell in cells[1][0].split("|")] == [False, *[True] * 4, False]
    assert cells[2] == ["min_length", "0.123", "3", "1e-08", "230520", "True"]
    nasty = r"\_a\_ a\|b \\ \& 50% \$x\$ # {\~^} \<b\> \`c\` \*d\* \[e\]"
    assert cells[3] == [nasty, "–", "–", "0.500", "3", "False"]
    assert len(lines) == 4


def test_latex_is_a_booktabs_table_with_everything_escaped(tmp_path: Path) -> None:
    text = write_table(table(), tmp_path / "t.tex").read_text(encoding="utf-8")
    assert text.startswith("\\begin{tabular}{lrrrrl}\n\\toprule\n")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    rows = text.split("\\midrule\n")[1].split("\\bottomrule")[0].strip().splitlines()
    first, second = (
        [cell.strip() for cell in row.removesuffix("\\\\").split(" & ")] for row in rows
    )
    assert first == [r"min\_length", "0.123", "3", "1e-08", "230520", "True"]
    assert second == [
        r"\_a\_ a\textbar{}b \textbackslash{} \& 50\% \$x\$ \# \{\textasciitilde{}\^{}\}"
        r" \ensuremath{<}b\ensuremath{>} `c` *d* [e]",
        *["–", "–", "0.500", "3", "False"],
    ]
    assert "|" not in text


@pytest.mark.parametrize("extension", ["csv", "md", "tex", "parquet"])
def test_a_table_without_rows_is_written(tmp_path: Path, extension: str) -> None:
    path = write_table(table()[:0], tmp_path / f"t.{extension}")
    data = path.read_bytes()
    assert b"segmenter" in data
    assert extension != "tex" or data.startswith(b"\\begin{tabular}{llllll}\n")


def test_named_levels_become_columns_and_others_go(tmp_path: Path) -> None:
    grouped = (
        table()
        .groupby(["segmenter", "paired"], observed=True)[["mean", "tiny"]]
        .agg(["max", "count"])
    )
    found = pd.read_csv(write_table(grouped, tmp_path / "deep" / "t.csv"))
    assert list(found) == ["segmenter", "paired", *(f"{a}.{b}" for a, b in grouped)]
    filtered = table()[table()["tiny"] > 0.1]
    assert list(pd.read_csv(write_table(filtered, tmp_path / "t.csv"))) == list(table())
    partly = filtered.set_index([np.array([7]), "paired"])
    assert pd.read_csv(write_table(partly, tmp_path / "t.csv")).columns[0] == "paired"


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    doubled = pd.concat([table(), table()["mean"]], axis=1)
    with pytest.raises(StudyError, match="several columns named 'mean'"):
        write_table(doubled, tmp_path / "t.csv")
    with pytest.raises(StudyError, match="several columns named 'mean'"):
        write_table(table().set_index(table()["mean"]), tmp_path / "t.csv")


def test_unknown_formats_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="table format 'cvs'; did you mean 'csv'"):
        write_table(table(), tmp_path / "t.cvs")


@pytest.mark.parametrize("extension", ["csv", "md", "tex", "parquet"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"t.{extension}"
    path.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="The disk or the quota is full"):
        write_table(table(), path)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
