"""Quantise and reload with plain transformers: the same logits as in memory, in every type of architecture."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from architected import TYPES, built
from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.quantizers import AWQ, GPTQ, RTN, Scheme, hold_out, quantized, targets
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.targets import left_experts
from studfinder.quantizers.walk import second_moments, walk
from studfinder.sites import WriterCall, tapped
from studfinder.verbs.quantize import quantize

W4 = RTN(scheme=Scheme(element="int4", block="channel", scale="float32"))
_LINEAR = r"is stored \(in, out\), as Conv1D does, and compressed-tensors has Linear only"
_PARTS = r"cannot load and run it \(source keys"
REFUSED = {
    **dict.fromkeys(("gpt-sw3", "gpt2", "openai-gpt"), _LINEAR),
    # transformers splits a matrix of the vision tower as it loads it, and cannot where weights are compressed.
    **dict.fromkeys(("inkling_mm_model", "qianfan_ocr"), _PARTS),
    # transformers exchanges the experts for a list of modules where weights are compressed.
    **dict.fromkeys(("llama4", "llama4_text"), r"experts\.0\.down_proj\.weight is missing in it"),
}
"""Types whose checkpoints cannot be compressed, and why. They are refused before anything is left at --out."""
SHORT = (
    "llama",
    "blt",  # blocks see patches of bytes
    "bloom",  # one fused matrix
    "dbrx",  # experts in one parameter
    "deepseek_v3",  # latent attention; experts from matrices kept apart
    "gemma3n_text",  # matrices outside the blocks
    "gpt_bigcode",  # one key for all heads
    "gpt_oss",  # experts in one parameter, with biases
    "llava",  # a language model within another
    "longcat_flash",  # two attentions in a layer; experts without a down projection
    "mamba",  # no attention
    "mixtral",  # experts that files name otherwise
    "modernbert-decoder",  # a head of two matrices
    "phi3",  # fused rows of q, k and v
    "phi4_multimodal",  # towers, and adapters beside matrices
    "qwen3_next",  # linear attention beside experts
    "rwkv",
    "zamba2",  # attention that layers share
)
"""Types that differ in structure."""
OUTSIDE = (
    *("gemma3n_text", "gemma4_text", "modernbert-decoder", "llava", "qwen2_5_vl", "idefics3", "git", "phi4_multimodal"),
    *("blt", "molmo2"),
)
"""Types with more matrices outside the blocks than a head."""
EXPERTS = re.findall(
    r"\S+",
    """
    afmoe axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_v32
    deepseek_v4 dots1 dots3_note dots3_note_text ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite
    glm4v_moe glm5_next glm_moe_dsa hunyuan_v1_moe hy_v3 jamba kimi_k25 kimi_linear kolibri1 laguna lfm2_moe
    longcat_flash mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl mistral_large4 mixtral nemotron_h
    nemotron_h_omni olmoe phimoe qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next
    qwen3_omni_moe_thinker qwen4_exp qwen4_exp_text solar_open unlimited_ocr
    """,
)
"""Mixtures whose experts are quantised: transformers fuses them from matrices kept apart."""
WHOLE = re.findall(
    r"\S+",
    """
    aria aria_text dbrx ernie4_5_vl_moe gpt_oss granitemoe granitemoe_swa granitemoehybrid granitemoeshared
    hy_v4 inkling2 inkling2_text inkling_text jetmoe minimax_m3_vl_text mistral4 muse_spark qwen3_vl_moe step3p7
    zaya
    """,
)
"""Mixtures whose experts stay as they are: transformers has them in one parameter, in files too."""


def lists(out):
    """The names of a checkpoint's chosen and ignored modules."""
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    return settings["config_groups"]["group_0"]["targets"], settings["ignore"]


