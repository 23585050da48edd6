"""A fitted model on disk: arrays and trees in skops' format, which runs no code when it is read."""

# skops ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from segcredit import errors
from segmenters.learned.features import HASH_BITS
from segmenters.learned.stages import BoundaryModel, FirstStage

SHIPPED = Path(__file__).parent / "default.skops"
_FORMAT = "segcredit boundaries 1"
_TRUSTED = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",)
"""Types that a model file holds beside those that skops itself trusts."""
_KINDS: dict[str, type[Any] | tuple[type[Any], ...]] = {
    "buckets": np.ndarray,
    "weights": np.ndarray,
    "intercept": float,
    "trees": object,
    "blend": float,
    "threshold": float,
    "candidates": str,
    "signals": bool,
    "familiar": float,
}


def save_model(model: BoundaryModel, path: Path) -> None:
    """Writes a model; only the weights of buckets that training met are kept."""
    import skops.io

    buckets = np.flatnonzero(model.first.weights)
    table = {
        "format": _FORMAT,
        "buckets": buckets.astype(np.int32),
        "weights": model.first.weights[buckets].astype(np.float32),
        "intercept": model.first.intercept,
        "trees": model.trees,
        "blend": model.blend,
        "threshold": model.threshold,
        "candidates": model.candidates,
        "signals": model.signals,
        "familiar": model.familiar,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        skops.io.dump(table, path, compression=zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise errors.ConfigError(f"the model cannot be written to {path}: {error}.") from error


def model_path(name: str) -> Path:
    """Returns the shipped model's file, or the one that is named."""
    return SHIPPED if name == "default" else Path(name).expanduser()


def load_model(name: str) -> BoundaryModel:
    """Loads the model in a file, once for each state of the file.

    Raises:
        ConfigError: there is no such file, it is no model, or it holds types that are not trusted.
    """
    path = model_path(name)
    try:
        return _load(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise errors.ConfigError(
            f"the boundary model {path} cannot be read: {error.strerror}. Expected a file that"
            " `segcredit fit-boundaries` wrote, or 'default' for the model that is shipped."
        ) from error


@lru_cache(maxsize=4)
def _load(path: Path, _changed: int) -> BoundaryModel:
    return _model(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    import skops.io

    try:
        foreign = sorted(set(skops.io.get_untrusted_types(file=path)) - {*_TRUSTED})
        if foreign:
            raise errors.ConfigError(
                f"the boundary model {path} holds objects of the types {', '.join(foreign)}, which"
                f" no model has; expected {_TRUSTED[0]} alone beside arrays and numbers. The file"
                " was not read: do not trust it, and train one with `segcredit fit-boundaries`."
            )
        table = skops.io.load(path, trusted=list(_TRUSTED))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, errors.SegcreditError):
            raise
        raise _no_model(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(table, dict) or table.get("format") != _FORMAT:  # pyright: ignore[reportUnknownArgumentType]
        raise _no_model(path, f"its format is not {_FORMAT!r}")
    return table  # pyright: ignore[reportUnknownVariableType]


def _model(table: dict[str, Any], path: Path) -> BoundaryModel:
    for name, kind in _KINDS.items():
        if not isinstance(table.get(name), kind):
            raise _no_model(path, f"its entry {name!r} is {type(table.get(name)).__name__}")
    weights = np.zeros(2**HASH_BITS)
    weights[table["buckets"]] = table["weights"]
    return BoundaryModel(
        first=FirstStage(weights, table["intercept"]),
        trees=table["trees"],
        blend=table["blend"],
        threshold=table["threshold"],
        candidates=table["candidates"],
        signals=table["signals"],
        familiar=table["familiar"],
    )


def _no_model(path: Path, why: str) -> errors.ConfigError:
    return errors.ConfigError(
        f"{path} is no boundary model ({why}). Expected a file that this version of"
        " `segcredit fit-boundaries` wrote; train it again."
    )
