"""Gradient checkpointing: a layer's activations are recomputed in the backward pass, not kept."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from segcredit.errors import PolicyError


def recompute_layers(model: nn.Module) -> None:
    """Makes layers keep their input alone, wherever gradients are asked for.

    transformers' own switch works in training mode only, in which dropout would be on as well;
    policies stay in evaluation mode. The layers are those that transformers marks, and what is
    computed stays the same, so that nothing random has to be repeated.

    Args:
        model: is changed in place.

    Raises:
        PolicyError: it has no such layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise PolicyError(
            f"{type(model).__name__} has no layers that transformers can compute again; expected"
            " some for policy.gradient_checkpointing. Leave it out, and lower train.micro_tokens"
            " where memory is short."
        )
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )


def recomputes(model: nn.Module) -> bool:
    """Tells whether a model's layers recompute, which they do only where gradients are asked for.

    Such layers must not write into a cache of keys and values: they would write again.
    """
    # An own ``forward`` of the object is the one that ``recompute_layers`` put there.
    layers = (layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer))
    return torch.is_grad_enabled() and any("forward" in vars(layer) for layer in layers)
