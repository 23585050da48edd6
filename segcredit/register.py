"""Decorators that register a plug-in for this session: for notebooks, and files given as --code.

@segcredit.register.segmenter("mine")
@dataclass(frozen=True, slots=True)
class Mine(segcredit.TextSegmenter): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from segcredit import registry

C = TypeVar("C", bound=type)


def _decorator(into: registry.Registry[Any]) -> Callable[[str], Callable[[C], C]]:
    def named(name: str) -> Callable[[C], C]:
        def add(plugin: C) -> C:
            into.add(name, plugin)
            return plugin

        return add

    return named


segmenter = _decorator(registry.segmenters)
estimator = _decorator(registry.estimators)
advantage = _decorator(registry.advantages)
task = _decorator(registry.tasks)
policy = _decorator(registry.policies)
sampler = _decorator(registry.samplers)
process_reward = _decorator(registry.process_rewards)
ratio = _decorator(registry.ratios)
bound = _decorator(registry.bounds)
aggregation = _decorator(registry.aggregations)
