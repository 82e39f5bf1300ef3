"""How much memory there is, and how a model is held in it: whole, or block by block from its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models.paging import mapped_spans

OWN = 600 << 20
"""Bytes of the interpreter with its libraries, and of what they keep."""

_LEAST_STATES = 128 << 20
"""Bytes of hidden states with which a pass still gets on."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes in memory.

    Attributes:
        budget: bytes that this process may take, files that are mapped not counted: they give way.
        weights: bytes of all weights as they are stored.
        outside: bytes of those that stay in memory, as they compute: embeddings, the output matrix.
        block: bytes of the largest block, as it computes.
        streamed: whether weights are read from their files block by block in every pass, and let go.
        states: bytes of hidden states that a pass may hold; what is more is taken in parts, or put on disk.
        largest: bytes in fp32 of the largest block or matrix outside of them.
    """

    budget: int
    weights: int
    outside: int
    block: int
    streamed: bool
    states: int
    largest: int

    @property
    def census(self) -> int:
        """Bytes with which gradients of all weights can be summed up, a block after the other."""
        return OWN + self.outside + _SUMS * self.largest + _LEAST_STATES

    @property
    def peak(self) -> int:
        """Bytes that are expected at most."""
        return OWN + self.outside + 2 * self.block + self.states

    def __str__(self) -> str:
        if not self.streamed:
            return f"its {in_bytes(self.weights)} of weights stay in memory"
        return (
            f"its {in_bytes(self.weights)} of weights are read block by block from their files in every pass; "
            f"{in_bytes(self.states)} for hidden states, and about {in_bytes(self.peak)} in all at the most"
        )


_SUMS = 7
"""Of a block's numbers in fp32: as they compute, two gradients of them, what is summed up, and a product."""


def memory_plan(
    source: str, model: nn.Module, blocks: list[nn.Module], width: int, budget: int, *, asked: bool = True
) -> MemoryPlan:
    """How a model that was just loaded is held.

    Args:
        source: what it is called in print.
        blocks: its blocks.
        width: bytes of a number as it computes.
        budget: bytes that may be taken.
        asked: whether somebody said so; else it is what was free, and what is in memory already is no mistake.

    Raises:
        StudfinderError: it cannot be held in so little.
    """
    own = {id(one): one for one in model.parameters()}
    inside = {id(one) for block in blocks for one in block.parameters()}
    weights = sum(one.numel() * one.itemsize for one in own.values())
    outside = sum(one.numel() * max(width, one.itemsize) for key, one in own.items() if key not in inside)
    sizes = [sum(one.numel() * max(width, one.itemsize) for one in block.parameters()) for block in blocks]
    largest = max(sizes, default=0)
    streamed = weights + OWN > budget
    if streamed and not all(map(_is_mapped, blocks)):
        if asked:
            raise StudfinderError(
                f"{source} takes {in_bytes(weights)} of memory: its weights are made as it is loaded, not mapped",
                expected="safetensors that are not quantised, in the dtype of --dtype or a narrower one",
            )
        streamed = False
    left = budget - OWN - outside - 2 * largest if streamed else budget - OWN - weights
    states = left if asked else min(1 << 30, left)
    alone = max((one.numel() for key, one in own.items() if key not in inside), default=0)
    numbers = max([alone, *(sum(one.numel() for one in block.parameters()) for block in blocks)])
    plan = MemoryPlan(budget, weights, outside, largest, streamed, max(states, _LEAST_STATES), 4 * numbers)
    if asked and streamed and left < _LEAST_STATES:
        raise StudfinderError(
            f"{source} cannot be read in {in_bytes(budget)} of memory: embeddings and output matrix "
            f"({in_bytes(outside)}), two blocks ({in_bytes(2 * largest)}) and the rest are more",
            expected=f"--memory {(plan.peak + 10**8 - 1) // 10**8 / 10:g}GB or more",
        )
    return plan


def _is_mapped(block: nn.Module) -> bool:
    """Whether nearly all of a block's numbers are mapped from files, as far as the system says."""
    if not Path("/proc/self/maps").exists():
        return True
    return sum(size for _, size in mapped_spans(block)) >= 0.9 * sum(
        one.numel() * one.itemsize for one in block.parameters()
    )


def as_bytes(text: str | int) -> int:
    """Bytes of "8GB", "500MB", "8GiB" or a number. Raises StudfinderError for any other text."""
    from accelerate.utils.modeling import convert_file_size_to_int

    try:
        found = text if isinstance(text, int) else convert_file_size_to_int(text.replace(" ", ""))
    except (ValueError, AttributeError):
        found = 0
    if found <= 0:
        raise StudfinderError(f"{text!r} is no amount of memory", expected="e.g. 8GB or 500MB")
    return found


def in_bytes(number: float) -> str:
    """In GB or MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def free_memory() -> int:
    """Bytes: what the system has free, and no more than a container's limit leaves."""
    try:
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # where it cannot be asked for, half of all of it
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min(free, _container())


def _container() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that nobody uses are given back when they are wanted.
        return int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return 1 << 62
