"""What each segmenter makes of real reasoning traces: counts, lengths, failures, agreement.

    python experiments/04_segmenters/survey.py traces.jsonl [--policy SPEC --signals N]

Text segmenters cut every trace between characters. With a policy, all segmenters cut N of the
traces, drawn once, between its tokens, with its entropies and log-probs. Prints the tables of
README.md and draws the pairwise agreement.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from segcredit.study.agreement import (
    agreement,
    agreement_figure,
    matrix,
    read_annotations,
    summary,
)
from segcredit.study.segmenting.cut import (
    Segmented,
    chosen_segmenters,
    load_policy,
    segment_documents,
)
from segcredit.study.segmenting.texts import Document

HERE = Path(__file__).parent
TEXT = ["newline", "paragraph", "sentence", "steps", "latex_steps", "reflection", "learned"]
TOKENS = ["fixed_length", "random", "turns"]
SIGNALS = ["entropy", "entropy_running", "probability", "cutpoint", "surprise_change"]
COMBINED = [
    '{name="union", first="newline", second="reflection"}',
    '{name="snap_to", inner="entropy", to="sentence"}',
    '{name="min_length", inner="newline", tokens=8}',
    '{name="max_segments", inner="sentence", segments=10}',
]


def read(path: Path) -> tuple[list[Document], pd.DataFrame]:
    """The traces, and a row for each of their style tags and its language."""
    records = [json.loads(line) for line in path.open(encoding="utf-8")]
    documents = [
        Document(number, record["response"], str(record["problem"]), str(record["id"]))
        for number, record in enumerate(records, start=1)
    ]
    styles = [
        {"document": number, "style": style}
        for number, record in enumerate(records)
        for style in (*record["tags"], f"language {record['lang']}", "all")
    ]
    return documents, pd.DataFrame(styles)


def counts(segmented: Sequence[Segmented]) -> pd.DataFrame:
    """A row a trace and segmenter: segments, characters of each, whether it failed."""
    rows = [
        {
            "document": number,
            "segmenter": label,
            "segments": len(found),
            "lengths": [end - start for start, end in zip(found.starts, found.ends, strict=True)],
            "failed": bool(found.error),
            "wrong": _wrong(found.starts, found.ends, len(document.text)),
        }
        for number, (document, by_label) in enumerate(segmented)
        for label, found in by_label.items()
    ]
    return pd.DataFrame(rows)


def _wrong(starts: Sequence[int], ends: Sequence[int], length: int) -> bool:
    """Whether a segment is empty or reaches out of its text."""
    return any(not 0 <= s <= e <= length or s == e for s, e in zip(starts, ends, strict=True))


def by_style(found: pd.DataFrame, styles: pd.DataFrame) -> pd.DataFrame:
    """Median segments a completion for each style, and over how many completions."""
    joined = found.merge(styles, on="document")
    table = joined.pivot_table(
        index="style", columns="segmenter", values="segments", aggfunc="median", sort=False
    )
    table.insert(0, "completions", styles.groupby("style").document.nunique())
    return table.sort_values("completions", ascending=False)


def overall(found: pd.DataFrame) -> pd.DataFrame:
    """A row a segmenter: segments a completion, characters a segment, failures."""
    groups = found.groupby("segmenter", sort=False)
    spread = groups.segments.quantile([0.1, 0.5, 0.9]).unstack()
    lengths = found.explode("lengths").dropna(subset="lengths")
    characters = lengths.lengths.astype(float).groupby(lengths.segmenter, sort=False)
    lengths_by = characters.quantile([0.1, 0.5, 0.9]).unstack().reindex(spread.index)
    return pd.DataFrame(
        {
            "segments a completion: median [p10-p90]": _spread(spread),
            "characters a segment: median [p10-p90]": _spread(lengths_by),
            "segments": groups.segments.sum(),
            "failed": groups.failed.sum(),
            "empty or out of range": groups.wrong.sum(),
        }
    )


def _spread(table: pd.DataFrame) -> pd.Series:
    return table.apply(lambda row: f"{row[0.5]:g} [{row[0.1]:g}-{row[0.9]:g}]", axis=1)


def pairwise(segmented: Sequence[Segmented]) -> pd.DataFrame:
    """Every pair of segmenters, trace by trace; boundaries at the first non-space character."""
    texts = [document.text for document, _ in segmented]
    labels = list(segmented[0][1])
    cuts = {label: [list(found[label].starts[1:]) for _, found in segmented] for label in labels}
    return agreement(texts, cuts)


def against_people(path: Path) -> pd.DataFrame:
    """Micro-F1 of text segmenters against each annotator, with 95 % intervals over documents."""
    data = read_annotations(path)
    cuts = {**data.boundaries, **chosen_segmenters(TEXT, policy=False)}
    pairs = agreement(data.documents, cuts, references=list(data.boundaries))
    return intervals(pairs, list(data.boundaries))


def intervals(pairs: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Micro-F1 against some of the segmentations, with 95 % intervals over documents."""
    found = summary(pairs[pairs.reference.isin(references)]).query("metric == 'f1'")
    shown = found.apply(lambda row: f"{row['value']:.3f} [{row.low:.3f} {row.high:.3f}]", axis=1)
    return found.assign(f1=shown).pivot(index="other", columns="reference", values="f1")


def show(title: str, table: pd.DataFrame) -> None:
    """A heading and a Markdown table."""
    print(f"\n{title}\n\n{table.to_markdown(floatfmt='.3g')}")


def survey(name: str, segmented: Sequence[Segmented], styles: pd.DataFrame, output: Path) -> None:
    """All tables of one set of traces, and its picture."""
    found = counts(segmented)
    kept = styles[styles.document.isin(range(len(segmented)))]
    show(f"{name}: {len(segmented)} traces", overall(found))
    show(f"{name}: median segments a completion by style", by_style(found, kept))
    pairs = pairwise(segmented)
    agreement_figure(pairs, output / f"{name}.png")
    show(f"{name}: pairwise micro-F1", matrix(pairs))
    show(f"{name}: micro-F1 with intervals", intervals(pairs, ["newline", "sentence", "steps"]))


def main() -> None:
    """Read, segment, print, draw."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("traces", type=Path)
    options.add_argument("--policy", help="For segmenters that need a model's signals.")
    options.add_argument("--signals", type=int, default=60, help="Traces for the policy to read.")
    options.add_argument("--people", type=Path, help="Texts that people have segmented.")
    options.add_argument("--output", type=Path, default=HERE)
    chosen = options.parse_args()
    documents, styles = read(chosen.traces)
    text = chosen_segmenters(TEXT, policy=False)
    survey("text", list(segment_documents(documents, text)), styles, chosen.output)
    if chosen.people:
        show("micro-F1 against people", against_people(chosen.people))
    if chosen.policy:
        drawn = sorted(random.Random(0).sample(range(len(documents)), chosen.signals))
        places = {document: place for place, document in enumerate(drawn)}
        some = styles[styles.document.isin(drawn)]
        some = some.assign(document=some.document.map(places))
        everything = chosen_segmenters([*TEXT, *TOKENS, *SIGNALS, *COMBINED], policy=True)
        policy = load_policy(chosen.policy)
        segmented = segment_documents([documents[i] for i in drawn], everything, policy)
        survey("tokens", list(segmented), some, chosen.output)


if __name__ == "__main__":
    main()
