"""A finished audit, read back for questions of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segcredit.credit_audit.credits import Bases, Credits, bases_of
from segcredit.credit_audit.metrics import Resampling
from segcredit.credit_audit.store import read_credits, table_label
from segcredit.credit_audit.truth import StoredTruth, load_truth
from segcredit.errors import StudyError


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """An audit as it lies on disk, for questions of one's own."""

    path: Path
    truth: StoredTruth
    credits: list[Credits]
    resampling: Resampling
    """Confidence and draws of its intervals."""
    bases: Bases
    """Credits that credit noise is held against; estimators without them have no ratio."""


def load_audit(path: str | Path, truth: str | Path | None = None) -> Audit:
    """Reads a finished audit's truth and credits.

    Args:
        path: its directory.
        truth: where its truth is, should it have been moved; None = where it was.

    Raises:
        StudyError: the audit is unfinished, or a file of it is missing or damaged.
    """
    path = Path(path)
    label = table_label(path)
    bases = label.get("bases", [])  # older audits have none
    found = {name: read_credits(path, name) for name in [*label["credits"], *bases]}
    missing = [name for name, credits in found.items() if credits is None]
    if missing:
        raise StudyError(
            f"{path} lacks the credits {', '.join(missing[:8])}; expected a file of each. Usually"
            " one was removed or the disk failed: run the audit again, which makes what is missing."
        )
    place = path / label["truth"] if truth is None else truth
    whole = [credits for credits in found.values() if credits is not None]
    audited = whole[: len(label["credits"])]
    resampling = Resampling(**label["resampling"])
    return Audit(path, load_truth(place), audited, resampling, bases_of(whole))


def failed_units(path: str | Path) -> dict[str, str]:
    """Returns the reasons by what an audit left out, since it could not be worked out.

    Raises:
        StudyError: the audit is unfinished.
    """
    return table_label(Path(path))["failed"]
