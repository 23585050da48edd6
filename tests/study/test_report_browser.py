"""The report in a real browser: Debian's chromium, driven by playwright.

Without one these tests are skipped; `apt-get install chromium` brings it, as .ci/run does.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segcredit.records.image_files import image_name
from segcredit.records.run_directory import RunRecords
from segcredit.study.report import write_report

CHROMIUM = shutil.which("chromium")
# Those of the network switch off what the browser itself would look up.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
EVIL = "<script>alert(1)</script><img src=http://localhost/x onerror=alert(2)>"


def make_study(path: Path) -> None:
    """Two segmenters crossed with two estimators, three seeds each; all figures have data."""
    for number in range(12):
        cell, seed = divmod(number, 3)
        segmenter = ["newline", EVIL][cell % 2]
        config = {"seed": seed, "segmenter": segmenter, "estimator": ["critic", "zero"][cell // 2]}
        run = RunRecords.create(path / f"run_{number:02}", config, {"git_revision": "abc" * 13})
        for step in range(4):
            value = (cell + 1) * (step + 1) + seed / 10
            row: dict[str, float] = {"step": step, "tokens_sampled": 1000 * step}
            row |= dict.fromkeys(METRICS, value / 40)
            run.metrics(row | {"cpu_seconds": step * (1 + seed)})
        ends = {"start": [0, 3, 4], "end": [3, 4, 9 + cell], "segment": [0, 1, 2]}
        of = {"prompt": ["p"] * 3, "completion": [0] * 3, "text": [EVIL, " and ", "more" * 40]}
        credit = {"value": [0.2, 0.5, 0.9], "advantage": [0.5, -0.5, 0.0]}
        run.table("segments", 1, {**of, **ends, **credit})
        record_completions(run)
        if number == 11:
            run.fail("TrainingError", f"{EVIL} " + "unbroken" * 20, "Traceback\n  " + "x" * 300)
        else:
            run.finish()


def record_completions(run: RunRecords) -> None:
    """Two, with a small image, a wide one and one that is lost; the second text is a long one."""
    files = [BytesIO(), BytesIO()]
    Image.new("RGB", (16, 16), "red").save(files[0], "PNG")
    Image.new("RGB", (1600, 400), "green").save(files[1], "JPEG")
    for file in files:
        run.image(file.getvalue())
    names = [*(image_name(file.getvalue()) for file in files), "lost.png"]
    columns = {
        "prompt": ["p", "q"],
        "completion": [0, 0],
        "prompt_text": ["What is it? " * 9, EVIL],
        "text": [f"{EVIL} and {'more' * 40}\nend", f"{EVIL}\n" * 99],
        "reward": [1.0, 0.0],
        "images": [" ".join(names), ""],
    }
    run.table("completions", 1, columns)


METRICS = (
    "accuracy",
    "entropy",
    "kl",
    "clip_fraction",
    "completion_length",
    "gradient_norm",
    "explained_variance",
    "value_loss",
    "segments_per_completion",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Path:
    path = tmp_path_factory.mktemp("study")
    make_study(path)
    return write_report(path, title="A study whose name is rather long, " + "unbroken" * 12)


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    if CHROMIUM is None:
        count = sum(item.path == request.path for item in request.session.items)
        reason = (
            f"{count} tests that open the report in a browser were skipped: there is no chromium"
            " here. Install it (apt-get install chromium) and run them again."
        )
        warnings.warn(reason, stacklevel=1)  # shown even where reasons of skips are not
        pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


class Opened:
    """A page with everything that it asked for and said."""

    def __init__(self, page: Any, file: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.said: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        page.goto(file.as_uri())


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file, offline, in a fresh profile of a width and a colour scheme."""
    contexts: list[Any] = []

    def opened(file: Path, width: int = 1280, scheme: str = "light", **options: Any) -> Opened:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True, **options)
        contexts.append(context)
        return Opened(context.new_page(), file)

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_from_disk_asks_for_nothing_and_says_nothing(
    report: Path, open_page: Any, width: int, scheme: str
) -> None:
    opened = open_page(report, width, scheme)
    opened.page.wait_for_timeout(100)
    assert opened.requests == [report.as_uri()]
    assert opened.said == []


def test_its_policy_lets_nothing_out_and_no_other_script_run(
    report: Path, open_page: Any, tmp_path: Path
) -> None:
    """Should escaping ever fail: what was slipped in does not run and fetches nothing."""
    slipped = (
        "<script>window.ran = true</script><img src='http://localhost:9/x'>"
        "<b onclick='window.ran = true' id='slipped'>x</b>"
    )
    changed = tmp_path / "changed.html"
    changed.write_text(report.read_text().replace("</main>", f"{slipped}</main>"))
    opened = open_page(changed)
    opened.page.click("#slipped")
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.evaluate("document.querySelector('thead button') !== null")  # ours did
    assert all("Content Security Policy" in said for said in opened.said)
    assert len(opened.said) == 3


