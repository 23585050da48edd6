"""Processors of transformers for images alone.

Those with a slot for videos need torchvision for it, which builds of torch often lack, and which
nothing here uses.
"""

from __future__ import annotations

import functools
from typing import Any, cast

from transformers import ProcessorMixin

_VIDEO = "video_processor"


@functools.cache
def without_videos(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its slot for videos; itself where it has none."""
    found: Any = processor
    if _VIDEO not in found.get_attributes():
        return processor

    class ImagesOnly(found):
        """The class without videos; behaves as it on text and images."""

        video_processor = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            """What is given, loaded and saved."""
            return [name for name in found.get_attributes() if name != _VIDEO]

        def __reduce__(self) -> tuple[Any, ...]:
            return _empty, (processor,), self.__dict__

    # Files that it saves name the class that reads them again.
    ImagesOnly.__name__ = ImagesOnly.__qualname__ = processor.__name__
    return cast(type[ProcessorMixin], ImagesOnly)


def _empty(processor: type[ProcessorMixin]) -> Any:
    """An instance whose state follows."""
    made = without_videos(processor)
    return made.__new__(made)
