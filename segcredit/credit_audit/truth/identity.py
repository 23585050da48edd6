"""Identity of a stored truth, and its differences from what is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from segcredit.config import RunConfig
from segcredit.errors import StudyError
from segcredit.protocols import Prompt
from segcredit.records.stored_config import differences, digest
from segcredit.training.build import plugin_identities

_FORMAT = 1
"""Counts the changes of what a stored truth holds or of how it is measured."""
_WHOSE = ("task", "policy", "sampler")
Identity = dict[str, Any]


def identity(config: RunConfig, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> Identity:
    """Returns everything that decides a truth, as nested plain data.

    What judges it later (segmenter, estimator, advantage, the loss) is left out: one truth serves
    many questions.
    """
    found = {
        "format": _FORMAT,
        **whose(config),
        "train": {"micro_tokens": config.train.micro_tokens},
        "prompts": digest([_content(prompt) for prompt in prompts]),
        "truth": dict(settings),
    }
    return json.loads(json.dumps(found, default=str))


def whose(config: RunConfig) -> Identity:
    """Returns the policy and the task that a truth is of, with the code behind them."""
    used = {
        path: found
        for path, found in plugin_identities(config).items()
        if path.split(".")[0] in _WHOSE
    }
    sizes = config.rollouts
    # Truths that were measured before there were these keys keep their identity.
    stop = {"stop": sizes.stop} if sizes.stop else {}
    start = {} if config.start_seed is None else {"start_seed": config.start_seed}
    found = {
        **{name: table for name, table in config.identity().items() if name in _WHOSE},
        "seed": config.seed,
        **start,
        "rollouts": {
            "temperature": sizes.temperature,
            "max_new_tokens": sizes.max_new_tokens,
            **stop,
        },
        "plugins": used,
    }
    return json.loads(json.dumps(found, default=str))


def hash_of(found: Identity) -> str:
    """Returns ten hexadecimal digits that name a truth."""
    return digest(found)[:10]


def require_same(path: object, there: Identity, now: Identity) -> None:
    """Refuses an identity that differs from another, naming the keys.

    Raises:
        StudyError: they differ.
    """
    differing = differences(there, now)
    if not differing:
        return
    raise StudyError(
        f"{path} holds the truth of another policy, task or setting: it differs in"
        f" {differing}. Values hold for the policy and the task alone that they"
        " were measured with. Give the config that it was measured with, or choose another"
        " directory and measure there."
    )


def _content(prompt: Prompt) -> list[Any]:
    images = [hashlib.sha256(image).hexdigest() for image in prompt.images]
    # Truths that were measured before there were chats keep their identity.
    chat = () if prompt.chat is None else (list(prompt.chat),)
    return [prompt.key, prompt.text, prompt.answer, *images, *chat]
