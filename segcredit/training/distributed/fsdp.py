"""Parameters sharded over the processes (FSDP2): each block whole in its turn of a pass alone.

In a pass, a block's parameters are gathered as its turn comes and dropped after it; in training
its gradients are summed and sharded again. Processes may score and value with different numbers of
passes: inside an error barrier, one that has no pass to make takes part in another's gathering.
Sampling by a sampler in this process, which makes a pass a token, gathers all parameters first.
A part of a module that is called by itself gathers nothing: that is refused by a sentence.
"""

# torch.distributed carries few types: what it returns is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from segcredit.errors import ConfigError
from segcredit.training.distributed.processes import JointWork, Processes


def shard(module: nn.Module, processes: Processes, methods: Sequence[str] = ()) -> None:
    """Shards a module's parameters over the processes: each block's, and the rest together.

    Args:
        module: whole, the same on every process; it goes to the processes' device block by block.
            Blocks are the members of its outermost lists of modules, the layers of a transformer,
            which a pass runs once each, in their order. Without a ``forward`` of its own there is
            no pass to gather parameters for, and it stays whole on every process.
        processes: with one of them nothing is done.
        methods: names of methods that run parts of a module, besides its call, any number of
            times: all parameters are gathered for them. It need not have them all.

    Raises:
        ConfigError: parameters are not all float32.
    """
    # Types alone: a list of parameters would keep them whole until all are sharded.
    types = {str(p.dtype) for p in module.parameters()}
    if processes.count == 1 or not types or type(module).forward is nn.Module.forward:
        return
    others = sorted(types - {"torch.float32"})
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
    # The rest stays gathered after a training pass, since backward needs it at once.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for part in _parts(module):
        # Losses have the whole minibatch's denominators: gradients add up, rather than average.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    own = _Sharded(module, processes)
    _SHARDED[module] = own
    for name in sorted({*methods} & {*dir(module)}):
        # FSDP2's own wrapper as well, which begins and ends a pass in its books.
        register_fsdp_forward_method(module, name)
        setattr(module, name, own.gathering(getattr(module, name)))


_SHARDED: WeakKeyDictionary[nn.Module, _Sharded] = WeakKeyDictionary()


class _Sharded(JointWork):
    """A sharded module: its passes as joint work of the processes, and all of it at once."""

    def __init__(self, module: nn.Module, processes: Processes) -> None:
        self._root = ref(module)
        self._processes = processes
        self._number = processes.add_work(self)
        self._whole = False
        self._passing = False
        # Before FSDP2's own hook, which gathers, and after its own.
        module.register_forward_pre_hook(self._begin, prepend=True)
        module.register_forward_hook(self._end)
        for part in module.modules():
            if part is not module:
                part.register_forward_pre_hook(self._require_gathered, prepend=True)

    def serve(self) -> None:
        """Gathers and drops each part in its turn, as a pass without gradients does."""
        for part in self._parts():
            part.unshard()
            part.reshard()

    @contextmanager
    def whole(self) -> Generator[None]:
        """Keeps all parameters gathered inside; a pass of another process may be served by it."""
        if self._whole:
            yield
            return
        parts = self._parts()
        self._processes.begin(self._number)
        for part in parts:
            # Or the first pass inside would shard a block again.
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        self._processes.end()
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
            for place, part in enumerate(parts):
                # As ``shard`` left it: blocks are sharded again after a pass, the root is not.
                part.set_reshard_after_forward(place > 0, recurse=False)
                part.reshard()

    def gathering(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method that runs while all parameters are gathered."""

        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.whole():
                return method(*args, **kwargs)

        return run

    def _parts(self) -> list[FSDPModule]:
        """Returns the sharded parts as a pass gathers them: the root, then the blocks in order."""
        return list(_parts(cast(nn.Module, self._root())))

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._whole:
            self._processes.begin(self._number)
            self._passing = True

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._whole:
            self._passing = False
            self._processes.end()
            if not torch.is_grad_enabled():  # no backward pass will drop what is gathered still
                cast(FSDPModule, module).reshard()

    def _require_gathered(self, part: nn.Module, args: tuple[Any, ...]) -> None:
        """Raises a ConfigError where a part is called by itself, for which nothing is gathered.

        A block would gather its own, without the other processes.
        """
        if self._passing or self._whole:
            return
        # With gradients it is a backward pass that computes a block's activations anew.
        if isinstance(part, FSDPModule) and torch.is_grad_enabled():
            return
        if any(isinstance(p, DTensor) for p in part.parameters()):
            own, root = (type(each).__name__.removeprefix("FSDP") for each in (part, self._root()))
            raise ConfigError(
                f"a {own} inside a sharded {root} was called by itself; expected"
                f" the {root}'s own call, which gathers parameters on all processes. Usually a"
                " value estimator uses a part of its state, as in state.output(x): let the state's"
                " forward use it and call state(...), or set train.parallel to 'replicated'."
            )


@contextmanager
def whole(*modules: nn.Module) -> Generator[None]:
    """Gives every process all parameters inside; modules that are not sharded are left alone.

    Outside of an error barrier, entered by all processes alike.
    """
    with ExitStack() as held:
        for module in modules:
            if module in _SHARDED:
                held.enter_context(_SHARDED[module].whole())
        yield


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
    if isinstance(value, DTensor):  # read as a shard
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


def _parts(module: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the members of the outermost lists of modules."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _blocks(child)
