"""Answers judged by a generator of reasoning-gym; runs in a ``JudgeProcess``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any


def scoring(generator: str, options: str) -> Callable[..., dict[str, Any]]:
    """Returns a function of a problem's number and an answer: what the generator gives for it.

    Args:
        generator: its name.
        options: its options, as JSON.
    """
    import reasoning_gym

    library: Any = reasoning_gym
    problems = library.create_dataset(generator, seed=0, **json.loads(options))
    problem = functools.lru_cache(maxsize=64)(problems.__getitem__)

    def reward(number: int, answer: str) -> dict[str, Any]:
        return {"reward": float(problems.score_answer(answer, problem(number)))}

    return reward