@pytest.mark.parametrize("kind", [*SHORT, *(pytest.param(k, marks=pytest.mark.deep) for k in TYPES if k not in SHORT)])
def test_a_checkpoint_loads_as_the_model_in_memory(tmp_path, kind):
    lm = load(built(kind))
    found = targets(lm)
    if kind in REFUSED:
        with pytest.raises(StudfinderError, match=REFUSED[kind]):
            quantize(lm, W4, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    done = quantize(lm, W4, out=tmp_path / "out")
    assert "tensors bit-equal" in done.verified
    # The logits too; a kernel may round otherwise where numbers lie otherwise in memory.
    assert re.search(r"tokens (too|within [1-9]e-0[78] of their norm)$", done.verified)
    chosen, ignored = lists(tmp_path / "out")
    assert len(found) == done.quantized
    linear = {name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)}
    assert linear <= {*chosen, *ignored}
    blocks = tuple(f"{layer.block}." for layer in lm.anatomy.layers)
    outside = {name for name in linear if not name.startswith(blocks)}
    assert outside <= set(ignored)
    assert len(outside) > 1 or kind not in OUTSIDE
    whole = left_experts(lm, found)
    assert (kind in WHOLE) == bool(whole)
    assert (kind in EXPERTS) == any(target.part is not None for target in found)
    assert any(f"{whole} matrices of experts stay in float32" in note for note in done.notes) == bool(whole)


