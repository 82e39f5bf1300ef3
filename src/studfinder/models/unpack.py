"""Numbers out of packed words: the arithmetic of GPTQ, AWQ and fp8, without the names of any file.

Suffixes: R rows (output channels), C columns (input channels), G groups of columns, W words of 32 bits.
"""

from __future__ import annotations

import torch

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ's gemm kernel the codes of eight columns in a row lie, counted from the lowest bits."""


def codes_of(packed_WX: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes that follow each other along the first axis, from the lowest bit of the first word up, as GPTQ packs them.

    Args:
        packed_WX: int32; a code may begin in one word and end in the next.
        bits: of a code, 1 to 8.

    Returns:
        uint8, 32 W / bits codes long.
    """
    begin = torch.arange(packed_WX.shape[0] * 32 // bits, device=packed_WX.device) * bits
    word, shift = begin // 32, (begin % 32).int()
    codes = packed_WX[word].bitwise_right_shift_(shift[:, None])
    over = (shift + bits > 32).nonzero().flatten()
    if len(over):
        left = 32 - shift[over][:, None]  # bits that the first word still holds; a shifted sign fills the rest
        codes[over] = codes[over] & ((1 << left) - 1) | packed_WX[word[over] + 1] << left
    return codes.bitwise_and_((1 << bits) - 1).to(torch.uint8)


def awq_codes(packed_XW: torch.Tensor) -> torch.Tensor:
    """4-bit codes in AWQ's order: eight columns a word, the even ones first. int32 (X, W) to uint8 (X, 8 W)."""
    shifts = torch.tensor(_AWQ_ORDER, dtype=torch.int32, device=packed_XW.device) * 4
    return (packed_XW[..., None] >> shifts).bitwise_and_(15).to(torch.uint8).flatten(-2)


def scaled(
    codes_CR: torch.Tensor,
    zeros_GR: torch.Tensor,
    scales_GR: torch.Tensor,
    group_C: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(code - zero) x scale, rounded once: the matrix (R, C), whose column c belongs to group `group_C[c]`.

    Raises:
        ValueError: a column is in no group.
    """
    if int(group_C.min()) < 0 or int(group_C.max()) >= len(scales_GR):
        raise ValueError(f"its columns are in groups {int(group_C.min())} to {int(group_C.max())} of {len(scales_GR)}")
    group_C = group_C.long()
    weight_CR = codes_CR.float()
    weight_CR -= zeros_GR.float()[group_C]
    weight_CR *= scales_GR.float()[group_C]
    return weight_CR.to(dtype).t().contiguous()


def times_scale(
    stored: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None, dtype: torch.dtype
) -> torch.Tensor:
    """A matrix (..., R, C) in fp8 times its scales, rounded once.

    Args:
        scale: what broadcasts against the matrix; with a block, one number for each block of rows x columns, the last
            of which may be cut off. Bytes are exponents of two (E8M0).
        block: its rows and columns.
    """
    factor = torch.exp2(scale.float() - 127) if scale.dtype is torch.uint8 else scale.float()
    if block is not None:
        rows, columns = stored.shape[-2:]
        factor = factor.repeat_interleave(block[0], -2)[..., :rows, :]
        factor = factor.repeat_interleave(block[1], -1)[..., :columns]
    return (stored.float() * factor).to(dtype)
