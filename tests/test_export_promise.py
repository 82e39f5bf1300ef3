"""What quantize writes is what plain transformers loads: every scheme on every family; damage is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from checkpoints import checkpoint
from exported import FUSED, KINDS, image_logits, model_of, reloaded
from studfinder.errors import StudfinderError
from studfinder.models import Source, load
from studfinder.models.beside import own_code, put_beside
from studfinder.quantizers import RTN, SCHEMES, Clip, Scheme, quantized, skip, targets
from studfinder.quantizers.activations import WithActivations
from studfinder.quantizers.export import FORMATS, quantization_config
from studfinder.quantizers.verify import compare_logits, fresh, meant_of, verify
from studfinder.verbs.quantize import quantize
from tiny import tiny, token_ids, tokenizer

BF16 = torch.bfloat16
W4 = RTN(scheme=Scheme(block=16, zero="integer"), clip=Clip(steps=3))
NO_PLACE = ("does not hold", "no place", "no smaller last block", "Conv1D")


def lists(folder: Path) -> tuple[list[str], list[str]]:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    return settings["config_groups"]["group_0"]["targets"], settings["ignore"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
def test_targets_and_ignore_cover_every_linear_by_its_name(tmp_path, kind):
    lm = model_of(kind, tmp_path / "source")
    done = quantize(lm, RTN(scheme=SCHEMES["w4-g128"]), keep=skip(targets(lm)[3].ref.module), out=tmp_path / "out")
    chosen, ignored = lists(tmp_path / "out")
    linear = {name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)}
    assert not set(chosen) & set(ignored)
    assert linear == set(chosen) | set(ignored)
    assert len(chosen) == done.quantized
    assert "bit-equal" in done.verified
    assert done.verified in (tmp_path / "out" / "README.md").read_text()


def test_the_linears_that_are_no_targets_are_there_at_all(tmp_path):
    for kind, names in {
        "opt-350m": ("model.decoder.project_in", "model.decoder.project_out"),
        "gemma3": ("model.vision_tower.encoder.layers.0.mlp.fc1",),
        "remote": ("gate.inner", "heads.1"),
    }.items():
        lm = model_of(kind, tmp_path / kind)
        modules = {name.replace(".vision_model", "") for name, _ in lm.model.named_modules()}
        assert set(names) <= modules
        assert not {f"{name}.weight" for name in names} & {target.name for target in targets(lm)}


@pytest.mark.parametrize("kind", FUSED)
def test_fused_experts_are_stored_apart_where_transformers_fuses_them_else_whole(tmp_path, kind):
    done = quantize(tiny(kind, dtype=BF16), RTN(scheme=Scheme(block=16)), out=tmp_path / "out")
    assert "bit-equal" in done.verified
    assert any("of experts stay in bfloat16" in note for note in done.notes) == (kind == "gpt_oss")


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
def test_every_scheme_in_every_format_gives_the_logits_in_memory(tmp_path, kind):
    lm, ids = model_of(kind, tmp_path / "source"), token_ids()
    folders, expected, formats = [], [], {}
    for name, scheme in SCHEMES.items():
        for format in FORMATS:
            out = tmp_path / f"{name}-{format}"
            try:
                quantize(lm, RTN(scheme=scheme), out=out, format=format)
            except StudfinderError as error:
                if any(words in str(error) for words in NO_PLACE):
                    continue
                raise
            formats.setdefault(name, []).append(format)
            folders.append(out)
            with quantized(lm, RTN(scheme=scheme)), torch.no_grad():
                found = {"logits": lm.model(input_ids=ids, use_cache=False).logits}
                if kind == "gemma3":
                    found["image"] = image_logits(lm.model)
            expected.append(found)
    assert all(len(found) >= (1 if kind == "gpt2" else 2) for found in formats.values())
    assert len(formats) == len(SCHEMES)
    for folder, found, wanted in zip(folders, reloaded(folders, ids), expected, strict=True):
        for what in wanted:
            assert torch.equal(found[what], wanted[what]), (folder.name, what)
            assert torch.isfinite(found[what]).all()


@pytest.mark.real
def test_a_user_s_checkpoint_is_loaded_in_a_process_of_its_own(tmp_path, fresh_process):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    done = quantize(source, W4, out=tmp_path / "out")
    assert "in a process of its own: 30 tensors bit-equal, the logits of 4 windows of 32 tokens finite" in done.verified
    damage(tmp_path / "out", "flip", random.Random(0))
    ask = {"ids": [[3, 4]], "trust": False, "attention": None, "blocks": None, "variant": False, "threads": 1}
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(StudfinderError, match="cannot load and run it"):
        fresh(tmp_path / "out", ask)


def test_it_can_be_left_out_and_the_card_says_so(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("studfinder.quantizers.verify.fresh", never)
    for where, source in (("memory", tiny("llama", dtype=BF16)), ("files", checkpoint(tmp_path / "s", dtype=BF16))):
        done = quantize(source, W4, out=tmp_path / where, verify=False)
        assert done.verified.startswith("not verified")
        assert done.verified in (tmp_path / where / "README.md").read_text()


@pytest.mark.parametrize("from_files", [True, False])
def test_what_fails_leaves_nothing(tmp_path, monkeypatch, from_files):
    from studfinder.quantizers import checkpoint as writer

    source = checkpoint(tmp_path / "source", dtype=BF16)

    def damaged(folder, files):
        writer.write_index(folder, files)
        flip(folder / "model.safetensors", -1)

    monkeypatch.setattr("studfinder.verbs.quantize_write.write_index", damaged)
    with pytest.raises(StudfinderError, match=r"not what was meant: \S+ reads back as other numbers"):
        quantize(source if from_files else load(source), W4, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def flip(file: Path, at: int, bit: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= bit
    file.write_bytes(data)


def damage(folder: Path, how: str, draw: random.Random) -> None:
    """Damage a checkpoint in one place."""
    file = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"]
    group = settings["config_groups"]["group_0"]
    held = load_file(file)
    names = sorted(held)
    packed = [name for name in names if name.endswith("weight_packed")]
    scales = [name for name in names if name.endswith("weight_scale")]
    if how == "flip":
        flip(file, -1 - draw.randrange(sum(t.numel() * t.itemsize for t in held.values())), 1 << draw.randrange(8))
        return
    if how == "scale":
        scale = held[draw.choice(scales)].view(-1)
        scale[draw.randrange(len(scale))] *= draw.choice([2.0, 0.5, 1.01, -1.0])
    elif how == "scales swapped":
        one, other = draw.sample([name for name in scales if "q_proj" in name], 2)
        held[one], held[other] = held[other], held[one]
    elif how == "lost":
        del held[draw.choice(names)]
    elif how == "renamed":
        name = draw.choice(names)
        held[f"x.{name}"] = held.pop(name)
    elif how == "codes swapped":
        one, other = draw.sample([name for name in packed if "gate_proj" in name or "up_proj" in name], 2)
        held[one], held[other] = held[other], held[one]
    elif how == "ignore":
        settings["ignore"].remove(draw.choice(settings["ignore"]))
    elif how == "target":
        group["targets"].remove(draw.choice(group["targets"]))
    elif how == "class name":
        group["targets"] = ["Linear"]
    elif how == "both":
        settings["ignore"].append(draw.choice(group["targets"]))
    elif how == "arguments":
        name, value = draw.choice([("num_bits", 8), ("group_size", 32), ("group_size", 8)])
        group["weights"][name] = value
    elif how == "config":
        name, value = draw.choice([("rms_norm_eps", 0.1), ("hidden_act", "gelu"), ("num_attention_heads", 2)])
        config[name] = value
    save_file(held, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


DAMAGE = (
    "flip",
    "scale",
    "scales swapped",
    "lost",
    "renamed",
    "codes swapped",
    "ignore",
    "target",
    "class name",
    "both",
    "arguments",
)


def refused(tmp_path: Path, each: int, fits: bool, kinds: tuple[str, ...]) -> None:
    lm = tiny("llama", dtype=BF16)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with quantized(lm, W4):
        quantize_done = quantize(tiny("llama", dtype=BF16), W4, out=whole)
        meant, chosen = meant_of(lm), lists(whole)[0]
        assert quantize_done.quantized == len(chosen)
        verify(whole, lm, meant, chosen, live=True, fits=fits)
        for number in range(each * len(kinds)):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(whole, broken)
            how = kinds[number % len(kinds)]
            damage(broken, how, random.Random(number))
            try:
                found = verify(broken, lm, meant, chosen, live=True, fits=fits)
            except StudfinderError as error:
                found = error
            assert isinstance(found, StudfinderError), (how, number)
            assert "\n" not in str(found), (how, number)


@pytest.mark.parametrize("fits", [True, False])
def test_damage_is_refused(tmp_path, fits):
    refused(tmp_path, 1, fits, (*DAMAGE, "config") if fits else DAMAGE)


@pytest.mark.deep
@pytest.mark.parametrize("fits", [True, False])
def test_damage_of_every_kind_is_refused_in_drawn_places(tmp_path, fits):
    refused(tmp_path, 20, fits, (*DAMAGE, "config") if fits else DAMAGE)


@pytest.mark.parametrize("kind", ["llama", "opt-350m", "gemma3", "remote", "gpt_neo", "falcon", "lfm2", "bloom"])
@pytest.mark.parametrize("name", ["w4-g128", "nvfp4"])
def test_a_model_that_does_not_fit_twice_is_decoded_tensor_by_tensor(tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr("studfinder.quantizers.verify.free_memory", lambda: 0)
    lm = model_of(kind, tmp_path / "source")
    done = quantize(lm, RTN(scheme=SCHEMES[name]), out=tmp_path / "out")
    assert "only its first block was loaded and run" in done.verified
    source = tmp_path / "folder"
    lm.model.save_pretrained(source)
    if kind in ("llama", "opt-350m"):
        assert "only its first block" in quantize(source, RTN(scheme=SCHEMES[name]), out=tmp_path / "files").verified


def test_matrices_that_share_their_numbers_are_each_stored(tmp_path):
    lm = tiny("llama", dtype=BF16)
    first, last = (lm.model.model.layers[i].mlp for i in (0, 2))
    last.up_proj.weight = first.up_proj.weight
    done = quantize(lm, W4, out=tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    one, other = (f"model.layers.{i}.mlp.up_proj.weight_packed" for i in (0, 2))
    assert torch.equal(held[one], held[other])
    assert "bit-equal" in done.verified


def test_further_heads_in_the_files_are_copied_and_ignored(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    held = load_file(source / "model.safetensors")
    further = {
        "model.layers.3.enorm.weight": torch.ones(32, dtype=BF16),
        "model.layers.3.mlp.up_proj.weight": torch.ones(48, 32, dtype=BF16),
        "mtp.fc.weight": held["lm_head.weight"],
    }
    save_file({**held, **{n: t.clone() for n, t in further.items()}}, source / "model.safetensors", {"format": "pt"})
    quantize(source, W4, out=tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(made[name], further[name]) for name in further)
    assert {"model.layers.3.mlp.up_proj", "mtp.fc", "lm_head"} == set(lists(tmp_path / "out")[1])


def test_files_in_another_dtype_than_they_are_loaded_in_are_rounded_as_loaded(tmp_path):
    source = checkpoint(tmp_path / "source")  # fp32
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert "bit-equal" in quantize(source, W4, out=tmp_path / "out").verified
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight_scale"].dtype == BF16


def test_rounded_inputs_may_differ_by_little(tmp_path):
    method = WithActivations(weights=RTN(scheme=Scheme(element="int8", block="channel")))
    done = quantize(tiny("llama", dtype=BF16), method, out=tmp_path / "out")
    assert "within" in done.verified
    ones = torch.ones(2, 3, 4)
    assert compare_logits(ones * 1.01, ones, 0.1) == "the logits of 2 windows of 3 tokens within 0.01 of their norm"
    for other in (ones * 1.2, ones * float("nan"), ones[:1]):
        with pytest.raises(StudfinderError, match="not what was meant"):
            compare_logits(other, ones, 0.1)


def test_nothing_to_quantise_is_an_error():
    with pytest.raises(StudfinderError, match="nothing is quantised"):
        quantization_config({}, ["lm_head"])


BESIDE = {
    "processor_config.json": "{}",
    "preprocessor_config.json": '{"image_processor_type": "SiglipImageProcessor"}',
    "video_preprocessor_config.json": "{}",
    "generation_config.json": '{"temperature": 0.6, "eos_token_id": [2, 5]}',
    "chat_template.json": '{"chat_template": "x"}',
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "tokenizer.model": "x",
    "own.tiktoken": "x",
    "vocab.bpe": "x",
    "merges.txt": "x",
    "LICENSE": "x",
    "USE_POLICY.md": "x",
    "NOTICE": "x",
}
LEFT = {
    "adapter_config.json": "{}",
    "adapter_model.bin": "",
    "pytorch_model.bin": "",
    "pytorch_model.bin.index.json": "{}",
    "consolidated.pth": "",
    "quantize_config.json": "{}",
    "hf_quant_config.json": "{}",
    "quantization_map.json": "{}",
    "recipe.yaml": "",
    "trainer_state.json": "{}",
    "training_args.bin": "",
    "README.md": "the original's card",
    "unrelated.py": "",
}


def test_what_lies_beside_the_weights_travels_by_both_ways(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    save_file({"x": torch.ones(1)}, source / "adapter_model.safetensors", {"format": "pt"})
    for name, text in {**BESIDE, **LEFT}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    (source / "adapter_config.json").unlink()  # loading it is another matter
    lm = load(tiny("llama", dtype=BF16).model, tokenizer())
    quantize(source, W4, out=tmp_path / "files")
    quantize(type(lm)(lm.model, None, lm.anatomy, load(source).source), W4, out=tmp_path / "memory")
    for where in ("files", "memory"):
        out = tmp_path / where
        names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        own = {"config.json", "model.safetensors", "studfinder.json", "README.md", "run.json"}
        assert names - own - {"tokenizer.json", "tokenizer_config.json"} == set(BESIDE), where
        assert all((out / name).read_text() == text for name, text in BESIDE.items())
        assert "the original's" not in (out / "README.md").read_text().split("\n## ")[0]


def test_the_hub_s_files_come_from_its_cache(tmp_path, monkeypatch):
    snapshot, asked = tmp_path / "snapshot", []
    snapshot.mkdir()
    for name, text in {**BESIDE, **LEFT, "config.json": "{}"}.items():
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_text(text)

    def cached(repository, name, **options):
        asked.append((repository, name, options["revision"], options["local_files_only"]))
        return str(snapshot / name) if (snapshot / name).is_file() else None

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached)
    monkeypatch.setattr("studfinder.models.places.check_reached", lambda _: None)
    hub = Source("some/model", "the Hugging Face hub", None, "v2")
    assert set(put_beside(hub, tmp_path / "out")) == set(BESIDE)
    assert ("some/model", "preprocessor_config.json", "v2", False) in asked
    assert set(put_beside("some/model", tmp_path / "bare", tokenizer=False)) == set(BESIDE) - {
        "tokenizer.model",
        "own.tiktoken",
        "vocab.bpe",
        "merges.txt",
    }
    asked.clear()
    assert put_beside(Source("live", "a live model object"), tmp_path / "none") == ()
    assert not asked  # the name of a live model may mean anything
    config = {"auto_map": {"AutoModel": "some/model--modeling_own.Own", "AutoTokenizer": [None, "other/x--tok.Tok"]}}
    (tmp_path / "out" / "modeling_own.py").write_text("")
    own = {"AutoModel": "modeling_own.Own", "AutoTokenizer": [None, "other/x--tok.Tok"]}
    assert own_code(config, tmp_path / "out")["auto_map"] == own


def test_code_that_a_model_brings_travels(tmp_path):
    lm = model_of("remote", tmp_path / "source")
    (tmp_path / "source" / "more").mkdir()
    (tmp_path / "source" / "more" / "deep.py").write_text("")
    quantize(lm, RTN(scheme=SCHEMES["fp8"]), out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").rglob("*.py")} == {"modeling_own.py", "parts.py", "deep.py"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_own.OwnForCausalLM"
    shutil.rmtree(tmp_path / "source")
    assert load(tmp_path / "out", trust_remote_code=True).model.heads[1].weight.shape == (96, 128)
