"""Small checkpoints of transformers, and what a policy draws from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from segcredit.episodes import complete
from segcredit.policy.checkpoints.pretrained import Pretrained
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import RolloutBatch, SamplingParams

TASK = Arithmetic(min_steps=1, max_steps=3)


def tiny(**options: Any) -> Any:
    """A character-level Llama that has hardly learned the task."""
    return Tiny(**({"steps": 2} | options)).load(TASK, Generate(), temperature=1.0, seed=0)


def tiny_checkpoint(folder: Path, **options: Any) -> Path:
    """The same as a folder."""
    policy = tiny(**options)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def load(folder: str | Path, sampler: Any = None, **options: Any) -> Any:
    source = Pretrained(str(folder), **options)
    return source.load(TASK, sampler or Generate(), temperature=1.0, seed=0)


def drawn(policy: Any, *, count: int = 16, max_new_tokens: int = 24) -> RolloutBatch:
    """Completions of some prompts, scored under the policy."""
    prompts = TASK.prompts(count, torch.Generator().manual_seed(0))
    found = complete(
        policy,
        TASK,
        prompts,
        params=SamplingParams(max_new_tokens=max_new_tokens),
        generator=torch.Generator().manual_seed(1),
    )
    return as_rollouts(found, policy, micro_tokens=100_000)
