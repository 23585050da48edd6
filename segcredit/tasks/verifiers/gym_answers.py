"""Answers judged by a generator of reasoning-gym; runs in a ``JudgeProcess``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any


def scoring(generator: str, options: str) -> Callable[..., dict[str, Any]]:
    """Returns a function of a problem's number and a text: what the generator gives for it.

    Args:
        generator: its name.
        options: its options, as JSON.
    """
    import reasoning_gym

    library: Any = reasoning_gym
    problems = library.create_dataset(generator, seed=0, **json.loads(options))
    problem = functools.lru_cache(maxsize=64)(problems.__getitem__)

    def reward(number: int, text: str) -> dict[str, Any]:
        given = float(problems.score_answer(text, problem(number)))
        return {"reward": given, "answer": " ".join(text.split())}

    return reward
