"""Quantise and reload with plain transformers: the same logits as in memory, in every type of architecture."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from architected import TYPES, built
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.quantizers import RTN, Scheme, targets
from studfinder.quantizers.targets import left_experts
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
    *("llama", "gemma3_text", "gemma3n_text", "gemma4_text", "phi3", "cohere2", "glm4", "nanochat"),
    *("falcon", "bloom", "mpt", "gptj", "opt", "gpt_bigcode", "stablelm", "modernbert-decoder", "bitnet"),
    *("qwen3_moe", "mixtral", "gpt_oss", "dbrx", "deepseek_v3", "granitemoe", "longcat_flash", "olmoe", "jetmoe"),
    *("qwen3_next", "mamba", "falcon_h1", "zamba", "zamba2", "recurrent_gemma", "rwkv", "xlstm", "lfm2_moe"),
    *("llava", "qwen2_5_vl", "idefics3", "git", "phi4_multimodal", "blt", "hy_v4", "molmo2", "laguna", "diffllama"),
)
"""Types that differ in structure."""
OUTSIDE = (
    *("gemma3n_text", "gemma4_text", "modernbert-decoder", "llava", "qwen2_5_vl", "idefics3", "git", "phi4_multimodal"),
    *("blt", "molmo2"),
)
"""Types with more matrices outside the blocks than a head."""
EXPERTS = """
afmoe axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1
dots3_note dots3_note_text ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite glm4v_moe glm5_next
glm_moe_dsa hunyuan_v1_moe hy_v3 jamba kimi_k25 kimi_linear kolibri1 laguna lfm2_moe longcat_flash mellum
mimo_v2_flash minimax minimax_m2 minimax_m3_vl mistral_large4 mixtral nemotron_h nemotron_h_omni olmoe phimoe
qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen3_omni_moe_thinker qwen4_exp qwen4_exp_text solar_open
unlimited_ocr
""".split()
"""Mixtures whose experts are quantised: transformers fuses them from matrices kept apart."""
WHOLE = """
aria aria_text dbrx ernie4_5_vl_moe gpt_oss granitemoe granitemoe_swa granitemoehybrid granitemoeshared hy_v4 inkling2
inkling2_text inkling_text jetmoe minimax_m3_vl_text mistral4 muse_spark qwen3_vl_moe step3p7 zaya
""".split()
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
    assert done.verified.endswith("tokens too")  # the logits
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
