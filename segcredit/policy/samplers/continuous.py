"""The sampler ``continuous``: continuous batching of transformers, rows joining as others end."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig

from segcredit.errors import PolicyError
from segcredit.policy.samplers.generate import generation_config, own_defaults, seeded
from segcredit.protocols import Sampler

_LOGGER = "ContinuousBatchingLogger"


@dataclass(frozen=True, slots=True)
class Continuous(Sampler):
    """Samples so many rows at once, a new one in the place of each that ends.

    Greedy tokens are those of ``generate``. Deterministic for the state of the generator. On one
    core it does not pay: four to six times the CPU-seconds of ``generate`` on the tiny policy
    (``benchmarks/sampling.py``); it is written for accelerators, where it was not measured.
    Works for text, does without prefix caches, and needs transformers 5.24.
    """

    rows: int = 64
    """Most rows at once, which the memory of keys and values is made for."""
    tokens: int = 256
    """Most tokens of one pass, those of prompts included."""

    def __post_init__(self) -> None:
        for name in ("rows", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")

    def sample(
        self,
        model: nn.Module,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        *,
        max_new_tokens: int,
        temperature: float,
        greedy: bool,
        end_ids: Sequence[int],
        pad_id: int,
        suppressed_ids: Sequence[int],
        generator: torch.Generator,
        cache: Any = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Int[Tensor, "B T"]:
        """One completion a row, padded after the end token to ``max_new_tokens``.

        Raises:
            PolicyError: the prompts have images, or transformers failed.
        """
        drawn_BT = prompt_ids.new_full((len(prompt_ids), max_new_tokens), pad_id)
        if inputs:
            raise PolicyError(
                f"the prompts of {type(model).__name__} come with {', '.join(sorted(inputs))};"
                " sampler 'continuous' expected token ids alone. Usually the model reads images:"
                " take sampler.name='generate'."
            )
        if not drawn_BT.numel():
            return drawn_BT
        config = generation_config(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            greedy=greedy,
            end_ids=end_ids,
            pad_id=pad_id,
            suppressed_ids=suppressed_ids,
        )
        prompts = [ids[mask].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
        sizes = self._sizes(max(map(len, prompts)) + max_new_tokens)
        with _quiet(), torch.no_grad(), seeded(generator, prompt_ids.device), own_defaults(model):
            manager = cast(Any, model).init_continuous_batching(
                generation_config=config, continuous_batching_config=sizes
            )
            # All are there before the first pass, so that chance alone decides, not the clock.
            names = manager.add_requests(prompts, max_new_tokens=max_new_tokens)
            found = _finished(manager, len(names))
        for row, name in enumerate(names):
            ids = found[name][:max_new_tokens]
            drawn_BT[row, : len(ids)] = drawn_BT.new_tensor(ids)
        return drawn_BT

    def _sizes(self, length: int) -> ContinuousBatchingConfig:
        """Of its memory; left to itself it takes most of the machine's."""
        pages = -(-length // ContinuousBatchingConfig().page_size)
        return ContinuousBatchingConfig(
            num_blocks=self.rows * pages,
            max_batch_tokens=max(self.tokens, self.rows),
            max_requests_per_batch=self.rows,
            auto_switch_to_flash=False,
        )


def _finished(manager: Any, count: int) -> dict[str, list[int]]:
    """The tokens of each request, once so many are done."""
    found: dict[str, list[int]] = {}
    manager.start()
    try:
        while len(found) < count:
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise _failure(f"it ended after {len(found)} of {count} rows")
            if result is not None and result.error is not None:
                raise _failure(f"a row failed: {result.error}")
            if result is not None and result.is_finished():
                found[result.request_id] = result.generated_tokens
    finally:
        manager.stop(block=True, hard_stop=len(found) < count)
        manager.destroy()
    return found


def _failure(what: str) -> PolicyError:
    return PolicyError(
        f"continuous batching of transformers gave no completions: {what}; expected all of them."
        " Usually the model's attention is not supported, or memory is short: lower sampler.rows,"
        " or take sampler.name='generate'."
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Without its warning that suppressed ids might be ignored: they are not."""
    logger = logging.getLogger(_LOGGER)
    kept = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(kept)
