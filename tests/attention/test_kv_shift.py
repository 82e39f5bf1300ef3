"""KV shift: the mixture, which tokens have a predecessor, the row in the cache, and what cannot be undone."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from attention_models import tiny, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

import studfinder.attention as sa
from studfinder.attention.kv_shift import naive
from studfinder.attention.kv_shift.visible import previous_visible
from studfinder.attention.variant import AttentionShape
from studfinder.errors import StudfinderError

SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=6, hidden=24)


def shifted(base: str = "llama", **settings):
    model = sa.convert(tiny(base), sa.KVShift(**settings), init="paper")
    return model.requires_grad_(False)


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_mixture_as_specified(keys: bool, values: bool, gated: bool) -> None:
    if not (keys or values):
        with pytest.raises(StudfinderError, match="shifts nothing"):
            sa.KVShift(keys=keys, values=values)
        return
    torch.manual_seed(0)
    part = sa.KVShift(init="paper", keys=keys, values=values, gated=gated).part(SHAPE, 0).double()
    key, value = (torch.randn(2, 7, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[0, 3] = starts[1, 5] = True
    got = [
        part.mixed(x, *(scalar[:, None] for scalar in part.scalars(side)), None, ~starts) if on else x
        for x, side, on in ((key, "key", keys), (value, "value", values))
    ]
    wanted = [
        naive.mix(x, *part.scalars(side), starts) if on else x
        for x, side, on in ((key, "key", keys), (value, "value", values))
    ]
    learned = [*([key] if keys else []), *([value] if values else []), *part.parameters()]
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-15)
    weights = [torch.randn_like(x) for x in got]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(both, weights, strict=True)), learned)
        for both in (got, wanted)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_paper_start_sums_to_one_and_identity_is_one_zero() -> None:
    part = sa.KVShift(init="paper").part(SHAPE, 0)
    for side in ("key", "value"):
        current, previous = part.scalars(side)
        assert torch.allclose(current + previous, torch.ones(2))
        assert ((current > 0) & (current < 1)).all()
    assert len({float(p.detach()[0]) for p in part.parameters()}) == 4  # drawn independently
    identity = sa.KVShift().started(None).part(SHAPE, 0)
    assert [p.tolist() for p in identity.parameters()] == [[1, 1], [0, 0], [1, 1], [0, 0]]


def test_predecessor_is_read_from_every_kind_of_mask() -> None:
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    mask[..., :2] = False  # two padding tokens on the left
    wanted = [[False, False, False, True, True]]
    assert previous_visible(mask, 5, 0, 0, None, False).tolist() == wanted
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert previous_visible(additive, 5, 0, 0, None, False).tolist() == wanted
    flat = torch.tensor([[0, 0, 1, 1, 1]])
    assert previous_visible(flat, 5, 0, 0, None, True).tolist() == wanted
    assert previous_visible(None, 5, 0, 0, None, False) is None
    packed = torch.tensor([[0, 1, 0, 1, 2]])
    assert previous_visible(None, 5, 0, 0, packed, True).tolist() == [[False, True, False, True, True]]
    # With a cache of three: the first new token's predecessor is the last cached one.
    later = torch.ones(1, 1, 2, 5, dtype=torch.bool).tril(3)
    assert previous_visible(later, 2, 3, 0, None, False).tolist() == [[True, True]]
    later[..., 0, 2] = False
    assert previous_visible(later, 2, 3, 0, None, False).tolist() == [[False, True]]
    counted = torch.tensor(3)
    assert previous_visible(later, 2, counted, 0, None, False).tolist() == [[False, True]]


def test_state_is_in_the_cache_and_not_on_the_module() -> None:
    model, ids = shifted(), tokens()
    before = {name: id(value) for name, value in vars(model.model.layers[0].self_attn).items()}
    first, second = DynamicCache(config=model.config), DynamicCache(config=model.config)
    other = tokens(seed=7)
    full, full_other = model(ids, use_cache=False).logits, model(other, use_cache=False).logits
    for t in range(ids.shape[1]):  # two generations at once, interleaved
        a = model(ids[:, t : t + 1], past_key_values=first).logits
        b = model(other[:, t : t + 1], past_key_values=second).logits
        torch.testing.assert_close(a[:, 0], full[:, t])
        torch.testing.assert_close(b[:, 0], full_other[:, t])
    assert {name: id(value) for name, value in vars(model.model.layers[0].self_attn).items()} == before
    assert [x.shape for x in first.layers[0].raw.values()] == [(2, 1, 2, 8)] * 2


class Operations(TorchDispatchMode):
    """Counts the operations that reach torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


def test_a_decode_step_adds_one_product_and_one_sum_a_tensor() -> None:
    """What decoding costs: in a small model a step is as long as its list of operations. No copy, no cat, no clone; a
    view into heads and one back."""

    def step(model) -> Counter[str]:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(tokens(), past_key_values=cache)
            with Operations() as operations:
                model(tokens(length=1), past_key_values=cache)
        return operations.seen

    model = shifted()
    added = step(model)
    added.subtract(step(tiny()))
    layers = model.config.num_hidden_layers
    assert {name: n / layers for name, n in added.items() if n} == {"mul": 2, "addcmul": 2, "unsqueeze": 4, "view": 4}


