"""Copies of modules that share what is never trained."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_of_trained(module: M) -> M:
    """A deep copy, but for parameters that need no gradient, which both then have.

    Of a model with adapters this copies the adapters and none of the weights under them.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    return copy.deepcopy(module, {id(parameter): parameter for parameter in frozen})


def frozen_copy(module: M) -> M:
    """The module as it is now, whatever becomes of it: a reference."""
    return copy_of_trained(module).requires_grad_(False)
