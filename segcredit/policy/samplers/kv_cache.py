"""Keys and values in buffers made once, as long as the longest row will be.

Letters: ``N`` rows, ``K`` heads of keys and values, ``C`` columns there is room for, ``L`` columns
filled, ``D`` units of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from segcredit.errors import PolicyError


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in buffers: new columns are written in place, nothing is copied.

    ``DynamicLayer`` makes both anew at every token.

    Args:
        room: Columns that there will ever be, prompt included.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.filled = 0
        self.keys: Any
        self.values: Any

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the buffers, of the type and on the device of the first columns."""
        self.keys, self.values = (
            x.new_empty((*x.shape[:2], self.room, x.shape[3])) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Float[Tensor, "N K L D"], Float[Tensor, "N K L D"]]:
        """Writes columns after the filled ones, and returns views of all that are filled then."""
        # Further arguments are those of other caches of transformers, such as positions.
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self.filled = self.filled, self.filled + key_states.shape[2]
        self.keys[:, :, begin : self.filled] = key_states
        self.values[:, :, begin : self.filled] = value_states
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        """Counts the columns filled."""
        return self.filled

    def keep(self, rows_N: Int[Tensor, "N"]) -> None:
        """Takes the given rows in the place of all, in their order; one may come more than once."""
        self.keys, self.values = (_rows(x, rows_N, self.filled) for x in (self.keys, self.values))


def _rows(x_NKCD: Tensor, rows_N: Tensor, filled: int) -> Tensor:
    # Columns that are not filled are never read: they need not be copied.
    found = x_NKCD.new_empty((len(rows_N), *x_NKCD.shape[1:]))
    found[:, :, :filled] = x_NKCD[:, :, :filled].index_select(0, rows_N)
    return found


def roomy_cache(model: nn.Module, room: int, given: Any = None) -> Cache:
    """Builds a cache for a model's forward, with the columns of a given one in it.

    Args:
        model: a causal model of transformers.
        room: columns of the longest row, prompt and completion; no more can be written.
        given: keys and values of the prompt but its last column, as a ``DynamicCache``.

    Raises:
        PolicyError: the model keeps anything else than every key and value, or makes its inputs
            by rules of its own while generating.
    """
    layers = [RoomyLayer(room) for _ in _plain_layers(model)]
    for layer, old in zip(layers, given.layers if given is not None else (), strict=False):
        layer.update(old.keys, old.values)
    return Cache(layers=list(layers))


def _plain_layers(model: Any) -> Sequence[DynamicLayer]:
    """Returns the layers of the cache that the model would make itself, all of them plain.

    Raises:
        PolicyError: one is not, or the model makes its inputs by rules of its own.
    """
    layers: list[Any] = DynamicCache(config=model.config).layers
    odd = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if odd:
        raise PolicyError(
            f"{type(model).__name__} keeps {', '.join(odd)} while it generates; sampler 'lean'"
            " expected every layer to keep all keys and values. Usually the model has sliding"
            " windows or recurrent states: take sampler.name='generate'."
        )
    # The sampler makes ids, mask and positions itself, as this method of the usual model does.
    usual: Any = GenerationMixin
    if type(model).prepare_inputs_for_generation is not usual.prepare_inputs_for_generation:
        raise PolicyError(
            f"{type(model).__name__} makes its inputs by a rule of its own while it generates;"
            " sampler 'lean' expected that of transformers' GenerationMixin, and would read other"
            " positions or masks. Take sampler.name='generate'."
        )
    return layers


def keep_rows(cache: Cache, rows_N: Int[Tensor, "N"]) -> None:
    """Takes the given rows in the place of all, in every layer of a ``roomy_cache``."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.keep(rows_N)


def filled(cache: Cache) -> int:
    """Counts the columns of a cache that are filled."""
    return cache.get_seq_length()
