"""A policy that reads small pictures, small enough for a laptop, warm-started on demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import transformers as hf
from annotated_types import Interval
from torch import Tensor

from segcredit.episodes import Demonstration
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.image_processors import without_videos
from segcredit.policy.tiny.sft_loss import imitation_losses
from segcredit.policy.tiny.warm_start import (
    BEGIN,
    END,
    PAD,
    WarmStarted,
    character_tokenizer,
    require_size,
)
from segcredit.policy.vlm import vision_policy
from segcredit.protocols import Sampler
from segcredit.rng import initialised

_IMAGE, _VIDEO, _START, _STOP = "<image>", "<video>", "<vision>", "</vision>"


@dataclass(frozen=True, slots=True)
class TinyVLM(WarmStarted):
    """A Llama behind a SigLIP tower, or a Qwen2.5-VL, one token a character and a square of pixels.

    It has some 180 thousand parameters with the defaults. Its weights after the warm start are kept
    in ``$SEGCREDIT_CACHE`` (``~/.cache/segcredit`` by default), under a hash of everything that
    decides them.

    Assumption: the task has demonstrations, an alphabet, and square images of ``image_size``
    pixels, dark grey on average; white ones, and weights of the usual 0.02, learn far later.
    """

    architecture: str = "llava"
    """``llava`` or ``qwen2_5_vl``."""
    image_size: Annotated[int, Interval(ge=1, le=1024)] = 64
    """Pixels of a side; other images are resized (``qwen2_5_vl``: to about as many pixels)."""
    square: Annotated[int, Interval(ge=1, le=1024)] = 16
    """Pixels of a side that become one token; divides ``image_size``."""
    vision_layers: Annotated[int, Interval(ge=1, le=64)] = 1

    def __post_init__(self) -> None:
        if self.architecture not in _BUILDERS:
            raise ValueError(
                f"architecture is {self.architecture!r}; expected one of {', '.join(_BUILDERS)}."
            )
        layers = self.layers + self.vision_layers
        require_size(layers, self.hidden_size, self.intermediate_size)
        if self.hidden_size % (4 * self.heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of four times the"
                f" {self.heads} heads, since positions turn pairs of units in two directions."
            )
        if self.image_size % self.square or self.square % 2:
            raise ValueError(
                f"square is {self.square}; expected an even number that divides the image_size"
                f" {self.image_size}."
            )

    def untrained(
        self, alphabet: Sequence[str], sampler: Sampler, temperature: float, seed: int
    ) -> CausalPolicy:
        """Builds the policy with its first weights."""
        words: Any = character_tokenizer(
            alphabet, image_token=_IMAGE, video_token=_VIDEO, start_token=_START, stop_token=_STOP
        )
        config, processor = _BUILDERS[self.architecture](self, words)
        build: Any = hf.AutoModelForImageTextToText
        model = initialised(lambda: build.from_config(config), seed)
        return vision_policy(
            model, processor, sampler, temperature=temperature, suppressed_ids=(PAD, BEGIN)
        )

    def losses(
        self, policy: CausalPolicy, shown: Sequence[Demonstration], alphabet: Sequence[str]
    ) -> Iterator[Callable[[], Tensor]]:
        """Yields a function for each batch in turn that computes its loss, with gradients."""
        del alphabet  # the policy's tokenizer knows it
        return imitation_losses(policy, shown, self.batch)

    def _text(self, words: Any) -> dict[str, Any]:
        """Returns the settings of the language model, as transformers names them."""
        return {
            "vocab_size": len(words),
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": False,
            "pad_token_id": PAD,
            "eos_token_id": END,
            "bos_token_id": BEGIN,
        }


def _llava(source: TinyVLM, words: Any) -> tuple[Any, Any]:
    """Builds the config and the processor of a Llama behind a SigLIP tower."""
    rope = {"rope_type": "default", "rope_theta": source.rope_theta}
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**source._text(words), rope_parameters=rope),  # pyright: ignore[reportPrivateUsage]
        vision_config=hf.SiglipVisionConfig(
            hidden_size=source.hidden_size,
            intermediate_size=source.intermediate_size,
            num_hidden_layers=source.vision_layers,
            num_attention_heads=source.heads,
            image_size=source.image_size,
            patch_size=source.square,
            vision_use_head=False,
        ),
        image_token_index=words.convert_tokens_to_ids(_IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    size = {"height": source.image_size, "width": source.image_size}
    return config, hf.LlavaProcessor(
        image_processor=hf.SiglipImageProcessorPil(size=size),
        tokenizer=words,
        patch_size=source.square,
        vision_feature_select_strategy="full",
        image_token=_IMAGE,
    )


def _qwen2_5_vl(source: TinyVLM, words: Any) -> tuple[Any, Any]:
    """Builds the config and the processor of a Qwen2.5-VL, whose tower merges 2 x 2 patches."""
    # Rotary pairs of a head, shared out between time, height and width.
    units = source.hidden_size // source.heads // 2
    config = hf.Qwen2_5_VLConfig(
        text_config={
            **source._text(words),  # pyright: ignore[reportPrivateUsage]
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": source.rope_theta,
                "mrope_section": [units // 2, units // 4, units - units // 2 - units // 4],
            },
        },
        vision_config={
            "depth": source.vision_layers,
            "hidden_size": source.hidden_size,
            "num_heads": source.heads,
            "intermediate_size": source.intermediate_size,
            "patch_size": source.square // 2,
            "spatial_merge_size": 2,
            "out_hidden_size": source.hidden_size,
            # Every layer attends to the whole image, so that windows play no part.
            "window_size": source.image_size,
            "fullatt_block_indexes": list(range(source.vision_layers)),
            "initializer_range": source.initializer_range,
        },
        image_token_id=words.convert_tokens_to_ids(_IMAGE),
        video_token_id=words.convert_tokens_to_ids(_VIDEO),
        vision_start_token_id=words.convert_tokens_to_ids(_START),
        vision_end_token_id=words.convert_tokens_to_ids(_STOP),
        tie_word_embeddings=False,
    )
    # Equal bounds: every image becomes about as many squares.
    pixels = source.image_size**2
    return config, without_videos(hf.Qwen2_5_VLProcessor)(
        image_processor=hf.Qwen2VLImageProcessorPil(
            patch_size=source.square // 2,
            merge_size=2,
            size={"shortest_edge": pixels, "longest_edge": pixels},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=words,
    )


_BUILDERS = {"llava": _llava, "qwen2_5_vl": _qwen2_5_vl}
