"""Facts that a finding states beside its numbers: each checked over many drawn cases."""

from __future__ import annotations

import copy
import json
import random
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from studfinder.detectors import observe
from studfinder.detectors.super_weights import SuperWeights
from studfinder.edits import TiedWeightsWarning, Weights, edited, scale, tied_notes, zero
from studfinder.models import LM, CheckpointFiles, Source, anatomy_of, load, rotary_of, train_length
from tiny import ARCHITECTURES, D, prompts, tiny

PROMPTS = prompts()

# --- the tensor in the file ------------------------------------------------------------------------------------------


def saved(lm: LM, folder) -> LM:
    """The model written by transformers (experts apart again) and loaded from there."""
    lm.model.save_pretrained(folder)
    return load(folder)


def stored_value(folder, tensor: str, index: tuple[int, ...]) -> float:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if tensor in set(file.keys()):
                return float(file.get_tensor(tensor)[index])
    raise KeyError(tensor)


def renamed(folder, rename) -> None:
    for path in folder.glob("*.safetensors"):
        save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def places_hold(lm: LM, folder, draws: random.Random, count: int) -> int:
    """Drawn entries of drawn matrices are where the files say; returns how many were looked at."""
    files = CheckpointFiles(lm)
    for _ in range(count):
        ref = draws.choice([ref for layer in lm.anatomy.layers for ref in layer.writers])
        weight = ref.view(lm.model.get_parameter(ref.parameter)).detach()
        row, col = draws.randrange(weight.shape[0]), draws.randrange(weight.shape[1])
        at = files.place(ref, row, col)
        assert at.tensor is not None, (ref, at.note)
        assert at.index is not None
        assert stored_value(folder, at.tensor, at.index) == float(weight[row, col])
    return count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_entry_that_is_named_holds_the_value_in_the_file(architecture, tmp_path):
    lm = saved(tiny(architecture), tmp_path)  # 24 architectures, ten entries each
    assert places_hold(lm, tmp_path, random.Random(architecture), 10) == 10


