"""Hidden states between two blocks: in memory, or past a limit in files that are gone as soon as nobody needs them."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils._pytree import tree_map_only

from studfinder.errors import known
from studfinder.models import LM, private_folder

STATES_AT_ONCE = 1 << 30
"""Bytes of hidden states that are held in memory where nothing else is said."""

_T = TypeVar("_T")


class Spool:
    """Keeps the states of one pass.

    Args:
        lm: whose memory plan says how many bytes of them stay in memory.
    """

    def __init__(self, lm: LM) -> None:
        self.limit = lm.memory.states if lm.memory is not None else STATES_AT_ONCE
        self.held = 0

    def keep(self, state: _T) -> _T:
        """The same numbers, for as long as they are referred to: mapped from a file if they are past the limit. The
        file has no name any more when this returns, so that whatever ends the process leaves nothing behind.

        Raises:
            StudfinderError: the disk is full.
        """
        kept: _T = tree_map_only(torch.Tensor, self._kept, state)
        return kept

    def _kept(self, one: torch.Tensor) -> torch.Tensor:
        size = one.numel() * one.itemsize
        if self.held + size > self.limit and size and one.device.type == "cpu":
            return on_disk(one)
        self.held += size
        weakref.finalize(one, self._gone, size)
        return one

    def _gone(self, size: int) -> None:
        self.held -= size


def on_disk(one: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy of a tensor that takes no memory of its own: mapped from a file that has no name any more.

    Raises:
        StudfinderError: the disk is full.
    """
    dtype = dtype or one.dtype
    try:
        handle, name = tempfile.mkstemp(dir=private_folder("states"))
        try:
            # Now, not when a page is written, which would end the process.
            os.posix_fallocate(handle, 0, one.numel() * dtype.itemsize)
            file = torch.from_file(name, shared=True, size=one.numel(), dtype=dtype)
        finally:
            os.close(handle)
            Path(name).unlink()
    except (OSError, RuntimeError) as error:
        raise known(error) or error from error
    return file.view(one.shape).copy_(one)
