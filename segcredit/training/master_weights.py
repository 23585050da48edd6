"""Float32 master weights of parameters that are kept in fewer bits.

An update of 1e-6 is less than half the distance of two neighbouring numbers of bfloat16 near a
weight of .05, and is lost in it. Master weights add such updates up, and the parameters follow.
"""

# The type of torch's hooks is partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segcredit.errors import RecordError

_EXACT = (torch.float32, torch.float64)


class MasterWeights:
    """The trained parameters of a module in float32, each its own master or another's.

    A parameter in float32 is its own master, and nothing differs from plain training. Any other
    one hands its gradient over to its master as soon as it has been summed in a backward pass;
    a parameter that is used in two places (tied embeddings) has one master.

    Args:
        module: on the device where it will stay; parameters that need no gradient are left alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._pairs = [(parameter, _master(parameter)) for parameter in trained]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are clipped, stepped, and summed over processes, each once."""
        return [master for _, master in self._pairs]

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields master weights by the names of their parameters; tied ones by each name."""
        masters = {id(parameter): master for parameter, master in self._pairs}
        for name, parameter in self._module.named_parameters(remove_duplicate=False):
            if id(parameter) in masters:
                yield name, masters[id(parameter)]

    @torch.no_grad()
    def write(self) -> None:
        """Rounds the master weights into the parameters; after every step of the optimizer."""
        # In place: the model's layers and the hooks hold these very tensors.
        for parameter, master in self._pairs:
            if master is not parameter:
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Returns the module's own, master weights for trained parameters, without frozen ones.

        Frozen parameters are as the module's maker gives them; buffers and extra state stay.
        """
        # Adapters' checkpoints would else hold the whole model under them.
        frozen = self._frozen()
        kept = {name: x for name, x in self._module.state_dict().items() if name not in frozen}
        return kept | {name: master.detach() for name, master in self.named()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave, exactly.

        Raises:
            RecordError: it is of another module, or of one of which other parts were trained.
        """
        odd = {*state} ^ ({*self._module.state_dict()} - self._frozen())
        if odd:
            raise RecordError(
                f"the checkpoint and the {type(self._module).__name__} that is to take it differ in"
                f" {min(odd)!r} and {len(odd) - 1} more names; expected all that is trained, and"
                " nothing that is frozen. Usually the model's files or a plug-in's code changed"
                " since it was saved: take those that it was saved with, or start a new run."
            )
        # Not strict, since frozen names are missing; the masters follow, which the parameters'
        # type would have rounded.
        self._module.load_state_dict(state, strict=False)
        for name, master in self.named():
            master.copy_(state[name])

    def _frozen(self) -> set[str]:
        """Returns the names of parameters that are not trained."""
        every = {name for name, _ in self._module.named_parameters(remove_duplicate=False)}
        return every - {name for name, _ in self.named()}


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """Returns the parameter itself, or a copy of it in float32 that collects its gradients."""
    if parameter.dtype in _EXACT:
        return parameter
    master = nn.Parameter(parameter.detach().float())
    parameter.register_post_accumulate_grad_hook(partial(_hand_over, master))
    return master


def _hand_over(master: nn.Parameter, parameter: Tensor) -> None:
    """Adds a parameter's gradient to its master's, and frees it."""
    gradient = parameter.grad
    if gradient is None:
        return
    master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
    # Kept, it would be added up over micro-batches in its own few bits.
    parameter.grad = None
