"""How long the characters of a row's tokens take to find, with and without a split character.

    python benchmarks/token_spans.py 500 1000 2000 4000 8000

A byte-level tokenizer of single bytes, made here: every character beyond ASCII is split. Times
are the medians of CPU times measured in turns, of a table that has seen every id before.
"""

from __future__ import annotations

import argparse
import statistics
import time

from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from segcredit.policy.token_spans import PieceTable

ROWS = {"ASCII": "The sum is 12. ", "one 👍": "The sum is 12. ", "all 语": "语"}
REPEATS = 5


def tokens(tokenizer: Tokenizer, name: str, length: int) -> list[int]:
    """A row of so many tokens."""
    text = ROWS[name] * length
    if name == "one 👍":
        text = text[: length // 2] + "👍" + text[length // 2 :]
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text[:length])
    return [tokenizer.token_to_id(letter) for piece, _ in pieces for letter in piece][:length]


def main() -> None:
    """A line a length, with the ratio to the row without a split character."""
    options = argparse.ArgumentParser()
    options.add_argument("lengths", nargs="*", type=int, default=[500, 1000, 2000, 4000, 8000])
    chosen = options.parse_args()
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(letters)}))
    tokenizer.decoder = decoders.ByteLevel()
    for length in chosen.lengths:
        rows = {name: tokens(tokenizer, name, length) for name in ROWS}
        table = PieceTable(tokenizer.decode)
        table.text_and_spans(list(rows.values()))
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(REPEATS):
            for name, row in rows.items():
                started = time.process_time()
                table.text_and_spans([row])
                times[name].append(time.process_time() - started)
        found = {name: statistics.median(values) for name, values in times.items()}
        columns = [
            f"{name} {value * 1e3:8.2f} ms (x{value / found['ASCII']:.1f})"
            for name, value in found.items()
        ]
        print(f"{length:6} tokens: " + "   ".join(columns))


if __name__ == "__main__":
    main()
