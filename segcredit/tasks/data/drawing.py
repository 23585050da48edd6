"""Small pictures for the tasks that are drawn: bright on dark grey, with noise.

Dark grey is near zero for the usual normalisation to mean 0.5: what all places of a picture have in
common would otherwise outweigh what tells them apart, and small networks learn far later.

Letters: ``H`` and ``W`` pixels, ``C`` the three colours.
"""

from __future__ import annotations

import functools
import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GROUND = (90, 130)
INK = (200, 255)
_NOISE = 10.0
"""Standard deviation, of 255."""


def chance(key: str) -> np.random.Generator:
    """Returns the generator of one prompt's picture, which is the same in every step."""
    return np.random.default_rng(zlib.crc32(key.encode()))


@functools.cache
def glyph(character: str, size: int) -> NDArray[np.float64]:
    """Returns (size,size) how much of each pixel a character in the middle covers, 0 to 1."""
    canvas = Image.new("L", (size, size))
    font: Any = ImageFont.load_default(size=size * 7 // 8)
    ImageDraw.Draw(canvas).text((size / 2, size / 2), character, fill=255, font=font, anchor="mm")
    return np.asarray(canvas) / 255.0


def painted(covered: NDArray[np.float64], draws: np.random.Generator) -> NDArray[np.float64]:
    """Paints (H,W) coverage as (H,W,C) from 0 to 255: random ink on random grey."""
    ground_C, ink_C = draws.uniform(*GROUND, size=3), draws.uniform(*INK, size=3)
    return ground_C + (ink_C - ground_C) * covered[..., None]


def file_of(pixels: NDArray[np.float64], draws: np.random.Generator) -> bytes:
    """Encodes (H,W,C) pixels as a PNG, with noise."""
    noisy = pixels + draws.normal(0.0, _NOISE, pixels.shape)
    buffer = io.BytesIO()
    # Noise cannot be compressed, so that nothing is lost by not trying.
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
