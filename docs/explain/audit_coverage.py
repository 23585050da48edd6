"""Measures how often the intervals of the audit's metrics hold the true one, on the toy policy.

python docs/explain/audit_coverage.py   writes audit_coverage.csv beside it (4 CPU-minutes)

A thousand prompts with tables and rewards of their own are the population; all their completions
are enumerated, weighed by probability, and give each metric its exact value. Each seed draws
prompts with replacement and a few completions of each, and audits these, with the exact truth and
with splits of a few continuations a state. 95% is asked of each interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from segcredit.credit_audit.metrics import (
    Credit,
    Estimate,
    Resampling,
    Scores,
    Truth,
    baseline_bias,
    boundary_ratio,
    correlation,
    credit_noise,
    credit_noise_ratio,
    difference,
    gradient_metrics,
    jump_agreement,
    lift,
    mass_error,
    mass_kept,
    noise,
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
from segcredit.testing.toy import ToyPolicy, prefix_numbers, toy_reward

TABLE = Path(__file__).with_name("audit_coverage.csv")
POPULATION, COMPLETIONS, CONTINUATIONS, SPLITS = 1000, 4, 8, 3
PROMPTS, SEEDS, RESAMPLES = (20, 100), 400, 600
QUANTILES, JUMP = (0.5, 0.8, 0.9), 0.2
LENGTH, SYMBOLS = 4, 3
CLASSES = ("space", "newline", "letter")


@dataclass(frozen=True)
class Population:
    """Every completion of every prompt, in the order of prompts and of ids; a row each."""

    values: np.ndarray  # (rows, E) exact
    shares: np.ndarray  # (rows,) probability of the completion under its prompt
    rewards: np.ndarray  # (rows,)
    scores: Scores  # (rows, T)
    ids: np.ndarray  # (rows, T) of symbols
    estimates: np.ndarray  # (rows, T) a biased, noisy value of each state
    gradients: np.ndarray  # (rows, T, D) of the log-prob, by the output layer's parameters
    threshold: float  # entropy above which a token ends a segment

    @property
    def each(self) -> int:
        """Completions of a prompt."""
        return SYMBOLS**LENGTH

    @property
    def prompts(self) -> np.ndarray:
        """The number of each row's prompt, (rows,)."""
        return np.arange(len(self.rewards)) // self.each


def reward(prompt: str, text: str) -> float:
    """The toy's, different for each prompt, and a part that all share: the letters."""
    return toy_reward(prompt, text) + text.count("a") / LENGTH


def population(prompts: int = POPULATION) -> Population:
    """The whole population, enumerated."""
    policy = ToyPolicy(length=LENGTH, prompts=prompts, hidden_size=4, seed=0).double()
    ids_CT = policy.enumerate().completion_ids
    keys = [str(prompt) for prompt in range(prompts) for _ in range(len(ids_CT))]
    rollouts = policy.rollouts(keys, ids_CT.repeat(prompts, 1))
    pairs = zip(keys, rollouts.texts, strict=True)
    rewards = np.array([reward(key, text) for key, text in pairs])
    shares = rollouts.logprobs.sum(1).exp().numpy()
    values = np.stack([*_values(shares, rewards, prompts), rewards], axis=1)
    numbers = prefix_numbers(rollouts.completion_ids, LENGTH).numpy()
    errors = np.random.default_rng(0).normal(0, 0.05, (prompts, numbers.max() + 1))
    rows = np.arange(len(keys)) // len(ids_CT)
    return Population(
        values=values,
        shares=shares,
        rewards=rewards,
        scores=Scores(
            rollouts.logprobs.numpy(),
            rollouts.entropies.numpy(),
            policy.logit_gradients(rollouts, micro_tokens=0).numpy(),
        ),
        ids=rollouts.completion_ids.numpy(),
        estimates=0.6 * values[:, :LENGTH] + 0.1 + errors[rows[:, None], numbers],
        gradients=_gradients(policy, rollouts),
        threshold=float(np.median(rollouts.entropies.numpy())),
    )


def _values(shares: np.ndarray, rewards: np.ndarray, prompts: int) -> Iterable[np.ndarray]:
    """(rows,) V before each token: the mean reward of the completions with that prefix."""
    for t in range(LENGTH):
        blocks = (prompts * SYMBOLS**t, -1)
        mass = shares.reshape(blocks)
        value = (mass * rewards.reshape(blocks)).sum(1) / mass.sum(1)
        yield np.repeat(value, mass.shape[1])


