"""The audit's metrics: against slow loops written from docs/explain/audit.md, and controls."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit.credit_audit.metric_list import METRICS
from segcredit.credit_audit.metrics import (
    Credit,
    Resampling,
    Scores,
    Truth,
    baseline_bias,
    boundary_ratio,
    correlation,
    credit_noise,
    credit_noise_ratio,
    difference,
    estimate,
    gradient_metrics,
    jump_agreement,
    lift,
    mass_error,
    mass_kept,
    noise,
    oracle_ids,
    oracle_share,
    random_share_on_boundaries,
    random_share_within,
    share_by_class,
    share_on_boundaries,
    share_within,
    sharpening,
    sign_agreement,
    sign_ceiling,
    slope,
    true_noise_ratio,
    value_consistency,
    value_metrics,
)
from segcredit.credit_audit.metrics.estimates import quotient
from segcredit.credit_audit.metrics.moments import ids_from, segment_gains, square
from segcredit.credit_audit.truth import exact_truth
from segcredit.errors import StudyError
from segcredit.testing.toy import ToySimulator

WIDTH = 7


def make_truth(
    seed: int = 0, *, rows: int = 12, splits: int = 3, spread: float = 0.2, resamples: int = 200
) -> Truth:
    """Ragged completions, one of them empty, three a prompt, with noise in every split."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, WIDTH + 1, size=rows)
    lengths[3] = 0
    mask = np.arange(WIDTH) < lengths[:, None]
    exact = 0.5 + generator.normal(0, 0.2, (rows, WIDTH + 1)).cumsum(1)
    rewards = exact[np.arange(rows), lengths]
    values = exact[:, None] + generator.normal(0, spread, (rows, splits, WIDTH + 1))
    values[np.arange(rows), :, lengths] = rewards[:, None]
    values[np.broadcast_to(np.arange(WIDTH + 1) > lengths[:, None, None], values.shape)] = np.nan
    prompts = np.arange(rows) // 3
    return Truth(values, mask, prompts, rewards, resampling=Resampling(resamples=resamples))


def make_ids(truth: Truth, seed: int = 0) -> np.ndarray:
    """Cuts at random."""
    return ids_from(truth, np.random.default_rng(seed).random(truth.mask.shape) < 0.4, "end")


def per_token(truth: Truth) -> np.ndarray:
    return np.where(truth.mask, np.arange(WIDTH), -1)


def whole(truth: Truth) -> np.ndarray:
    return np.where(truth.mask, 0, -1)


def make_credit(truth: Truth, seed: int = 0) -> Credit:
    """Chance and some truth, constant in segments."""
    ids = make_ids(truth, seed)
    noise = np.random.default_rng(seed + 1).normal(size=(2, *ids.shape))
    gains = segment_gains(truth, ids).mean(1)
    spread = np.take_along_axis(gains + 0.3 * noise[0], np.maximum(ids, 0), 1)
    values = np.take_along_axis(noise[1], np.maximum(ids, 0), 1)
    return Credit(ids, spread, np.where(ids >= 0, values, np.nan))


# The slow way: plain loops over completions, splits, segments and tokens.


def times(x: np.ndarray, y: np.ndarray) -> float:
    """The mean over pairs of different splits."""
    pairs = list(itertools.permutations(range(len(x)), 2))
    return sum(x[h] * y[g] for h, g in pairs) / len(pairs)


def runs(ids: np.ndarray) -> list[list[int]]:
    """The tokens of each segment of a completion."""
    return [[t for t in range(len(ids)) if ids[t] == k] for k in range(ids.max() + 1)]


def places(truth: Truth, credit: Credit, level: str) -> list[tuple[float, np.ndarray]]:
    """The credit at each place, and the true advantage in each split."""
    found = []
    for b in range(len(truth.rewards)):
        V, segments = truth.values[b], runs(credit.segment_ids[b])
        if level == "token":
            tokens = range(truth.lengths[b])
            found += [(credit.advantages[b, t], V[:, t + 1] - V[:, t]) for t in tokens]
        elif level == "segment":
            for s in segments:
                found.append((credit.advantages[b, s[0]], V[:, s[-1] + 1] - V[:, s[0]]))
        else:
            total = sum(credit.advantages[b, s[0]] for s in segments)
            found.append((total, truth.rewards[b] - V[:, 0]))
    return found


