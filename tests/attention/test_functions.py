"""Law 7 on the functions: what runs equals naive.py, in outputs and in gradients, fp64."""

from __future__ import annotations

import pytest
import torch
from attention_models import causal_mask

import studfinder.attention as sa
from studfinder.attention import blocks, dense
from studfinder.attention.attention_bias import naive as attention_bias
from studfinder.attention.clipped_softmax import naive as clipped_softmax
from studfinder.attention.positions import naive as positions
from studfinder.attention.sink import attend_with_extra_key, attend_with_sink
from studfinder.attention.sink_logit import naive as sink_logit
from studfinder.attention.softmax_one import naive as softmax_one
from studfinder.attention.softpick import naive as softpick
from studfinder.attention.variant import AttentionShape

HEADS, GROUPS, DIM, LENGTH = 4, 2, 6, 11
SHAPE = AttentionShape(heads=HEADS, kv_heads=GROUPS, head_dim=DIM, hidden=HEADS * DIM)
SCALE = DIM**-0.5


def _clipped(**settings):
    variant = sa.ClippedSoftmax(**settings)

    def specification(part, q, k, v, mask, scale):
        gamma = variant.offset
        if variant.per_row:
            full = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool) if mask is None else mask
            gamma = gamma / full.sum(-1, keepdim=True).clamp(min=1).double()
        return clipped_softmax.attend(q, k, v, mask, gamma, variant.zeta, scale)

    return variant, specification


VARIANTS = {
    "clipped": _clipped(gamma=-0.08),
    "clipped, no offset": _clipped(gamma=0.0),
    "clipped, alpha": _clipped(alpha=1.5, length=LENGTH),
    "clipped, both ends": _clipped(gamma=-0.1, zeta=1.3),
    "clipped, zeta alone": _clipped(gamma=0.0, zeta=1.5),
    "clipped, per row": _clipped(alpha=0.7, per_row=True),
    "clipped, all of it": _clipped(gamma=-100.0),
    "softpick": (sa.Softpick(), lambda part, *a: softpick.attend(*a)),
    "softmax one": (sa.SoftmaxOne(), lambda part, *a: softmax_one.attend(*a)),
    "sink": (
        sa.SinkLogit(init="fresh"),
        lambda part, q, k, v, m, s: sink_logit.attend(q, k, v, m, part.logit, s),
    ),
    "bias": (
        sa.AttentionBias(init="fresh"),
        lambda part, q, k, v, m, s: attention_bias.attend(q, k, v, m, part.key, part.value, s),
    ),
    "alibi": (
        sa.ALiBi(),
        lambda part, q, k, v, m, s: positions.alibi(q, k, v, m, torch.tensor(part.slopes).double(), s),
    ),
}


def _left_padded() -> torch.Tensor:
    real = torch.ones(2, 1, 1, LENGTH, dtype=torch.bool)
    real[0, ..., :4] = False
    return causal_mask(LENGTH, LENGTH) & real  # the padding's own rows see nothing at all


def _packed() -> torch.Tensor:
    document = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    return (causal_mask(LENGTH, LENGTH) & (document[:, None] == document)).expand(2, -1, -1, -1)


def _window() -> torch.Tensor:
    place = torch.arange(LENGTH)
    return causal_mask(LENGTH, LENGTH) & (place > place[:, None] - 3)


def _per_head() -> torch.Tensor:
    return torch.rand(2, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) > 0.4


MASKS = {
    "causal": (None, True),
    "bidirectional": (None, False),
    "left padding": (_left_padded(), False),
    "right padding": (_left_padded().flip(-1).flip(-2).transpose(-1, -2), False),
    "packed": (_packed(), False),
    "window": (_window(), False),
    "per head": (_per_head(), False),
    "chunk": (causal_mask(5, LENGTH), False),
    "decode": (None, False),
}


def _inputs(mask_name: str, dtype: torch.dtype = torch.float64):
    queries = {"chunk": 5, "decode": 1}.get(mask_name, LENGTH)
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, length: int) -> torch.Tensor:
        x = torch.randn(2, length, heads, DIM, generator=generator, dtype=torch.float64) * 1.5
        return x.transpose(1, 2).to(dtype).detach().requires_grad_()  # strided, as models hand it over

    return draw(HEADS, queries), draw(GROUPS, LENGTH), draw(GROUPS, LENGTH)


def _part(variant):
    torch.manual_seed(5)
    part = variant.part(SHAPE, 0).double()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    return part


def _gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = weight.to(out.dtype)
    return list(torch.autograd.grad((out * weight).sum(), inputs))


