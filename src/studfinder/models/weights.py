"""Read a matrix of a live model, wherever accelerate keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from studfinder.models.anatomy import MatrixRef
from studfinder.models.lm import LM


@contextmanager
def matrix(lm: LM, ref: MatrixRef) -> Iterator[torch.Tensor | None]:
    """The matrix as (out, in), a view of the live parameter; an offloaded one is brought in for the while.

    None if the module holds no such floating-point matrix (a quantised layer).
    """
    owner = lm.model.get_submodule(ref.module)
    leaf = ref.parameter.rpartition(".")[2]
    if hasattr(owner, "_hf_hook"):
        from accelerate.utils import align_module_device

        with align_module_device(owner):
            yield _view(owner, leaf, ref)
    else:
        yield _view(owner, leaf, ref)


def _view(owner: torch.nn.Module, leaf: str, ref: MatrixRef) -> torch.Tensor | None:
    parameter = getattr(owner, leaf, None)
    if not isinstance(parameter, torch.nn.Parameter) or not parameter.is_floating_point():
        return None
    return ref.view(parameter).detach()