def spread_of(pairs: list[tuple[float, np.ndarray]]) -> dict[str, float]:
    """Means and second moments of estimate x and truth y."""
    x = np.array([pair[0] for pair in pairs])
    y = np.array([pair[1].mean() for pair in pairs])
    yy = np.mean([times(pair[1], pair[1]) for pair in pairs])
    return {
        "x": x.mean(),
        "y": y.mean(),
        "var_x": x.var(),
        "var_y": yy - y.mean() ** 2,
        "cov": np.mean(x * y) - x.mean() * y.mean(),
        "yy": yy,
        "error": np.mean(x**2 - 2 * x * y) + yy,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fork", ["end", "start"])
def test_shares_are_those_of_the_loops(seed: int, fork: str) -> None:
    truth = make_truth(seed)
    ids = make_ids(truth, seed)
    on = every = expected = 0.0
    for b in range(len(ids)):
        length, D = truth.lengths[b], np.diff(truth.values[b], axis=1)
        free = list(range(length - 1)) if fork == "end" else list(range(1, length))
        cuts = [t for t in range(length - 1) if ids[b, t] != ids[b, t + 1]]
        chosen = cuts if fork == "end" else [t + 1 for t in cuts]
        squares = {t: times(D[:, t], D[:, t]) for t in free}
        on += sum(squares[t] for t in chosen)
        every += sum(squares.values())
        expected += sum(squares.values()) * len(chosen) / max(len(free), 1)
    assert share_on_boundaries(truth, ids, fork=fork).value == pytest.approx(on / every)
    random = random_share_on_boundaries(truth, ids, fork=fork).value
    assert random == pytest.approx(expected / every)
    assert boundary_ratio(truth, ids, fork=fork).value == pytest.approx(on / expected)


@pytest.mark.parametrize("seed", range(4))
def test_share_within_and_its_random_twin_are_those_of_the_loops(seed: int) -> None:
    """The twin by enumerating every way to cut each completion as often."""
    truth = make_truth(seed)
    ids = make_ids(truth, seed)

    def kept(b: int, ends: tuple[int, ...]) -> float:
        edges = [0, *(end + 1 for end in ends), truth.lengths[b]]
        gains = [
            truth.values[b, :, j] - truth.values[b, :, i] for i, j in itertools.pairwise(edges)
        ]
        sizes = np.diff(edges)
        return sum(times(g, g) / n for g, n in zip(gains, sizes, strict=True) if n)

    ours = random = every = 0.0
    for b in range(len(ids)):
        length, D = truth.lengths[b], np.diff(truth.values[b], axis=1)
        cuts = tuple(t for t in range(length - 1) if ids[b, t] != ids[b, t + 1])
        ways = list(itertools.combinations(range(max(length - 1, 0)), len(cuts)))
        ours += kept(b, cuts)
        random += sum(kept(b, way) for way in ways) / len(ways)
        every += sum(times(D[:, t], D[:, t]) for t in range(length))
    assert share_within(truth, ids).value == pytest.approx(1 - ours / every)
    assert random_share_within(truth, ids).value == pytest.approx(1 - random / every)


def test_random_twins_are_the_mean_over_random_cuts() -> None:
    truth = make_truth(1, rows=6)
    ids = make_ids(truth, 1)
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(800):
        cuts = np.zeros(ids.shape, bool)
        for b in range(len(ids)):
            count = max(ids[b].max(), 0)
            cuts[b, generator.permutation(max(truth.lengths[b] - 1, 0))[:count]] = True
        drawn = ids_from(truth, cuts, "end")
        bare = dataclasses.replace(truth, resampling=Resampling(resamples=1))
        shares.append([share_on_boundaries(bare, drawn).value, share_within(bare, drawn).value])
    close = 4 * np.std(shares, axis=0) / math.sqrt(len(shares))
    means = np.mean(shares, axis=0)
    assert abs(means[0] - random_share_on_boundaries(truth, ids).value) < close[0]
    assert abs(means[1] - random_share_within(truth, ids).value) < close[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", ["token", "segment", "completion"])
def test_credit_metrics_are_those_of_the_loops(seed: int, level: str) -> None:
    truth = make_truth(seed, spread=0.05)
    credit = make_credit(truth, seed)
    pairs = places(truth, credit, level)
    at = spread_of(pairs)
    r = at["cov"] / math.sqrt(at["var_x"] * at["var_y"])
    assert correlation(truth, credit, level).value == pytest.approx(r)
    assert slope(truth, credit, level).value == pytest.approx(at["cov"] / at["var_y"])
    left = (at["var_x"] - at["cov"] ** 2 / at["var_y"]) / at["var_y"]
    assert noise(truth, credit, level).value == pytest.approx(left)
    signed = np.mean([np.sign(a) * d.mean() for a, d in pairs]) / math.sqrt(at["yy"])
    assert sign_agreement(truth, credit, level).value == pytest.approx(signed)
    best = np.mean([times(np.sign(d), d) for _, d in pairs]) / math.sqrt(at["yy"])
    assert sign_ceiling(truth, credit, level).value == pytest.approx(best)
    if level == "completion":
        kept = np.mean([a * d.mean() for a, d in pairs]) / at["yy"]
        assert mass_kept(truth, credit).value == pytest.approx(kept)
        assert mass_error(truth, credit).value == pytest.approx(at["error"] / at["yy"])


@pytest.mark.parametrize("anchor", ["start", "last_token"])
@pytest.mark.parametrize("part", ["all", "early", "late"])
def test_value_metrics_are_those_of_the_loops(anchor: str, part: str) -> None:
    truth = make_truth(2, rows=30, spread=0.05)
    credit = dataclasses.replace(make_credit(truth, 2), anchor=anchor)
    credit.state_values[5] = np.nan
    pairs = []
    for b in range(len(truth.rewards)):
        for segment in runs(credit.segment_ids[b]) if b != 5 else []:
            t = segment[0] if anchor == "start" else segment[-1]
            early = 2 * t < truth.lengths[b]
            if part == "all" or early == (part == "early"):
                pairs.append((credit.state_values[b, t], truth.values[b, :, t]))
    at, found = spread_of(pairs), value_metrics(truth, credit, part)
    line = at["cov"] / at["var_x"]
    assert found["calibration_slope"].value == pytest.approx(line)
    assert found["calibration_intercept"].value == pytest.approx(at["y"] - line * at["x"])
    assert found["bias"].value == pytest.approx(at["x"] - at["y"])
    assert found["error"].value == pytest.approx(at["error"] / at["var_y"])
    explained = 1 - (at["error"] - (at["x"] - at["y"]) ** 2) / at["var_y"]
    assert found["explained_variance"].value == pytest.approx(explained)


def test_consistency_is_that_of_the_loops() -> None:
    truth = make_truth(3, spread=0.05)
    ids = make_ids(truth, 3)
    values = np.random.default_rng(3).normal(size=ids.shape)

    def inside(x: np.ndarray, b: int) -> float:
        away = [x[:, s] - x[:, s].mean(1, keepdims=True) for s in runs(ids[b])]
        return sum(times(d[:, i], d[:, i]) for d in away for i in range(d.shape[1]))

    tokens = [truth.values[b, :, t] for b in range(len(ids)) for t in range(truth.lengths[b])]
    variance = np.mean([times(v, v) for v in tokens]) - np.mean(tokens) ** 2
    found = value_consistency(truth, ids, values)
    both = np.repeat(values[:, None], truth.splits, axis=1)
    for name, x in {
        "spread": both,
        "true_spread": truth.values[:, :, :-1],
        "noise": both - truth.values[:, :, :-1],
    }.items():
        expected = sum(inside(x[b], b) for b in range(len(ids))) / len(tokens) / variance
        assert found[name].value == pytest.approx(expected), name


@pytest.mark.parametrize("anchor", ["start", "last_token"])
def test_baseline_bias_is_that_of_the_loops(anchor: str) -> None:
    truth = make_truth(4, spread=0.05)
    ids = make_ids(truth, 4)
    pairs = []
    for b in range(len(ids)):
        for segment in runs(ids[b]):
            state = segment[0] if anchor == "start" else segment[-1]
            V = truth.values[b]
            pairs += [(V[:, state], V[:, t + 1] - V[:, t]) for t in segment]
    x, y = (np.mean([pair[i] for pair in pairs]) for i in range(2))
    cov = np.mean([times(*pair) for pair in pairs]) - x * y
    expected = cov / np.mean([times(d, d) for _, d in pairs])
    assert baseline_bias(truth, ids, anchor).value == pytest.approx(expected)


def test_lift_is_that_of_the_loops() -> None:
    truth = make_truth(5, rows=40, spread=0.05)
    signal = np.random.default_rng(5).normal(size=truth.mask.shape)
    tokens = [(b, t) for b in range(40) for t in range(truth.lengths[b])]
    D = {(b, t): np.diff(truth.values[b], axis=1)[:, t] for b, t in tokens}
    order = sorted(tokens, key=lambda token: signal[token])
    for q in (0.0, 0.5, 0.9):
        high = order[math.ceil(q * len(order)) :]
        jump = np.mean([abs(D[token].mean()) >= 0.2 for token in high])
        expected = jump / np.mean([abs(d.mean()) >= 0.2 for d in D.values()])
        assert lift(truth, signal, [q], threshold=0.2)[q].value == pytest.approx(expected)
        change = np.mean([times(D[token], D[token]) for token in high])
        expected = change / np.mean([times(d, d) for d in D.values()])
        assert lift(truth, signal, [q])[q].value == pytest.approx(expected)


def test_lift_of_a_tied_signal_is_the_ratio_of_its_groups() -> None:
    """Its interval is that of the ratio: the quantile stays where it is in every draw."""
    truth = make_truth(6, rows=60, spread=0.0)
    signal = np.where(np.arange(WIDTH) % 2, 1.0, 0.0) * truth.mask
    found = lift(truth, signal, [0.3])[0.3]
    high = (signal > 0) & truth.mask
    moments = np.stack([(square(truth.advantages) * high).sum(1), high.sum(1)], 1)
    moments = np.hstack([moments, square(truth.advantages).sum(1)[:, None]])
    moments = np.hstack([moments, truth.mask.sum(1)[:, None]])
    ratio = estimate(
        truth.prompts,
        moments,
        lambda m: m[..., 0] / m[..., 1] / (m[..., 2] / m[..., 3]),
        resampling=truth.resampling,
    )
    assert found.value == pytest.approx(ratio.value)
    assert found.error == pytest.approx(ratio.error, rel=1e-6)


def test_classes_share_everything_out() -> None:
    truth = make_truth(7)
    classes = np.where(truth.mask, np.arange(WIDTH) % 3, -1)
    found = share_by_class(truth, classes, ["a", "b", "c"])
    assert sum(share.value for share, _ in found.values()) == pytest.approx(1)
    squares = square(truth.advantages)
    mean = squares[classes == 1].mean() / squares[truth.mask].mean()
    assert found["b"][1].value == pytest.approx(mean)
    with pytest.raises(StudyError, match="2 names"):
        share_by_class(truth, classes, ["a", "b"])


def test_agreement_counts_common_boundaries() -> None:
    truth = make_truth(8)
    ids = make_ids(truth, 8)
    common, ceiling, chance, count = 0.0, 0.0, 0.0, 0
    for b in range(len(ids)):
        length, D = truth.lengths[b], np.abs(np.diff(truth.values[b], axis=1))
        cuts = {t for t in range(length - 1) if ids[b, t] != ids[b, t + 1]}
        oracles = [
            set(sorted(range(length - 1), key=lambda t: -D[h, t])[: len(cuts)]) for h in range(3)
        ]
        common += np.mean([len(cuts & oracle) for oracle in oracles])
        ceiling += np.mean([len(a & b) for a, b in itertools.combinations(oracles, 2)])
        chance += len(cuts) ** 2 / max(length - 1, 1)
        count += len(cuts)
    found = jump_agreement(truth, ids)
    assert found["agreement"].value == pytest.approx(common / count)
    assert found["ceiling"].value == pytest.approx(ceiling / count)
    assert found["chance"].value == pytest.approx(chance / count)


def test_the_oracles_share_is_judged_on_the_halves_that_did_not_choose() -> None:
    truth = make_truth(18)
    ids = make_ids(truth, 18)
    on = every = 0.0
    for b, split in itertools.product(range(len(ids)), range(3)):
        free = range(truth.lengths[b] - 1)
        D = np.diff(truth.values[b], axis=1)
        others = np.delete(D, split, axis=0)
        order = sorted(free, key=lambda t, D=D, split=split: -abs(D[split, t]))
        on += sum(times(others[:, t], others[:, t]) for t in order[: max(ids[b].max(), 0)])
        every += sum(times(others[:, t], others[:, t]) for t in free)
    assert oracle_share(truth, ids).value == pytest.approx(on / every)


# Controls.


def test_whole_and_per_token_have_what_they_must() -> None:
    truth = make_truth(9)
    for fork in ("end", "start"):
        assert share_on_boundaries(truth, per_token(truth), fork=fork).value == pytest.approx(1)
        assert share_on_boundaries(truth, whole(truth), fork=fork).value == 0
        assert boundary_ratio(truth, per_token(truth), fork=fork).value == pytest.approx(1)
        assert math.isnan(boundary_ratio(truth, whole(truth), fork=fork).value)
    assert share_within(truth, per_token(truth)).value == pytest.approx(0, abs=1e-12)
    for ids in (per_token(truth), whole(truth)):
        random = random_share_within(truth, ids).value
        assert random == pytest.approx(share_within(truth, ids).value, abs=1e-9)
    all_cut = share_on_boundaries(truth, per_token(truth))
    assert (all_cut.low, all_cut.high) == (all_cut.value, all_cut.value)


def test_no_definition_has_more_than_the_oracle() -> None:
    truth = make_truth(10, rows=30, spread=0.0)
    best = oracle_share(truth, make_ids(truth, 0)).value
    for seed in range(20):
        ids = make_ids(truth, seed)
        oracle = oracle_ids(truth, np.maximum(ids.max(1), 0))
        assert (oracle.max(1) == ids.max(1)).all()
        theirs = share_on_boundaries(truth, oracle).value
        assert theirs == pytest.approx(oracle_share(truth, ids).value)
        assert share_on_boundaries(truth, ids).value <= theirs
        assert jump_agreement(truth, oracle)["agreement"].value == 1
    assert best < 1


def test_the_oracle_judged_on_the_half_that_chose_it_seems_better_than_it_is() -> None:
    truth = make_truth(11, rows=300, spread=0.3)
    cuts = np.minimum(2, np.maximum(truth.lengths - 1, 0))
    ids = oracle_ids(truth, cuts, split=0)
    fair = share_on_boundaries(truth.keep([1, 2]), ids).value
    unfair = share_on_boundaries(truth.keep([0, 1]), ids).value
    exact = make_truth(11, rows=300, spread=0.0)
    best = share_on_boundaries(exact, oracle_ids(exact, cuts)).value
    assert fair < best < unfair


def test_true_advantages_have_correlation_one_under_a_noisy_truth() -> None:
    exact = make_truth(12, rows=600, spread=0.0)
    noisy = make_truth(12, rows=600, spread=0.25)
    for ids in (per_token(exact), make_ids(exact, 12)):
        gains = segment_gains(exact, ids)[:, 0]
        credit = Credit(ids, np.take_along_axis(gains, np.maximum(ids, 0), 1))
        assert correlation(exact, credit, "segment").value == pytest.approx(1)
        found = correlation(noisy, credit, "segment")
        assert found.low < 1 < found.high
        assert found.high - found.low < 0.2
        assert slope(exact, credit, "segment").value == pytest.approx(1)
        assert noise(exact, credit, "segment").value == pytest.approx(0, abs=1e-9)
        ceiling = sign_ceiling(exact, credit, "segment").value
        assert sign_agreement(exact, credit, "segment").value == pytest.approx(ceiling, rel=0.02)
        assert mass_kept(exact, credit).value == pytest.approx(1)
        assert mass_error(exact, credit).value == pytest.approx(0, abs=1e-9)
    naive = np.corrcoef(exact.advantages[:, 0][exact.mask], noisy.advantages.mean(1)[exact.mask])[
        0, 1
    ]
    assert naive < 0.85


def test_zero_credit_wins_nothing() -> None:
    truth = make_truth(13)
    zeros = np.zeros(truth.mask.shape)
    for level in ("token", "segment", "completion"):
        for ask in (correlation, slope, sign_agreement):
            found = ask(truth, Credit(make_ids(truth), zeros, zeros), level)
            assert (found.value, found.low, found.high) == (0, 0, 0)
        constant = Credit(whole(truth), zeros + 0.3)
        assert abs(correlation(truth, constant, "token").value) < 1e-9
    credit = Credit(make_ids(truth), zeros, zeros)
    assert mass_kept(truth, credit).value == 0
    assert mass_error(truth, credit).value == pytest.approx(1)
    values = value_metrics(truth, credit)
    assert values["explained_variance"].value == 0
    assert math.isnan(values["calibration_slope"].value)
    gradients = gradient_metrics(np.zeros((5, 3)), np.ones(3))["all"]
    assert gradients["projection"].value == gradients["signal_to_noise"].value == 0
    assert gradients["cosine"].value == 0


@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_metrics_do_not_depend_on_order_padding_or_scale(seed: int, scale: float) -> None:
    truth = make_truth(seed, resamples=1)
    credit = make_credit(truth, seed)
    order = np.random.default_rng(seed).permutation(len(truth.rewards))

    def wider(x: np.ndarray, value: float) -> np.ndarray:
        return np.concatenate([x, np.full((*x.shape[:-1], 2), value)], axis=-1)[order]

    again = Truth(
        wider(truth.values, np.nan) * scale,
        wider(truth.mask, False),
        truth.prompts[order],
        truth.rewards[order] * scale,
        resampling=truth.resampling,
    )
    ids = wider(credit.segment_ids, -1)
    other = Credit(ids, wider(credit.advantages, 5.0) * scale)
    for ask in (correlation, slope, noise, sign_agreement, mass_kept):
        expected = ask(truth, credit).value
        assert ask(again, other).value == pytest.approx(expected, nan_ok=True, rel=1e-6)
    for ask in (share_on_boundaries, share_within, random_share_within, baseline_bias):
        expected = ask(truth, credit.segment_ids).value
        assert ask(again, ids).value == pytest.approx(expected, nan_ok=True, rel=1e-6, abs=1e-9)


def test_weights_are_repetitions() -> None:
    truth = make_truth(14)
    credit = make_credit(truth, 14)
    times = np.array([1, 2, 3] * 4)
    weighed = dataclasses.replace(truth, weights=times)
    rows = np.repeat(np.arange(12), times)
    repeated = Credit(credit.segment_ids[rows], credit.advantages[rows])
    one = correlation(weighed, credit)
    two = correlation(truth.select(rows), repeated)
    assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high))
    signal = np.random.default_rng(0).normal(size=truth.mask.shape)
    one = lift(weighed, signal, [0.5])[0.5]
    two = lift(truth.select(rows), signal[rows], [0.5])[0.5]
    assert one.value == pytest.approx(two.value)


