"""A policy small enough for a laptop: a character-level Llama, warm-started on demonstrations.

Letters: ``B`` demonstrations of a batch, ``L`` tokens of prompt and completion, ``N`` tokens that
the loss counts, ``V`` vocabulary, ``H`` hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit.episodes import Demonstration
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.tiny.warm_start import (
    BEGIN,
    END,
    PAD,
    SPECIALS,
    WarmStarted,
    character_tokenizer,
    require_size,
)
from segcredit.protocols import Sampler
from segcredit.rng import initialised


@dataclass(frozen=True, slots=True)
class Tiny(WarmStarted):
    """A Llama of some 86 thousand parameters, one token a character, that imitated the task.

    The warm start takes 400 steps, 15 to 30 CPU-seconds on one thread. Its weights are kept in
    ``$SEGCREDIT_CACHE`` (``~/.cache/segcredit`` by default), under a hash of everything that
    decides them, code included; the number of threads may change their last bits.

    Assumption: the task has demonstrations, and an alphabet.
    """

    def __post_init__(self) -> None:
        require_size(self.layers, self.hidden_size, self.intermediate_size)
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of the {self.heads} heads."
            )

    def untrained(
        self, alphabet: Sequence[str], sampler: Sampler, temperature: float, seed: int
    ) -> CausalPolicy:
        """Builds the policy with its first weights."""
        config = LlamaConfig(
            vocab_size=len(SPECIALS) + len(alphabet),
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
        return CausalPolicy(
            initialised(lambda: LlamaForCausalLM(config), seed),
            character_tokenizer(alphabet),
            sampler,
            temperature=temperature,
            suppressed_ids=(PAD, BEGIN),
        )

    def losses(
        self, policy: CausalPolicy, shown: Sequence[Demonstration], alphabet: Sequence[str]
    ) -> Iterator[Callable[[], Tensor]]:
        """Yields a function for each batch in turn that computes its loss, with gradients."""
        demonstrations = _tensors(shown, alphabet)
        for batch in zip(*(tensor.split(self.batch) for tensor in demonstrations), strict=True):
            yield partial(_imitation_loss, cast(LlamaForCausalLM, policy.model), *batch)


def _imitation_loss(model: LlamaForCausalLM, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """Computes the mean cross-entropy, in nats, of the counted tokens: turns, and their ends."""
    width = int(counted_BL.any(0).nonzero()[-1]) + 1
    ids_BL, counted_BL = ids_BL[:, :width], counted_BL[:, 1:width]
    # Padding is on the right, where no counted token can see it.
    states_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state
    logits_NV = model.lm_head(cast(Tensor, states_BLH)[counted_BL])
    return nn.functional.cross_entropy(logits_NV, ids_BL[:, 1:][counted_BL])


def _tensors(shown: Sequence[Demonstration], alphabet: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encodes demonstrations: (R,L) ids, right-padded, and which the loss counts."""
    id_of = {character: index for index, character in enumerate(alphabet, len(SPECIALS))}
    rows: list[Tensor] = []
    counted: list[Tensor] = []
    for each in shown:
        before = f"{each.prompt.text}{each.opening}"
        ids, own = [BEGIN, *map(id_of.__getitem__, before)], [False] * (1 + len(before))
        for text, stopped, observation in each.turns:
            turn = [*map(id_of.__getitem__, text), *([] if stopped else [END])]
            ids += [*turn, *map(id_of.__getitem__, observation)]
            own += [*[True] * len(turn), *[False] * len(observation)]
        rows.append(torch.tensor(ids))
        counted.append(torch.tensor(own))
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True, padding_value=PAD), pad(counted, batch_first=True)