@pytest.mark.parametrize("block", [12, 2**17])
@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_runs_as_specified(name: str, mask_name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 7: each variant equals its naive.py, in outputs and in gradients."""
    monkeypatch.setattr(blocks, "CPU_BLOCK", block)
    monkeypatch.setattr(blocks, "_FEWEST_ROWS", 2)  # several blocks even at this length
    variant, specification = VARIANTS[name]
    mask, causal = MASKS[mask_name]
    part, inputs = _part(variant), _inputs(mask_name)
    out = part.attend(*inputs, mask, causal, SCALE)
    expected = specification(part, *inputs, causal_mask(LENGTH, LENGTH) if causal else mask, SCALE)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    learned = [*inputs, *part.parameters()]
    for got, wanted in zip(_gradients(out, learned), _gradients(expected, learned), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["clipped", "clipped, both ends", "softpick", "sink", "bias"])
def test_additive_mask_is_the_boolean_one(name: str) -> None:
    part, (q, k, v) = _part(VARIANTS[name][0]), _inputs("left padding")
    mask = _left_padded()
    additive = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    rows = mask.any(-1)  # an additive mask cannot say "nothing at all"
    got, wanted = part.attend(q, k, v, additive, False, SCALE), part.attend(q, k, v, mask, False, SCALE)
    rows = rows.expand(2, HEADS, LENGTH)
    torch.testing.assert_close(got[rows], wanted[rows])


@pytest.mark.parametrize("name", ["clipped", "clipped, per row", "softpick", "softmax one", "sink", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_near(name: str, dtype: torch.dtype) -> None:
    part, wide = _part(VARIANTS[name][0]), _inputs("causal")
    expected = part.attend(*wide, None, True, SCALE)
    narrow = [x.detach().to(dtype).requires_grad_() for x in wide]
    out = part.to(dtype).attend(*narrow, None, True, SCALE)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for got, wanted in zip(_gradients(out, narrow), _gradients(expected, list(wide)), strict=True):
        assert got.dtype == dtype
        assert (got.double() - wanted).norm() <= 4 * tolerance * wanted.norm()


def test_clipped_weights_are_exactly_zero() -> None:
    part = _part(sa.ClippedSoftmax(gamma=-0.1))
    q, k, _ = _inputs("causal")
    one_hot = torch.eye(LENGTH).double().expand(2, GROUPS, -1, -1)
    weights = part.attend(q, k, one_hot, None, True, SCALE)
    p = dense.softmax(dense.scores(q, k, causal_mask(LENGTH, LENGTH), SCALE))
    assert torch.equal(weights == 0, p <= 0.1 / 1.1)
    assert ((weights == 0) & (p > 0)).any()


def test_row_term_of_the_clipped_gradient() -> None:
    """sum_j p_j dP_j = dO . (O - gamma * sum of the kept V - sum of the saturated V), not dO . O."""
    gamma, zeta = -0.1, 1.3
    q, k, v = _inputs("bidirectional")
    p = dense.softmax(dense.scores(q, k, None, SCALE)).detach().requires_grad_()
    weights = ((zeta - gamma) * p + gamma).clip(0, 1)
    out = dense.weigh(weights, v)
    grad = torch.randn_like(out)
    (d_p,) = torch.autograd.grad(out, p, grad, retain_graph=True)
    kept, saturated = ((weights > 0) & (weights < 1)).double(), (weights == 1).double()
    assert saturated.any()
    row = (grad * (out - gamma * dense.weigh(kept, v) - dense.weigh(saturated, v))).sum(-1)
    torch.testing.assert_close((p * d_p).sum(-1), row)
    assert not torch.allclose((p * d_p).sum(-1), (grad * out).sum(-1))


@pytest.mark.parametrize("mask_name", ["causal", "bidirectional", "left padding", "decode"])
def test_sink_with_an_extra_key_is_the_fused_one(mask_name: str) -> None:
    """The route of other devices: plain SDPA with one more key."""
    q, k, v = _inputs(mask_name)
    mask, causal = MASKS[mask_name]
    sink = torch.randn(q.shape[:3], dtype=q.dtype, requires_grad=True)
    value = torch.randn(HEADS, DIM, dtype=q.dtype, requires_grad=True)
    learned = [q, k, v, sink, value]
    fused = attend_with_sink(q, k, v, mask, causal, SCALE, sink, value)
    plain = attend_with_extra_key(q, k, v, mask, causal, SCALE, sink, value)
    torch.testing.assert_close(fused, plain)
    for got, wanted in zip(_gradients(fused, learned), _gradients(plain, learned), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask_name", ["causal", "bidirectional", "left padding", "packed"])
@pytest.mark.parametrize("gamma", [-0.08, -100.0])
@pytest.mark.real
def test_flex_kernel_is_the_block_kernel(mask_name: str, gamma: float) -> None:
    q, k, v = (x.detach().float() for x in _inputs(mask_name))
    mask, causal = MASKS[mask_name]
    flex = sa.ClippedSoftmax(gamma=gamma, kernel="flex").part(SHAPE, 0)
    block = sa.ClippedSoftmax(gamma=gamma).part(SHAPE, 0)
    with torch.no_grad():
        got = flex.attend(q, k, v, mask, causal, SCALE)
    torch.testing.assert_close(got, block.attend(q, k, v, mask, causal, SCALE), rtol=1e-4, atol=1e-5)


def test_blocks_need_linear_memory() -> None:
    """What one call allocates besides its result does not grow with T * T."""

    def peak(length: int) -> int:
        q = torch.randn(1, 2, length, 8)
        from torch.utils._python_dispatch import TorchDispatchMode

        class Largest(TorchDispatchMode):
            found = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                for tensor in out if isinstance(out, tuple | list) else (out,):
                    if isinstance(tensor, torch.Tensor):
                        Largest.found = max(Largest.found, tensor.numel())
                return out

        with Largest() as largest:
            blocks._attend(q, q, q, None, True, 1.0, "clipped_softmax", [-0.01, 1.0, 0.0])
        return largest.found

    assert peak(4096) <= 2 * peak(2048) < 2048 * 2048 / 4
