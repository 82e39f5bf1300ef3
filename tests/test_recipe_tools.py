"""A recipe means the same matrices and formats in every tool (law 9): through our own reading of each tool's rules, and
through the matchers of the libraries that are installed here; test_recipe_peers.py has the others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.utils.match import is_match, match_targets
from transformers.quantizers.quantizers_utils import should_convert_module

from architected import built
from reciped import ARCHITECTURES, FORMATS, file_of, mixed, outlined, rules_of
from studfinder.errors import StudfinderError
from studfinder.recipes import TOOLS, read_rules_file, rule_set, tool_named, written
from studfinder.records import Recipe, RecipeGroup
from studfinder.records.compressed import input_arguments, inputs_of_arguments, scheme_of_arguments, weight_arguments
from studfinder.records.scheme import format_named
from studfinder.verbs.recipe_check import checked_rules


def test_every_tool_has_formats_here_and_is_told_in_the_help():
    from studfinder.verbs.configs import RecipeConfig

    assert list(FORMATS) == list(TOOLS)
    said = RecipeConfig.__dataclass_fields__["tools"].metadata["option"].help
    assert said.endswith(f"{', '.join(TOOLS)}.")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_written_means_the_same_matrices_and_formats(kind, tool, tmp_path):
    recipe = mixed(kind, FORMATS[tool], shift=len(kind))
    rules, outline = rules_of(recipe, tool, tmp_path), outlined(kind)
    spelled = tool_named(tool).spelled
    meant = {module: spelled(name) for module, name in recipe.formats.items()}
    meant |= dict.fromkeys(recipe.left_modules, spelled("16"))
    grouped = [matrix for matrix in outline.matrices if matrix.group]
    if tool == "auto-round":
        meant |= {m.module: "16" for m in grouped if any(size % 32 for size in m.shape)}
    assert {matrix.module: rules.format_of(matrix) for matrix in grouped} == {
        m.module: meant[m.module] for m in grouped
    }
    if tool != "llama.cpp":  # it has options of its own for the head and the embedding
        assert {rules.format_of(matrix) for matrix in outline.left} == {"16"}
    found = checked_rules(rules, outline.matrices, kind)
    assert found.unmatched == ()
    if tool != "auto-round":  # which leaves odd sizes whole, fused or not
        assert found.split == {}
        assert found.good
    assert len({meant[m.module] for m in grouped}) > 1


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_compressed_tensors_applies_the_formats_that_were_written(kind, tmp_path):
    """The library's own `apply_quantization_config` on the live model, from the file's groups."""
    recipe = mixed(kind, FORMATS["llm-compressor"])
    said = read_rules_file(file_of(recipe, "llm-compressor", tmp_path))
    modifier = said["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    model = built(kind)
    apply_quantization_config(model, QuantizationConfig(**modifier))
    found = {}
    for name, module in model.named_modules():
        if name in recipe.formats:
            scheme = getattr(module, "quantization_scheme", None)
            found[name] = "16" if scheme is None else _name(scheme)
    assert len(found) > len(recipe.groups) / 2
    assert found == {name: recipe.formats[name] for name in found}


def _name(scheme) -> str:
    weights = scheme_of_arguments(scheme.weights.model_dump())
    inputs = scheme.input_activations
    return weights.name + ("" if inputs is None else "+" + inputs_of_arguments(inputs.model_dump()).name)


@pytest.mark.parametrize("name", ["w4-g64", "int4-channel", "int8-tensor", "fp8", "fp8-block", "mxfp4", "nvfp4"])
def test_arguments_of_compressed_tensors_are_read_back(name):
    scheme = format_named(name).weights
    assert scheme_of_arguments(weight_arguments(scheme)) == scheme
    for inputs in ("int8", "fp8", "fp8-tensor", "fp8-g128", "mxfp4", "nvfp4"):
        rounded = format_named(f"fp8+{inputs}").inputs
        assert inputs_of_arguments(input_arguments(rounded)) == rounded


ENTRIES = (
    ["Linear"],
    ["re:.*down_proj", "model.layers.1.mlp.down_proj"],
    ["re:model.layers.1"],
    ["re:.*layers.[01]..*", "Linear"],
    ["re:.*_proj$", "re:.*o_proj$"],
    ["lm_head", "re:^model.*mlp", "Embedding"],
    ["down_proj"],
)


@pytest.mark.parametrize("entries", ENTRIES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3_next"])
def test_rules_that_others_wrote_match_what_compressed_tensors_matches(kind, entries):
    model, outline = built(kind), outlined(kind)
    groups = {f"group_{n}": {"targets": [entry], "weights": {"num_bits": n + 2}} for n, entry in enumerate(entries)}
    rules = rule_set({"config_groups": groups, "ignore": ["re:.*q_proj"]})
    rules = replace(rules, vllm=False)
    bits = {entry: f"int{n + 2}-tensor" for n, entry in enumerate(entries)}
    looked = 0
    for matrix in outline.matrices:
        try:
            module = model.get_submodule(matrix.module)
        except AttributeError:
            continue
        matched = match_targets(matrix.module, module, entries)
        ignored = is_match(matrix.module, module, "re:.*q_proj")
        assert rules.format_of(replace(matrix, stacked="")) == (bits[matched[0]] if matched and not ignored else "16")
        looked += 1
    assert looked > 10


SKIPS = (
    ["lm_head"],
    ["lm_head", "down_proj"],
    ["model.layers.1"],
    ["model.layers.1.mlp.down_proj", "model.layers.2.self_attn"],
    ["model.layers.*.self_attn"],
    ["mlp.gate"],
    ["gate_proj|up_proj"],
)


@pytest.mark.parametrize("entries", SKIPS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v2"])
def test_skip_lists_match_what_transformers_skips(kind, entries):
    rules = rule_set({"load_in_4bit": True, "llm_int8_skip_modules": entries})
    for matrix in outlined(kind).matrices:
        if "Linear" in matrix.kinds and not matrix.stacked:
            converted = should_convert_module(matrix.module, entries)
            assert rules.format_of(matrix) == ("nf4" if converted else "16"), matrix.module


def test_bitsandbytes_always_skips_the_head_and_has_one_format():
    recipe = mixed("qwen3_moe", FORMATS["bitsandbytes"])
    skipped = json.loads(written(replace(recipe, left_out=()), "bitsandbytes"))["config"]["llm_int8_skip_modules"]
    assert skipped[0] == "lm_head"
    experts = [group.name for group in recipe.groups if group.name.endswith("experts") and group.stored_as == "16"]
    assert experts
    assert set(experts) < set(skipped)
    assert all(not should_convert_module(name, skipped) for name in experts)
    with pytest.raises(StudfinderError, match="one format for all, and the recipe has int8-channel too"):
        written(mixed("llama", ("int4-g8", "int8-channel")), "bitsandbytes")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_header_names_the_model_and_what_decided(tool):
    text = written(mixed("llama", FORMATS[tool]), tool)
    for said in ("studfinder", "abc", "llama", "by turns".replace(" ", "_" if tool == "llama.cpp" else " ")):
        assert said in text


def test_llm_compressor_names_each_matrix_once():
    modifier = yaml.safe_load(written(mixed("mixtral", FORMATS["llm-compressor"]), "llm-compressor"))
    modifier = modifier["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    named = [name for group in modifier["config_groups"].values() for name in group["targets"]] + modifier["ignore"]
    assert len(named) == len(set(named)) == len(outlined("mixtral").matrices)
    assert not any(name.startswith("re:") for name in named)


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("llm-compressor", "int4-g8-float"),
        ("gptqmodel", "fp8"),
        ("gptqmodel", "int8-channel+int8"),
        ("auto-round", "int8-tensor-narrow"),
        ("auto-round", "int8-channel-zero"),
        ("torchao", "nvfp4"),
        ("modelopt", "int4-g8-zero"),
        ("mlx", "int4-channel"),
        ("bitsandbytes", "int3-g8"),
    ],
)
def test_what_a_tool_cannot_store_is_said_before_anything_is_written(tool, name):
    recipe = mixed("llama", ("int4-g8", "16"))
    recipe = replace(recipe, groups=tuple(replace(group, stored_as=name) for group in recipe.groups))
    with pytest.raises(StudfinderError, match="has no place for"):
        written(recipe, tool)


@pytest.mark.parametrize("tool", ["gptqmodel", "auto-round", "mlx", "bitsandbytes", "llama.cpp"])
def test_a_recipe_that_quantises_nothing_has_no_usual_format(tool):
    recipe = mixed("llama", ("int4-g8", "16"))
    recipe = replace(recipe, groups=tuple(replace(group, stored_as="16") for group in recipe.groups))
    with pytest.raises(StudfinderError, match="quantises nothing"):
        written(recipe, tool)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"config_groups": {"g": {"targets": ["re:("], "weights": {}}}}, "no regular expression"),
        ({"config_groups": [1]}, "config_groups is no mapping"),
        ({"config_groups": {"g": {"targets": [1]}}}, "no name"),
        ({"bits": 4, "dynamic": []}, None),
        ({"bits": 4, "dynamic": [1]}, "dynamic is no mapping"),
        ({"bits": 4, "dynamic": {"-:(": {}}}, "no regular expression"),
        ({"layer_config": [1]}, "layer_config is no mapping"),
        ({"quant_cfg": {"*": {}}}, "quant_cfg is no list"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "no list of names"),
        ({"load_in_4bit": True, "llm_int8_skip_modules": "lm_head"}, "no list of names"),
        ("blk.0=q4_k (=q8_0", "no regular expression"),
        ("blk.0=q4_k x=?", "is no rule"),
        ({"group_size": 64, "bits": "4"}, None),
        ({"model": 1}, "is no recipe of a tool"),
        ([1, 2], "is no recipe of a tool"),
        ("words", "is no recipe of a tool"),
    ],
    ids=str,
)
def test_what_is_no_rule_is_said_in_a_line(value, said):
    if said is None:
        rule_set(value)
        return
    with pytest.raises(StudfinderError, match=said) as raised:
        rule_set(value)
    assert "\n" not in str(raised.value)


def test_a_gguf_name_that_is_missing_is_named():
    recipe = mixed("llama", FORMATS["llama.cpp"])
    groups = (RecipeGroup(name="x.y", members=("x.y",), stored_as="16"), *recipe.groups)
    with pytest.raises(StudfinderError, match=r"x\.y has no name in GGUF"):
        written(replace(recipe, groups=groups), "llama.cpp")


def test_llama_cpp_takes_the_first_rule_and_searches_in_lower_case():
    matrices = outlined("llama").matrices
    rules = rule_set("ffn_down=q8_0 BLK\\.1\\.ffn_Down=q4_k attn=q6_k")
    formats = {matrix.gguf: rules.format_of(matrix) for matrix in matrices}
    assert formats["blk.1.ffn_down.weight"] == "q8_0"
    assert formats["blk.1.attn_q.weight"] == "q6_k"
    assert formats["blk.1.ffn_up.weight"] == "the type of the whole"
    found = checked_rules(rules, matrices, "llama")
    assert [rule.decides for rule in found.rules] == [5, 0, 20]


def test_a_recipe_is_a_record():
    recipe = mixed("mixtral", ("int4-g8", "16"))
    assert isinstance(recipe, Recipe)
    assert recipe.formats.keys() == {matrix.module for matrix in outlined("mixtral").matrices}
