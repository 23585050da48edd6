"""Prefixes of completions with their keys and values, which are computed once a completion.

Letters: ``R`` rows read by the network, ``L`` their columns, ``N`` states, ``W`` the columns of the
longest state, ``D`` units of a head; the others as in ``segcredit.types``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from segcredit.policy.model_inputs import Extras, ModelInputs
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
    inputs: ModelInputs = field(default_factory=ModelInputs)
    extras: Extras = ()
    """Of each row read, or empty."""
    spatial_3RL: Int[Tensor, "3 R L"] | None = None
    """Positions, where the network places images in height and width."""

    @classmethod
    def read(
        cls,
        base: nn.Module,
        rollouts: RolloutBatch,
        rows_R: Tensor,
        inputs: ModelInputs | None = None,
    ) -> Prefixes:
        """One pass of a base model over the prompts and completions of some rows."""
        some = rollouts.select(rows_R)
        return cls._read(
            base,
            inputs or ModelInputs(),
            rows_R,
            torch.cat([some.prompt_ids, some.completion_ids], 1),
            torch.cat([some.prompt_mask, torch.ones_like(some.action_mask)], 1),
            some.prompt_ids.shape[1],
            some.extras,
        )

    @classmethod
    def of_prompts(
        cls,
        base: nn.Module,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        extras: Extras,
        rows_R: Tensor,
        inputs: ModelInputs,
    ) -> Prefixes:
        """One pass over the prompts of some rows: all of their images are seen once."""
        some = [extras[row] for row in map(int, rows_R)]
        width = prompt_ids.shape[1]
        return cls._read(base, inputs, rows_R, prompt_ids[rows_R], prompt_mask[rows_R], width, some)

    @classmethod
    @torch.no_grad()
    def _read(
        cls,
        base: nn.Module,
        inputs: ModelInputs,
        rows_R: Tensor,
        ids_RL: Tensor,
        mask_RL: Tensor,
        prompt_width: int,
        extras: Extras,
    ) -> Prefixes:
        after = [ids_RL.shape[1] - prompt_width] * len(ids_RL)
        given = inputs.prepared(base, ids_RL, mask_RL, extras, after)
        layers = _keys_and_values(base(**given, use_cache=True))
        spatial = given["position_ids"] if given["position_ids"].ndim == 3 else None
        return cls(rows_R, ids_RL, mask_RL, prompt_width, layers, inputs, extras, spatial)

    def before(
        self, rows_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> tuple[Int[Tensor, "N W"], Bool[Tensor, "N W"], DynamicCache | None]:
        """Ids and mask up to each position, left-padded, and a cache of all but the last column.

        Args:
            rows_N: rollouts, among those read.
            positions_N: completion tokens before which the prefixes end.
        """
        place_N1, columns_NW = self._cells(rows_N, positions_N)
        inside_NW, columns_NW = columns_NW >= 0, columns_NW.clamp(min=0)
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

    def inputs_before(
        self, rows_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"], *, cached: bool
    ) -> dict[str, Tensor]:
        """What the model reads besides the ids and mask of ``before``, with or without its cache.

        The images are in the cache already. Positions in height and width are not, and the
        model would go on with those of the last batch that it saw.
        """
        place_N1, columns_NW = self._cells(rows_N, positions_N)
        if not cached:
            some = [self.extras[place] for place in map(int, place_N1)] if self.extras else []
            ids_NW = self.ids_RL[place_N1, columns_NW.clamp(min=0)]
            return self.inputs.collate(ids_NW, some, list(map(int, positions_N)))
        if self.spatial_3RL is None:
            return {}
        spatial_3NW = self.spatial_3RL[:, place_N1, columns_NW.clamp(min=0)]
        mask_NW = self.mask_RL[place_N1, columns_NW.clamp(min=0)] & (columns_NW >= 0)
        text_1NW = (mask_NW.long().cumsum(1) - 1).clamp(min=0)[None]
        return {"position_ids": torch.cat([text_1NW, spatial_3NW])}

    def _cells(self, rows_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """(N,1) places among the rows read, and (N,W) columns, negative left of the first."""
        place_N1 = torch.searchsorted(self.rows_R, rows_N)[:, None]
        ends_N1 = (self.prompt_width + positions_N)[:, None]
        begins_N = ends_N1[:, 0] - self.mask_RL.int().argmax(1)[place_N1[:, 0]]
        return place_N1, ends_N1 + torch.arange(-int(begins_N.max()), 0, device=ends_N1.device)


def _keys_and_values(output: Any) -> Layers:
    """Of each layer; none where the network keeps anything else.

    Sliding windows and recurrent states cannot be cut to a prefix.
    """
    # It was renamed in transformers 5.24.
    found = cast(object, output["cache" if "cache" in output else "past_key_values"])
    layers: list[Any] = list(found.layers) if isinstance(found, DynamicCache) else []
    if any(type(layer) is not DynamicLayer for layer in layers):
        return []
    return [(layer.keys, layer.values) for layer in layers]


def _cut(x_RHLD: Tensor, rows_N1: Tensor, columns_NV: Tensor) -> Tensor:
    """(N, heads, V, D): the given columns of the given rows."""
    return x_RHLD[rows_N1, :, columns_NV].transpose(1, 2).contiguous()
