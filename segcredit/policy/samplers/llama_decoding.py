"""Decoding steps of a small Llama or Qwen2, one token more for every row, in few operations.

At 64 hidden units a step of transformers' own forward is spent on calling modules. Here the
projections of queries, keys and values are one matrix, as they are and turned by the rotary
positions' right angle, and so are the two of the gate; the numbers are the model's up to rounding.

Letters: ``N`` rows, ``H`` hidden units, ``Q`` heads of queries, ``K`` of keys and values, ``D``
units of a head, ``C`` columns there is room for, ``L`` columns filled, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu
from transformers import LlamaForCausalLM, Qwen2ForCausalLM
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from segcredit.policy.samplers.kv_cache import keep_rows

MOST_PARAMETERS = 20_000_000
"""Size up to which a model is decoded here.

Above, calling modules costs little of a step, and joined copies of the weights much."""
_NORMS: dict[type, type] = {LlamaForCausalLM: LlamaRMSNorm, Qwen2ForCausalLM: Qwen2RMSNorm}
"""Models that differ in biases alone, and the class of their norms."""
_FIXED_WAVELENGTHS = ("default", "linear", "llama3")
"""Kinds of rotary positions whose angles do not depend on how long a row has become."""


def is_small_llama(model: nn.Module) -> bool:
    """Tells whether ``LlamaSteps`` computes what a model's own forward does.

    Adapters and quantisation replace layers, so that every layer's class is looked at.
    """
    norm_class = _NORMS.get(type(model))
    if norm_class is None or model.dtype != torch.float32:
        return False
    llama: Any = model
    base = llama.model
    return (
        all(type(part) is nn.Linear for part in _linears(model))
        and all(type(norm) is norm_class for norm in (*_norms(base.layers), base.norm))
        and type(base.embed_tokens) is nn.Embedding
        and all(part.bias is None for part in _without_bias(base.layers))
        and llama.config.hidden_act == "silu"
        and base.rotary_emb.rope_type in _FIXED_WAVELENGTHS
        and sum(x.numel() for x in model.parameters()) <= MOST_PARAMETERS
    )


def _linears(model: Any) -> Iterator[Any]:
    yield model.lm_head
    for layer in model.model.layers:
        own, mlp = layer.self_attn, layer.mlp
        yield from (own.q_proj, own.k_proj, own.v_proj, own.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _without_bias(layers: Any) -> Iterator[Any]:
    """Yields the layers that must have no bias; those of queries, keys and values may have one."""
    for layer in layers:
        mlp = layer.mlp
        yield from (layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _norms(layers: Any) -> Iterator[nn.Module]:
    for layer in layers:
        yield from (layer.input_layernorm, layer.post_attention_layernorm)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights, joined where they multiply the same input."""

    before: Tensor
    """Weight of the norm before attention, (H,)."""
    after: Tensor
    """Weight of the norm before the feed-forward part, (H,)."""
    reads: Tensor
    """Rows of queries and keys, the same turned by a right angle, values; 2 (Q + K) D + K D."""
    bias: Tensor | None
    """Biases of the rows of ``reads``, or None."""
    writes: Tensor
    """Transposed projection out of the heads, (Q D, H)."""
    opens: Tensor
    """Rows of the gate, then those of the projection up."""
    closes: Tensor
    """Transposed projection down."""

    @classmethod
    def of(cls, layer: Any, head: int) -> _Layer:
        """Joins a layer's weights; ``head``: units of a head."""
        own, mlp = layer.self_attn, layer.mlp
        parts = (own.q_proj, own.k_proj, own.v_proj)
        biased = parts[0].bias is not None
        return cls(
            before=layer.input_layernorm.weight,
            after=layer.post_attention_layernorm.weight,
            reads=_joined([part.weight for part in parts], head),
            bias=_joined([part.bias[:, None] for part in parts], head)[:, 0] if biased else None,
            writes=own.o_proj.weight.t(),
            opens=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            closes=mlp.down_proj.weight.t(),
        )


def _joined(parts: Sequence[Tensor], head: int) -> Tensor:
    """Joins rows of queries and keys, the same turned, and rows of values.

    Rotary positions are x cos + turned(x) sin, of which both terms come out of one product.
    """
    queries, keys, values = parts
    straight = torch.cat([queries, keys])
    return torch.cat([straight, _turned(straight, head), values])


