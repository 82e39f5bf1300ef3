"""Which class a checkpoint is loaded with: a decoder comes back bit for bit and by name, what is none in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import studfinder as sf
from architected import TYPES, built
from checkpoints import PROMPT
from outside import quick_and_deep
from own_code.modeling_lantern import LanternConfig, LanternForCausalLM
from proving import COL, LAYER, ROW
from proving import tokenizer as characters
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.models.checkpoint import CheckpointFiles
from studfinder.models.classes import auto_class_of
from studfinder.models.lm import Source
from studfinder.models.pretrained import from_pretrained
from studfinder.records.loading import ReadConfig
from tiny import token_ids

CODE = Path(__file__).parent / "own_code" / "modeling_lantern.py"
QUICK = (
    "blt",  # no transformers list but its own
    "cpmant",  # more rows in the embedding than in the head it is tied to
    "deepseek_v4",  # integers under another name
    "gemma3",  # a wrapper, in the causal mapping
    "gpt-sw3",  # another type in its file
    "llama4",
    "longcat_flash",  # experts without a down projection
    "mllama",  # a wrapper whose type is in both mappings
    "nemotron_h_omni",
    "phi4_multimodal",
    "qwen3_omni_moe_thinker",
    "shieldgemma2",
)


def saved(model: torch.nn.Module, folder: Path) -> Path:
    """A folder of a random model, with no tensor at the value its class starts it at."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    return folder


def opened(folder: Path, **options):
    return from_pretrained(Source("m", "a local folder", folder), ReadConfig(**options))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(1, 7)).logits


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *QUICK))
def test_a_decoder_comes_back_bit_for_bit_and_by_name(kind, tmp_path):
    model = built(kind)
    saved(model, tmp_path)
    if kind == "shieldgemma2":  # transformers does not read the names that it wrote itself
        with pytest.raises(StudfinderError, match="would be random"):
            opened(tmp_path)
        return
    found, source = opened(tmp_path)
    meant, there = model.state_dict(), found.state_dict()
    assert type(found) is type(model)
    assert list(there) == list(meant)
    assert [name for name in meant if not torch.equal(meant[name], there[name])] == []
    assert [name for name in meant if meant[name].dtype is not there[name].dtype] == []
    assert source.notes == ()


# --- wrappers, and their text parts ---------------------------------------------------------------------------------

_EYE = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
EYES = {
    "llama4": {
        **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "image_size": 16,
        "patch_size": 4,
    },
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp"), _EYE),
}
"""Vision towers of wrappers whose text parts are types of their own."""


@pytest.mark.parametrize("kind", quick_and_deep(EYES, "llama4", "qwen3_5"))
def test_a_wrapper_is_loaded_whole_and_its_text_part_computes_the_same(kind, tmp_path):
    text = built(kind).config
    config = AutoConfig.for_model(kind, text_config=text.to_dict(), vision_config=EYES[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    saved(model, tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    found, source = opened(tmp_path)
    assert (type(found), list(found.state_dict()), source.notes) == (type(model), list(model.state_dict()), ())
    part = text.architectures[0]
    for settings in (
        {**whole, "architectures": [part]},
        {name: value for name, value in whole.items() if name != "architectures"},
        {**text.to_dict(), "architectures": [part]},
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        found, source = opened(tmp_path)
        assert (type(found).__name__, found.config.model_type) == (part, f"{kind}_text")
        assert torch.allclose(logits(found), logits(model), atol=1e-5)  # fused experts, otherwise aligned
        (line,) = source.notes
        assert line.startswith("not loaded, ")
        assert "vis" in line.partition("tensors: ")[2]
    names = load_file(tmp_path / "model.safetensors")
    name = next(name for name in names if ".layers.1." in name and "down_proj" in name)
    for settings in (whole, {**text.to_dict(), "architectures": [part]}):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        lm = load(tmp_path)
        places = [CheckpointFiles(lm).place(writer, 3, 5) for writer in lm.anatomy.layers[1].writers]
        assert name in [place.tensor for place in places]


def test_an_omni_model_is_loaded_as_the_part_that_writes_text(tmp_path):
    model = built("qwen2_5_omni_thinker")
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {f"thinker.{name}": tensor for name, tensor in load_file(path).items()}
    talks = {"talker.model.norm.weight": torch.ones(4), "token2wav.a.weight": torch.ones(4)}
    save_file({**weights, **talks}, path, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2_5_omni", "thinker_config": model.config.to_dict()})
    )
    found, source = opened(tmp_path)
    assert type(found) is type(model)
    assert torch.equal(logits(found), logits(model))
    assert "2 tensors: talker.model.norm.weight, token2wav.a.weight" in source.notes[0]


@pytest.mark.parametrize("kind", quick_and_deep(("gemma3", "gemma4", "llava", "mistral3", "idefics3"), "gemma3"))
def test_a_text_config_beside_a_whole_model_is_named(kind, tmp_path, mistake):
    model = built(kind)
    saved(model, tmp_path)
    text = model.config.get_text_config(decoder=True)
    (tmp_path / "config.json").write_text(json.dumps(text.to_dict()))
    assert "is of its text part alone: put the whole model's config.json there" in mistake("scan", tmp_path)


# --- what is no decoder ---------------------------------------------------------------------------------------------

_TWO_SIDED = ("t5", "bart", "whisper", "florence2", "vision-encoder-decoder")
_ENCODERS = ("bert", "roberta", "modernbert", "deberta-v2")
_ENDS = "expected a causal language model, or an image-text or omni model, which contains one"
OTHERS = {
    **dict.fromkeys(_TWO_SIDED, "is an encoder-decoder; " + _ENDS),
    **dict.fromkeys(_ENCODERS, "is an encoder, which fills in masked tokens; " + _ENDS),
    "diffusion_gemma": "is a diffusion model, which writes its tokens in any order; " + _ENDS,
    "vit": "is no language model (transformers has no class that writes text for the type vit, which reads image); ",
    "wav2vec2": "writes text for the type wav2vec2, which reads audio); " + _ENDS,
    "clip": "writes text for the type clip, which reads image and text); " + _ENDS,
    "clip_text_model": "transformers has no class that writes text for the type clip_text_model); " + _ENDS,
    "pi0": "is no language model",
}


def described(folder: Path, **settings: object) -> Path:
    """A folder with a config.json, and a tensor that nobody gets to."""
    save_file({"a": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_decoder_is_told_in_one_line(kind, tmp_path, mistake):
    settings = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "bert"}} if "-encoder-" in kind else {}
    assert OTHERS[kind] in mistake("scan", described(tmp_path, model_type=kind, **settings))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"model_type": "nonesuch"}, "does not know the model_type of {folder}, 'nonesuch'; expected a type that"),
        ({}, "does not know the model_type of {folder}, None; expected a type that transformers has"),
        ({"model_type": ["llama"]}, "does not know the model_type of {folder}, ['llama']"),
        (
            {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30.0"},
            "is a diffusion model, or part of one (UNet2DConditionModel of diffusers); " + _ENDS,
        ),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}},
            "{folder} (own) needs code that comes with it (configuration_own.OwnConfig), which was not allowed to run. "
            "Read the code, and if you trust it: --trust-remote-code (trust_remote_code=True)",
        ),
    ],
)
def test_a_type_that_nobody_knows_is_told_in_one_line(settings, line, tmp_path, mistake):
    assert line.format(folder=tmp_path) in mistake("scan", described(tmp_path, **settings))


