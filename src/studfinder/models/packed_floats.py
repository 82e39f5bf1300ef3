"""fp8 with a scale a tensor, a row or a block, and gpt-oss's 4-bit floats."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial

import torch

from studfinder.errors import StudfinderError
from studfinder.models.packing import PackedFiles, PackedWeight, Parts
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
        block, kind = _block(files, name, scales[name])
        parts = {"stored": name, "scale": scales[name]}
        yield name, PackedWeight(parts, files.shape(name), f"fp8, a scale {kind}", partial(_unfp8, block=block))


def _unfp8(read: Parts, dtype: torch.dtype, *, block: tuple[int, int] | None) -> torch.Tensor:
    stored, scale = read["stored"], read["scale"]
    if scale.numel() > 1:  # of a row, of an expert
        scale = scale.reshape(*scale.shape, *[1] * (stored.dim() - scale.dim()))
    return times_scale(stored, scale, block, dtype)


def _block(files: PackedFiles, name: str, scales: str) -> tuple[tuple[int, int] | None, str]:
    """The block that each scale of a matrix is for, None where scales broadcast; and what has one, in words."""
    shape, scale, given = files.shape(name), files.shape(scales), files.settings.get("weight_block_size")
    if math.prod(scale) == 1:
        return None, "a tensor"
    if scale == shape[:1]:
        return None, "a row" if len(shape) == 2 else "an expert"
    if len(scale) == len(shape) >= 2 and scale[:-2] == shape[:-2] and 0 not in scale:
        if scale[-1] == 1 and scale[-2] in (1, shape[-2]):
            return None, "a row" if scale[-2] > 1 else "an expert"
        (rows, columns), (down, across) = shape[-2:], scale[-2:]
        blocks = [(given[0], given[1])] if isinstance(given, list) and len(given) == 2 else []
        if rows % down == 0 and columns % across == 0:  # else more than one block would fit
            blocks.append((rows // down, columns // across))
        for block in blocks:
            if (-(-rows // block[0]), -(-columns // block[1])) == (down, across):
                return block, f"a block of {block[0]} x {block[1]}"
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
        files.check(parts["blocks"], "U8", (experts, rows, groups, 16), "bytes")
        files.check(parts["scales"], "U8", (experts, rows, groups), "exponents")
        yield name, PackedWeight(parts, (experts, groups * 32, rows), "fp4 in groups of 32", _unmxfp4)


def _unmxfp4(read: Parts, dtype: torch.dtype) -> torch.Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    unpacked: torch.Tensor = convert_moe_packed_tensors(read["blocks"], read["scales"], dtype=dtype)
    return unpacked
