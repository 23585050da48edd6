"""Which combinations leave the policy gradient unbiased: the tables of docs/explain/exactness.md.

``exact.py`` adds up, over all completions of a toy policy, what the real plug-ins and the real
objective give. Here that sum is checked against slower ones, the tables' figures against their
claims, and the page against the tables.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from exact import (
    Toy,
    deviation,
    estimate_alone,
    flat_gradient,
    measure,
    segment,
    surrogate_gradient,
    toy,
    tree_rows,
    tree_shares,
    weighed_credit,
    weighed_group_credit,
)
from exact_claims import CUTS, EXACT, FIXED, NEWLINE, PER_TOKEN, WHOLE, Cut, estimator, scheme
from exact_tables import full_return, half_lambda, one_step, ratio_error, tables
from flat_loss import surrogate_loss
from segcredit import AdvantageScheme, ValueEstimator
from segcredit.objective.returns import advantages, segment_values

SCRIPT = Path(__file__).parents[1] / "docs" / "explain" / "exactness.py"
BOUNDS = ("clip", "log_clip", "truncated_is", "soft_gate")


@functools.cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exactness_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The enumeration itself.


def expected_reward(world: Toy) -> Tensor:
    """Token by token, from the root: the sum over symbols of probability times what follows."""
    everything = world.everything
    logprobs = world.policy(everything).logprobs
    places = {text: row for row, text in enumerate(everything.texts)}

    def below(prefix: str) -> Tensor:
        if len(prefix) == world.policy.length:
            return everything.rewards[places[prefix]]
        first = {
            symbol: next(t for t in places if t.startswith(prefix + symbol)) for symbol in " \na"
        }
        chances = {symbol: logprobs[places[t], len(prefix)].exp() for symbol, t in first.items()}
        return sum((chances[symbol] * below(prefix + symbol) for symbol in first), torch.zeros(()))

    return below("")


def test_the_true_gradient_is_that_of_the_expected_reward() -> None:
    """By the tree of prefixes, and by differences."""
    world = toy()
    reward = expected_reward(world)
    torch.testing.assert_close(reward, world.shares @ world.everything.rewards)
    torch.testing.assert_close(flat_gradient(reward, world.policy), world.gradient)
    places = torch.linspace(0, len(world.gradient) - 1, 12).long()
    flat = torch.nn.utils.parameters_to_vector(world.policy.parameters()).detach().clone()
    step = 1e-5
    try:
        for place in places:
            moved = []
            for sign in (1, -1):
                shifted = flat.clone()
                shifted[place] += sign * step
                torch.nn.utils.vector_to_parameters(shifted, world.policy.parameters())
                shares = world.policy(world.everything).logprobs.sum(1).exp()
                moved.append(float(shares.detach() @ world.everything.rewards))
            slope = (moved[0] - moved[1]) / (2 * step)
            assert slope == pytest.approx(float(world.gradient[place]), abs=1e-9)
    finally:
        torch.nn.utils.vector_to_parameters(flat, world.policy.parameters())


def test_the_policy_is_far_from_uniform_and_rewards_are_unrelated() -> None:
    world = toy()
    assert len(world.everything) == 3**5
    assert float(world.shares.sum()) == pytest.approx(1, abs=1e-14)
    assert float(world.everything.logprobs.exp().max()) > 0.9
    assert len(world.everything.rewards.unique()) > 200


def test_values_of_prefixes() -> None:
    world = toy()
    values_CT = world.simulator.values(world.everything)
    texts = world.everything.texts
    for row in range(0, len(texts), 17):
        for place in range(5):
            same = torch.tensor([text[:place] == texts[row][:place] for text in texts])
            shares = world.shares[same]
            mean = (shares @ world.everything.rewards[same]) / shares.sum()
            assert float(values_CT[row, place]) == pytest.approx(float(mean), abs=1e-13)


def test_wrong_values_are_wrong_and_differ_from_state_to_state() -> None:
    world = toy()
    cut = next(cut.plugin for cut in CUTS if cut.name == "per_token")
    wrong = estimate_alone(world, cut, estimator("critic")).values
    right = estimate_alone(world, cut, estimator("monte_carlo")).values
    assert float((wrong - right).abs().min()) > 1e-4
    assert len(wrong.unique()) > 100
    by_prompt = [estimate_alone(world, cut, estimator(n)).values for n in ("tracker", "greedy")]
    assert [len(values.unique()) for values in by_prompt] == [1, 1]
    assert float(by_prompt[0][0, 0]) == 0.75  # 3 successes, 1 failure


def group_gradient(
    world: Toy, cut: Cut, source: ValueEstimator, advantage: AdvantageScheme, size: int
) -> Tensor:
    """The expected gradient, one real batch after another, its advantages in the real loss."""
    total = torch.zeros_like(world.gradient)
    for rows in itertools.product(range(len(world.everything)), repeat=size):
        batch = world.everything.select(list(rows)).replace(
            group=torch.zeros(size, dtype=torch.long),
            node_ids=torch.arange(size * world.policy.length).view(size, -1),
        )
        cuts = cut.plugin.segment(batch)
        values_BS = source.estimate(source.start(world.policy), batch, cuts, world.simulator)
        values = segment_values(batch, cuts, values_BS)
        credit = advantages(cuts, values, advantage(values))
        loss, _ = surrogate_loss(
            world.policy(batch).logprobs,
            batch.logprobs,
            credit.per_token,
            batch.action_mask,
            cuts,
            ratio="token",
            clip_low=0.2,
            clip_high=0.2,
            aggregate="sequence_mean_token_sum",
        )
        total -= flat_gradient(loss, world.policy) * world.shares[list(rows)].prod()
    return total


@pytest.mark.parametrize(
    ("source", "advantage", "size"),
    [
        ("leave_one_out", scheme("full_return"), 2),
        ("group_mean", scheme("group_scaled", inner="full_return"), 2),
        ("group_mean", scheme("whitened", inner="full_return"), 2),
        ("monte_carlo", scheme("whitened", inner="td", weight="segment"), 2),
        ("tree", scheme("td"), 2),
        ("group_mean", scheme("whitened", inner="full_return"), 3),
    ],
)
def test_one_sum_is_as_good_as_batch_after_batch(
    source: str, advantage: AdvantageScheme, size: int
) -> None:
    """Advantages may be weighed and added up before the loss, for the gradient is linear."""
    world, cut = toy(2 if size == 2 else 1), NEWLINE
    alone, white = source == "monte_carlo", "Whitened" in type(advantage).__name__
    weighed_CT = weighed_group_credit(
        world, cut.plugin, estimator(source), advantage, size=size, alone=alone, batches=white
    )
    found = surrogate_gradient(world, weighed_CT, cut.plugin)
    want = group_gradient(world, cut, estimator(source), advantage, size)
    assert deviation(found, want).error < 1e-9


def test_trees_share_stems_and_their_probabilities_add_up() -> None:
    world = toy(3)
    rows_N4 = tree_rows(world, stem=2)
    assert len(rows_N4) == 9**2 * 3**4
    assert float(tree_shares(world, rows_N4, stem=2).sum()) == pytest.approx(1, abs=1e-13)
    for rows in rows_N4[::97].tolist():
        texts = [world.everything.texts[row] for row in rows]
        assert texts[0][:2] == texts[1][:2]
        assert texts[2][:2] == texts[3][:2]


# The tables.


def test_figures_are_what_was_claimed_of_them() -> None:
    """Below 1e-10 where exactness is claimed, above 1e-4 where a bias is, nothing between."""
    figures = [(place, figure) for table in tables() for place, figure in table.figures]
    wrong = [
        f"{place}: {figure.value:.3g}, claimed {figure.why or 'exact'}"
        for place, figure in figures
        if (figure.value > 1e-4) != bool(figure.why) or EXACT <= figure.value <= 1e-4
    ]
    assert not wrong
    assert sum(not figure.why for _, figure in figures) > 150
    assert sum(bool(figure.why) for _, figure in figures) > 150


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_segmenters_know_whether_they_are_causal(cut: Cut) -> None:
    """With exact values, under any λ, and with wrong values where they are baselines only."""
    unbiased = {table().value(cut, "`monte_carlo`") < EXACT for table in (full_return, half_lambda)}
    unbiased.add(one_step().value(cut, "`monte_carlo`") < EXACT)
    unbiased.add(full_return().value(cut, "`critic`") < EXACT)
    assert unbiased == {cut.plugin.causal}


def test_the_cuts_differ() -> None:
    """The rows of the tables are not all the same segmentation."""
    ids = {str(cut): segment(toy(), cut.plugin).segment_ids for cut in CUTS}
    for one, other in itertools.combinations(ids, 2):
        assert not torch.equal(ids[one], ids[other]), f"{one} and {other}"


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_ratio_over_credit_segments_changes_nothing(cut: Cut) -> None:
    """Biased or not, the expected gradient is that of −A log π."""
    weighed_CT = weighed_credit(toy(), cut.plugin, estimator("critic"), scheme("td"))
    plain = surrogate_gradient(toy(), weighed_CT, cut.plugin, ratio="none")
    for ratio, gradient in itertools.product(("token", "segment"), ("full", "own_token")):
        found = surrogate_gradient(
            toy(), weighed_CT, cut.plugin, ratio=ratio, ratio_gradient=gradient
        )
        assert deviation(found, plain).error < EXACT


@pytest.mark.parametrize("bound", BOUNDS)
def test_every_ratio_is_exact_over_whole(bound: str) -> None:
    for ratio, gradient in itertools.product(
        ("none", "token", "segment", "sequence"), ("full", "own_token")
    ):
        assert ratio_error(WHOLE, WHOLE, ratio, gradient, bound) < EXACT
        assert ratio_error(WHOLE, FIXED, ratio, gradient, bound) < EXACT


@pytest.mark.parametrize("network", ["head", "reader"])
def test_a_critic_along_the_policys_states_is_a_baseline_too(network: str) -> None:
    """At causal boundaries it leaves the expected gradient alone; bootstrapping is biased by it."""
    critic = estimator("critic", network=network, width=4)
    assert measure(toy(), NEWLINE.plugin, critic, scheme("full_return")).error < EXACT
    assert measure(toy(), NEWLINE.plugin, critic, scheme("td")).error > 1e-4
    assert measure(toy(), PER_TOKEN.plugin, critic, scheme("full_return")).error < EXACT


def test_a_group_mean_keeps_all_but_one_share() -> None:
    """(G − 1)/G of the gradient, as its docstring says."""
    for size in (2, 3, 4):
        weighed_CT = weighed_group_credit(
            toy(2), WHOLE.plugin, estimator("group_mean"), scheme("full_return"), size=size
        )
        found = surrogate_gradient(toy(2), weighed_CT, WHOLE.plugin)
        assert deviation(found, (size - 1) / size * toy(2).gradient).error < EXACT


@pytest.mark.parametrize("source", ["zero", "leave_one_out"])
def test_pass_at_k_is_exact_for_the_best_of_k(source: str) -> None:
    """The gradient of the expected best of two, over the three rows that it is averaged over."""
    world = toy(2)
    by = scheme("pass_at_k", inner="full_return", k=2)
    weighed_CT = weighed_group_credit(world, WHOLE.plugin, estimator(source), by, size=3)
    found = surrogate_gradient(world, weighed_CT, WHOLE.plugin)
    shares = world.policy(world.everything).logprobs.sum(1).exp()
    rewards = world.everything.rewards
    best = shares @ torch.maximum(rewards[:, None], rewards) @ shares
    want = flat_gradient(best, world.policy) / 3
    # Others' mean reward is a baseline of its own: with it, the expected reward's is not left over.
    assert deviation(found, want).error < EXACT


# The page.


def test_the_page_is_what_the_script_writes() -> None:
    assert script().PAGE.read_text(encoding="utf-8") == script().page(), (
        "docs/explain/exactness.md is not up to date; run `python docs/explain/exactness.py`."
    )


def test_the_check_sees_a_page_that_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script(), "PAGE", tmp_path / "exactness.md")
    assert script().main(["--check"]) == 1
    assert "python docs/explain/exactness.py" in capsys.readouterr().out
    assert script().main([]) == 0
    assert script().main(["--check"]) == 0


@pytest.mark.parametrize("kind", ["segmenters", "estimators", "advantages"])
def test_every_plugin_has_its_place_on_the_page(kind: str) -> None:
    points = distribution("segcredit").entry_points.select(group=f"segcredit.{kind}")
    missing = [point.name for point in points if f"`{point.name}`" not in script().page()]
    assert not missing, (
        f"the {kind} {missing} are on no table; add them to tests/exact_claims.py or"
        " tests/exact_tables.py."
    )
