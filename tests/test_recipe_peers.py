"""Recipes through the matchers of libraries that are not installed beside studfinder (law 9).

`make peers` makes an environment with them and runs this file there; elsewhere each test is skipped, saying so.
llama-quantize is looked for in PATH, or where LLAMA_QUANTIZE says it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from architected import built
from reciped import ARCHITECTURES, FORMATS, file_of, mixed, outlined
from studfinder.recipes import NamedMatrix, gguf_names, rule_set, tool_named


def peer(name: str):
    """A library, or a skipped test that says how to have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed here: make peers", exc_type=ImportError)


def live(kind: str) -> dict[str, torch.nn.Linear]:
    """The modules of a tiny model that recipes name and that are Linear in memory."""
    named = {matrix.module for matrix in outlined(kind).matrices}
    return {
        name: module
        for name, module in built(kind).named_modules()
        if name in named and type(module) is torch.nn.Linear
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_torchao_quantises_what_was_written(kind, tmp_path):
    peer("torchao")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    recipe = mixed(kind, FORMATS["torchao"])
    config = config_from_dict(json.loads(file_of(recipe, "torchao", tmp_path).read_text())["config"])
    model = built(kind)
    names = set(live(kind))
    for name in [name for name in config.fqn_to_config if name not in names]:
        config.fqn_to_config.pop(name)  # experts that transformers stacks are no Linear that it could quantise
    quantize_(model, config, filter_fn=None)
    found = {name: _torchao(model.get_submodule(name).weight) for name in names}
    assert found == {name: recipe.formats[name] for name in names}


def _torchao(weight: torch.Tensor) -> str:
    kind = type(weight).__name__
    if kind == "Parameter":
        return "16"
    if kind == "IntxUnpackedToInt8Tensor":
        bits = str(weight.target_dtype).removeprefix("torch.")
        asymmetric = bool((weight.zero_point != 0).any())
        return f"{bits}-g{weight.block_size[-1]}" + "-zero" * asymmetric
    if kind == "Float8Tensor":
        return "fp8"
    return {"Int8Tensor": "int8-channel+int8", "LinearActivationQuantizedTensor": "int8-channel+int8"}.get(kind, kind)


TORCHAO = (
    {"_default": "int8", "model.layers.1.mlp.down_proj": None},
    {
        r"re:model\.layers\.\d+\.mlp\.down_proj": "int8",
        r"re:.*mlp\..*_proj": None,
        "model.layers.2.mlp.up_proj": "int8",
    },
    {r"re:.*down_proj\.weight": None, r"re:.*mlp\..*_proj": "int8", "model.layers.0.mlp.down_proj": "int8"},
    {r"re:down_proj": "int8", "model.layers.0.self_attn.q_proj.weight": None, r"re:.*q_proj": "int8"},
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("said", TORCHAO, ids=str)
def test_rules_that_others_wrote_match_what_torchao_matches(said):
    peer("torchao")
    from torchao.core.config import config_to_dict
    from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, quantize_

    config = FqnToConfig({name: None if kind is None else IntxWeightOnlyConfig() for name, kind in said.items()})
    rules = rule_set(json.loads(json.dumps(config_to_dict(config))))
    model = built("llama")
    quantize_(model, config, filter_fn=None)
    for matrix in outlined("llama").matrices:
        if "Linear" in matrix.kinds:
            left = type(model.get_submodule(matrix.module).weight).__name__ == "Parameter"
            assert (rules.format_of(matrix) == "16") == left, matrix.module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_auto_round_resolves_what_was_written(kind, tmp_path):
    peer("auto_round")
    recipe = mixed(kind, FORMATS["auto-round"])
    said = json.loads(file_of(recipe, "auto-round", tmp_path).read_text())
    resolved = _auto_round(built(kind), said["scheme"], said["layer_config"])
    found = {name: _scheme_of(resolved[name]) if name in resolved else "16" for name in live(kind)}
    odd = {m.module for m in outlined(kind).matrices if m.shape and any(size % 32 for size in m.shape)}
    assert len(odd & set(found)) < len(found)
    assert found == {name: "16" if name in odd else recipe.formats[name] for name in found}


def _auto_round(model, scheme, layer_config, ignore=""):
    from auto_round.compressors.utils import set_layer_config
    from auto_round.schemes import QuantizationScheme
    from auto_round.utils import INNER_SUPPORTED_LAYER_TYPES, SUPPORTED_LAYER_TYPES

    types = {"supported_types": SUPPORTED_LAYER_TYPES, "inner_supported_types": INNER_SUPPORTED_LAYER_TYPES}
    base = QuantizationScheme.from_dict(scheme)
    return set_layer_config(model, dict(layer_config), base, "fp16", ignore_layers=ignore, **types)[0]


def _scheme_of(settings) -> str:
    keys = ("bits", "group_size", "sym", "data_type", "act_bits", "act_group_size", "act_data_type")
    plain = {key: settings[key] for key in keys if settings.get(key) is not None}
    return rule_set({"scheme": plain, "layer_config": {}}).default


AUTO_ROUND = (
    ({"model.layers.1.mlp.down_proj": 8, "down_proj": 3}, ""),
    ({"down_proj": 3, "model.layers.1.mlp.down_proj": 8}, ""),
    ({"layers.1.mlp": 8, r"mlp.*down": 3, "q_proj$": 2}, ""),
    ({"model.layers.1": 8}, "lm_head"),
    ({r"model\.layers\.[12]\.": 8, "^model.*o_proj": 2}, ""),
    ({"k_proj": 8}, "layers.1,lm_head"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("said", "ignored"), AUTO_ROUND, ids=str)
def test_rules_that_others_wrote_match_what_auto_round_matches(said, ignored):
    peer("auto_round")
    scheme = {"bits": 4, "group_size": 8, "sym": True, "act_bits": 16}
    config = {name: {"bits": bits} for name, bits in said.items()}
    # sizes that 32 divides: one other in what a pattern matches would take all of it to 16 bits (0.16.1)
    resolved = _auto_round(built("llama", intermediate_size=128), scheme, config, ignored)
    rules = rule_set({"scheme": scheme, "layer_config": config, "ignore_layers": ignored})
    for matrix in outlined("llama", intermediate_size=128).matrices:
        if matrix.group:
            assert rules.format_of(matrix) == _scheme_of(resolved[matrix.module]), matrix.module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_model_optimizer_turns_on_what_was_written(kind, tmp_path):
    peer("modelopt")
    recipe = mixed(kind, FORMATS["modelopt"])
    said = yaml.safe_load(file_of(recipe, "modelopt", tmp_path).read_text())
    model = _quantizers(kind, said["quantize"]["quant_cfg"])
    names = [name for name in live(kind) if hasattr(model.get_submodule(name), "weight_quantizer")]
    assert len(names) > len(recipe.groups) / 2
    assert {name: _modelopt(model.get_submodule(name)) for name in names} == {n: recipe.formats[n] for n in names}


def _quantizers(kind: str, entries: list):
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.conversion import set_quantizer_by_cfg

    model = built(kind)
    mtq.replace_quant_module(model)
    set_quantizer_by_cfg(model, entries)
    return model


def _modelopt(module) -> str:
    weights, inputs = module.weight_quantizer, module.input_quantizer
    if not weights.is_enabled:
        return "16"
    cfgs = [_quantizer(one) for one in (weights, inputs) if one.is_enabled]
    entries = [
        {"quantizer_name": f"m.{name}_quantizer", "cfg": cfg}
        for name, cfg in zip(("weight", "input"), cfgs, strict=False)
    ]

    return rule_set({"quant_cfg": entries}).format_of(NamedMatrix("m"))


def _quantizer(one) -> dict:
    return {"num_bits": one.num_bits, "axis": one.axis, "block_sizes": one.block_sizes}


MODELOPT = (
    [("*", False), ("*weight_quantizer", True), ("*layers.1.mlp.down_proj*", False)],
    [("*layers.1.mlp.down_proj*", False), ("*weight_quantizer", True)],
    [("*", False), ("*.mlp.*weight_quantizer", True), ("*lm_head*", False), ("*.mlp.up*", False)],
    [("*", False), ("*layers.[12].*weight_quantizer", True), ("model.layers.1.*_proj.weight_quantizer", False)],
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("said", MODELOPT, ids=str)
def test_rules_that_others_wrote_match_what_model_optimizer_matches(said):
    peer("modelopt")
    entries = [
        {"quantizer_name": g, "cfg": {"num_bits": 8, "axis": 0}} if on else {"quantizer_name": g, "enable": False}
        for g, on in said
    ]
    entries = [{"quantizer_name": "*", "enable": False}, *entries]
    rules, model = rule_set({"quant_cfg": entries}), _quantizers("llama", entries)
    for matrix in outlined("llama").matrices:
        if matrix.group:
            enabled = model.get_submodule(matrix.module).weight_quantizer.is_enabled
            assert (rules.format_of(matrix) != "16") == enabled, matrix.module


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe"])
def test_llama_quantize_takes_what_was_written(kind, tmp_path):
    """Its dry run, without the mixture of types that it has for what no rule names, on a GGUF with the model's names of
    tensors and rows as wide as K-quants want."""
    place = os.environ.get("LLAMA_QUANTIZE") or shutil.which("llama-quantize")
    if place is None:
        pytest.skip("llama-quantize is not installed here: set LLAMA_QUANTIZE")
    recipe = mixed(kind, FORMATS["llama.cpp"])
    rules = file_of(recipe, "llama.cpp", tmp_path)
    ggufs = gguf_names(recipe.model.architecture, recipe.model.layers, list(recipe.formats))
    written = _gguf(recipe.model.architecture, recipe.model.layers, set(ggufs.values()), tmp_path / "m.gguf")
    command = [*place.split(), "--dry-run", "--pure", "--tensor-type-file", str(rules), str(written), "Q4_K_S"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-2000:]
    found = dict(re.findall(r"(blk\.\d+\.\w+\.weight)\b[^\n]*?size = [^\n]*?->[^\n]*?\((\w+)\)", text))
    spelled = tool_named("llama.cpp").spelled
    meant = {ggufs[module]: spelled(name) for module, name in recipe.formats.items() if ggufs[module] in found}
    assert len(meant) > len(recipe.groups) / 2, text[-3000:]
    assert {name: kind.lower() for name, kind in found.items() if name in meant} == meant


def _gguf(architecture: str, layers: int, names: set[str], path: Path) -> Path:
    from gguf import GGUFWriter

    from studfinder.recipes.gguf_names import gguf_architecture

    known = gguf_architecture(architecture)
    assert known is not None
    writer = GGUFWriter(path, known)
    writer.add_block_count(layers)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(256)
    for add in (writer.add_head_count, writer.add_head_count_kv, writer.add_expert_count, writer.add_expert_used_count):
        add(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(256)
    writer.add_tokenizer_model("none")
    for name in sorted(names | {"token_embd.weight", "output.weight"}):
        shape = (2, 256, 256) if "_exps" in name else (256, 256)
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
