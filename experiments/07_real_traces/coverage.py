"""Do the intervals of anchors.py hold, on traces of so few problems? Random boundaries know: 1.

    python experiments/07_real_traces/coverage.py TRACES

Sentences drawn at random have the ratio 1 to chance. Draws many such definitions, and counts how
often each kind of interval holds it, and how far their ratios lie apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from thought_anchors import budgets as budgets
from thought_anchors.metric_rows import FORKS, AnchorMetrics
from thought_anchors.traces import load_anchors

DRAWS = 400


def main(path: Path) -> None:
    """A row for each share of the sentences and fork."""
    metrics = AnchorMetrics(load_anchors(path))
    generator = np.random.default_rng(0)
    for fraction in (0.1, 0.2, 0.5):
        for fork in FORKS:
            counts_B = budgets.budget(metrics.truth, fraction, fork=fork)
            rows = []
            for _ in range(DRAWS):
                noise_BT = generator.random(metrics.truth.mask.shape)
                marks_BT = budgets.strongest(metrics.truth, noise_BT, counts_B, fork=fork)
                rows.append(metrics.ratio("random", marks_BT, fork))
            found = pd.DataFrame(rows)
            held = {
                "problems": float(((found.low <= 1) & (found.high >= 1)).mean()),
                "traces": float(((found.low_traces <= 1) & (found.high_traces >= 1)).mean()),
                "ratios": found.value.quantile([0.025, 0.975]).round(2).tolist(),
            }
            print(fraction, fork, held, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
