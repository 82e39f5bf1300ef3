"""The census: what it predicts is the Fisher information, and what is planted ranks first, wherever it is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from studfinder.detectors.census import LEAST_DECADE, census
from studfinder.edits import Weights, controls_by_prediction, scale, zero
from studfinder.measures import effects_of
from studfinder.models import LM
from studfinder.models.kinds import gain_offsets, kinds_of
from tiny import prompts, tiny, token_ids

WINDOWS = prompts((12, 12, 12, 12))


def loud(architecture: str) -> LM:
    """A random model whose logits differ, so that what happens inside matters."""
    lm = tiny(architecture)
    with torch.no_grad():
        head = lm.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight * 20)
    return lm


def by_hand(lm: LM, windows: list[list[int]]) -> dict[str, torch.Tensor]:
    """1/2 w^2 F, with the expectation over labels taken exactly: every label of every position has its own gradient."""
    names = [name for name, _ in lm.model.named_parameters()]
    leaves = [lm.model.get_parameter(name) for name in names]
    fisher = [torch.zeros_like(leaf) for leaf in leaves]
    for ids in windows:
        log_TV = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for log_V in log_TV:
            for log_p in log_V:
                found = torch.autograd.grad(log_p, leaves, retain_graph=True, allow_unused=True)
                for total, gradient in zip(fisher, found, strict=True):
                    if gradient is not None:
                        total += log_p.detach().exp() * gradient.square()
    tokens = sum(map(len, windows))
    return {n: leaf.detach().square() * f / (2 * tokens) for n, leaf, f in zip(names, leaves, fisher, strict=True)}


def whole(lm: LM, windows: list[list[int]], folder: Path, draws: int) -> dict[str, torch.Tensor]:
    census(lm, windows, draws=draws, map=folder / "map.safetensors")
    return load_file(folder / "map.safetensors")


def test_predictions_are_the_fisher_information(tmp_path: Path) -> None:
    lm, windows = tiny("llama"), [token_ids(1, 3)[0].tolist()]
    exact, drawn = by_hand(lm, windows), whole(lm, windows, tmp_path, draws=400)
    assert drawn.keys() == exact.keys()
    for name, kl in exact.items():
        assert float(drawn[name].sum()) == pytest.approx(float(kl.sum()), rel=0.1), name
        assert torch.corrcoef(torch.stack([drawn[name].flatten(), kl.flatten()]))[0, 1] > 0.9, name


def test_a_small_change_has_the_predicted_effect() -> None:
    """To second order: of a change by a tenth, a hundredth of the prediction."""
    lm = loud("llama")
    top = census(lm, WINDOWS, draws=64).top[:12]
    effects = effects_of(lm, WINDOWS, [scale(one.weights, 0.9) for one in top])
    for one, kl in zip(top, effects.kl.sum(axis=1) / effects.tokens.sum(), strict=True):
        assert 100 * kl == pytest.approx(one.kl, rel=0.3, abs=3 * one.error)


def test_what_is_kept_is_that_of_the_whole_map(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    found = census(lm, WINDOWS, top=50, sample=5, map=tmp_path / "map.safetensors")
    kl = load_file(tmp_path / "map.safetensors")
    assert {name: one.shape for name, one in kl.items()} == {n: p.shape for n, p in lm.model.named_parameters()}
    every = torch.cat([one.flatten() for one in kl.values()])
    assert [one.kl for one in found.top] == pytest.approx(every.topk(50).values.tolist())
    assert all(float(kl[one.parameter][one.index]) == pytest.approx(one.kl) for one in found.top)
    assert all(float(lm.model.get_parameter(one.parameter).detach()[one.index]) == one.value for one in found.top)
    assert found.numbers == len(every)
    assert sum(found.totals.values()) == pytest.approx(float(every.sum()), rel=1e-4)
    for name, counts in found.decades.items():
        own = kl[name].flatten()
        assert counts[0] == int((own == 0).sum())
        assert counts[-4 - LEAST_DECADE + 1] == int(((own >= 1e-4) & (own < 1e-3)).sum())
        drawn = found.drawn[name]
        assert torch.equal(own[drawn.flat_N], drawn.kl_N)
        assert len(drawn.flat_N.unique()) == len(drawn.flat_N)
        sizes = torch.bincount(drawn.decade_N, minlength=len(counts)).tolist()
        assert sizes == [min(count, 5) for count in counts]


def test_groups_are_squares_of_sums(tmp_path: Path) -> None:
    """Of groups of one number, predictions are those of the number; a matrix of one row is that row."""
    lm = tiny("llama")

    def single(name: str, w: torch.Tensor, g: torch.Tensor) -> dict[tuple[str, str], torch.Tensor]:
        return {(name, "each"): w * g, ("all", "sum"): (w * g).sum()}

    found = census(lm, WINDOWS, groups=single, map=tmp_path / "map.safetensors")
    for name, kl in load_file(tmp_path / "map.safetensors").items():
        assert torch.allclose(found.groups[name, "each"], kl, rtol=1e-4, atol=1e-12), name
    usual = census(lm, WINDOWS).groups
    assert usual["layers.1", "layer"].shape == ()
    assert usual["model.layers.1.mlp.down_proj.weight", "rows"].shape == (32,)
    assert usual["model.layers.1.mlp.down_proj.weight", "columns"].shape == (48,)
    gain = usual["model.norm.weight", "whole"]
    assert float(usual["outside the layers", "layer"]) != float(gain)


def test_of_a_gain_with_an_offset_both_edits_are_predicted() -> None:
    """Gemma multiplies by 1 + w: zeroing w leaves the gain 1, and only w = -1 takes it out."""
    lm = loud("gemma3_text")
    name, at = "model.layers.1.input_layernorm.weight", (4,)
    with torch.no_grad():
        lm.model.get_parameter(name)[at] = 0.3
    assert gain_offsets(lm)[name] == gain_offsets(lm)["model.norm.weight"] == 1
    assert set(gain_offsets(tiny("llama")).values()) == {0.0}
    (number,) = [one for one in census(lm, WINDOWS, draws=8).top if (one.parameter, one.index) == (name, at)]
    assert number.off == pytest.approx(number.kl * (1.3 / 0.3) ** 2, rel=1e-3)
    effects = effects_of(lm, WINDOWS, [zero(number.weights), scale(number.weights, -1 / number.value)])
    zeroed, off = effects.kl.sum(axis=1) / effects.tokens.sum()
    assert zeroed == pytest.approx(number.kl, rel=0.8)
    assert off > 5 * zeroed


# --- what is planted --------------------------------------------------------------------------------------------------

OFTEN = [[5 if place % 2 else token for place, token in enumerate(ids)] for ids in WINDOWS]
PLANTED = {
    "q": ("model.layers.1.self_attn.q_proj.weight", 100),
    "o": ("model.layers.1.self_attn.o_proj.weight", 30),
    "gate": ("model.layers.1.mlp.gate_proj.weight", 100),
    "down": ("model.layers.1.mlp.down_proj.weight", 100),
    "gain": ("model.layers.1.input_layernorm.weight", 30),
    "embedding": ("model.embed_tokens.weight", 5),
}
"""What is made so many times as large as the largest beside it. More would let it fill its vector alone: a norm takes
that size away again, and the slope no longer sees it."""


@pytest.mark.parametrize("place", PLANTED)
def test_a_planted_number_is_among_the_first(place: str) -> None:
    """Law 6: of gains and matrices alike; queries of a random model carry less than others, and are held against
    queries."""
    lm, (name, times) = tiny("llama"), PLANTED[place]
    parameter = lm.model.get_parameter(name)
    index = (5, 7)[: parameter.dim()]
    with torch.no_grad():
        parameter[index] = times * parameter.abs().max()
    top = census(lm, OFTEN if place == "embedding" else WINDOWS, draws=4, top=10_000).top
    kinds = kinds_of(lm)
    same = [one for one in top if (kinds[one.parameter] == "gain") == (place == "gain")]
    if place == "q":
        same = [one for one in same if one.parameter.endswith("q_proj.weight")]
    assert (name, index) in [(one.parameter, one.index) for one in same[:3]]


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "lfm2", "qwen3_next"])
def test_a_planted_down_projection_is_among_the_first_of_its_matrices(architecture: str) -> None:
    lm = tiny(architecture)
    ref = lm.anatomy.layers[1].writers[0]
    parameter, index = lm.model.get_parameter(ref.parameter), ref.index(5, 7)
    with torch.no_grad():
        parameter[index] = 30 * parameter.abs().max()
    written = {one.parameter for layer in lm.anatomy.layers for one in layer.writers}
    top = [one for one in census(lm, WINDOWS, draws=4, top=100_000).top if one.parameter in written]
    assert (ref.parameter, index) in [(one.parameter, one.index) for one in top[:3]]


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_controls_are_alike_in_size_or_in_what_is_predicted(name: str) -> None:
    lm = tiny("llama")
    found, parameter = census(lm, WINDOWS, top=10_000), lm.model.get_parameter(name).detach()
    own = next(one for one in found.top if one.parameter == name)
    known = found.predictions(name, parameter.shape)
    assert known[own.index] == own.kl
    other = max((one for one in known if one != own.index), key=lambda one: known[one])
    chosen = controls_by_prediction(lm, own.weights, known, count=8, exclude=[other])
    indices = [one.entries[0] for one in chosen]
    assert len(set(indices)) == 8
    assert {one.parameter for one in chosen} == {name}
    assert not {own.index, other} & set(indices)
    free = [one for one in known if one not in (own.index, other) and known[one] > 0]
    nearest = sorted(free, key=lambda one: abs(math.log(known[one] / own.kl)))[:4]
    assert indices[:4] == nearest
    distance = (parameter.abs() - parameter[own.index].abs()).abs()
    left = sorted(float(distance[at]) for at in np.ndindex(*parameter.shape) if at not in {own.index, other, *nearest})
    assert sorted(float(distance[at]) for at in indices[4:]) == left[:4]


def test_controls_of_an_expert_are_of_the_same_expert() -> None:
    lm = tiny("mixtral")
    name = lm.anatomy.layers[1].writers[2].parameter
    number = Weights(parameter=name, entries=((2, 3, 4),))
    known = {(1, 3, 4): 1.0, (2, 3, 4): 1.0, (2, 0, 0): 0.5}
    chosen = controls_by_prediction(lm, number, known, count=6)
    assert {one.entries[0][0] for one in chosen} == {2}
    assert chosen[0].entries == ((2, 0, 0),)
    norm = Weights(parameter="model.norm.weight", entries=((1,),))
    width = lm.model.get_parameter("model.norm.weight").numel()
    assert len(controls_by_prediction(lm, norm, {(1,): 1.0}, count=width + 8)) == width - 1  # all there are
