"""How fast `learned` cuts texts, in characters a second of CPU time on one core.

    python benchmarks/boundaries.py DATA.jsonl [--model FILE] [--batch 32]

DATA has a ``text`` a line, such as ../shared/data/segmentation/joined_space.jsonl. Without --model
the shipped one is timed. "First pass" begins with an empty vocabulary, as a process does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from segmenters.learned.features import dense_features, find_candidates, hashed_features
from segmenters.learned.model_file import load_model
from segmenters.learned.plugin import Learned
from segmenters.learned.sentences import sentence_starts
from segmenters.learned.tokens import language, read_tokens

TARGET = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    lines = arguments.data.read_text(encoding="utf-8").splitlines()
    texts = [str(json.loads(line)["text"]) for line in lines if line.strip()]
    print(f"{len(texts)} texts, {sum(map(len, texts)):,} characters, batches of {arguments.batch}")
    segmenter = Learned(model=arguments.model, unknown="model")
    fallback = Learned(model=arguments.model)
    segmenter.split("Everything is loaded. Now it is not timed.")
    sentence_starts(["Likewise."])
    language.cache_clear()
    show("first pass", timed(texts, arguments.batch, segmenter.split_all))
    show("again", timed(texts, arguments.batch, segmenter.split_all))
    show("again, unknown texts by sentences", timed(texts, arguments.batch, fallback.split_all))
    show("spaCy's sentences alone", timed(texts, arguments.batch, sentence_starts))
    show("tokens alone", timed(texts, arguments.batch, read_tokens))
    show("tokens and all features", timed(texts, arguments.batch, features(arguments.model)))
    show("text by text (first 200)", timed(texts[:200], 1, segmenter.split_all), None)


def features(model: str) -> Callable[[Sequence[str]], object]:
    loaded = load_model(model)

    def compute(texts: Sequence[str]) -> object:
        candidates = find_candidates(read_tokens(texts), loaded.candidates)
        first_C = loaded.first.probabilities(hashed_features(candidates))
        return dense_features(candidates, first_C, None)

    return compute


def timed(texts: Sequence[str], size: int, work: Callable[[Sequence[str]], object]) -> float:
    """Characters a second."""
    began = time.process_time()
    for first in range(0, len(texts), size):
        work(texts[first : first + size])
    return sum(map(len, texts)) / (time.process_time() - began)


def show(what: str, speed: float, target: float | None = TARGET) -> None:
    verdict = "" if target is None else "  ok" if speed >= target else f"  below {target:,}"
    print(f"{what:36} {speed:12,.0f} characters/s{verdict}", flush=True)


if __name__ == "__main__":
    main()
