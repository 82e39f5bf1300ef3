"""compressed-tensors and bitsandbytes: unpacked by the libraries that the formats belong to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.models.packing import ANY_SCALES, WORDS, PackedFiles, PackedWeight, Parts, numbers
from studfinder.models.unpack import scaled

_FORMS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
)
_PARTS = (".weight_shape", ".weight_zero_point", ".weight_global_scale", ".weight_g_idx")


def compressed_tensors_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """compressed-tensors' formats, each module by the group of the config that names it: in full, by a pattern, or by
    its class ("Linear"), in this order.

    transformers, told to dequantise, takes one group for all modules, and so misreads mixed checkpoints.
    """
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    for feature in ("sparsity_config", "transform_config"):
        said = files.settings.get(feature) or {}
        if said and said.get("format") != "dense":
            raise files.refused(f"compressed-tensors' {feature}", "rounded weights alone")
    try:
        config = QuantizationConfig.model_validate(dict(files.settings))
    except ValueError as error:
        raise StudfinderError(
            f"the quantization_config of {files.source} is not compressed-tensors' ({in_a_line(error)})"
        ) from None
    groups = [group for group in config.config_groups.values() if group.weights is not None]
    targets = sorted((target, at) for at, group in enumerate(groups) for target in group.targets)
    named, patterns = dict(targets), [one for one in targets if one[0].startswith("re:")]
    classes = [at for target, at in targets if target.isidentifier()]
    for module in files.modules("weight_packed", "weight_scale"):
        fitting = (at for target, at in patterns if match_name(module, target))
        at = named.get(module, next(fitting, classes[0] if classes else 0 if len(groups) == 1 else None))
        if at is None:
            raise StudfinderError(
                f"{module} is compressed in {files.source}, and its quantization_config does not say how",
                expected="a group that names it",
            )
        yield f"{module}.weight", _compressed(files, module, groups[at], config.format)


def _compressed(files: PackedFiles, module: str, group: Any, common: str) -> PackedWeight:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format

    form = group.format or (common if common in _FORMS else infer_module_format(torch.nn.Linear, group))
    form, weights = str(getattr(form, "value", form)), group.weights
    if form not in _FORMS:
        raise files.refused(f"compressed-tensors' {form!r} format", ", ".join(_FORMS))
    needed = [".weight_packed" if form.endswith("pack-quantized") else ".weight", ".weight_scale"]
    needed += [".weight_shape"] if form == "pack-quantized" else []
    needed += [] if weights.symmetric else [".weight_zero_point"]
    needed += [".weight_global_scale"] if form.startswith("nvfp4") else []
    disordered = weights.actorder == "group" and any(name.endswith(".weight_g_idx") for name in files.held)
    needed += [".weight_g_idx"] if disordered else []
    parts = files.parts(module, needed, _PARTS)
    shape = files.shape(parts[needed[0].removeprefix(".")])
    if form == "pack-quantized":
        files.check(parts["weight_shape"], ("I64", "I32"), (2,), "sizes")
        shape = tuple(files.read(parts["weight_shape"]).tolist())
        files.check(parts["weight_packed"], WORDS, (*shape[:-1], -(-shape[-1] * weights.num_bits // 32)), "words")
    elif form.endswith("pack-quantized"):
        shape = (*shape[:-1], shape[-1] * 2)
    scales, size = files.shape(parts["weight_scale"]), weights.group_size or 0
    down, across = weights.block_structure or (1, size or shape[-1])
    wanted = (*shape[:-2], -(-shape[-2] // down), -(-shape[-1] // across))
    whole = weights.strategy == "tensor" and math.prod(scales) == 1
    files.check(parts["weight_scale"], ANY_SCALES, scales if whole else wanted, "scales")
    if "weight_zero_point" in parts and form != "pack-quantized":
        files.check(parts["weight_zero_point"], ("I8", "U8"), scales, "zeros")
    elif "weight_zero_point" in parts:
        files.check(parts["weight_zero_point"], WORDS, (shape[0] * weights.num_bits // 32, scales[1]), "zeros")
    unpack = partial(_decompressed, by=BaseCompressor.get_value_from_registry(form), group=group)
    kind = numbers("fp" if "float" in str(weights.type) else "int", weights.num_bits, size)
    return PackedWeight(parts, shape, f"{kind}, {form}", unpack)


def _decompressed(read: Parts, dtype: torch.dtype, *, by: Any, group: Any) -> torch.Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    if "weight_g_idx" not in read:
        weight: torch.Tensor = by.decompress(dict(read), group)["weight"]
        return weight.to(dtype)
    bits, shape, scales = group.weights.num_bits, tuple(read["weight_shape"].tolist()), read["weight_scale"]
    codes, zeros = unpack_from_int32(read["weight_packed"], bits, shape), torch.zeros(scales.shape)
    if "weight_zero_point" in read:
        zeros = unpack_from_int32(read["weight_zero_point"], bits, tuple(scales.shape), packed_dim=0)
    return scaled(codes.t(), zeros.t(), scales.t(), read["weight_g_idx"], dtype)


def bitsandbytes_weights(files: PackedFiles) -> Iterator[tuple[str, PackedWeight]]:
    """bitsandbytes: rows of 8 bits, or codes of 4 in groups with a table, which the package itself unpacks."""
    for module in files.modules("SCB"):
        parts = files.parts(module, (".weight", ".SCB"), (".weight_format",))
        shape = files.shape(parts["weight"])
        files.check(parts["weight"], ("I8",), shape, "codes")
        if len(shape) != 2 or math.prod(files.shape(parts["SCB"])) != shape[0]:
            raise files.wrong(parts["SCB"], f"a scale of each of {shape[0]:,} rows")
        yield f"{module}.weight", PackedWeight(parts, shape, "int8", _rows, linear=True)
    states = sorted((name.partition(".quant_state.")[0], name) for name in files.held if ".quant_state." in name)
    if states:
        try:
            import bitsandbytes.functional  # noqa: F401
        except ImportError as error:
            raise Unavailable(
                f"{files.source} is quantised by bitsandbytes, which cannot be imported ({in_a_line(error)})",
                do="pip install bitsandbytes",
            ) from None
    for weight, state in states:
        nested = (".nested_absmax", ".nested_quant_map") if f"{weight}.nested_absmax" in files.held else ()
        parts = files.parts(weight, ("", ".absmax", ".quant_map", state.removeprefix(weight), *nested))
        try:
            said = json.loads(bytes(files.read(state).tolist()))
            shape, kind = tuple(said["shape"]), f"{said['quant_type']} in groups of {said['blocksize']}"
            blocks = -(-math.prod(shape) // said["blocksize"])
        except (ValueError, KeyError, TypeError):
            raise files.wrong(state, "bitsandbytes' JSON") from None
        files.check(parts["absmax"], ANY_SCALES, (blocks,), "scales")
        yield weight, PackedWeight(parts, shape, kind, _fours, linear=True)


def _rows(read: Parts, dtype: torch.dtype) -> torch.Tensor:
    return (read["weight"].float() * (read["SCB"].float().reshape(-1, 1) / 127)).to(dtype)


def _fours(read: Parts, dtype: torch.dtype) -> torch.Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState.from_dict({end: part for end, part in read.items() if end}, device=torch.device("cpu"))
    unpacked: torch.Tensor = dequantize_4bit(read[""], state)
    return unpacked.to(dtype)
