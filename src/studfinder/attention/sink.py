"""Softmax with one more key: a logit per row and a value (or none). Fused, exact, with gradients.

PyTorch's CPU flash attention returns the log-sum-exp of a row. With a sink of logit s the output is
out * e^(lse - total) + value * e^(s - total), total = log(e^lse + e^s), and the fused backward pass is right
as soon as it is given the new output and `total`: it recomputes p = e^(score - total) and takes dO . O as the
row term.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_with_sink(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    sink_BHT: torch.Tensor,
    sink_value_HD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax over the keys and one sink per row.

    Args:
        query: (B, H, T, D); key and value: (B, G, S, D).
        mask: bool or additive (B, 1|H, T, S), or None.
        causal: the causal triangle, without a mask.
        scale: of the scores; not applied to the sink.
        sink_BHT: the sink's logits.
        sink_value_HD: what the sink gives; None is zero.

    Returns:
        (B, H, T, D).
    """
    if query.device.type != "cpu" or query.shape[-1] != value.shape[-1]:
        return attend_with_extra_key(query, key, value, mask, causal, scale, sink_BHT, sink_value_HD)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    inputs = (query, key, value, sink_BHT, sink_value_HD, mask, causal, scale)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _sink(*inputs)[0]
    return _sink_forward(*inputs)[0]  # past the dispatcher: in decoding its cost would show


def attend_with_extra_key(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    sink_BHT: torch.Tensor,
    sink_value_HD: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same by plain SDPA on any device: the sink is a real first key in 8 more dims of each head.

    With `causal` a query is put in front as well, so that the triangle stays where it was.
    """
    heads, dim = query.shape[1], query.shape[-1]
    key = key.repeat_interleave(heads // key.shape[1], dim=1)
    value = value.repeat_interleave(heads // value.shape[1], dim=1)
    query = F.pad(torch.cat([query, (sink_BHT / scale).unsqueeze(-1).to(query.dtype)], dim=-1), (0, 7))
    sink_key = F.one_hot(torch.tensor(dim), dim + 8).to(key).expand(*key.shape[:2], 1, -1)
    key = torch.cat([sink_key, F.pad(key, (0, 8))], dim=2)
    wide = value.shape[-1]
    first = torch.zeros_like(value[:, :, :1]) if sink_value_HD is None else sink_value_HD[None, :, None]
    value = F.pad(torch.cat([first.expand_as(value[:, :, :1]).to(value.dtype), value], dim=2), (0, 8))
    if causal:
        query = F.pad(query, (0, 0, 1, 0))
    if mask is not None:
        mask = F.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return out[:, :, 1:, :wide] if causal else out[..., :wide]


def _sink_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sink_BHT: torch.Tensor,
    sink_value_HD: torch.Tensor | None,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _flash(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    if mask is not None:  # for a row that sees nothing the kernel reports 0
        lse = lse.masked_fill(~(mask > -torch.inf).any(dim=-1), -torch.inf)
    sink = sink_BHT.to(lse.dtype)
    total = torch.logaddexp(lse, sink)
    mixed = out * torch.exp(lse - total).unsqueeze(-1)
    if sink_value_HD is not None:
        mixed.addcmul_(torch.exp(sink - total).unsqueeze(-1), sink_value_HD[:, None].to(mixed.dtype))
    return mixed.to(query.dtype), total


_sink = torch.library.custom_op("studfinder::sink_attention", _sink_forward, mutates_args=())


@torch.library.custom_op("studfinder::sink_attention_backward", mutates_args=())
def _sink_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sink_BHT: torch.Tensor,
    sink_value_HD: torch.Tensor | None,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    total: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    wide = grad.to(total.dtype)
    rest = torch.exp(sink_BHT.to(total.dtype) - total)
    row = torch.linalg.vecdot(wide, out.to(total.dtype))
    if sink_value_HD is not None:
        row = row - torch.einsum("bhtd,hd->bht", wide, sink_value_HD.to(total.dtype))
        d_value = torch.einsum("bhtd,bht->hd", wide, rest).to(sink_value_HD.dtype)
    else:
        d_value = wide.new_empty(0)
    d_sink = (-rest * row).to(sink_BHT.dtype)
    gradients = _flash_backward(grad, query, key, value, out, total, 0.0, causal, attn_mask=mask, scale=scale)
    return *(g.contiguous() for g in gradients), d_sink, d_value


@_sink.register_fake
def _(query, key, value, sink_BHT, sink_value_HD, mask, causal, scale):
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=wide)


@_sink_backward.register_fake
def _(grad, query, key, value, sink_BHT, sink_value_HD, *rest):
    last = query.new_empty(0) if sink_value_HD is None else sink_value_HD.new_empty(sink_value_HD.shape)
    return *(x.new_empty(x.shape) for x in (query, key, value, sink_BHT)), last


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.rest = inputs[6:]


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
    *gradients, d_value = _sink_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return *gradients, d_value if ctx.needs_input_grad[4] else None, None, None, None


_sink.register_autograd(_backward, setup_context=_keep)
