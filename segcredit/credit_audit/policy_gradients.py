"""Policy gradients of credit, and the reference that they are held against.

The gradient is that of REINFORCE, Σ_t A_t ∇ log π(y_t), a mean over completions, at the frozen
policy: what one on-policy step follows, whatever the objective's ratio and clipping.

Letters: ``B`` completions, ``T`` tokens, ``N`` batches, ``D`` parameters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from segcredit.atomic_files import write_atomically
from segcredit.episodes import complete
from segcredit.objective.group_statistics import group_mean, group_size
from segcredit.protocols import Prompt
from segcredit.rng import stream
from segcredit.training.build import Run
from segcredit.training.rollouts.completions import as_rollouts, micro_batches
from segcredit.types import RolloutBatch

Parameters = npt.NDArray[np.float32]
SPLITS = 2
"""Independent estimates of the reference: its squared length is the product of the two."""
_ROWS = 512
"""Completions of the reference that are sampled at a time."""
_KEY = "segcredit"


def policy_gradient(
    run: Run, rollouts: RolloutBatch, advantages_BT: Tensor, batches: Sequence[Tensor]
) -> Parameters:
    """Computes (N,D) the gradient of each batch of completions, under their advantages.

    Args:
        run: the policy.
        rollouts: sampled from it.
        advantages_BT: of their tokens; those off the mask are 0.
        batches: row numbers of each batch.
    """
    return np.stack([_gradient(run, rollouts, advantages_BT, rows) for rows in batches])


def parameter_groups(policy: nn.Module) -> dict[str, npt.NDArray[np.int64]]:
    """Places of the parameters by part of the network: embedding, each layer, output."""
    groups: dict[str, list[npt.NDArray[np.int64]]] = {}
    place = 0
    for name, parameter in _trained(policy):
        places = np.arange(place, place + parameter.numel())
        groups.setdefault(_group(name), []).append(places)
        place += parameter.numel()
    return {name: np.concatenate(places) for name, places in groups.items()}


def reference_gradient(
    run: Run, prompts: Sequence[Prompt], samples: int, file: Path, of: str
) -> Parameters:
    """Estimates (2,D) the gradient from many completions of some prompts, in independent splits.

    Each prompt has equally many; each is held against the mean of the others (RLOO), which leaves
    the expectation alone. Taken from ``file`` where that holds the same.

    Args:
        run: the policy and the task.
        prompts: whose expected reward's gradient it is.
        samples: completions, at least; 2 a prompt and split.
        file: where it is kept.
        of: what it is of, such as the truth's hash.
    """
    each = max(2, -(-samples // (SPLITS * len(prompts))))
    label = json.dumps({"of": of, "each": each})
    found = _read(file, label)
    if found is None:
        found = np.stack([_split(run, prompts, each, split) for split in range(SPLITS)])
        write_atomically(file, save({"gradient": found}, metadata={_KEY: label}))
    return found


def _split(run: Run, prompts: Sequence[Prompt], each: int, split: int) -> Parameters:
    """Estimates (D,) one split of the reference, from completions of its own."""
    generator = stream(run.config.seed, "reference", split)
    total: Parameters | None = None
    for piece in _pieces(prompts, max(1, _ROWS // each)):
        rollouts = _rewarded(run, [prompt for prompt in piece for _ in range(each)], generator)
        size_B = group_size(rollouts.group)
        others_B = (group_mean(rollouts.rewards, rollouts.group) * size_B - rollouts.rewards) / (
            size_B - 1
        )
        advantages_BT = (rollouts.rewards - others_B)[:, None] * rollouts.action_mask
        rows = torch.arange(len(rollouts), device=advantages_BT.device)
        share = len(piece) / len(prompts)
        gradient = share * _gradient(run, rollouts, advantages_BT, rows)
        total = gradient if total is None else total + gradient
    return cast(Parameters, total)


def _rewarded(run: Run, prompts: Sequence[Prompt], generator: torch.Generator) -> RolloutBatch:
    sizes, micro_tokens = run.config.rollouts, run.config.train.micro_tokens
    completions = complete(
        run.actor,
        run.task,
        prompts,
        params=sizes.sampling(),
        generator=generator,
    )
    return as_rollouts(completions, run.actor, micro_tokens=micro_tokens)


def _gradient(run: Run, rollouts: RolloutBatch, advantages_BT: Tensor, rows: Tensor) -> Parameters:
    """Computes (D,) the mean over these completions."""
    parameters = [parameter for _, parameter in _trained(cast(nn.Module, run.actor))]
    rows = rows.to(rollouts.action_mask.device)
    total: Tensor | None = None
    for piece in micro_batches(rollouts.action_mask[rows], run.config.train.micro_tokens):
        chosen = rows[piece]
        logprobs_BT = run.actor(rollouts.select(chosen)).logprobs
        gain = (logprobs_BT * advantages_BT[chosen].to(logprobs_BT.dtype)).sum() / len(rows)
        parts = torch.autograd.grad(gain, parameters, materialize_grads=True)
        flat = torch.cat([part.flatten() for part in parts])
        total = flat if total is None else total + flat
    return cast(Tensor, total).float().cpu().numpy()


def _trained(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in policy.named_parameters() if p.requires_grad)


def _group(name: str) -> str:
    """Names the part of the network that a parameter is in: up to a layer's number, or one name."""
    parts = list(itertools.dropwhile(lambda part: part == "model", name.split(".")))
    numbered = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1] if numbered else parts[:1])


def _pieces(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    return (prompts[first : first + size] for first in range(0, len(prompts), size))


def _read(file: Path, label: str) -> Parameters | None:
    """Reads the file; None where there is none, a damaged one, or another reference."""
    if not file.exists():
        return None
    opened: Callable[..., Any] = safe_open
    try:
        with opened(file, framework="numpy") as content:
            same = (content.metadata() or {}).get(_KEY) == label
            return content.get_tensor("gradient") if same else None
    except SafetensorError:
        return None
