"""Anatomy: every site has its shape, and a number planted at a Hugging Face coordinate shows up there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from studfinder.errors import StudfinderError
from studfinder.models import LM, load, matrix
from studfinder.sites import Site, capture
from tiny import ARCHITECTURES, CONFIGS, tiny, token_ids

B, T = 3, 24


def attention_layer(lm: LM) -> int:
    return next(i for i, layer in enumerate(lm.anatomy.layers) if layer.attention is not None)


def readable(lm: LM, tensor: str) -> str:
    """The kind of site where Q or K can be read as the projection gave it."""
    return tensor if tensor == "value" or lm.anatomy.stage == "no RoPE" else f"{tensor}.pre_rope"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_residual_and_attention_sites_have_their_shapes(architecture):
    lm = tiny(architecture)
    a = lm.anatomy
    expected = {"embedding": (B, T, a.hidden)}
    for i, layer in enumerate(a.layers):
        expected[f"residual[{i}]"] = (B, T, a.hidden)
        if layer.attention is None:
            continue
        expected[f"value[{i}]"] = (B, a.kv_heads, T, a.head_dim)
        stages = {"pre-RoPE": [".pre_rope"], "post-RoPE": ["", ".pre_rope"], "no RoPE": [""]}[a.stage]
        for stage in stages:
            expected[f"query{stage}[{i}]"] = (B, a.heads, T, a.head_dim)
            expected[f"key{stage}[{i}]"] = (B, a.kv_heads, T, a.head_dim)
    seen = capture(lm, token_ids(B, T), list(expected))
    assert {name: tuple(tensor.shape) for name, tensor in seen.items()} == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_down_projections_have_their_shapes_and_experts_share_the_tokens(architecture):
    lm = tiny(architecture)
    for i, layer in enumerate(lm.anatomy.layers):
        names = [str(Site("down_proj." + end, i, w)) for w in range(len(layer.writers)) for end in ("input", "output")]
        seen = capture(lm, token_ids(B, T), names)
        routed = 0
        for w, ref in enumerate(layer.writers):
            x, y = (seen[str(Site("down_proj." + end, i, w))] for end in ("input", "output"))
            assert x.shape == (len(y), lm.anatomy.intermediate)
            assert y.shape == (len(x), lm.anatomy.hidden)
            if ref.expert is None:
                assert len(x) == B * T
            else:
                routed += len(x)
        assert routed in (0, 2 * B * T)  # two experts a token


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_weight_planted_by_its_index_shows_up_at_its_row(architecture):
    lm = tiny(architecture)
    layer = len(lm.anatomy.layers) - 1
    row, col = 5, lm.anatomy.intermediate - 2
    for w, ref in enumerate(lm.anatomy.layers[layer].writers):
        sites = [str(Site("down_proj." + end, layer, w)) for end in ("input", "output")]
        x, before = capture(lm, token_ids(B, T), sites).values()
        parameter = lm.model.get_parameter(ref.parameter)
        with torch.no_grad():
            parameter[ref.index(row, col)] += 50
        with matrix(lm, ref) as weight_CF:
            assert weight_CF.shape == (lm.anatomy.hidden, lm.anatomy.intermediate)
            assert weight_CF[row, col] == parameter[ref.index(row, col)]
            assert weight_CF.data_ptr() == (parameter if ref.expert is None else parameter[ref.expert]).data_ptr()
        _, after = capture(lm, token_ids(B, T), sites).values()
        expected = torch.zeros_like(before)
        expected[:, row] = 50 * x[:, col]
        torch.testing.assert_close(after - before, expected, atol=1e-4, rtol=1e-4)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("architecture", "index"),
    [("llama", (5, 7)), ("gpt2", (7, 5)), ("mixtral", (2, 5, 7)), ("gpt_oss", (2, 7, 5)), ("opt", (5, 7))],
)
def test_the_index_is_literal(architecture, index):
    lm = tiny(architecture)
    ref = lm.anatomy.layers[1].writers[2 if len(index) == 3 else 0]
    assert ref.index(5, 7) == index


def projection(lm: LM, layer: int, tensor: str, head: int, dim: int) -> tuple[nn.Module, int]:
    """Where a projection's output channel of (head, dim) is: written from the model files, not from studfinder."""
    module, which = (
        lm.model.get_submodule(lm.anatomy.layers[layer].attention),
        ("query", "key", "value").index(tensor),
    )
    heads, groups, width = lm.anatomy.heads, lm.anatomy.kv_heads, lm.anatomy.head_dim
    match lm.anatomy.architecture:
        case "phi3":
            return module.qkv_proj, ((0, heads, heads + groups)[which] + head) * width + dim
        case "gpt2":
            return module.c_attn, (which * heads + head) * width + dim
        case "gpt_neox" | "bloom":
            return module.query_key_value, (head * 3 + which) * width + dim
        case "falcon":
            return module.query_key_value, ((0, heads, heads + 1)[which] + head) * width + dim
        case "qwen3_next" if tensor == "query":  # each head's query is followed by its gate
            return module.q_proj, head * 2 * width + dim
        case _:
            return getattr(module, f"{tensor[0]}_proj"), head * width + dim


@pytest.mark.parametrize("tensor", ["query", "key", "value"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_silenced_projection_channel_is_silent_at_its_head_and_dim(architecture, tensor):
    if architecture == "stablelm" and tensor != "value":
        pytest.skip("its LayerNorm over each head of Q and K moves a silent channel off zero")
    lm = tiny(architecture)
    layer = attention_layer(lm)
    head, dim = (0 if tensor != "query" and lm.anatomy.kv_heads == 1 else 1), 5
    site = f"{readable(lm, tensor)}[{layer}]"
    before = capture(lm, token_ids(), [site])[site]
    module, channel = projection(lm, layer, tensor, head, dim)
    with torch.no_grad():
        weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
        weight[channel] = 0
        if module.bias is not None:
            module.bias[channel] = 0
    after = capture(lm, token_ids(), [site])[site]
    assert (before[:, head, :, dim] != 0).all()
    silent = (after == 0).all(dim=0).all(dim=1)
    assert silent.nonzero().tolist() == [[head, dim]]


def test_layers_without_attention_are_known_and_their_sites_refused():
    lm = tiny("lfm2")
    assert [layer.attention is not None for layer in lm.anatomy.layers] == [False, True, False]
    with pytest.raises(StudfinderError, match="layer 0 has no attention"):
        capture(lm, token_ids(), ["query[0]"])


def test_a_model_without_a_head_is_refused():
    base = AutoModel.from_config(AutoConfig.for_model("llama", **CONFIGS["llama"]))
    with pytest.raises(StudfinderError, match="AutoModelForCausalLM"):
        load(base)


def test_something_else_is_refused():
    with pytest.raises(StudfinderError, match="cannot load a Linear"):
        load(nn.Linear(2, 2))


def test_memory_that_ends_is_said_as_such(monkeypatch):
    from studfinder.models import measured

    def ends(*_: object, **__: object) -> None:
        raise MemoryError

    lm = tiny("llama", seed=9)
    lm.model.config.initializer_range = 0.123  # a configuration that was not measured before
    monkeypatch.setattr(measured, "probed", ends)
    with pytest.raises(StudfinderError, match="memory"):
        load(lm.model)
