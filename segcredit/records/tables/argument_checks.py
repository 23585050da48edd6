"""Checks of what a user asks of tables: names that exist, an interval that there can be."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping

from segcredit.errors import StudyError, did_you_mean, shown


def require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a StudyError for the first name that is not known, with the nearest, or all if few."""
    existing = list(known)
    for name in names:
        if name not in existing:
            near = difflib.get_close_matches(name, existing, n=6, cutoff=0.5)
            listed = existing if len(existing) <= _FEW else near or existing[:_FEW]
            more = f" and {len(existing) - len(listed)} more" * (len(listed) < len(existing))
            raise StudyError(
                f"there is no {what} {shown(name)}{did_you_mean(name, existing)} There are:"
                f" {', '.join(listed)}{more}."
            )


_FEW = 15
"""Names that are shown all together; of more, those that are near."""


def current_name(name: str, renamed: Mapping[str, str]) -> str:
    """Returns the name of today of what a user named, and warns where that is another.

    Args:
        name: of a table or of a column.
        renamed: names of today by those of the version before, as in ``segcredit.records.schemas``.
    """
    if name not in renamed:
        return name
    said = f"{name!r} is now called {renamed[name]!r}; the next version drops the old name."
    warnings.warn(said, FutureWarning, stacklevel=3)
    return renamed[name]


def require_interval(confidence: float, resamples: int = 1) -> None:
    """Raises a StudyError for a confidence or a number of resamples that none can have."""
    if not 0 < confidence < 1 or resamples < 1:
        raise StudyError(
            f"The confidence is {confidence} and the resamples are {resamples}; expected a"
            " confidence between 0 and 1 (such as 0.95) and at least one resample."
        )
