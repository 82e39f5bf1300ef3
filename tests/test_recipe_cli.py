"""studfinder recipe: from a scan's findings or which-layer's table to files, and what a file matches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import studfinder as sf
from checkpoints import PROMPT
from proving import provable
from reciped import FORMATS, file_of, mixed
from studfinder.cli.app import run_cli
from studfinder.recipes import TOOLS, ImportanceSums, write_importance
from studfinder.records import Recipe, to_json
from tiny import tiny


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A folder with a model that has a proven super weight, and its scan."""
    folder = tmp_path_factory.mktemp("recipe")
    lm, *_ = provable("llama", planted=True)
    lm.model.save_pretrained(folder / "m")
    lm.tokenizer.save_pretrained(folder / "m")
    findings = sf.scan(sf.load(folder / "m"), prompts=[PROMPT], out=folder / "scan")
    assert findings.proven
    return folder, findings


def said(capsys, code: int, *arguments: object) -> str:
    assert run_cli(["recipe", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_what_is_proven_is_spared_and_its_fused_group_with_it(scanned, capsys, tmp_path):
    folder, findings = scanned
    tools = [word for tool in TOOLS for word in ("--for", tool)]
    out = tmp_path / "r"
    text = said(capsys, 0, "write", folder / "scan", *tools, "--group", 16, "--zero", "none", "--out", out)
    recipe = sf.read(out, Recipe)
    spared = {group.name for group in recipe.groups if group.stored_as == "16"}
    assert spared == {weight.parameter.removesuffix(".weight") for weight in findings.proven}
    assert all(str(findings.proven[0]) in group.why for group in recipe.groups if group.name in spared)
    assert {group.stored_as for group in recipe.groups} == {"16", "int4-g16"}
    assert recipe.model == findings.model
    assert recipe.run == findings.run
    assert "written" in text
    assert len(list(out.iterdir())) == 1 + len(TOOLS)
    for file in out.iterdir():
        odd = file.name == "auto-round.json"  # it leaves k and v whole, of a size that 32 does not divide
        text = said(capsys, int(odd), "check", file, folder / "m")
        assert "matches nothing" not in text
        assert ("splits a fused group" in text) == odd


def test_options_say_format_and_what_is_spared(scanned, capsys, tmp_path):
    folder, _ = scanned
    write = ("write", folder / "scan", "--out", tmp_path / "r")
    said(capsys, 0, *write, "--format", "fp8+fp8", "--spare-as", "int8-channel", "--for", "llm-compressor")
    assert {group.stored_as for group in sf.read(tmp_path / "r").groups} == {"fp8+fp8", "int8-channel"}
    said(capsys, 0, *write, "--bits", 8, "--group", "channel", "--spare", "none")
    assert {group.stored_as for group in sf.read(tmp_path / "r").groups} == {"int8-channel-zero"}
    said(capsys, 0, "write", tmp_path / "r" / "recipe.json", "--for", "gptqmodel", "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "gptqmodel.json").read_text())["bits"] == 8


def test_a_check_names_what_matches_nothing_and_what_is_split(scanned, capsys, tmp_path):
    folder, _ = scanned
    weights = {"num_bits": 4, "group_size": 16}
    groups = {
        "a": {"targets": ["re:.*q_proj"], "weights": weights},
        "b": {"targets": ["re:.*mlp.nowhere"], "weights": weights},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"config_groups": groups, "ignore": ["lm_head"]}))
    text = said(capsys, 1, "check", tmp_path / "r.yaml", folder / "m")
    assert "matches nothing: re:.*mlp.nowhere" in text
    assert "splits a fused group: model.layers.0.self_attn.q_proj+k_proj+v_proj (q_proj int4-g16, k_proj 16" in text
    found = json.loads(said(capsys, 1, "check", tmp_path / "r.yaml", folder / "m", "--json"))
    assert found["split"]["model.layers.0.self_attn.q_proj+k_proj+v_proj"]["model.layers.0.self_attn.k_proj"] == "16"
    assert found["default"] == "16"
    assert "model.layers.0.mlp.down_proj" in found["left_over"]


def test_a_finished_checkpoint_is_checked_from_config_and_index_alone(scanned, capsys, tmp_path):
    folder, _ = scanned
    sf.quantize(folder / "m", out=tmp_path / "w4", bits=4, group=16, skip=("*.0.mlp.down_proj",), verify=False)
    text = said(capsys, 0, "check", tmp_path / "w4", folder / "m")
    assert "int4-g16-zero" in text
    for file in tmp_path.glob("w4/*.safetensors"):
        file.unlink()  # no weight is needed
    assert (
        said(capsys, 0, "check", tmp_path / "w4", tmp_path / "w4").splitlines()[-1].endswith("no fused group is split")
    )


def test_a_mixture_is_checked_by_the_names_of_its_files(capsys, tmp_path):
    tiny("mixtral").model.save_pretrained(tmp_path / "m", max_shard_size="50KB")
    for file in tmp_path.glob("m/*.safetensors"):
        file.unlink()
    group = {
        "targets": ["re:.*experts.*", "re:.*self_attn.qkv_proj"],
        "weights": {"num_bits": 8, "strategy": "channel"},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"config_groups": {"a": group}}))
    found = json.loads(said(capsys, 0, "check", tmp_path / "r.yaml", tmp_path / "m", "--json"))
    by = {rule["rule"]: rule for rule in found["rules"]}
    assert by["re:.*experts.*"]["module"] > 0
    assert by["re:.*self_attn.qkv_proj"]["fused"] > 0
    assert by["re:.*self_attn.qkv_proj"]["module"] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("write", "SCAN", "--for", "llama"), "there is no tool 'llama'"),
        (("write", "SCAN", "--format", "int9"), "there is no scheme 'int9'"),
        (("write", "SCAN", "--format", "fp8", "--bits", "4"), "--format with --bits"),
        (("write", "SCAN", "--spare", "worst:2"), "of a scan"),
        (("write", "SCAN", "--spare-as", "int4-g7"), "do not divide"),
        (("write", "SCAN", "--zero", "half"), "--zero half"),
        (("write", "SCAN", "--model", "OTHER"), "qwen3 with 3 layers"),
        (("write", "nowhere"), "holds no record"),
        (("check", "nowhere.yaml", "MODEL"), "cannot be read"),
        (("check", "MODEL", "MODEL"), "is not quantised"),
        (("check", "JUNK", "MODEL"), "is no recipe of a tool"),
        (("check", "BROKEN", "MODEL"), "neither JSON nor YAML"),
        (("imatrix", "MODEL", "--out", "MODEL"), "MODEL"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(scanned, capsys, tmp_path, arguments, expected):
    folder, _ = scanned
    tiny("qwen3").model.save_pretrained(tmp_path / "other")
    (tmp_path / "junk").write_text("a: [1, 2]\n")
    (tmp_path / "broken").write_text("a: [1, 2\nb: {\n")
    places = {"SCAN": folder / "scan", "MODEL": folder / "m", "OTHER": tmp_path / "other"}
    places |= {"JUNK": tmp_path / "junk", "BROKEN": tmp_path / "broken"}
    text = said(capsys, 2, *(places.get(one, one) for one in arguments))
    assert str(places.get(expected, expected)) in text
    assert text.count("\n") == 1


def test_importance_sums_are_those_of_the_inputs(scanned, capsys, tmp_path):
    """Against hooks on the plain model, with and without first tokens."""
    from gguf import GGUFReader

    from studfinder.quantizers import calibration_windows

    folder, _ = scanned
    (tmp_path / "text.txt").write_text(" ".join(f"w{number % 50}" for number in range(600)))
    common = ("--calibration", tmp_path / "text.txt", "--samples", 3, "--length", 16)
    lm = sf.load(folder / "m")
    windows = calibration_windows(lm, tmp_path / "text.txt", count=3, length=16)[1]
    for flag, begin in (((), 0), (("--first-token-apart",), 1)):
        out = tmp_path / f"{begin}.gguf"
        said(capsys, 0, "imatrix", folder / "m", "--out", out, *common, *flag)
        seen: list[torch.Tensor] = []
        module = lm.model.get_submodule("model.layers.1.mlp.down_proj")
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0].double()))
        with torch.no_grad():
            for ids in windows:
                lm.model(torch.tensor([ids]))
        handle.remove()
        tensors = {tensor.name: tensor for tensor in GGUFReader(out).tensors}
        meant = sum(x[begin:].square().sum(dim=0) for x in seen)
        np.testing.assert_allclose(tensors["blk.1.ffn_down.weight.in_sum2"].data[0], meant.numpy(), rtol=1e-4)
        assert tensors["blk.1.ffn_down.weight.counts"].data.item() == 3 * (16 - begin)
        assert len(tensors) == 2 * 7 * len(lm.anatomy.layers)