# Intervals.


def test_the_error_is_that_of_the_mean_and_of_the_jackknife() -> None:
    values = np.random.default_rng(0).exponential(size=(40, 2)) + 1
    mean = estimate(np.arange(40), values, lambda m: m[..., 0])
    assert mean.error == pytest.approx(values[:, 0].std(ddof=1) / math.sqrt(40))
    ratio = estimate(np.arange(40), values, quotient)
    left = [quotient(np.delete(values, i, 0).mean(0)) for i in range(40)]
    assert ratio.error == pytest.approx(np.std(left) * math.sqrt(39), rel=0.03)


def test_the_interval_is_studentised() -> None:
    """By hand: each draw's distance over its own error, quantiles turned round.

    A draw's error counts as a third of the estimate's at least.
    """
    values = np.random.default_rng(1).exponential(size=15)
    found = estimate(np.arange(15), values[:, None], lambda m: m[..., 0])
    generator = np.random.default_rng(0)
    counts = generator.multinomial(15, np.full(15, 1 / 15), size=2000)
    ratios, error = [], values.std(ddof=1) / math.sqrt(15)
    for count in counts:
        drawn = np.repeat(values, count)
        own = max(drawn.std(ddof=1) / math.sqrt(15), error / 3)
        ratios.append((drawn.mean() - values.mean()) / own)
    below = np.quantile(ratios, 0.025, method="lower")
    above = np.quantile(ratios, 0.975, method="higher")
    assert found.low == pytest.approx(values.mean() - above * error)
    assert found.high == pytest.approx(values.mean() - below * error)


