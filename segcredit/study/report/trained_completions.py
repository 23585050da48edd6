"""A few completions of training runs, the best and the worst of a step, as they were written."""

# pandas and pyarrow ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds

from segcredit.errors import RecordError
from segcredit.records.image_files import read_image
from segcredit.records.manifest import read_manifest
from segcredit.records.step_tables import table_files
from segcredit.records.tables import Runs, setting_text
from segcredit.study.report.view import (
    Block,
    Completion,
    Note,
    Piece,
    Section,
    counted,
    image_source,
)

MOST_GROUPS = 6
"""Groups of which a run's completions are shown."""
MOST_BYTES = 1_000_000
"""Largest size of an image that is put into the page."""
MOST_CHARACTERS = 20_000
"""Most characters of a prompt or a completion that are shown."""

_COLUMNS = [
    "prompt",
    "completion",
    "prompt_text",
    "text",
    "reward",
    "truncated",
    "tokens",
    "images",
]


def completions_section(runs: Runs, by: Sequence[str]) -> Section:
    """Builds the section of the best and the worst completion, of a run of each group.

    They are those of the last recorded step of the first run that recorded any. Nothing else is
    read of the other runs' completions, nor of other steps' texts.

    Args:
        runs: training runs.
        by: the settings that make the groups.
    """
    recorded = _first_recorded(runs, by)
    if not recorded:
        said = "No run recorded completions; set record.completions to see some here."
        return Section("completions", "Completions", [Note(said)])
    said = (
        "The completion with the highest reward and the one with the lowest, of equals the first,"
        " in the last recorded step of the first run of each group that recorded completions."
        " Shades that alternate are segments, where these were recorded."
    )
    if len(recorded) > MOST_GROUPS:
        said += f" {MOST_GROUPS} of {len(recorded):,} groups are shown."
    blocks: list[Block] = [Note(said)]
    for group, run in list(recorded.items())[:MOST_GROUPS]:
        blocks += _of_run(runs, run, group)
    return Section("completions", "Completions", blocks)


def marked(text: str, segments: Sequence[str]) -> list[Piece]:
    """Cuts a text into pieces: segments, and what is between them.

    Args:
        text: a completion.
        segments: the texts of its segments, in their order; empty ones are left out.

    Returns:
        Pieces that together are the text; the text in one piece where the segments are not in it.
    """
    pieces: list[Piece] = []
    end = 0
    for segment in filter(None, segments):
        start = text.find(segment, end)
        if start < 0:
            return [Piece(text)]
        pieces += [Piece(text[end:start]), Piece(segment, is_segment=True)]
        end = start + len(segment)
    return [piece for piece in [*pieces, Piece(text[end:])] if piece.text]


def _first_recorded(runs: Runs, by: Sequence[str]) -> dict[str, str]:
    """Returns the first run with completions by its group's name, in the order of the runs."""
    table: Any = runs.runs
    found: dict[str, str] = {}
    for run, *values in table[["run", *by]].itertuples(index=False, name=None):
        group = ", ".join(map(setting_text, values))
        if group not in found and _has_completions(runs.directories[str(run)]):
            found[group] = str(run)
    return found


def _has_completions(directory: Path) -> bool:
    try:
        return bool(table_files(directory, "completions", read_manifest(directory)))
    except RecordError:
        return False  # that the run is damaged is said in the overview


def _of_run(runs: Runs, run: str, group: str) -> Iterator[Block]:
    """Yields completions of a run's last step, which may be damaged or lack rewards."""
    one = runs.select([run])
    last = one.read("completions", ["step"])["step"].max()
    at = ds.field("step") == last
    rows: Any = one.read("completions", _COLUMNS, where=at).dropna(subset=["text", "reward"])
    segments: Any = one.read("segments", ["prompt", "completion", "segment", "text"], where=at)
    runs.left_out |= one.left_out
    if rows.empty:
        yield Note(f"{group}: the run {run} has no completion with a reward that can be read.")
        return
    ends = dict.fromkeys([int(rows["reward"].argmax()), int(rows["reward"].argmin())])
    for place, end in zip(ends, ["highest", "lowest"], strict=False):
        row = rows.iloc[place].to_dict()
        mine = (segments["prompt"] == row["prompt"]) & (segments["completion"] == row["completion"])
        parts = segments[mine].sort_values("segment")["text"].dropna().tolist()
        said = f"the {end} reward" if len(ends) > 1 else "the reward of all"
        where = f"Run {run}, step {last}, {counted(len(rows), 'completion')}."
        yield _completion(runs.directories[run], row, parts, f"{group}: {said}", where)


def _completion(
    path: Path, row: dict[str, Any], segments: Sequence[str], title: str, where: str
) -> Completion:
    sources, missing = _images(path, row["images"])
    is_long = len(row["text"]) > MOST_CHARACTERS
    return Completion(
        title=f"{title}, {row['reward']:.4g}",
        facts=f"{where} {_facts(row, segments)}",
        prompt=_shortened(row["prompt_text"]) if pd.notna(row["prompt_text"]) else "",
        images=sources,
        pieces=[Piece(_shortened(row["text"]))] if is_long else marked(row["text"], segments),
        notes=missing,
    )


def _shortened(text: str) -> str:
    left = len(text) - MOST_CHARACTERS
    return f"{text[:MOST_CHARACTERS]}… {left:,} more characters" if left > 0 else text


def _facts(row: dict[str, Any], segments: Sequence[str]) -> str:
    """Returns the prompt's key, the completion's place in its group and its sizes, if recorded."""
    said = [f"Prompt {row['prompt']}, completion {row['completion']}"]
    if pd.notna(row["tokens"]):
        said.append(counted(int(row["tokens"]), "token"))
    if segments:
        said.append(counted(len(segments), "segment"))
    if pd.notna(row["truncated"]):
        said.append("truncated" if row["truncated"] else "not truncated")
    return ", ".join(said) + "."


def _images(path: Path, names: Any) -> tuple[list[str], list[str]]:
    """Returns the images that can be shown, as addresses, and a sentence on each other one."""
    sources: list[str] = []
    missing: list[str] = []
    for name in str(names).split() if pd.notna(names) else []:
        try:
            content = read_image(path, name)
        except RecordError as error:
            missing.append(str(error))
            continue
        source = image_source(content)
        if source and len(content) <= MOST_BYTES:
            sources.append(source)
        else:
            why = "is too large for a page" if source else "is of a kind that browsers do not show"
            missing.append(f"The image {name} of the run {why}.")
    return sources, missing
