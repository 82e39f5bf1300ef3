"""fp8 with a scale a tensor, a row or a block, and gpt-oss's 4-bit floats."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial

import torch

from studfinder.errors import StudfinderError
from studfinder.models.packing import ANY_SCALES, BYTES, EXPONENTS, PackedFiles, PackedWeight, Parts
from studfinder.models.unpack import times_scale

_SCALE = re.compile(r"_scale(_inv)?$")


def fp8_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """Matrices in fp8 with their scales, fused experts too: `weight` and `weight_scale_inv`, or without the `_inv`."""
    eights = {name for name, one in files.held.items() if re.match("F8_E[45]", one.dtype) and not _SCALE.search(name)}
    of = {name: _SCALE.sub("", name) for name in files.held if _SCALE.search(name)}  # of inputs and caches, too
    scales = {base: name for name, base in of.items() if base in eights or base.endswith("weight")}
    for name in sorted(eights | set(scales)):
        if name not in files.held or name not in scales:
            has, lacks = (scales[name], name) if name in scales else (name, f"{name}_scale_inv")
            raise StudfinderError(
                f"{files.source} holds {has} but no {lacks}",
                expected="a scale of each matrix in fp8",
                do="Download or save it again",
            )
        if name not in eights:
            raise files.wrong(name, "fp8, as there is a scale of it")
        files.check(scales[name], ANY_SCALES, files.shape(scales[name]), "scales")
        block, kind = _block(files, name, scales[name])
        parts = {"stored": name, "scale": scales[name]}
        yield name, PackedWeight(parts, files.shape(name), f"fp8, a scale {kind}", partial(_unfp8, block=block))


def _unfp8(read: Parts, dtype: torch.dtype, *, block: tuple[int, int] | None) -> torch.Tensor:
    stored, scale = read["stored"], read["scale"]
    if scale.numel() > 1:  # of a row, of an expert
        scale = scale.reshape(*scale.shape, *[1] * (stored.dim() - scale.dim()))
    return times_scale(stored, scale, block, dtype)


def _block(files: PackedFiles, name: str, scales: str) -> tuple[tuple[int, int] | None, str]:
    """The block that each scale of a matrix is for, None where scales broadcast; and what has one, in words.

    Blocks are the config's; what holds exponents alone may be MX's runs of 32 beside them.
    """
    shape, scale, given = files.shape(name), files.shape(scales), files.settings.get("weight_block_size")
    *experts, rows, columns = shape if len(shape) > 1 else (1, *shape)
    blocks = [(int(given[0]), int(given[1]))] if given else []
    blocks += [(1, 32)] if files.held[scales].dtype in EXPONENTS else []
    for down, across in blocks:
        if scale == (*experts, -(-rows // down), -(-columns // across)):
            return (down, across), f"a block of {down} x {across}"
    if not given and math.prod(scale) == 1:
        return None, "a tensor"
    if not given and scale in ((*experts, rows, 1), shape[:1] if not experts else ()):
        return None, "a row"
    if not given and experts and scale in (tuple(experts), (*experts, 1, 1)):
        return None, "an expert"
    raise files.wrong(scales, f"scales of {' x '.join(map(str, shape))} numbers" + (f" in {given}" if given else ""))


def mxfp4_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """gpt-oss's experts: blocks of 32 4-bit floats with an exponent, unpacked by transformers."""
    ends = ("_blocks", "_scales")
    for name in sorted({n.removesuffix(end) for end in ends for n in files.held if n.endswith(end)}):
        parts = files.parts(name, ends)
        shape = files.shape(parts["blocks"])
        if len(shape) != 4:
            raise files.wrong(parts["blocks"], "experts x rows x groups x 16")
        experts, rows, groups, _ = shape
        files.check(parts["blocks"], BYTES, (experts, rows, groups, 16), "bytes")
        files.check(parts["scales"], BYTES, (experts, rows, groups), "exponents")
        yield name, PackedWeight(parts, (experts, groups * 32, rows), "fp4 in groups of 32", _unmxfp4)


def _unmxfp4(read: Parts, dtype: torch.dtype) -> torch.Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    unpacked: torch.Tensor = convert_moe_packed_tensors(read["blocks"], read["scales"], dtype=dtype)
    return unpacked
