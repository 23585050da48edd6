"""``--json``: the tables of a command as one document, in place of what it would have printed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

if TYPE_CHECKING:
    import pandas as pd

Json = Annotated[bool, typer.Option("--json", help="Print tables as one JSON document instead.")]


class Printed:
    """The tables of one command, printed as they come or kept for the document.

    Args:
        out: where they are printed.
        as_json: whether they are kept instead.
    """

    def __init__(self, out: Console, *, as_json: bool) -> None:
        self._out = out
        self.as_json = as_json
        self.document: dict[str, list[dict[str, Any]]] = {}

    def table(
        self,
        name: str,
        rows: pd.DataFrame | Sequence[Mapping[str, Any]],
        drawn: RenderableType,
    ) -> None:
        """Prints a table as it is drawn; or keeps its rows, under the name."""
        if self.as_json:
            self.keep(name, rows)
        else:
            self._out.print(drawn)

    def keep(self, name: str, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> None:
        """Keeps rows for the document, that are printed in another form than a table."""
        if self.as_json:
            self.document[name] = json_rows(rows)


@contextmanager
def printed(out: Console, *, as_json: bool) -> Generator[Printed]:
    """Prints the document at the end, alone: whatever else is printed goes to standard error.

    Args:
        out: the console that commands print to; writes to ``sys.stdout`` as it is at the time.
        as_json: whether a document was asked for.
    """
    found = Printed(out, as_json=as_json)
    if not as_json:
        yield found
        return
    with redirect_stdout(sys.stderr):
        yield found
    sys.stdout.write(json.dumps(found.document, allow_nan=False, ensure_ascii=False) + "\n")


def json_rows(table: pd.DataFrame | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a table's rows with its column names; what JSON lacks (NaN, infinity) is None."""
    given: Any = table
    rows = given if isinstance(table, Sequence) else given.to_dict("records")
    return [{str(name): _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    import pandas as pd

    return None if value is pd.NA else _plain(value.item())  # a number of NumPy's
