"""Packers of the tools' formats, written from their descriptions: each gives tensors, and the matrix that they mean.

Bits are laid out through numpy's packbits and Python's integers, not through the shifts that the unpackers use.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The columns of AWQ's eight nibbles, from the lowest: even ones first."""
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
"""Tensors by what follows the module's name, and the matrix (out, in) in fp64."""


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (n, m) written one after the other down each column, lowest bit first, as 32-bit words."""
    stream = (codes[:, None, :] >> np.arange(bits)[None, :, None] & 1).reshape(-1, codes.shape[1]).astype(np.uint8)
    assert len(stream) % 32 == 0
    packed = np.packbits(stream.T, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4").T.copy()


def grid(rng: random.Random, rows: int, columns: int, size: int, bits: int, symmetric: bool, order: bool):
    """Random codes, zeros, scales and groups: (C, R), (G, R), (G, R), (C,); and the matrix they mean."""
    draw = np.random.default_rng(rng.randrange(1 << 30))
    size = columns if size == -1 else size
    groups = math.ceil(columns / size)
    codes = draw.integers(0, 1 << bits, (columns, rows))
    shape = (groups, rows)
    zeros = np.full(shape, 1 << bits - 1) if symmetric else draw.integers(0, 1 << bits, shape)
    scales = (draw.random(shape) * 0.02 + 1e-3).astype(np.float16)
    group = np.arange(columns) // size
    if order:
        draw.shuffle(group)
    meant = (codes - zeros[group]).astype(np.float64) * scales.astype(np.float64)[group]
    return codes, zeros, scales, group, torch.from_numpy(meant.T.copy())


def gptq(
    rng: random.Random,
    rows: int,
    columns: int,
    size: int,
    bits: int,
    *,
    symmetric=False,
    order=False,
    index=True,
    low=1,
) -> Packed:
    """`low`: how much too low the zeros are stored, 1 in the first format."""
    codes, zeros, scales, group, meant = grid(rng, rows, columns, size, bits, symmetric, order)
    made = {
        "qweight": torch.from_numpy(words(codes, bits)),
        "qzeros": torch.from_numpy(words(((zeros - low) % (1 << bits)).T, bits).T.copy()),
        "scales": torch.from_numpy(scales),
    }
    if index or order:
        made["g_idx"] = torch.from_numpy(group.astype(np.int32))
    return made, meant


def awq(rng: random.Random, rows: int, columns: int, size: int, *, symmetric=False) -> Packed:
    codes, zeros, scales, _, meant = grid(rng, rows, columns, size, 4, symmetric, False)

    def eights(of: np.ndarray) -> torch.Tensor:
        made = np.zeros((of.shape[0], of.shape[1] // 8), dtype=np.uint32)
        for nibble, column in enumerate(AWQ_COLUMNS):
            made += of[:, column::8].astype(np.uint32) * np.uint32(16**nibble)
        return torch.from_numpy(made.view(np.int32).copy())

    return {"qweight": eights(codes), "qzeros": eights(zeros), "scales": torch.from_numpy(scales)}, meant


def fp8(
    rng: random.Random,
    shape: tuple[int, ...],
    block: tuple[int, int] | str,
    *,
    dtype=torch.float8_e4m3fn,
    exponents=False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix in fp8, its scales ("tensor", "row", "expert" or one a block), and what both mean."""
    torch.manual_seed(rng.randrange(1 << 30))
    stored = (torch.randn(shape) * 50).to(dtype)
    rows, columns = shape[-2:]
    if isinstance(block, tuple):
        counts = (*shape[:-2], math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    else:
        counts = {"tensor": (), "row": (*shape[:-1], 1), "expert": shape[:1]}[block]
    scale = torch.randint(112, 122, counts, dtype=torch.uint8) if exponents else torch.rand(counts) * 0.01 + 1e-4
    number = 2.0 ** (scale.double() - 127) if exponents else scale.double()
    *lead, row, column = np.indices(shape)
    if isinstance(block, tuple):
        at = (*lead, row // block[0], column // block[1])
    else:
        at = {"tensor": (), "row": (*lead, row, 0 * column), "expert": tuple(lead)}[block]
    meant = stored.double() * number[tuple(map(torch.from_numpy, at))]
    return stored, scale, meant


def mxfp4(rng: random.Random, experts: int, columns: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks, exponents and what they mean, as gpt-oss holds it: (experts, columns, rows)."""
    draw = np.random.default_rng(rng.randrange(1 << 30))
    codes = draw.integers(0, 16, (experts, rows, columns // 32, 32))
    exponents = draw.integers(118, 126, (experts, rows, columns // 32)).astype(np.uint8)
    blocks = (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8)  # the first of two in the low half
    meant = np.array(FP4)[codes] * 2.0 ** (exponents.astype(np.float64)[..., None] - 127)
    meant = meant.reshape(experts, rows, columns).transpose(0, 2, 1).copy()
    return torch.from_numpy(blocks), torch.from_numpy(exponents), torch.from_numpy(meant)


def compressed(
    rng: random.Random, rows: int, columns: int, size: int, bits: int, *, symmetric=True, order=False
) -> Packed:
    """compressed-tensors' pack-quantized: codes down each row of the matrix, zeros down each column, both signed."""
    codes, zeros, scales, group, meant = grid(rng, rows, columns, size, bits, symmetric, order)
    pad = -columns % 32
    made = {
        "weight_packed": torch.from_numpy(words(np.pad(codes, ((0, pad), (0, 0))), bits).T.copy())[
            :, : math.ceil(columns * bits / 32)
        ].clone(),
        "weight_scale": torch.from_numpy(scales.T.copy()),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        made["weight_zero_point"] = torch.from_numpy(words(zeros.T, bits))
    if order:
        made["weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
    return made, meant
