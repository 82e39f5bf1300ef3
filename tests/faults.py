"""Faults planted in a healthy checkpoint's weights: the matrix, what is done to it, and the cause to be named."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from studfinder.models import LM
from studfinder.quantizers import Target, targets


@dataclass(frozen=True)
class Fault:
    """What was planted: the cause that is to be named, and the fused group (or the parameter) that holds it."""

    cause: str
    culprit: str


def _doubled(w: torch.Tensor, _draw: random.Random) -> torch.Tensor:
    return w * 2


def _permuted(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    order = torch.randperm(len(w), generator=torch.Generator().manual_seed(draw.randrange(10**6)))
    return w[order]


def _coarse_column(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    col = draw.randrange(w.shape[1])
    made, step = w.clone(), w[:, col].abs().max() / 1.5
    made[:, col] = ((w[:, col] / step - 0.5).round() + 0.5) * step
    return made


def _zero_points(w: torch.Tensor, _draw: random.Random) -> torch.Tensor:
    return w + w.abs().max(1, keepdim=True).values / 7.5


def _row_scales(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    scales = torch.rand(len(w), 1, generator=torch.Generator().manual_seed(draw.randrange(10**6))) * 1.5 + 0.2
    return w * scales


def _other(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    return torch.randn(w.shape, generator=generator) * w.std()


def _zeroed(w: torch.Tensor, _draw: random.Random) -> torch.Tensor:
    return torch.zeros_like(w)


def _coarse_rows(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    first = draw.randrange(len(w) // 2)
    made, some = w.clone(), slice(first, first + len(w) // 4)
    step = w[some].abs().max(1, keepdim=True).values / 1.5
    made[some] = ((w[some] / step - 0.5).round() + 0.5) * step
    return made


def _lost(w: torch.Tensor, _draw: random.Random) -> torch.Tensor:
    made = w.clone()
    made.view(-1)[w.abs().argmax()] = 0
    return made


FAULTS: dict[str, tuple[str, Callable[[torch.Tensor, random.Random], torch.Tensor]]] = {
    "doubled scales": ("scaled", _doubled),
    "permuted rows": ("permuted rows", _permuted),
    "a column in 2 bits": ("columns", _coarse_column),
    "zero points off by one": ("shifted", _zero_points),
    "scales of another tensor": ("row scales", _row_scales),
    "another model's shard": ("unrelated", _other),
    "zeroed": ("zeroed", _zeroed),
    "rows in 2 bits": ("rows", _coarse_rows),
    "a lost super weight": ("numbers", _lost),
}


def planted_in(lm: LM, fault: str, seed: int) -> Fault:
    """Break a matrix of a live model, drawn by a seed."""
    draw = random.Random(seed)
    target: Target = draw.choice(targets(lm))
    cause, change = FAULTS[fault]
    weight = target.weight(lm)
    with torch.no_grad():
        if fault == "a lost super weight":  # tiny random models have none
            weight.view(-1)[draw.randrange(weight.numel())] = weight.abs().max() * 12
            return Fault(cause, target.fused)
        weight.copy_(change(weight.clone(), draw))
    return Fault(cause, target.fused)
