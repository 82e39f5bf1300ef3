"""Quantised checkpoints are read as the numbers that they mean, whole models as plain ones, damage in one line."""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import packers
from checkpoints import PROMPT
from exported import KINDS, config_of, model_of
from studfinder.cli.app import run_cli
from studfinder.edits import edited, neuron, zero
from studfinder.errors import StudfinderError, Unavailable
from studfinder.models import LM, load
from studfinder.models.files import Held
from studfinder.models.fingerprint import content_hash
from studfinder.models.headers import DTYPE_NAMES
from studfinder.models.lm import Source
from studfinder.models.load import _is_larger
from studfinder.models.memory import OWN
from studfinder.models.packed import plain_view
from studfinder.models.paging import mapped_spans
from studfinder.quantizers import RTN, SCHEMES, Scheme
from studfinder.quantizers.activations import WithActivations
from studfinder.records.loading import ReadConfig
from studfinder.verbs import quantize_scores
from studfinder.verbs.quantize import quantize
from tiny import token_ids, tokenizer

CASES = 60
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
SHELL = SimpleNamespace(base_model_prefix="model", named_modules=list)


def read(folder: Path, settings: dict, tensors: dict[str, torch.Tensor], dtype: torch.dtype, name: str) -> torch.Tensor:
    """One tensor of the plain view of a checkpoint."""
    save_file({one: tensor.contiguous() for one, tensor in tensors.items()}, folder / "w.safetensors")
    held = {one: Held(DTYPE_NAMES[t.dtype], tuple(t.shape), "w.safetensors") for one, t in tensors.items()}
    view = plain_view("m", settings, folder, held, dtype, SHELL)
    assert set(view.held) == set(view.state) == {name}
    found = view.state[name][...]
    assert view.held[name] == Held(DTYPE_NAMES[dtype], tuple(found.shape), "w.safetensors")
    return found


