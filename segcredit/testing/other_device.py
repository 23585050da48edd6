"""A device other than the CPU, on machines without one: faults that else only an accelerator shows.

Tensors say that they are on it and hold their numbers on the CPU. What CUDA refuses is refused:
operations between the two, but for numbers without a dimension; draws from a generator of the
CPU; NumPy. A tensor made without ``device=`` is one of the CPU, as everywhere.
"""

# What torch's dispatcher passes on carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false
# pyright: reportMissingTypeArgument=false, reportUnknownParameterType=false

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

PRETENDED = torch.device("lazy")
"""A device that torch has a name for and nothing behind.

Unlike ``meta``, libraries take it for one whose tensors have numbers."""

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_NUMBERS_ALLOWED = {_aten.masked_fill.Tensor, _aten.masked_fill_.Tensor, _aten.fill_.Tensor}
_OF_UNKNOWN_SIZE = {
    _aten.bincount.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.unique_dim.default,
    _aten.unique_dim_consecutive.default,
}
_PRODUCTS = {
    _aten.addmm.default,
    _aten.addmv.default,
    _aten.baddbmm.default,
    _aten.bmm.default,
    _aten.dot.default,
    _aten.mm.default,
    _aten.mv.default,
}


@contextmanager
def other_device() -> Generator[torch.device]:
    """Yields a device other than the CPU: CUDA's, or the pretended one where there is none."""
    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        with PretendedDevice():
            yield PRETENDED


class PretendedDevice(TorchDispatchMode):
    """Makes ``PRETENDED`` a device like another one inside.

    Attributes:
        waits: the operations that made the host wait for the device, as ``file:line operation``
            of the nearest line outside torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._lifted = False

    def __enter__(self) -> PretendedDevice:
        # Numbers of a list are put on the CPU first, and then copied over, which is seen here.
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        _entered.append(self)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        _entered.pop()
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation on what its tensors hold, once it is known to be allowed."""
        leaves = [*_leaves(args), *_leaves(kwargs.values())]
        given = [each for each in leaves if isinstance(each, Tensor)]
        theirs = [each for each in given if isinstance(each, PretendedTensor)]
        asked = kwargs.get("device")
        there = bool(theirs) if asked is None else torch.device(asked).type == PRETENDED.type
        if not there and not theirs:
            return func(*args, **kwargs)
        if func not in _COPIES:
            if len(theirs) < len(given):
                _require_one_device(func, args, given)
            _require_known_to_cuda(func, leaves, theirs)
        if _waits(func, args, kwargs, there=there):
            self.waits.append(f"{_caller()} {func}")
        # Pinned memory is the accelerator's, of which there is none.
        changed = {"device": "cpu", "pin_memory": False}
        held = {name: changed.get(name, value) for name, value in kwargs.items()}
        found = func(*map(_held, args), **{name: _held(value) for name, value in held.items()})
        if func is _aten.copy_.default:
            return args[0]
        if func is _aten._local_scalar_dense.default or not there:
            return found
        found = _there(found)
        # Views and tensors written in place are known to be of the same storage.
        aliases = theirs and any(each.alias_info is not None for each in func._schema.returns)
        return return_and_correct_aliasing(func, args, kwargs, found) if aliases else found


def _require_one_device(func: Any, args: Sequence[Any], given: Sequence[Tensor]) -> None:
    """Refuses tensors of two devices where CUDA does."""
    here = [each for each in given if not isinstance(each, PretendedTensor)]
    if func in _INDEXED and isinstance(args[0], PretendedTensor):
        # Indices may be on the CPU, from where they are copied.
        here = [each for each in here if not any(each is index for index in args[1])]
    numbers = torch.Tag.pointwise in func.tags or func in _NUMBERS_ALLOWED | _INDEXED
    if len(here) < len(given) and here and not (numbers and all(x.ndim == 0 for x in here)):
        shapes = [f"{tuple(each.shape)} on {each.device.type!r}" for each in given]
        _refuse(
            f"{func}: expected all tensors on the same device, found {', '.join(shapes)}."
            " Usually one was made without device=: take the device of what it meets, or make"
            " it with new_zeros, zeros_like and the like"
        )


def _require_known_to_cuda(func: Any, leaves: Sequence[Any], theirs: Sequence[Tensor]) -> None:
    if any(isinstance(each, torch.Generator) for each in leaves):
        _refuse(
            f"{func}: the generator is the CPU's, the tensor is not. Draw on the generator's"
            " device, then move the draws"
        )
    if func in _PRODUCTS and theirs and not theirs[0].is_floating_point():
        _refuse(f"{func}: CUDA has no matrix product of {theirs[0].dtype}")


def _waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, there: bool) -> bool:
    """Tells whether CUDA would have the host wait for the numbers of a tensor."""
    if func is _aten.copy_.default:
        return isinstance(args[1], PretendedTensor) and not isinstance(args[0], PretendedTensor)
    if func is _aten._to_copy.default:
        return not there
    if func in _INDEXED:
        marks = [each for each in args[1] if isinstance(each, PretendedTensor)]
        return any(each.dtype in (torch.bool, torch.uint8) for each in marks)
    if func is _aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return func in _OF_UNKNOWN_SIZE or func is _aten._local_scalar_dense.default


_entered: list[PretendedDevice] = []


class PretendedTensor(Tensor):
    """A tensor that says it is on ``PRETENDED``; the numbers are ``held``, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    def __new__(cls, held: Tensor) -> PretendedTensor:
        """Makes a tensor around one of the CPU, whose numbers it shares."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PRETENDED,
            requires_grad=False,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not _entered:
            _refuse("a tensor of the pretended device was used outside PretendedDevice")
        return _entered[-1].call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copies the numbers too; a parameter stays one."""
        if id(self) not in memo:
            copied: Tensor = PretendedTensor(self.held.clone())
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles the numbers, which come back as a tensor of the CPU."""
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **options: Any) -> str:
        return f"PretendedTensor({self.held!r})"

    def tolist(self) -> Any:
        """Returns the numbers as Python's own."""
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        """Refuses, as every device but the CPU does."""
        raise TypeError(
            "NumPy reads the CPU's memory alone. Use Tensor.cpu() to copy the tensor there first."
        )

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()


def _leaves(given: Iterable[Any]) -> Iterator[Any]:
    """Yields arguments and the entries of those that are lists."""
    for each in given:
        if isinstance(each, list | tuple):
            yield from each
        else:
            yield each


def _held(given: Any) -> Any:
    """Returns an argument with the numbers of pretended tensors in their place."""
    if isinstance(given, list | tuple):
        return type(given)(map(_held, given))
    return given.held if isinstance(given, PretendedTensor) else given


def _there(found: Any) -> Any:
    """Returns what an operation found, its tensors on the pretended device."""
    if isinstance(found, list | tuple):
        return type(found)(map(_there, found))
    return PretendedTensor(found) if isinstance(found, Tensor) else found


def _refuse(sentence: str) -> NoReturn:
    raise RuntimeError(f"{sentence}.")


def _caller() -> str:
    """Returns the place of the nearest line outside torch and this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
