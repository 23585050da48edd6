"""The promise of the audit's intervals, on the toy policy: reduced here, whole where it is slow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from segcredit.testing import ToyPolicy, ToySimulator

SCRIPT = Path(__file__).parents[1] / "docs" / "explain" / "audit_coverage.py"
KEYS = ["metric", "prompts", "truth", "target"]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_coverage"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(page: ModuleType) -> object:
    return page.population(50)


def test_the_population_is_enumerated(page: ModuleType, small) -> None:
    policy = ToyPolicy(length=4, prompts=50, hidden_size=4, seed=0).double()
    simulator = ToySimulator(policy, reward=page.reward)
    rows = slice(7 * 81, 8 * 81)
    every = simulator.enumerate("7")
    assert np.allclose(small.values[rows, :4], simulator.values(every))
    assert np.allclose(small.values[rows, 4], every.rewards)
    assert np.allclose(small.shares.reshape(50, 81).sum(1), 1)
    scores = policy(every)
    scores.logprobs[5].sum().backward()
    exact = torch.cat([policy.output.weight.grad.flatten(), policy.output.bias.grad])
    assert np.allclose(small.gradients[rows][5].sum(0), exact)


def test_sampled_splits_are_unbiased_and_independent(page: ModuleType, small) -> None:
    rows = np.repeat(np.arange(40, 50), 3000)
    values = page._sampled_values(small, rows, np.random.default_rng(0))
    values = values.reshape(10, 3000, page.SPLITS, 5)
    means = values.mean((1, 2))
    exact = small.values[40:50]
    error = values.std(axis=(1, 2)) / np.sqrt(3000 * page.SPLITS)
    assert (np.abs(means - exact) <= 5 * error + 1e-12).all()
    away = values[..., :4] - exact[:, None, None, :4]
    together = (away[:, :, 0] * away[:, :, 1]).mean(1)
    assert (np.abs(together) <= 5 * (away**2).mean((1, 2)) / np.sqrt(3000)).all()


def test_draws_follow_the_probabilities(page: ModuleType, small) -> None:
    drawn = page.draw(small, 20_000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=len(small.rewards)) / len(drawn)
    expected = small.shares / 50
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max() * 4 / len(drawn))
    prompts = drawn.reshape(-1, page.COMPLETIONS) // small.each
    assert (prompts == prompts[:, :1]).all()


def test_intervals_cover_in_a_reduced_form(page: ModuleType, small) -> None:
    table = page.coverage(small, prompts=[40], seeds=30, resamples=200, repeats=10)
    own = own_targets(table)
    assert len(own) > 130
    assert own["coverage"].mean() == pytest.approx(0.95, abs=0.03)
    assert own["coverage"].min() >= 0.75
    # The estimates scatter around what is said to be exact.
    away = (own["mean"] - own["value"]).abs() / own["median_width"]
    assert away.max() < 0.3


def own_targets(table: pd.DataFrame) -> pd.DataFrame:
    """Each metric beside what it estimates: a noisy one beside its expectation under noise."""
    noisy = set(table.loc[table["target"] == "with_noise", "metric"])
    exact = (table["target"] == "exact") & (table["truth"] == "splits")
    return table[~(exact & table["metric"].isin(noisy))]


def test_the_committed_table_keeps_the_promise() -> None:
    table = pd.read_csv(SCRIPT.with_suffix(".csv"))
    assert not table.duplicated(KEYS).any()
    hundred = own_targets(table).query("prompts == 100")
    assert len(hundred) > 130
    # The ceiling of an exact truth is 1 in every draw: a constant is always covered.
    varied = hundred[hundred["median_width"] > 0]
    assert len(varied) == len(hundred) - 1
    assert varied["coverage"].between(0.92, 0.98).all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_committed_table_is_what_the_script_writes(page: ModuleType) -> None:
    table = pd.read_csv(SCRIPT.with_suffix(".csv"))
    again = page.coverage(page.population())
    both = table.merge(again, on=KEYS, suffixes=("", "_again"), validate="1:1")
    assert len(both) == len(table) == len(again)
    assert np.allclose(both["value"], both["value_again"], atol=1e-3, rtol=1e-3)
    # Libraries may round otherwise: a seed or two may change sides.
    assert (both["coverage"] - both["coverage_again"]).abs().max() <= 0.01
