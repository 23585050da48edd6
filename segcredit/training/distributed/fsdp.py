"""Parameters sharded over the processes while they are trained (FSDP2), whole while they are used.

In training a block's parameters are gathered as its turn comes, and its gradients are summed and
sharded again. To sample and to score, all are gathered once, so that the processes need not run
the same number of passes.
"""

# torch.distributed carries few types: what it returns is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from segcredit.errors import ConfigError
from segcredit.training.distributed.processes import Processes


def shard(module: nn.Module, processes: Processes, methods: Sequence[str] = ()) -> None:
    """Shards a module's parameters over the processes: each block's, and the rest together.

    Args:
        module: whole, on its device, the same on every process. Blocks are the members of its
            outermost lists of modules, the layers of a transformer.
        processes: with one of them nothing is done.
        methods: names of methods that run parts of a module, besides its call; it need not have
            them all.

    Raises:
        ConfigError: parameters are not all float32.
    """
    parameters = list(module.parameters())
    if processes.count == 1 or not parameters:
        return
    others = sorted({str(p.dtype) for p in parameters} - {"torch.float32"})
    if others:
        raise ConfigError(
            f"train.parallel: 'sharded' is for models whose parameters are all float32; found"
            f" {', '.join(others)}. Load the model in float32, or set train.parallel to"
            " 'replicated'."
        )
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    # Blocks first: what is sharded already is left out of the group of the whole module.
    for block in _blocks(module):
        fully_shard(block, mesh=mesh)
    # The rest stays gathered after a forward pass, since backward needs it at once.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for part in _parts(module):
        # Losses have the whole minibatch's denominators: gradients add up, rather than average.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    # Parameters are gathered by a hook of the module's call; other methods have to be named.
    for name in sorted({*methods} & {*dir(module)}):
        register_fsdp_forward_method(module, name)


@contextmanager
def whole(*modules: nn.Module) -> Generator[None]:
    """Gives every process all parameters inside; modules that are not sharded are left alone.

    Entered and left by all processes alike.
    """
    parts = [part for module in modules for part in _parts(module)]
    roots = {id(module) for module in modules}
    for part in parts:
        # Or the first pass inside would shard a block again, and the next one would gather it,
        # for which the processes would have to run equally many passes.
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            # As ``shard`` left it: blocks are sharded again after a pass, the rest is not.
            part.set_reshard_after_forward(id(part) not in roots, recurse=False)
            part.reshard()


def gathered(state: Any) -> Any:
    """Returns a state dict with whole tensors, on the CPU, in the place of sharded ones."""
    if isinstance(state, DTensor):
        return state.detach().full_tensor().cpu()
    if isinstance(state, Mapping):
        return type(state)((key, gathered(value)) for key, value in state.items())  # pyright: ignore[reportCallIssue]
    if isinstance(state, list):
        return [gathered(value) for value in cast("list[Any]", state)]
    return state


def shard_like(value: Any, like: Any) -> Any:
    """Returns this process's shard of a tensor, where ``like`` is sharded and of its shape."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    on_device = value.to(like.device)
    # Every process has the whole: nothing need be sent.
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def shard_optimizer_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Returns an optimizer's state, the moments of each parameter sharded as the parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {
        place: {name: shard_like(value, parameters[place]) for name, value in of.items()}
        for place, of in state["state"].items()
    }
    return {**state, "state": found}


def full(x: Tensor) -> Tensor:
    """Returns a tensor whole, however many processes hold shards of it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _parts(module: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the members of the outermost lists of modules."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _blocks(child)
