"""Policies that read images: the facts that have to be known of a model and its processor.

Everything is read off the two, and checked on one prompt against the model's own ``generate``:
where a class needs what is not known here, a sentence says so, instead of wrong log-probs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from segcredit.errors import PolicyError
from segcredit.policy.causal_lm import CausalPolicy, some_text
from segcredit.policy.image_prompts import ImagePrompts
from segcredit.policy.model_inputs import IDS, ModelInputs
from segcredit.policy.samplers.generate import own_defaults
from segcredit.protocols import Prompt, Sampler

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_COMPLETION_TYPE = {"paligemma": 1}
"""Token type of completions, by model type; 0 elsewhere. There the prompt sees all of itself."""
_FIRST_POSITION = {"paligemma": 1}
_OF_IMAGES = re.compile(r"(image|vision|video|boi|eoi)\w*_token_(id|index)$")
_NAMES_IMAGES = re.compile(r"image|img|vision|video", re.IGNORECASE)
MAX_PIXELS = 25_000_000


def vision_policy(
    model: PreTrainedModel,
    processor: Any,
    sampler: Sampler,
    *,
    temperature: float = 1.0,
    suppressed_ids: tuple[int, ...] = (),
    chat: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> CausalPolicy:
    """Builds the policy of an image-and-text model of transformers, without torchvision.

    The ids that stand for images are suppressed: a completion that named one could not be scored.

    Args:
        model: of ``AutoModelForImageTextToText``.
        processor: with a tokenizer and an image processor; see ``without_videos``.
        sampler: draws completions.
        temperature: divides the logits.
        suppressed_ids: never sampled, besides those of images.
        chat: whether prompts go through the processor's chat template, where it has one.
        max_pixels: of the largest image.

    Raises:
        PolicyError: the processor does not give what the model reads, or scoring disagrees with
            the model's own generation.
    """
    config, tokenizer = cast(Any, model.config), processor.tokenizer
    of_images = _ids_of_images(config, processor)
    known = _parameters(model) | _parameters(model.base_model)
    images = ImagePrompts(
        processor,
        slot=_slot(config, processor),
        reserved=tuple(tokenizer.convert_ids_to_tokens(of_images)),
        names=frozenset(known - {"attention_mask", "position_ids", "labels"}),
        chat=chat,
        max_pixels=max_pixels,
    )
    probe = images.encode(Prompt("probe", some_text(tokenizer), None, (_gradient(),)))
    types = [name for name in _TOKEN_TYPES if name in _parameters(model.base_model)]
    _require_inputs(model, processor, {"pixel_values", *types}, probe)
    vocabulary = cast(Tensor, cast(Any, model).get_output_embeddings().weight).shape[0]
    inputs = ModelInputs(
        token_types=tuple((name, _COMPLETION_TYPE.get(config.model_type, 0)) for name in types),
        required=frozenset(probe) - {IDS},
        slot_ids=_slot_ids(config),
        first_position=_FIRST_POSITION.get(config.model_type, 0),
    )
    _require_agreement(model, inputs, probe, of_images)
    return CausalPolicy(
        model,
        tokenizer,
        sampler,
        temperature=temperature,
        suppressed_ids=[n for n in {*suppressed_ids, *of_images} if n < vocabulary],
        images=images,
        inputs=inputs,
    )


def _slot_ids(config: Any) -> tuple[int, ...]:
    """Lists the tokens that the model replaces by what it sees."""
    found = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(token for token in found if token is not None)


def _ids_of_images(config: Any, processor: Any) -> list[int]:
    """Lists the tokens that have to do with images: of config, processor and tokenizer."""
    of_config = [token for name, token in config.to_dict().items() if _OF_IMAGES.search(name)]
    of_processor = list(getattr(processor, "image_token_ids", None) or ())
    tokenizer = processor.tokenizer
    added = tokenizer.get_added_vocab()
    named = [number for token, number in added.items() if _NAMES_IMAGES.search(token)]
    found = [*of_config, *of_processor, *_slot_ids(config), *named]
    return sorted({int(token) for token in found if token is not None})


def _slot(config: Any, processor: Any) -> str:
    """Returns an image's place in plain text, between marks where the model has them."""
    marks = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
    before, after = (
        "" if mark is None else processor.tokenizer.convert_ids_to_tokens(mark) for mark in marks
    )
    return f"{before}{processor.image_token}{after}"


def _parameters(module: Any) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _gradient() -> bytes:
    """Draws a small picture in which no two places are alike."""
    buffer = BytesIO()
    picture = Image.linear_gradient("L").resize((64, 64))
    Image.merge("RGB", [picture, picture.rotate(90), picture.rotate(180)]).save(buffer, "PNG")
    return buffer.getvalue()


def _require_inputs(
    model: PreTrainedModel, processor: Any, needed: set[str], found: Mapping[str, Tensor]
) -> None:
    missing = sorted(needed - found.keys())
    if missing:
        raise PolicyError(
            f"{type(model).__name__} reads {', '.join(missing)}, which {type(processor).__name__}"
            f" does not give (it gives {', '.join(sorted(found))}); expected all of them, since"
            " the model would be silently wrong without. Usually the processor is of another"
            " model, or of another version of transformers."
        )


@torch.no_grad()
def _require_agreement(
    model: PreTrainedModel, inputs: ModelInputs, probe: Mapping[str, Tensor], of_images: list[int]
) -> None:
    """Checks that one pass gives the log-probs that the model's own generation has."""
    device = model.device
    prompt = {name: x.to(device) for name, x in probe.items()}
    mask_1P = torch.ones_like(prompt[IDS])
    config = GenerationConfig(
        max_new_tokens=3,
        do_sample=False,
        suppress_tokens=of_images,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with own_defaults(model):
        drawn: Any = cast(Any, model).generate(
            **prompt, attention_mask=mask_1P, generation_config=config
        )
    ids_1L = cast(Tensor, drawn.sequences)[:, :-1]
    after = ids_1L.shape[1] - mask_1P.shape[1]
    base = cast(Any, model.base_model)
    given = inputs.prepared(base, ids_1L, torch.ones_like(ids_1L).bool(), [probe], [after])
    states_1LH = base(**given, use_cache=False).last_hidden_state
    found_TV = cast(Any, model).get_output_embeddings()(states_1LH)[0, -after - 1 :]
    expected_TV = torch.cat(list(drawn.logits))
    off = found_TV.float().log_softmax(1) - expected_TV.float().log_softmax(1)
    if float(off.abs().max()) > (1e-3 if model.dtype == torch.float32 else 0.2):
        raise PolicyError(
            f"the log-probs of {type(model).__name__} in one pass are up to"
            f" {float(off.abs().max()):.3g} nats off from those of its own generate; expected"
            " equal ones. Usually the class needs token types or positions that are not known"
            " here: choose another model class, or add it to segcredit.policy.vlm."
        )
