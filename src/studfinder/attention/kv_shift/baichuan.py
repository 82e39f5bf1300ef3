"""Import of the published kernels (Baichuan-M1 and the paper's own checkpoints) into KV shift's scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from studfinder.attention.kv_shift.layer import KVShiftPart
from studfinder.errors import StudfinderError


@torch.no_grad()
def import_kernels(model: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """Copy published kernels into a model that has KV shift; returns the number of layers filled.

    A kernel is a causal convolution of width 2, shape (1, 1, G, 1, 2) (Baichuan-M1) or (G, 2): its column 0
    stands for the *previous* token and column 1 for the current one, the reverse of the formula's (a1, a2).

    Args:
        model: a model converted with KVShift, keys and values both, ungated.
        tensors: a checkpoint's tensors; those named "<attention module>.conv_k" and ".conv_v" are read.

    Raises:
        StudfinderError: a layer's kernel is missing or has another shape, or the model has no KV shift.
    """
    model = getattr(model, "model", model) if not hasattr(model, "named_modules") else model
    parts = {name: part for name, part in model.named_modules() if isinstance(part, KVShiftPart)}
    if not parts:
        raise StudfinderError("this model has no KV shift", do="Say convert(model, KVShift()) first")
    for name, part in parts.items():
        for side, suffix in (("key", "conv_k"), ("value", "conv_v")):
            source = f"{name.rpartition('.')[0]}.{suffix}"
            kernel = tensors.get(source)
            if kernel is None:
                raise StudfinderError(f"the checkpoint has no {source}", expected="one kernel per layer")
            if not hasattr(part, f"{side}_current"):
                raise StudfinderError(f"{name} has no {side} scalars", expected="KVShift(keys=True, values=True)")
            current, previous = getattr(part, f"{side}_current"), getattr(part, f"{side}_previous")
            if kernel.numel() != 2 * current.numel() or kernel.shape[-1] != 2:
                raise StudfinderError(
                    f"{source} has shape {tuple(kernel.shape)}", expected=f"({current.numel()}, 2), 1s aside"
                )
            columns = kernel.reshape(-1, 2)
            previous.copy_(columns[:, 0])
            current.copy_(columns[:, 1])
    return len(parts)