@pytest.mark.parametrize("width", [*WIDTHS, 320])
def test_the_page_never_scrolls_sideways_but_its_tables_do(
    report: Path, open_page: Any, width: int
) -> None:
    page = open_page(report, width).page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What overflow is hidden would not be seen above: no box but a scrolling one is too small.
    outside = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter(each => !each.closest("svg, .skip, .sc-row"))  // cut off on purpose
          .filter(each => !each.parentElement.closest(".scroll"))
          .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5
            || (!each.matches(".scroll") && each.scrollWidth > each.clientWidth + 1
                && getComputedStyle(each).display !== "inline"))
          .map(each => each.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    scrolled = page.evaluate(
        """() => [...document.querySelectorAll(".scroll:has(table)")].map(each => {
          each.scrollLeft = 1e6; return each.scrollLeft > 0 })"""
    )
    assert len(scrolled) >= 8
    assert any(scrolled)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_seen_once_at_a_size_that_can_be_read(
    report: Path, open_page: Any, width: int
) -> None:
    page = open_page(report, width).page
    shown = page.evaluate(
        """() => [...document.querySelectorAll("figure")].map(figure =>
          [...figure.querySelectorAll("svg")].map(svg => {
            const box = svg.getBoundingClientRect();
            return {width: box.width, height: box.height,
              scale: box.width / (svg.viewBox.baseVal.width * 96 / 72),
              drawn: svg.querySelectorAll("path, use").length};
          }).filter(each => each.width > 0))"""
    )
    assert len(shown) == 7  # two of learning curves
    for figure in shown:
        assert len(figure) == 1
        assert figure[0]["width"] <= width
        assert figure[0]["width"] > 250
        assert figure[0]["height"] > 120
        # Their smallest letters are 6.5 points as drawn.
        assert figure[0]["scale"] * 6.5 * 96 / 72 > 7
        assert figure[0]["drawn"] > 20


CONTRAST = """(selectors) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const over = (...colours) => {  // what is seen of colours laid over white, one over the other
    for (const colour of ["white", ...colours]) {
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
    }
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  return Object.fromEntries(selectors.map(selector => {
    const element = document.querySelector(`body ${selector}`);
    const grounds = [];
    for (let each = element; each; each = each.parentElement) {
      grounds.unshift(getComputedStyle(each).backgroundColor);
    }
    const both = [over(...grounds, getComputedStyle(element).color), over(...grounds)];
    return [selector, (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)];
  }));
}"""
PIECES = [f".sc-piece.sc-{kind}" for kind in ("odd", "even", "up", "down")]


def test_text_is_not_cut_off_and_can_be_told_from_its_ground(report: Path, open_page: Any) -> None:
    tags = ["p", "h1", "h2", "a[href]", "td", "th", "caption", "figcaption", "summary", "pre"]
    selectors = [*tags, ".failure strong", ".sc-prompt", ".sc-soft", *PIECES, "footer p"]
    for scheme in SCHEMES:
        ratios = open_page(report, 400, scheme).page.evaluate(CONTRAST, selectors)
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}, scheme
    dark = open_page(report, 400, "dark").page
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"


def test_it_is_read_without_scripts(report: Path, open_page: Any) -> None:
    page = open_page(report, java_script_enabled=False).page
    assert page.locator("section").count() == 13
    assert page.locator("section >> visible=true").count() == 13
    assert page.locator("thead button").count() == 0
    assert EVIL in page.locator("#results tbody").first.inner_text()
    assert EVIL in page.locator("#completions pre").inner_text()
    assert page.locator("#completions .sc-list").count() == 0


def test_a_traceback_opens_on_demand(report: Path, open_page: Any) -> None:
    page = open_page(report, 400).page
    trace = page.locator(".failure pre")
    assert not trace.is_visible()
    page.click("text=Traceback")
    assert trace.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("width", WIDTHS)
def test_completions_stand_beside_their_images(report: Path, open_page: Any, width: int) -> None:
    page = open_page(report, width).page
    assert page.locator(".sc-row").count() == 2 * 4
    small, wide = (page.locator(".sc-one img").nth(place).bounding_box() for place in range(2))
    assert small["width"] == small["height"] == 128
    assert 300 < wide["width"] <= width
    assert wide["width"] == pytest.approx(4 * wide["height"], rel=0.01)  # no image is distorted
    loaded = "[...document.images].every(each => each.complete && each.naturalWidth > 0)"
    assert page.evaluate(loaded)
    assert "lost.png" in page.locator(".sc-one").inner_text()
    page.get_by_role("button", name="Next").click()
    assert page.locator(".sc-written").first.inner_text().count(EVIL) == 99


def test_a_click_on_a_heading_sorts(report: Path, open_page: Any) -> None:
    page = open_page(report).page
    heading = page.locator("#runs thead th", has_text="CPU-seconds")

    def column() -> list[str]:
        cells = page.locator("#runs tbody tr > :nth-child(8)").all_inner_texts()
        return list(dict.fromkeys(cells))

    heading.locator("button").click()
    assert column() == ["3", "6", "9"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert column() == ["9", "6", "3"]
    assert heading.get_attribute("aria-sort") == "descending"
    # Names are sorted as text, and one column at a time.
    page.locator("#runs thead th", has_text="estimator").locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    estimators = page.locator("#runs tbody tr > :nth-child(4)").all_inner_texts()
    assert estimators == sorted(estimators)
    assert len(set(estimators)) == 2