def test_a_metric_that_one_prompt_makes_has_an_interval_of_its_size() -> None:
    """Draws without that prompt have no error; they must not throw an end to nowhere."""
    values = np.full(60, 1e-6) * np.random.default_rng(4).random(60)
    values[7] = 1.0
    found = estimate(np.arange(60), values[:, None], lambda m: m[..., 0])
    assert found.value == pytest.approx(1 / 60, rel=1e-3)
    assert found.high < 0.2


def test_a_logarithmic_interval_is_that_of_the_logarithm() -> None:
    values = np.random.default_rng(3).exponential(size=(15, 1))
    found = estimate(np.arange(15), values, lambda m: m[..., 0], log=True)
    inner = estimate(np.arange(15), values, lambda m: np.log(m[..., 0]))
    ends = math.exp(inner.low), math.exp(inner.high)
    assert (found.low, found.high) == pytest.approx(ends)
    assert found.error == pytest.approx(inner.error * found.value)
    nothing = estimate(np.arange(15), 0 * values, lambda m: m[..., 0], log=True)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_completions_of_a_prompt_are_one_unit() -> None:
    values = np.random.default_rng(2).normal(size=20)
    once = estimate(np.arange(20), values[:, None], lambda m: m[..., 0])
    twice = estimate(
        np.tile(np.arange(20), 2), np.tile(values, 2)[:, None] / 2, lambda m: m[..., 0]
    )
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))
    assert twice.prompts == 20


