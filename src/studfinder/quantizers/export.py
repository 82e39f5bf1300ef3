"""Quantised matrices as compressed-tensors, which plain transformers and vLLM load without studfinder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from studfinder.errors import StudfinderError, unknown
from studfinder.models import LM
from studfinder.quantizers.grid import Quantized, RoundingGrid
from studfinder.quantizers.scheme import SCHEMES, Scheme, tile
from studfinder.quantizers.storage import Storage, format_of
from studfinder.quantizers.targets import Target, left_experts
from studfinder.records.compressed import weight_arguments
from studfinder.report.words import count

FORMATS = (
    "auto",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "dense",
)


def chosen_format(
    scheme: Scheme, asked: str, dtype: torch.dtype, found: Sequence[Target] = (), *, acts: bool = False
) -> str:
    """The format that holds this scheme, or an error before any work is done.

    Args:
        asked: one of FORMATS; "auto" takes the packed one for integers, and float-quantized for fp8.
        dtype: of the model's weights: stored scales are read in this type.
        found: what is to be quantised.
        acts: whether activations are rounded too: kernels for that read int8 weights unpacked, which "auto" then takes.

    Raises:
        StudfinderError: no format, or not the one asked for, holds the scheme; "dense" holds every one.
    """
    if asked not in FORMATS:
        raise unknown("there is no format", asked, FORMATS)
    if asked == "dense":
        return asked
    possible = _formats(scheme)
    if acts and "int-quantized" in possible:
        possible = ("int-quantized", "pack-quantized")
    problem = _problem(scheme, dtype, found) or (None if possible else f"{scheme} has no place in compressed-tensors")
    if problem:
        raise StudfinderError(problem, do="Use --format dense")
    if asked not in ("auto", *possible):
        raise StudfinderError(f"{asked} does not hold {scheme}", do=f"Use --format {possible[0]}, or dense")
    return possible[0] if asked == "auto" else asked


def _formats(scheme: Scheme) -> tuple[str, ...]:
    if scheme == SCHEMES["nvfp4"]:
        return ("nvfp4-pack-quantized",)
    if scheme == SCHEMES["mxfp4"]:
        return ("mxfp4-pack-quantized",)
    if scheme.zero == "float" or scheme.scale in ("e8m0", "e4m3"):
        return ()
    if scheme.integer and not isinstance(scheme.block, tuple):
        return ("pack-quantized", "int-quantized") if scheme.bits == 8 else ("pack-quantized",)
    if scheme.element == "fp8":
        return ("float-quantized",)
    return ()


def _problem(scheme: Scheme, dtype: torch.dtype, found: Sequence[Target]) -> str | None:
    own = getattr(torch, scheme.scale, None)  # "e8m0" and "e4m3" are none of torch's names
    model = str(dtype).removeprefix("torch.")
    if own is not None and own is not dtype and dtype is not torch.float32:
        return f"scales in {scheme.scale} cannot be read by a model in {model}"
    if scheme.element == "fp4" and dtype is not torch.bfloat16:
        return f"fp4 is read as bfloat16, and this model is in {model}"
    if scheme.remainder == "block" and not isinstance(scheme.block, str | tuple):
        return "compressed-tensors has no smaller last block"
    transposed = next((target.name for target in found if target.ref.transposed), None)
    return (
        f"{transposed} is stored (in, out), as Conv1D does, and compressed-tensors has Linear only"
        if transposed
        else None
    )


def holds_experts(scheme: Scheme, format: str) -> bool:
    """Whether plain transformers reads experts that it fuses into one parameter from matrices in this format.

    As it loads, it unpacks codes without zero points, and multiplies fp8 by one scale for each row or matrix.
    """
    if format == "pack-quantized":
        return scheme.zero == "none"
    return format == "dense" or (format == "float-quantized" and isinstance(scheme.block, str))


def whole_experts(
    lm: LM, found: Sequence[Target], skipped: Collection[str], layout: Mapping[str, Storage]
) -> tuple[set[str], list[str]]:
    """Fused groups of experts that stay as they are, because plain transformers would not read them from this format;
    and what is said of all experts that do.

    Args:
        found: every matrix of the model that may be quantised.
        skipped: fused groups that stay as they are for other reasons.
        layout: how each matrix is to be stored.
    """
    parts = [target for target in found if target.part is not None and target.fused not in skipped]
    apart = [t for t in parts if not holds_experts(layout[t.name].scheme, layout[t.name].format)]
    dtype = str(lm.dtype).removeprefix("torch.")
    counts: dict[str, int] = {}
    for target in apart:
        format = layout[target.name].format
        why = f"plain transformers does not read them from {format} with this scheme (of int4 it does with zero='none')"
        counts[why] = counts.get(why, 0) + 1
    counts["transformers has them in one parameter, in files too"] = left_experts(lm, found)
    said = [f"{count(n, 'matrix', 'matrices')} of experts stay in {dtype}: {why}" for why, n in counts.items() if n]
    return {target.fused for target in apart}, said


def quantization_config(
    chosen: Mapping[tuple[Storage, bool], Sequence[str]], ignore: Sequence[str], *, dense: bool = False
) -> dict[str, Any]:
    """What goes into config.json: which modules are quantised, and how.

    All lists are names of modules, in full. A class name ("Linear") would announce whatever else is a Linear in the
    class that somebody loads: projections outside the blocks, towers of other modalities, routers.

    Args:
        chosen: what is quantised, by how it is stored and whether it is an expert of a fused parameter.
        ignore: everything else that holds a matrix, see `other_matrices`; engines refuse what no list names.
        dense: have transformers dequantise weights as it loads them, not in the first forward pass.

    Raises:
        StudfinderError: nothing is quantised.
    """
    if not chosen:
        raise StudfinderError("nothing is quantised", expected="at least one matrix")
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    groups = {}
    several = len({stored for stored, _ in chosen}) > 1
    for number, ((stored, experts), modules) in enumerate(chosen.items()):
        acts = stored.arguments
        groups[f"group_{number}"] = QuantizationScheme(
            # transformers finds the scheme of experts, which it knows one of, by a pattern that names them
            targets=[exactly(module) for module in modules] if experts and several else list(modules),
            weights=QuantizationArgs(**weight_arguments(stored.scheme)),
            input_activations=None if acts is None else QuantizationArgs(**acts),
            format=stored.format,
        )
    config = QuantizationConfig(
        config_groups=groups,
        format=format_of(stored for stored, _ in chosen),
        ignore=list(ignore),
        quantization_status="compressed",
    )
    made = {
        "version": compressed_tensors.__version__,
        "quant_method": "compressed-tensors",
        **config.model_dump(exclude={"quant_method"}),
    }
    if dense or any(one.scheme.zero == "integer" and one.format == "pack-quantized" for one, _ in chosen):
        # compressed-tensors 0.20 lays out packed zero points in the wrong shape when transformers prepares the modules
        # to load into, which then refuses the checkpoint; dequantising while loading does not prepare them.
        made["dequantize"] = True
    return made


def exactly(module: str) -> str:
    """A pattern of compressed-tensors' that matches one module."""
    return f"re:^{re.escape(module)}$"


