"""Loads golden cases, lays them out as rollouts, and says how closely numbers must agree.

A case is arrays and arguments that a reference implementation's own code was called with, and what
it returned. Which directories are read: ``SEGCREDIT_GOLDENS`` or ``tests/goldens``, and the second
set's, ``SEGCREDIT_GOLDENS_2``, if that is named; cases of the second take the place of the first's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcredit import (
    Continuations,
    RolloutBatch,
    Segmentation,
    SegmentValues,
    Simulator,
    registry,
)
from segcredit.objective.returns import advantages, segment_values
from segcredit.testing import make_rollouts

GOLDENS = Path(os.environ.get("SEGCREDIT_GOLDENS", Path(__file__).parent / "goldens"))
GOLDENS_2 = Path(os.environ.get("SEGCREDIT_GOLDENS_2", GOLDENS))

EXACT = 1e-10
"""Absolute, float64: returns, losses, gradients, KL, trees."""
FLOAT32_FACTOR = 1e-6
"""Absolute, float64: the references' masks are integers, so that N/(N − 1) of a whitening, the
spread of a group of one, and clip fractions come out in float32."""
FLOAT32 = 1e-5
"""Absolute, where the reference ran in float32."""
FLOAT32_SCAN = 1e-4
"""Absolute, for GAE over at least ``LONG`` tokens in float32."""
LONG = 50
EXCLUDED_FAMILIES = {
    "verl_policy_gpg": "no ratio and no bound, over a count of its own",
    "verl_grpo_passk": "rewards the best of a group alone",
    "trl_loss_vespo": "no such bound here",
    "trl_loss_luspo": "weighs a row's loss by its length",
    "spo_naive_equal": "a fixed number of equal segments",
    "igpo_adv": "a baseline of the group's rewards at the same token position",
    "ragen_bilevel_gae": "an advantage over turns that becomes the reward of one over tokens",
}
EXCLUDED_TAGS = {
    "delta_two_sided": "TRL's upper cap on the unclipped ratio",
    "rollout_is_weights": "verl's weights for a sampler that is not the policy",
    "normalize_then_sum": "TRL's scaling of each reward on its own before they are added",
    "nan_rewards": "TRL's completions that no reward function can judge",
    "error": "what the reference itself refuses",
    "base_group": "HGPO's further comparison of episodes' scores with those of all steps",
}


def _hgpo_scaled(case: Case) -> bool:
    """HGPO divides each length of history by a spread of its own, which no value can say."""
    scaled = case.args.get("mode") == "mean_std_norm" and case.args.get("history_length", 0) > 0
    return case.family == "hgpo" and scaled


_MASKS = {
    *("response_mask", "loss_mask", "completion_mask", "tool_mask", "action_mask", "mask"),
    *("seg_end", "entropy_mask", "rollout_unfinished", "leaf", "eos_mask"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of ``cases.jsonl``."""

    name: str
    args: dict[str, Any]
    tags: frozenset[str]
    arrays: frozenset[str] = frozenset()
    """Names of what ``load`` gives."""
    folder: Path = GOLDENS
    """Where its file is."""

    @property
    def family(self) -> str:
        """What the case is called without its number."""
        return re.sub(r"(_\d+|_[^_]+_error)$", "", self.name)

    @property
    def float32(self) -> bool:
        """Whether the reference ran in float32."""
        return self.args.get("dtype") == "float32"

    def load(self) -> dict[str, Tensor]:
        """The arrays, masks as bool."""
        with np.load(self.folder / f"{self.name}.npz") as file:
            arrays = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
        return {name: x.bool() if name in _MASKS else x for name, x in arrays.items()}


def _read() -> list[Case]:
    found: dict[str, Case] = {}
    for folder in dict.fromkeys([GOLDENS, GOLDENS_2]):
        for x in map(json.loads, (folder / "cases.jsonl").read_text().splitlines()):
            tags, arrays = frozenset(x["tags"]), frozenset(x.get("arrays", ()))
            found[x["case"]] = Case(x["case"], x["args"], tags, arrays, folder)
    return list(found.values())


CASES = _read()
taken: set[str] = set()
"""Names of the cases that a test was parametrised with: ``test_goldens.py`` misses the others."""


WEIGHED = {
    *("ctpo_la_policy", "ctpo_policy", "verl_policy_clip_cov", "verl_policy_dppo_kl"),
    *("verl_policy_dppo_tv", "verl_policy_dro", "verl_policy_kl_cov", "vespo_policy"),
}
"""Families whose test takes verl's weights for a sampler that is not the policy."""


def excluded(case: Case) -> bool:
    """Whether the case is of a family, or has a tag, that segcredit leaves out."""
    taken_too = {"rollout_is_weights"} if case.family in WEIGHED else set[str]()
    tags = case.tags - taken_too
    left_out = case.family in EXCLUDED_FAMILIES or not tags.isdisjoint(EXCLUDED_TAGS)
    return left_out or _hgpo_scaled(case)


