"""The documentation site: built strictly, complete, and opened from a disk in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import make_site
import pytest
from make_site import SiteError, build, public, render, without_repository_links, write_notebook
from mkdocstrings import Inventory

import segcredit
from segcredit import registry
from segcredit.config import presets
from study.test_report_browser import Opened, browser, open_page

__all__ = ["browser", "open_page"]  # fixtures

CELLS = [
    {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# A *title*"]},
    {
        "cell_type": "code",
        "id": "b",
        "execution_count": 1,
        "metadata": {},
        "source": ["6 * 7"],
        "outputs": [
            {
                "output_type": "execute_result",
                "execution_count": 1,
                "metadata": {},
                "data": {"text/plain": ["42"]},
            },
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {"image/png": "iVBORw0KGgo=", "text/plain": ["<Figure>"]},
            },
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {"text/html": ["<script>[f][1](row)</script>"], "text/plain": ["shown"]},
            },
        ],
    },
]


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path: Path) -> None:
    notebook = tmp_path / "first.ipynb"
    notebook.write_text(
        json.dumps({"cells": CELLS, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    write_notebook(notebook, tmp_path / "notebooks")
    text = (tmp_path / "notebooks" / "first.md").read_text()
    assert text.startswith("# A *title*")
    assert "6 * 7" in text
    assert re.search(r"^ {4}42$", text, re.MULTILINE)
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert (tmp_path / "notebooks" / picture).read_bytes().startswith(b"\x89PNG")
    assert "<script>[f][1](row)</script>" in text


def test_links_out_of_the_pages_are_paths_and_lost_ones_are_faults() -> None:
    page = make_site.DOCS / "explain" / "statistics.md"
    text = "[why](../../DECISIONS.md), [tables](../reference/tables.md#runs), `[x](gone.md)`"
    wanted = "why (`DECISIONS.md`), [tables](../reference/tables.md#runs), `[x](gone.md)`"
    assert without_repository_links(text, page) == wanted
    within = "[tests](../../tests/test_site.py)"
    assert without_repository_links(within, page) == "`tests/test_site.py`"
    for lost in ("[gone](../../gone.py)", "![gone](gone.png)"):
        with pytest.raises(SiteError, match="gone"):
            without_repository_links(lost, page)


def test_every_preset_has_a_row_that_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_site.engines().splitlines()
    assert "| `spo_tree` | yes | no | no: TRL samples no trees | no |" in table
    assert "| `sapo` | yes | yes | yes | trainer |" in table
    assert len(table) == 2 + len(presets())
    monkeypatch.setattr(make_site, "_rows_of", lambda page: {})
    with pytest.raises(SiteError, match="lack"):
        make_site.engines()


def test_a_key_without_a_docstring_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_site, "attributes", lambda model: {})
    with pytest.raises(SiteError, match="has no docstring"):
        make_site.config_keys("train")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](gone.md)", "page does not exist"),
        ("[a](index.md#gone)", "anchor does not exist"),
        ("[a][segcredit.gone]", "unresolved autoref"),
        ("::: segcredit.gone", "Could not collect 'segcredit.gone'"),
    ],
)
def test_what_leads_nowhere_is_a_fault(tmp_path: Path, text: str, said: str) -> None:
    settings = (make_site.DOCS / "zensical.toml").read_text()
    alone = re.sub(r"^nav = .*?^\]$", 'nav = [{ Home = "index.md" }]', settings, flags=re.M | re.S)
    (tmp_path / "zensical.toml").write_text(alone)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    with pytest.raises(SiteError, match=said):
        render(tmp_path)


# The whole site.

pytestmark = pytest.mark.timeout(900)  # the build, on a machine with much else to do


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_every_public_name_plug_in_and_key_is_in_the_reference(site: Path) -> None:
    found = Inventory.parse_sphinx((site / "objects.inv").open("rb"))
    for module, names in segcredit._HOMES.items():
        for name in names:
            assert f"{module}.{name}" in found or f"segcredit.{name}" in found, name
    for module in ("segcredit.testing", "segcredit.study.statistics", "segcredit.study.plots"):
        functions = [name for name in public(module) if callable(lookup(name))]
        assert {name for name in functions if name not in found} == set()
    pages = {page.stem: page.read_text() for page in (site / "reference").glob("*.html")}
    for plugins in registry.ALL.values():
        for name in plugins.names():
            assert re.search(rf">\s*{name}\s*<", pages["plug-ins"]), name
    for key in ("train.micro_tokens", "rollouts.stop", "audit.gradient_samples", "segmenter"):
        assert f"<code>{key}</code>" in pages["config"]


def lookup(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(__import__(module, fromlist=[last]), last)


@pytest.mark.slow
def test_pages_load_nothing_from_a_network(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?(https?:|//)")
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", style.read_text()), style


@pytest.mark.slow
def test_links_and_pictures_of_the_built_pages_are_there(site: Path) -> None:
    ids: dict[Path, set[str]] = {}
    for page in site.rglob("*.html"):
        ids[page] = set(re.findall(r"\bid=\"?([^\s\">]+)", page.read_text()))
    for page in set(ids) - {site / "404.html"}:
        for target in set(re.findall(r"\b(?:href|src)=\"?([^\s\">]+)", page.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), f"{page}: {target}"
            assert not anchor or anchor in ids.get(place, {anchor}), f"{page}: {target}"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_and_finds_what_is_searched(
    site: Path, open_page: Any, scheme: str
) -> None:
    opened: Opened = open_page(site / "index.html", 1280, scheme)
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("sharpening")
    found = page.locator("[role=option][href*='explain/audit.html']").first
    found.wait_for(timeout=30_000)
    found.click()
    page.wait_for_url("**/explain/audit.html*")
    assert "credit audit" in page.inner_text("h1").lower()
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [said for said in opened.said if said.startswith("error")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "learn/first-grid", "explain/audit", "reference/config"])
def test_no_page_scrolls_sideways_on_a_phone(site: Path, open_page: Any, name: str) -> None:
    page = open_page(site / f"{name}.html", 400).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_every_page_has_its_place_in_the_navigation() -> None:
    """A page that is in no place of the navigation is not found by reading on."""
    nav = (make_site.DOCS / "zensical.toml").read_text()
    named = set(re.findall(r'"([\w/-]+\.md)"', nav))
    there = {page.relative_to(make_site.DOCS).as_posix() for page in make_site.DOCS.rglob("*.md")}
    assert there <= named
