"""Copies of modules that share the parameters that are never trained."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_of_trained(module: M) -> M:
    """Copies a module, but shares its frozen parameters (those that need no gradient).

    Of a model with adapters this copies the adapters and none of the weights under them.
    """
    # What the memo of deepcopy holds counts as copied already.
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    return copy.deepcopy(module, {id(parameter): parameter for parameter in frozen})


def frozen_copy(module: M) -> M:
    """Copies a module as it is now, with all parameters frozen: a reference."""
    return copy_of_trained(module).requires_grad_(False)
