"""Refusal of what must not be read from a checkpoint: pickled weights, and code not asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig

from segcredit.atomic_files import require_file
from segcredit.errors import PolicyError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def require_safe(source: str, *, trust_remote_code: bool) -> None:
    """Checks that nothing in a checkpoint would have to be run to be read.

    Args:
        source: a folder, or a name on the hub, whose config is then fetched.
        trust_remote_code: whether code that comes with it may be run.

    Raises:
        PolicyError: its weights are pickled, or its model is defined by code of its own.
        OSError: there is no such checkpoint, or a pipe or a device in its folder.
    """
    folder = Path(source)
    if folder.is_dir():
        for file in folder.iterdir():
            if not file.is_dir():
                require_file(file)
        _require_no_pickle(folder)
    # Two values, though annotated as a part of the first.
    config: dict[str, Any] = cast(Any, PreTrainedConfig).get_config_dict(source)[0]
    own_code, kind = config.get("auto_map"), config.get("model_type")
    if own_code and kind not in CONFIG_MAPPING and not trust_remote_code:
        raise PolicyError(
            f"the model {source!r} is of type {kind!r}, which transformers does not know: the"
            f" checkpoint brings code of its own ({', '.join(sorted(map(str, own_code.values())))})"
            " that would have to be run; expected a model that transformers knows. Read that code"
            " first; then write policy.trust_remote_code=true to run it."
        )


def _require_no_pickle(folder: Path) -> None:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    # The trainer of transformers leaves its arguments beside the weights; nobody reads them.
    pickled = [name for name in names if name.endswith(_PICKLED) and name != "training_args.bin"]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise PolicyError(
            f"the model {str(folder)!r} has its weights in {pickled[0]}, a pickle, and unpickling"
            " runs whatever code is in it; expected safetensors, which hold numbers alone. If you"
            ' trust the file, convert it once: python -c "from transformers import'
            f" AutoModelForCausalLM as M; M.from_pretrained({str(folder)!r},"
            f' use_safetensors=False).save_pretrained({str(folder)!r})".'
        )
