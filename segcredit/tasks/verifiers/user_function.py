"""A user's verifier, by its name; runs in a ``JudgeProcess``."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from typing import Any, cast

import numpy as np

from segcredit.protocols import Prompt, Verdict


def verifier(path: str) -> Callable[..., dict[str, Any]]:
    """Returns a function of a prompt and a text: the fields of a verdict.

    Args:
        path: ``module:function``.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = path.partition(":")
    function = getattr(import_module(module), name)

    def judge(prompt: Prompt, text: str) -> dict[str, Any]:
        return _fields(function(prompt, text))

    return judge


def _fields(found: Any) -> dict[str, Any]:
    if isinstance(found, Verdict):
        return {field.name: getattr(found, field.name) for field in fields(found)}
    # NumPy's numbers are numbers to Python too, its flags are not.
    is_number = isinstance(found, (numbers.Real, np.bool_))
    reward = float(cast(float, found)) if is_number else math.nan
    if math.isfinite(reward):
        return {"reward": reward, "correct": reward >= 1.0}
    return {"nonsense": f"{cast(object, found)!r:.80} ({type(cast(object, found)).__name__})"}
