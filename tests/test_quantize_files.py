"""Round to nearest from file to file: what it makes is what the model in memory gives, and no model is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from architected import TYPES, built
from checkpoints import checkpoint
from scanned import findings_for
from studfinder.cli.app import run_cli
from studfinder.edits import Selection, Weights
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.models.places import source_named
from studfinder.quantizers import RTN, MassiveRows, Scheme, hold_out, skip
from studfinder.quantizers.experts import slices_of
from studfinder.quantizers.source import open_files
from studfinder.records import MassiveValue
from studfinder.verbs import quantize_plan
from studfinder.verbs.quantize import quantize
from tiny import tiny, tokenizer

BF16 = torch.bfloat16
CHANNEL = RTN(scheme=Scheme(element="int4", block="channel", zero="none", scale="bfloat16"))
DOWN = "model.layers.1.mlp.down_proj.weight"
REFUSED = {
    **dict.fromkeys(("gpt-sw3", "gpt2", "openai-gpt"), "as Conv1D does"),
    **dict.fromkeys(("inkling_mm_model", "qianfan_ocr"), r"\(source keys"),
    **dict.fromkeys(("llama4", "llama4_text"), r"experts\.0\.down_proj\.weight is missing in it"),
}
"""Types that cannot be compressed, as in test_quant_architectures.py; dense they can be written."""
UNREADABLE = {"shieldgemma2": "would be random", "inkling2": "is quantised already"}
"""Types whose tiny checkpoints `load` refuses."""


@pytest.fixture
def unloaded(monkeypatch):
    """How often a model was loaded, and how."""
    seen: list[dict] = []

    def counted(model, config, **more):
        seen.append(more)
        return load(model, **more)

    monkeypatch.setattr(quantize_plan, "load_as", counted)
    return seen


def check_same(files: Path, memory: Path) -> None:
    """Two checkpoints load as the same numbers."""
    found, wanted = load(files).model.state_dict(), load(memory).model.state_dict()
    assert list(found) == list(wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


SHORT = ("bailing_hybrid", "deepseek_v3", "gpt2", "hrm_text", "hy_v4", "llama", "llava", "mixtral", "step3p7", "zamba2")
"""Convolutions that are joined beside experts, experts, matrices (in, out), one matrix for four, some in fp32, nothing
at all, other names, other names of experts, experts that are split, and shared blocks."""


@pytest.mark.parametrize("format", ["auto", "dense"])
@pytest.mark.parametrize("kind", [k if k in SHORT else pytest.param(k, marks=pytest.mark.deep) for k in TYPES])
def test_every_type_is_quantised_from_its_files(tmp_path, cache, kind, format, unloaded):
    folder = tmp_path / "m"
    built(kind, dtype=BF16).save_pretrained(folder)
    refused = UNREADABLE | (REFUSED if format == "auto" else {})
    options = {"format": format, "verify": kind in refused}
    if kind in refused:
        with pytest.raises(StudfinderError, match=refused[kind]):
            quantize(str(folder), CHANNEL, out=tmp_path / "files", **options)
        assert not (tmp_path / "files").exists()
        return
    done = quantize(str(folder), CHANNEL, out=tmp_path / "files", **options)
    assert unloaded == []
    other = quantize(load(folder), CHANNEL, out=tmp_path / "memory", verify=False, format=format)
    assert (done.bits, done.quantized, done.skipped) == (pytest.approx(other.bits), other.quantized, other.skipped)
    check_same(tmp_path / "files", tmp_path / "memory")


def unnamed(tensors: dict) -> dict:
    """As many hold GPT-2: without its name in front."""
    return {name.removeprefix("transformer.").removeprefix("model."): one for name, one in tensors.items()}


def single(tensors: dict) -> dict:
    return {name: one.float() for name, one in tensors.items()}


@pytest.mark.parametrize("format", ["auto", "dense"])
@pytest.mark.parametrize(
    ("kind", "change"), [("gpt2", unnamed), ("llama", unnamed), ("llama", single), ("qwen3_moe", single)]
)
def test_tensors_of_other_names_and_dtypes_are_rounded_as_they_are_loaded(tmp_path, kind, change, format, unloaded):
    folder = checkpoint(tmp_path / "m", kind, dtype=BF16)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if kind == "gpt2" and format == "auto":
        with pytest.raises(StudfinderError, match="as Conv1D does"):
            quantize(folder, CHANNEL, out=tmp_path / "files")
        return
    done = quantize(folder, CHANNEL, out=tmp_path / "files", format=format)
    assert "tensors bit-equal" in done.verified
    assert unloaded == []
    quantize(load(folder), CHANNEL, out=tmp_path / "memory", verify=False, format=format)
    check_same(tmp_path / "files", tmp_path / "memory")


def test_a_converted_tensor_may_come_from_several_shards(tmp_path, cache, unloaded):
    folder = tmp_path / "m"
    built("bailing_hybrid", dtype=BF16).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 10
    quantize(folder, CHANNEL, out=tmp_path / "files", verify=False)
    assert unloaded == []
    quantize(load(folder), CHANNEL, out=tmp_path / "memory", verify=False)
    check_same(tmp_path / "files", tmp_path / "memory")


def test_what_does_not_belong_together_is_not_opened(tmp_path):
    folder = tmp_path / "m"
    built("hrm_text", dtype=BF16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "gqkv" in name)
    save_file({**tensors, name: tensors[name][:-3].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudfinderError):
        open_files(source_named(str(folder)), folder)


COMMIT = "c" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A model of the hub in its client's cache, without network; gives its snapshot."""
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(checkpoint(tmp_path / "m", dtype=BF16), snapshot)
    (snapshot / "LICENSE").write_text("terms")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_id_is_quantised_from_its_files(tmp_path, hub, revision, unloaded):
    options = [] if revision is None else ["--revision", revision]
    assert run_cli(["quantize", "some/model", "--method", "rtn", "--out", str(tmp_path / "out"), *options]) == 0
    assert unloaded == []
    record = json.loads((tmp_path / "out" / "studfinder.json").read_text())
    assert (record["model"], record["origin"]) == ("some/model", f"the Hugging Face hub, commit {COMMIT}")
    assert "tensors bit-equal" in record["verified"]
    assert {"LICENSE", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    quantize(str(hub), out=tmp_path / "local", verify=False)
    assert (tmp_path / "local" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    quantize("some/model", out=tmp_path / "out", revision=revision)  # which is finished
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("asked", ["some/other", "no such folder/at/all", ""])
def test_what_is_not_there_is_said_as_load_says_it(tmp_path, hub, asked):
    with pytest.raises(StudfinderError) as one:
        load(asked)
    with pytest.raises(StudfinderError) as other:
        quantize(asked, out=tmp_path / "out")
    assert str(one.value) == str(other.value)


def findings(folder: Path):
    places = [(DOWN, (3, 4), "proven"), (DOWN.replace("1", "0"), (5, 6), "inert")]
    values = [MassiveValue(layer=1, tensor=one, head=0, dim=1, norm=1.0, ratio=9.0) for one in ("query", "key")]
    return replace(findings_for(load(folder), places), massive_values=tuple(values))


KEEPS = {
    "proven": lambda found: found,
    "all": lambda found: Selection(found, "all"),
    "columns": lambda found: hold_out(found, columns=True),
    "massive": lambda found: MassiveRows(findings=found),
    "a name": lambda found: "layers.1 down_proj[3, 4]",
    "weights": lambda found: Weights(parameter=DOWN, entries=((3, None),)),
    "a share": lambda found: hold_out(fraction=0.01),
    "several": lambda found: [found, skip("*.0.mlp.up_proj"), hold_out("layers.1 down_proj[7, 8]")],
}


@pytest.mark.parametrize("format", ["auto", "dense"])
@pytest.mark.parametrize("keep", KEEPS)
def test_what_is_kept_is_kept_from_file_to_file(tmp_path, cache, keep, format, unloaded):
    folder = checkpoint(tmp_path / "m", dtype=BF16)
    kept = KEEPS[keep](findings(folder))
    if (keep, format) == ("a share", "auto"):
        with pytest.raises(StudfinderError, match="every matrix has numbers to hold out"):
            quantize(folder, CHANNEL, keep=kept, out=tmp_path / "files", format=format)
        return
    done = quantize(folder, CHANNEL, keep=kept, out=tmp_path / "files", format=format)
    assert unloaded == [{"own_names": True}]  # mapped
    assert "tensors bit-equal" in done.verified
    other = quantize(load(folder), CHANNEL, keep=kept, out=tmp_path / "memory", format=format)
    for field in ("bits", "quantized", "skipped", "instead", "kept", "notes"):
        assert getattr(done, field) == getattr(other, field), field
    check_same(tmp_path / "files", tmp_path / "memory")


def test_findings_of_another_model_are_refused(tmp_path, cache):
    folder = checkpoint(tmp_path / "m", dtype=BF16)
    found = findings(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudfinderError, match="the findings are of"):
        quantize(folder, CHANNEL, keep=found, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_experts_that_are_fused_in_memory_single_numbers_are_kept(tmp_path, cache, unloaded):
    folder = tmp_path / "m"
    tiny("qwen3_moe", dtype=BF16).model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    kept = hold_out(Weights(parameter="model.layers.1.mlp.experts.down_proj", entries=((2, 3, 4),)))
    quantize(folder, CHANNEL, keep=kept, out=tmp_path / "files", format="dense")
    assert unloaded == [{"own_names": True}]
    assert len(list((cache / "own-names").glob("*-*"))) == 1
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "files"))
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    assert before[name][3, 4] == after[name][3, 4]
    assert not torch.equal(before[name], after[name])
    quantize(load(folder), CHANNEL, keep=kept, out=tmp_path / "memory", format="dense", verify=False)
    check_same(tmp_path / "files", tmp_path / "memory")


def test_experts_of_any_size_are_told_apart_without_memory():
    """A quarter of a terabyte, if every number of them had a number."""
    sizes = {"hidden_size": 65536, "moe_intermediate_size": 2048, "num_experts": 128, "num_hidden_layers": 1}
    config = AutoConfig.for_model("qwen3_moe", **sizes, num_attention_heads=2, head_dim=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [f"model.layers.0.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")]
    found = slices_of(SimpleNamespace(model=model), names)
    assert len(found) == 3 * 128
    assert {(one.first, one.rows) for one in found} == {(0, 2048), (2048, 2048), (0, 65536)}


@pytest.mark.parametrize(
    "options", [{"score": True}, {"transforms": "rotate"}, {"dtype": "float32"}, {"method": "gptq"}], ids=str
)
def test_what_has_to_run_the_model_loads_it(tmp_path, options, monkeypatch):
    from studfinder.quantizers import Rotate

    folder = checkpoint(tmp_path / "m", dtype=BF16)
    options = {**options, **({"transforms": Rotate()} if "transforms" in options else {})}

    def loading(*_, **__):
        raise StudfinderError("it is loaded")

    monkeypatch.setattr(quantize_plan, "load_as", loading)
    with pytest.raises(StudfinderError, match="it is loaded"):
        quantize(folder, out=tmp_path / "out", **options)
