"""Which segmenters cut where the accuracy of real reasoning traces truly moves.

    python experiments/07_real_traces/anchors.py TRACES [--policy SPEC] [--output results.csv]

TRACES has a trace a line, with the measured accuracy before each of its sentences. Text segmenters
read its text. Those that need a model's signals get them from a local model (--policy), which did
not write the traces and is named beside them. Writes a row a metric, draws a picture beside that
file, and prints the tables of README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from thought_anchors.cuts import marked_sentences, sentence_signals
from thought_anchors.metric_rows import (
    BY_LENGTH,
    CHANCE,
    FORKS,
    AnchorMetrics,
)
from thought_anchors.signals import scored_trace, token_cuts
from thought_anchors.traces import SUSPECT, AnchorTrace, load_anchors

from segcredit.credit_audit.metrics.moments import Fork
from segcredit.errors import SegcreditError, StudyError
from segcredit.study.segmenting.cut import (
    TextSegments,
    chosen_segmenters,
    load_policy,
    plugin_table,
    segment_documents,
)
from segcredit.study.segmenting.texts import Document
from segcredit.types import RolloutBatch

HERE = Path(__file__).parent
TEXT = ["newline", "paragraph", "sentence", "steps", "reflection", "latex_steps", "learned"]
TOKENS = [
    "entropy", "entropy_running", "probability", "cutpoint", "surprise_change",
    "fixed_length", "random",
]  # fmt: skip
BUDGETS = (0.1, 0.2)
QUANTILES = (0.5, 0.8, 0.9)
FEWEST = 3
"""Sentences of a trace: two changes, of which a definition can choose one."""

Marks = dict[str, Mapping[Fork, np.ndarray]]
"""By segmenter and fork, (B,T) True at the sentences that are at a boundary."""
Signals = dict[str, np.ndarray]
"""By name, (B,T)."""


def read(path: Path, leave_out: Sequence[str] = SUSPECT) -> list[AnchorTrace]:
    """The traces that can be judged, without those whose accuracies are suspect."""
    traces = load_anchors(path, leave_out=leave_out)
    kept = [trace for trace in traces if len(trace.starts) >= FEWEST]
    for trace in traces:
        if len(trace.starts) < FEWEST:
            print(f"left out: {trace.name}, which has fewer than {FEWEST} sentences")
    if not kept:
        raise StudyError(
            f"none of the {len(traces)} traces of {path} has {FEWEST} sentences; expected some, of"
            " which a definition can choose."
        )
    return kept


def text_marks(traces: Sequence[AnchorTrace]) -> Marks:
    """The boundaries of segmenters that read text alone."""
    segmenters = chosen_segmenters(TEXT, policy=False)
    documents = [Document(n, t.text, t.problem, t.name) for n, t in enumerate(traces, 1)]
    segmented = list(segment_documents(documents, segmenters))
    return {
        name: marked_sentences(
            traces, [_cuts(name, document, by[name]) for document, by in segmented]
        )
        for name in segmenters
    }


def _cuts(name: str, document: Document, found: TextSegments) -> Sequence[int]:
    if found.error:
        raise StudyError(f"segmenter {name} failed on trace {document.name}: {found.error}")
    return found.starts[1:]


def model_name(policy: str) -> str:
    """What a policy's columns are called: its model's name, without folders."""
    table = plugin_table(policy, "--policy")
    return Path(str(table.get("model", table["name"]))).name


def readings(traces: Sequence[AnchorTrace], policy: str, context: int) -> list[RolloutBatch]:
    """The traces as a local model reads them: tokens, log-probs, entropies."""
    loaded = load_policy(policy)
    found: list[RolloutBatch] = []
    for trace in traces:
        found.append(scored_trace(loaded, trace, context=context))
        print(f"{len(found)} of {len(traces)} traces read", flush=True)
    return found


def model_marks(traces: Sequence[AnchorTrace], read: Sequence[RolloutBatch], model: str) -> Marks:
    """The boundaries of segmenters that cut between a model's tokens, by its signals."""
    return {
        f"{name} ({model})": marked_sentences(traces, [token_cuts(s, one) for one in read])
        for name, s in chosen_segmenters(TOKENS, policy=True).items()
    }


def model_signals(
    traces: Sequence[AnchorTrace], read: Sequence[RolloutBatch], model: str
) -> Signals:
    """A model's entropies and surprisals, the highest and the mean of each sentence."""
    spans = [one.token_spans[0].numpy(force=True) for one in read]
    of_tokens = {
        "entropy": [one.entropies[0].numpy(force=True) for one in read],
        "surprisal": [-one.logprobs[0].numpy(force=True) for one in read],
    }
    return {
        f"{how} {name} ({model})": in_sentences_BT
        for name, signals in of_tokens.items()
        for how, in_sentences_BT in sentence_signals(traces, spans, signals).items()
    }


