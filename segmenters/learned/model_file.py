"""A fitted model on disk: arrays and trees in skops' format, which runs no code when it is read."""

# skops ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import math
import re
import tempfile
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

from segcredit import errors

from .features import DENSE_FEATURES, HASH_BITS, Candidates
from .signals import SIGNAL_FEATURES
from .stages import BoundaryModel, FirstStage, Usual

SHIPPED = Path(__file__).parent / "default.skops"
_FORMAT = "segcredit boundaries 1"
_TRUSTED = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",)
"""Types that a model file holds beside those that skops itself trusts."""
_LOADERS = {
    *("TypeNode", "NdArrayNode", "ListNode", "TupleNode", "DictNode", "ObjectNode", "JsonNode"),
    *("RandomGeneratorNode", "LossNode"),
}
"""Ways in which skops stores what a model holds."""
_HOMES = re.compile(
    r"builtins\.\w+|numpy\.\w+|numpy\.random\._generator\.Generator"
    r"|sklearn\.(ensemble\._hist_gradient_boosting|_loss)\.[\w.]+"
    r"|sklearn\.preprocessing\._label\.LabelEncoder"
)
"""Types that a fitted model consists of."""
_SCHEMA = "schema.json"
_LARGEST, _LARGEST_SCHEMA = 2**25, 2**22
"""Bytes of the largest model, unpacked, and of its description; the shipped one has 2 million and
800,000."""
_MOST_PARTS = 50_000
_LARGEST_VALUE = 1e6
"""The largest log-odds in a tree."""
_RANGES = {
    "intercept": (-_LARGEST_VALUE, _LARGEST_VALUE),
    "blend": (0, 1),
    "threshold": (0, 1),
    "familiar": (0, 1),
}
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
    if model.usual is not None:
        table |= {f"usual_{one.name}": getattr(model.usual, one.name) for one in fields(Usual)}
    with _writing(path):
        skops.io.dump(table, path, compression=zipfile.ZIP_DEFLATED)


def require_writable(path: Path) -> None:
    """Checks that a model can be written to a file, before it is trained.

    Raises:
        ConfigError: it cannot.
    """
    with _writing(path), tempfile.TemporaryFile(dir=path.parent):
        if path.exists() and not path.is_file():
            raise FileExistsError("it is something else than a file")


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
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
    if not path.is_file():
        raise _no_model(path, "it is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            _require_small(archive)
            _require_known(archive)
        return _model(_read(path))
    except MemoryError as error:
        raise _no_model(path, "an array in it fits no memory") from error
    # A foreign file meets zip, JSON, NumPy, skops and scikit-learn, each with errors of its own.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
        raise _no_model(path, f"{reason:.300}") from error


def _require_small(archive: zipfile.ZipFile) -> None:
    """Refuses what would unpack to more than any model holds."""
    parts = archive.infolist()
    size, schema = sum(part.file_size for part in parts), archive.getinfo(_SCHEMA).file_size
    if size > _LARGEST or schema > _LARGEST_SCHEMA or len(parts) > _MOST_PARTS:
        raise ValueError(f"it unpacks to {len(parts)} parts of {size} bytes")


def _require_known(archive: zipfile.ZipFile) -> None:
    """Refuses types that no model has, before any of them is built."""
    waiting: list[Any] = [json.loads(archive.read(_SCHEMA))]
    foreign: set[str] = set()
    while waiting:
        node: Any = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            waiting += node.values()
            kind = f"{node.get('__module__')}.{node.get('__class__')}"
            known = node.get("__loader__") in _LOADERS and _HOMES.fullmatch(kind)
            if "__loader__" in node and not known:
                foreign.add(kind)
    if foreign:
        raise ValueError(
            f"it holds objects of the types {', '.join(sorted(foreign)):.200}, which no model has:"
            " do not trust it"
        )


def _read(path: Path) -> dict[str, Any]:
    import skops.io

    table: Any = skops.io.load(path, trusted=list(_TRUSTED))
    if not isinstance(table, dict) or table.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT!r}")
    return table


