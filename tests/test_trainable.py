"""What cannot train is refused before a run begins, and a quantised checkpoint is dequantised only when told to."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.quantizers import RTN, SCHEMES
from studfinder.training import trainable
from studfinder.training.trainable import check_trainable, dequantized_model, trainable_note
from studfinder.verbs.quantize import quantize
from studfinder.verbs.train import plan_train
from tiny import ARCHITECTURES, L, V, tiny, tokenizer

CASES = 200
FIT = ["fp8", "w8-channel", "w8-tensor", "w4-channel", "fp8-block"]
SHORT = ["--steps", "2", "--batch", "2", "--length", "16", "--test", "2", "--look-every", "1", "--precision", "fp32"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a checkpoint "m", a text of its words, and nothing else."""
    monkeypatch.chdir(tmp_path)
    _save(tiny("llama"), tmp_path / "m")
    words = random.Random(0)
    (tmp_path / "t.txt").write_text(
        "\n".join(" ".join(f"w{words.randint(3, V - 1)}" for _ in range(40)) for _ in "x" * 40)
    )
    return tmp_path


def _save(lm: LM, folder, tokens=None) -> None:
    lm.model.save_pretrained(folder)
    (tokens or tokenizer()).save_pretrained(folder)


def _freeze(lm: LM, generator: random.Random) -> str:
    """One way in which a matrix does not train, at a drawn place; its name."""
    matrices = [name for name, parameter in lm.model.named_parameters() if parameter.dim() >= 2]
    name = generator.choice(matrices)
    parameter = lm.model.get_parameter(name)
    owner, _, leaf = name.rpartition(".")
    module = lm.model.get_submodule(owner)
    way = generator.choice(["no gradient", "fp8", "fp8 buffer", "codes", "codes as a parameter"])
    if way == "no gradient":
        parameter.requires_grad_(False)
        return name
    data = parameter.detach()
    codes = (data * 100).clamp(-127, 127).to(torch.int8) if "codes" in way else data.to(torch.float8_e4m3fn)
    delattr(module, leaf)
    if way in ("fp8", "codes as a parameter"):
        setattr(module, leaf, torch.nn.Parameter(codes, requires_grad=False))
    else:
        module.register_buffer(leaf, codes)
    return name


def _frozen() -> Iterator[tuple[LM, str]]:
    """Models with one matrix that cannot train, and its name."""
    generator = random.Random(1)
    whole = [
        load(tiny(architecture).model, tokenizer()) for architecture in ("llama", "gpt2", "opt", "qwen3", "mixtral")
    ]
    for lm in whole:
        check_trainable(lm, 16)
    for _ in range(CASES):
        lm = generator.choice(whole)
        lm = replace(lm, model=copy.deepcopy(lm.model))
        yield lm, _freeze(lm, generator)


@pytest.mark.deep
def test_a_matrix_that_cannot_train_is_named(monkeypatch):
    for lm, name in _frozen():
        with pytest.raises(StudfinderError, match=re.escape(name)):
            check_trainable(lm, 16)
        with monkeypatch.context() as without:  # nothing else would have said it
            without.setattr(trainable, "_check_matrices", lambda *_: None)
            without.setattr(trainable, "check_causal", lambda *_: None)
            check_trainable(lm, 16)


@pytest.mark.deep
def test_whole_models_of_every_architecture_train():
    for architecture in ARCHITECTURES:
        lm = load(tiny(architecture).model, tokenizer())
        check_trainable(lm, 16)
        assert trainable_note(lm).startswith("100% of ")


@pytest.mark.parametrize("scheme", [FIT[0], *(pytest.param(scheme, marks=pytest.mark.deep) for scheme in FIT[1:])])
def test_a_quantised_checkpoint_is_refused_or_dequantised(here, capsys, scheme):
    quantize("m", RTN(scheme=SCHEMES[scheme]), out="q")
    assert run_cli(["train", "--from", "q", "--text", "t.txt", *SHORT, "--out", "r"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # after the progress of reading it
    assert "q is quantised (compressed-tensors)" in said
    assert "would train" in said
    assert "--dequantize" in said
    assert not (here / "r").exists()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        theirs, ours = load("q").model(ids).logits, dequantized_model(load("q")).model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_was_dequantised_is_trained_whole_and_written_as_a_full_model(here, capsys):
    quantize("m", RTN(scheme=SCHEMES["w8-channel"]), out="q")
    command = ["train", "--from", "q", "--text", "t.txt", *SHORT, "--dequantize", "--out", "r"]
    assert run_cli([*command, "--dry-run"]) == 0
    assert "q is dequantised: a full model is trained and written" in capsys.readouterr().out
    assert run_cli(command) == 0
    assert "100% of " in capsys.readouterr().err
    config = json.loads((here / "r" / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    written, start = (
        load_file(here / "r" / "model" / "model.safetensors"),
        dequantized_model(load("q")).model.state_dict(),
    )
    moved = [name for name, tensor in written.items() if tensor.dim() == 2 and not torch.equal(tensor, start[name])]
    assert len(moved) >= 7 * L
    check_trainable(load("r/model"), 16)


def test_dequantising_what_is_not_quantised_is_a_mistake(here, mistake):
    assert "m is not quantised" in mistake("train", "--from", "m", "--text", "t.txt", "--dequantize")
    assert "nothing to dequantise" in mistake("train", "--text", "t.txt", "--dequantize")


@pytest.mark.deep
def test_without_the_check_a_quantised_checkpoint_trains_in_silence(here, monkeypatch):
    """Taken out, every scheme is planned as if nothing were wrong."""
    monkeypatch.setattr(trainable, "_check_matrices", lambda *_: None)
    for scheme in FIT:
        quantize("m", RTN(scheme=SCHEMES[scheme]), out=scheme)
        plan_train(base=scheme, text="t.txt", length=16)


@pytest.mark.parametrize("extra", [1, 200])
def test_a_tokenizer_with_more_ids_than_the_embedding(here, mistake, capsys, extra):
    longer = tokenizer(words=V - 3 + extra)
    _save(tiny("llama"), here / "m", longer)
    assert run_cli(["train", "--from", "m", "--text", "t.txt", *SHORT, "--dry-run"]) == 0
    assert f"the tokenizer has {V + extra} ids, the embedding {V} rows" in capsys.readouterr().out
    (here / "t.txt").write_text((here / "t.txt").read_text() + f" w{V + extra - 1}")
    said = mistake("train", "--from", "m", "--text", "t.txt", *SHORT, "--out", "r")
    assert f"the tokens of 't.txt': id {V + extra - 1} is not in the embedding of m" in said
    assert not (here / "r" / "tokens.npy").exists()