def missing(listed: Collection[Case]) -> list[str]:
    """Cases that no test was parametrised with, for no stated reason."""
    return [case.name for case in listed if case.name not in taken and not excluded(case)]


def cases(
    *families: str,
    tagged: str | None = None,
    untagged: Collection[str] = (),
    where: Callable[[Case], bool] = lambda case: True,
) -> pytest.MarkDecorator:
    """Parametrise a test over the cases of families, and remember that they are covered.

    Args:
        families: all their cases that are not excluded.
        tagged: only those with this tag.
        untagged: only those without any of these tags.
        where: only those for which this holds.
    """
    found = [
        case
        for case in CASES
        if case.family in families and not excluded(case)
        if tagged is None or tagged in case.tags
        if case.tags.isdisjoint(untagged) and where(case)
    ]
    taken.update(case.name for case in found)
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


def assert_close(
    case: Case,
    found: Tensor,
    expected: Tensor,
    *,
    atol: float = EXACT,
    scan: bool = False,
) -> None:
    """Compare under the tolerance of the case's type; NaN agrees with nothing.

    Args:
        case: says in what type the reference ran.
        found: segcredit's.
        expected: the reference's.
        atol: absolute tolerance in float64.
        scan: whether a recursion over tokens stands behind the numbers.
    """
    if case.float32:
        atol = FLOAT32_SCAN if scan and expected.shape[-1] >= LONG else FLOAT32
    found, expected = found.detach(), expected.to(found.dtype)
    torch.testing.assert_close(found, expected.view(found.shape), atol=atol, rtol=0.0)


def assert_close_masked(
    case: Case, found: Tensor, expected: Tensor, mask: Tensor, **options: Any
) -> None:
    """Compare where the mask is True; the width of the whole decides what is long."""
    assert found.shape == expected.shape == mask.shape
    assert_close(case, found.masked_fill(~mask, 0), expected.masked_fill(~mask, 0), **options)


def rollouts_of(mask: Tensor, rewards: Tensor, **fields: Any) -> RolloutBatch:
    """Rollouts with the given action mask and token rewards; what is not given is random.

    Every row is a prompt of its own unless ``group`` says otherwise.
    """
    rows, width = mask.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=rewards.dtype)
    defaults = {
        "action_mask": mask,
        "token_rewards": rewards.masked_fill(~mask, 0),
        "group": torch.arange(rows),
        "prompt_keys": tuple(map(str, range(rows))),
    }
    return blank.replace(**{**defaults, **fields})


def credit(
    rollouts: RolloutBatch,
    segmentation: Segmentation,
    estimator: str | dict[str, Any] | Tensor,
    advantage: dict[str, Any],
    *,
    simulator: Simulator | None = None,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, SegmentValues]:
    """Two of the four axes in a row: (B,T) advantages, and the values that they came from.

    Args:
        rollouts: of the case.
        segmentation: the first axis.
        estimator: name and options of a registered one; or (B,S) values that are there already.
        advantage: name and options of a registered scheme.
        simulator: what the estimator may ask.
        token_weights: how far the loss counts each token.
    """
    if isinstance(estimator, Tensor):
        values_BS = estimator
    else:
        table = {"name": estimator} if isinstance(estimator, str) else estimator
        built = registry.estimators.build(**table)
        values_BS = built.estimate(nn.Module(), rollouts, segmentation, simulator or Silent())
    values = segment_values(rollouts, segmentation, values_BS, token_weights=token_weights)
    per_segment = registry.advantages.build(**advantage)(values)
    return advantages(segmentation, values, per_segment).per_token, values


def segment(name: str, rollouts: RolloutBatch, **options: Any) -> Segmentation:
    """The cut of a registered segmenter."""
    return registry.segmenters.build(name, **options).segment(rollouts)


class Given(nn.Module):
    """A critic's state that predicts what the case says: (B,T) values with a gradient."""

    def __init__(self, values_BT: Tensor) -> None:
        super().__init__()
        self.values_BT = nn.Parameter(values_BT.clone())

    def forward(self, rollouts: RolloutBatch, scores: Any) -> Tensor:
        """(B,T) the value before each token."""
        return self.values_BT


class Silent(Simulator):
    """A simulator that nobody asks: its answers are None."""


@dataclass(frozen=True, slots=True)
class Told(Simulator):
    """A simulator whose continuations earn what the case says.

    Args:
        rewards: (B,T,K) of the continuations from each state.
        truncated: (B,T,K).
    """

    rewards: Tensor
    truncated: Tensor

    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Tensor,
        positions_N: Tensor,
        count: int,
        *,
        greedy: bool = False,
    ) -> Continuations:
        """What was recorded for the states asked for."""
        rewards_NK = self.rewards[rows_N, positions_N]
        assert rewards_NK.shape[1] == count
        return Continuations(
            rewards=rewards_NK, truncated=self.truncated[rows_N, positions_N], tokens=0
        )


def told(values_BT: Tensor) -> Told:
    """A simulator that continues each state once, with a known outcome."""
    return Told(values_BT[..., None], torch.zeros_like(values_BT, dtype=torch.bool)[..., None])
