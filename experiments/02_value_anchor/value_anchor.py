"""What does SAPO's value anchor do? Exact values on synthetic completions; nothing is trained.

    python experiments/02_value_anchor/value_anchor.py [--output DIR] [--seeds N]

Writes results.csv and value_anchor.png, prints the tables of README.md. Letters as in
``segcredit.types``; ``N`` is T + 1, the states before each token and after the last.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from torch import Tensor, nn

from segcredit import (
    AdvantageScheme,
    Anchor,
    RolloutBatch,
    Segmentation,
    Segmenter,
    ValueEstimator,
    registry,
    top_fraction,
)
from segcredit.objective.returns import advantages, segment_values, token_rewards
from segcredit.study.plots import PALETTE
from segcredit.study.statistics import bootstrap_interval
from segcredit.testing import ToySimulator, make_rollouts
from segcredit.types import Advantages

HERE = Path(__file__).parent
ANCHORS: tuple[Anchor, ...] = ("start", "last_token")
FORK_SHARES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)
LAMBDAS = (0.0, 0.95, 0.99, 1.0)
TOP_FRACTION = 0.3
GROUP = 8
LENGTHS = (80, 120)
SPREAD = 0.3
"""Standard deviation of the whole change of a Gaussian value, in reward units; no number here
but the sum's depends on it."""
LUCK = 0.25
"""Latent variance that no token of a bounded completion settles, against 1 that tokens settle."""
SETTINGS = {
    "gaussian": ("gaussian", False),
    "bounded": ("bounded", False),
    "bounded, reward drawn": ("bounded", True),
}
"""Name -> the kind of value, and whether the reward is a 0/1 draw of the final value."""
KEYS = ["setting", "fork_share", "subject", "lam", "metric"]

# Six tokens, segments {1,2,3} and {4,5,6}: the value before each token, then the reward.
WORKED = {
    "(a) jump inside segment 2": ([0.5, 0.5, 0.5, 0.5, 0.5, 0.9], 1.0),
    "(b) jump inside segment 1": ([0.5, 0.9, 0.9, 0.9, 0.9, 0.9], 0.9),
}
TRACE_FORKS = (2, 6, 9, 13, 16, 19)
TRACE_JUMPS = {1: 0.2, 6: 0.2, 11: -0.3, 18: 0.3}
TRACE_TOKENS = 20


@dataclass(frozen=True, slots=True)
class World:
    """Completions whose exact values are known."""

    rollouts: RolloutBatch
    """With ``token_values``, the exact value before each token."""
    segmentation: Segmentation
    changes_BT: Tensor
    """What each token truly changed: exact value after it less exact value before it."""
    credit_BS: Tensor
    """What each segment truly changed: the sum of its tokens' changes."""
    fork_share: float
    """The measured share of squared value changes that lies on fork tokens."""


class ExactValues(nn.Module):
    """Stands where a critic's network does, and is right."""

    def forward(self, rollouts: RolloutBatch, scores: object = None) -> Tensor:
        """(B,T) the value before each token."""
        if rollouts.token_values is None:
            raise ValueError("The rollouts have no token_values; expected those of a World.")
        return rollouts.token_values


def credit_of(world: World, anchor: Anchor, scheme: AdvantageScheme) -> Advantages:
    """Advantages as the loop computes them, from exact values read at the anchor."""
    values_BS = critic_of(anchor).estimate(
        ExactValues(), world.rollouts, world.segmentation, ToySimulator()
    )
    values = segment_values(world.rollouts, world.segmentation, values_BS)
    return advantages(world.segmentation, values, scheme(values))


# Built once: a look-up in the registry reads the entry points of every installed package.
@functools.cache
def critic_of(anchor: Anchor) -> ValueEstimator:
    """The plug-in ``critic``, which reads the value at the anchor."""
    return registry.estimators.build("critic", anchor=anchor)


