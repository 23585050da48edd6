"""Hidden states that tokens were drawn from, by a base model's own forward.

Letters: ``U`` different prompts, ``L`` columns of prompt and completion, ``R`` completion columns
that are read; the others as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from segcredit.policy.gradient_checkpointing import recomputes
from segcredit.policy.model_inputs import ModelInputs
from segcredit.policy.samplers.generate import cache_name
from segcredit.types import RolloutBatch


def token_states(
    base: nn.Module, rollouts: RolloutBatch, inputs: ModelInputs
) -> Float[Tensor, "B T H"]:
    """Computes the hidden state that each action token was drawn from, with gradients.

    Completions of one prompt share its keys and values where the model keeps them all, so that a
    prompt is read once; gradients reach it from all of them.

    Args:
        base: A model that returns ``last_hidden_state`` (B,L,H), causal.
        rollouts: Reads the prompts, the completion ids, the action mask and the extras.
        inputs: Makes what the model reads besides ids and mask.

    Returns:
        (B,T,H) float32: the state after the prompt and every token before t; 0 off the mask.

    Raises:
        PolicyError: a row's images are missing, or are another prompt's.
    """
    # Columns that are padding in every row cost a pass over them, in every layer.
    first = first_prompt_column(rollouts.prompt_mask)
    prompt_BP, prompt_mask_BP = rollouts.prompt_ids[:, first:], rollouts.prompt_mask[:, first:]
    width = _last_column(rollouts.action_mask) + 1
    # Nothing is drawn from the state after the last token, so that it need not be read.
    read_BR = rollouts.completion_ids[:, : max(width - 1, 0)]
    # Completions need no mask: they are padded on the right, and no token sees what follows it.
    mask_BL = torch.cat([prompt_mask_BP, torch.ones_like(read_BR, dtype=torch.bool)], 1)
    ids_BL, after = torch.cat([prompt_BP, read_BR], 1), [read_BR.shape[1]] * len(read_BR)
    given = inputs.prepared(base, ids_BL, mask_BL, rollouts.extras, after)
    # The first completion token is drawn from the state after the prompt's last one.
    before = prompt_BP.shape[1] - 1
    states_BLH = None if rollouts.extras else _prompts_once(base, given, before + 1)
    if states_BLH is None:
        states_BLH = base(**given, use_cache=False).last_hidden_state[:, before:]
    states_BTH = states_BLH[:, :width].float()
    states_BTH = states_BTH.masked_fill(~rollouts.action_mask[:, :width, None], 0.0)
    return pad(states_BTH, (0, 0, 0, rollouts.completion_ids.shape[1] - width))


def _prompts_once(base: nn.Module, given: Mapping[str, Tensor], width: int) -> Tensor | None:
    """Computes (B,1+R,H) states from the last prompt column on; each different prompt is read once.

    None where no two rows share a prompt, or the model cannot do so: see ``_continues``.
    """
    # By ids and mask alone: rows with images are not asked for here.
    prompts = {name: x[:, :width] for name, x in given.items()}
    first_U, place_B = _different(prompts["input_ids"], prompts["attention_mask"])
    if len(first_U) == len(place_B) or not _continues(base):
        return None
    output = base(**{name: x[first_U] for name, x in prompts.items()}, use_cache=True)
    name = cache_name(base)
    cache = output.get(name)
    # A model may keep something else than its config says: then all is read row by row.
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() != width:
        return None
    last_B1H = output.last_hidden_state[place_B, -1:]
    if given["input_ids"].shape[1] == width:
        return last_B1H
    # Indexing is differentiable: gradients of a prompt's rows add up in its keys and values.
    cache.batch_select_indices(place_B)
    rest = {
        "input_ids": given["input_ids"][:, width:],
        "attention_mask": given["attention_mask"],
        "position_ids": given["position_ids"][:, width:],
        name: cache,
    }
    return torch.cat([last_B1H, base(**rest, use_cache=True).last_hidden_state], 1)


def _different(
    ids_BP: Int[Tensor, "B P"], mask_BP: Int[Tensor, "B P"]
) -> tuple[Int[Tensor, "U"], Int[Tensor, "B"]]:
    """Finds a row of each different prompt, and the place of every row's prompt among them."""
    both_B2P = torch.stack([ids_BP, mask_BP], 1)
    found_U2P, place_B = both_B2P.unique(dim=0, return_inverse=True)
    rows_B = torch.arange(len(ids_BP), device=ids_BP.device)
    first_U = torch.empty(len(found_U2P), dtype=torch.long, device=ids_BP.device)
    return first_U.scatter(0, place_B, rows_B), place_B


def _continues(base: nn.Module) -> bool:
    """Tells whether a pass may go on from the keys and values of another one.

    Not where a layer keeps anything else (sliding windows, recurrent states) or recomputes its
    activations; nor where parameters are sharded over processes, which must then all run the
    same number of passes.
    """
    layers: list[Any] = DynamicCache(config=cast(Any, base).config).layers
    return (
        all(type(layer) is DynamicLayer for layer in layers)
        and not recomputes(base)
        and not any(isinstance(x, DTensor) for x in base.parameters())
    )


def first_prompt_column(mask_BP: Bool[Tensor, "B P"]) -> int:
    """Returns the first column in which any prompt has a token; 0 where none has."""
    used_P = mask_BP.any(0)
    return int(used_P.int().argmax()) if used_P.numel() else 0


def _last_column(mask_BT: Bool[Tensor, "B T"]) -> int:
    """Returns the last column in which any row is True; -1 where none is."""
    used = mask_BT.any(0).nonzero()
    return int(used[-1]) if len(used) else -1