@torch.no_grad()
def _gradients(policy: ToyPolicy, rollouts) -> np.ndarray:  # noqa: ANN001
    """Derivatives of log p by (weights, bias) of the output layer: (chosen − p) ⊗ (hidden, 1)."""
    hidden = policy.states(rollouts)
    shares = torch.softmax(policy.output(hidden), -1)
    pull = torch.nn.functional.one_hot(rollouts.completion_ids - 1, SYMBOLS) - shares
    weights = (pull[..., :, None] * hidden[..., None, :]).flatten(2)
    return torch.cat([weights, pull], -1).numpy()


@dataclass(frozen=True)
class Sample:
    """Audited rows of the population, with a truth of them."""

    truth: Truth
    ids: np.ndarray
    estimates: np.ndarray
    gradients: np.ndarray
    threshold: float

    @property
    def segments(self) -> np.ndarray:
        """A token with a high entropy ends its segment."""
        ends = self.truth.require_scores().entropies > self.threshold
        return np.concatenate([np.zeros((len(ends), 1), int), ends[:, :-1].cumsum(1)], axis=1)

    def credit(self, segments: np.ndarray) -> Credit:
        """TD advantages of the estimates over these segments."""
        starts = np.diff(segments, axis=1, prepend=-1) > 0
        places = np.maximum.accumulate(np.where(starts, np.arange(LENGTH), 0), axis=1)
        values = np.take_along_axis(self.estimates, places, axis=1)
        after = np.concatenate([values[:, 1:], self.truth.rewards[:, None]], axis=1)
        # The value at the anchor of the next segment, read from the segment's last token.
        ends = np.concatenate([starts[:, 1:], np.ones((len(starts), 1), bool)], axis=1)
        places = np.where(ends, np.arange(LENGTH), LENGTH)[:, ::-1]
        last = np.minimum.accumulate(places, axis=1)[:, ::-1]
        advantages = np.take_along_axis(after, last, axis=1) - values
        each = np.append(self.estimates[:, 1:], self.truth.rewards[:, None], axis=1)
        return Credit(segments, advantages, values, token_advantages=each - self.estimates)


def sample(
    everything: Population,
    rows: np.ndarray,
    units: np.ndarray,
    *,
    generator: np.random.Generator | None,
    weights: np.ndarray | None = None,
    resampling: Resampling | None = None,
) -> Sample:
    """Rows with their exact truth, or with sampled splits where there is a generator."""
    if generator is None:
        values = np.repeat(everything.values[rows][:, None], SPLITS, axis=1)
    else:
        values = _sampled_values(everything, rows, generator)
    truth = Truth(
        values,
        np.ones((len(rows), LENGTH), bool),
        units,
        everything.rewards[rows],
        np.ones(len(rows)) if weights is None else weights,
        resampling or Resampling(resamples=1),
        everything.scores.select(rows),
    )
    return Sample(
        truth,
        everything.ids[rows],
        everything.estimates[rows],
        everything.gradients[rows],
        everything.threshold,
    )


