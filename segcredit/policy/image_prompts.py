"""Prompts with images: from files in memory to what a processor of transformers makes of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from segcredit.errors import PolicyError
from segcredit.policy.chat_templates import messages, require_template
from segcredit.policy.model_inputs import IDS
from segcredit.protocols import IMAGE_SLOT, Prompt

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""Errors that Pillow raises for foreign, cut and broken files."""


@dataclass(frozen=True, slots=True)
class ImagePrompts:
    """Encodes one prompt at a time: its chat, or its plain text, with an image in each slot."""

    processor: Any
    """A processor of transformers, with a tokenizer and an image processor."""
    slot: str
    """The text that the processor replaces by an image's tokens."""
    reserved: tuple[str, ...]
    """Tokens of images, which no text may name."""
    names: frozenset[str]
    """Names of the processor's outputs that the model reads."""
    chat: bool
    """True: prompts go through the processor's chat template, where it has one, even if they are
    no chats themselves."""
    max_pixels: int
    """Pixels of the largest image that is opened."""

    def encode(self, prompt: Prompt) -> dict[str, Tensor]:
        """Encodes a prompt as ids (1,L) and the model's further inputs by name, on the CPU.

        Raises:
            PolicyError: an image cannot be read or is too large, the prompt's slots and images
                differ in number, its text names a token of images, or it is a chat and there is
                no chat template.
        """
        texts = _between_images(prompt, self.reserved)
        images = [
            _opened(content, f"image {place} of prompt {prompt.key!r}", self.max_pixels)
            for place, content in enumerate(prompt.images)
        ]
        text, specials = self._written(prompt, texts)
        options: dict[str, Any] = {"add_special_tokens": specials, "return_tensors": "pt"}
        if not images:  # some processors refuse a text without an image
            return {IDS: self.processor.tokenizer([text], **options)[IDS].long()}
        try:
            found = self.processor(images=[images], text=[text], **options)
        except (ValueError, OSError) as error:
            raise PolicyError(
                f"the processor {type(self.processor).__name__} cannot read the images of prompt"
                f" {prompt.key!r} ({error}); expected images of a usual shape. Usually one is"
                " extremely narrow, or the prompt's text confuses the chat template."
            ) from error
        return {name: x for name, x in found.items() if name in self.names}

    def _written(self, prompt: Prompt, texts: Sequence[str]) -> tuple[str, bool]:
        """Returns the text with a slot between each two pieces, and whether it lacks a begin token.

        Where a template wrote the begin token, the tokenizer must not add a second one.
        """
        if prompt.chat is not None:
            require_template(self.processor, prompt)
        elif not self.as_chats:
            return self.slot.join(texts), True
        content: list[dict[str, str]] = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": text}]
        # An empty text is no part: templates may write something around each.
        content = [part for part in content if part.get("text", "image")]
        written: str = self.processor.apply_chat_template(
            messages(prompt, content, _text_part),
            add_generation_prompt=True,
            tokenize=False,
            **dict(prompt.chat_options),
        )
        begin = self.processor.tokenizer.bos_token
        return written, not (begin and written.startswith(begin))

    @property
    def as_chats(self) -> bool:
        """True where prompts that are no chats themselves are written as chats too."""
        return self.chat and bool(getattr(self.processor, "chat_template", None))


def _text_part(text: str) -> list[dict[str, str]]:
    """Returns the content of a message without images, in parts as those with images are."""
    return [{"type": "text", "text": text}]


def _between_images(prompt: Prompt, reserved: Sequence[str]) -> list[str]:
    """Returns the texts before, between and after a prompt's images.

    Images come first where the text has no places for them.

    Raises:
        PolicyError: places and images differ in number, or a text names a token of images.
    """
    texts = prompt.text.split(IMAGE_SLOT)
    if len(texts) == 1:
        texts = [""] * len(prompt.images) + texts
    if len(texts) - 1 != len(prompt.images):
        raise PolicyError(
            f"prompt {prompt.key!r} has {len(texts) - 1} places {IMAGE_SLOT!r} for images and"
            f" {len(prompt.images)} images; expected as many, or no such place, with which the"
            " images come first. Usually the data set has a picture less than its text says:"
            " complete Prompt.images."
        )
    named = [token for token in reserved if any(token in text for text in texts)]
    if named:
        raise PolicyError(
            f"the text of prompt {prompt.key!r} names {named[0]!r}, a token of the model's images;"
            f" expected {IMAGE_SLOT!r} where an image belongs. Take it out of the text."
        )
    return texts


def _opened(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """Opens an image as an RGB picture, upright, on white where it is transparent.

    Raises:
        PolicyError: it cannot be read, or has too many pixels; calls it by ``name``.
    """
    try:
        # Reads the header alone: a huge image is refused before its pixels are in memory.
        picture = Image.open(BytesIO(content))
        if picture.width * picture.height <= max_pixels:
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, upright).convert("RGB")
    except _UNREADABLE as error:
        raise PolicyError(
            f"{name} cannot be read ({error}); expected the content of an image file, such as PNG"
            f" or JPEG, and found {len(content)} bytes. Usually the file is cut or is no image."
        ) from error
    raise PolicyError(
        f"{name} has {picture.width} x {picture.height} pixels; expected at most {max_pixels} in"
        " all, since a larger one fills the memory. Make it smaller, or raise"
        " policy.max_image_pixels."
    )