@functools.cache
def scheme_of(lam: float, *, whitened: bool = False) -> AdvantageScheme:
    """``td`` or ``gae``, plain as in the paper or whitened and clamped as in the release."""
    plain: dict[str, Any] = {"name": "gae", "lam": lam} if lam else {"name": "td"}
    if whitened:
        return registry.advantages.build("whitened", inner=plain, clamp=5.0)
    return registry.advantages.from_table(plain)


# ---- synthetic completions ----------------------------------------------------------------------


def make_world(kind: str, drawn: bool, fork_share: float, *, seed: int, prompts: int = 64) -> World:
    """Random completions, a martingale of exact values on each, cut by the plug-in ``entropy``.

    Args:
        kind: ``gaussian`` or ``bounded``.
        drawn: the reward is a 0/1 draw of the value after the last token, not that value.
        fork_share: of the variance of value changes, on the tokens of the highest entropies.
        seed: the same seed gives the same lengths, forks and normal draws for every share.
        prompts: each with ``GROUP`` completions and one value before them.
    """
    source = np.random.default_rng(seed)
    lengths = source.integers(LENGTHS[0], LENGTHS[1] + 1, size=prompts * GROUP)
    texts = ["a" * (int(length) - 1) for length in lengths]
    rollouts = make_rollouts(texts, group_size=GROUP, seed=seed, dtype=torch.float64)
    mask_BT = rollouts.action_mask
    forks_BT = top_fraction(rollouts.entropies, mask_BT, TOP_FRACTION)
    variance_BT = _variances(forks_BT, mask_BT, fork_share)
    starts_B = np.repeat(source.uniform(0.1, 0.9, size=prompts), GROUP)
    normal_BT = torch.from_numpy(source.standard_normal(mask_BT.shape))
    walk = _gaussian_values if kind == "gaussian" else _bounded_values
    values_BN = walk(torch.from_numpy(starts_B), normal_BT * variance_BT.sqrt(), variance_BT)
    luck_B = torch.from_numpy(source.uniform(size=len(texts)))
    final_B = values_BN[:, -1]
    rewards_B = (luck_B < final_B).to(final_B.dtype) if drawn else final_B
    return world_of(rollouts, values_BN, rewards_B, forks_BT)


def _variances(forks_BT: Tensor, mask_BT: Tensor, fork_share: float) -> Tensor:
    """(B,T) of each token's latent change; a row sums to 1, its forks to ``fork_share``."""
    others_BT = mask_BT & ~forks_BT
    fork_B1 = fork_share / forks_BT.sum(1, keepdim=True)
    other_B1 = (1 - fork_share) / others_BT.sum(1, keepdim=True)
    return forks_BT * fork_B1 + others_BT * other_B1


def _gaussian_values(starts_B: Tensor, changes_BT: Tensor, variance_BT: Tensor) -> Tensor:
    """(B,N) a random walk with normal steps, which may leave [0,1]."""
    return starts_B[:, None] + SPREAD * _before(changes_BT)


def _bounded_values(starts_B: Tensor, changes_BT: Tensor, variance_BT: Tensor) -> Tensor:
    """(B,N) P(x + luck > 0 | tokens so far), for a latent normal walk x: in (0,1), no drift."""
    normal = torch.special.ndtr, torch.special.ndtri
    latent_B1 = normal[1](starts_B)[:, None] * math.sqrt(1 + LUCK)
    unsettled_BN = 1 + LUCK - _before(variance_BT)
    return normal[0]((latent_B1 + _before(changes_BT)) / unsettled_BN.sqrt())


def _before(x_BT: Tensor) -> Tensor:
    """(B,N) the sum over the tokens before each state."""
    return torch.cat([torch.zeros_like(x_BT[:, :1]), x_BT.cumsum(1)], dim=1)


@functools.cache
def segmenter() -> Segmenter:
    """The plug-in ``entropy``."""
    return registry.segmenters.build("entropy", top_fraction=TOP_FRACTION)