def _turned(weight: Tensor, head: int) -> Tensor:
    """Turns a weight's rows, so that its product is ``rotate_half`` of the weight's own product."""
    first, second = weight.view(-1, 2, head // 2, weight.shape[1]).unbind(1)
    return torch.stack([-second, first], 1).reshape(weight.shape)


class LlamaSteps:
    """Steps of a model of which ``is_small_llama``, after its prompts were read.

    Args:
        model: gives the weights, which must stay as they are.
        cache: of ``roomy_cache``, with all prompt columns.
        mask_NC: prompt columns that are read, and True on the columns to come.
        positions_N1: of each row's next token.
    """

    def __init__(
        self, model: nn.Module, cache: Cache, mask_NC: Tensor, positions_N1: Tensor
    ) -> None:
        llama: Any = model
        base, config = llama.model, llama.config
        self.cache = cache
        self.head: int = base.layers[0].self_attn.head_dim
        self.queries: int = config.num_attention_heads
        self.keys: int = config.num_key_value_heads
        self.eps: float = config.rms_norm_eps
        self.embedding = base.embed_tokens.weight
        self.layers = [_Layer.of(layer, self.head) for layer in base.layers]
        self.norm, self.output = base.norm.weight, llama.lm_head.weight
        self.positions_N = positions_N1[:, 0]
        # A row's positions are at most its columns, so that these are all that will be needed.
        columns = torch.arange(mask_NC.shape[1], device=mask_NC.device)[None]
        cos, sin = base.rotary_emb(self.embedding, columns)
        self.cos_CD, self.sin_CD = cos[0], sin[0]
        hidden_NC = torch.zeros(mask_NC.shape, device=mask_NC.device)
        self.bias_NC = hidden_NC.masked_fill(~mask_NC, -torch.inf)
        self.every = bool(mask_NC.all())
        self._broadcast_bias()

    def _broadcast_bias(self) -> None:
        """Makes the bias of attention scores for all heads of all rows: -inf on padding."""
        # Without padding it is 0 everywhere, and one row broadcasts at no cost.
        bias = self.bias_NC[:1, None] if self.every else self.bias_NC[:, None]
        self.bias = bias if self.every else bias.repeat_interleave(self.keys, 0)

    def keep(self, rows_N: Int[Tensor, "N"]) -> None:
        """Goes on with the given rows alone."""
        keep_rows(self.cache, rows_N)
        self.positions_N = self.positions_N[rows_N]
        self.bias_NC = self.bias_NC[rows_N]
        self._broadcast_bias()

    def advance(self, ids_N: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """Computes the logits after one token more in each row."""
        x_NH = self.embedding[ids_N]
        size = x_NH.shape[1:]
        cos_N1D = self.cos_CD[self.positions_N][:, None]
        sin_N1D = self.sin_CD[self.positions_N][:, None]
        for number, layer in enumerate(self.layers):
            normed_NH = rms_norm(x_NH, size, layer.before, self.eps)
            seen_NH = self._attend(
                number, linear(normed_NH, layer.reads, layer.bias), cos_N1D, sin_N1D
            )
            x_NH = torch.addmm(x_NH, seen_NH, layer.writes)
            normed_NH = rms_norm(x_NH, size, layer.after, self.eps)
            gate, up = linear(normed_NH, layer.opens).chunk(2, 1)
            x_NH = torch.addmm(x_NH, silu(gate).mul_(up), layer.closes)
        self.positions_N = self.positions_N + 1
        return linear(rms_norm(x_NH, size, self.norm, self.eps), self.output)

    def _attend(self, number: int, read: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        """Computes (N, Q D) the values that each row's heads attend to, over the columns so far.

        Args:
            number: of the layer, from 0.
            read: (N, 2 (Q + K) D + K D) product of the layer's ``reads``.
            cos_N1D: of the new tokens' positions.
            sin_N1D: likewise.
        """
        rows, both = len(read), self.queries + self.keys
        heads = read.view(rows, 2 * both + self.keys, self.head)
        turned = heads[:, :both] * cos_N1D
        turned.addcmul_(heads[:, both : 2 * both], sin_N1D)
        keys, values = self.cache.update(
            turned[:, self.queries :, None], heads[:, 2 * both :, None], number
        )
        # Heads that share keys are the rows of one product.
        asked = turned[:, : self.queries].reshape(rows * self.keys, -1, self.head)
        scores = torch.baddbmm(
            self.bias[:, :, : keys.shape[2]],
            asked,
            keys.flatten(0, 1).transpose(1, 2),
            alpha=self.head**-0.5,
        )
        return torch.bmm(scores.softmax(2), values.flatten(0, 1)).view(rows, -1)
