"""Adapters are merged when that is asked for, else refused: never dropped."""

from __future__ import annotations

import json
import shutil
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint
from studfinder.errors import StudfinderError, Unavailable
from studfinder.models import cached_content_hash, check_checkpoint, content_hash, load, model_card
from tiny import token_ids

TOKENS = token_ids(1, 9)


@pytest.fixture
def base(tmp_path):
    return checkpoint(tmp_path / "base")


@pytest.fixture
def described(base, tmp_path):
    """A folder that says it is an adapter of `base`."""
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "adapter"


@pytest.fixture
def trained(base, tmp_path):
    """A LoRA of `base`, and the logits of both together."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(load(base).model, config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.2)
            logits = model(TOKENS).logits
        model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", logits


def test_an_adapter_is_refused_by_name(described, base, mistake):
    line = mistake("scan", described)
    assert f"is an adapter (LORA) of {base}" in line
    assert "--merge-adapter" in line
    with pytest.raises(StudfinderError, match="is an adapter"):
        check_checkpoint(described)


def test_a_model_with_an_adapter_beside_it_is_refused(described, base, mistake, tmp_path):
    shutil.copy(described / "adapter_config.json", base)
    assert "a whole model with an adapter (LORA) beside it" in mistake("scan", base)
    assert "or delete its adapter_config.json" in mistake("quantize", base, "--out", tmp_path / "q")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_config_that_cannot_be_read(described, mistake, content):
    (described / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in mistake("scan", described)


def test_without_peft_it_is_said_what_to_install(described, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(Unavailable, match=r"merging it needs peft.*studfinder\[adapters\]"):
        load(described, merge_adapter=True)


def test_a_merged_adapter_computes_what_it_was_trained_to_and_is_recorded(trained, base, cache, tmp_path):
    folder, logits = trained
    lm = load(folder, merge_adapter=True)
    with torch.no_grad():
        assert torch.allclose(lm.model(TOKENS).logits, logits, atol=1e-5)
        assert not torch.allclose(load(base).model(TOKENS).logits, logits, atol=1e-2)
    assert model_card(lm, "x").merged_adapters == (f"an adapter (LORA) of {base}",)
    assert cached_content_hash(lm) == content_hash(lm) != content_hash(load(base))
    assert lm.tokenizer is not None
    lm.model.save_pretrained(tmp_path / "saved")
    assert content_hash(load(tmp_path / "saved")) == content_hash(lm)


def test_an_adapter_beside_its_model_is_merged_into_it(trained, base):
    folder, logits = trained
    for path in folder.glob("adapter_*"):
        shutil.copy(path, base)
    with torch.no_grad():
        assert torch.allclose(load(base, merge_adapter=True).model(TOKENS).logits, logits, atol=1e-5)


def test_every_tensor_of_an_adapter_is_taken(trained):
    folder, _ = trained
    path = folder / "adapter_model.safetensors"
    good = load_file(path)
    for name in sorted(good)[:3]:
        others = {n: t for n, t in good.items() if n != name}
        for bad in (
            others,
            {**others, f"_orig_mod.{name}": good[name]},
            {**good, f"{name}2": good[name].clone()},
            {**others, name: good[name].T.contiguous()},
        ):
            save_file(bad, path)
            with pytest.raises(StudfinderError, match="adapter"):
                load(folder, merge_adapter=True)
    path.unlink()
    with pytest.raises(StudfinderError, match="no adapter weights"):
        load(folder, merge_adapter=True)
