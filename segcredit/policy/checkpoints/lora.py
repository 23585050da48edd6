"""Low-rank adapters of peft: a small part of a model is trained in the place of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Interval, Le
from pydantic import ConfigDict
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from segcredit.atomic_files import write_atomically
from segcredit.errors import PolicyError, require_package
from segcredit.protocols import whole_tensor, whole_weights
from segcredit.rng import initialised


@dataclass(frozen=True, slots=True)
class LoRA:
    """Options of the adapters: a layer's weight W becomes W + (alpha / rank) B A, with B = 0 first.

    There is no dropout: scores would differ from the distribution sampled from.

    Source:
        Hu et al. 2021, arXiv 2106.09685.
    """

    rank: Annotated[int, Le(4096)] = 16
    """Rows of A, columns of B."""
    alpha: Annotated[float, Interval(ge=1e-6, le=1e6)] = 32.0
    """Weight of the adapters, times ``rank``."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the layers, such as ``q_proj``; none: every linear layer but the
    output layer."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"lora has rank {self.rank} and alpha {self.alpha}; expected a rank of at least 1"
                " and an alpha greater than 0, since the adapters would do nothing"
            )


def add_adapters(model: PreTrainedModel, lora: LoRA, seed: int) -> None:
    """Adds adapters to a model and freezes everything else; it computes what it did before.

    The model keeps its class, so that all else treats it as any other.

    Args:
        model: is changed in place.
        lora: which adapters.
        seed: decides the first A.

    Raises:
        MissingPackageError: peft is not installed.
        PolicyError: no layer has such a name.
    """
    require_package("peft", "lora", "policy.lora", instead="leave policy.lora out")
    from peft import LoraConfig, inject_adapter_in_model

    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(Any, lora.alpha),
        target_modules=list(lora.targets) or "all-linear",
        lora_dropout=0.0,
    )
    try:
        initialised(lambda: inject_adapter_in_model(adapters, model), seed)
    except ValueError as error:
        raise PolicyError(
            f"{type(model).__name__} takes no adapters in {list(lora.targets)} ({error}); expected"
            " ends of the names of its linear layers. Leave policy.lora.targets out for all of"
            " them."
        ) from error


def has_adapters(model: PreTrainedModel) -> bool:
    """Tells whether ``add_adapters`` gave a model adapters."""
    # peft leaves their options on the model.
    return "peft_config" in vars(model)


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Writes a model's adapters alone, as ``peft.PeftModel.from_pretrained`` reads them.

    Args:
        model: of ``add_adapters``.
        folder: must be there.
    """
    from peft import get_peft_model_state_dict

    adapters: Any = next(iter(cast(Any, model).peft_config.values()))
    adapters.base_model_name_or_path = model.name_or_path
    adapters.save_pretrained(folder)
    state: dict[str, Tensor] = get_peft_model_state_dict(model)
    # peft's own model has the network under these two names; ours has no such wrapping.
    named = {f"base_model.model.{name}": x.contiguous() for name, x in state.items()}
    write_atomically(folder / "adapter_model.safetensors", save(named))


@torch.no_grad()
def merged_parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns a model's parameters by name, on the CPU, as if its adapters were merged into them.

    The model stays as it is: taking merged adapters out again would round its weights. Sharded
    parameters are whole here; every process must call this.

    Args:
        model: with adapters or without.
    """
    names = {name for name, _ in model.named_parameters() if ".lora_" not in name}
    own = {name: x.cpu() for name, x in whole_weights(model) if name in names}
    if not has_adapters(model):
        return own
    from peft.tuners.lora import LoraLayer

    found = {name.replace(".base_layer.", "."): x for name, x in own.items()}
    layers = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    ]
    for name, layer in cast("list[tuple[str, Any]]", layers):
        for adapter in layer.active_adapters:
            delta = whole_tensor(layer.get_delta_weight(adapter)).cpu()
            found[f"{name}.weight"] = found[f"{name}.weight"] + delta
    return found


def merge_adapters(model: PreTrainedModel) -> None:
    """Adds a model's adapters to the weights under them, and takes them out, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Collected first: the loop changes the modules that it would walk over.
    layers = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
