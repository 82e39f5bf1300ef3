"""The backward pass block by block against one graph over the model's own forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import transformers

from architected import PARTS, TYPES, built
from carried import DOWN, SPECIAL, llama, loaded, scaled, texts
from outside import quick_and_deep
from patching import difference, traces
from studfinder.edits import Activations, LargestEntry, edited, scale
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.passes import NO_LABEL, Gradients, gradients, likelihood, sampled_likelihood
from studfinder.patches import Journal
from studfinder.texts import Batch, batches
from tried import EIGHT, STATES, tokens

pytestmark = pytest.mark.filterwarnings("ignore::studfinder.edits.TiedWeightsWarning")


@pytest.fixture(scope="module", params=quick_and_deep(TYPES, *EIGHT))
def kind(request) -> str:
    if not hasattr(transformers, PARTS[request.param]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param} yet")
    return request.param


@pytest.fixture(scope="module")
def lm(kind: str) -> LM:
    return loaded(kind)


def of_autograd(lm: LM, batch: Batch, labels_BT: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Gradients of every parameter in one graph, of the log-likelihood of the text itself or of given labels."""
    if labels_BT is None:
        labels_BT = next_BT(batch)
    flags = {name: one.requires_grad for name, one in lm.model.named_parameters()}
    named = {name: one.requires_grad_() for name, one in lm.model.named_parameters() if one.is_floating_point()}
    with torch.enable_grad():
        logs_BTV = lm.model(input_ids=batch.input_ids_BT, use_cache=False).logits.float().log_softmax(-1)
        rows = (labels_BT != NO_LABEL).nonzero().tolist()
        total = torch.stack([logs_BTV[row, at, labels_BT[row, at]] for row, at in rows]).sum()
        found = torch.autograd.grad(total, list(named.values()), materialize_grads=True, allow_unused=True)
    for name, one in named.items():
        one.requires_grad_(flags[name])
    return dict(zip(named, found, strict=True))


def next_BT(batch: Batch) -> torch.Tensor:
    labels_BT = torch.full_like(batch.input_ids_BT, NO_LABEL)
    for row, length in enumerate(batch.lengths):
        labels_BT[row, : length - 1] = batch.input_ids_BT[row, 1:length]
    return labels_BT


def close(one: torch.Tensor, other: torch.Tensor, share: float = 2e-5) -> bool:
    """Up to rounding in the largest entries."""
    return one.shape == other.shape and bool(((one - other).abs() <= share * other.abs().amax() + 1e-7).all())


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 2e-5) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not close(found[name], expected[name], share)]


def taken(pieces: Iterable[Gradients]) -> dict[str, torch.Tensor]:
    """The gradients of one batch and draw, each once."""
    found: dict[str, torch.Tensor] = {}
    for piece in pieces:
        assert not found.keys() & piece.parameters.keys()
        found |= piece.parameters
    return found


def test_gradients_are_those_of_one_graph(kind: str, lm: LM):
    """Of every parameter, and nothing is left."""
    batch = texts(lm, 6, 4)[:1]
    expected, before = of_autograd(lm, batch[0]), traces(lm)
    found = taken(gradients(lm, batch, likelihood()))
    assert differing(found, expected) == []
    assert any(bool(one.any()) for one in found.values())
    if kind not in STATES:
        assert difference(before, traces(lm)) == []


@pytest.mark.parametrize("name", SPECIAL)
def test_gradients_of_special_models(name):
    lm = SPECIAL[name]()
    batch = texts(lm, 6, 4)[:1]
    expected = of_autograd(lm, batch[0])
    found = taken(gradients(lm, batch, likelihood()))
    assert differing(found, expected, 2e-5 if lm.dtype == torch.float32 else 0.02) == []
    assert {one.dtype for one in found.values()} == {torch.float32}


def test_all_batches_of_a_layer_come_before_the_layer_below():
    lm = llama()
    both = texts(lm, 6, 4)
    pieces = list(gradients(lm, both, sampled_likelihood(draws=2)))
    order = [(piece.layer, piece.batch is both[1], piece.draw) for piece in pieces]
    assert order == [(layer, batch, draw) for layer in range(5, -2, -1) for batch in (0, 1) for draw in (0, 1)]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gemma4_text", "cpmant"])