def meant_module(target: str) -> str:
    """The module that a name or a pattern of ours stands for."""
    return re.sub(r"\\(.)", r"\1", target[4:-1]) if target.startswith("re:^") else target


def described_tensors(shape: Sequence[int], scheme: Scheme, format: str, dtype: torch.dtype) -> dict[str, tuple]:
    """Suffix, dtype and shape of each tensor that `tensors` gives for a matrix of this shape: made without numbers."""
    height, width = tile(torch.Size(shape), scheme)
    blocks = (-(-shape[0] // height), -(-shape[1] // width))
    code = torch.uint8 if scheme.element == "fp4" else torch.int8 if scheme.integer else torch.float8_e4m3fn
    with torch.device("meta"):
        zero = torch.empty(blocks) if scheme.zero == "integer" else None
        grid = RoundingGrid(torch.empty(blocks), zero, torch.empty(()) if scheme.scale == "e4m3" else None)
        made = tensors(Quantized(torch.empty(*shape, dtype=code), grid, scheme), format, dtype)
    return {suffix: (tensor.dtype, tuple(tensor.shape)) for suffix, tensor in made.items()}


def tensors(quantized: Quantized, format: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The matrix in a compressed-tensors format, by suffix of the module's name.

    Raises:
        StudfinderError: entries are kept, or columns are grouped out of order: no format has a place for those.
    """
    if quantized.kept is not None:
        raise StudfinderError(
            "compressed-tensors has no place for kept entries", do="Skip the matrix, or --format dense"
        )
    if quantized.group_C is not None:
        raise StudfinderError("groups out of column order cannot be exported yet", do="Use static groups")
    scheme, grid = quantized.scheme, quantized.grid
    whole = scheme.block == "tensor"
    made: dict[str, torch.Tensor] = {}
    if scheme.element == "fp4":
        made["weight_packed"] = quantized.codes_RC[:, ::2] | (quantized.codes_RC[:, 1::2] << 4)
        if grid.tensor_scale is None:  # the exponent of a power of two, biased by 127
            made["weight_scale"] = (torch.frexp(grid.scale).exponent + 126).to(torch.uint8)
        else:
            made["weight_scale"] = grid.scale.to(torch.float8_e4m3fn)
            made["weight_global_scale"] = grid.tensor_scale.reshape(1).float()
        return made
    if format == "pack-quantized":
        made["weight_packed"] = pack_codes(quantized.codes_RC, scheme.bits)
        made["weight_shape"] = torch.tensor(quantized.codes_RC.shape)
    else:
        made["weight"] = quantized.codes_RC
    made["weight_scale"] = (grid.scale.reshape(1) if whole else grid.scale).to(dtype)
    if grid.zero is not None:
        zero = grid.zero.to(torch.int8)
        if format == "pack-quantized" and not whole:
            made["weight_zero_point"] = pack_codes(zero.T, scheme.bits).T.contiguous()
        else:
            made["weight_zero_point"] = zero.reshape(1) if whole else zero
    return made


def pack_codes(codes_RC: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes as a dense run of bits along each row, in int32 words, (out, words).

    4 and 8 bits are done here, by shifts of whole tensors; the others by compressed-tensors' own packer.
    """
    if codes_RC.is_meta:
        return codes_RC.new_empty((len(codes_RC), -(-codes_RC.shape[1] * bits // 32)), dtype=torch.int32)
    if bits not in (4, 8) or codes_RC.shape[1] % (32 // bits):
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        return pack_to_int32(codes_RC.contiguous(), bits)
    flat = codes_RC.reshape(-1).contiguous()  # rows are whole words; as one run a single row or column is no exception
    if bits == 8:
        unsigned = flat.view(torch.uint8) ^ 0x80  # -128..127 to 0..255 is a flip of the sign bit
    else:
        # Two codes at a time: each to 0..15 by a flip of bit 3, then the second's bits beside the first's.
        pairs = (flat.view(torch.int16) ^ 0x0808) & 0x0F0F
        pairs |= pairs >> 4
        unsigned = pairs.view(torch.uint8)[::2].contiguous()
    return unsigned.view(torch.int32).reshape(codes_RC.shape[0], -1)
