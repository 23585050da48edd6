"""Draws the pictures of the README and of "One step in pictures": an audit and a training step.

    python docs/pictures.py         # docs/pictures/*.png; two minutes on one core

All is what commands leave behind: the audit's truth and credit, and the step's tables.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from segcredit.study.report.audit_completions import moving_rows

import segcredit
from segcredit.credit_audit import Audit, load_audit
from segcredit.credit_audit.table import JUDGES
from segcredit.objective import Clip
from segcredit.study.plots import PAGE, completion_credit, save
from segcredit.study.plots.completion_credit import shown_token
from segcredit.study.plots.sheet import sheet

FOLDER = Path(__file__).with_name("pictures")
POLICY = {"sampler": "lean", "task": {"name": "arithmetic", "filler": True}}
THREE = {"whole": "one segment", "newline": "each line", "per_token": "each token"}
AUDIT = POLICY | {
    "method": "segment_td",
    "estimator": "measured",
    "audit": {
        "segmenters": [*THREE],
        "estimators": ["measured"],
        "advantages": ["td"],
        "prompts": 8,
        "completions": 4,
        "continuations": 8,
        "gradient_samples": 0,
    },
}
STEP = POLICY | {
    "method": "sapo",
    "segmenter": "newline",
    "estimator": {"name": "monte_carlo", "continuations": 64},
    "advantage": "td",
    "rollouts": {"prompts": 8},
    "evaluate": {"prompts": 8},
    "train": {"steps": 1},
    "record": {"tokens": True},
}
GREYS = ("0.55", "0.82")


def three_ways(audit: Audit) -> None:
    """Draws one completion, cut three ways, with its credit beside the true advantages."""
    truth = audit.truth
    values_BHE = truth.values[:, list(JUDGES)].numpy()
    rewards_B = truth.rollouts.rewards.double().numpy()
    row = moving_rows(values_BHE, rewards_B)[0]
    tokens = int(truth.rollouts.action_mask[row].sum())
    spans = truth.rollouts.token_spans[row, :tokens].tolist()
    asked = truth.prompts[int(truth.prompt_numbers[row])].text.strip()
    names = {found: THREE[found.segmenter] for found in audit.credits}
    figure = completion_credit(
        [truth.rollouts.texts[row][first:beyond] for first, beyond in spans],
        values_BHE[row, :, : tokens + 1],
        truth.errors[row, list(JUDGES), : tokens + 1].numpy(),
        {name: found.segment_ids[row, :tokens] for found, name in names.items()},
        {name: {"credit": found.advantages["td"][row, :tokens]} for found, name in names.items()},
        title=f"One completion of {asked} cut three ways, and the credit of its tokens",
        width=PAGE,
    )
    figure.set_dpi(160)
    save(figure, FOLDER / "three_ways.png")


def one_step(runs: Any) -> None:
    """Draws a picture for each stage of the step, of a completion with credit of both signs."""
    segments, tokens = runs.segments, runs.tokens
    key = ["prompt", "completion"]
    spread = segments.groupby(key, observed=True)["advantage"].agg(["min", "max"])
    chosen = (spread["max"].clip(upper=-spread["min"])).idxmax()
    segments, tokens = (
        table.set_index(key).loc[[chosen]].reset_index(drop=True) for table in (segments, tokens)
    )
    of_token = segments.set_index("segment").loc[tokens["segment"]]
    ratio_T = of_token["ratio"].to_numpy()
    advantage_T = tokens["advantage"].to_numpy()
    ratio_1T, advantage_1T = (torch.tensor(x_T)[None].float() for x_T in (ratio_T, advantage_T))
    # The ratio is the segment's, so that nothing asks for a token's own.
    loss_T = Clip(0.2, 0.2)(ratio_1T, ratio_1T.log(), advantage_1T, ratio_1T.log()).loss[0].numpy()
    starts = [*np.flatnonzero(np.diff(tokens["segment"], prepend=-1)), len(tokens)]

    def steps(x_T: ArrayLike, zero: float = 0.0) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.stairs(
                np.asarray(x_T), np.arange(len(tokens) + 1), baseline=zero, fill=True, color="0.72"
            )
            axes.stairs(np.asarray(x_T), np.arange(len(tokens) + 1), baseline=None, color="black")
            axes.axhline(zero, color="0.4", linewidth=0.5)

        return draw

    def strip(axes: Axes) -> None:
        pieces = list(itertools.pairwise(starts))
        shades = [GREYS[n % 2] for n in range(len(pieces))]
        axes.broken_barh([(a, b - a) for a, b in pieces], (0, 1), facecolors=shades)
        axes.set_yticks([])

    stages: Mapping[str, tuple[str, Callable[[Axes], None]]] = {
        "1_sample": ("entropy (nats)", steps(tokens["entropy"])),
        "2_segment": ("segments", strip),
        "3_value": ("value", steps(of_token["value"])),
        "4_advantage": ("advantage", steps(advantage_T)),
        "5_ratio": ("ratio", steps(ratio_T, 1.0)),
        "6_loss": ("loss", steps(loss_T)),
    }
    texts = [str(text) for text in tokens["text"]]
    for name, (said, draw) in stages.items():
        with sheet(PAGE, 1.3 if name != "2_segment" else 0.8, "a step") as page:
            (axes,) = page.panels(1)
            draw(axes)
            axes.set_xlim(0, len(tokens))
            axes.set_ylabel(said, size="small")
            for start in starts:
                axes.axvline(start, color="0.6", linewidth=0.5, linestyle=":")
            axes.set_xticks(np.arange(len(tokens)) + 0.5, [shown_token(text) for text in texts])
            page.finish("", "")
            below, height = axes.get_position().y0, axes.get_position().height
            axes.set_position((0.08, below, 0.915, height))  # the same in all
        page.figure.set_dpi(160)
        save(page.figure, FOLDER / f"step_{name}.png")


def main() -> None:
    """Runs the audit and the step, and draws."""
    with tempfile.TemporaryDirectory() as scratch:
        segcredit.audit(AUDIT, Path(scratch) / "audit")
        three_ways(load_audit(Path(scratch) / "audit"))
        segcredit.train(segcredit.load_config(STEP), Path(scratch) / "run")
        one_step(segcredit.read_runs(Path(scratch) / "run"))


if __name__ == "__main__":
    main()