def test_paired_differences_are_sharper_than_two_intervals() -> None:
    truth = make_truth(15, rows=90, spread=0.05, resamples=500)
    ids = make_ids(truth, 15)
    first, second = share_within(truth, ids), share_within(truth, whole(truth))
    found = difference(first, second)
    assert found.value == pytest.approx(first.value - second.value)
    apart = math.hypot(first.error, second.error)
    assert found.error < 0.9 * apart
    same = difference(first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(StudyError, match="not the same"):
        difference(first, share_within(truth.select(np.arange(30)), ids[:30]))


def test_one_prompt_or_nothing_has_no_interval() -> None:
    truth = make_truth(16)
    one = share_within(truth.select([0, 1, 2]), make_ids(truth)[:3])
    assert one.prompts == 1
    assert math.isnan(one.low)
    assert not math.isnan(one.value)
    none = share_within(truth.select(np.arange(0)), make_ids(truth)[:0])
    assert math.isnan(none.value)
    assert none.prompts == 0
    assert str(share_within(truth, make_ids(truth))).endswith("]")


# Gradients.


def test_gradient_metrics_against_their_definitions() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(2, 5))
    gradients = reference.mean(0) + generator.normal(size=(9, 5))
    found = gradient_metrics(gradients, reference, {"first": np.array([0, 1])})
    for group, part in (("all", slice(None)), ("first", slice(0, 2))):
        g, r, size = gradients[:, part], reference[:, part].mean(0), reference[0] * reference[1]
        size = size[part].sum()
        with np.errstate(invalid="ignore"):
            cosines = g @ r / (np.linalg.norm(g, axis=1) * np.sqrt(size))
        assert found[group]["cosine"].value == pytest.approx(cosines.mean(), nan_ok=True)
        assert found[group]["projection"].value == pytest.approx((g @ r).mean() / size)
        assert found[group]["gradient_noise"].value == pytest.approx(g.var(0, ddof=1).sum() / size)

        with np.errstate(invalid="ignore"):
            ratios = [
                rows.mean(0) @ r / np.sqrt(rows.var(0, ddof=1).sum() * size)
                for rows in (g, *(np.delete(g, i, 0) for i in range(9)))
            ]
        left = [9 * ratios[0] - 8 * ratio for ratio in ratios[1:]]
        assert found[group]["signal_to_noise"].value == pytest.approx(np.mean(left), nan_ok=True)