def _sampled_values(
    everything: Population, rows: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """(B,H,E) means of the rewards of continuations drawn from each state, anew in each split."""
    cumulated = everything.shares.cumsum()
    values = np.empty((len(rows), SPLITS, LENGTH + 1))
    values[:, :, LENGTH] = everything.rewards[rows][:, None]
    for t in range(LENGTH):
        block = SYMBOLS ** (LENGTH - t)
        first = rows // block * block
        low = np.where(first > 0, cumulated[first - 1], 0.0)[:, None, None]
        high = cumulated[first + block - 1][:, None, None]
        spots = low + (high - low) * generator.random((len(rows), SPLITS, CONTINUATIONS))
        drawn = np.searchsorted(cumulated, spots)
        drawn = np.clip(drawn, first[:, None, None], (first + block - 1)[:, None, None])
        values[:, :, t] = everything.rewards[drawn].mean(2)
    return values


def draw(everything: Population, prompts: int, generator: np.random.Generator) -> np.ndarray:
    """(prompts * COMPLETIONS,) rows: prompts with replacement, completions by probability."""
    each = everything.each
    cumulated = everything.shares.cumsum()
    count = len(everything.rewards) // each
    chosen = np.repeat(generator.integers(count, size=prompts), COMPLETIONS)
    low = np.where(chosen > 0, cumulated[chosen * each - 1], 0.0)
    high = cumulated[(chosen + 1) * each - 1]
    spots = low + (high - low) * generator.random(len(chosen))
    return np.clip(np.searchsorted(cumulated, spots), chosen * each, (chosen + 1) * each - 1)


def metrics(of: Sample) -> dict[str, Estimate]:
    """The metrics that noise in the splits does not bias, by name."""
    truth, segments = of.truth, of.segments
    whole = of.credit(np.zeros_like(segments))
    credit = of.credit(segments)
    found = {
        "share_on_boundaries.end": share_on_boundaries(truth, segments),
        "share_on_boundaries.start": share_on_boundaries(truth, segments, fork="start"),
        "random_share_on_boundaries": random_share_on_boundaries(truth, segments),
        "boundary_ratio": boundary_ratio(truth, segments),
        "share_within": share_within(truth, segments),
        "random_share_within": random_share_within(truth, segments),
        "baseline_bias": baseline_bias(truth, segments),
        "mass_kept": mass_kept(truth, credit),
        "mass_error": mass_error(truth, credit),
        "true_noise_ratio": true_noise_ratio(truth, segments),
        "credit_noise": credit_noise(truth, credit),
        "credit_noise_ratio": credit_noise_ratio(truth, credit),
        "sharpening": sharpening(truth, credit),
    }
    for name, (share, ratio) in share_by_class(truth, of.ids - 1, CLASSES).items():
        found |= {f"share_by_class.{name}": share, f"share_by_class.{name}.ratio": ratio}
    entropies = truth.require_scores().entropies
    for q, found_lift in lift(truth, entropies, QUANTILES).items():
        found[f"lift.{q}"] = found_lift
    for level in ("gradient", "token", "segment", "completion"):
        found[f"correlation.{level}"] = correlation(truth, credit, level)
        found[f"slope.{level}"] = slope(truth, credit, level)
        found[f"noise.{level}"] = noise(truth, credit, level)
        found[f"sign_agreement.{level}"] = sign_agreement(truth, credit, level)
    for part in ("tokens", "all", "early", "late"):
        of_values = value_metrics(truth, credit, part)
        found |= {f"values.{part}.{name}": of_values[name] for name in of_values}
    consistency = value_consistency(truth, segments, of.estimates)
    found |= {f"consistency.{name}": consistency[name] for name in consistency}
    found["difference.correlation"] = difference(
        found["correlation.token"], correlation(truth, whole)
    )
    found["difference.correlation.gradient"] = difference(
        found["correlation.gradient"], correlation(truth, whole, "gradient")
    )
    found["difference.share_within"] = difference(
        found["share_within"], share_within(truth, np.zeros_like(segments))
    )
    return found


def noisy_metrics(of: Sample) -> dict[str, Estimate]:
    """The metrics whose value depends on the noise in the splits, by name."""
    truth, segments = of.truth, of.segments
    credit = of.credit(segments)
    found = {"oracle_share": oracle_share(truth, segments)}
    entropies = truth.require_scores().entropies
    for q, found_lift in lift(truth, entropies, QUANTILES, threshold=JUMP).items():
        found[f"lift_jumps.{q}"] = found_lift
    jumps = jump_agreement(truth, segments)
    found |= {f"jump_{name}": jumps[name] for name in jumps}
    for level in ("gradient", "token", "segment", "completion"):
        found[f"sign_ceiling.{level}"] = sign_ceiling(truth, credit, level)
    return found


def all_metrics(of: Sample) -> dict[str, Estimate]:
    """Every metric but those of the gradient, by name."""
    return metrics(of) | noisy_metrics(of)


def policy_gradients(of: Sample) -> np.ndarray:
    """(rows, D) a completion's gradient under the credit of its segments."""
    advantages = of.credit(of.segments).advantages
    return (of.gradients * advantages[..., None]).sum(1)


def reference_gradient(everything: Population) -> np.ndarray:
    """(D,) of the expected reward, exact."""
    scored = everything.gradients.sum(1) * (everything.shares * everything.rewards)[:, None]
    return scored.sum(0) / (len(everything.rewards) // everything.each)


GROUPS = {"weights": slice(0, 12), "bias": slice(12, 15)}


def gradients(of: Sample, reference: np.ndarray) -> dict[str, Estimate]:
    """The metrics of the gradient; a batch is the completions drawn of one prompt."""
    batches_ND = policy_gradients(of).reshape(-1, COMPLETIONS, len(reference)).mean(1)
    found = gradient_metrics(batches_ND, reference, GROUPS, resampling=of.truth.resampling)
    return {
        f"gradient.{group}.{name}": found[group][name] for group in found for name in found[group]
    }


def exact_gradients(
    everything: Population, of: Sample, reference: np.ndarray, batches: int = 100_000
) -> dict[str, float]:
    """Their exact values, from their definitions; the cosine is a mean over many batches."""
    all_BD, found = policy_gradients(of), {}
    chances_PC = everything.shares.reshape(-1, everything.each)
    drawn = draw(everything, batches, np.random.default_rng(2))
    drawn_ND = all_BD[drawn].reshape(batches, COMPLETIONS, -1).mean(1)
    for group, part in {"all": slice(None), **GROUPS}.items():
        g, r, drawn_g = all_BD[:, part], reference[part], drawn_ND[:, part]
        by_prompt = (chances_PC[..., None] * g.reshape(*chances_PC.shape, -1)).sum(1)
        squares_P = (chances_PC * (g**2).sum(1).reshape(chances_PC.shape)).sum(1)
        inside = float(np.mean(squares_P - (by_prompt**2).sum(1)))
        scatter = float(by_prompt.var(0).sum()) + inside / COMPLETIONS
        along, size = float(by_prompt.mean(0) @ r), float(r @ r)
        lengths = np.sqrt((drawn_g**2).sum(1))
        found |= {
            f"gradient.{group}.cosine": float(np.mean(drawn_g @ r / lengths)) / np.sqrt(size),
            f"gradient.{group}.projection": along / size,
            f"gradient.{group}.gradient_noise": scatter / size,
            f"gradient.{group}.signal_to_noise": along / np.sqrt(scatter * size),
        }
    return found


def exact_values(everything: Population, repeats: int = 6) -> tuple[dict, dict]:
    """Returns every metric's exact value, and those that noise biases as they are on average."""
    rows = np.arange(len(everything.rewards))
    options = {"weights": everything.shares}
    whole = sample(everything, rows, everything.prompts, generator=None, **options)
    exact = {name: found.value for name, found in all_metrics(whole).items()}
    exact |= exact_gradients(everything, whole, reference_gradient(everything))
    generator = np.random.default_rng(1)
    means: dict[str, list[np.ndarray]] = {}
    for _ in range(repeats):
        noisy = sample(everything, rows, everything.prompts, generator=generator, **options)
        last = noisy_metrics(noisy)
        for name, found in last.items():
            means.setdefault(name, []).append(found.moments.mean(0))
    expected = {n: float(last[n].combine(np.mean(means[n], axis=0))) for n in means}
    return exact, expected


def coverage(
    everything: Population,
    *,
    prompts: Iterable[int] = PROMPTS,
    seeds: int = SEEDS,
    resamples: int = RESAMPLES,
    repeats: int = 6,
) -> pd.DataFrame:
    """A row a metric, number of prompts, kind of truth and target."""
    exact, expected = exact_values(everything, repeats)
    reference = reference_gradient(everything)
    rows = []
    for count in prompts:
        ends = {"exact": [], "splits": []}
        for seed in range(seeds):
            generator = np.random.default_rng((seed, count))
            drawn = draw(everything, count, generator)
            units = np.repeat(np.arange(count), COMPLETIONS)
            options = {"resampling": Resampling(resamples=resamples, seed=seed)}
            for kind, source in (("exact", None), ("splits", generator)):
                of = sample(everything, drawn, units, generator=source, **options)
                found = all_metrics(of) | (gradients(of, reference) if kind == "exact" else {})
                ends[kind].append({name: (f.value, f.low, f.high) for name, f in found.items()})
        for kind, per_seed in ends.items():
            for name in per_seed[0]:
                drawn_S3 = np.array([found[name] for found in per_seed])
                targets = {"exact": exact[name]}
                if kind == "splits" and name in expected:
                    targets["with_noise"] = expected[name]
                rows += [_row(name, count, kind, *item, drawn_S3) for item in targets.items()]
    return pd.DataFrame(rows)


def _row(name: str, count: int, kind: str, target: str, value: float, drawn_S3) -> dict:  # noqa: ANN001
    estimate, low, high = drawn_S3.T
    rounding = 1e-9 * max(1.0, abs(value))
    covered = (low - rounding <= value) & (value <= high + rounding)
    width = np.median(high - low)
    return {
        "metric": name,
        "prompts": count,
        "truth": kind,
        "target": target,
        "value": round(value, 4),
        "mean": round(float(np.mean(estimate)), 4),
        "median_width": round(float(width), 4),
        "coverage": round(float(covered.mean()), 4),
    }


if __name__ == "__main__":
    table = coverage(population())
    table.to_csv(TABLE, index=False)
    noisy = set(table.loc[table["target"] == "with_noise", "metric"])
    other = (table["truth"] == "splits") & (table["target"] == "exact")
    own = table[~(other & table["metric"].isin(noisy))]
    print(own.groupby(["prompts", "truth", "target"])["coverage"].describe().to_string())
    print(own[~own["coverage"].between(0.92, 0.98)].to_string(index=False))
