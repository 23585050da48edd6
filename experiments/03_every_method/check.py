"""Does every run of the grid hold finite numbers, and what did it cost? Prints a Markdown table.

python experiments/03_every_method/check.py runs/03_every_method
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

import segcredit

METRICS = ["reward", "loss", "gradient_norm", "entropy", "kl", "ratio_max", "clip_fraction"]


def table(path: str) -> pd.DataFrame:
    """A row a method: whether all its metrics and advantages are finite, and the last step's."""
    runs = segcredit.read_runs(path)
    names = runs.runs[["run", "method", "status"]]
    steps = runs.steps.merge(names, on="run").query("step > 0")
    segments = runs.segments.merge(names, on="run").set_index("method")
    finite = np.isfinite(steps.set_index("method")[METRICS]).all(axis=1).groupby("method").all()
    credit = np.isfinite(segments.advantage).groupby("method").all()
    last = steps.sort_values("step").groupby("method").last()
    first = steps.sort_values("step").groupby("method").first()
    # Without the first step, which has the warm-up of critics and of libraries.
    own = (last.cpu_seconds - first.cpu_seconds) / (last.step - first.step)
    return pd.DataFrame(
        {
            "status": last.status,
            "finite": finite & credit,
            "segments a completion": last.segments_per_completion.round(1),
            "share of tokens in the loss": last.loss_tokens.round(2),
            "clipped": last.clip_fraction.round(3),
            "largest ratio": last.ratio_max.round(2),
            "tokens sampled": last.tokens_sampled.astype(int),
            "of them for values": last.tokens_simulated.astype(int),
            "CPU-s": last.cpu_seconds.round(1),
            "CPU-s a step, grpo's = 1": (own / own.get("grpo", np.nan)).round(2),
        }
    )


if __name__ == "__main__":
    found = table(sys.argv[1])
    print(found.reset_index().to_markdown(index=False))
    sys.exit(0 if found.finite.all() and (found.status == "finished").all() else 1)