def test_gradients_that_are_the_reference_are_perfect() -> None:
    reference = np.array([1.0, -2.0, 0.5])
    found = gradient_metrics(np.tile(reference, (4, 1)), reference)["all"]
    for name, value in {"cosine": 1, "projection": 1, "gradient_noise": 0}.items():
        assert found[name].value == pytest.approx(value, abs=1e-12)
    with pytest.raises(StudyError, match="same parameters"):
        gradient_metrics(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(StudyError, match="'all'"):
        gradient_metrics(np.zeros((2, 2)), np.zeros(2), {"all": slice(0, 1)})


# Bad input, and the page.


def test_bad_arrays_are_refused_in_sentences() -> None:
    truth = make_truth(17)
    credit = make_credit(truth, 17)
    with pytest.raises(StudyError, match="one split"):
        truth.keep([0])
    with pytest.raises(StudyError, match="axes"):
        Truth(truth.values[:, 0], truth.mask, truth.prompts, truth.rewards)
    with pytest.raises(StudyError, match=r"mask has shape .* expected"):
        dataclasses.replace(truth, mask=truth.mask[:, :-1])
    mask, values = truth.mask.copy(), truth.values.copy()
    mask[0, 0], values[0, 1, 0] = False, np.nan
    with pytest.raises(StudyError, match="hole"):
        dataclasses.replace(truth, mask=mask)
    with pytest.raises(StudyError, match="completion 0 has no value at state 0"):
        dataclasses.replace(truth, values=values)
    with pytest.raises(StudyError, match="ids from 0 on"):
        share_within(truth, credit.segment_ids + 1)
    falling = np.where(truth.mask, np.minimum(np.arange(WIDTH), 1) * (np.arange(WIDTH) < 2), -1)
    for wrong in (falling, np.zeros_like(falling)):
        with pytest.raises(StudyError, match="ids from 0 on"):
            share_within(truth, wrong)
    with pytest.raises(StudyError, match="segment_ids has shape"):
        share_within(truth, credit.segment_ids[:, :-1])
    with pytest.raises(StudyError, match="fork"):
        share_on_boundaries(truth, credit.segment_ids, fork="middle")
    with pytest.raises(StudyError, match="anchor"):
        dataclasses.replace(credit, anchor="end")
    with pytest.raises(StudyError, match="did you mean 'token'"):
        correlation(truth, credit, "tokens")
    with pytest.raises(StudyError, match="part of a completion"):
        value_metrics(truth, credit, "middle")
    with pytest.raises(StudyError, match="no state_values"):
        value_metrics(truth, Credit(credit.segment_ids, credit.advantages))
    with pytest.raises(StudyError, match="at least 3"):
        oracle_share(truth.keep([0, 1]), credit.segment_ids)
    with pytest.raises(StudyError, match="quantiles"):
        lift(truth, truth.mask, [1.0])
    with pytest.raises(StudyError, match="confidence"):
        Resampling(confidence=95)


def test_what_the_table_of_metrics_refers_to_is_there() -> None:
    names = [one.name for one in METRICS]
    assert len(set(names)) == len(names)
    references = [x for one in METRICS for x in (one.best, one.chance, one.zero)]
    assert {x for x in references if isinstance(x, str)} <= set(names)
    for one in METRICS:
        read = {*one.reported, *one.headlines}
        assert read <= set(one.levels or ["all"]), one.name


# What the gradient feels.


def with_scores(truth: Truth, seed: int = 0) -> Truth:
    """The same with tokens drawn from distributions over four symbols, some nearly certain."""
    generator = np.random.default_rng(seed)
    sharpness = generator.choice([0.5, 4.0], size=truth.mask.shape)[..., None]
    shares = np.exp(sharpness * generator.normal(size=(*truth.mask.shape, 4)))
    shares /= shares.sum(-1, keepdims=True)
    drawn = (generator.random(truth.mask.shape)[..., None] > shares.cumsum(-1)).sum(-1)
    chosen = np.take_along_axis(shares, drawn[..., None], -1)[..., 0]
    w = 1 - 2 * chosen + (shares**2).sum(-1)
    scores = Scores(np.log(chosen), -(shares * np.log(shares)).sum(-1), w)
    return dataclasses.replace(truth, scores=scores)


@pytest.mark.parametrize("seed", range(3))
def test_the_level_gradient_is_that_of_loops_with_weights(seed: int) -> None:
    truth = with_scores(make_truth(seed, spread=0.05), seed)
    credit = make_credit(truth, seed)
    w = truth.scores.logit_gradients[truth.mask]
    pairs = [
        (credit.advantages[b, t], truth.values[b, :, t + 1] - truth.values[b, :, t])
        for b, t in np.argwhere(truth.mask)
    ]
    x, D = np.array([a for a, _ in pairs]), np.array([d for _, d in pairs])
    y, yy = D.mean(1), np.array([times(d, d) for d in D])
    w = w / w.sum()
    mean_x, mean_y = w @ x, w @ y
    cov, var_x = w @ (x * y) - mean_x * mean_y, w @ x**2 - mean_x**2
    var_y = w @ yy - mean_y**2
    r = cov / math.sqrt(var_x * var_y)
    assert correlation(truth, credit, "gradient").value == pytest.approx(r)
    assert slope(truth, credit, "gradient").value == pytest.approx(cov / var_y)
    signed = w @ (np.sign(x) * y) / math.sqrt(w @ yy)
    assert sign_agreement(truth, credit, "gradient").value == pytest.approx(signed)
    assert abs(r - correlation(truth, credit, "token").value) > 1e-3


def test_credit_noise_of_two_tokens_by_hand() -> None:
    """Two symbols, p = .8 and .6: w = 2 (1 - p)² = .08 and .32; D = .1 and .4."""
    V = np.array([[0.5, 0.6, 1.0]])
    p = np.array([[0.8, 0.6]])
    entropies = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    scores = Scores(np.log(p), entropies, 2 * (1 - p) ** 2)
    truth = Truth(np.stack([V, V], 1), np.ones((1, 2), bool), [0], [1.0], scores=scores)
    apart = Credit([[0, 1]], [[0.1, 0.4]])
    joined = Credit([[0, 0]], [[0.5, 0.5]], token_advantages=[[0.1, 0.4]])
    assert credit_noise(truth, apart).value == pytest.approx(0.08 * 0.01 + 0.32 * 0.16)
    assert credit_noise(truth, joined).value == pytest.approx(0.40 * 0.25)
    # The mean of w over both symbols: .8 * .08 + .2 * 1.28, and .6 * .32 + .4 * .72.
    assert scores.expected_gradients == pytest.approx(np.array([[0.32, 0.48]]))
    # One prompt has no interval, so that nothing is known to differ from 0.
    assert math.isnan(credit_noise_ratio(truth, joined).value)
    twice = dataclasses.replace(truth.select([0, 0, 0]), prompts=np.arange(3))
    three = Credit([[0, 0]] * 3, [[0.5, 0.5]] * 3, token_advantages=[[0.1, 0.4]] * 3)
    assert credit_noise_ratio(twice, three).value == pytest.approx(0.1 / 0.052)
    assert true_noise_ratio(twice, three.segment_ids).value == pytest.approx(0.1 / 0.052)
    assert true_noise_ratio(twice, [[0, 1]] * 3).value == pytest.approx(1)


def test_noise_ratios_are_those_of_the_loops_and_blank_where_nothing_moves() -> None:
    truth = with_scores(make_truth(3, rows=60, spread=0.05))
    ids, w = make_ids(truth, 3), truth.scores.logit_gradients
    summed = every = 0.0
    for b in range(len(ids)):
        D = np.diff(truth.values[b], axis=1)
        every += sum(w[b, t] * times(D[:, t], D[:, t]) for t in range(truth.lengths[b]))
        for segment in runs(ids[b]):
            gain = D[:, segment].sum(1)
            summed += sum(w[b, t] for t in segment) * times(gain, gain)
    assert true_noise_ratio(truth, ids).value == pytest.approx(summed / every)
    credit = make_credit(truth, 3)
    base = np.random.default_rng(0).normal(size=ids.shape)
    one = dataclasses.replace(credit, token_advantages=base)
    sums = [(w * x**2)[truth.mask].sum() for x in (credit.advantages, base)]
    assert credit_noise(truth, credit).value == pytest.approx(sums[0] / 60)
    assert credit_noise_ratio(truth, one).value == pytest.approx(sums[0] / sums[1])
    # Without a base, with one of nothing, and with one of a single prompt.
    single = np.where(truth.prompts[:, None] == 3, base, 0.0)
    for nothing in (None, 0 * base, single):
        blank = dataclasses.replace(credit, token_advantages=nothing)
        assert math.isnan(credit_noise_ratio(truth, blank).value)


@pytest.mark.parametrize("seed", range(3))
def test_sharpening_is_the_weighed_regression_on_log_probs_and_truth(seed: int) -> None:
    truth = with_scores(make_truth(seed, rows=60, spread=0.0), seed)
    credit = make_credit(truth, seed)
    x = credit.advantages[truth.mask]
    D = truth.advantages[:, 0][truth.mask]
    log_probs = (truth.scores.logprobs + truth.scores.entropies)[truth.mask]
    w = truth.scores.expected_gradients[truth.mask]
    columns = np.stack([np.ones_like(D), D, log_probs], 1) * np.sqrt(w)[:, None]
    line = np.linalg.lstsq(columns, x * np.sqrt(w), rcond=None)[0]
    spread = [math.sqrt(np.average((y - np.average(y, weights=w)) ** 2, weights=w))
              for y in (log_probs, x)]  # fmt: skip
    found = sharpening(truth, credit).value
    assert found == pytest.approx(line[2] * spread[0] / spread[1])


def test_sharpening_is_credit_for_being_likely_and_nothing_else() -> None:
    exact = with_scores(make_truth(5, rows=900, spread=0.0))
    noisy = dataclasses.replace(make_truth(5, rows=900, spread=0.2), scores=exact.scores)
    ids, D = per_token(exact), exact.advantages[:, 0]
    likely = exact.scores.logprobs
    for truth in (exact, noisy):
        for scale in (1.0, 0.3):
            true = sharpening(truth, Credit(ids, scale * D))
            assert true.low <= 1e-9
            assert true.high >= -1e-9
            assert abs(true.value) < (1e-9 if truth is exact else 0.1)
        assert sharpening(truth, Credit(ids, D + 0.1 * likely)).low > 0.1
        assert sharpening(truth, Credit(ids, D - 0.1 * likely)).high < -0.1
    zero = sharpening(exact, Credit(ids, 0 * D))
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)


