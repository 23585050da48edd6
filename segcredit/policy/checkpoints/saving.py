"""A policy as a checkpoint folder of transformers, or its adapters alone as one of peft."""

from __future__ import annotations

from pathlib import Path

from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.checkpoints.lora import has_adapters, merge_adapters, save_adapters


def save_checkpoint(policy: CausalPolicy, folder: Path, *, merged: bool = False) -> None:
    """Write a policy's weights, and its tokenizer or processor.

    Args:
        policy: with ``merged``, its adapters are merged into its weights here as well.
        folder: made where it is missing.
        merged: whether a policy with adapters is written as a whole model. Otherwise its adapters
            are, and ``peft.PeftModel.from_pretrained`` reads them over the model they belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapters(policy.model) and merged:
        merge_adapters(policy.model)
    if has_adapters(policy.model):
        save_adapters(policy.model, folder)
    else:
        policy.model.save_pretrained(folder)
    reader = policy.tokenizer if policy.images is None else policy.images.processor
    reader.save_pretrained(folder)