def test_a_pipeline_of_diffusers_is_named(tmp_path, mistake):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "is a diffusion model, or part of one (StableDiffusionPipeline of diffusers)" in mistake("scan", tmp_path)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bart", "marian", "whisper"])
def test_the_decoder_of_a_two_sided_type_is_one(kind):
    config = AutoConfig.for_model(kind, is_decoder=True, is_encoder_decoder=False)
    assert auto_class_of("m", config) == (transformers.AutoModelForCausalLM, config)


# --- code of a checkpoint's own -------------------------------------------------------------------------------------


@pytest.fixture
def lantern(tmp_path) -> Path:
    """A type that transformers does not know, with its code beside it and a super weight in it."""
    torch.manual_seed(0)
    own = {"AutoConfig": "LanternConfig", "AutoModelForCausalLM": "LanternForCausalLM"}
    model = LanternForCausalLM(LanternConfig(auto_map={auto: f"modeling_lantern.{own[auto]}" for auto in own}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, {"words.weight": 0.5, "out.weight": 1.5}.get(name, 0.05))
        model.floors[LAYER].narrow.weight[ROW, COL] = 500.0
    model.save_pretrained(tmp_path / "lantern")
    characters().save_pretrained(tmp_path / "lantern")
    shutil.copy(CODE, tmp_path / "lantern")
    return tmp_path / "lantern"


def test_code_of_its_own_runs_only_when_that_is_allowed(lantern, mistake):
    assert f"{lantern} (lantern) needs code that comes with it" in mistake("scan", lantern)
    config = json.loads((lantern / "config.json").read_text())
    config["auto_map"]["AutoModel"] = config["auto_map"].pop("AutoModelForCausalLM")
    (lantern / "config.json").write_text(json.dumps(config))
    assert "its code has only AutoConfig, AutoModel" in mistake("scan", lantern, "--trust-remote-code")


def test_a_model_that_nobody_knows_is_scanned_with_nothing_added(lantern, tmp_path, undrawn):
    out = tmp_path / "run"
    assert run_cli(["scan", str(lantern), "--trust-remote-code", "--prompt", PROMPT, "--out", str(out)]) == 0
    (weight,) = sf.read(out / "findings.json").super_weights
    assert (weight.parameter, weight.index) == (f"floors.{LAYER}.narrow.weight", (ROW, COL))
    assert (weight.checkpoint_tensor, weight.verdict) == (weight.parameter, "proven")
    lm = load(lantern, trust_remote_code=True)
    with sf.edited(lm, sf.edits.zero(weight)):
        assert lm.model.floors[LAYER].narrow.weight[ROW, COL] == 0
