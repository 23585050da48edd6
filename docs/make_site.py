"""Builds the documentation site: pages of docs/, with what the code says of itself, into HTML.

    python docs/make_site.py --output build/docs    # make docs; the site is build/docs/site

A line ``<!-- generated: NAME ARGUMENTS -->`` of a page stands for what ``GENERATED[NAME]`` returns:
keys of the config, columns, commands, methods, docstrings. So none of it is written twice. A
notebook of docs/notebooks becomes a page with its outputs. Zensical builds strictly: a link, an
anchor or a reference that leads nowhere is an error, and so is a picture or a file that is missing.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import griffe
import typer
from typer.cli import get_docs_for_click

import segcredit
from segcredit import config, registry
from segcredit.cli import app
from segcredit.credit_audit import metric_list
from segcredit.credit_audit.settings import AuditSettings
from segcredit.records.schemas import COLUMNS
from segcredit.study import method_table

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
CODE = re.compile(
    r"^(?:```.*?^```|~~~.*?^~~~)|`[^`\n]+`|<(script|style)\b.*?</\1>", re.MULTILINE | re.DOTALL
)
"""Code of a page, and of what a notebook shows in one."""
MARK = re.compile(r"^<!-- generated: (\S+) ?(.*?) -->$", re.MULTILINE)
DEFAULTS = tomllib.loads(config.preset_text("base"))
AUDIT_DEFAULTS = tomllib.loads((ROOT / "segcredit/credit_audit/defaults.toml").read_text("utf-8"))
PANDAS = {"integer": "Int64", "number": "float64", "boolean": "boolean"}
"""Type of a config key's column in ``Runs.runs`` by its type in JSON; ``category`` of others."""

SEVERAL = re.compile(r"^griffe: .*parameter '\w+(, \w+)+'", re.IGNORECASE)
"""A warning of fields that share an entry of a docstring, for which griffe has no syntax."""

SHIM = "https://unpkg.com/iframe-worker/shim"
"""The script by which search works in pages opened from a disk, where Zensical fetches it."""


class SiteError(Exception):
    """A page says what is not so."""


def write_pages(output: Path) -> None:
    """Writes the folder that Zensical reads: the pages, with what is generated in its places."""
    shutil.rmtree(output, ignore_errors=True)
    pages = output / "docs"
    skip = shutil.ignore_patterns("*.py", "*.toml", "*.ipynb", "__pycache__", ".*")
    shutil.copytree(DOCS, pages, ignore=skip)
    shutil.copy(DOCS / "zensical.toml", output)
    for page in sorted(pages.rglob("*.md")):
        text = MARK.sub(lambda mark: GENERATED[mark[1]](*mark[2].split()), page.read_text("utf-8"))
        source = DOCS / page.relative_to(pages)
        page.write_text(without_repository_links(text, source), encoding="utf-8")
    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        write_notebook(notebook, pages / "notebooks")


def write_notebook(notebook: Path, folder: Path) -> None:
    """Writes a notebook, with the outputs that are stored in it, as a page and its pictures."""
    from nbconvert import MarkdownExporter  # takes a second to import

    text, found = MarkdownExporter().from_filename(str(notebook))
    folder.mkdir(parents=True, exist_ok=True)
    pictures: Mapping[str, bytes] = found["outputs"]
    page = without_repository_links(text, notebook, pictures)
    (folder / notebook.stem).with_suffix(".md").write_text(page, encoding="utf-8")
    for name, content in pictures.items():
        (folder / name).write_bytes(content)


def without_repository_links(text: str, page: Path, beside: Iterable[str] = ()) -> str:
    """Returns a page whose links to files outside docs/ are the files' paths, as text.

    Args:
        text: the page's.
        page: its file in docs/.
        beside: names of pictures that will be written beside it.

    Raises:
        SiteError: such a file, or a picture, is not there.
    """

    def replaced(link: re.Match[str]) -> str:
        picture, words, target, _ = link.groups()
        if re.match(r"[a-z]+:", target) or target in beside:
            return link[0]
        path = Path(os.path.normpath(page.parent / target))
        outside = not path.is_relative_to(DOCS)
        if (picture or outside or path.suffix != ".md") and not path.exists():
            raise SiteError(f"{page}: {target} is not there; expected a file of the repository.")
        if not outside or picture:
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        return f"`{name}`" if name.startswith(words.strip("`")) else f"{words} (`{name}`)"

    parts, end = [], 0
    for code in CODE.finditer(text):  # in which nothing is a link
        parts += [LINK.sub(replaced, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(replaced, text[end:])])


@functools.cache
def source_of_package() -> griffe.Module:
    """Returns the package as griffe reads its source.

    Raises:
        SiteError: it is no module, usually since another folder of this name was found first.
    """
    package = griffe.load("segcredit")
    if not isinstance(package, griffe.Module):
        raise SiteError(f"griffe read segcredit as {type(package).__name__}; expected a module.")
    return package