def world_of(
    rollouts: RolloutBatch, values_BN: Tensor, rewards_B: Tensor, forks_BT: Tensor
) -> World:
    """Join rollouts with exact values and rewards; beyond a row's end the value stays."""
    changes_BT = values_BN.diff(dim=1)
    mask_BT = rollouts.action_mask
    rollouts = rollouts.replace(
        token_values=values_BN[:, :-1],
        rewards=rewards_B,
        token_rewards=token_rewards(rewards_B, mask_BT),
    )
    segmentation = segmenter().segment(rollouts)
    squares_BT = changes_BT.square() * mask_BT
    share = float((squares_BT * forks_BT).sum() / squares_BT.sum())
    credit_BS = segmentation.reduce(changes_BT, "sum")
    return World(rollouts, segmentation, changes_BT, credit_BS, share)


def completion(values: Sequence[float], reward: float, forks: Sequence[int]) -> World:
    """One completion with given values before its tokens; ``forks`` have the highest entropies."""
    rollouts = make_rollouts(["a" * (len(values) - 1)], dtype=torch.float64)
    forks_BT = torch.zeros_like(rollouts.action_mask)
    forks_BT[0, list(forks)] = True
    rollouts = rollouts.replace(entropies=forks_BT.to(rollouts.entropies))
    values_BN = torch.tensor([[*values, reward]], dtype=torch.float64)
    return world_of(rollouts, values_BN, values_BN[:, -1], forks_BT)


# ---- measures ---------------------------------------------------------------------------------


def quality(world: World, found: Advantages) -> dict[str, float]:
    """How advantages agree with true credit; every token counts the same unless named so.

    A share is a slope: what a unit of credit adds to an advantage. ``own_share`` to that of its
    own segment, ``previous_share`` to that of the segment before; ``inner_token_share`` and
    ``ending_token_share`` what a unit changed by one token adds to that token's own advantage,
    for tokens inside segments and for those that end one. Signs are compared where the credit is
    not 0. ``correlation_within`` is the mean over completions of each one's own.
    """
    cut = world.segmentation
    inner_BT, changes_BT = cut.action_mask & ~cut.ends, world.changes_BT
    own_BT = cut.spread(world.credit_BS)
    paid, own = _pair(found.per_token, own_BT, cut.action_mask)
    correlation = _correlation(paid, own)
    return {
        "correlation": correlation,
        "explained": correlation**2,
        "correlation_within": _correlation_within(found.per_token, own_BT, cut.action_mask),
        "correlation_segments": _correlation(*_pair(found.per_segment, world.credit_BS, cut.mask)),
        "sign_agreement": _sign_agreement(paid, own),
        "own_share": _slope(paid, own),
        "inner_token_share": _slope(*_pair(found.per_token, changes_BT, inner_BT)),
        "ending_token_share": _slope(*_pair(found.per_token, changes_BT, cut.ends)),
        **_misplaced(world, found),
    }


def _misplaced(world: World, found: Advantages) -> dict[str, float]:
    """How the credit of the segment after is found in each segment's advantage, over tokens."""
    cut = world.segmentation
    next_BS = torch.cat([world.credit_BS[:, 1:], torch.zeros_like(world.credit_BS[:, :1])], dim=1)
    followed_BS = torch.cat([cut.mask[:, 1:], torch.zeros_like(cut.mask[:, :1])], dim=1)
    followed_BT = cut.spread(followed_BS.long()).bool()
    before, following = _pair(found.per_token, cut.spread(next_BS), followed_BT)
    return {
        "previous_share": _slope(before, following),
        "previous_correlation": _correlation(before, following),
    }


def conservation(world: World, found: Advantages) -> dict[str, float]:
    """How far Σ A is from R − V before the completion; meant for λ = 0, where Σ A is Σ δ.

    ``sum_gap`` is the mean absolute difference in reward units, ``lost`` its squares' share of
    the squares of what the completions changed in all.
    """
    whole_B = world.rollouts.rewards - ExactValues()(world.rollouts)[:, 0]
    gap_B = whole_B - found.per_segment.sum(1)
    lost = gap_B.square().sum() / world.credit_BS.sum(1).square().sum()
    return {"sum_gap": float(gap_B.abs().mean()), "lost": float(lost)}