def under(module: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{module}.{leaf}": tensor for leaf, tensor in parts.items()}


# --- one matrix, number for number ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gptq", "gptq_v2", "auto_round:auto_gptq", "auto_round", "auto_round:gptqmodel"])
def test_gptq_codes_mean_what_was_packed(tmp_path, form):
    rng = random.Random(form)
    for case in range(CASES):
        bits, size = rng.choice((2, 3, 4, 5, 6, 7, 8)), rng.choice((-1, 8, 24, 32, 64))
        rows, columns, dtype = 32 * rng.randint(1, 3), 32 * rng.randint(1, 5), rng.choice((F16, BF16, F32))
        order, low = "round" not in form and rng.random() < 0.5, int(form in ("gptq", "auto_round:auto_gptq"))
        options = {"symmetric": rng.random() < 0.5, "order": order, "index": rng.random() < 0.5, "low": low}
        parts, meant = packers.gptq(rng, rows, columns, size, bits, **options)
        settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": form}
        if form.startswith("auto_round"):
            settings = {"quant_method": "auto-round", "bits": bits, "group_size": size, "packing_format": form}
        found = read(tmp_path, settings, under("a.b", parts), dtype, "a.b.weight")
        assert torch.equal(found, meant.to(dtype)), (case, bits, size, rows, columns, options)


@pytest.mark.parametrize("method", ["awq", "auto-round"])
def test_awq_codes_mean_what_was_packed(tmp_path, method):
    rng = random.Random(method)
    for case in range(CASES):
        size, dtype = rng.choice((-1, 16, 32, 128)), rng.choice((F16, BF16, F32))
        rows, columns = 8 * rng.randint(1, 12), rng.randint(1, 3) * (128 if size == -1 else size)
        parts, meant = packers.awq(rng, rows, columns, size, symmetric=rng.random() < 0.3)
        settings = {"quant_method": method, "bits": 4, "group_size": size, "version": "gemm"}
        settings |= {"packing_format": "auto_round:auto_awq"} if method == "auto-round" else {}
        found = read(tmp_path, settings, under("a.b", parts), dtype, "a.b.weight")
        assert torch.equal(found, meant.to(dtype)), (case, size, rows, columns)


def test_fp8_means_its_numbers_times_their_scales(tmp_path):
    rng = random.Random(0)
    for case in range(CASES):
        block = rng.choice(("tensor", "row", (16, 16), (8, 32), (1, 32), "expert"))
        shape = tuple(rng.randint(1, 5) * 8 + rng.choice((0, 0, 3)) for _ in "rc")
        shape = (rng.randint(2, 4), *shape) if block == "expert" or rng.random() < 0.2 else shape
        dtype, exponents = rng.choice((BF16, F32)), block == (1, 32) or rng.random() < 0.3
        stored, scale, meant = packers.fp8(
            rng, shape, block, dtype=rng.choice((torch.float8_e4m3fn, torch.float8_e5m2)), exponents=exponents
        )
        name, end = rng.choice((("a.weight", "_scale_inv"), ("a.weight", "_scale"), ("e.gate_up_proj", "_scale_inv")))
        settings = {"quant_method": "fp8", "weight_block_size": list(block) if isinstance(block, tuple) else None}
        settings |= {"weight_block_size": [128, 128]} if block == (1, 32) else {}
        tensors = {name: stored, name + end: scale, "a.activation_scale": torch.ones(())}
        if not name.startswith("a."):
            tensors.pop("a.activation_scale")
        found = read(tmp_path, settings, tensors, dtype, name)
        assert torch.equal(found, meant.float().to(dtype)), (case, block, shape, exponents)


def test_mxfp4_blocks_mean_their_numbers(tmp_path):
    rng = random.Random(1)
    for _ in range(20):
        experts, columns, rows = rng.randint(1, 4), 32 * rng.randint(1, 3), rng.randint(1, 40)
        blocks, scales, meant = packers.mxfp4(rng, experts, columns, rows)
        tensors = {"e.down_proj_blocks": blocks, "e.down_proj_scales": scales}
        found = read(tmp_path, {"quant_method": "mxfp4"}, tensors, BF16, "e.down_proj")
        assert torch.equal(found.double(), meant)


def packed_scheme(bits: int, size: int, symmetric: bool, targets: list[str]) -> dict:
    strategy = "channel" if size == -1 else "group"
    return {
        "targets": targets,
        "weights": {
            "num_bits": bits,
            "type": "int",
            "strategy": strategy,
            "group_size": None if size == -1 else size,
            "symmetric": symmetric,
        },
    }


def test_compressed_integers_mean_what_was_packed(tmp_path):
    rng = random.Random(2)
    for case in range(CASES):
        bits, size, symmetric = rng.choice((2, 3, 4, 8)), rng.choice((-1, 16, 32)), rng.random() < 0.5
        rows, columns, order = 32 * rng.randint(1, 3), 32 * rng.randint(1, 4), size > 0 and rng.random() < 0.3
        parts, meant = packers.compressed(rng, rows, columns, size, bits, symmetric=symmetric, order=order)
        settings = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": packed_scheme(bits, size, symmetric, ["Linear"])},
        }
        found = read(tmp_path, settings, under("a.b", parts), F16, "a.b.weight")
        assert torch.equal(found, meant.to(F16)), (case, bits, size, rows, columns, symmetric, order)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4 nested", "int8"])
