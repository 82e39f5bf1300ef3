"""A model computed in a wider dtype than it is stored in gives bit for bit what the model cast whole gives."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import linear

from architected import PARTS, TYPES, built
from outside import quick_and_deep
from patching import difference, traces
from studfinder.edits import Weights, entry, neuron, null, scale, zero
from studfinder.measures import effects_of, log_likelihoods
from studfinder.models import LM, content_hash, load
from studfinder.models.carried import is_carried
from studfinder.models.measured import _measured
from studfinder.sites import BlockOutput, tapped
from studfinder.verbs.configs import ExperimentConfig, MeasureConfig, QuantizeConfig, ScanConfig
from studfinder.verbs.load import load_as
from test_architectures import FORTY
from tiny import tiny

QUICK = ("llama", "gpt2", "gemma3_text", "gpt_oss", "falcon_mamba", "bloom", "zamba2", "deepseek_v3")
WINDOWS = [[(7 * row + 3 * at) % 90 + 3 for at in range(24)] for row in range(3)]


def written(kind: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    model = built(kind, dtype=dtype)
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    if settings.pop("quantization_config", None):  # its numbers are plain here
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def both(folder: Path) -> tuple[LM, LM]:
    return load(folder, dtype="float32"), load(folder, dtype="float32", carried=True)


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *QUICK))
def test_every_pass_is_that_of_the_model_cast_whole(kind, tmp_path) -> None:
    if not hasattr(transformers, PARTS[kind]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {kind} yet")
    whole, lm = both(written(kind, tmp_path))
    assert lm.dtype is whole.dtype is torch.float32
    before = traces(lm)
    ids_BT = torch.arange(40).view(2, 20) % whole.anatomy.vocabulary
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :5] = 0
    for options in ({}, {"attention_mask": mask_BT}):
        ours, theirs = (one.model(input_ids=ids_BT, use_cache=False, **options).logits.detach() for one in (lm, whole))
        assert ours.dtype is theirs.dtype
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert not difference(before, traces(lm))
    assert _measured(lm.model) == _measured(whole.model)
    buffers = dict(whole.model.named_buffers())
    assert all(
        one.dtype is buffers[name].dtype and torch.equal(one, buffers[name]) for name, one in lm.model.named_buffers()
    )
    if kind in FORTY and is_carried(lm.model):
        inside = [one for one in lm.model.parameters() if one.dtype is torch.bfloat16]
        assert sum(one.numel() for one in inside) > 0


@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_stay_as_they_are_stored_and_so_does_the_hash(kind, dtype, tmp_path) -> None:
    stored = load(written(kind, tmp_path, dtype))
    whole, lm = both(tmp_path)
    assert is_carried(lm.model)
    assert not is_carried(whole.model)
    held = dict(stored.model.named_parameters())
    narrow = {name for name, one in lm.model.named_parameters() if one.dtype is dtype}
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    assert narrow == {
        name for name, one in held.items() if name.startswith(blocks) and one.dim() > 1 and one.dtype is dtype
    }
    assert all(torch.equal(held[name].float(), one.float()) for name, one in lm.model.named_parameters())
    assert len({content_hash(one) for one in (stored, whole, lm)}) == 1
    for one in (whole, lm):
        with torch.no_grad():
            one.model.get_input_embeddings().weight[3, 4] += 1e-4
        assert content_hash(one) != content_hash(stored)


def test_generating_editing_and_nulls_are_the_same(tmp_path) -> None:
    whole, lm = both(written("llama", tmp_path))
    ids_BT = torch.tensor([[5, 6, 7, 8]])
    ours, theirs = (one.model.generate(ids_BT, max_new_tokens=6, do_sample=False) for one in (lm, whole))
    assert torch.equal(ours, theirs)
    name = lm.anatomy.layers[0].writers[0].parameter
    every = Weights(parameter=name, entries=((None, None),))
    edits = [zero(entry(lm, 1, 3, 4)), zero(neuron(lm, 0, 2)), zero(every), scale(every, 0.5), scale(every, -2.0)]
    ours, theirs = (effects_of(one, WINDOWS, edits) for one in (lm, whole))
    assert (ours.kl > 0).all()
    assert ours.kl.tolist() == theirs.kl.tolist()
    # A null edit is one of what is stored: its neighbours are those in bfloat16.
    ours, theirs = (effects_of(one, WINDOWS, [null(zero(every))]) for one in (lm, whole))
    assert ours.kl.sum() > 5 * theirs.kl.sum()


def test_likelihoods_are_the_same_whatever_else_runs_side_by_side(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    whole, lm = both(written("llama", tmp_path))
    requests = [(window[:9], window[9 : 12 + row]) for row, window in enumerate(WINDOWS * 3)]
    ours, theirs = (log_likelihoods(one, requests, batch_tokens=16) for one in (lm, whole))
    assert ours == theirs


def test_a_gradient_is_the_same_and_keeps_no_cast_matrix(tmp_path) -> None:
    whole, lm = both(written("llama", tmp_path))
    slopes = []
    for one in (whole, lm):
        given = one.model.get_input_embeddings()(torch.tensor(WINDOWS)).detach().requires_grad_()
        one.model(inputs_embeds=given, use_cache=False).logits.square().sum().backward()
        weight = one.model.get_parameter(one.anatomy.layers[0].writers[0].parameter)
        slopes.append((given.grad, weight.grad.bfloat16()))
    assert all(map(torch.equal, *slopes))
    # What the graph keeps is where the matrix is stored: it is cast again for the way back.
    given = lm.model.get_input_embeddings()(torch.tensor(WINDOWS)).detach().requires_grad_()
    total = lm.model(inputs_embeds=given, use_cache=False).logits.square().sum()
    with torch.no_grad():
        for block in lm.model.model.layers:
            for one in (*block.mlp.parameters(), *block.self_attn.parameters()):
                one.zero_()
    (slope,) = torch.autograd.grad(total, given)
    assert slope.isfinite().all()
    assert not torch.equal(slope, slopes[1][0])


def test_whatever_ends_a_block_it_is_as_it_is_stored(tmp_path) -> None:
    lm = load(written("llama", tmp_path), dtype="float32", carried=True)
    before = traces(lm)

    def stop(_event: object) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError), tapped(lm, read={BlockOutput: [stop]}):
        lm.model(input_ids=torch.tensor(WINDOWS))
    with pytest.raises(ZeroDivisionError):
        handle = lm.model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
        try:
            lm.model(input_ids=torch.tensor(WINDOWS))
        finally:
            handle.remove()
    assert not difference(before, traces(lm))


def test_a_copy_stands_by_itself(tmp_path) -> None:
    lm = load(written("llama", tmp_path), dtype="float32", carried=True)
    ids_BT = torch.tensor(WINDOWS)
    clean = lm.model(input_ids=ids_BT).logits
    other = copy.deepcopy(lm.model)
    assert torch.equal(other(input_ids=ids_BT).logits, clean)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(other(input_ids=ids_BT).logits, clean)
    assert torch.equal(lm.model(input_ids=ids_BT).logits, clean)


def test_a_model_that_uses_a_block_from_outside_is_cast_whole(tmp_path, monkeypatch) -> None:
    folder = written("llama", tmp_path)
    own = transformers.LlamaModel.forward

    def forward(self, *args, **kwargs):
        found = own(self, *args, **kwargs)
        linear(found.last_hidden_state, self.layers[0].mlp.up_proj.weight)
        return found

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    lm = load(folder, dtype="float32", carried=True)
    assert not is_carried(lm.model)
    assert {one.dtype for one in lm.model.parameters()} == {torch.float32}
    assert "forward" not in vars(lm.model.model.layers[0])


def test_what_is_only_read_is_carried(tmp_path) -> None:
    folder = written("llama", tmp_path)
    for config, expected in ((ScanConfig, True), (MeasureConfig, True), (ExperimentConfig, False)):
        assert is_carried(load_as(folder, config(dtype="float32")).model) is expected
        assert not is_carried(load_as(folder, config()).model)
    assert not is_carried(load_as(folder, QuantizeConfig(dtype="float32", out=tmp_path / "out")).model)
    assert not is_carried(load(folder, dtype="float32", carried=True, device_map="cpu").model)
    assert not is_carried(load(folder, dtype="float16", carried=True).model)
    assert not is_carried(tiny("llama").model)
