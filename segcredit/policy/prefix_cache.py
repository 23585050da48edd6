"""Keys and values of prompts and completions, read once, and the prefixes that are cut from them.

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
class PrefixCache:
    """Prompts and completions with their keys and values, from which any prefix can be cut."""

    rows_R: Int[Tensor, "R"]
    """Rollouts that were read, ascending, each once."""
    ids_RL: Int[Tensor, "R L"]
    """Token ids, prompts left-padded so that completions begin in one column."""
    mask_RL: Bool[Tensor, "R L"]
    """Columns that the network sees: prompt tokens, and every column of a completion."""
    prompt_width: int
    """Columns of the prompts; the completion's token t stands in column ``prompt_width + t``."""
    layers: Layers
    """Keys and values of each layer, (R, heads, L, D); empty where they cannot be cut."""
    inputs: ModelInputs = field(default_factory=ModelInputs)
    extras: Extras = ()
    """Inputs of each row's images; empty where no prompt has any."""
    spatial_3RL: Int[Tensor, "3 R L"] | None = None
    """Positions in time, height and width, where the network has three of each token."""

    @classmethod
    def read(
        cls,
        base: nn.Module | None,
        rollouts: RolloutBatch,
        rows_R: Tensor,
        inputs: ModelInputs | None = None,
    ) -> PrefixCache:
        """Reads the prompts and completions of some rollouts in one pass, without gradients.

        Args:
            base: the network under the output layer; None = no pass, and prefixes without a cache.
            rollouts: of which some are read.
            rows_R: (R,) rows of ``rollouts``, ascending, each once.
            inputs: makes what the network reads besides ids and mask; None = text alone.

        Raises:
            PolicyError: a row's images are missing, or are another prompt's.
        """
        some = rollouts.select(rows_R)
        # Masked completion tokens are seen as well: a tool's answer is read, though not chosen.
        # Columns after a completion's end are seen too, and no prefix that is asked for has them.
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
        base: nn.Module | None,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        extras: Extras,
        rows_R: Tensor,
        inputs: ModelInputs,
    ) -> PrefixCache:
        """Reads the prompts of some rows in one pass, so that their images are seen once.

        Args:
            base: the network under the output layer; None = no pass, as for ``read``.
            prompt_ids: (B,Tp) left-padded.
            prompt_mask: (B,Tp) True on the prompts' tokens.
            extras: inputs of each row's images.
            rows_R: (R,) rows that are read, ascending, each once.
            inputs: makes what the network reads besides ids and mask.

        Raises:
            PolicyError: a row's images are missing, or are another prompt's.
        """
        some = [extras[row] for row in map(int, rows_R)]
        width = prompt_ids.shape[1]
        return cls._read(base, inputs, rows_R, prompt_ids[rows_R], prompt_mask[rows_R], width, some)

    @classmethod
    @torch.no_grad()
    def _read(
        cls,
        base: nn.Module | None,
        inputs: ModelInputs,
        rows_R: Tensor,
        ids_RL: Tensor,
        mask_RL: Tensor,
        prompt_width: int,
        extras: Extras,
    ) -> PrefixCache:
        if base is None:
            return cls(rows_R, ids_RL, mask_RL, prompt_width, [], inputs, extras)
        after = [ids_RL.shape[1] - prompt_width] * len(ids_RL)
        given = inputs.prepared(base, ids_RL, mask_RL, extras, after)
        layers = _keys_and_values(base(**given, use_cache=True))
        spatial = given["position_ids"] if given["position_ids"].ndim == 3 else None
        return cls(rows_R, ids_RL, mask_RL, prompt_width, layers, inputs, extras, spatial)

    def before(
        self, rows_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> tuple[Int[Tensor, "N W"], Bool[Tensor, "N W"], DynamicCache | None]:
        """Cuts a prefix for each state: prompt, and completion up to a position.

        Args:
            rows_N: (N,) rollouts, among those read.
            positions_N: (N,) completion tokens before which the prefixes end.

        Returns:
            (N,W) ids and mask, left-padded, and keys and values of all columns but the last; None
            in their place where they cannot be cut, or a prefix has one column.
        """
        place_N1, columns_NW = self._cells(rows_N, positions_N)
        # Columns left of a row's first are masked; any number serves there, and 0 is in range.
        inside_NW, columns_NW = columns_NW >= 0, columns_NW.clamp(min=0)
        ids_NW = self.ids_RL[place_N1, columns_NW]
        mask_NW = self.mask_RL[place_N1, columns_NW] & inside_NW
        # All but the last column: whoever samples passes that one on, since the logits of the
        # next token come out of it.
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
        """Returns what the model reads besides the ids, mask and cache that ``before`` returned.

        Args:
            rows_N: (N,) as for ``before``.
            positions_N: (N,) as for ``before``.
            cached: whether a cache came with them, in which the images are seen already.

        Raises:
            PolicyError: without a cache, a row's images are missing, or are another prompt's.
        """
        place_N1, columns_NW = self._cells(rows_N, positions_N)
        if not cached:
            some = [self.extras[place] for place in map(int, place_N1)] if self.extras else []
            ids_NW = self.ids_RL[place_N1, columns_NW.clamp(min=0)]
            return self.inputs.collate(ids_NW, some, list(map(int, positions_N)))
        if self.spatial_3RL is None:
            return {}
        # Left out, the model would go on with the height and width of the last batch that it saw.
        spatial_3NW = self.spatial_3RL[:, place_N1, columns_NW.clamp(min=0)]
        mask_NW = self.mask_RL[place_N1, columns_NW.clamp(min=0)] & (columns_NW >= 0)
        # A fourth row: transformers takes it for the mask's own positions, the other three for
        # the rotary ones.
        text_1NW = (mask_NW.long().cumsum(1) - 1).clamp(min=0)[None]
        return {"position_ids": torch.cat([text_1NW, spatial_3NW])}

    def _cells(self, rows_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (N,1) places among the rows read, and (N,W) columns, negative left of column 0.

        W is that of the longest prefix.
        """
        place_N1 = torch.searchsorted(self.rows_R, rows_N)[:, None]
        ends_N1 = (self.prompt_width + positions_N)[:, None]
        # Lengths are counted from each prompt's first token, so that padding adds no column.
        begins_N = ends_N1[:, 0] - self.mask_RL.int().argmax(1)[place_N1[:, 0]]
        return place_N1, ends_N1 + torch.arange(-int(begins_N.max()), 0, device=ends_N1.device)


def _keys_and_values(output: Any) -> Layers:
    """Returns keys and values of each layer; nothing where a layer keeps anything else.

    Sliding windows and recurrent states cannot be cut to a prefix.
    """
    # It was renamed in transformers 5.24.
    found = cast(object, output["cache" if "cache" in output else "past_key_values"])
    layers: list[Any] = list(found.layers) if isinstance(found, DynamicCache) else []
    # The class itself, not a subclass: a sliding window's layer is one, and has lost columns.
    if any(type(layer) is not DynamicLayer for layer in layers):
        return []
    return [(layer.keys, layer.values) for layer in layers]


def _cut(x_RHLD: Tensor, rows_N1: Tensor, columns_NV: Tensor) -> Tensor:
    """Returns (N, heads, V, D) entries: the given columns of the given rows."""
    # Two index tensors around a slice put their axes first: (N,V,heads,D).
    return x_RHLD[rows_N1, :, columns_NV].transpose(1, 2).contiguous()