def likeness(world: World, found: Advantages, other: Advantages) -> dict[str, float]:
    """How two choices of advantages agree with each other, over tokens.

    ``correlation`` is over all tokens of all completions, ``correlation_within`` the mean over
    completions of each one's own: it leaves out how good a completion was as a whole.
    """
    pair_BT = found.per_token, other.per_token, world.segmentation.action_mask
    mine, others = _pair(*pair_BT)
    return {
        "correlation": _correlation(mine, others),
        "correlation_within": _correlation_within(*pair_BT),
        "sign_agreement": _sign_agreement(mine, others),
        "scale": float(np.sqrt(np.square(mine).mean() / np.square(others).mean())),
        "clamped": float((np.abs(mine) == 5.0).mean()),
    }


def _pair(x: Tensor, y: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x[mask].numpy(), y[mask].numpy()


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _correlation_within(x_BT: Tensor, y_BT: Tensor, mask_BT: Tensor) -> float:
    x_BT, y_BT = _centred(x_BT, mask_BT), _centred(y_BT, mask_BT)
    norms_B = (x_BT.square().sum(1) * y_BT.square().sum(1)).sqrt()
    return float(((x_BT * y_BT).sum(1) / norms_B).mean())


def _centred(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Less its row's mean, 0 outside the mask."""
    means_B1 = (x_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True)
    return (x_BT - means_B1) * mask_BT


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of x on y; NaN where y never varies."""
    return float(np.cov(x, y)[0, 1] / y.var(ddof=1)) if y.any() else math.nan


def _sign_agreement(x: np.ndarray, y: np.ndarray) -> float:
    """Where y is not 0."""
    return float((np.sign(x) == np.sign(y))[y != 0].mean())


# ---- the study --------------------------------------------------------------------------------


def study(seeds: int, prompts: int = 64) -> pd.DataFrame:
    """Every measure of every cell: mean over seeds with a 95 % bootstrap interval."""
    rows = [
        {"setting": setting, "fork_share": share, "seed": seed, **row}
        for setting, (kind, drawn) in SETTINGS.items()
        for share in FORK_SHARES
        for seed in range(seeds)
        for row in measure(make_world(kind, drawn, share, seed=seed, prompts=prompts))
    ]
    return summarise(pd.DataFrame(rows))


def measure(world: World) -> Iterator[dict[str, Any]]:
    """One row a measured number: subject, lam, metric, value."""
    yield from _rows("the values", math.nan, {"measured_fork_share": world.fork_share})
    for lam in LAMBDAS:
        start, last = (credit_of(world, anchor, scheme_of(lam)) for anchor in ANCHORS)
        for anchor, found in zip(ANCHORS, (start, last), strict=True):
            yield from _rows(anchor, lam, quality(world, found))
            if not lam:
                yield from _rows(anchor, lam, conservation(world, found))
        yield from _rows("last_token against start", lam, likeness(world, last, start))
    yield from _methods(world)


def _methods(world: World) -> Iterator[dict[str, Any]]:
    """The released method's advantages against the paper's, whole and one difference at a time."""
    paper = credit_of(world, "start", scheme_of(0.99))
    whitened = credit_of(world, "start", scheme_of(0.99, whitened=True))
    released = credit_of(world, "last_token", scheme_of(0.99, whitened=True))
    yield from _rows("sapo", 0.99, quality(world, paper))
    yield from _rows("sapo_released", 0.99, quality(world, released))
    yield from _rows("sapo_released against sapo", 0.99, likeness(world, released, paper))
    yield from _rows("sapo whitened against sapo", 0.99, likeness(world, whitened, paper))


def _rows(subject: str, lam: float, measured: dict[str, float]) -> Iterator[dict[str, Any]]:
    for metric, value in measured.items():
        yield {"subject": subject, "lam": lam, "metric": metric, "value": value}


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and metric: mean, low and high over seeds."""
    table = []
    for keys, group in rows.groupby(KEYS, sort=False, dropna=False):
        low, high = bootstrap_interval(group["value"], resamples=2000)
        mean = group["value"].mean()
        numbers = {"mean": mean, "low": low, "high": high, "seeds": len(group)}
        table.append({**dict(zip(KEYS, keys, strict=True)), **numbers})
    # -0.0 and 1e-17 are the same finding.
    return pd.DataFrame(table).round({"mean": 4, "low": 4, "high": 4}).replace(-0.0, 0.0)


# ---- tables -----------------------------------------------------------------------------------


def worked_examples() -> pd.DataFrame:
    """The two completions of the notes by hand: V at the anchors, advantages at λ = 0 and 1."""
    rows = []
    for case, (values, reward) in WORKED.items():
        world = completion(values, reward, forks=(2, 5))
        for anchor in ANCHORS:
            by_lambda = {
                f"A, λ = {lam:g}": credit_of(world, anchor, scheme_of(lam)) for lam in (0.0, 1.0)
            }
            anchors_BS = world.segmentation.anchors(anchor)
            anchored_BS = ExactValues()(world.rollouts).gather(1, anchors_BS)
            shown = {name: _listed(found.per_segment) for name, found in by_lambda.items()}
            truth = {"true credit": _listed(world.credit_BS)}
            rows.append(
                {"case": case, "anchor": anchor, "V": _listed(anchored_BS), **shown} | truth
            )
    return pd.DataFrame(rows)


def _listed(x_BS: Tensor) -> str:
    numbers = [f"{abs(round(x, 9)) if abs(x) < 1e-9 else round(x, 9):g}" for x in x_BS[0].tolist()]
    return f"({', '.join(numbers)})"


def one_step_table(results: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The anchor ``last_token`` at λ = 0, where ``start`` is exact."""
    rows = results[(results["setting"] == setting) & (results["lam"] == 0)]
    rows = rows[rows["subject"] == "last_token"]
    metrics = {
        "correlation": "correlation",
        "correlation_segments": "the same, a segment counting once",
        "sign_agreement": "sign agreement",
        "own_share": "paid to its own segment",
        "previous_share": "paid to the segment before",
        "lost": "lost with segment 1",
    }
    return _pivot(rows, "metric", metrics)


def lambda_table(results: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Correlation with true credit for each λ > 0 and anchor."""
    rows = results[(results["setting"] == setting) & (results["metric"] == "correlation")]
    names = rows["subject"] + rows["lam"].map(", λ = {:g}".format)
    wanted = [f"{anchor}, λ = {lam:g}" for lam in LAMBDAS[1:] for anchor in ANCHORS]
    return _pivot(rows.assign(name=names), "name", {name: name for name in wanted})


def learning_table(results: pd.DataFrame, setting: str, lam: float = 0.99) -> pd.DataFrame:
    """What reaches the tokens that earned it, and how alike the anchors are all the same."""
    rows = results[(results["setting"] == setting) & (results["lam"] == lam)]
    metrics = {
        (anchor, f"{kind}_token_share"): f"{anchor}: {kind} tokens"
        for kind in ("ending", "inner")
        for anchor in ANCHORS
    }
    metrics |= {
        ("last_token against start", "correlation"): "the anchors' correlation",
        ("last_token against start", "correlation_within"): "the same within completions",
    }
    return _pivot(_named(rows), "name", metrics)


def settings_table(results: pd.DataFrame) -> pd.DataFrame:
    """The correlation of ``last_token`` at λ = 0 in each setting, beside the closed form."""
    rows = results[(results["subject"] == "last_token") & (results["lam"] == 0)]
    rows = rows.assign(name=list(zip(rows["setting"], rows["metric"], strict=True)))
    wanted = {(setting, "correlation"): setting for setting in SETTINGS}
    wanted[("gaussian", "correlation_within")] = "gaussian, mean within completions"
    table = _pivot(rows, "name", wanted)
    table.insert(1, "f / √(2 − f)", [f"{closed_form(f):.3f}" for f in table.iloc[:, 0]])
    return table


def closed_form(fork_share: float) -> float:
    """The token-weighted correlation of ``last_token`` with true credit at λ = 0.

    For long completions, independent changes and forks at random places: a segment is credited
    F + I (its fork, its inside) and paid F + I', the inside of the next one. Long segments have
    more inside; weighed by tokens, which is again by length, E[I²] doubles and E[I'²] does not.
    """
    return fork_share / math.sqrt(2 - fork_share)


def methods_table(results: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Paper against release."""
    rows = results[results["setting"] == setting]
    metrics = {
        ("sapo", "correlation"): "`sapo` with truth",
        ("sapo_released", "correlation"): "`sapo_released` with truth",
        ("sapo_released against sapo", "correlation"): "the two with each other",
        ("sapo_released against sapo", "correlation_within"): "the same within completions",
        ("sapo_released against sapo", "sign_agreement"): "their signs agree",
        ("sapo whitened against sapo", "sign_agreement"): "signs agree, whitening alone",
        ("sapo_released against sapo", "scale"): "size, released / paper",
        ("sapo_released against sapo", "clamped"): "tokens clamped",
    }
    return _pivot(_named(rows), "name", metrics)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """With a column of (subject, metric)."""
    return rows.assign(name=list(zip(rows["subject"], rows["metric"], strict=True)))


def _pivot(rows: pd.DataFrame, column: str, wanted: dict[Any, str]) -> pd.DataFrame:
    """A row a fork share, a column a wanted name, in the order given; cells with intervals."""
    cells = rows.assign(cell=[_cell(*row) for row in rows[["mean", "low", "high"]].to_numpy()])
    table = cells[cells[column].isin(wanted)].pivot(
        index="fork_share", columns=column, values="cell"
    )
    table = table[list(wanted)].set_axis(list(wanted.values()), axis=1)
    return table.sort_index(ascending=False).reset_index(names="share on forks")


def _cell(mean: float, low: float, high: float) -> str:
    if math.isnan(mean):
        return "–"
    # The second zero turns -0.000 into 0.000.
    shown = [f"{round(x, 3) + 0.0:.3f}" for x in (mean, low, high)]
    return shown[0] if low == high else f"{shown[0]} ({shown[1]} to {shown[2]})"


def markdown(table: pd.DataFrame) -> str:
    """As a Markdown table."""
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- the picture ------------------------------------------------------------------------------


def draw(results: pd.DataFrame, path: Path, setting: str = "bounded") -> None:
    """Correlation against fork share on the left, one completion on the right."""
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10.5, 4.6), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
        _draw_correlations(left.add_subplot(), results[results["setting"] == setting])
        above, below = right.subplots(2, 1, sharex=True)
        _draw_completion(above, below)
        figure.savefig(path, format="png", dpi=100, metadata={})


def _draw_correlations(axes: Axes, results: pd.DataFrame) -> None:
    rows = results[results["metric"] == "correlation"]
    for lam, line in zip(LAMBDAS, ("-", "--", "-.", ":"), strict=True):
        for anchor, colour in zip(ANCHORS, PALETTE, strict=False):
            cell = rows[(rows["subject"] == anchor) & (rows["lam"] == lam)]
            cell = cell.sort_values("fork_share")
            label = f"{anchor}, λ = {lam:g}"
            share = cell["fork_share"]
            axes.plot(share, cell["mean"], line, color=colour, label=label)
            axes.fill_between(share, cell["low"], cell["high"], color=colour, alpha=0.2)
    axes.set(
        xlabel="share of value variance on fork tokens",
        ylabel="correlation of advantage with true credit",
        ylim=(-0.05, 1.05),
        title="Agreement with true credit, token-weighted",
    )
    # Long enough to tell the dashes apart; below the line at 1.
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.95)}
    axes.legend(frameon=False, fontsize=8, handlelength=4.5, **place)


def _draw_completion(above: Axes, below: Axes) -> None:
    """Value, segments and both anchors' advantages at λ = 0 of one made-up completion."""
    world = trace()
    values_T = ExactValues()(world.rollouts)[0]
    states = np.arange(TRACE_TOKENS + 1)
    path = [*values_T.tolist(), float(world.rollouts.rewards[0])]
    above.plot(states, path, color="black", marker=".", label="exact value V")
    looks = (("start", PALETTE[0], "o", "-", -0.05), ("last_token", PALETTE[1], "s", "--", 0.05))
    for anchor, colour, marker, line, offset in looks:
        places = world.segmentation.anchors(anchor)[0]
        label = f"where anchor {anchor} reads V"
        above.plot(places, values_T[places] + offset, marker, color=colour, label=label)
        paid = credit_of(world, anchor, scheme_of(0.0)).per_token[0].tolist()
        look = {"color": colour, "linestyle": line, "linewidth": 2}
        below.step(states, [*paid, paid[-1]], where="post", label=anchor, **look)
    forks = np.asarray(TRACE_FORKS) + 0.5
    label = "fork, the segment's last token"
    above.plot(forks, np.full(len(forks), 0.22), "^", color="0.4", label=label)
    _finish(world, above, below)


def _finish(world: World, above: Axes, below: Axes) -> None:
    """Segments as grey bands, labels, limits."""
    starts = [*world.segmentation.anchors("start")[0].tolist(), TRACE_TOKENS]
    for axes in (above, below):
        for low, high in zip(starts[::2], starts[1::2], strict=False):
            axes.axvspan(low, high, color="0.93", zorder=0)
        axes.xaxis.set_major_locator(MultipleLocator(2))
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2, columnspacing=1)
    above.set(
        ylabel="value", ylim=(0.15, 1.2), title="One completion, λ = 0; segments grey and white"
    )
    below.set(xlabel="tokens so far", ylabel="advantage", ylim=(-0.4, 0.55), xlim=(-0.3, 20.3))
    below.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    # Each remark stands where last_token pays something else than start, which pays the truth.
    for x, y, remark in ((1.5, -0.1, "lost"), (8.5, -0.37, "too early"), (15.5, 0.33, "too early")):
        below.text(x, y, remark, ha="center", fontsize=8)


def trace() -> World:
    """A completion of 20 tokens with a jump on a fork and three inside segments."""
    values = [
        0.4 + sum(v for t, v in TRACE_JUMPS.items() if t < n) for n in range(TRACE_TOKENS + 1)
    ]
    return completion(values[:-1], values[-1], TRACE_FORKS)


def tables(results: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Those of README.md."""
    bounded, drawn = "bounded", "bounded, reward drawn"
    yield "Worked examples", worked_examples()
    yield f"`last_token` at λ = 0, {bounded}", one_step_table(results, bounded)
    yield "Correlation of `last_token` at λ = 0 by setting", settings_table(results)
    yield f"Correlation with true credit at λ > 0, {bounded}", lambda_table(results, bounded)
    yield f"Own change in a token's advantage, λ = .99, {bounded}", learning_table(results, bounded)
    yield f"`sapo_released` against `sapo`, {drawn}", methods_table(results, drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, write the two files, print the tables."""
    parser = argparse.ArgumentParser(description="What does SAPO's value anchor do?")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--seeds", type=int, default=20, help="independent repetitions")
    parser.add_argument("--prompts", type=int, default=64, help=f"each with {GROUP} completions")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = study(options.seeds, options.prompts)
    results.to_csv(options.output / "results.csv", index=False)
    draw(results, options.output / "value_anchor.png")
    for title, table in tables(results):
        print(f"\n**{title}**\n\n{markdown(table)}")
    print(f"\n{time.process_time():.0f} CPU-seconds, start of Python included")


if __name__ == "__main__":
    main()
