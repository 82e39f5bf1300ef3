"""What a run will take, before it starts: parameters, tokens, memory and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from studfinder.attention import Variant
from studfinder.training.models import ModelShape, build_model
from studfinder.training.recipe import TrainingRecipe
from studfinder.visible import duration

_STATE = 16
"""Bytes a parameter: fp32 weights, gradients and AdamW's two averages."""
_KEPT = 34
"""Numbers a token and channel that a block keeps for its backward pass (Korthikanti et al. 2022, arXiv 2205.05198,
equation 1 counts 34 bytes in fp16, of which attention's own T^2 part is not kept by fused attention)."""
_CHECKPOINTS = 3 * 12 + 4
"""Bytes of disk a parameter: two checkpoints and the one that is being written (fp32 weights and AdamW's averages), and
the exported model."""
_EFFICIENCY = 0.4
"""Share of a square matrix product's speed that training reaches; ratio of the two, measured on small CPU models."""


@dataclass(frozen=True)
class Estimate:
    """Sizes of a run. `seconds` is a guess from a short matrix product, good to a factor of two; `disk` is the most
    that checkpoints, the exported model and the tokens of a text take together."""

    parameters: int
    tokens: int
    memory: int
    seconds: float
    disk: int = 0

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:,.3g} M parameters, {_count(self.tokens)} tokens, "
            f"about {self.memory / 1e9:.2g} GB of memory a device, "
            f"up to {self.disk / 1e9:.2g} GB of disk, about {duration(self.seconds)}"
        )


def estimate(
    shape: ModelShape,
    variants: Sequence[Variant],
    recipe: TrainingRecipe,
    *,
    vocabulary: int,
    length: int,
    devices: int = 1,
    kept: int = 0,
) -> Estimate:
    """What a run of a model from scratch takes. The model is made without memory of its own ("meta").

    Args:
        kept: tokens of a text that are kept on disk, at most.
    """
    with torch.device("meta"):
        model = build_model(shape, variants, vocabulary=vocabulary, length=length, seed=recipe.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return estimate_of(parameters, shape.layers, shape.hidden, recipe, vocabulary, length, devices, kept)


def estimate_of(
    parameters: int,
    layers: int,
    hidden: int,
    recipe: TrainingRecipe,
    vocabulary: int,
    length: int,
    devices: int = 1,
    kept: int = 0,
) -> Estimate:
    """The same from sizes alone."""
    tokens = recipe.steps * recipe.batch * length
    rows = recipe.micro_batch(devices) * length
    number = 2 if recipe.precision == "bf16" else 4
    memory = parameters * _STATE + rows * (layers * hidden * _KEPT * number // 2 + vocabulary * 12)
    flops = 6 * parameters * tokens + 6 * layers * hidden * length * tokens
    seconds = flops / (_speed(hidden, recipe.precision) * _EFFICIENCY * devices)
    disk = parameters * _CHECKPOINTS + kept * (2 if vocabulary <= 1 << 16 else 4)
    return Estimate(parameters, tokens, memory, seconds, disk)


def _speed(width: int, precision: str) -> float:
    """Floating-point operations a second of a matrix product of this width, on the device that will train."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = torch.randn(2048, width, device=device, dtype=dtype)
    matrix = torch.randn(width, 4 * width, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        result = rows @ matrix
        float(result[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048 * width * 4 * width / best


def faster_precision(hidden: int) -> str:
    """bf16 where autocast is faster: on GPUs with bf16, and on CPUs that multiply bf16 in hardware from a width of 192
    on. Below it the conversions cost more than the products save (measured: docs/results/train-speed.md)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if hardware and hidden >= 192 else "fp32"


def _count(tokens: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return str(tokens)
