"""The core against numbers from the reference implementations' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segcredit import registry
from segcredit.aggregation import aggregate_loss
from segcredit.credit import advantages, lambda_returns, segment_values
from segcredit.objective import kl_divergence, surrogate_loss
from segcredit.segmentation import Segmentation, top_fraction
from segcredit.testing import make_rollouts
from segcredit.types import SegmentValues

HERE = Path(__file__).parent / "goldens"
CASES = json.loads((HERE / "cases.json").read_text())
MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum-norm": "sequence_sum_norm",
}


def load(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of a case, masks as bool, and its arguments."""
    with np.load(HERE / f"{case}.npz") as file:
        arrays = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    for name in ("response_mask", "loss_mask", "seg_end"):
        if name in arrays:
            arrays[name] = arrays[name].bool()
    return arrays, CASES[case]["args"]


def named(prefix: str) -> list[str]:
    return sorted(case for case in CASES if case.startswith(prefix))


def joined(data: dict[str, Tensor], segmentation: Segmentation, anchor: str) -> SegmentValues:
    """Segment values from the values and rewards of tokens."""
    mask = data["response_mask"]
    rows, width = mask.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    rewards = data["token_level_rewards"].masked_fill(~mask, 0)
    rollouts = blank.replace(action_mask=mask, token_rewards=rewards)
    return segment_values(
        rollouts, segmentation, data["values"].gather(1, segmentation.anchors(anchor))
    )


@pytest.mark.parametrize("case", named("sapo_adv"))
def test_sapo_advantages_of_the_released_code(case: str) -> None:
    data, args = load(case)
    mask = data["response_mask"]
    forks = top_fraction(data["entropys"], mask, args["topk_percent"] / 100)
    segmentation = Segmentation.from_ends(forks, mask)
    assert torch.equal(segmentation.ends, data["seg_end"])
    values = joined(data, segmentation, "last_token")
    clock = {"gamma": args["gamma"], "lam": args["lam"]}
    returns = segmentation.spread(lambda_returns(values, **clock))
    assert torch.allclose(returns[mask], data["returns"][mask], atol=1e-10, rtol=0)
    inner = {"name": "gae", **clock}
    scheme = registry.advantages.build("whitened", inner=inner, clamp=5.0)
    found = advantages(segmentation, values, scheme(values)).per_token
    # The reference's whitening counts in float32.
    assert torch.allclose(found[mask], data["advantages"][mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", named("verl_gae"))
def test_token_gae_across_holes(case: str) -> None:
    data, args = load(case)
    mask = data["response_mask"]
    assert not bool((mask[:, 1:] <= mask[:, :-1]).all())
    segmentation = Segmentation.from_starts(mask, mask)
    values = joined(data, segmentation, "start")
    returns = segmentation.spread(lambda_returns(values, gamma=args["gamma"], lam=args["lam"]))
    assert torch.allclose(returns[mask], data["returns"][mask], atol=1e-10, rtol=0)


@pytest.mark.parametrize("case", [*named("sapo_policy"), *named("verl_policy_vanilla")])
def test_surrogate_and_its_gradient(case: str) -> None:
    data, args = load(case)
    mask, segments = data["response_mask"], "seg_end" in data
    ends = data["seg_end"] if segments else mask
    new = data["log_prob"].clone().requires_grad_()
    loss, metrics = surrogate_loss(
        new,
        data["old_log_prob"],
        data["advantages"],
        mask,
        Segmentation.from_ends(ends, mask),
        ratio="segment" if segments else "token",
        clip_low=args.get("clip_ratio_low", args.get("cliprange_low", 0.2)),
        clip_high=args.get("clip_ratio_high", args.get("cliprange_high", 0.2)),
        dual_clip=args.get("clip_ratio_c", 3.0),
        aggregate=MODES[args.get("loss_agg_mode", "token-mean")],
    )
    loss.backward()
    # The references add 1e-8 to some counts.
    assert float(loss.detach()) == pytest.approx(float(data["loss"]), rel=1e-8)
    assert new.grad is not None
    assert torch.allclose(new.grad[mask], data["grad_log_prob"][mask], atol=1e-9, rtol=1e-8)
    assert float(metrics["kl"]) == pytest.approx(float(data["ppo_kl"]), rel=1e-6)


@pytest.mark.parametrize("case", named("verl_agg"))
def test_aggregation(case: str) -> None:
    data, args = load(case)
    losses = data["loss_mat"].clone().requires_grad_()
    loss = aggregate_loss(losses, data["loss_mask"].double(), MODES[args["loss_agg_mode"]])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(data["loss"]), rel=1e-8)
    assert losses.grad is not None
    assert torch.allclose(losses.grad, data["grad_loss_mat"], atol=1e-9)


@pytest.mark.parametrize("case", named("verl_kl"))
def test_kl_estimates(case: str) -> None:
    data, args = load(case)
    new = data["logprob"].clone().requires_grad_()
    found = kl_divergence(new, data["ref_logprob"], args["kl_penalty"])
    found.sum().backward()
    assert torch.allclose(found, data["kl"], atol=1e-10)
    assert new.grad is not None
    assert torch.allclose(new.grad, data["grad_logprob"], atol=1e-10)
