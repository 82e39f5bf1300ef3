"""GPTQ's and AWQ's packings, and AutoRound's, which is one of the two: integer codes with zeros and scales.

Read here because their libraries bring kernels and want a torch of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from studfinder.models.packing import SCALES, WORDS, PackedFiles, PackedWeight, Parts, numbers
from studfinder.models.unpack import awq_codes, codes_of, scaled

_GPTQ_BITS, _AWQ_BITS = (2, 3, 4, 5, 6, 7, 8), (4,)


def gptq_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """GPTQ: codes packed along the columns; the zeros of its first format are stored one too low."""
    form = str(files.settings.get("checkpoint_format", files.settings.get("format", "gptq")))
    if form not in ("gptq", "gptq_v2"):
        raise files.refused(f"GPTQ's {form!r} format", "gptq or gptq_v2")
    signed = files.settings.get("dynamic") or {}  # "-:" is what was not quantised, which the files show themselves
    rules = {f"^(?:{one.removeprefix('+:')})": own for one, own in signed.items() if not one.startswith("-:")}
    return _gptq(files, rules, int(form == "gptq"))


def awq_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """AWQ's gemm packing: codes packed along the rows, eight to a word, in an order of its own."""
    form = str(files.settings.get("version", files.settings.get("checkpoint_format", "gemm"))).lower()
    if form != "gemm":
        raise files.refused(f"AWQ's {form!r} packing", "gemm")
    return _awq(files, {})


def auto_round_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """AutoRound: one of the packings above, each matrix with bits and groups of its own, or as it was."""
    settings, extra = files.settings, files.settings.get("extra_config") or {}
    form = str(settings.get("packing_format", "auto_gptq")).removeprefix("auto_round:")
    for name, own in {"every matrix": {}, **extra}.items():
        one = {**settings, **own}
        if (one.get("bits") or 16) < 16 and one.get("data_type", "int") != "int":
            raise files.refused(f"AutoRound's {one['data_type']!r} numbers ({name})", "integers")
        if (one.get("act_bits") or 16) < 16:
            raise files.refused(f"AutoRound's rounded inputs ({name})", "rounded weights alone")
    if settings.get("rotation_config"):
        raise files.refused("AutoRound's rotations", "weights that are not rotated")
    if form in ("auto_awq", "awq"):
        return _awq(files, extra)
    if form in ("auto_gptq", "gptq", "auto"):
        return _gptq(files, extra, 1)
    if form in ("auto_round", "gptqmodel", "exllamav2"):
        return _gptq(files, extra, 0)
    raise files.refused(f"AutoRound's {form!r} packing", "auto_gptq, auto_awq or auto_round")


def _gptq(files: PackedFiles, rules: Mapping[str, Any], added: int) -> Iterator[tuple[str, PackedWeight]]:
    ends = [".qweight", ".qzeros", ".scales"]
    if files.settings.get("desc_act") or any(name.endswith(".g_idx") for name in files.held):
        ends.append(".g_idx")  # without it columns would be taken to be in order
    for module in files.modules("qweight", "qzeros", "scales"):
        parts = files.parts(module, ends)
        bits, size, rows = _grid(files, module, parts, rules, _GPTQ_BITS)
        columns = files.shape(parts["qweight"])[0] * 32 // bits
        files.check(parts["qweight"], WORDS, (columns * bits // 32, rows), f"for {rows:,} rows of {bits} bits")
        if "g_idx" in parts:
            files.check(parts["g_idx"], WORDS, (columns,), "columns")
        else:
            files.check(parts["scales"], SCALES, (-(-columns // size) if size else 1, rows), "scales")
        unpack = partial(_ungptq, bits=bits, size=size or columns, added=added)
        yield f"{module}.weight", PackedWeight(parts, (rows, columns), numbers("int", bits, size), unpack, linear=True)


def _ungptq(read: Parts, dtype: torch.dtype, *, bits: int, size: int, added: int) -> torch.Tensor:
    codes = codes_of(read["qweight"], bits)
    zeros = codes_of(read["qzeros"].t(), bits).t().short() + added & (1 << bits) - 1
    group = read["g_idx"] if "g_idx" in read else torch.arange(len(codes)) // size
    return scaled(codes, zeros, read["scales"], group, dtype)


def _awq(files: PackedFiles, rules: Mapping[str, Any]) -> Iterator[tuple[str, PackedWeight]]:
    for module in files.modules("qweight", "qzeros", "scales"):
        parts = files.parts(module, (".qweight", ".qzeros", ".scales"))
        bits, size, rows = _grid(files, module, parts, rules, _AWQ_BITS)
        columns = files.shape(parts["qweight"])[0]
        files.check(parts["qweight"], WORDS, (columns, rows // 8), f"for {rows:,} rows of 4 bits")
        files.check(parts["scales"], SCALES, (-(-columns // size) if size else 1, rows), "scales")
        unpack = partial(_unawq, size=size or columns)
        yield f"{module}.weight", PackedWeight(parts, (rows, columns), numbers("int", bits, size), unpack, linear=True)


def _unawq(read: Parts, dtype: torch.dtype, *, size: int) -> torch.Tensor:
    codes = awq_codes(read["qweight"])
    return scaled(codes, awq_codes(read["qzeros"]), read["scales"], torch.arange(len(codes)) // size, dtype)


def _grid(
    files: PackedFiles, module: str, parts: Mapping[str, str], rules: Mapping[str, Any], known: Collection[int]
) -> tuple[int, int | None, int]:
    """Bits, columns of a group (None: all) and rows of a module, by the config and the headers."""
    own = {**files.settings, **_rule(rules, module)}
    bits, size = own.get("bits"), own.get("group_size")
    if not isinstance(bits, int) or bits not in known:
        raise files.refused(f"{bits} bits a weight ({module})", f"{', '.join(map(str, known))} bits")
    if not isinstance(size, int) or size == 0 or size < -1:
        raise files.refused(f"groups of {size!r} ({module})", "a number of columns, or -1")
    for leaf in ("scales", "qweight"):
        if len(files.shape(parts[leaf])) != 2 or 0 in files.shape(parts[leaf]):
            raise files.wrong(parts[leaf], "a matrix")
    groups, rows = files.shape(parts["scales"])
    files.check(parts["scales"], SCALES, (groups, rows), "scales")
    if rows * bits % 32:
        raise files.wrong(parts["scales"], f"as many rows as words of {bits} bits hold")
    files.check(parts["qzeros"], WORDS, (groups, rows * bits // 32), f"for {rows:,} zeros of {bits} bits")
    return bits, None if size == -1 else size, rows


def _rule(rules: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What a config says of one module: by its name, else by the first pattern that fits somewhere in it."""
    if module in rules:
        return rules[module] or {}
    for pattern, said in rules.items():
        with suppress(re.error):  # a name that is no pattern
            if re.search(pattern, module):
                return said or {}
    return {}
