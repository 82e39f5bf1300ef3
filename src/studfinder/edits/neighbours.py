"""The next number of a dtype, above or below by a coin: the least that a stored number can be changed by."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

Indices = tuple[Any, ...]
"""An index into a parameter: whole numbers and slices of everything, or tensors, one an axis."""


def to_neighbours(values: torch.Tensor, place: Indices, seed: str) -> torch.Tensor:
    """Each number moved to the next of its dtype. The largest go down, what is not finite stays.

    Args:
        values: what a parameter holds at a place.
        place: where; an entry's coin depends on its index and the seed alone, however it is reached.
    """
    coins = torch.as_tensor(_coins(place, values.shape, seed), device=values.device)
    infinite = torch.tensor(torch.inf, dtype=values.dtype, device=values.device)
    up, down = torch.nextafter(values, infinite), torch.nextafter(values, -infinite)
    moved = torch.where(coins, up, down)
    moved = torch.where(moved.isfinite(), moved, torch.where(coins, down, up))
    return torch.where(values.isfinite(), moved, values)


def _coins(place: Indices, shape: torch.Size, seed: str) -> np.ndarray:
    """A coin for each entry: a hash of its index, folded in axis by axis."""
    whole = iter(np.ix_(*(np.arange(size, dtype=np.uint32) for size in shape)))
    state = np.frombuffer(hashlib.sha256(seed.encode()).digest()[:4], np.uint32)
    for at in place:
        axis = next(whole) if isinstance(at, slice) else np.asarray(at, dtype=np.uint32)
        state = _mixed(_mixed(state) ^ axis)
    return (state >> np.uint32(31)).astype(bool).reshape(shape)


def _mixed(state: np.ndarray) -> np.ndarray:
    """Every bit of 32 made to depend on all others, as a hash ends."""
    state = (state ^ (state >> np.uint32(16))) * np.uint32(0x7FEB352D)
    state = (state ^ (state >> np.uint32(15))) * np.uint32(0x846CA68B)
    return state ^ (state >> np.uint32(16))
