"""Log-probs and entropies of tokens from their hidden states, with few logits held at a time.

The logits of all tokens at once, in float32 and once for each operation on them, are the most
memory that training takes where the vocabulary is large. Here a piece of rows is held, and
recomputed for the gradients: one product more, and fewer passes over memory.

Letters: ``N`` tokens, ``M`` those of a piece, ``H`` hidden units, ``V`` vocabulary, ``X``
suppressed ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

ELEMENTS = 2**23
"""Logits of a piece. Fewer would add to the weight's gradient more often, which is memory too."""


def token_distributions(
    output: nn.Module,
    hidden_NH: Float[Tensor, "N H"],
    ids_N: Int[Tensor, "N"],
    *,
    temperature: float,
    suppressed_X: Int[Tensor, "X"],
    elements: int = ELEMENTS,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Computes log-probs of ids, and entropies, in nats, of the distributions sampled from.

    Args:
        output: The layer from states to logits, in its own precision. Other modules than a plain
            ``nn.Linear``, such as one with adapters, are called and called again in backward.
        hidden_NH: States that the tokens were drawn from.
        ids_N: Tokens, in [0, V).
        temperature: Divides the logits, greater than 0.
        suppressed_X: Ids of probability 0.
        elements: Logits held at once, at least a row's.

    Returns:
        (N,) log-probs and (N,) entropies, in float32 or better, with gradients of the first order.
    """
    suppressed_X = suppressed_X.to(hidden_NH.device)
    # A subclass may compute anything, so that its gradients are left to autograd.
    if type(output) is nn.Linear:
        choice = _Choice(ids_N, suppressed_X, temperature, elements)
        found = _Distributions.apply(hidden_NH, output.weight, output.bias, choice)
        return cast(tuple[Tensor, Tensor], found)
    rows = max(elements // cast(Any, output).out_features, 1)
    pieces = [
        checkpoint(_plain, output, *piece, temperature, suppressed_X, use_reentrant=False)
        for piece in zip(hidden_NH.split(rows), ids_N.split(rows), strict=True)
    ]
    logprobs, entropies = zip(*cast(list[tuple[Tensor, Tensor]], pieces), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _plain(
    output: nn.Module, hidden_NH: Tensor, ids_N: Tensor, temperature: float, suppressed_X: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes both numbers from all logits at once, their gradients by autograd."""
    logits_NV = output(hidden_NH.to(cast(Any, output).weight.dtype))
    logits_NV = logits_NV.to(_wide(logits_NV)) / temperature
    logprobs_NV = logits_NV.index_fill(1, suppressed_X, -torch.inf).log_softmax(1)
    # 0 * -inf is NaN, so that the suppressed ids' log-probs have to go before the product.
    finite_NV = logprobs_NV.index_fill(1, suppressed_X, 0.0)
    entropies_N = -(logprobs_NV.exp() * finite_NV).sum(1)
    return logprobs_NV.gather(1, ids_N[:, None])[:, 0], entropies_N


def _wide(x: Tensor) -> torch.dtype:
    """Returns the type of the sums: float32, or the tensor's own where it is wider."""
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """The inputs of ``_Distributions`` that have no gradient."""

    ids_N: Tensor
    suppressed_X: Tensor
    temperature: float
    elements: int

    def pieces(self, vocabulary: int) -> Iterator[slice]:
        """Yields the rows of each piece: as many as hold ``elements`` logits, at least one."""
        rows = max(self.elements // vocabulary, 1)
        for begin in range(0, len(self.ids_N), rows):
            yield slice(begin, begin + rows)

    def logits(self, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        """Computes (M,V) logits of the distributions sampled from, in a buffer of their own."""
        # In the weight's own type, as the model multiplies; everything after it is in float32.
        logits_MV = linear(hidden_MH.to(weight_VH.dtype), weight_VH, bias_V)
        logits_MV = logits_MV.to(_wide(logits_MV))
        # In place from here on: each copy would be another piece of logits in memory.
        if self.temperature != 1:
            logits_MV.div_(self.temperature)
        return logits_MV.index_fill_(1, self.suppressed_X, -torch.inf)


class _Distributions(torch.autograd.Function):
    """Log-probs and entropies, with gradients from logits that are recomputed."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, choice: _Choice
    ) -> tuple[Tensor, Tensor]:
        """Computes log-probs and entropies, piece by piece."""
        logprobs_N = hidden_NH.new_empty(len(hidden_NH), dtype=_wide(weight_VH))
        entropies_N, sums_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for piece in choice.pieces(len(weight_VH)):
            logits_MV = choice.logits(hidden_NH[piece], weight_VH, bias_V)
            # The largest logit is taken off, so that no exponential overflows.
            highest_M1 = logits_MV.amax(1, keepdim=True)
            logits_MV.sub_(highest_M1)
            own_M = logits_MV.gather(1, choice.ids_N[piece, None])[:, 0]
            shares_MV = logits_MV.exp()
            total_M = shares_MV.sum(1)
            # 0 * -inf is NaN.
            shares_MV.mul_(logits_MV.index_fill_(1, choice.suppressed_X, 0.0))
            logprobs_N[piece] = own_M - total_M.log()
            entropies_N[piece] = total_M.log() - shares_MV.sum(1) / total_M
            sums_N[piece] = highest_M1[:, 0] + total_M.log()
        # Two numbers a token are all that backward needs beside the inputs.
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, sums_N, entropies_N)
        ctx.choice = choice
        # Entropies are often not trained on: None, rather than zeros, spares their gradient.
        ctx.set_materialize_grads(False)
        return logprobs_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, by_logprobs_N: Tensor | None, by_entropies_N: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Computes gradients of states, weight and bias, those that are asked for."""
        hidden_NH, weight_VH, bias_V, sums_N, entropies_N = ctx.saved_tensors
        asked: tuple[bool, ...] = ctx.needs_input_grad
        if by_logprobs_N is None:
            by_logprobs_N = torch.zeros_like(sums_N)
        by_hidden = torch.empty_like(hidden_NH) if asked[0] else None
        # Pieces of bfloat16 would be lost where they are added up.
        by_weight = torch.zeros_like(weight_VH, dtype=sums_N.dtype) if asked[1] else None
        by_bias = torch.zeros_like(bias_V, dtype=sums_N.dtype) if asked[2] else None
        for piece in ctx.choice.pieces(len(weight_VH)):
            states_MH = hidden_NH[piece].to(weight_VH.dtype)
            logits_MV = ctx.choice.logits(states_MH, weight_VH, bias_V)
            slopes_MV = _slopes(
                logits_MV.sub_(sums_N[piece, None]),
                ctx.choice,
                piece,
                by_logprobs_N[piece, None],
                None if by_entropies_N is None else by_entropies_N[piece, None],
                entropies_N[piece, None],
            )
            if by_bias is not None:
                by_bias += slopes_MV.sum(0)
            if by_hidden is not None:
                by_hidden[piece] = slopes_MV.to(weight_VH.dtype) @ weight_VH
            if by_weight is not None:
                by_weight.addmm_(slopes_MV.t(), states_MH.to(slopes_MV.dtype))
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight_VH.dtype),
            None if by_bias is None else by_bias.to(weight_VH.dtype),
            None,
        )


def _slopes(
    logprobs_MV: Tensor,
    choice: _Choice,
    piece: slice,
    by_logprobs_M1: Tensor,
    by_entropies_M1: Tensor | None,
    entropies_M1: Tensor,
) -> Tensor:
    """Computes (M,V) the loss's gradient by the output layer's logits, over the log-probs' memory.

    By logit v, a log-prob has the gradient 1[v is the id] - p(v), an entropy -p(v) (log p(v) + H).
    """
    if by_entropies_M1 is None:
        slopes_MV = logprobs_MV.exp_().mul_(-by_logprobs_M1)
    else:
        shares_MV = logprobs_MV.exp()
        slopes_MV = logprobs_MV.add_(entropies_M1).mul_(by_entropies_M1).add_(by_logprobs_M1)
        slopes_MV.mul_(shares_MV).neg_()
    slopes_MV.scatter_add_(1, choice.ids_N[piece, None], by_logprobs_M1)
    # A suppressed id has p log p = 0 * -inf = NaN; no logit of it moves anything.
    slopes_MV.index_fill_(1, choice.suppressed_X, 0.0)
    # The logits were divided by the temperature after they left the output layer.
    return slopes_MV if choice.temperature == 1 else slopes_MV.div_(choice.temperature)