def test_bitsandbytes_unpacks_its_own(tmp_path, kind):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 96, dtype=BF16)
    if kind == "int8":
        scale = weight.abs().amax(dim=1).float()
        codes = (weight.float() / scale[:, None] * 127).round().to(torch.int8)
        tensors = {"a.weight": codes, "a.SCB": scale, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
        meant = codes.double() * scale.double()[:, None] / 127
        settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        found = read(tmp_path, settings, tensors, F32, "a.weight")
        torch.testing.assert_close(found.double(), meant, rtol=1e-6, atol=0)
        return
    codes, state = functional.quantize_4bit(weight, quant_type=kind[:3], compress_statistics="nested" in kind)
    tensors = {"a.weight": codes, **under("a.weight", state.as_dict(packed=True))}
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    found = read(tmp_path, settings, tensors, BF16, "a.weight")
    assert torch.equal(found, functional.dequantize_4bit(codes, state))
    assert (found - weight).abs().max() < 1


def test_bitsandbytes_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    tensors = {"a.weight": torch.zeros(8, 1).byte(), "a.weight.quant_state.bitsandbytes__nf4": torch.zeros(3).byte()}
    with pytest.raises(Unavailable, match="pip install bitsandbytes"):
        read(tmp_path, {"quant_method": "bitsandbytes"}, tensors, BF16, "a.weight")


# --- whole models ---------------------------------------------------------------------------------------------------

MIXED = {  # AutoRound's: what differs from 4 bits in groups of 32, by name and by pattern; 16 bits is as it was
    "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 64},
    "model.layers.1.self_attn.q_proj": {"bits": 16, "data_type": "fp"},
    ".*layers\\.2\\.self_attn.*": {"bits": 2, "group_size": 16},
}


def _gptq(rng, name, rows, columns):
    return packers.gptq(rng, rows, columns, 32, 4, order=True)


def _three(rng, name, rows, columns):
    bits, size = (8, 64) if name.startswith("model.layers.1.") else (3, 32)
    if rows % 32 or columns % 32:
        return None
    return packers.gptq(rng, rows, columns, size, bits, low=0)


def _mixed(rng, name, rows, columns):
    if name in MIXED and MIXED[name]["bits"] == 16:
        return None
    own = MIXED.get(name) or (MIXED[".*layers\\.2\\.self_attn.*"] if ".2.self_attn" in name else {})
    return packers.gptq(rng, rows, columns, own.get("group_size", 32), own.get("bits", 4), index=False)


def _awq(rng, name, rows, columns):
    return packers.awq(rng, rows, columns, 32)


def _fp8(rng, name, rows, columns):
    if name.endswith("down_proj"):
        return None
    stored, scale, meant = packers.fp8(rng, (rows, columns), (48, 48))
    return {"weight": stored, "weight_scale_inv": scale, "activation_scale": torch.ones(())}, meant


def _compressed(rng, name, rows, columns):
    return packers.compressed(rng, rows, columns, *((32, 4) if "self_attn" in name else (16, 8)))


CT = {
    "format": "pack-quantized",
    "config_groups": {
        "a": packed_scheme(4, 32, True, [r"re:.*self_attn\..*"]),
        "b": packed_scheme(8, 16, True, ["Linear"]),
    },
}
METHODS = {
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}),
    "gptq dynamic": (
        _three,
        {
            "quant_method": "gptq",
            "checkpoint_format": "gptq_v2",
            "bits": 3,
            "group_size": 32,
            "dynamic": {"-:lm_head": {}, r"+:model\.layers\.1\.": {"bits": 8, "group_size": 64}, "down": {"bits": 2}},
        },
    ),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": True}),
    "auto-round": (
        _mixed,
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": 32,
            "packing_format": "auto_round:auto_gptq",
            "extra_config": MIXED,
        },
    ),
    "fp8": (_fp8, {"quant_method": "fp8", "weight_block_size": [48, 48], "activation_scheme": "dynamic"}),
    "compressed-tensors": (_compressed, {"quant_method": "compressed-tensors", **CT}),
}
BLOCKS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc")


