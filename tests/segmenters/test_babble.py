"""Text segmenters take a time linear in the text, whatever a policy babbles."""

from __future__ import annotations

import time

import pytest

from segcredit import TextSegmenter, registry

UNITS = ["a", " ", "\n", "甲", "(", "$", "1. ", "- ", "\\("]
SEGMENTERS = {
    "newline": {"blank_lines": "after"},
    "paragraph": {},
    "steps": {},
    "latex_steps": {},
    "reflection": {},
    "learned": {},
}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_babble_is_cut_in_linear_time(name: str) -> None:
    segmenter = registry.segmenters.build(name, **SEGMENTERS[name])
    assert isinstance(segmenter, TextSegmenter)
    segmenter.split("One. Two.")
    for unit in UNITS:
        text = unit * (20_000 // len(unit))
        started = time.process_time()
        segmenter.split(text)
        # A pattern that looks at its characters again takes five seconds and more.
        assert time.process_time() - started < 2, unit
