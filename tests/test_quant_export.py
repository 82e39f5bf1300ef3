"""What is exported: packing, formats, and the schemes that have none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.errors import StudfinderError
from studfinder.quantizers import SCHEMES, Scheme, quantize_weight, targets
from studfinder.quantizers.export import chosen_format, described_tensors, pack_codes, tensors
from tiny import tiny

BF16 = torch.bfloat16


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 80), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_packing_is_that_of_compressed_tensors(bits, rows, cols, seed):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    half = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-half, half, (rows, cols), generator=generator).to(torch.int8)
    assert torch.equal(pack_codes(codes, bits), pack_to_int32(codes, bits))


EXPORTED = [
    *(
        (Scheme(element=f"int{bits}", block=block, zero=zero), "pack-quantized")
        for bits in range(2, 9)
        for block in ("channel", 64, 32)
        for zero in ("none", "integer")
    ),
    (Scheme(element="int8", block="channel"), "int-quantized"),
    (Scheme(element="int8", block="tensor", zero="integer"), "int-quantized"),
    (Scheme(element="int8", block="tensor"), "pack-quantized"),
    (Scheme(element="fp8", block="channel"), "float-quantized"),
    (Scheme(element="fp8", block="tensor"), "float-quantized"),
    (Scheme(element="fp8", block=(16, 32)), "float-quantized"),
    (Scheme(element="fp8", block=(20, 48), remainder="block"), "float-quantized"),
    (SCHEMES["nvfp4"], "nvfp4-pack-quantized"),
    (SCHEMES["mxfp4"], "mxfp4-pack-quantized"),
]


@pytest.mark.parametrize(("scheme", "format"), EXPORTED)
def test_what_is_described_is_what_is_made_and_it_decompresses_to_the_same(scheme, format):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    from studfinder.quantizers.export import weight_arguments

    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).to(BF16)
    quantized = quantize_weight(weight, scheme)
    made = tensors(quantized, format, BF16)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in made.items()} == described_tensors(
        (48, 64), scheme, format, BF16
    )
    arguments = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weight_arguments(scheme)))
    dense = BaseCompressor.get_value_from_registry(format).decompress(dict(made), arguments)["weight"]
    assert torch.equal(dense, quantized.dequantized().to(BF16))


def test_int8_beside_rounded_activations_is_not_packed():
    scheme = Scheme(element="int8", block="channel")
    assert chosen_format(scheme, "auto", BF16) == "pack-quantized"
    assert chosen_format(scheme, "auto", BF16, acts=True) == "int-quantized"
    assert chosen_format(scheme, "pack-quantized", BF16, acts=True) == "pack-quantized"
    assert chosen_format(Scheme(element="int4"), "auto", BF16, acts=True) == "pack-quantized"


@pytest.mark.parametrize(
    ("scheme", "format", "dtype", "message"),
    [
        (Scheme(zero="float"), "auto", BF16, "float minimum.* has no place"),
        (SCHEMES["nvfp4"], "auto", torch.float32, "fp4 is read as bfloat16"),
        (Scheme(element="fp4", block=64), "auto", BF16, "no place"),
        (Scheme(element="int4", block=(8, 8)), "auto", BF16, "no place"),
        (Scheme(element="int4"), "int-quantized", BF16, "does not hold"),
        (Scheme(element="int4"), "gptq", BF16, "there is no format 'gptq'"),
        (Scheme(scale="float32"), "auto", BF16, "scales in float32"),
        (Scheme(scale="bfloat16"), "auto", torch.float16, "scales in bfloat16"),
        (Scheme(remainder="block"), "auto", BF16, "smaller last block"),
    ],
)
def test_what_cannot_be_exported_says_so_and_dense_holds_everything(scheme, format, dtype, message):
    with pytest.raises(StudfinderError, match=message):
        chosen_format(scheme, format, dtype)
    assert chosen_format(scheme, "dense", dtype) == "dense"


def test_conv1d_cannot_be_exported():
    found = targets(tiny("gpt2"))
    with pytest.raises(StudfinderError, match="Conv1D"):
        chosen_format(Scheme(), "auto", BF16, found)


def test_kept_entries_have_no_place():
    weight = torch.randn(4, 64)
    held = weight.abs() > 2
    with pytest.raises(StudfinderError, match="no place for kept entries"):
        tensors(quantize_weight(weight, Scheme(block=64), held_RC=held), "pack-quantized", BF16)
