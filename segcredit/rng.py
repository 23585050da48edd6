"""Named random generators: every draw derives from (seed, name, step), so nothing is checkpointed.

Two methods with one seed see the same prompts and start from the same policy.
"""

# torch.random carries no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import torch

M = TypeVar("M")


def stream(seed: int, name: str, step: int = 0) -> torch.Generator:
    """Returns a generator of its own for one purpose in one step, such as ("sampling", 12)."""
    return torch.Generator().manual_seed(derived_seed(seed, name, step))


@contextmanager
def forked(seed: int, name: str, step: int = 0) -> Generator[None]:
    """Makes torch's global generator the named stream inside, and puts it back afterwards.

    For libraries that know only the global generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, name, step))
        yield


def python_random(generator: torch.Generator) -> random.Random:
    """Seeds Python's generator from torch's: many small draws are faster with it."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


def derived_seed(seed: int, name: str, step: int = 0) -> int:
    """Returns a seed of its own for one purpose, for what keeps streams of its own."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def named_seed(seed: int, name: str) -> int:
    """Returns a seed of its own for one purpose of a policy's, such as its first weights."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])


def initialised(make: Callable[[], M], seed: int) -> M:
    """Builds a model with its first weights, the same for the same seed.

    transformers initialises from the global generator, which must come out as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(named_seed(seed, "initial"))
        return make()
