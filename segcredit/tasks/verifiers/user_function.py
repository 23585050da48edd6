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
        told = {field.name: getattr(found, field.name) for field in fields(found)}
        wrong = [name for name, value in told.items() if not _KINDS[name](value)]
        shown = ", ".join(f"{name}={told[name]!r:.80}" for name in wrong)
        if wrong:
            return {"nonsense": f"a Verdict with {shown}"}
        return told | {"reward": float(found.reward), "correct": bool(found.correct)}
    reward = float(found) if _is_number(found) else math.nan
    if math.isfinite(reward):
        return {"reward": reward, "correct": reward >= 1.0}
    return {"nonsense": f"{cast(object, found)!r:.80} ({type(cast(object, found)).__name__})"}


def _is_number(value: object) -> bool:
    # NumPy's numbers are numbers to Python too, its flags are not.
    return isinstance(value, (numbers.Real, np.bool_))


def _is_reward(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_flag(value: object) -> bool:
    return isinstance(value, (bool, np.bool_))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "reward": _is_reward,
    "correct": _is_flag,
    "process_correct": lambda value: isinstance(value, bool | None),
    "answer": lambda value: isinstance(value, str | None),
    "timed_out": lambda value: isinstance(value, bool),
}
"""Test of each field of a verdict."""
