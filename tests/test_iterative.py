"""The paper's loop: what was taken out stays out, and the search ends when the spikes are gone."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from studfinder.detectors import observe
from studfinder.detectors.iterative import iterative_search
from studfinder.detectors.super_weights import SuperWeights
from studfinder.edits import edited, zero
from studfinder.models import LM, content_hash, load
from studfinder.sites import Site, tapped
from tiny import prompts, tiny

PROMPTS = prompts((6,))
GEOMETRIES = {"one": 1, "one row": 2, "one column": 2, "two layers": 2, "three in a row": 3}


def drawn(geometry: str, draws: random.Random) -> list[tuple[int, int, int]]:
    """Distinct (layer, row, col) of the planted weights."""
    count, layer = GEOMETRIES[geometry], draws.randrange(3)
    rows, cols = draws.sample(range(32), count), draws.sample(range(48), count)
    if "row" in geometry:
        rows = [rows[0]] * count
    if "column" in geometry:
        cols = [cols[0]] * count
    layers = draws.sample(range(3), count) if "layers" in geometry else [layer] * count
    return sorted(zip(layers, rows, cols, strict=True))


@contextmanager
def planted(lm: LM, places: list[tuple[int, int, int]], weight: float = 5.0) -> Iterator[None]:
    """The weights, and inputs of theirs that spike at the first token: each gives a term of 1,000 there."""
    cols = {layer: [col for at, _, col in places if at == layer] for layer, _, _ in places}

    def spiking(layer: int):
        def replace(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, 0, cols[layer]] = 200.0
            return x

        return replace

    with torch.no_grad():
        for layer, row, col in places:
            lm.model.model.layers[layer].mlp.down_proj.weight[row, col] = weight
    with tapped(lm, replace={Site("down_proj.input", layer): spiking(layer) for layer in cols}):
        yield


def spikes(lm: LM) -> list[float]:
    """The largest output of each layer."""
    seen = SuperWeights(lm)
    observe(lm, PROMPTS, [seen])
    return [abs(spike.value) for spike in seen.output_spikes]


def coordinates(found) -> set[tuple[int, int, int]]:
    return {(w.layer, w.row, w.col) for w in found}


@pytest.mark.parametrize("count", [6, pytest.param(40, marks=pytest.mark.deep)])  # 200 in all
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_planted_super_weights_are_all_found_wherever_they_are(geometry, count):
    draws, original = random.Random(geometry), tiny("llama")
    for _ in range(count):
        lm, places = load(copy.deepcopy(original.model)), drawn(geometry, draws)
        before = content_hash(lm)
        with planted(lm, places):
            planted_hash, clean = content_hash(lm), spikes(lm)
            found = iterative_search(lm, PROMPTS)
            assert coordinates(found) == set(places)
            assert len(found) == len(places)  # nothing is met again
            assert content_hash(lm) == planted_hash != before
            with edited(lm, zero(found)):  # it ended because the spikes are gone
                left = spikes(lm)
        assert all(now <= max(50.0, 0.3 * height) for now, height in zip(left, clean, strict=True))


def test_a_neuron_that_writes_to_all_channels_alike_is_given_up():
    lm = tiny("llama")
    rounds: list[int] = []
    with planted(lm, [(1, 0, 7)]):
        with torch.no_grad():
            lm.model.model.layers[1].mlp.down_proj.weight[:, 7] = 5.0 + torch.rand(32)
        found = iterative_search(lm, PROMPTS, progress=rounds.append)
    assert sum(w.layer == 1 for w in found) == 3
    assert rounds == list(range(1, len(found) + 2))


def test_a_model_without_spikes_is_looked_at_once():
    rounds: list[int] = []
    assert iterative_search(tiny("llama"), PROMPTS, progress=rounds.append) == ()
    assert rounds == [1]
