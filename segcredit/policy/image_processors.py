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
    """Returns a processor class without its slot for videos; the class itself where it has none."""
    found: Any = processor
    if _VIDEO not in found.get_attributes():
        return processor

    class ImagesOnly(found):
        """A processor of text and images, as the class it is made from without videos."""

        video_processor = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            """Returns the names of the parts that are given, loaded and saved."""
            return [name for name in found.get_attributes() if name != _VIDEO]

        # The class has no name that a module could be asked for, so that pickle is told how to
        # make it again.
        def __reduce__(self) -> tuple[Any, ...]:
            return _empty, (processor,), self.__dict__

    # Files that it saves name the class that reads them again.
    ImagesOnly.__name__ = ImagesOnly.__qualname__ = processor.__name__
    return cast(type[ProcessorMixin], ImagesOnly)


def _empty(processor: type[ProcessorMixin]) -> Any:
    """Makes an instance without a state, for pickle to fill."""
    made = without_videos(processor)
    return made.__new__(made)