@pytest.mark.parametrize(("kind", "shared"), [("zamba", "shared_transf"), ("zamba2", "shared_transformer")])
def test_what_layers_share_is_quantised_once_and_stored_under_every_name(tmp_path, kind, shared):
    lm = load(built(kind))
    found = [target for target in targets(lm) if target.also]
    assert found
    assert {target.layer for target in found} == {min(target.layer for target in found)}
    quantize(lm, W4, out=tmp_path / "out")
    chosen, _ = lists(tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    for target in found:
        first, *others = target.modules
        assert shared in first
        assert set(target.modules) <= set(chosen)
        for other in others:
            assert torch.equal(held[f"{first}.weight_packed"], held[f"{other}.weight_packed"])


@pytest.mark.parametrize(
    ("scheme", "packed"),
    [
        (Scheme(element="int4", block="channel", scale="float32"), True),
        (Scheme(element="int3", block="channel", scale="float32"), True),
        (Scheme(element="int8", block="tensor", scale="float32"), True),
        (Scheme(element="fp8", block="channel", scale="float32"), True),
        (Scheme(element="fp8", block="tensor", scale="float32"), True),
        (Scheme(element="int4", block="channel", zero="integer", scale="float32"), False),
        (Scheme(element="fp8", block=(16, 16), scale="float32"), False),
    ],
    ids=str,
)
def test_experts_are_quantised_where_the_packed_form_reloads_else_written_whole(tmp_path, scheme, packed):
    lm = load(built("qwen3_moe"))
    done = quantize(lm, RTN(scheme=scheme), out=tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert done.verified.endswith("tokens too")
    assert (done.quantized == len(targets(lm))) == packed
    assert ("model.layers.0.mlp.experts.3.up_proj.weight_scale" in held) == packed
    assert ("model.layers.0.mlp.experts.gate_up_proj" in held) == (not packed)
    assert any("60 matrices of experts stay in float32" in note for note in done.notes) == (not packed)


def test_experts_that_do_not_fit_twice_are_decoded_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("studfinder.quantizers.verify.free_memory", lambda: 0)
    done = quantize(load(built("qwen3_moe")), W4, out=tmp_path / "out")
    assert "only its first block was loaded and run" in done.verified


def test_a_mixture_is_quantised_from_its_files(tmp_path):
    model = built("qwen3_moe")
    model.save_pretrained(tmp_path / "source")
    by_files = quantize(tmp_path / "source", W4, out=tmp_path / "files")
    by_memory = quantize(load(model), W4, out=tmp_path / "memory")
    assert by_files.quantized == by_memory.quantized == len(targets(load(model)))
    one, other = (load_file(tmp_path / way / "model.safetensors") for way in ("files", "memory"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_default_reaches_experts(tmp_path):
    lm = load(built("qwen3_moe", dtype=torch.bfloat16))
    done = quantize(lm, out=tmp_path / "out")
    assert done.quantized == len(targets(lm))
    assert "bit-equal" in done.verified


def test_calibrated_methods_see_what_enters_each_expert():
    lm = load(built("mixtral"))
    windows = torch.randint(3, 64, (3, 40), generator=torch.Generator().manual_seed(0)).tolist()
    bench = bench_for(lm, GPTQ(scheme=W4.scheme), windows=windows)
    block = next(walk(bench))
    entered: dict[str, torch.Tensor] = {}

    def read(event):
        if event.layer == 0:
            square = event.input_NF.T @ event.input_NF
            name = f"{event.ref.parameter}[{event.ref.expert}]"
            entered[name] = entered.get(name, 0) + square

    with torch.no_grad(), tapped(lm, read={WriterCall: (read,)}):
        for window in windows:
            lm.model(input_ids=torch.tensor([window]), use_cache=False)
    moments = second_moments(block)
    down = [target for target in block.targets if target.part is not None and target.reads in entered]
    assert len(down) == len(entered) == 4
    for target in down:
        expected = entered[target.reads]
        torch.testing.assert_close(moments[target.name] / moments[target.name].norm(), expected / expected.norm())
    gates = [target for target in block.targets if "w1" in target.name or "w3" in target.name]
    assert {target.reads for target in gates} == {f"model.layers.0.mlp.experts[{expert}]" for expert in range(4)}
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    for method in (GPTQ(scheme=W4.scheme), AWQ(scheme=W4.scheme, candidates=4)):
        with quantized(lm, method, windows=windows) as bench:
            assert len(bench.done) == len(targets(lm))
        assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_a_number_of_an_expert_is_held_out():
    lm = load(built("mixtral"))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    rows = lm.model.get_parameter(name).shape[1]
    value = lm.model.get_parameter(name)[2, rows - 1, 5].item()
    keep = hold_out(Weights(parameter=name, entries=((2, rows - 1, 5),)))
    with quantized(lm, W4, keep=keep) as bench:
        held = {
            target.name: made.kept for target in bench.targets if (made := bench.done[target.name]).kept is not None
        }
        assert [kept.value_N.tolist() for kept in held.values()] == [pytest.approx([value])]
        assert "experts.2.w3" in next(iter(held))
        assert lm.model.get_parameter(name)[2, rows - 1, 5].item() == pytest.approx(value)


class ListedExperts(nn.Module):
    """A mixture as many models' own code has it: experts are modules of a list, and each token goes to one."""

    def __init__(self, width, inner, experts):
        super().__init__()
        self.choose = nn.Linear(width, experts, bias=False)
        self.each = nn.ModuleList(Expert(width, inner) for _ in range(experts))

    def forward(self, hidden):
        flat = hidden.reshape(-1, hidden.shape[-1])
        share, chosen = self.choose(flat).softmax(dim=-1).max(dim=-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.each):
            if (mine := chosen == number).any():
                out[mine] = expert(flat[mine]) * share[mine, None]
        return out.view_as(hidden)


class Expert(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.a, self.b = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.c = nn.Linear(inner, width, bias=False)

    def forward(self, hidden):
        return self.c(nn.functional.silu(self.a(hidden)) * self.b(hidden))


def test_experts_in_a_list_are_known_whether_tokens_reach_them_or_not():
    model = built("llama")
    torch.manual_seed(0)
    for block in model.model.layers:  # more experts than probing has tokens
        block.mlp = ListedExperts(64, 48, 40)
    lm = load(model)
    layer = lm.anatomy.layers[1]
    assert layer.routers == ("model.layers.1.mlp.choose.weight",)
    assert len(layer.writers) == 40
    for number, writer in enumerate(layer.writers):
        expert = f"model.layers.1.mlp.each.{number}"
        names = (writer.parameter, writer.up.ref.parameter, writer.gate.ref.parameter)
        assert names == tuple(f"{expert}.{leaf}.weight" for leaf in "cba")
    groups = {target.name: target.fused for target in targets(lm)}
    assert "model.layers.1.mlp.choose.weight" not in groups
    for number in range(40):
        expert = f"model.layers.1.mlp.each.{number}"
        assert groups[f"{expert}.a.weight"] == groups[f"{expert}.b.weight"] == f"{expert}.a+b"
