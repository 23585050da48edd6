"""How well `learned` finds the boundaries that people drew, against sentences and against people.

python experiments/11_boundaries/rtseg.py ../shared/data/segmentation/rtseg_gold.jsonl

Ten folds by document, starts moved to the first visible character, exact match. A fold's blend and
threshold are chosen on the other nine. Prints a Markdown table; brackets are 95 % bootstrap
intervals over documents.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segcredit import registry
from segcredit.study.agreement import after_space
from segmenters.learned.agreement import counts_of, intervals, measures, paired_difference
from segmenters.learned.corpus import read_corpus
from segmenters.learned.sentences import sentence_starts
from segmenters.learned.training import fit

ANNOTATORS = ("A", "B")


def main(path: str) -> None:
    """Fit once for each annotator, and print everything in one table."""
    corpora = {name: read_corpus(Path(path), name) for name in ANNOTATORS}
    a, b = (corpora[name] for name in ANNOTATORS)
    print(f"{len(a)} documents; boundaries: {[sum(map(len, c.boundaries)) for c in (a, b)]}\n")
    print("| segments | against | F1 | precision | recall | less `sentence` | less spaCy's |")
    print("|---|---|---|---|---|---|---|")
    for name, corpus in corpora.items():
        sentences_D3 = counts_of(sentence_starts(corpus.texts), corpus.boundaries)
        rules_D3 = counts_of(cut_by_rules(corpus.texts), corpus.boundaries)
        other = b if corpus is a else a
        humans_D3 = counts_of(other.boundaries, corpus.boundaries)
        learned_D3 = fit(corpus, folds=10, which="all").counts_D3
        show(f"learned from {name}, kept-back documents", name, learned_D3, rules_D3, sentences_D3)
        show("`sentence`", name, rules_D3, None, sentences_D3)
        show("spaCy's sentences", name, sentences_D3, rules_D3, None)
        show("the other annotator", name, humans_D3, rules_D3, sentences_D3)


def cut_by_rules(texts: Sequence[str]) -> list[np.ndarray]:
    """Boundaries of the segmenter ``sentence``, moved to the next visible character."""
    split = registry.segmenters.build("sentence").split
    return [np.asarray(after_space(split(text), text), np.int64) for text in texts]


def show(what: str, against: str, counts_D3: Any, *others: Any) -> None:
    """One row, with the paired difference from each of the others."""
    estimates = [
        f"{value:.3f} [{low:.3f} {high:.3f}]"
        for value, (low, high) in zip(measures(counts_D3.sum(0)), intervals(counts_D3), strict=True)
    ]
    for other_D3 in others:
        if other_D3 is None:
            estimates.append("")
            continue
        found, (low, high) = paired_difference(counts_D3, other_D3)
        estimates.append(f"{found:+.3f} [{low:+.3f} {high:+.3f}]")
    print(f"| {what} | {against} | {' | '.join(estimates)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
