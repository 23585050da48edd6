"""Samplers that are not the trainer: some updates old, in bfloat16, or at another temperature.

segcredit train grpo 'sampler={name="behind", every=4}' loss.correction=truncate \
    --code experiments/13_off_policy/samplers.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

import segcredit
from segcredit import SampledTokens, Sampler, SamplingParams
from segcredit.policy.module_copies import frozen_copy
from segcredit.policy.samplers.lean import Lean


@segcredit.register.sampler("behind")
@dataclass(eq=False)
class Behind(Sampler):
    """Samples as ``lean`` does with weights of its own, and tells what it drew with.

    Greedy completions, by which a policy is evaluated, are those of the trainer's model. A run that
    is resumed begins with fresh weights.

    Args:
        every: updates between two takings over of the weights; 1 = never behind.
        bfloat16: whether weights are rounded to bfloat16. Sums stay in float32, so that it is less
            of a difference than an engine's.
        warmer: factor of the policy's temperature.
    """

    every: Annotated[int, Interval(ge=1)] = 1
    bfloat16: bool = False
    warmer: Annotated[float, Interval(ge=0.01, le=100)] = 1.0

    in_process = False

    def __post_init__(self) -> None:
        self._own: nn.Module | None = None
        self._updates = 0

    def sample(
        self,
        model: nn.Module,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        *,
        params: SamplingParams,
        pad_id: int,
        generator: torch.Generator,
        cache: Any = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> SampledTokens:
        """Samples with its own weights, or greedily with the model's."""
        given: dict[str, Any] = {"pad_id": pad_id, "generator": generator, "inputs": inputs}
        if params.greedy:
            return Lean().sample(model, prompt_ids, prompt_mask, params=params, **given)
        if self._own is None:
            self._take(model)
        params = replace(params, temperature=params.temperature * self.warmer)
        drawn = Lean().sample(self._own or model, prompt_ids, prompt_mask, params=params, **given)
        return replace(
            drawn,
            logprobs=_logprobs(self._own or model, prompt_ids, prompt_mask, drawn.ids, params),
        )

    def sync(self, model: nn.Module) -> None:
        """Counts an update, and takes over the weights where it is due."""
        self._updates += 1
        if self._updates % self.every == 0:
            self._take(model)

    def _take(self, model: nn.Module) -> None:
        self._own = frozen_copy(model)
        for parameter in self._own.parameters() if self.bfloat16 else ():
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)


@torch.no_grad()
def _logprobs(
    model: Any, prompt_ids: Tensor, prompt_mask: Tensor, ids_BT: Tensor, params: SamplingParams
) -> Tensor:
    """Computes the log-probs of drawn tokens, in nats; what follows a row's end is not read."""
    mask_BL = torch.cat([prompt_mask, torch.ones_like(ids_BT, dtype=torch.bool)], 1)
    output = model(
        input_ids=torch.cat([prompt_ids, ids_BT], 1),
        attention_mask=mask_BL.long(),
        position_ids=(mask_BL.long().cumsum(1) - 1).clamp(min=0),
    )
    logits_BTV = output.logits[:, prompt_ids.shape[1] - 1 : -1].float()
    suppressed = torch.tensor(list(params.suppressed_ids), dtype=torch.long)
    logits_BTV = logits_BTV.index_fill(2, suppressed, -torch.inf) / params.temperature
    # Where a row has ended, the token that fills it may be suppressed, and have no probability.
    found_BT1 = logits_BTV.log_softmax(2).gather(2, ids_BT[..., None])
    return found_BT1[..., 0].nan_to_num(neginf=0.0)
