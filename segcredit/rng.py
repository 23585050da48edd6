"""Named random streams: every draw derives from (seed, name, step), so nothing is checkpointed.

Two methods with one seed see the same prompts and start from the same policy.
"""

# torch.random carries no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch


def stream(seed: int, name: str, step: int = 0) -> torch.Generator:
    """A generator of its own for one purpose in one step, such as ("sampling", 12)."""
    return torch.Generator().manual_seed(derived_seed(seed, name, step))


@contextmanager
def forked(seed: int, name: str, step: int = 0) -> Generator[None]:
    """Inside, torch's global generator is the named stream; afterwards it is as it was.

    For libraries that know only the global generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, name, step))
        yield


def derived_seed(seed: int, name: str, step: int = 0) -> int:
    """A seed of its own for one purpose, for what keeps streams of its own."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