def test_gradients_of_the_stream(kind):
    """At every block's input, by one graph in which that is a leaf."""
    lm = loaded(kind)
    batch = texts(lm, 6, 4)[0]
    blocks = [lm.model.get_submodule(layer.block) for layer in lm.anatomy.layers]
    pieces = gradients(lm, [batch], likelihood(), parameters=())
    found = {piece.layer: piece.stream for piece in pieces}
    streams: list[torch.Tensor] = []

    def entering(_module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        streams.append(args[0] if args else kwargs["hidden_states"])

    def leaving(_module: torch.nn.Module, _args: tuple, output: Any) -> None:
        streams.append(output if isinstance(output, torch.Tensor) else output[0])

    with Journal(lm.model) as journal:
        journal.hook(blocks[0], entering, before=True, with_kwargs=True)
        for block in blocks:
            journal.hook(block, leaving)
        logs_BTV = lm.model(input_ids=batch.input_ids_BT, use_cache=False).logits.log_softmax(-1)
        labels_BT = next_BT(batch)
        rows = (labels_BT != NO_LABEL).nonzero().tolist()
        total = torch.stack([logs_BTV[row, at, labels_BT[row, at]] for row, at in rows]).sum()
        expected = torch.autograd.grad(total, streams)
    assert found.pop(-1) is None
    assert [layer for layer, one in enumerate(expected) if not close(found[layer], one)] == []
    assert len(found) == len(expected)


@pytest.mark.parametrize("where", [DOWN, "residual[1]", "embedding"])
def test_gradients_of_an_edited_model(where):
    lm = llama()
    batch = texts(lm, 6, 6)[:1]
    clean = of_autograd(lm, batch[0])
    change = scaled(lm, DOWN) if where == DOWN else scale(Activations(where, LargestEntry()), -2.0)
    with edited(lm, change):
        expected = of_autograd(lm, batch[0])
        assert differing(taken(gradients(lm, batch, likelihood())), expected) == []
    assert len(differing(clean, expected)) > 40
    assert differing(taken(gradients(lm, batch, likelihood())), clean) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kind", ["llama", "gemma4_text"])
def test_in_any_mode_and_with_any_flags(mode, kind):
    """Parameters that take gradients and that do not, and one that has a gradient: all stay so, at every step."""
    lm = load(built(kind))
    with mode():
        batch = texts(lm, 6, 4)[:1]
    expected = of_autograd(lm, texts(lm, 6, 4)[0])
    parameters = list(lm.model.parameters())
    for number, one in enumerate(parameters):
        one.requires_grad_(number % 2 == 0)
    parameters[0].grad = torch.ones_like(parameters[0])
    found: dict[str, torch.Tensor] = {}
    with mode():
        enabled = torch.is_grad_enabled()
        for piece in gradients(lm, batch, likelihood()):
            found |= piece.parameters
            assert [one.requires_grad for one in parameters] == [number % 2 == 0 for number in range(len(parameters))]
            assert torch.is_grad_enabled() == enabled
    assert differing(found, expected) == []
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(one.grad is None for one in parameters[1:])


def test_some_parameters():
    """They are what they are among all, tied or not, and the others take no part."""
    lm = loaded("gemma3_text")
    batch = texts(lm, 6, 4)[:1]
    expected = of_autograd(lm, batch[0])
    for names in (["model.embed_tokens.weight"], ["model.layers.3.mlp.down_proj.weight", "model.norm.weight"], []):
        found = taken(gradients(lm, batch, likelihood(), parameters=names))
        assert differing(found, {name: expected[name] for name in names}) == []


def test_parameters_that_have_no_gradient_are_refused():
    lm = llama()
    with pytest.raises(StudfinderError, match="no parameter 'x'"):
        gradients(lm, texts(lm, 6), likelihood(), parameters=["x"])
    lm.model.get_submodule("model.layers.0.mlp").up_proj.weight = torch.nn.Parameter(
        torch.zeros(3, 3, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(StudfinderError, match="quantised"):
        gradients(lm, texts(lm, 6), likelihood(), parameters=["model.layers.0.mlp.up_proj.weight"])
    with torch.inference_mode():
        lm = llama()
    with pytest.raises(StudfinderError, match="inference mode"):
        gradients(lm, texts(lm, 6), likelihood())


def test_the_graph_of_one_block_is_all_that_is_held():
    """Tensors saved for the backward pass at once: no more in eight blocks than in four."""

    def most(layers: int) -> int:
        lm = load(built("llama", num_hidden_layers=layers))
        batch, alive, peak = texts(lm, 6, 4)[:1], 0, 0

        class Saved:
            def __init__(self, tensor: torch.Tensor) -> None:
                nonlocal alive, peak
                self.tensor, alive = tensor, alive + tensor.numel()
                peak = max(peak, alive)

            def __del__(self) -> None:
                nonlocal alive
                alive -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            for _ in gradients(lm, batch, likelihood()):
                assert alive == 0
        return peak

    assert most(4) == most(8) > 0


# --- labels ----------------------------------------------------------------------------------------------------


def test_given_labels():
    """Wherever one is given, and nowhere else; one slice of positions after the other."""
    lm = loaded("llama")
    batch = texts(lm, 6, 4)[0]
    labels_BT = torch.full_like(batch.input_ids_BT, NO_LABEL)
    labels_BT[0, 5], labels_BT[0, 1], labels_BT[1, 0] = 7, 250, 3
    found = taken(gradients(lm, [batch], likelihood(lambda _: labels_BT)))
    assert differing(found, of_autograd(lm, batch, labels_BT)) == []


def test_a_slice_after_the_other_is_all_at_once(monkeypatch):
    lm = loaded("gemma3_text")  # its head is tied
    batch = texts(lm, 6, 4)[:1]
    of = sampled_likelihood(draws=2, seed=1)
    whole = list(gradients(lm, batch, of))
    monkeypatch.setattr("studfinder.passes.graphs._LOGITS", 3 * lm.anatomy.vocabulary)
    sliced = list(gradients(lm, batch, of))
    for one, other in zip(whole, sliced, strict=True):
        assert differing(other.parameters, one.parameters) == []


def test_labels_are_drawn_from_the_models_own_distribution():
    """At as many positions as it takes to tell; other ones for every draw, window and seed."""
    length, weights_V = 4000, torch.tensor([0.5, 0.0, 0.25, 0.2, 0.05])
    (batch,) = batches([[0] * length, [0] * length], 2)
    logits_NV = weights_V.log().expand(2 * length, -1).clone().requires_grad_()
    row_N, place_N = torch.arange(2).repeat_interleave(length), torch.arange(length).repeat(2)

    def labels(draws: int, seed: int) -> torch.Tensor:
        values_D = sampled_likelihood(draws, seed)(logits_NV, batch, row_N, place_N)
        slopes = [torch.autograd.grad(value, logits_NV, retain_graph=True)[0] for value in values_D]
        return torch.stack(slopes).argmax(-1)

    label_DN = labels(3, 0)
    parts = [*label_DN.unflatten(1, (2, length)).flatten(0, 1), labels(1, 1)[0, :length]]
    for part in parts:
        shares_V = torch.bincount(part, minlength=5) / length
        assert ((shares_V - weights_V).abs() < 4 * (weights_V * (1 - weights_V) / length).sqrt() + 1e-9).all()
    chance = float(weights_V.square().sum())
    for number, one in enumerate(parts):
        for other in parts[:number]:
            assert abs(float((one == other).float().mean()) - chance) < 0.04
    assert torch.equal(labels(1, 0), label_DN[:1])


def test_draws_do_not_depend_on_batches():
    """Law 10: the gradient of two windows is the sum of those of each, with the labels of each."""
    lm = loaded("llama")
    windows = tokens(lm, 2, 6)
    of = sampled_likelihood(draws=2, seed=3)
    (batch,) = batches(windows, 2)
    for draw in (0, 1):
        together = taken(piece for piece in gradients(lm, [batch], of) if piece.draw == draw)
        apart = [piece for piece in gradients(lm, list(batches(windows, 1)), of) if piece.draw == draw]
        first, second = (taken(piece for piece in apart if piece.batch.prompts == (row,)) for row in (0, 1))
        assert differing({name: first[name] + second[name] for name in first}, together) == []


def test_an_objective_of_ones_own():
    """Any number made of logits: here their sum at some positions."""
    lm = loaded("llama")
    batch = texts(lm, 6, 4)[0]

    def of(logits_NV: torch.Tensor, _batch: Batch, row_N: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
        return logits_NV[(row_N == 1) & (place_N == 2)].square().sum()[None]

    found = taken(gradients(lm, [batch], of, parameters=["model.norm.weight"]))
    gain = lm.model.get_parameter("model.norm.weight")
    total = lm.model(input_ids=batch.input_ids_BT, use_cache=False).logits[1, 2].square().sum()
    assert close(found["model.norm.weight"], torch.autograd.grad(total, gain)[0])
