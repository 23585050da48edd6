"""Completions in a real browser: in a notebook's output, and in a report of many of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_look import record
from test_report import FIGURES, leave_undrawn

# The browser, and the fixture that opens a page in it.
from test_report_browser import CONTRAST, PIECES, browser, open_page  # noqa: F401

from segcredit import Segmentation, registry
from segcredit.study.look import browser as look
from segcredit.study.look.completions import Completion, Cut, Turn
from segcredit.study.look.rollouts import of_rollouts
from segcredit.study.plots.style import PALETTE
from segcredit.study.report import write_report
from segcredit.testing.rollouts import make_rollouts

# As those of notebooks: in the dark they set ink and paper, and tell no browser.
THEMES = {
    "light": "background: #fff; color: #000",
    "dark": "background: #111; color: #ddd; color-scheme: normal",
}


def notebook(path: Path, html: str, theme: str = "light") -> Path:
    page = f'<!doctype html><meta charset="utf-8"><body style="{THEMES[theme]}">{html}'
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def credited() -> list[Completion]:
    """Two completions by two segmentations, the first with credit, values and an observation."""
    rollouts = make_rollouts(["a+12=12", "12"], holes={0: [2, 3]}, truncated=[0, 1])
    cut = registry.segmenters.build("turns").segment(rollouts)
    whole = Segmentation.from_starts(torch.zeros(2, 7), rollouts.action_mask)
    credit = {"turns": torch.tensor([[0.5, -0.25], [0.0, 0.0]])}
    values = {"turns": torch.tensor([[0.25, 0.75], [0.5, 0.0]])}
    return list(of_rollouts(rollouts, {"turns": cut, "whole": whole}, credit, values, [0, 1]))


@pytest.mark.parametrize("theme", THEMES)
def test_a_notebook_draws_pieces_credit_values_and_observations(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
    theme: str,
) -> None:
    page_part = look.page_part(credited(), "Two.")
    # Twice, as where a cell is run again: each output draws itself once.
    opened = open_page(notebook(tmp_path / "n.html", page_part * 2, theme), 700)
    page = opened.page
    assert (opened.requests[1:], opened.said) == ([], [])
    assert page.locator(".segcredit").count() == 2
    assert page.locator(".sc-one").count() == 2
    turns, whole = (page.locator(".sc-cut").nth(place) for place in range(2))
    assert turns.locator("pre").text_content() == "a+12=12"
    up, observed, down = (turns.locator("pre > span").nth(place) for place in range(3))
    classes = "each => [...each.classList]"
    assert up.evaluate(classes) == ["sc-piece", "sc-up"]
    assert down.evaluate(classes) == ["sc-piece", "sc-begins", "sc-down"]
    assert (up.text_content(), observed.text_content(), down.text_content()) == ("a+", "12", "=12")
    assert down.get_attribute("title") == "segment 2, credit −0.25, value 0.75"
    # An observation stands on lines of its own, apart from what the policy wrote.
    boxes = [each.bounding_box() for each in (up, observed, down)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] + 1
    assert boxes[1]["y"] + boxes[1]["height"] <= boxes[2]["y"] + 1
    # Without colours too: a solid line, a dotted one, and a mark where a segment begins.
    style = "(each, name) => getComputedStyle(each)[name]"
    assert up.evaluate(style, "textDecorationStyle") == "solid"
    assert down.evaluate(style, "textDecorationStyle") == "dotted"
    assert down.evaluate(style, "borderLeftStyle") == "solid"
    line = turns.locator(".sc-value").get_attribute("d")
    heights = [float(y) for y in re.findall(r"[ML]\S+ (\S+)H", line)]
    assert heights[0] > heights[1]  # 0.25, below 0.75
    assert turns.locator(".sc-strip .sc-up, .sc-strip .sc-down").count() == 2
    assert whole.locator(".sc-value").count() == 0
    found = page.evaluate(CONTRAST, [*PIECES[:1], *PIECES[2:], ".sc-soft", ".sc-observed"])
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def test_turns_stand_on_lines_of_their_own_with_what_is_known_of_them(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
) -> None:
    turns = [Turn(0, 3, "reward 0 · credit −0.25"), Turn(5, 8, "reward 1"), Turn(8, 11)]
    cut = Cut(sizes=[11], kinds=[0], credit=[0.5])
    one = Completion(text="?a.b;?b.=c.", cuts={"whole": cut}, turns=turns)
    opened = open_page(notebook(tmp_path / "n.html", look.page_part([one])), 700)
    assert (opened.requests[1:], opened.said) == ([], [])
    shown = opened.page.locator(".sc-written > .sc-turn")
    assert shown.count() == 3
    parts = shown.locator("> span")
    assert parts.all_text_contents() == [
        *("turn 1 · reward 0 · credit −0.25", "?a.", "b;"),
        *("turn 2 · reward 1", "?b.", "turn 3", "=c."),
    ]
    kinds = ["facts", "piece", "observed", "facts", "piece", "facts", "piece"]
    classes = [part.evaluate("each => each.classList[0]") for part in parts.all()]
    assert classes == [f"sc-{kind}" for kind in kinds]
    # One below the other, what is observed as well; what is known stands beside its turn.
    boxes = [part.bounding_box() for part in [*shown.all(), *parts.all()[:3]]]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] + 1
    assert boxes[1]["y"] + boxes[1]["height"] <= boxes[2]["y"] + 1
    facts, own, read = boxes[3:]
    assert own["x"] + own["width"] < facts["x"]
    assert facts["y"] < own["y"] + own["height"] <= read["y"] + 1
    assert opened.page.locator(".sc-cut p").text_content().startswith("whole 1 segment")


def test_where_no_script_runs_a_notebook_has_plain_text(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
) -> None:
    file = notebook(tmp_path / "n.html", look.page_part(credited()))
    page = open_page(file, java_script_enabled=False).page
    assert "a+[+0.5]⟦12⟧¦=12[−0.25]" in page.locator("pre").inner_text()


def test_the_colours_are_those_that_were_tested_for_print_and_colour_blindness() -> None:
    colours = {colour.upper() for colour in re.findall(r"#[0-9a-f]{6}", look.style())}
    assert colours <= {colour.upper() for colour in PALETTE}
    assert {"#00559E", "#C7431A", "#E9B93A"} <= colours


EVIL = [
    "</script><script>window.ran = true</script>",
    "<!--<script>",
    "]]><img src=http://localhost:9/x onerror='window.ran = true'>",
    "\u2028 \x00 \x1b[31m \x7f \r",
    "abc\u202edef\u2066ghi",
    "\ud800 lone",
    "&lt;b&gt; &amp; ${'x'} $x_1$ {{ 7919 * 104729 }}",
    '" onmouseover="window.ran = true',
    "𝔘🙂é 你好",
    "",
]


def evil(texts: Sequence[str]) -> list[Completion]:
    return [
        Completion(
            text=text,
            prompt=text,
            source=text,
            place=text,
            facts=text,
            notes=[text],
            step=number,
            cuts={
                text or "none": Cut(sizes=[len(text)], kinds=[0], note=text),
                "halves": Cut(sizes=[1, len(text) - 1], kinds=[0, 0])
                if text
                else Cut(sizes=[], kinds=[]),
            },
        )
        for number, text in enumerate(texts)
    ]


def test_what_a_policy_wrote_is_shown_and_never_run(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
) -> None:
    made = evil(EVIL)
    opened = open_page(notebook(tmp_path / "n.html", look.page_part(made)))
    page = opened.page
    for one in made:
        seen = one.text.replace("\ud800", "\ufffd")
        # The last of a completion's cuts are the halves, whatever else is ticked.
        assert page.locator(".sc-written").last.text_content() == (seen or "nothing")
        assert page.locator(".sc-prompt").count() == (1 if seen else 0)
        page.get_by_role("button", name="Next").click()
    assert page.evaluate("window.ran") is None
    assert (len(opened.requests), opened.said) == (1, [])
    assert page.locator("script:not([type])").count() == 1
    shown = "".join(one.text for one in made)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800]", shown)
    assert "abc␦def␦ghi" in shown
    assert "␛[31m" in shown


def many(count: int) -> list[Completion]:
    cut = {"newline": Cut(sizes=[6] * 40, kinds=[0] * 40, credit=[0.5] * 40, values=[0.5] * 40)}
    return [
        Completion(
            text=f"{number:05d}\n" * 40,
            cuts=cut,
            prompt=f"prompt {number // 10}",
            source=f"run {number % 2}",
            step=number // 100,
            reward=float(number % 3 == 0),
            truncated=number % 7 == 0,
        )
        for number in range(count)
    ]


def test_of_ten_thousand_only_what_is_in_sight_is_drawn_and_filters_find_them(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
) -> None:
    file = notebook(tmp_path / "n.html", look.page_part(many(10_000)))
    assert file.stat().st_size < 8_000_000
    page = open_page(file).page
    tally, heading = page.locator("output"), page.locator(".sc-heading")
    assert tally.inner_text() == "1 of 10,000"
    assert page.evaluate("document.querySelectorAll('*').length") < 400
    rows = page.locator(".sc-row")
    page.locator(".sc-list").evaluate("each => { each.scrollTop = 28 * 5000 }")
    page.wait_for_function("document.querySelector('.sc-row').textContent.includes('step 49')")
    assert rows.count() < 20

    page.get_by_label("Filter by outcome").select_option("reward 1")
    assert tally.inner_text() == "1 of 3,334 (of 10,000)"
    page.get_by_label("Filter by step").select_option("step 7")
    assert tally.inner_text() == "1 of 33 (of 10,000)"
    page.get_by_label("Filter by run").select_option("run 1")
    assert "reward 1 · run 1 · step 7" in heading.inner_text()
    search = page.get_by_label("Filter by text")
    search.fill("00711")
    assert tally.inner_text() == "1 of 1 (of 10,000)"
    assert page.evaluate("CSS.highlights.get('sc-found').size") == 40
    search.fill("Prompt 75")  # of the prompt, whatever the case
    assert tally.inner_text() == "1 of 2 (of 10,000)"
    search.fill("nowhere")
    assert tally.inner_text() == "0 of 0 (of 10,000)"
    assert "No completion is like that" in page.locator(".segcredit").inner_text()


def test_keys_move_filter_and_leave_what_is_typed_alone(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
) -> None:
    page = open_page(notebook(tmp_path / "n.html", look.page_part(many(300)))).page
    written, tally = page.locator(".sc-written"), page.locator("output")
    page.keyboard.press("j")  # a notebook has keys of its own where nothing of ours is in focus
    assert tally.inner_text().startswith("1 of")
    page.locator(".sc-list").focus()
    for key in ("j", "ArrowDown", "j", "k", "PageDown"):
        page.keyboard.press(key)
    assert written.text_content().startswith("00009")
    selected = page.locator('.sc-row[aria-selected="true"]')
    assert selected.get_attribute("id") == page.locator(".sc-list").get_attribute(
        "aria-activedescendant"
    )
    page.keyboard.press("End")
    assert tally.inner_text() == "300 of 300"
    page.keyboard.press("/")
    page.keyboard.type("0010")
    assert tally.inner_text() == "1 of 11 (of 300)"
    page.keyboard.type("j")  # a letter here
    assert tally.inner_text() == "0 of 0 (of 300)"
    page.keyboard.press("Backspace")
    page.keyboard.press("ArrowDown")
    assert written.text_content().startswith("00100")
    page.keyboard.press("Escape")
    assert tally.inner_text() == "101 of 300"  # where it was, among all again
    page.keyboard.press("k")
    assert written.text_content().startswith("00099")


def test_in_a_report_keys_act_on_what_is_in_sight(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_undrawn(monkeypatch, FIGURES)
    record(tmp_path / "sapo", reward=[1.0, 0.0])
    page = open_page(write_report(tmp_path)).page
    tally = page.locator("#completions output")
    page.keyboard.press("j")
    assert tally.inner_text() == "1 of 2"  # it is far below
    page.locator("#completions").scroll_into_view_if_needed()
    page.keyboard.press("j")
    assert tally.inner_text() == "2 of 2"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
