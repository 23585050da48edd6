"""Memory that ran out, told by what to lower."""

from __future__ import annotations

import torch

from segcredit.errors import PluginError

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


def memory_advice(error: BaseException) -> str | None:
    """Writes the sentence that says what to lower; None for an error that has another cause.

    Args:
        error: also one that was raised from another, as plug-ins' errors are.
    """
    cause: BaseException | None = error
    # Whose array it was, where a plug-in is named.
    who = f"{str(error).partition(' raised ')[0]}: " if isinstance(error, PluginError) else ""
    while cause is not None:
        if _is_shortage(cause):
            where = "device" if isinstance(cause, torch.OutOfMemoryError) else "CPU"
            first = str(cause).partition("\n")[0].rstrip(". ")
            return (
                f"{who}the memory of the {where} ran out ({first}). Lower train.micro_tokens"
                " first: it changes no result. Then rollouts.completions, rollouts.prompts or"
                " rollouts.max_new_tokens, which are sampled in one batch. A pretrained policy"
                " takes less with policy.gradient_checkpointing=true, policy.dtype='bfloat16' or"
                " policy.lora.rank=16."
            )
        cause = cause.__cause__
    return None


def _is_shortage(error: BaseException) -> bool:
    """Tells whether an error means that there is no memory left."""
    # Devices have an error of their own; on the CPU the message alone tells.
    of_torch = isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    return of_torch or isinstance(error, MemoryError | torch.OutOfMemoryError)
