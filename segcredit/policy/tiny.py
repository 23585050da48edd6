"""A policy small enough for a laptop: a character-level Llama, warm-started on demonstrations.

Letters: ``B`` demonstrations of a batch, ``L`` tokens of prompt and completion, ``N`` tokens that
the loss counts, ``V`` vocabulary, ``H`` hidden units.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from safetensors.torch import load_file, save
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from segcredit.atomic import write_atomically
from segcredit.errors import PolicyError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.protocols import PolicySource, Sampler, Task

_FORMAT = 1
"""Counts the changes of what a cached file holds or of how it comes to be."""
_PAD, _END, _BEGIN = 0, 1, 2
_SPECIALS = ("<pad>", "<eos>", "<bos>")


@dataclass(frozen=True, slots=True)
class Tiny(PolicySource):
    """A Llama of some 86 thousand parameters, one token a character, that imitated the task.

    The warm start takes 400 steps, 15 to 20 CPU-seconds on one thread. Its weights are kept in
    ``$SEGCREDIT_CACHE`` (``~/.cache/segcredit`` by default), under a hash of everything that
    decides them; the number of threads may change their last bits.

    Assumption: the task has demonstrations, and an alphabet.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 128
    initializer_range: float = 0.1
    """Standard deviation of the first weights; the usual 0.02 learns slower at this width."""
    rope_theta: float = 100.0
    """Slowest wavelength of the rotary positions, over 2 pi. The usual 10000 leaves heads of 16
    units too few that tell tokens of a short text apart, and learns lengths that vary late."""
    steps: int = 400
    """Batches of demonstrations, each seen once; 0 for no warm start."""
    batch: int = 32
    """Demonstrations a step."""
    learning_rate: float = 4e-3
    """Highest learning rate, of AdamW."""
    final_lr_fraction: float = 0.05
    """Of ``learning_rate``, at the end of the cosine."""
    warmup: int = 20
    """Steps over which the learning rate rises to ``learning_rate``."""
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of the {self.heads} heads."
            )

    def load(self, task: Task, sampler: Sampler, *, temperature: float, seed: int) -> nn.Module:
        """The warm-started policy, from the cache where it is there already.

        Raises:
            PolicyError: the task's alphabet is empty or not that of its demonstrations, or the
                cache cannot be written.
            TaskError: the task has no demonstrations.
        """
        alphabet = _alphabet(task)
        model = self._model(len(_SPECIALS) + len(alphabet), seed)
        path = self._cached(task, seed)
        with _locked(path):
            if not path.exists():
                self._warm_start(model, alphabet, task, seed)
                _save(model, path)
        model.load_state_dict(load_file(path))
        return CausalPolicy(
            model,
            _tokenizer(alphabet),
            sampler,
            temperature=temperature,
            suppressed_ids=(_PAD, _BEGIN),
        )

    def _model(self, vocabulary: int, seed: int) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.intermediate_size,
            initializer_range=self.initializer_range,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=False,
            pad_token_id=_PAD,
            eos_token_id=_END,
            bos_token_id=_BEGIN,
        )
        # transformers initialises from the global generator, which must come out as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_stream(seed, "initial"))
            return LlamaForCausalLM(config)

    def _cached(self, task: Task, seed: int) -> Path:
        decisive = (_FORMAT, dataclasses.astuple(self), repr(task), seed, torch.__version__)
        name = hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]
        return _cache_folder() / f"tiny-{name}.safetensors"

    def _warm_start(
        self, model: LlamaForCausalLM, alphabet: Sequence[str], task: Task, seed: int
    ) -> None:
        if not self.steps:
            return
        generator = torch.Generator().manual_seed(_stream(seed, "demonstrations"))
        pairs = task.demonstrations(self.steps * self.batch, generator)
        demonstrations = _tensors([(prompt.text, text) for prompt, text in pairs], alphabet)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_fraction)
        batches = zip(*(tensor.split(self.batch) for tensor in demonstrations), strict=True)
        for ids_BL, counted_BL in batches:
            optimizer.zero_grad()
            _imitation_loss(model, ids_BL, counted_BL).backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.max_gradient_norm)
            optimizer.step()
            schedule.step()

    def _lr_fraction(self, step: int) -> float:
        """Rises linearly over ``warmup`` steps, then falls along a cosine."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine


def _imitation_loss(model: LlamaForCausalLM, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the tokens that count: completions and their end."""
    width = int(counted_BL.any(0).nonzero()[-1]) + 1
    ids_BL, counted_BL = ids_BL[:, :width], counted_BL[:, 1:width]
    # Padding is on the right, where no counted token can see it.
    states_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state
    logits_NV = model.lm_head(cast(Tensor, states_BLH)[counted_BL])
    return nn.functional.cross_entropy(logits_NV, ids_BL[:, 1:][counted_BL])


def _tensors(pairs: Sequence[tuple[str, str]], alphabet: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Right-padded ids of prompts with completions, and which of them the loss counts."""
    id_of = {character: index for index, character in enumerate(alphabet, len(_SPECIALS))}
    missing = {character for pair in pairs for text in pair for character in text} - {*id_of}
    if missing:
        raise PolicyError(
            f"the task's demonstrations have the characters {sorted(missing)}, which are not in"
            f" its alphabet {''.join(alphabet)!r}; expected every character of prompts and"
            " completions there, since each is a token. Add them to the task's alphabet()."
        )
    rows: list[Tensor] = []
    counted: list[Tensor] = []
    for prompt, completion in pairs:
        ids = [_BEGIN, *(id_of[c] for c in prompt), *(id_of[c] for c in completion), _END]
        rows.append(torch.tensor(ids))
        counted.append(torch.arange(len(ids)) > len(prompt))
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True, padding_value=_PAD), pad(counted, batch_first=True)


def _alphabet(task: Task) -> list[str]:
    alphabet = list(dict.fromkeys(task.alphabet()))
    if not alphabet:
        raise PolicyError(
            f"task {type(task).__name__!r} has no alphabet, and the tiny policy makes a token of"
            " each of its characters; expected a string of all characters of prompts and"
            " completions. Write the task's alphabet(), or choose policy.name='hf'."
        )
    return alphabet


def _tokenizer(alphabet: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a character, a begin token in front of every text."""
    vocabulary = {piece: index for index, piece in enumerate([*_SPECIALS, *alphabet])}
    tokenizer = cast(Any, Tokenizer)(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIALS[_BEGIN]} $A", special_tokens=[(_SPECIALS[_BEGIN], _BEGIN)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIALS[_PAD],
        eos_token=_SPECIALS[_END],
        bos_token=_SPECIALS[_BEGIN],
        clean_up_tokenization_spaces=False,
    )


def _cache_folder() -> Path:
    folder = Path(os.environ.get("SEGCREDIT_CACHE") or "~/.cache/segcredit").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PolicyError(
            f"the cache folder {str(folder)!r} cannot be made ({error.strerror}); expected one"
            " that can be written, for the weights of the warm start. Set SEGCREDIT_CACHE to a"
            " folder of yours."
        ) from error
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """One process at a time makes the file; no lock is taken where it is there already."""
    with contextlib.nullcontext() if path.exists() else FileLock(path.with_suffix(".lock")):
        yield


def _save(model: nn.Module, path: Path) -> None:
    """Appears whole: no reader ever meets half a file."""
    write_atomically(path, save({name: x.contiguous() for name, x in model.state_dict().items()}))


def _stream(seed: int, name: str) -> int:
    """A seed for one purpose, from the policy's seed and the purpose's name."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