@pytest.mark.parametrize("cut", [(), (1,), (2,), (1, 2, 3)])
def test_true_credit_has_no_sharpening_under_any_causal_definition(cut: tuple[int, ...]) -> None:
    """On the toy, whose completions are all enumerated: the true advantages of other tokens, and
    a baseline of the past, have nothing to do with how likely a token was."""
    simulator = ToySimulator()
    simulator.policy.double()
    rollouts = simulator.enumerate()
    found = exact_truth(simulator, rollouts)
    logprobs = rollouts.logprobs.numpy()
    truth = Truth(
        found.values.numpy(),
        rollouts.action_mask.numpy(),
        found.prompt_numbers.numpy(),
        rollouts.rewards.numpy(),
        np.exp(logprobs.sum(1)),
        scores=Scores(logprobs, rollouts.entropies.numpy(), found.logit_gradients.numpy()),
    )
    ids = np.broadcast_to(np.isin(np.arange(4), cut).cumsum(), logprobs.shape)
    gains = segment_gains(truth, ids)[:, 0]
    true = np.take_along_axis(gains, ids, 1)
    assert sharpening(truth, Credit(ids, true)).value == pytest.approx(0, abs=1e-6)
    baseline = np.take_along_axis(truth.states[:, 0], ids, 1)
    assert sharpening(truth, Credit(ids, true + baseline)).value == pytest.approx(0, abs=1e-6)
    assert sharpening(truth, Credit(ids, true + 0.1 * logprobs)).value > 0.05