@functools.cache
def attributes(model: type[Any]) -> Mapping[str, str]:
    """Returns the docstrings below a model's fields, as Markdown in one line."""
    place = model.__module__.removeprefix("segcredit.")
    members = source_of_package()[f"{place}.{model.__name__}"].members.items()
    documented = {name: member.docstring for name, member in members if member.docstring}
    return {name: in_a_cell(doc.value) for name, doc in documented.items()}


def in_a_cell(text: str) -> str:
    """Returns a docstring as Markdown inside a table's cell."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


SECTIONS = ("rollouts", "loss", "train", "train.value", "train.value.pretraining")
SECTIONS += ("evaluate", "record", "checkpoint")
"""Sections of a config, in the order of the page."""
LISTS = ("credit",)
"""Keys whose value is a list of sections: one column, as JSON."""


def config_sections() -> str:
    """Returns a heading, the docstring and a table of keys for each section of a config."""
    parts: list[str] = []
    for section in (*LISTS, *SECTIONS):
        said = in_a_cell((model_of(section).__doc__ or "").strip().replace("\n\n", " "))
        name = f"[[{section}]]" if section in LISTS else f"[{section}]"
        parts += [f"## `{name}`", said, config_keys(section)]
    return "\n\n".join(parts)


def model_of(section: str) -> Any:
    """Returns the model of a section, "" for the whole config."""
    return functools.reduce(section_of, filter(None, section.split(".")), config.RunConfig)


def config_keys(section: str = "") -> str:
    """Returns a table of a section's keys, or of those that are in none."""
    model = model_of(section)
    below = functools.reduce(lambda table, name: table.get(name, {}), section.split("."), DEFAULTS)
    return keys(model, section, below if section else DEFAULTS)


def section_of(model: Any, name: str) -> Any:
    """Returns the model of a section of a config's model."""
    hint = model.model_fields[name].annotation
    return next(each for each in (hint, *getattr(hint, "__args__", ())) if is_section(each))


def is_section(hint: object) -> bool:
    """Tells whether a field is a section of keys."""
    return isinstance(hint, type) and issubclass(hint, config.BaseModel)


def audit_keys() -> str:
    """Returns a table of the keys of ``[audit]``."""
    own = dict.fromkeys((path.split(".")[1] for path in AUDIT_LISTS), "the run's")
    return keys(AuditSettings, "audit", {**AUDIT_DEFAULTS, **own})


def keys(model: Any, section: str, below: Mapping[str, Any]) -> str:
    """Returns a table of a model's keys: type, default, meaning, and the column in ``Runs.runs``.

    Raises:
        SiteError: a key has no docstring.
    """
    lines = ["| key | type | default | meaning | column |", "|---|---|---|---|---|"]
    described = attributes(model)
    for name, schema in model.model_json_schema()["properties"].items():
        if "$ref" in schema or any("$ref" in each for each in schema.get("anyOf", ())):
            continue  # a section, with a table of its own
        path = ".".join(filter(None, (section, name)))
        if name not in described:
            raise SiteError(f"{path} has no docstring; expected one below its field in {model}.")
        kind, column = kind_of(schema, path)
        default = below.get(name, schema.get("default", REQUIRED))
        shown = default if default in (REQUIRED, "the run's") else f"`{as_toml(default)}`"
        column = f"in `{section}`" if section in LISTS else column
        lines.append(f"| `{path}` | {kind} | {shown} | {described[name]} | {column} |")
    return "\n".join(lines)


AUDIT_LISTS = ("audit.segmenters", "audit.estimators", "audit.advantages")
REQUIRED = "the method's"
"""The default of a key that the base leaves to the presets."""


def as_toml(value: object) -> str:
    """Returns a value as a config writes it; what is left out is ``none``."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {as_toml(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f'"{value}"' if isinstance(value, str) else f"{value:g}"


def kind_of(schema: Mapping[str, Any], path: str) -> tuple[str, str]:
    """Returns a key's type with its range, and the type of its column."""
    path = path.removeprefix("credit.")
    if path in registry.PATHS:
        kind = registry.PATHS[path].group.rpartition(".")[2]
        return f"[plug-in](plug-ins.md#{kind})", "category"
    if path in AUDIT_LISTS:
        return f"list of [plug-ins](plug-ins.md#{path.split('.')[1]})", "category"
    given = next((each for each in schema.get("anyOf", ()) if each["type"] != "null"), schema)
    if "enum" in given:
        return ", ".join(f'`"{each}"`' for each in given["enum"]), "category"
    words = {"integer": "whole number", "array": "list", "object": "table", "string": "text"}
    kind = words.get(given["type"], given["type"])
    ends = [f"{sign} {given[key]:g}" for key, sign in BOUNDS.items() if key in given]
    return " ".join([kind, ", ".join(ends)]).strip(), PANDAS.get(given["type"], "category")


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def columns(table: str) -> str:
    """Returns a table of a table's columns; all but ``runs`` have ``run``."""
    rows = [f"| `{n}` | {c.type} | {c.unit} | {c.meaning} |" for n, c in COLUMNS[table].items()]
    return "\n".join(["| column | type | unit | meaning |", "|---|---|---|---|", *rows])