def pack(folder: Path, kind: str, method: str, dtype: torch.dtype = BF16, **config: object) -> tuple[Path, Path]:
    """A checkpoint of random numbers that are packed, and a plain one of the same numbers."""
    packer, settings = METHODS[method]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05 + (0.9 if parameter.dim() == 1 else 0))
    model.save_pretrained(folder / "whole", max_shard_size="200KB")
    rng, plain, packed = random.Random(method), {}, {}
    conv = kind == "gpt2"
    for file in sorted((folder / "whole").glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            module = name.removesuffix(".weight")
            rows, columns = (tensor.shape[::-1] if conv else tensor.shape) if tensor.dim() == 2 else (0, 0)
            made = packer(rng, module, rows, columns) if module.rpartition(".")[2] in BLOCKS and rows else None
            if made is None:
                plain[name] = packed[name] = tensor
            else:
                packed |= under(module, made[0])
                plain[name] = (made[1].t() if conv else made[1]).to(dtype).contiguous()
    said = json.loads((folder / "whole" / "config.json").read_text())
    for which, tensors, more in (("packed", packed, {"quantization_config": settings}), ("plain", plain, {})):
        (folder / which).mkdir()
        (folder / which / "config.json").write_text(json.dumps({**said, **config, **more}))
        save_file(tensors, folder / which / "model.safetensors", metadata={"format": "pt"})
        tokenizer().save_pretrained(folder / which)
    return folder / "packed", folder / "plain"


def logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(token_ids()).logits


def check_same(found: LM, meant: LM) -> None:
    assert type(found.model) is type(meant.model)
    theirs = meant.model.state_dict()
    assert set(theirs) == set(found.model.state_dict())
    for name, tensor in found.model.state_dict().items():
        assert tensor.dtype is theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(logits(found), logits(meant))
    assert content_hash(found) == content_hash(meant)


MODELS = [(kind, method) for kind in ("llama", "qwen3_moe") for method in METHODS]
MODELS += [(kind, method) for kind in ("gpt2", "gemma3") for method in ("gptq", "awq")]


@pytest.mark.parametrize(("kind", "method"), MODELS)
def test_a_model_is_the_plain_one_of_the_same_numbers(tmp_path, capsys, kind, method):
    packed, plain = pack(tmp_path, kind, method, BF16 if method != "compressed-tensors" else F16)
    found, meant = load(packed), load(plain)
    check_same(found, meant)
    assert found.source.folder == packed
    (note,) = found.source.notes
    assert note.startswith(f"quantised by {method.split()[0]}, dequantised to ")
    assert ("inputs, which engines round" in note) == (method == "fp8")
    assert note in capsys.readouterr().err
    assert getattr(found.model.config, "quantization_config", None) is None
    found.model.save_pretrained(tmp_path / "again")
    check_same(load(tmp_path / "again"), meant)


@pytest.mark.parametrize(("kind", "method"), MODELS)
def test_one_that_is_larger_than_memory_is_mapped_from_a_copy(tmp_path, capsys, cache, kind, method):
    packed, _ = pack(tmp_path, kind, method)
    found = load(packed, own_names=True)
    check_same(found, load(packed))
    assert found.source.quantised is not None
    assert mapped_spans(found.model)
    assert "dequantised to bfloat16" in capsys.readouterr().err
    check_same(load(packed, own_names=True, dtype="float32"), load(packed, dtype="float32"))
    (written,) = (cache / "unpacked").glob("*/config.json")  # the one before gave way
    assert "quantization_config" not in json.loads(written.read_text())
    load(packed, own_names=True, dtype="float32")
    assert "once" not in capsys.readouterr().err.rpartition("float32")[2]


def test_what_is_quantised_takes_more_memory_than_its_files(tmp_path):
    for method in METHODS:
        packed, plain = pack(tmp_path / method, "llama", method)
        size = sum(path.stat().st_size for path in plain.glob("*.safetensors"))
        source, how = Source("m", "a local folder", packed), ReadConfig()
        assert _is_larger(source, how, OWN + size * 3 // 4, ask=False)
        assert not _is_larger(source, how, OWN + 2 * size, ask=False)


def test_parts_of_a_matrix_may_lie_in_several_shards(tmp_path):
    packed, plain = pack(tmp_path, "llama", "gptq")
    tensors = load_file(packed / "model.safetensors")
    (packed / "model.safetensors").unlink()
    where = {name: f"model-0000{at % 3}-of-00003.safetensors" for at, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == file}, packed / file)
    (packed / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for options in ({}, {"device_map": "auto"}, {"attention": "eager"}):
        check_same(load(packed, **options), load(plain, **options))


def test_the_config_of_a_wrappers_text_may_say_it(tmp_path):
    packed, plain = pack(tmp_path, "gemma3", "awq")
    config = json.loads((packed / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (packed / "config.json").write_text(json.dumps(config))
    check_same(load(packed), load(plain))


def test_a_repository_of_the_hub(tmp_path, monkeypatch):
    """As its client keeps it: everything there, and no network."""
    packed, plain = pack(tmp_path, "llama", "awq")
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(packed, repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = load("some/model")
    check_same(found, load(plain))
    assert (found.source.revision, found.source.quantised) == ("c" * 40, "awq")


QUICK = ("llama", "gemma3", "remote")
WRITTEN = [kind for kind in KINDS if kind != "gpt2"]  # its Conv1Ds go into dense checkpoints only


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.deep) for k in WRITTEN])
def test_what_quantize_wrote_is_read_as_plain_transformers_runs_it(tmp_path, kind):
    lm, trust = model_of(kind, tmp_path / "m"), {"trust_remote_code": kind == "remote"}
    schemes = [*SCHEMES.values(), Scheme(block=64, zero="integer"), Scheme(element="int3", block=32)]
    scheme = random.Random(kind).choice(schemes)
    quantize(lm, RTN(scheme=scheme), out=tmp_path / "q", verify=False)
    ours, theirs = load(tmp_path / "q", **trust), AutoModelForCausalLM.from_pretrained(tmp_path / "q", **trust).eval()
    with torch.no_grad():
        assert torch.equal(logits(ours), theirs(token_ids()).logits), scheme


def test_that_inputs_are_not_rounded_is_said(tmp_path):
    method = WithActivations(weights=RTN(scheme=Scheme(element="int8", block="channel")))
    quantize(model_of("llama", tmp_path), method, out=tmp_path / "q", verify=False)
    assert "inputs, which engines round as it runs, are not rounded" in load(tmp_path / "q").source.notes[0]


def test_a_score_of_what_was_written_rounds_inputs_as_transformers_does(tmp_path, monkeypatch):
    lm = model_of("llama", tmp_path)
    method = WithActivations(weights=RTN(scheme=Scheme(element="int8", block="channel")))
    quantize(lm, method, out=tmp_path / "q", verify=False)
    scored = []
    monkeypatch.setattr(quantize_scores, "windows_of", lambda *_, **__: ("text", token_ids()))
    monkeypatch.setattr(quantize_scores, "between", lambda _, made, __: scored.append(logits(made)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize_scores.scores_of(lm, tmp_path / "q")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q").eval()
    with torch.no_grad():
        assert torch.equal(scored[0], theirs(token_ids()).logits)
    assert not torch.equal(scored[0], logits(load(tmp_path / "q")))


def test_the_dtype_is_the_configs_or_the_one_asked_for(tmp_path):
    packed, _ = pack(tmp_path, "llama", "gptq", F16)
    config = json.loads((packed / "config.json").read_text())
    assert load(packed).dtype is F16
    assert load(packed, dtype="float32").dtype is F32
    (packed / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    assert load(packed).dtype is BF16


def test_gpt_oss_in_mxfp4(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("gpt_oss"), dtype=BF16)
    model.save_pretrained(tmp_path / "plain")
    rng, plain = random.Random(0), load_file(tmp_path / "plain" / "model.safetensors")
    packed = dict(plain)
    for name in [n for n in plain if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales, meant = packers.mxfp4(rng, *plain[name].shape)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        del packed[name]
        plain[name] = meant.to(BF16)
    assert len(packed) > len(plain)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    (tmp_path / "packed").mkdir()
    settings = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps({**config, **settings}))
    save_file(packed, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    check_same(load(tmp_path / "packed"), load(tmp_path / "plain"))


def test_a_dequantised_copy_is_edited_and_taken_back(tmp_path):
    lm = load(pack(tmp_path, "llama", "gptq")[0])
    before = logits(lm)
    with edited(lm, zero(neuron(lm, 1, 3))):
        assert not torch.equal(logits(lm), before)
    assert torch.equal(logits(lm), before)


def test_an_adapter_is_merged_into_a_dequantised_base(tmp_path):
    peft = pytest.importorskip("peft")
    packed, plain = pack(tmp_path, "llama", "gptq")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        peft.get_peft_model(load(plain).model, config).save_pretrained(tmp_path / "lora")
    merged = {}
    for base in (packed, plain):
        described = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        (tmp_path / "lora" / "adapter_config.json").write_text(
            json.dumps({**described, "base_model_name_or_path": str(base)})
        )
        merged[base] = load(tmp_path / "lora", merge_adapter=True)
    check_same(merged[packed], merged[plain])
    assert merged[packed].source.quantised == "gptq"


def test_the_command_line_says_what_was_done(tmp_path, capsys, monkeypatch, cache, undrawn):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path, "llama", "awq")
    assert run_cli(["scan", "packed", "--no-prove", "--prompt", PROMPT, "--out", "s"]) == 0
    note = "quantised by awq, dequantised to bfloat16 in memory: 21 matrices (int4 in groups of 32)"
    assert note in capsys.readouterr().err
    assert json.loads((tmp_path / "s" / "findings.json").read_text())["model"]["notes"] == [note]
    (tmp_path / "t.txt").write_text("w3 w4 w5 w6 w7 w8 w9 " * 10)
    words = ["measure", "packed", "--against", "plain", "--measures", "perplexity:t.txt", "--out", "r"]
    assert run_cli(words) == 0


# --- what is refused ------------------------------------------------------------------------------------------------


def _without(end):
    return lambda w: {n: t for n, t in w.items() if n != f"model.layers.1.mlp.down_proj.{end}"}


def _changed(end, how):
    name = f"model.layers.1.mlp.down_proj.{end}"
    return lambda w: {**w, name: how(w[name]).contiguous()}


DAMAGE = {
    "no scales": ("gptq", _without("scales"), r"holds .*down_proj.qweight but no .*down_proj.scales"),
    "no zeros": ("awq", _without("qzeros"), r"holds .*down_proj.qweight but no .*down_proj.qzeros"),
    "no codes": ("gptq", _without("qweight"), r"holds .*down_proj.qzeros but no .*down_proj.qweight"),
    "fewer groups": ("awq", _changed("scales", lambda t: t[:-1]), r"down_proj.qzeros of .* is I32 of"),
    "other columns": ("gptq", _changed("g_idx", lambda t: t[:-4]), r"down_proj.g_idx of .* is I32 of 252"),
    "a group too far": ("gptq", _changed("g_idx", lambda t: t + 5), "cannot be unpacked .*groups 5 to 12 of 8"),
    "other codes": ("gptq", _changed("qweight", lambda t: t[:, :-1]), r"down_proj.qweight of .* is I32 of"),
    "shorter codes": ("gptq", _changed("qweight", lambda t: t[:-1]), r"down_proj.g_idx of .* is I32 of 256"),
    "codes of floats": ("awq", _changed("qweight", lambda t: t.float()), r"down_proj.qweight of .* is F32 of"),
    "scales of one axis": ("gptq", _changed("scales", lambda t: t[0]), r"down_proj.scales of .* is F16 of 128"),
    "no fp8 scale": ("fp8", lambda w: {n: t for n, t in w.items() if "1.mlp.up_proj.weight_s" not in n}, "but no .*up"),
    "no fp8 weight": (
        "fp8",
        lambda w: {n: t for n, t in w.items() if n[13:] != "1.mlp.up_proj.weight"},
        r"holds .*up_proj.weight_scale_inv but no .*up_proj.weight;",
    ),
    "fp8 scales of more": (
        "fp8",
        lambda w: {n: torch.cat([t, t]) if "1.mlp.up_proj.weight_s" in n else t for n, t in w.items()},
        r"up_proj.weight_scale_inv of .* is F32 of 12 x 3",
    ),
    "no shape": ("compressed-tensors", _without("weight_shape"), "but no .*down_proj.weight_shape"),
    "no scale": ("compressed-tensors", _without("weight_scale"), "but no .*down_proj.weight_scale"),
    "shorter words": (
        "compressed-tensors",
        _changed("weight_packed", lambda t: t[:, 1:]),
        "down_proj.weight_packed of",
    ),
    "fewer scales": ("compressed-tensors", _changed("weight_scale", lambda t: t[:, :1]), "down_proj.weight_scale of"),
    "another width": (
        "awq",
        lambda w: {n: t[:, : -len(t[0]) // 2] if "1.mlp.up_proj" in n else t for n, t in w.items()},
        r"up_proj.weight of .* is 128 x 128, but the model wants 256 x 128",
    ),
    "a matrix lost": (
        "gptq",
        lambda w: {n: t for n, t in w.items() if ".1.mlp.up_proj." not in n},
        "1 of .* not in .* would be random .*1.mlp.up_proj.weight",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A packed checkpoint of each method that DAMAGE names, made once."""
    return {
        method: pack(tmp_path_factory.mktemp("made"), "llama", method)[0] for method in {d[0] for d in DAMAGE.values()}
    }


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_in_one_line(made, tmp_path, mistake, what):
    method, damaged, words = DAMAGE[what]
    shutil.copytree(made[method], tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file({n: t.contiguous() for n, t in damaged(load_file(file)).items()}, file, metadata={"format": "pt"})
    assert re.search(words, mistake("scan", tmp_path / "m"))


def tampered(rng: random.Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One tensor of a packed matrix lost, cut, grown, renamed, or of another dtype."""
    parts = [name for name in tensors if "proj." in name and not name.endswith("activation_scale")]
    name = rng.choice([name for name in parts if not (name.endswith("weight") and tensors[name].dtype is BF16)])
    tensor, rest = tensors[name], {one: t for one, t in tensors.items() if one != name}
    way = rng.choice(("lost", "cut", "grown", "renamed", "cast") if tensor.dim() else ("lost", "renamed"))
    if way == "lost":
        return rest
    if way == "renamed":
        return {**rest, name.replace("proj.", rng.choice(("proj2.", "proj.base_layer."))): tensor}
    if way == "cast":
        return {**rest, name: tensor.float().bfloat16() if tensor.dtype not in (F16, F32) else tensor.to(torch.int32)}
    axis = rng.randrange(tensor.dim())
    size = tensor.shape[axis]
    keep = rng.randrange(size) if way == "cut" else size
    more = tensor.narrow(axis, 0, 1) if way == "grown" else tensor.narrow(axis, 0, 0)
    return {**rest, name: torch.cat([tensor.narrow(axis, 0, keep), more], axis)}


@pytest.mark.parametrize("cases", [40, pytest.param(400, marks=pytest.mark.deep)])
def test_no_damage_is_silent(made, tmp_path, cases):
    rng = random.Random(cases)
    for case in range(cases):
        folder, method = tmp_path / "m", rng.choice(sorted(made))
        shutil.copytree(made[method], folder, dirs_exist_ok=True)
        save_file(tampered(rng, load_file(made[method] / "model.safetensors")), folder / "model.safetensors")
        with pytest.raises(StudfinderError) as said:
            load(folder)
            print(case, method)
        assert "\n" not in str(said.value)


REFUSED = {
    "hqq": ({"quant_method": "hqq"}, "'hqq' .* Take it back to floats with its package, hqq"),
    "quark": ({"quant_method": "quark"}, "'quark' .* its package, amd-quark"),
    "nameless": ({"bits": 4}, "a method without a name"),
    "bitsandbytes of old": ({"load_in_8bit": True}, "quantised by bitsandbytes, but its files hold nothing"),
    "marlin": ({"quant_method": "gptq", "checkpoint_format": "marlin", "bits": 4}, "GPTQ's 'marlin' format"),
    "gemv": ({"quant_method": "awq", "version": "gemv", "bits": 4}, "AWQ's 'gemv' packing"),
    "9 bits": ({"quant_method": "gptq", "bits": 9, "group_size": 32}, r"9 bits a weight \(model"),
    "no bits": ({"quant_method": "gptq", "group_size": 32}, "None bits a weight"),
    "other bits": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "qzeros of .* for 128 zeros of 8 bits"),
    "no groups": ({"quant_method": "gptq", "bits": 4}, "groups of None"),
    "other groups": ({"quant_method": "awq", "bits": 4, "group_size": 32}, "qweight of"),
    "AutoRound's fp8": (
        {"quant_method": "auto-round", "bits": 8, "data_type": "fp8", "packing_format": "auto_round:fp8_static"},
        "AutoRound's 'fp8' numbers",
    ),
    "AutoRound's mixed floats": (
        {"quant_method": "auto-round", "bits": 4, "extra_config": {"a.b": {"data_type": "mx_fp"}}},
        r"AutoRound's 'mx_fp' numbers \(a.b\)",
    ),
    "AutoRound's inputs": ({"quant_method": "auto-round", "bits": 4, "act_bits": 8}, "rounded inputs"),
    "AutoRound's rotations": ({"quant_method": "auto-round", "bits": 4, "rotation_config": {"a": 1}}, "rotations"),
    "AutoRound's others": (
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:mlx"},
        "'mlx' packing",
    ),
    "sparse": (
        {"quant_method": "compressed-tensors", **CT, "sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config",
    ),
    "rotated": (
        {"quant_method": "compressed-tensors", **CT, "transform_config": {"config_groups": {}}},
        "transform_conf",
    ),
    "no config of its": ({"quant_method": "compressed-tensors", "config_groups": {"a": 3}}, "not compressed-tensors'"),
    "nothing packed": ({"quant_method": "mxfp4"}, "its files hold nothing of that"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_named(made, tmp_path, mistake, what):
    settings, words = REFUSED[what]
    shutil.copytree(made["gptq"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    assert re.search(words, mistake("scan", tmp_path / "m"))
