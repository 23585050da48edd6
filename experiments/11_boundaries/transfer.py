"""What happens on a source that training did not see: threshold, granularity knob, and fallback.

python experiments/11_boundaries/transfer.py [--shipped] joined_space.jsonl

Each source in turn is left out; the others train a model. With ``--shipped`` nothing is trained:
the model that comes with the package is used on each source. Prints a Markdown table of F1 on that
source, the share of its texts that the fallback cuts otherwise, and F1 with ``per_100_tokens`` set
to the source's own rate (the only thing that is then known of it).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from segmenters.learned.agreement import counts_of, intervals, measures
from segmenters.learned.corpus import Corpus, read_corpus
from segmenters.learned.model_file import save_model
from segmenters.learned.plugin import Learned
from segmenters.learned.sentences import sentence_starts
from segmenters.learned.training import fit


def main(path: str, shipped: bool) -> None:
    """One row a source."""
    corpus = read_corpus(Path(path))
    print("| left out | sentences | own threshold | with fallback | cut otherwise | own rate |")
    print("|---|---|---|---|---|---|")
    for source in sorted(set(corpus.sources)):
        inside = [row for row, name in enumerate(corpus.sources) if name != source]
        outside = [row for row, name in enumerate(corpus.sources) if name == source]
        if shipped:
            print(f"| {source} | {' | '.join(judged(corpus.select(outside), 'default'))} |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.skops"
            save_model(fit(corpus.select(inside), folds=3).model, model)
            row = judged(corpus.select(outside), str(model))
        print(f"| {source} | {' | '.join(row)} |", flush=True)


def judged(corpus: Corpus, model: str) -> list[str]:
    """F1 of each way to use a model, with intervals."""
    words = sum(len(text.split()) for text in corpus.texts)
    rate = 100 * sum(len(given) + 1 for given in corpus.boundaries) / words
    own = cut(Learned(model=model, unknown="model"), corpus)
    default = cut(Learned(model=model), corpus)
    differ = [len(a) != len(b) or (a != b).any() for a, b in zip(own, default, strict=True)]
    return [
        f1(corpus, sentence_starts(corpus.texts)),
        f1(corpus, own),
        f1(corpus, default),
        f"{np.mean(differ):.0%}",
        f1(corpus, cut(Learned(model=model, per_100_tokens=rate), corpus)),
    ]


def cut(segmenter: Learned, corpus: Corpus) -> list[np.ndarray]:
    """Boundaries of all texts."""
    return [np.asarray(row, np.int64) for row in segmenter.split_all(corpus.texts)]


def f1(corpus: Corpus, predicted: list[np.ndarray]) -> str:
    """With its interval."""
    counts_D3 = counts_of(predicted, corpus.boundaries)
    low, high = intervals(counts_D3)[0]
    return f"{measures(counts_D3.sum(0))[0]:.3f} [{low:.3f} {high:.3f}]"


if __name__ == "__main__":
    main(sys.argv[-1], "--shipped" in sys.argv)
