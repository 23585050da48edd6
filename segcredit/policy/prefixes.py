"""Prefixes of completions with their keys and values, which are computed once a completion.

Letters: ``R`` rows read by the network, ``L`` their columns, ``N`` states, ``W`` the columns of the
longest state, ``D`` units of a head; the others as in ``segcredit.types``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from segcredit.types import RolloutBatch

Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """Rows of prompts and completions, left-padded, from which prefixes are cut."""

    rows_R: Int[Tensor, "R"]
    """Which rollouts they are, ascending."""
    ids_RL: Int[Tensor, "R L"]
    mask_RL: Bool[Tensor, "R L"]
    prompt_width: int
    layers: Layers
    """Keys and values of each layer, (R, heads, L, D); empty where they cannot be cut."""

    @classmethod
    def read(cls, base: nn.Module, rollouts: RolloutBatch, rows_R: Tensor) -> Prefixes:
        """One pass of a base model over the prompts and completions of some rows."""
        prompt_mask = rollouts.prompt_mask[rows_R]
        read_RT = torch.ones_like(rollouts.action_mask[rows_R])
        ids_RL = torch.cat([rollouts.prompt_ids[rows_R], rollouts.completion_ids[rows_R]], 1)
        mask_RL = torch.cat([prompt_mask, read_RT], 1)
        layers = _keys_and_values(base, ids_RL, mask_RL)
        return cls(rows_R, ids_RL, mask_RL, prompt_mask.shape[1], layers)

    def before(
        self, rows_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> tuple[Int[Tensor, "N W"], Bool[Tensor, "N W"], DynamicCache | None]:
        """Ids and mask up to each position, left-padded, and a cache of all but the last column.

        Args:
            rows_N: rollouts, among those read.
            positions_N: completion tokens before which the prefixes end.
        """
        place_N1 = torch.searchsorted(self.rows_R, rows_N)[:, None]
        ends_N1 = (self.prompt_width + positions_N)[:, None]
        begins_N = ends_N1[:, 0] - self.mask_RL.int().argmax(1)[place_N1[:, 0]]
        columns_NW = ends_N1 + torch.arange(-int(begins_N.max()), 0, device=ends_N1.device)
        inside_NW = columns_NW >= 0
        columns_NW = columns_NW.clamp(min=0)
        ids_NW = self.ids_RL[place_N1, columns_NW]
        mask_NW = self.mask_RL[place_N1, columns_NW] & inside_NW
        cached_NV = columns_NW[:, :-1]
        if not self.layers or not cached_NV.numel():
            return ids_NW, mask_NW, None
        pairs = [
            (_cut(keys, place_N1, cached_NV), _cut(values, place_N1, cached_NV))
            for keys, values in self.layers
        ]
        return ids_NW, mask_NW, DynamicCache(ddp_cache_data=pairs)


@torch.no_grad()
def _keys_and_values(base: nn.Module, ids_RL: Tensor, mask_RL: Tensor) -> Layers:
    """Of each layer; none where the network keeps anything else.

    Sliding windows and recurrent states cannot be cut to a prefix.
    """
    output: Any = base(
        input_ids=ids_RL,
        attention_mask=mask_RL.long(),
        position_ids=(mask_RL.long().cumsum(1) - 1).clamp(min=0),
        use_cache=True,
    )
    found = cast(object, output.past_key_values)
    layers: list[Any] = list(found.layers) if isinstance(found, DynamicCache) else []
    if any(type(layer) is not DynamicLayer for layer in layers):
        return []
    return [(layer.keys, layer.values) for layer in layers]


def _cut(x_RHLD: Tensor, rows_N1: Tensor, columns_NV: Tensor) -> Tensor:
    """(N, heads, V, D): the given columns of the given rows."""
    return x_RHLD[rows_N1, :, columns_NV].transpose(1, 2).contiguous()
