"""A model computed in a wider dtype than it is stored in, or on another device than it is stored on: every block's
weights are cast or moved when it runs, and let go.

All but the matrices of blocks (embeddings, the output matrix, norms) is cast once, as a load in the wider dtype does.
So every pass gives bit for bit what the model cast whole gives, in the memory of the stored blocks, of that rest and
of one cast block. An edit is one of the stored numbers: what it writes is rounded to their dtype.
"""

from __future__ import annotations

import functools
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from studfinder.models.files import Held
from studfinder.models.loading import destinations
from studfinder.patches import Journal

_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
_CPU = torch.device("cpu")


@contextmanager
def blocks_as_stored(held: Callable[[], Mapping[str, Held]]) -> Iterator[None]:
    """While this lasts, transformers' `from_pretrained` leaves the matrices of blocks in the narrow dtype of their
    files, memory-mapped; all else, buffers too, is as in the dtype that it is asked for.

    Args:
        held: gives what the checkpoint's files hold, by name, once they are there.
    """
    from transformers import PreTrainedModel

    own = PreTrainedModel._get_dtype_plan

    def plan(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
        return {**own(model, dtype), **_stored(model, dtype, held())}

    PreTrainedModel._get_dtype_plan = plan  # there is no public way to a dtype for each tensor
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan = own


def _stored(model: nn.Module, dtype: torch.dtype, held: Mapping[str, Held]) -> dict[str, torch.dtype]:
    """The dtype of each matrix of a block that is stored in a narrower one, by a pattern of its name."""
    inside = {
        f"{path}.{name}"
        for path, block in _blocks(model).items()
        for name, one in block.named_parameters()
        if one.dim() > 1  # vectors weigh nothing, and norms are also run by themselves
    }
    kinds: dict[str, set[str]] = {}
    for name, (target, _) in destinations(model, held).items():
        kinds.setdefault(target, set()).add(held[name].dtype)
    alike = {target: _NARROW.get(min(found)) for target, found in kinds.items() if len(found) == 1}
    return {
        f"^{re.escape(target)}$": narrow
        for target, narrow in alike.items()
        if target in inside and narrow is not None and narrow.itemsize < dtype.itemsize
    }


def carry_blocks(model: Any, dtype: torch.dtype, device: torch.device = _CPU) -> None:
    """Make the blocks of a model that was loaded so compute in the wider dtype, and on a device on which all else is
    from now on, for good; or cast and move the model whole, if its code does not let them."""
    every = _blocks(model)
    blocks = [block for block in every.values() if any(_elsewhere(one, dtype, device) for one in block.parameters())]
    for block in blocks:
        block.forward = types.MethodType(_carrying(type(block), dtype, device), block)
    inside = {part for block in blocks for part in block.modules()}
    for part in model.modules():  # those of blocks keep their weights, and move what else they hold
        part._apply(partial(_moved, device=device, but=part in inside), recurse=False)
    if blocks and not _runs(model, dtype):
        for block in blocks:
            del block.forward
        model.to(device, dtype)


def narrow_dtype(held: Mapping[str, Held], dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of most tensors of a checkpoint's files, if it is narrower than the one that they are cast to."""
    kinds = Counter(one.dtype for one in held.values()).most_common(1)
    found = _NARROW.get(kinds[0][0]) if kinds else None
    return found if found is not None and found.itemsize < dtype.itemsize else None


def is_carried(model: nn.Module) -> bool:
    """Whether blocks of a model compute in another dtype than they are stored in."""
    return any(hasattr(block.forward, "computes_in") for block in _blocks(model).values())


def _runs(model: Any, dtype: torch.dtype) -> bool:
    """Some models use numbers of a block outside of it, and fail in many ways where dtypes differ."""
    ids_BT = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    try:
        with torch.no_grad():
            model(input_ids=ids_BT, use_cache=False)
    except Exception:
        return False
    return bool(model.dtype is dtype)  # its own code may ask


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The members of a model's lists of modules that are in no other list, by name."""
    found: dict[str, nn.Module] = {}
    for path, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
            found.update({f"{path}.{number}": member for number, member in enumerate(part)})
    return found


def _carrying(kind: Any, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    """The forward method of a class of blocks, with the block's parameters cast and moved while it runs."""

    @functools.wraps(kind.forward)
    def forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _widened(block, dtype, device) as cast, saved_tensors_hooks(partial(_packed, cast), _unpacked):
            return kind.forward(block, *args, **kwargs)

    forward.computes_in = dtype, device  # type: ignore[attr-defined]
    return forward


@contextmanager
def at_hand(block: nn.Module) -> Iterator[None]:
    """The weights of a carried block cast while the context lasts, once for many runs of it without gradients. An edit
    of one is rounded to `stored_dtype`, as if it were made where the weight is stored."""
    computes_in = getattr(block.forward, "computes_in", None)
    if computes_in is None or torch.is_grad_enabled():
        yield
        return
    with _widened(block, *computes_in):
        yield


def computes_on(block: nn.Module) -> torch.device | None:
    """The device on which a carried block computes; None for any other."""
    return getattr(block.forward, "computes_in", (None, None))[1]


@contextmanager
def _widened(block: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[dict[int, torch.Tensor]]:
    """A block's narrower parameters cast, and those elsewhere moved, while the context lasts; gives the stored one by
    the place of its copy."""
    cast: dict[int, torch.Tensor] = {}
    with Journal(block) as journal:
        for module in block.modules():
            for name, one in module.named_parameters(recurse=False):
                if _elsewhere(one, dtype, device):
                    wide = one.to(device, dtype if _narrower(one, dtype) else one.dtype)
                    cast[wide.untyped_storage().data_ptr()] = one
                    # A gradient goes on to what is stored; where there is none, it looks like a parameter.
                    made: Any = wide if wide.requires_grad else nn.Parameter(wide, False)
                    made.stored_dtype = one.dtype
                    journal.set(module, name, made)
        yield cast


def _packed(cast: Mapping[int, torch.Tensor], saved: torch.Tensor) -> Any:
    """What a graph keeps of a tensor for the way back: of a cast matrix, what it was cast from, or all would stay."""
    stored = cast.get(saved.untyped_storage().data_ptr()) if saved.numel() else None
    if stored is None:
        return saved
    return stored, saved.device, saved.dtype, saved.shape, saved.stride(), saved.storage_offset()


def _unpacked(kept: Any) -> torch.Tensor:
    if isinstance(kept, torch.Tensor):
        return kept
    stored, device, dtype, shape, stride, offset = kept
    return stored.detach().to(device, dtype).as_strided(shape, stride, offset)


def _moved(tensor: torch.Tensor, *, device: torch.device, but: bool) -> torch.Tensor:
    return tensor if but and isinstance(tensor, nn.Parameter) else tensor.to(device)


def _elsewhere(parameter: torch.Tensor, dtype: torch.dtype, device: torch.device) -> bool:
    return _narrower(parameter, dtype) or parameter.device != device


def _narrower(parameter: torch.Tensor, dtype: torch.dtype) -> bool:
    return parameter.dtype in _NARROW.values() and parameter.dtype.itemsize < dtype.itemsize
