"""A policy small enough for a laptop: a character-level Llama, warm-started on demonstrations.

Letters: ``B`` demonstrations of a batch, ``L`` tokens of prompt and completion, ``N`` tokens that
the loss counts, ``V`` vocabulary, ``H`` hidden units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.tiny.warm_start import (
    BEGIN,
    END,
    PAD,
    SPECIALS,
    alphabet_of,
    character_tokenizer,
    fit,
    require_alphabet,
    require_size,
    with_cached_weights,
)
from segcredit.protocols import PolicySource, Sampler, Task
from segcredit.rng import initialised, named_seed

_FORMAT = 1
"""Counts the changes of what a cached file holds or of how it comes to be."""


@dataclass(frozen=True, slots=True)
class Tiny(PolicySource):
    """A Llama of some 86 thousand parameters, one token a character, that imitated the task.

    The warm start takes 400 steps, 15 to 20 CPU-seconds on one thread. Its weights are kept in
    ``$SEGCREDIT_CACHE`` (``~/.cache/segcredit`` by default), under a hash of everything that
    decides them; the number of threads may change their last bits.

    Assumption: the task has demonstrations, and an alphabet.
    """

    hidden_size: Annotated[int, Interval(ge=1, le=4096)] = 64
    layers: Annotated[int, Interval(ge=1, le=64)] = 2
    heads: Annotated[int, Interval(ge=1, le=1024)] = 4
    intermediate_size: Annotated[int, Interval(ge=1, le=16384)] = 128
    initializer_range: Annotated[float, Interval(ge=0, le=100)] = 0.1
    """Standard deviation of the first weights; the usual 0.02 learns slower at this width."""
    rope_theta: Annotated[float, Interval(ge=1, le=1e9)] = 100.0
    """Slowest wavelength of the rotary positions, over 2 pi. The usual 10000 leaves heads of 16
    units too few that tell tokens of a short text apart, and learns lengths that vary late."""
    steps: Annotated[int, Interval(ge=0, le=10**6)] = 400
    """Batches of demonstrations, each seen once; 0 for no warm start."""
    batch: Annotated[int, Interval(ge=1, le=10**4)] = 32
    """Demonstrations a step."""
    learning_rate: Annotated[float, Interval(ge=0, le=10)] = 4e-3
    """Highest learning rate, of AdamW."""
    final_lr_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.05
    """Fraction of ``learning_rate`` that is left at the end of the cosine."""
    warmup: Annotated[int, Interval(ge=0, le=10**6)] = 20
    """Steps over which the learning rate rises to ``learning_rate``."""
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.98
    weight_decay: Annotated[float, Interval(ge=0, le=1000)] = 0.01
    max_gradient_norm: Annotated[float, Interval(ge=1e-12, le=1e12)] = 1.0

    def __post_init__(self) -> None:
        require_size(self.layers, self.hidden_size, self.intermediate_size)
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of the {self.heads} heads."
            )

    def load(self, task: Task, sampler: Sampler, *, temperature: float, seed: int) -> nn.Module:
        """Loads the warm-started policy, from the cache where it is there already.

        Args:
            task: gives alphabet and demonstrations.
            sampler: draws the policy's completions.
            temperature: divides the logits in sampling and scoring; greater than 0.
            seed: decides the first weights and the demonstrations.

        Raises:
            PolicyError: the task's alphabet is empty or not that of its demonstrations, or the
                cache cannot be written.
            TaskError: the task has no demonstrations.
        """
        alphabet = alphabet_of(task)
        model = self._model(len(SPECIALS) + len(alphabet), seed)
        # The version, since another one may initialise or sum otherwise.
        decisive = (_FORMAT, dataclasses.astuple(self), repr(task), seed, torch.__version__)
        start = partial(self._warm_start, model, alphabet, task, seed)
        with_cached_weights(model, "tiny", decisive, start)
        return CausalPolicy(
            model,
            character_tokenizer(alphabet),
            sampler,
            temperature=temperature,
            suppressed_ids=(PAD, BEGIN),
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
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=BEGIN,
        )
        return initialised(lambda: LlamaForCausalLM(config), seed)

    def _warm_start(
        self, model: LlamaForCausalLM, alphabet: Sequence[str], task: Task, seed: int
    ) -> None:
        if not self.steps:
            return
        generator = torch.Generator().manual_seed(named_seed(seed, "demonstrations"))
        pairs = task.demonstrations(self.steps * self.batch, generator)
        demonstrations = _tensors([(prompt.text, text) for prompt, text in pairs], alphabet)
        batches = zip(*(tensor.split(self.batch) for tensor in demonstrations), strict=True)
        fit(
            model,
            (partial(_imitation_loss, model, *batch) for batch in batches),
            steps=self.steps,
            warmup=self.warmup,
            learning_rate=self.learning_rate,
            final_lr_fraction=self.final_lr_fraction,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            max_gradient_norm=self.max_gradient_norm,
        )


def _imitation_loss(model: LlamaForCausalLM, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """Computes the mean cross-entropy, in nats, of the counted tokens: completions, their ends."""
    width = int(counted_BL.any(0).nonzero()[-1]) + 1
    ids_BL, counted_BL = ids_BL[:, :width], counted_BL[:, 1:width]
    # Padding is on the right, where no counted token can see it.
    states_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state
    logits_NV = model.lm_head(cast(Tensor, states_BLH)[counted_BL])
    return nn.functional.cross_entropy(logits_NV, ids_BL[:, 1:][counted_BL])


def _tensors(pairs: Sequence[tuple[str, str]], alphabet: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encodes prompts with completions: (R,L) ids, right-padded, and which the loss counts."""
    require_alphabet(pairs, alphabet)
    id_of = {character: index for index, character in enumerate(alphabet, len(SPECIALS))}
    rows: list[Tensor] = []
    counted: list[Tensor] = []
    for prompt, completion in pairs:
        ids = [BEGIN, *(id_of[c] for c in prompt), *(id_of[c] for c in completion), END]
        rows.append(torch.tensor(ids))
        counted.append(torch.arange(len(ids)) > len(prompt))
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True, padding_value=PAD), pad(counted, batch_first=True)
