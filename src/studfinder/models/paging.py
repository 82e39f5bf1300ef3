"""Weights that are mapped from a file: brought into memory before they are used, and let go afterwards.

A mapped weight takes no memory of its own: the system reads its pages when they are touched, and may drop them again.
Left alone it does so one fault at a time, and late. Changed numbers of it (an edit) are never lost: only what stands in
the file is dropped. Where the system has no such calls (they are Linux'), nothing happens, and all is as left alone.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import nn

Span = tuple[int, int]
"""First byte and length of pages in this process's memory."""

_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_PAGEOUT, _POPULATE_READ = 21, 22  # of linux/mman.h; Python's mmap does not name them


def mapped_spans(module: nn.Module) -> list[Span]:
    """The pages of a module's weights that are mapped from files; none on systems that do not say so."""
    return sorted(set(mapped_places(module.parameters())))


def mapped_places(tensors: Iterable[torch.Tensor]) -> list[Span]:
    """The pages of each tensor that is mapped from a file."""
    files, found = list(_mapped_files()), []
    for one in tensors:
        if one.device.type == "cpu" and one.numel() and type(one.detach()) is torch.Tensor:
            first, last = one.data_ptr(), one.data_ptr() + one.numel() * one.itemsize
            if any(begin <= first and last <= end for begin, end in files):
                begin = first - first % mmap.PAGESIZE
                found.append((begin, last - begin))
    return found


def _mapped_files() -> Iterator[tuple[int, int]]:
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            places, _, _, _, inode, *path = line.split(maxsplit=5)
            if inode != "0" and path and not path[0].startswith(("/dev/", "/memfd:")):
                first, _, last = places.partition("-")
                yield int(first, 16), int(last, 16)


def bring(spans: list[Span]) -> None:
    """Read pages from their files, ahead of their use. Blocks until they are there; other threads go on."""
    _advise(spans, _POPULATE_READ, getattr(mmap, "MADV_WILLNEED", None))


def let_go(spans: list[Span]) -> None:
    """Drop pages that can be read again, from this process and from the system's cache."""
    _advise(spans, _PAGEOUT, None)


def keep_nothing_freed() -> None:
    """From now on memory that was freed goes back to the system at once, for the whole process, where the allocator is
    glibc's: by itself it comes to keep as much as several blocks, for tensors of up to 32 MB each."""
    limit = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if limit is not None:
        limit(_MMAP_THRESHOLD, 1 << 20)


def _advise(spans: list[Span], advice: int, instead: int | None) -> None:
    call = _madvise()
    if call is None:
        return
    for first, length in spans:
        if call(first, length, advice) != 0 and instead is not None:
            call(first, length, instead)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call
