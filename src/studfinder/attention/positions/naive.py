"""Position encodings, the specification."""

from __future__ import annotations

import torch

from studfinder.attention import dense


def rotate(x_BHTD: torch.Tensor, position_T: torch.Tensor, frequency_P: torch.Tensor) -> torch.Tensor:
    """RoPE in the rotate-half layout: pair j is dims (j, j + P), turned by position * frequency_j; dims from
    2P on stay. Partial RoPE has fewer pairs, p-RoPE (Barbero et al. 2025, arXiv 2410.06205) has zeros in
    `frequency`."""
    pairs = len(frequency_P)
    angle_TP = position_T[:, None] * frequency_P
    a, b, rest = x_BHTD[..., :pairs], x_BHTD[..., pairs : 2 * pairs], x_BHTD[..., 2 * pairs :]
    turned = [a * angle_TP.cos() - b * angle_TP.sin(), b * angle_TP.cos() + a * angle_TP.sin(), rest]
    return torch.cat(turned, dim=-1)


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes (Press et al. 2022, arXiv 2108.12409, section 3): 2^(-8i/n) for n heads, n a power of
    two; otherwise those of the next lower power, and every other one of the next higher."""
    power = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return first if power == heads else first + slopes(2 * power)[0::2][: heads - power]


def alibi(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    slope_H: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scores - slope * |i - j|) V; queries stand at the last T of the S positions."""
    queries, keys = query_BHTD.shape[2], key_BGSD.shape[2]
    distance_TS = (torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)).abs()
    s_BHTS = dense.scores(query_BHTD, key_BGSD, mask_BHTS, scale) - slope_H[:, None, None] * distance_TS
    return dense.weigh(dense.softmax(s_BHTS), value_BGSD)
