"""Policies from checkpoints of the Hugging Face hub or of a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from annotated_types import Interval
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from segcredit.errors import PolicyError, loading
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.checkpoints.gguf_file import ENDING, plain_checkpoint
from segcredit.policy.checkpoints.lora import LoRA, add_adapters
from segcredit.policy.checkpoints.safe_files import require_safe
from segcredit.policy.gradient_checkpointing import recompute_layers
from segcredit.policy.image_processors import without_videos
from segcredit.policy.vlm import MAX_PIXELS, vision_policy
from segcredit.protocols import PolicySource, Sampler, Task

_REMEDY = (
    "expected a folder with config.json, a tokenizer and whole safetensors weights, or the name of"
    " such a checkpoint on the Hugging Face hub; pickled weights are never read. Usually the path"
    " is misspelt, a file was copied in part, or the hub cannot be reached: check policy.model, or"
    " download the checkpoint again."
)


@dataclass(frozen=True, slots=True)
class Pretrained(PolicySource):
    """A language model by its name on the hub, by the path of a local folder or of a GGUF file.

    A model that reads images, such as Qwen2.5-VL, is loaded with its processor; torchvision is not
    needed. Of weights, safetensors and GGUF files are read, nothing pickled, and no code that comes
    with a checkpoint is run unless asked for. The begin and pad tokens and those of images are
    suppressed where they are no end tokens: a completion never needs them.
    """

    model: str
    """Such as ``HuggingFaceTB/SmolLM2-135M-Instruct``, a folder made by save_pretrained, a file
    that ends in ``.gguf``, or ``package:file.gguf`` inside an installed package."""
    dtype: str = "float32"
    """Type of the weights: ``float32``, ``bfloat16`` or ``float16``; the latter two are trained by
    way of float32 master weights."""
    suppress: tuple[Annotated[int, Interval(ge=0, le=10**7)], ...] = ()
    """Token ids that are never sampled, besides the begin and pad tokens."""
    chat: bool = True
    """True: a model that reads images is asked through its chat template, where it has one."""
    max_image_pixels: Annotated[int, Interval(ge=1, le=10**9)] = MAX_PIXELS
    """Pixels of the largest image that is read; the model's processor shrinks it afterwards."""
    lora: LoRA | None = None
    """Adapters that are trained in the place of the weights: a table, ``{}`` for its defaults."""
    trust_remote_code: bool = False
    """True: code that comes with a checkpoint may be run, where transformers does not know the
    model's class."""
    gradient_checkpointing: bool = False
    """True: layers' activations are recomputed for their gradients, instead of being kept."""

    def named_code(self) -> Mapping[str, object]:
        """Returns the option by which code of the checkpoint is run."""
        return {"trust_remote_code": True} if self.trust_remote_code else {}

    def load(self, task: Task, sampler: Sampler, *, temperature: float, seed: int) -> nn.Module:
        """Loads the checkpoint as a policy.

        Args:
            task: plays no part.
            sampler: draws the policy's completions.
            temperature: divides the logits in sampling and scoring; greater than 0.
            seed: decides the first weights of adapters, and nothing else.

        Raises:
            PolicyError: the checkpoint cannot be had, lacks an end token, or reads images in a
                way that is not known.
        """
        with loading(f"the model {self.model!r}", _REMEDY, PolicyError):
            return self._policy(sampler, temperature, seed)

    def _policy(self, sampler: Sampler, temperature: float, seed: int) -> nn.Module:
        model, processor = self._read(_dtype(self.dtype))
        if self.lora is not None:
            add_adapters(model, self.lora, seed)
        if self.gradient_checkpointing:
            recompute_layers(model)
        # A processor holds a tokenizer; without one, it is a tokenizer itself.
        tokenizer = getattr(processor, "tokenizer", processor)
        special = (tokenizer.pad_token_id, tokenizer.bos_token_id)
        suppressed = (*self.suppress, *(token for token in special if token is not None))
        if processor is not tokenizer:
            return vision_policy(
                cast(PreTrainedModel, model),
                processor,
                sampler,
                temperature=temperature,
                suppressed_ids=suppressed,
                chat=self.chat,
                max_pixels=self.max_image_pixels,
            )
        return CausalPolicy(
            cast(PreTrainedModel, model),
            cast(PreTrainedTokenizerBase, tokenizer),
            sampler,
            temperature=temperature,
            suppressed_ids=suppressed,
        )

    def _read(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Reads the model, and its tokenizer or the processor that holds one.

        Raises:
            PolicyError: the checkpoint cannot be had, or would run code that is not trusted.
        """
        trusted = self.trust_remote_code
        gguf = self.model.endswith(ENDING)
        source = str(plain_checkpoint(self.model)) if gguf else self.model
        # First, since whatever reads the checkpoint may run what is in it.
        require_safe(source, trust_remote_code=trusted)
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        reader = without_videos(PROCESSOR_MAPPING[type(config)]) if sees else AutoTokenizer
        processor = reader.from_pretrained(source, trust_remote_code=trusted)
        # Two values, though annotated as one.
        model, told = cast(Any, loader).from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trusted,
            output_loading_info=True,
        )
        # transformers makes them up, with a warning.
        if missing := sorted(told["missing_keys"]):
            raise ValueError(f"its weights lack {len(missing)} tensors, such as {missing[0]}")
        return model, processor


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise PolicyError(
            f"the policy's dtype is {name!r}; expected one of {', '.join(known)}, the types that"
            " weights can be trained in. Write policy.dtype='float32' if in doubt."
        )
    return known[name]