def study(traces: Sequence[AnchorTrace], marks: Marks, signals: Signals) -> pd.DataFrame:
    """All metrics, a row each."""
    metrics = AnchorMetrics(traces)
    rows = [row for name, by_fork in marks.items() for row in metrics.at_own_count(name, by_fork)]
    for fraction in BUDGETS:
        rows += metrics.at_budget(fraction, marks, signals)
    of_sentences = {"characters": metrics.lengths, "place in the trace": metrics.places}
    rows += metrics.lifts(of_sentences | signals, QUANTILES)
    return pd.DataFrame(rows)


def shown(rows: pd.DataFrame) -> pd.Series:
    """Value and interval over problems, as text; a value without one alone."""
    return rows.apply(
        lambda r: (
            f"{r.value:.4f}" if np.isnan(r.low) else f"{r.value:.2f} [{r.low:.2f} {r.high:.2f}]"
        ),
        axis=1,
    )


def table(found: pd.DataFrame, columns: Mapping[tuple[str, str], str]) -> str:
    """A row a segmenter; metrics, each beside something or nothing, as columns, a fork each."""
    some = found.assign(shown=shown)
    wide = some.pivot_table(
        index="segmenter",
        columns=["metric", "other", "fork"],
        values="shown",
        aggfunc="first",
        sort=False,
    )
    both = [(*column, fork) for column in columns for fork in FORKS]
    titles = [f"{title}: {fork}" for title in columns.values() for fork in FORKS]
    return wide.reindex(columns=both).set_axis(titles, axis=1).dropna(how="all").to_markdown()


def show(found: pd.DataFrame) -> None:
    """The tables of README.md."""
    own = {
        ("boundaries", ""): "sentences marked",
        ("boundary_ratio", ""): "ratio to chance",
        ("boundary_ratio", "over chance by length"): "to chance by length",
        ("drawn_shares_as_high", ""): "draws as high",
        ("share_within_less_random", ""): "lost within, less chance",
    }
    print(f"\nAs many boundaries as each has\n\n{table(found, own)}")
    for label in (f"share_at_{fraction:g}" for fraction in BUDGETS):
        less = f"{label}_less"
        held = {(label, ""): "share", (less, CHANCE): "less chance"}
        held |= {(less, BY_LENGTH): "less chance by length"}
        print(f"\nEqual numbers, {label}\n\n{table(found, held)}")
    lifts = found[found.metric.str.startswith("lift")].assign(shown=shown)
    print("\n" + lifts.pivot(index="segmenter", columns="metric", values="shown").to_markdown())


def draw(found: pd.DataFrame, path: Path) -> None:
    """Ratios to chance at the definitions' own numbers, and shares at an equal one."""
    picture = Figure(figsize=(11, 0.3 * found.segmenter.nunique() + 1.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    _dots(left, found[(found.metric == "boundary_ratio") & (found.other == "")])
    left.axvline(1, color="0.6", zorder=0)
    left.set_xlabel("ratio to chance, own number of boundaries")
    at = found[found.metric == f"share_at_{BUDGETS[-1]:g}"]
    _dots(right, at)
    right.axvline(at[at.segmenter == CHANCE].value.iloc[0], color="0.6", zorder=0)
    right.set_xlabel(f"share of the change, {BUDGETS[-1]:.0%} of sentences")
    right.legend(title="fork", frameon=False)
    picture.savefig(path, dpi=130)


def _dots(axes: Axes, rows: pd.DataFrame) -> None:
    """A line a segmenter, a dot a fork, with the interval over problems."""
    names = list(dict.fromkeys(rows.segmenter))
    for fork, off, colour in (("end", -0.15, "C0"), ("start", 0.15, "C1")):
        some = rows[rows.fork == fork]
        y = np.array([names.index(name) for name in some.segmenter]) + off
        axes.hlines(y, some.low, some.high, color=colour, lw=1.5)
        axes.plot(some.value, y, "o", ms=4, color=colour, label=fork)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Read, segment, judge, write, draw, print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("traces", type=Path)
    options.add_argument("--policy", help='A local model, such as \'{name="hf", model="PATH"}\'.')
    options.add_argument("--context", type=int, default=8192, help="Tokens that it reads at once.")
    options.add_argument("--leave-out", nargs="*", default=SUSPECT, help="Ids of suspect traces.")
    options.add_argument("--output", type=Path, default=HERE / "results.csv")
    chosen = options.parse_args()
    try:
        traces = read(chosen.traces, chosen.leave_out)
        run(traces, chosen.policy, chosen.context, chosen.output)
    except SegcreditError as error:
        options.exit(1, f"{error}\n")


def run(traces: Sequence[AnchorTrace], policy: str | None, context: int, output: Path) -> None:
    """The whole study of some traces."""
    marks, signals = text_marks(traces), {}
    if policy:
        model, rollouts = model_name(policy), readings(traces, policy, context)
        marks |= model_marks(traces, rollouts, model)
        signals = model_signals(traces, rollouts, model)
    found = study(traces, marks, signals)
    found.to_csv(output, index=False, float_format="%.5g")
    draw(found, output.with_suffix(".png"))
    print(f"\n{len(traces)} traces of {len({t.problem for t in traces})} problems")
    show(found)


if __name__ == "__main__":
    main()
