"""Models out of GGUF files, llama.cpp's format, as plain checkpoints of transformers."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from segcredit.cache_folder import cache_folder, locked
from segcredit.errors import PolicyError, loading, require_package

_FORMAT = 1
"""Counts the changes of what a cached folder holds or of how it comes to be."""
ENDING = ".gguf"


def plain_checkpoint(model: str) -> Path:
    """Converts a GGUF file to a folder with the model, float32 safetensors, and its tokenizer.

    transformers dequantises the weights, which takes 15 to 100 seconds for 135 M parameters; the
    folder is kept under the file's checksum. It holds a model as any other, which may be trained;
    the flags of quantisation stay behind.

    Args:
        model: the file's path, or ``package:file`` for one inside an installed package.

    Raises:
        PolicyError: the file, or the package ``gguf``, is missing, or transformers cannot read
            what the file holds; or the cache folder cannot be made.
    """
    file = _found(model)
    folder = cache_folder() / f"gguf-{_FORMAT}-{_checksum(file)}"
    with locked(folder):
        if not folder.exists():
            print(
                f"Taking {file.name} apart, which may take some minutes; it is kept in {folder}.",
                file=sys.stderr,
            )
            _convert(file, folder)
    return folder


def _found(model: str) -> Path:
    """Finds a GGUF file by its path, or else inside an installed package.

    Raises:
        PolicyError: there is none, or the package ``gguf``, which reads it, is missing.
    """
    path = Path(model).expanduser()
    package, colon, inside = model.partition(":")
    if not path.is_file() and colon:
        # Looked up, not imported: the package's own requirements need not be there.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        for place in (spec and spec.submodule_search_locations) or ():
            path = Path(place) / inside
    if not path.is_file():
        raise PolicyError(
            f"there is no file {model!r}; expected the path of a GGUF file, or"
            " 'package:file.gguf' for one inside an installed package. Usually the path is"
            " misspelt or the package not installed: check policy.model."
        )
    require_package("gguf", "gguf", f"the model {model!r}, a GGUF file,")
    return path


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:24]


def _convert(file: Path, folder: Path) -> None:
    """Writes a GGUF file's checkpoint into a folder, which appears whole.

    Raises:
        PolicyError: transformers cannot read what the file holds.
    """
    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    remedy = (
        "expected a causal language model of an architecture that transformers reads from GGUF."
        " Usually the file is damaged or its architecture too new: download it again, or take the"
        " model's safetensors instead."
    )
    with loading(f"the GGUF file {str(file)!r}", remedy, PolicyError):
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(file.parent), **where)
        model = cast(Any, AutoModelForCausalLM).from_pretrained(
            str(file.parent), dtype=torch.float32, **where
        )
    # With these a model saves itself as quantised, and is refused by whatever trains.
    model.hf_quantizer = None
    del model.config.quantization_config
    # Beside the folder, so that the move is a rename, which is done whole or not at all.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as beside:
        made = Path(beside) / "checkpoint"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.move(made, folder)