@pytest.mark.parametrize("anchor", ["start", "last_token"])
def test_values_before_every_token_hold_until_the_next_anchor(anchor: str) -> None:
    truth = make_truth(6, rows=30, spread=0.05)
    credit = dataclasses.replace(make_credit(truth, 6), anchor=anchor)
    credit.state_values[5] = np.nan
    held, own = [], []
    tokens = np.random.default_rng(0).normal(size=truth.mask.shape)
    for b in range(len(truth.rewards)):
        value = None
        for segment in runs(credit.segment_ids[b]):
            for t in segment:
                if t == (segment[0] if anchor == "start" else segment[-1]):
                    value = credit.state_values[b, t]
                if value is not None and not math.isnan(value):
                    held.append((value, truth.values[b, :, t]))
                own.append((tokens[b, t], truth.values[b, :, t]))
    learned = dataclasses.replace(credit, token_values=tokens)
    for pairs, valued in ((held, credit), (own, learned)):
        at, found = spread_of(pairs), value_metrics(truth, valued, "tokens")
        explained = 1 - (at["error"] - (at["x"] - at["y"]) ** 2) / at["var_y"]
        assert found["explained_variance"].value == pytest.approx(explained)
        assert found["bias"].value == pytest.approx(at["x"] - at["y"])
    every = Credit(per_token(truth), tokens, tokens)
    whole_part = value_metrics(truth, every, "all")["explained_variance"].value
    assert value_metrics(truth, every, "tokens")["explained_variance"].value == whole_part


def test_the_level_gradient_needs_scores_and_knows_no_padding() -> None:
    truth = make_truth(7, rows=60, spread=0.05)
    credit = make_credit(truth, 7)
    for ask in (sharpening, credit_noise, credit_noise_ratio):
        with pytest.raises(StudyError, match=r"no scores of its tokens.*run it again"):
            ask(truth, credit)
    with pytest.raises(StudyError, match="no scores"):
        correlation(truth, credit, "gradient")
    scored = with_scores(truth)
    short = Scores(*(getattr(scored.scores, x)[:, 1:] for x in Scores.__slots__))
    with pytest.raises(StudyError, match="logprobs has shape"):
        dataclasses.replace(truth, scores=short)
    # What stands behind a completion's end is read by nothing.
    behind = Scores(*(np.where(truth.mask, getattr(scored.scores, x), -7.0)
                      for x in Scores.__slots__))  # fmt: skip
    padded = dataclasses.replace(truth, scores=behind)
    credit = dataclasses.replace(credit, token_advantages=np.ones(truth.mask.shape))
    for ask in (sharpening, credit_noise, credit_noise_ratio):
        assert ask(padded, credit).value == ask(scored, credit).value
    assert correlation(padded, credit, "gradient") .value == pytest.approx(
        correlation(scored, credit, "gradient").value)  # fmt: skip
    ids = credit.segment_ids
    assert true_noise_ratio(padded, ids).value == true_noise_ratio(scored, ids).value