def test_an_expert_is_named_by_its_own_tensor(tmp_path):
    lm = saved(tiny("mixtral"), tmp_path)
    assert CheckpointFiles(lm).place(lm.anatomy.layers[1].writers[2], 3, 4).tensor == (
        "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    )


def test_experts_that_are_copies_are_told_apart_by_their_number(tmp_path):
    lm = tiny("qwen3_moe")
    with torch.no_grad():
        for layer in lm.anatomy.layers:
            fused = lm.model.get_parameter(layer.writers[0].parameter)
            fused.copy_(fused[:1].expand_as(fused))
    lm = saved(lm, tmp_path)
    names = [CheckpointFiles(lm).place(ref, 1, 2).tensor for ref in lm.anatomy.layers[0].writers]
    assert names == [f"model.layers.0.mlp.experts.{expert}.down_proj.weight" for expert in range(len(names))]


@pytest.mark.parametrize(
    ("architecture", "prefix"), [("gpt2", "transformer."), ("llama", "model."), ("gpt_neox", "gpt_neox.")]
)
def test_files_without_the_prefix_are_named_without_it(architecture, prefix, tmp_path):
    lm = tiny(architecture)
    lm.model.save_pretrained(tmp_path)
    renamed(tmp_path, lambda name: name.removeprefix(prefix))  # as gpt2 is on the hub
    lm = load(tmp_path)
    places_hold(lm, tmp_path, random.Random(1), 10)
    found = CheckpointFiles(lm).place(lm.anatomy.layers[0].writers[0], 0, 0).tensor
    assert found == lm.anatomy.layers[0].writers[0].parameter.removeprefix(prefix)


def test_a_place_that_cannot_be_verified_is_said_and_not_guessed(tmp_path):
    lm = tiny("llama")
    ref = lm.anatomy.layers[1].writers[0]
    assert CheckpointFiles(lm).place(ref, 0, 0).tensor is None
    assert "at hand" in CheckpointFiles(lm).place(ref, 0, 0).note
    lm = saved(lm, tmp_path)
    draws, files = random.Random(0), CheckpointFiles(lm)
    for _ in range(50):
        row, col = draws.randrange(32), draws.randrange(48)
        with edited(lm, scale(Weights(parameter=ref.parameter, entries=((row, col),)), 2.0)):
            at = files.place(ref, row, col)
        assert (at.tensor, at.index) == (None, None)
        assert "other numbers" in at.note
    assert files.place(ref, 3, 4).tensor == ref.parameter


def test_an_index_does_not_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    lm = tiny("llama")
    lm.model.save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = dict.fromkeys(load_file(tmp_path / "outside.safetensors"), "../outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    lm = LM(lm.model, None, lm.anatomy, Source("x", "a folder", folder))
    assert CheckpointFiles(lm).place(lm.anatomy.layers[0].writers[0], 0, 0).tensor is None


# --- the length of training ------------------------------------------------------------------------------------------


def scaled(architecture: str, kind: str, original: int | None, factor: float) -> LM:
    """A tiny model whose RoPE is scaled from `original` tokens on."""
    lm = tiny(architecture)
    config = copy.deepcopy(lm.model.config)
    pairs = D // 2
    params = {"rope_type": kind, "rope_theta": 10_000.0, "factor": factor}
    if kind == "llama3":
        params |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        params |= {"short_factor": [1.0] * pairs, "long_factor": [factor] * pairs}
    if original is not None:
        params["original_max_position_embeddings"] = original
        config.max_position_embeddings = int(original * factor)
    config.rope_parameters = params
    return load(type(lm.model)(config).eval())


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", "llama3"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "qwen3"])
def test_the_length_of_training_is_the_one_before_scaling(architecture, kind):
    draws = random.Random(f"{architecture} {kind}")
    for _ in range(10):  # 200 in all
        original, factor = draws.choice([64, 128, 1024, 4096, 8192]), draws.choice([1.5, 2.0, 4.0, 8.0, 32.0])
        lm = scaled(architecture, kind, original, factor)
        assert train_length(lm) == (original, f"original_max_position_embeddings, before {kind} scaling")
        facts = rotary_of(lm, 0)
        plain = [10_000.0 ** (-pair / (D // 2)) for pair in range(D // 2)]
        assert facts is not None
        assert facts.trained_freq == pytest.approx(plain)
        assert list(facts.never_turns(original)) == [original * f < 2 * torch.pi for f in plain] * 2
        assert train_length(lm, 7) == (7, "given")


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_a_scaling_without_its_length_says_so(kind):
    length, source = train_length(scaled("llama", kind, None, 4.0))
    assert length == 128
    assert source == f"max_position_embeddings; the length before {kind} scaling is not named"


def test_layers_may_differ_in_their_scaling():
    lm = tiny("gemma3_text")
    config = copy.deepcopy(lm.model.config)
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    config.rope_parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "linear", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 64,
        },
    }  # fmt: skip
    lm = load(type(lm.model)(config).eval())
    assert train_length(lm)[0] == 64
    local, full = rotary_of(lm, 0), rotary_of(lm, 1)
    assert local is not None
    assert full is not None
    assert local.trained_freq == local.inv_freq
    assert full.trained_freq == pytest.approx([8 * freq for freq in full.inv_freq])


# --- the width of packed layers ---------------------------------------------------------------------------------------


class Packed(nn.Module):
    """A quantised layer: it says its sizes, and keeps something of another shape."""

    def __init__(self, wide: int, out: int, name: str, held: torch.Tensor, size: str) -> None:
        super().__init__()
        setattr(self, size, wide)
        self.out_features = out
        setattr(self, name, nn.Parameter(held, requires_grad=False))


def packed(draws: random.Random) -> tuple[Packed, int]:
    wide, out = 48, 32  # as its config says
    ints, bytes_ = torch.int32, torch.uint8
    name, held, size = draws.choice(
        [
            ("weight_packed", torch.zeros(out, wide // 8, dtype=ints), "in_features"),  # compressed-tensors
            ("weight", torch.zeros(out * wide // 2, 1, dtype=bytes_), "in_features"),  # bitsandbytes, 4 bits
            ("weight", torch.zeros(out, wide, dtype=torch.int8), "in_features"),
            ("qweight", torch.zeros(wide // 8, out, dtype=ints), "in_features"),  # GPTQ
            ("qweight", torch.zeros(wide, out // 8, dtype=ints), "in_features"),  # AWQ
            ("qweight", torch.zeros(wide // 8, out, dtype=ints), "infeatures"),
        ]
    )
    return Packed(wide, out, name, held, size), wide


def test_the_width_of_a_packed_layer_is_what_it_says_of_itself():
    draws, lm = random.Random(0), tiny("llama")
    for _ in range(200):
        module, wide = packed(draws)
        for block in lm.model.model.layers:
            block.mlp.down_proj = module
        assert anatomy_of(lm.model).intermediate == wide


# --- tied weights ---------------------------------------------------------------------------------------------------


def tied(architecture: str) -> LM:
    lm = tiny(architecture)
    lm.model.config.tie_word_embeddings = True
    lm.model.get_output_embeddings().weight = lm.model.get_input_embeddings().weight
    return lm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_edit_of_a_tied_weight_says_what_else_it_edits(architecture):
    lm, draws = tied(architecture), random.Random(architecture)
    known = dict(lm.model.named_parameters(remove_duplicate=False))
    shared = lm.model.get_input_embeddings().weight
    names = [name for name, found in known.items() if found is shared]
    assert len(names) == 2
    for _ in range(10):
        name, other = draws.sample(names, 2)
        edit = scale(Weights(parameter=name, entries=((draws.randrange(96), draws.randrange(32)),)), 2.0)
        said = f"{name} is tied to {other}: the edit changes both"
        assert tied_notes(lm, edit) == (said,)
        with pytest.warns(TiedWeightsWarning, match=said), edited(lm, edit):
            pass


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
def test_an_edit_of_what_is_not_tied_says_nothing(architecture):
    lm = tiny(architecture)
    lm.model.get_output_embeddings().weight = nn.Parameter(lm.model.get_input_embeddings().weight.detach().clone())
    names = [name for name, found in lm.model.named_parameters() if found.dim() == 2]
    edits = [edit for name in names for edit in zero(Weights(parameter=name, entries=((0, 0),)))]
    assert tied_notes(lm, edits) == ()
    with warnings.catch_warnings(), edited(lm, edits):
        warnings.simplefilter("error")


# --- a module used twice ------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A feed-forward half that runs its down projection twice, on inputs of its own."""

    def __init__(self, mlp: nn.Module, factor: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner) + self.down_proj(self.factor * inner)


def seen(lm: LM) -> SuperWeights:
    watching = SuperWeights(lm)
    assert observe(lm, PROMPTS, [watching])
    return watching


def planted(lm: LM, layer: int, row: int, col: int) -> None:
    with torch.no_grad():
        lm.model.get_parameter(lm.anatomy.layers[layer].writers[0].parameter)[row, col] = 90.0


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.deep)])  # 200 in all
@pytest.mark.parametrize("kind", ["block", "mlp", "linear", "called twice"])
def test_a_module_used_twice_gives_a_finding_a_call(kind, count):
    draws = random.Random(kind)
    original = tiny("llama")
    for _ in range(count):
        lm = load(copy.deepcopy(original.model))
        layers = lm.model.model.layers
        first, second = sorted(draws.sample(range(3), 2))
        if kind == "block":
            layers[second] = layers[first]
        elif kind == "mlp":
            layers[second].mlp = layers[first].mlp
        elif kind == "linear":
            layers[second].mlp.down_proj = layers[first].mlp.down_proj
        else:
            second = first
            layers[first].mlp = Twice(layers[first].mlp, draws.choice([0.5, 2.0, -1.0]))
        lm = load(lm.model)
        row, col = draws.randrange(32), draws.randrange(48)
        planted(lm, first, row, col)
        found = [w for w in seen(lm).found() if (w.row, w.col) == (row, col)]
        assert sorted((w.layer, w.call) for w in found) == [(first, 1), (second, 2)]
        assert {w.parameter for w in found} == {f"model.layers.{first}.mlp.down_proj.weight"}
        assert {str(w) for w in found} == {
            f"layers.{layer} down_proj[{row}, {col}] (call {call})" for layer, call in ((first, 1), (second, 2))
        }
        assert len(zero(found)) == 1  # one weight, however many calls show it


def test_a_module_used_once_has_no_call():
    lm = tiny("llama")
    planted(lm, 1, 9, 7)
    assert {w.call for w in seen(lm).found()} == {None}
