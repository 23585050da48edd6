"""Names that a user gave, against those that exist."""

from __future__ import annotations

from collections.abc import Iterable

from segcredit.errors import StudyError, did_you_mean


def require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a StudyError for the first name that is not known, with the nearest and all."""
    existing = list(known)
    for name in names:
        if name not in existing:
            raise StudyError(
                f"there is no {what} {name!r}{did_you_mean(name, existing)} There are:"
                f" {', '.join(existing)}."
            )
