"""vLLM's product with int4 weights where its build for this processor has none: AVX-512 is what its own needs.

The weights are those that vLLM has loaded, fused and packed for that kernel, so that all is tried but the kernel's own
arithmetic. Whoever reports a result says that this stood in.
"""

from __future__ import annotations

import torch

NAME = "cpu_gemm_wna16"
_NIBBLES = torch.arange(0, 32, 4, dtype=torch.int32)
_library = None
_dense: dict[int, torch.Tensor] = {}


def needed() -> bool:
    """Whether this build has no such product. To be asked after vLLM has loaded its own operations."""
    return not hasattr(torch.ops._C, NAME)


def install() -> None:
    """Have the product computed here, in this process."""
    global _library
    _library = torch.library.Library("_C", "FRAGMENT")
    _library.define(
        f"{NAME}(Tensor input, Tensor q_weight, Tensor(a2!) output, Tensor scales, Tensor? zeros, Tensor? bias, "
        "SymInt pack_factor, str isa_hint) -> ()"
    )
    _library.impl(NAME, _product, "CPU")


def installed() -> bool:
    """Whether it is."""
    return _library is not None


def forget() -> None:
    """Let go of the last model's weights."""
    _dense.clear()


def unpacked(q_weight: torch.Tensor, scales_GN: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    """The matrix (in, out): blocks of 16 outputs one after the other, in each 8 codes to a word along the outputs."""
    groups, outputs = scales_GN.shape
    words = q_weight.reshape(outputs // 16, -1, 2, 1)
    codes_KN = ((words >> _NIBBLES) & 15).reshape(outputs // 16, -1, 16).permute(1, 0, 2).reshape(-1, outputs)
    zeros_GN = torch.tensor(8) if zeros is None else ((zeros.unsqueeze(-1) >> _NIBBLES) & 15).reshape(groups, outputs)
    size = len(codes_KN) // groups
    steps_KN = scales_GN.float().repeat_interleave(size, 0)
    zeros_KN = zeros_GN if zeros is None else zeros_GN.repeat_interleave(size, 0)
    return (codes_KN - zeros_KN).float() * steps_KN


def _product(input, q_weight, output, scales, zeros, bias, pack_factor, isa_hint) -> None:
    dense_KN = _dense.get(q_weight.data_ptr())
    if dense_KN is None:
        dense_KN = _dense[q_weight.data_ptr()] = unpacked(q_weight, scales, zeros).to(input.dtype)
    output.copy_(input @ dense_KN if bias is None else input @ dense_KN + bias)
