"""Which tokens may look at the token before them, read from the mask that the model built.

A key may be mixed with the previous token's exactly if attention may see that token: then left padding,
packed documents and any mask of the caller's own are respected by one rule.
"""

from __future__ import annotations

from typing import Any

import torch


def previous_visible(
    mask: Any,
    tokens: int,
    seen: int | torch.Tensor,
    key_offset: int | torch.Tensor,
    position_ids: Any,
    flash: bool,
) -> torch.Tensor | None:
    """Whether token t of this call may see token t-1, (B, T) bool; None where all may (the first token of a
    sequence has no row before it and needs no mask).

    Args:
        mask: what the attention function gets: None, (B, 1|H, T, S) bool or additive, (B, S) for flash
            attention, or a BlockMask.
        tokens: T.
        seen: tokens in the cache before this call.
        key_offset: the absolute position of the mask's first key column (sliding caches drop old keys).
        position_ids: (1|B, T) or None; flash attention tells packed documents by them.
        flash: whether a flash attention implementation is active.
    """
    if hasattr(mask, "mask_mod"):
        return _from_block_mask(mask, tokens, seen, key_offset)
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        return _from_dense(mask[:, 0], tokens, seen, key_offset)
    starts = position_ids > 0 if flash and position_ids is not None else None
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        padded = torch.nn.functional.pad(mask.bool(), (1, 0), value=False)[:, -tokens - 1 : -1]
        return padded if starts is None else padded & starts
    return starts


def _from_dense(
    mask_BTS: torch.Tensor, tokens: int, seen: int | torch.Tensor, key_offset: int | torch.Tensor
) -> torch.Tensor:
    if isinstance(seen, torch.Tensor) or isinstance(key_offset, torch.Tensor):  # static caches count in tensors
        column_T = seen - key_offset - 1 + torch.arange(tokens, device=mask_BTS.device)
        index = column_T.clamp(min=0)[None, :, None].expand(mask_BTS.shape[0], -1, -1)
        allowed = mask_BTS.gather(-1, index)[..., 0]
        return _as_bool(allowed) & (column_T >= 0)
    offset = seen - key_offset - 1
    allowed = _as_bool(torch.diagonal(mask_BTS, offset=offset, dim1=1, dim2=2))
    return torch.nn.functional.pad(allowed, (1, 0), value=False)[:, :tokens] if offset < 0 else allowed[:, :tokens]


def _as_bool(allowed: torch.Tensor) -> torch.Tensor:
    return allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2


def _from_block_mask(mask: Any, tokens: int, seen: int | torch.Tensor, key_offset: Any) -> torch.Tensor:
    device = mask.kv_num_blocks.device
    batch = torch.arange(mask.shape[0], device=device)[:, None]
    query = torch.arange(tokens, device=device)[None, :]
    key = query + (seen - key_offset - 1)
    head = torch.zeros((), dtype=torch.long, device=device)
    return mask.mask_mod(batch, head, query, key.clamp(min=0)) & (key >= 0)