def test_experts_of_a_layer_are_matrices_of_one_tensor(tmp_path):
    from gguf import GGUFReader

    from studfinder.quantizers.importance import importance_sums
    from studfinder.quantizers.targets import targets
    from studfinder.verbs.recipe_imatrix import _names, joined

    lm = tiny("mixtral")
    found = targets(lm)
    sums = importance_sums(lm, found, [[1, 5, 9, 3], [2, 8, 4, 7]], apart=False)
    tensors = joined(found, _names(lm, found), sums)
    one = tensors["blk.0.ffn_down_exps.weight"]
    routed = lm.model.config.num_experts_per_tok
    assert one.counts.sum() == 8 * routed
    write_importance(tmp_path / "x.gguf", tensors, datasets=["t"], chunks=2, length=4)
    read = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    np.testing.assert_allclose(read["blk.0.ffn_down_exps.weight.in_sum2"].data, one.sums, rtol=1e-6)
    assert isinstance(one, ImportanceSums)


def test_a_which_layer_table_spares_its_worst(capsys, tmp_path, monkeypatch):
    """The run in the docs, on a model of the same shape: names and layers are all that is asked."""
    run = Path(__file__).parent.parent / "docs/results/runs/quantize-which-layer-smollm2"
    from transformers import AutoConfig

    config = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536}
    config |= {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 300,
        "architectures": ["LlamaForCausalLM"],
    }
    AutoConfig.for_model(**config).save_pretrained(tmp_path / "m")
    text = said(capsys, 0, "write", run, "--model", tmp_path / "m", "--spare", "worst:2", "--out", tmp_path / "r")
    assert "16: model.layers.11.mlp.down_proj (KL " in text
    assert {group.layer for group in sf.read(tmp_path / "r").groups if group.stored_as == "16"} == {11, 29}


def test_a_recipe_that_was_written_by_hand_is_checked_too(scanned, capsys, tmp_path):
    folder, _ = scanned
    (tmp_path / "recipe.json").write_text(to_json(mixed("qwen3", FORMATS["gptqmodel"])))
    assert "matches nothing" in said(capsys, 1, "check", tmp_path / "recipe.json", folder / "m")
    path = file_of(mixed("qwen3", FORMATS["llama.cpp"]), "llama.cpp", tmp_path)
    assert "llama.cpp" in said(capsys, 1, "check", path, folder / "m")