def commands() -> str:
    """Returns the command line's own help of every command."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="segcredit")
    return text.partition("\n")[2].replace("&#x27;", "'")


def methods() -> str:
    """Returns the presets on the four axes, and the source of each."""
    sources = [f"- `{name}`: {method_table.source(name)}" for name in config.presets()]
    return "\n".join([method_table.method_table(), "", *sources])


def engines() -> str:
    """Returns a table of where each preset runs, from the pages that TRL's and verl's tests check.

    Raises:
        SiteError: a page's table lacks a preset.
    """
    lines = ["| preset | here | one step ahead | TRL | verl |", "|---|---|---|---|---|"]
    hosts = [_rows_of("how-to/trl.md"), _rows_of("how-to/verl.md")]
    for name in config.presets():
        ahead = "no" if config.load_config(name).rollouts.layout == "tree" else "yes"
        missing = [host for host in hosts if name not in host]
        if missing:
            raise SiteError(f"the pages on TRL and verl lack {name!r}; expected every preset.")
        lines.append(f"| `{name}` | yes | {ahead} | {' | '.join(host[name] for host in hosts)} |")
    return "\n".join(lines)


def _rows_of(page: str) -> dict[str, str]:
    """Returns the second cell of a page's table rows, by the name in the first."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) \|", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    return {name: {"not": "no"}.get(cell, cell) for name, cell in found}


def metrics() -> str:
    """Returns the table of the audit's metrics."""
    return "\n".join(metric_list.markdown())


def plug_ins() -> str:
    """Returns for each kind a heading, what it is, and its plug-ins' docstrings."""
    parts: list[str] = []
    for kind, plugins in registry.ALL.items():
        keys = [f"`{key}`" for key, found in registry.PATHS.items() if found is plugins]
        said = in_a_cell((plugins.protocol.__doc__ or "").strip().partition("\n\n")[0])
        parts += [f"## {kind}", f"{said} Key: {', '.join(keys)}.", plug_ins_of(kind)]
    return "\n\n".join(parts)


def plug_ins_of(kind: str) -> str:
    """Returns the docstring of each plug-in of a kind that comes with segcredit."""
    points = distribution("segcredit").entry_points.select(group=f"segcredit.{kind}")
    own = {"show_signature_annotations": True, "members": False}
    return "\n\n".join(
        directive(point.value.replace(":", "."), heading=point.name, toc_label=point.name, **own)
        for point in sorted(points, key=lambda point: point.name)
    )


def docstrings(*modules: str) -> str:
    """Returns the docstrings of public names: of segcredit's own by their home, or of a module."""
    return "\n\n".join(directive(name) for module in modules for name in public(module))


def public(module: str) -> Iterator[str]:
    """Yields the dotted public names of a module; of a home, those that ``segcredit`` shows."""
    if shown := segcredit._HOMES.get(module):  # pyright: ignore[reportPrivateUsage]
        declared = source_of_package().members
        yield from (f"{'segcredit' if name in declared else module}.{name}" for name in shown)
        return
    for name, value in vars(import_module(module)).items():
        home = getattr(value, "__module__", "")
        if not name.startswith("_") and home.startswith(f"{module}.") | (home == module):
            yield f"{module}.{name}"


def directive(path: str, **options: object) -> str:
    """Returns what mkdocstrings replaces by a docstring."""
    lines = [
        f"        {name}: {str(value).lower() if value is False else value}"
        for name, value in options.items()
    ]
    return "\n".join([f"::: {path}", *(["    options:", *lines] if lines else [])])


GENERATED: Mapping[str, Callable[..., str]] = {
    "audit-keys": audit_keys,
    "columns": columns,
    "commands": commands,
    "config-keys": config_keys,
    "config-sections": config_sections,
    "docstrings": docstrings,
    "engines": engines,
    "methods": methods,
    "metrics": metrics,
    "plug-ins": plug_ins,
}


def build(output: Path) -> Path:
    """Builds the site, and returns its folder.

    Raises:
        SiteError: a link, a reference, a picture or a docstring leads nowhere.
    """
    write_pages(output)
    return render(output)


def render(output: Path) -> Path:
    """Has Zensical make HTML of what ``write_pages`` wrote, and returns the site's folder.

    Raises:
        SiteError: as ``build``.
    """
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=output, capture_output=True, text=True, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    faults = [line for line in said.splitlines() if ": " in line and not SEVERAL.search(line)]
    if done.returncode or any(line.startswith(("griffe", "Warning")) for line in faults):
        raise SiteError(said)
    site = output / "site"
    for page in site.rglob("*.html"):
        above = "../" * (len(page.relative_to(site).parts) - 1)
        text = page.read_text(encoding="utf-8").replace(SHIM, f"{above}iframe-worker.js")
        page.write_text(text, encoding="utf-8")
    return site


def main() -> None:
    """Builds the site from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs")
    try:
        print(build(parser.parse_args().output.resolve()) / "index.html")
    except SiteError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
