"""Parts that the tiny policies share: a tokenizer of characters, imitation, a cache of weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from segcredit.atomic_files import write_atomically
from segcredit.cache_folder import cache_folder, locked
from segcredit.errors import PolicyError
from segcredit.protocols import Task

PAD, END, BEGIN = 0, 1, 2
SPECIALS = ("<pad>", "<eos>", "<bos>")


_MOST_WEIGHTS = 2 * 10**8


def require_size(layers: int, hidden: int, inner: int) -> None:
    """Raises a ValueError for a network that is no longer tiny: 16 bytes a weight in training."""
    weights = layers * hidden * (4 * hidden + 3 * inner)
    if weights > _MOST_WEIGHTS:
        raise ValueError(
            f"layers, hidden_size and intermediate_size make {weights:,} weights; expected at most"
            f" {_MOST_WEIGHTS:,}. For a larger model take policy.name='hf'"
        )


def alphabet_of(task: Task) -> list[str]:
    """Returns the characters of a task's prompts and completions, each once, in its order.

    Raises:
        PolicyError: the task names none.
    """
    alphabet = list(dict.fromkeys(task.alphabet()))
    if not alphabet:
        raise PolicyError(
            f"task {type(task).__name__!r} has no alphabet, and the tiny policy makes a token of"
            " each of its characters; expected a string of all characters of prompts and"
            " completions. Write the task's alphabet(), or choose policy.name='hf'."
        )
    return alphabet


def require_alphabet(pairs: Iterable[tuple[str, str]], alphabet: Sequence[str]) -> None:
    """Checks that every character of prompts and completions is in the alphabet.

    Raises:
        PolicyError: one is not; names those that are missing.
    """
    known = {*alphabet}
    missing = {character for pair in pairs for text in pair for character in text} - known
    if missing:
        raise PolicyError(
            f"the task's demonstrations have the characters {sorted(missing)}, which are not in"
            f" its alphabet {''.join(alphabet)!r}; expected every character of prompts and"
            " completions there, since each is a token. Add them to the task's alphabet()."
        )


def character_tokenizer(alphabet: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token a character, and a begin token in front of every text.

    Args:
        alphabet: the characters.
        named: further special tokens, after the alphabet, by the attributes they become.
    """
    # By order: PAD, END and BEGIN are places in SPECIALS.
    vocabulary = {p: n for n, p in enumerate([*SPECIALS, *alphabet, *named.values()])}
    tokenizer = cast(Any, Tokenizer)(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[BEGIN]} $A", special_tokens=[(SPECIALS[BEGIN], BEGIN)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[PAD],
        eos_token=SPECIALS[END],
        bos_token=SPECIALS[BEGIN],
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named,
    )


def fit(
    model: nn.Module,
    losses: Iterable[Callable[[], Tensor]],
    *,
    steps: int,
    warmup: int,
    learning_rate: float,
    final_lr_fraction: float,
    betas: tuple[float, float],
    weight_decay: float,
    max_gradient_norm: float,
) -> None:
    """Minimises one loss a step with AdamW, its learning rate rising and falling along a cosine.

    Args:
        model: is trained in place.
        losses: functions, each called once, whose result has gradients.
        steps: as many as there are losses; the cosine ends there.
        warmup: steps over which the learning rate rises.
        learning_rate: the highest.
        final_lr_fraction: of ``learning_rate``, at the end.
        betas: of AdamW.
        weight_decay: of AdamW.
        max_gradient_norm: to which gradients are clipped.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay
    )

    def fraction(step: int) -> float:
        """Returns the fraction of the highest rate: rising linearly, then along a cosine."""
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return final_lr_fraction + (1 - final_lr_fraction) * cosine

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
    for loss in losses:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
        optimizer.step()
        schedule.step()


def with_cached_weights(
    model: nn.Module, name: str, decisive: object, start: Callable[[], None]
) -> None:
    """Gives a model the weights of its warm start, from the cache where they are there already.

    Args:
        model: as it is initialised; it is changed in place.
        name: begins the file's name.
        decisive: everything that decides the weights; its ``repr`` is hashed.
        start: the warm start, where there is no such file.

    Raises:
        PolicyError: the cache cannot be written.
    """
    digest = hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}-{digest}.safetensors"
    with locked(path):
        if not path.exists():
            start()
            _save(model, path)
    # Also where it was just trained: what is read is what every later run reads.
    model.load_state_dict(load_file(path))


def _save(model: nn.Module, path: Path) -> None:
    """Writes a model's weights into a file that appears whole: no reader ever meets half of it."""
    write_atomically(path, save({name: x.contiguous() for name, x in model.state_dict().items()}))