def _model(table: dict[str, Any]) -> BoundaryModel:
    for name, kind in _KINDS.items():
        if not isinstance(table.get(name), kind):
            raise TypeError(f"its entry {name!r} is {type(table.get(name)).__name__}")
    for name, (low, high) in _RANGES.items():
        if not low <= table[name] <= high:
            raise ValueError(f"its entry {name!r} is {table[name]}")
    if table["candidates"] not in get_args(Candidates):
        raise ValueError(f"its entry 'candidates' is {table['candidates']!r:.40}")
    width = DENSE_FEATURES + SIGNAL_FEATURES * table["signals"]
    return BoundaryModel(
        first=FirstStage(_weights(table["buckets"], table["weights"]), table["intercept"]),
        trees=_trees(table["trees"], width),
        blend=table["blend"],
        threshold=table["threshold"],
        candidates=table["candidates"],
        signals=table["signals"],
        familiar=table["familiar"],
        usual=_usual(table) if "usual_limit" in table else None,
    )


def _usual(table: dict[str, Any]) -> Usual:
    """Returns what a file of 2026-11-29 or later says of training's documents."""
    limit = table["usual_limit"]
    lists: list[Any] = [table.get(f"usual_{name}") for name in ("shares_K", "rates_K")]
    for values in lists:
        if not (isinstance(values, np.ndarray) and values.dtype == np.float64 and values.ndim == 1):
            raise TypeError("its shares or rates of training are no numbers")
        if not len(values) or not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise ValueError("its shares or rates of training are not finite and ascending")
    if not (isinstance(limit, float) and math.isfinite(limit)):
        raise ValueError(f"its entry 'usual_limit' is {limit!r:.40}")
    return Usual(lists[0], lists[1], limit)


def _weights(buckets: Any, values: Any) -> Any:
    """Returns the weights of all buckets, 0 where the file has none."""
    if buckets.dtype.kind not in "iu" or values.dtype.kind != "f" or buckets.ndim != 1:
        raise TypeError(f"its weights are of {values.dtype} by buckets of {buckets.dtype}")
    if buckets.shape != values.shape or not np.isfinite(values).all():
        raise ValueError("its weights are not one finite number a bucket")
    if len(buckets) and not 0 <= buckets.min() <= buckets.max() < 2**HASH_BITS:
        raise ValueError(f"a bucket of its weights is beyond {2**HASH_BITS}")
    weights = np.zeros(2**HASH_BITS)
    weights[buckets] = values
    return weights


def _trees(found: Any, width: int) -> Any:
    """Returns a classifier of our own with the trees that a file holds, once they are checked.

    scikit-learn walks the nodes without looking where they point, so that nothing else of the
    object is used.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

    baseline = np.asarray(found._baseline_prediction, np.float64)
    if baseline.shape != (1, 1) or not abs(baseline[0, 0]) <= _LARGEST_VALUE:
        raise ValueError("its trees do not begin from one finite number")
    if found.n_features_in_ != width:
        raise ValueError(
            f"its trees read {found.n_features_in_!r:.40} inputs, and there are {width}"
        )
    nodes = [tree.nodes for (tree,) in found._predictors]
    for tree, one in enumerate(nodes):
        if fault := _fault(one, width):
            raise ValueError(f"{fault} in its tree {tree}")
    nothing = np.zeros((0, 8), np.uint32)
    trees: Any = HistGradientBoostingClassifier(max_iter=1)
    trees.fit(np.zeros((2, width)), [False, True])
    trees._predictors = [[TreePredictor(one, nothing, nothing)] for one in nodes]
    trees._baseline_prediction = baseline
    return trees


def _fault(nodes: Any, width: int) -> str:
    """Says what is wrong with the nodes of a tree over ``width`` features; '' for nothing."""
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    if type(nodes) is not np.ndarray or nodes.dtype != PREDICTOR_RECORD_DTYPE:
        return "nodes of another kind"
    if nodes.ndim != 1 or not len(nodes):
        return "no nodes"
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    children = np.stack([nodes["left"][inner], nodes["right"][inner]]).astype(np.int64)
    features = nodes["feature_idx"][inner]
    if (children <= inner).any() or (children >= len(nodes)).any():
        return "a node that leads back or out of it"
    if ((features < 0) | (features >= width)).any():
        return f"a feature beyond the {width} that there are"
    if nodes["is_categorical"].any() or np.isnan(nodes["num_threshold"]).any():
        return "a split that no training makes"
    return "" if (np.abs(nodes["value"]) <= _LARGEST_VALUE).all() else "a leaf that is not finite"


def _no_model(path: Path, why: str) -> errors.ConfigError:
    return errors.ConfigError(
        f"{path} is no boundary model ({why}). Expected a file that this version of"
        " `segcredit fit-boundaries` wrote; train it again."
    )