@pytest.mark.parametrize("base", ["llama", "mistral", "gemma3_text"])
def test_crop_takes_the_row_back(base: str) -> None:
    model, ids = shifted(base), tokens()
    full = model(ids, use_cache=False).logits
    cache = sa.shift_cache(model)
    model(ids[:, :8], past_key_values=cache)
    cache.activate_past_recording()
    model(torch.full_like(ids[:, :3], 5), past_key_values=cache)  # rejected candidates
    cache.crop(-3)
    torch.testing.assert_close(model(ids[:, 8:], past_key_values=cache).logits, full[:, 8:])


def test_crop_without_recording_is_refused() -> None:
    model = shifted()
    cache = sa.shift_cache(model)
    model(tokens(), past_key_values=cache)
    with pytest.raises(StudfinderError, match="activate_past_recording"):
        cache.crop(-2)
    cache.crop(0)
    cache.crop(-tokens().shape[1])  # all of it needs no row
    torch.testing.assert_close(model(tokens(), past_key_values=cache).logits, model(tokens()).logits)


def test_batch_changes_move_the_row() -> None:
    model, ids = shifted(), tokens()
    full = model(ids, use_cache=False).logits
    cache = sa.shift_cache(model)
    model(ids[:, :8], past_key_values=cache)
    swapped = copy.deepcopy(cache)
    swapped.reorder_cache(torch.tensor([1, 0]))
    got = model(ids.flip(0)[:, 8:], past_key_values=swapped).logits
    torch.testing.assert_close(got, full.flip(0)[:, 8:])
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    got = model(ids.repeat_interleave(2, 0)[:, 8:], past_key_values=repeated).logits
    torch.testing.assert_close(got, full.repeat_interleave(2, 0)[:, 8:])
    cache.batch_select_indices(torch.tensor([1]))
    torch.testing.assert_close(model(ids[1:, 8:], past_key_values=cache).logits, full[1:, 8:])
    cache.reset()
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, full)


def test_static_cache() -> None:
    model, ids = shifted(), tokens()
    full = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=32)
    parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 6), (6, 7), (7, 13))]
    torch.testing.assert_close(torch.cat(parts, 1), full)


def test_lazy_cache_without_a_config() -> None:
    model, ids = shifted(), tokens()
    cache = DynamicCache()
    parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 6), (6, 13))]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, use_cache=False).logits)


def test_foreign_cache_is_refused() -> None:
    plain, model = tiny(), shifted()
    cache = plain(tokens(), use_cache=True).past_key_values
    with pytest.raises(StudfinderError, match="filled by a model without KV shift"):
        model(tokens(length=1), past_key_values=cache)


def test_import_of_published_kernels_reverses_the_columns() -> None:
    model = sa.convert(tiny(), sa.KVShift())
    kernels = {f"model.layers.{i}.self_attn.conv_{side}": torch.rand(1, 1, 2, 1, 2) for i in range(2) for side in "kv"}
    assert sa.import_kernels(model, kernels) == 2
    part = model.model.layers[1].self_attn.kv_shift
    kernel = kernels["model.layers.1.self_attn.conv_v"].double()
    assert torch.equal(part.value_previous, kernel[0, 0, :, 0, 0])
    assert torch.equal(part.value_current, kernel[0, 0, :, 0, 1])
    # The published form is a causal convolution of width 2; ours must give the same.
    value = torch.randn(1, 6, 2, 8, dtype=torch.float64)
    padded = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
    weight = kernel.view(2, 2)
    convolved = padded[:, :-1] * weight[:, 0, None] + padded[:, 1:] * weight[:, 1, None]
    torch.testing.assert_close(part.mixed(value, *(scalar[:, None] for scalar in part.scalars("value"))), convolved)
    with pytest.raises(StudfinderError, match="conv_k"):
        sa.import_kernels(model, {})
    with pytest.raises(StudfinderError, match="no KV shift"):
        sa.import_kernels(tiny(), kernels)


def test_scalars_take_no_weight_decay() -> None:
    model = sa.convert(sa.convert(tiny(), sa.KVShift()), sa.Gated(kind="all-heads"))
    decayed, kept = sa.parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {id(p) for g in (decayed, kept) for p in g["params"]} == set(names)
    spared = {names[id(p)] for p in kept["params"]}
    assert spared == {name for name, p in model.named_parameters() if p.dim() < 2 or "kv_shift" in name}
    for ending, there in (("kv_shift.key_current", True), ("gated.bias", True), ("gated.weight", False)):
        assert sum(name.endswith(ending) for name in names.values()) == model.config.num_hidden_layers
        assert any(name.endswith(ending) for name in spared) is there
    bias = sa.convert(tiny(), sa.AttentionBias(), init="fresh")
    spared = {id(p) for p in sa.parameter_groups(bias, 0.1)[1]["params"]}
    assert id(bias.model.layers[0].self_attn.attention_bias.key) in spared
