"""The census: what it predicts is the Fisher information, and what is planted ranks first, wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studfinder.detectors.census import census
from studfinder.edits import scale
from studfinder.measures import effects_of
from studfinder.models import LM
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


# --- what is planted --------------------------------------------------------------------------------------------------


def plant(lm: LM, name: str, index: tuple[int, ...]) -> None:
    """Make one number so large that what it makes stands out."""
    parameter = lm.model.get_parameter(name)
    with torch.no_grad():
        parameter[index] = 30 * parameter.abs().max()


PLACES = {
    "q": "self_attn.q_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "down": "mlp.down_proj.weight",
    "gain": "input_layernorm.weight",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_number_is_among_the_first(place: str) -> None:
    lm = loud("llama")
    name = f"model.layers.1.{PLACES[place]}"
    index = (3, 5)[: lm.model.get_parameter(name).dim()]
    plant(lm, name, index)
    top = census(lm, WINDOWS, draws=4).top
    assert (name, index) in [(one.parameter, one.index) for one in top[:3]]


def test_a_planted_entry_of_an_embedding_is_among_the_first() -> None:
    lm = tiny("llama")
    row = WINDOWS[0][4]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[row, 7] = 20
    top = census(lm, WINDOWS, draws=4).top
    assert ("model.embed_tokens.weight", (row, 7)) in [(one.parameter, one.index) for one in top[:3]]
