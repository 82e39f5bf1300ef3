"""Law 7 on the attention module: a converted layer against the naive specifications put together."""

from __future__ import annotations

import pytest
import torch
from attention_models import causal_mask, tiny

import studfinder.attention as sa
from studfinder.attention import dense
from studfinder.attention.differential import naive as differential
from studfinder.attention.gated import naive as gated
from studfinder.attention.kv_shift import naive as kv_shift
from studfinder.attention.positions import naive as positions

LENGTH, HEADS, GROUPS, DIM = 9, 4, 2, 8


def _layer(*variants):
    model = tiny()
    for variant in variants:
        sa.convert(model, variant)
    torch.manual_seed(3)
    attention = model.model.layers[0].self_attn
    for name, parameter in attention.named_parameters():
        if "_proj" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    hidden = torch.randn(2, LENGTH, 32, dtype=torch.float64, requires_grad=True)
    embeddings = model.model.rotary_emb(hidden, torch.arange(LENGTH)[None])
    frequency = model.model.rotary_emb.inv_freq.double()
    return attention, hidden, embeddings, frequency


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, DIM))


def _agree(attention, hidden, embeddings, expected) -> None:
    got = attention(hidden, position_embeddings=embeddings, attention_mask=None)[0]
    expected = attention.o_proj(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # cosines are fp32
    learned = [hidden, *(p for n, p in attention.named_parameters() if "_proj" not in n)]
    weight = torch.randn_like(got)
    mine, theirs = (torch.autograd.grad((x * weight).sum(), learned) for x in (got, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _qkv(attention, hidden):
    projected = (getattr(attention, f"{side}_proj")(hidden) for side in "qkv")
    return tuple(_heads(x).transpose(1, 2) for x in projected)


def _rotated(x: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    return positions.rotate(x, torch.arange(LENGTH).double(), frequency)


def test_kv_shift_mixes_before_rope() -> None:
    attention, hidden, embeddings, frequency = _layer(sa.KVShift(init="paper"))
    q, k, v = _qkv(attention, hidden)
    part = attention.kv_shift
    k = kv_shift.mix(k.transpose(1, 2), *part.scalars("key")).transpose(1, 2)
    v = kv_shift.mix(v.transpose(1, 2), *part.scalars("value")).transpose(1, 2)
    mask = causal_mask(LENGTH, LENGTH)
    _agree(
        attention, hidden, embeddings, dense.softmax_attention(_rotated(q, frequency), _rotated(k, frequency), v, mask)
    )


@pytest.mark.parametrize("kind", ["linear", "mlp", "all-heads", "headwise", "elementwise"])
def test_gates(kind: str) -> None:
    attention, hidden, embeddings, frequency = _layer(sa.Gated(kind=kind, init="fresh"))
    q, k, v = _qkv(attention, hidden)
    mixed = dense.softmax_attention(_rotated(q, frequency), _rotated(k, frequency), v, causal_mask(LENGTH, LENGTH))
    part = attention.gated
    if kind == "linear":
        logits = gated.per_head(hidden, part.weight, part.bias)
    elif kind == "mlp":
        logits = gated.mlp(hidden, part.weight_in, part.bias_in, part.weight, part.bias)
    else:
        logits = hidden @ part.weight.T + (part.bias if kind == "all-heads" else 0)
        logits = _heads(logits) if kind == "elementwise" else logits
    _agree(attention, hidden, embeddings, gated.apply(mixed.transpose(1, 2), logits).transpose(1, 2))


def test_differential() -> None:
    attention, hidden, embeddings, frequency = _layer(sa.Differential(init="fresh"))
    q, k, v = _qkv(attention, hidden)
    part = attention.differential
    second = _heads(hidden @ part.query_weight.T + part.query_bias).transpose(1, 2)
    strength = (hidden @ part.strength_weight.T + part.strength_bias).transpose(1, 2)
    q, second, k = (_rotated(x, frequency) for x in (q, second, k))
    _agree(
        attention,
        hidden,
        embeddings,
        differential.attend(q, second, k, v, causal_mask(LENGTH, LENGTH), strength),
    )


@pytest.mark.parametrize(
    ("variant", "pairs"),
    [
        (sa.RoPE(fraction=1.0), lambda f: f),
        (sa.RoPE(kind="p-rope", fraction=0.5), lambda f: torch.cat([f[:2], torch.zeros(2).double()])),
        (sa.RoPE(kind="partial", fraction=0.5), lambda f: f[::2]),
        (sa.NoPE(), lambda f: f * 0),
    ],
    ids=["all", "p-rope", "partial", "none"],
)
def test_positions(variant, pairs) -> None:
    import dataclasses

    attention, hidden, embeddings, frequency = _layer(dataclasses.replace(variant, init="fresh"))
    q, k, v = _qkv(attention, hidden)
    frequency = pairs(frequency)
    if len(frequency) == 2:  # partial: the rotated pairs are (0, 4) and (1, 5) in the rotate-half layout
        order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
        back = order.argsort()
        q, k = (_rotated(x[..., order], frequency)[..., back] for x in (q, k))
    else:
        q, k = _rotated(q, frequency), _rotated(k, frequency)
    _agree(attention, hidden, embeddings, dense.softmax_attention(q, k, v, causal_mask(LENGTH, LENGTH)))
