"""The processes of one run, seen from one of them: shares, sums, gathering, common errors.

Every process runs the same loop over its share of the prompts. What concerns the whole batch is
added up or gathered here. With one process each operation gives back what it was given.
"""

# torch.distributed and Accelerate carry few types: what they return is unknown here alone.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from segcredit.errors import ConfigError, LostProcessError, TrainingError

T = TypeVar("T")

CPU = torch.device("cpu")


class JointWork(Protocol):
    """Work that every process must take part in whenever one does it, such as a sharded pass."""

    def serve(self) -> None:
        """Takes part in another process's work: communicates as it does, and computes nothing."""
        ...


class _Barrier:
    """The state of ``Processes.error_barrier``, and the joint work that may come inside it."""

    def __init__(self) -> None:
        self.open = False
        self.settled = False
        """True once an error of another process has been told, so that nothing more is."""
        self.alone = False
        """True while this process is inside joint work, where it can tell the others nothing."""
        self.works: WeakValueDictionary[int, JointWork] = WeakValueDictionary()
        self.added = 0


@dataclass(frozen=True, slots=True)
class Processes:
    """One process among those of a run.

    Args:
        rank: its number, from 0; process 0 alone writes the run directory.
        count: how many there are.
        device: where it computes.
        peers: host and process id of each, to say which one was lost.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    peers: tuple[tuple[str, int], ...] = ()
    _barrier: _Barrier = field(default_factory=_Barrier, init=False, repr=False, compare=False)

    @classmethod
    def started(cls, asked: int | None = None, *, cpu: bool = False) -> Processes:
        """Finds the processes that a launcher such as torchrun started; one without a launcher.

        Args:
            asked: how many there must be; None = however many were started.
            cpu: leave accelerators alone.

        Raises:
            ConfigError: fewer or more were started than were asked for, or they do not find each
                other.
        """
        from accelerate import PartialState

        # As the launcher left it: Accelerate writes there too.
        launched = dict(os.environ)
        accelerator = None if cpu else _accelerator()
        # Without being told so, it does not join processes that compute on CPUs.
        state = PartialState(cpu=accelerator is None)
        count = int(state.num_processes)
        _require_launched(launched, count)
        if asked is not None and asked != count:
            raise ConfigError(
                f"train.processes: {asked} processes were asked for and {count} started. Usually"
                " the command was started without a launcher, or the launcher started fewer than"
                f" it was told. Start it with: torchrun --nproc_per_node {asked} -m segcredit"
                " train ..., or leave train.processes out."
            )
        # Accelerate keeps the first device that this program asked for, which with several
        # processes is the one of this process.
        found = accelerator or CPU
        device = cast(torch.device, state.device) if accelerator and count > 1 else found
        # Addresses are gathered by an object that has none yet.
        alone = cls(int(state.process_index), count, device)
        return cls(alone.rank, count, device, tuple(alone.gather(_address())))

    @property
    def first(self) -> bool:
        """True in process 0, which alone writes."""
        return self.rank == 0

    def named(self, stream: str) -> str:
        """Names a random generator that each process has for itself.

        Process 0 keeps the name, so that one process draws what it always drew.
        """
        return stream if self.first else f"{stream}/process {self.rank}"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this process's part of items that all have: consecutive, equal up to one."""
        begin, end = (len(items) * place // self.count for place in (self.rank, self.rank + 1))
        return items[begin:end]

    def gather(self, value: T) -> list[T]:
        """Gathers the values of all processes, process 0's first.

        Args:
            value: anything that can be pickled; tensors should be on the CPU.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        with self.exchanging():
            distributed.all_gather_object(found, value)
        return cast("list[T]", found)

    def from_first(self, value: T) -> T:
        """Broadcasts process 0's value to every process.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return value
        sent = [value]
        with self.exchanging():
            distributed.broadcast_object_list(sent, src=0)
        return sent[0]

    def all_gather(self, rows: Tensor) -> Tensor:
        """Gathers rows of all processes, one under the other, process 0's first.

        Args:
            rows: (n,...) of this process; n may differ between processes, widths may not.

        Returns:
            (N,...) on the device of ``rows``, without gradients.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return rows
        return torch.cat(self.gather(rows.detach().cpu())).to(rows.device)

    def sum(self, value: Tensor) -> Tensor:
        """Sums each entry of a tensor over processes, without gradients.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return value
        total = value.detach().to(self.device, copy=True)
        with self.exchanging():
            distributed.all_reduce(total)
        return total.to(value.device)

    def any(self, flag: bool) -> bool:
        """Tells whether a flag is true on any process."""
        return any(self.gather(flag))

    def most(self, number: int) -> int:
        """Returns the largest number of any process."""
        return max(self.gather(number))

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Broadcasts process 0's entries into the tensors of the others, in place.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return
        with self.exchanging():
            for tensor in tensors:
                sent = tensor.detach().to(self.device, copy=True)
                distributed.broadcast(sent, src=0)
                tensor.detach().copy_(sent)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up the gradients of all processes, in place.

        A parameter without a gradient on any process stays without; where some have one, the
        others' count as 0, such as those of a process that has no rows of a minibatch.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return
        # Gradients of sharded parameters (FSDP2) were added up in the backward pass.
        trained = [p for p in parameters if not isinstance(p, DTensor)]
        if not trained:
            return
        has = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        wanted = cast("list[float]", self.sum(has).tolist())
        with self.exchanging():
            for parameter in (p for p, some in zip(trained, wanted, strict=True) if some):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)

    @contextmanager
    def error_barrier(self) -> Generator[None]:
        """Runs work of this process alone, after which each one learns of the others' errors.

        Nothing inside may wait for another process, but for joint work (see ``begin``): a process
        that has reached the end serves the others' until all have.

        Raises:
            TrainingError: another process raised; names it and gives its sentence. One's own error
                is raised as it is.
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            yield
            return
        own: Exception | None = None
        self._barrier.open, self._barrier.settled, self._barrier.alone = True, False, False
        try:
            yield
        except LostProcessError:
            raise  # there is nobody to tell
        except Exception as error:
            own = error
        finally:
            self._barrier.open = False
        if own is None:
            self._agree(None)
            return
        self._require_connected(own)
        if not self._barrier.settled and not self._barrier.alone:
            with suppress(LostProcessError):  # one's own error is worth more than the loss after it
                self.gather(f"{type(own).__name__}: {own}")
        raise own

    def add_work(self, work: JointWork) -> int:
        """Returns the number of a kind of joint work; every process adds the same in one order."""
        barrier = self._barrier
        barrier.added += 1
        barrier.works[barrier.added] = work
        return barrier.added

    def begin(self, number: int) -> None:
        """Begins joint work, once every other process does the same or serves it.

        Inside an error barrier processes need not do it equally often, nor in the same order: of
        different kinds, that of the lowest rank comes first. Outside of one, all do it alike.

        Args:
            number: of the work, as ``add_work`` gave it.

        Raises:
            TrainingError: another process raised before it came so far.
            LostProcessError: another process is gone.
        """
        if self._barrier.open:
            self._agree(number)
            self._barrier.alone = True

    def end(self) -> None:
        """Ends joint work; of an error between the two, other processes learn by the loss alone."""
        self._barrier.alone = False

    def _agree(self, own: int | None) -> None:
        """Serves other processes' joint work until it is the turn of this one's.

        Args:
            own: number of the work; None = there is no more, and that of all others is served.
        """
        while True:
            wanted: list[int | str | None] = self.gather(own)
            for rank, sentence in enumerate(wanted):
                if isinstance(sentence, str):
                    self._barrier.settled = True
                    raise TrainingError(f"process {rank} of {self.count} stopped: {sentence}")
            turn = next((number for number in wanted if number is not None), None)
            if turn == own:
                return
            with self.exchanging():
                self._barrier.works[cast(int, turn)].serve()

    def _require_connected(self, error: BaseException) -> None:
        """Raises a LostProcessError where an error, or what it was raised from, is of that kind."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, RuntimeError) and _of_connection(cause):
                self._raise_lost(cause)
            cause = cause.__cause__

    @contextmanager
    def exchanging(self) -> Generator[None]:
        """Takes errors of the connection inside for what they mean: another process is gone.

        Raises:
            LostProcessError: in the place of such an error; names the process where it can.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _of_connection(error):
                raise
            self._raise_lost(error)

    def _raise_lost(self, error: RuntimeError) -> NoReturn:
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"{_lost(self.gone(), self.count)} ({reason})") from error

    def gone(self, patience: float = 2.0) -> list[int]:
        """Lists processes of this machine that no longer exist; empty where none can be named.

        Args:
            patience: seconds that it looks again for, until there is one.
        """
        here, deadline = socket.gethostname(), time.monotonic() + patience
        while time.monotonic() < deadline:
            gone = [n for n, (host, pid) in enumerate(self.peers) if host == here and _dead(pid)]
            if gone:
                return gone
            time.sleep(0.05)  # the launcher has not yet seen that its child is dead
        return []


def _accelerator() -> torch.device | None:
    """Returns the accelerator to compute on; None without one.

    Apple's MPS is left alone: it has no float64, in which probabilities and ranks are summed.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type == "mps":
        return None
    return torch.device(found.type, torch.accelerator.current_device_index())


