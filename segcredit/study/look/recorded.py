"""Recorded completions of training runs, to look at."""

# pandas and pyarrow ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow.dataset as ds

from segcredit.errors import RecordError
from segcredit.protocols import TextSegmenter
from segcredit.records.image_files import image_kind, read_image
from segcredit.records.manifest import read_manifest
from segcredit.records.step_tables import table_files
from segcredit.records.tables import Runs, default_by, setting_text
from segcredit.study.look.completions import Completion, Cut, Turn, cut_at, cut_at_turns
from segcredit.study.segmenting.cut import chosen_segmenters, segment_documents
from segcredit.study.segmenting.texts import Document

MOST = 10_000
"""Most completions that are shown together."""
USUAL = ("newline", "steps")
"""Segmenters of text that a report shows where nobody names others."""
TRAINED = "as trained"
"""Name of the segments that a run recorded."""
MOST_GROUPS = 6
"""Groups of which a run's completions are shown."""
MOST_BYTES = 1_000_000
"""Largest size of an image that is shown."""
MOST_LETTERS = 10_000_000
"""Most characters of completions that are shown together; a step is shown whole or not at all, but
for the last one."""
MOST_IMAGE_BYTES = 20_000_000
"""Most bytes of different images that are shown together."""

_COLUMNS = [
    "step",
    "prompt",
    "completion",
    "prompt_text",
    "text",
    "reward",
    "truncated",
    "tokens",
    "images",
]
_KEY = ["step", "prompt", "completion"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Completions that runs recorded."""

    completions: Sequence[Completion]
    groups: int
    """Groups that recorded any; ``MOST_GROUPS`` of them at most are shown."""
    recorded: int
    """Completions that the runs which are shown recorded."""


def of_runs(
    runs: Runs,
    by: Sequence[str] = (),
    segmenters: Sequence[str] = (),
    *,
    most: int = MOST,
) -> Recorded:
    """Reads completions of the first run of each group that recorded any.

    Of each run as many steps as there is room for, evenly over all that it recorded, the last one
    among them. Nothing else is read of the other runs' completions, nor of other steps' texts.

    Args:
        runs: training runs. Those whose completions cannot be read are added to ``left_out``.
        by: the settings that make the groups; by default those that tell the runs apart.
        segmenters: of text alone, by which the texts are cut as well; names or inline TOML tables.
        most: completions in all.

    Raises:
        StudyError: a segmenter needs more than text.
        RegistryError: one is unknown, or refuses its options.
    """
    found = _first_recorded(runs, by or default_by(runs))
    cutters = cast("Mapping[str, TextSegmenter]", chosen_segmenters(segmenters, policy=False))
    shown = list(found.items())[:MOST_GROUPS]
    read: list[Completion] = []
    count, images = 0, _Images()
    for place, (group, run) in enumerate(shown):
        room = len(shown) - place
        letters = sum(len(one.text) for one in read)
        one = runs.select([run])
        steps: Any = one.read("completions", ["step"])["step"]
        count += len(steps)
        chosen = spaced_steps(steps.value_counts().to_dict(), (most - len(read)) // room)
        rows = _rows(one, chosen, (MOST_LETTERS - letters) // room).head((most - len(read)) // room)
        read += _completions(one, run, group, rows, cutters, images)
        runs.left_out |= one.left_out
    return Recorded(read, len(found), count)


def spaced_steps(sizes: Mapping[int, int], most: int) -> list[int]:
    """Picks steps, evenly over all and the last one among them, that together are not too many.

    Args:
        sizes: rows of each step.
        most: rows in all; the last step may have more.
    """
    steps = sorted(sizes)
    for count in range(len(steps), 1, -1):
        apart = (len(steps) - 1) / (count - 1)
        chosen = [steps[round(place * apart)] for place in range(count)]
        if sum(sizes[step] for step in chosen) <= most:
            return chosen
    return steps[-1:]


def cuts_of_texts(
    texts: Sequence[str], segmenters: Mapping[str, TextSegmenter]
) -> list[dict[str, Cut]]:
    """Cuts texts by segmenters that read text alone; one that fails leaves its sentence."""
    different = list(dict.fromkeys(texts))
    documents = (Document(number, text) for number, text in enumerate(different, 1))
    found: dict[str, dict[str, Cut]] = {}
    for text, (_, by_name) in zip(
        different, segment_documents(documents, dict(segmenters)), strict=True
    ):
        found[text] = {
            name: Cut(sizes=[len(text)], kinds=[0], note=cut.error)
            if cut.error
            else cut_at(len(text), cut.starts, cut.ends)
            for name, cut in by_name.items()
        }
    return [found[text] for text in texts]


def found_places(text: str, segments: Iterable[str]) -> tuple[list[int], list[int]] | None:
    """Finds where in a text its segments begin and end.

    Args:
        text: a completion.
        segments: the texts of its segments, in their order.

    Returns:
        First characters, and those behind the last; None where the segments are not in it.
    """
    starts: list[int] = []
    ends: list[int] = []
    end = 0
    for segment in segments:
        start = text.find(segment, end) if segment else end
        if start < 0:
            return None
        end = start + len(segment)
        starts.append(start)
        ends.append(end)
    return starts, ends


def image_source(content: bytes) -> str:
    """Returns an image as a ``data:`` address; '' for a kind that browsers do not show."""
    kind = image_kind(content)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if kind else ""


@dataclass(slots=True)
class _Images:
    """Images by run and name, each read once, as long as there is room."""

    sources: dict[tuple[Path, str], str] = field(default_factory=dict[tuple[Path, str], str])
    """Addresses; sentences for those that cannot be shown."""
    size: int = 0

    def of(self, path: Path, names: Any) -> tuple[list[str], list[str]]:
        """Returns the images that can be shown, and a sentence on each other one."""
        found = [self._one(path, name) for name in str(names).split() if pd.notna(names)]
        return (
            [source for source in found if source.startswith("data:")],
            [source for source in found if not source.startswith("data:")],
        )

    def _one(self, path: Path, name: str) -> str:
        if (path, name) not in self.sources:
            self.sources[path, name] = self._read(path, name)
        return self.sources[path, name]

    def _read(self, path: Path, name: str) -> str:
        try:
            content = read_image(path, name)
        except RecordError as error:
            return str(error)
        source = image_source(content)
        if not source:
            return f"The image {name} of the run is of a kind that browsers do not show."
        if len(content) > MOST_BYTES:
            return f"The image {name} of the run is too large for a page."
        if self.size + len(content) > MOST_IMAGE_BYTES:
            return f"The image {name} of the run is left out: there are too many for a page."
        self.size += len(content)
        return source


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
        return False  # that the run is damaged is said elsewhere


def _rows(one: Runs, steps: Sequence[int], letters: int) -> pd.DataFrame:
    """Reads the completions of steps; of fewer where these have too many characters."""
    where = ds.field("step").isin(steps)
    rows: Any = one.read("completions", _COLUMNS, where=where).dropna(subset=["text"])
    sizes: Any = rows["text"].str.len().clip(upper=20_000)
    by_step = sizes.groupby(rows["step"]).sum().to_dict()
    kept = spaced_steps(by_step, letters)
    rows = rows[rows["step"].isin(kept)]
    return rows[sizes[rows.index].cumsum() <= letters] if len(kept) == 1 else rows


def _completions(
    one: Runs,
    run: str,
    group: str,
    rows: pd.DataFrame,
    segmenters: Mapping[str, TextSegmenter],
    images: _Images,
) -> Iterable[Completion]:
    trained, name = _trained_cuts(one, rows)
    turns = _turns(one, rows)
    texts: list[str] = rows["text"].tolist()
    cuts = cuts_of_texts(texts, segmenters)
    table: Any = rows
    for row, by_name in zip(table.to_dict("records"), cuts, strict=True):
        key = tuple(row[name] for name in _KEY)
        own = _own_cut(row["text"], trained.get(key), name)
        played = turns.get(key, ())
        by_name = {
            name: cut if segmenters[name].spans_turns else cut_at_turns(cut, played)
            for name, cut in by_name.items()
        }
        sources, missing = images.of(one.directories[run], row["images"])
        yield Completion(
            text=row["text"],
            cuts=({} if own is None else {TRAINED: own}) | by_name,
            prompt=row["prompt_text"] if pd.notna(row["prompt_text"]) else "",
            images=sources,
            source=group if group == run else f"{group}: {run}",
            step=int(row["step"]),
            place=f"prompt {row['prompt']}, completion {row['completion']}",
            facts=_facts(row),
            reward=float(row["reward"]) if pd.notna(row["reward"]) else None,
            truncated=bool(row["truncated"]) if pd.notna(row["truncated"]) else False,
            notes=missing,
            turns=played,
        )


def _trained_cuts(one: Runs, rows: pd.DataFrame) -> tuple[dict[Any, dict[str, list[Any]]], str]:
    """Reads the recorded segments of some completions, and names the segmenter that made them."""
    steps: list[int] = list(dict.fromkeys(rows["step"].tolist()))
    columns = [*_KEY, "segment", "text", "value", "advantage"]
    where = ds.field("step").isin(steps)
    table: Any = one.read("segments", columns, where=where).sort_values([*_KEY, "segment"])
    found: dict[Any, dict[str, list[Any]]] = {}
    for *key, _, text, value, advantage in table[columns].itertuples(index=False, name=None):
        parts = found.setdefault(tuple(key), {"text": [], "value": [], "advantage": []})
        parts["text"].append(text if isinstance(text, str) else "")
        parts["value"].append(value)
        parts["advantage"].append(advantage)
    setting = one.runs["segmenter"].iloc[0] if "segmenter" in one.runs else ""
    return found, setting_text(setting)


def _turns(one: Runs, rows: pd.DataFrame) -> dict[Any, list[Turn]]:
    """Reads the turns of some completions, whose texts and observations are theirs in order."""
    steps: list[int] = list(dict.fromkeys(rows["step"].tolist()))
    columns = [*_KEY, "turn", "text", "observation", "reward", "value", "advantage"]
    table: Any = one.read("turns", columns, where=ds.field("step").isin(steps))
    found: dict[Any, list[Turn]] = {}
    ends: dict[Any, int] = {}
    ordered = table.sort_values([*_KEY, "turn"])[columns]
    for *names, _, text, observation, reward, value, credit in ordered.itertuples(False, None):
        key = tuple(names)
        start = ends.get(key, 0)
        end = start + len(text)
        ends[key] = end + len(observation)
        facts = f"reward {reward:.4g} · value {value:.2g} · credit {credit:+.2g}"
        found.setdefault(key, []).append(Turn(start, end, facts.replace("-", "−")))
    return found


def _own_cut(text: str, parts: Mapping[str, list[Any]] | None, name: str) -> Cut | None:
    """Returns the segments that a completion was trained with, if its text holds them."""
    places = found_places(text, parts["text"]) if parts else None
    if parts is None or places is None:
        return None
    numbers = {"values": parts["value"], "credit": parts["advantage"]}
    known = {name: x for name, x in numbers.items() if not all(map(pd.isna, x))}
    return cut_at(len(text), *places, note=name, **known)


def _facts(row: Mapping[str, Any]) -> str:
    if pd.isna(row["tokens"]):
        return ""
    count = int(row["tokens"])
    return f"{count:,} token{'s' * (count != 1)}"