def _require_launched(environment: Mapping[str, str], count: int) -> None:
    """Checks that this process is not one of several that do not find each other.

    Args:
        environment: variables, as the launcher left them.
        count: processes that were found.

    Raises:
        ConfigError: the launcher started, or was asked for, more than one.
    """
    world = environment.get("WORLD_SIZE", "1")
    if count == 1 and world != "1":
        raise ConfigError(
            f"a launcher started {world} processes (WORLD_SIZE), and they do not find each other:"
            " each would train by itself. Usually Accelerate was first used on another device in"
            " this program. Start the command with: torchrun --nproc_per_node 2 -m segcredit"
            " train ..."
        )
    asked = "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment
    if count == 1 and asked and "ACCELERATE_MIXED_PRECISION" in environment:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does with"
            " --cpu. Start them with torchrun instead: torchrun --nproc_per_node 2 -m segcredit"
            " train ..."
        )


ALONE = Processes()
"""One process on the CPU."""


def _of_connection(error: RuntimeError) -> bool:
    """Tells whether an error comes of the connection to other processes."""
    # Gloo's errors have no type of their own.
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _lost(gone: Sequence[int], count: int) -> str:
    named = " and ".join(map(str, gone))
    who = f"process {named} of {count}" if gone else f"another of {count} processes"
    return (
        f"{who} was lost. Usually it was killed, often by the system for want of memory, or its"
        " machine went away; the launcher's last lines say how it ended."
    )


def _address() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def stoppable(processes: Processes) -> Generator[None]:
    """Turns being told to stop (SIGTERM) into a ``KeyboardInterrupt``, so that it is recorded.

    A launcher tells the survivors so when a process was lost, wherever they are: in a verifier,
    whose errors would be taken for its own. Leaves threads other than the main one as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows records it
        if processes.count > 1 and (gone := processes.gone(patience=0.5)):
            raise KeyboardInterrupt(_lost(gone, processes.count))
        raise KeyboardInterrupt(
            "stopped by SIGTERM. Usually a scheduler sent it because the time was over, or a"
            " launcher because another process was lost or failed, as its last lines say."
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
