"""The proof: nothing in a random model, the planted weight in every architecture, and the rule itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proving import LAYER, provable
from studfinder.detectors.published import TABLE, published_for
from studfinder.edits import channel, entry, scale, zero
from studfinder.errors import StudfinderError
from studfinder.measures import effects_of, perplexity
from studfinder.measures.effects import Effects
from studfinder.models import content_hash
from studfinder.prove import _Case, _judge
from studfinder.stats import ratio_interval
from studfinder.verbs.scan import scan
from tiny import ARCHITECTURES, token_ids


@pytest.mark.real  # whole scans
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_proven_in_a_random_model(architecture: str) -> None:
    lm, _ = provable(architecture, planted=False)
    findings = scan(lm)
    assert findings.proven == ()
    assert findings.proof is not None
    assert findings.summary.nearest_super_weight is None or findings.summary.nearest_super_weight.score < 50


@pytest.mark.real  # whole scans
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_planted_super_weight_is_proven_at_its_coordinates(architecture: str) -> None:
    lm, index = provable(architecture, planted=True)
    before = content_hash(lm)
    findings = scan(lm)
    assert [(w.layer, w.index) for w in findings.proven] == [(LAYER, index)]
    weight = findings.proven[0]
    assert weight.effect is not None
    assert len(weight.effect.control_kls) == 20
    assert weight.effect.kl.low > max(0.01, *weight.effect.control_kls)
    assert len(findings.continuations) == 3
    assert content_hash(lm) == before


def _case(kl: list[float], controls: tuple[float, ...], marginal: list[float] | None = None) -> _Case:
    tokens = np.full(16, 250)
    noise = np.linspace(0.95, 1.05, 16)
    effects = Effects(np.array([np.array(kl) * noise * 250]), np.zeros((1, 16)), np.zeros(16), tokens)
    case = _Case(candidate=CANDIDATE, effects=effects, row=0, controls=controls)
    if controls:
        case.worst = ratio_interval(np.full(16, max(controls)) * tokens, tokens)
    if marginal is not None:
        case.marginal = ratio_interval(np.array(marginal) * noise * 250, tokens)
        case.marginal_controls = controls
    return case


CANDIDATE = scan(provable("llama", planted=True)[0], prove=False).super_weights[0]


@pytest.mark.parametrize(
    ("kl", "controls", "marginal", "verdict"),
    [
        ([1.0], (0.001,) * 20, None, "proven"),
        ([1.0], (2.0,) * 20, None, "candidate"),  # a control does as much
        ([0.001], (), [0.001], "inert"),
        ([0.001], (), None, "inert"),
        ([0.001], (0.001,) * 20, [1.0], "proven-jointly"),
        ([0.001], (2.0,) * 20, [1.0], "candidate"),
        ([0.0102], (), None, "candidate"),  # neither bound is clear of the floor
    ],
)
def test_the_rule(kl: list[float], controls: tuple[float, ...], marginal: list[float] | None, verdict: str) -> None:
    assert _judge(_case(kl, controls, marginal), 0.95, 0.01).verdict == verdict


def test_a_sweep_equals_one_edit_at_a_time_and_a_dense_computation() -> None:
    from studfinder.edits import edited

    lm, _ = provable("llama", planted=False)
    encoded = [token_ids(1, n, seed=n)[0].tolist() for n in (12, 7, 20)]
    variants = [zero(channel(lm, 2, 3)), scale(entry(lm, 0, 1, 2), 100.0)]
    together = effects_of(lm, encoded, variants)
    for number, edits in enumerate(variants):
        alone = effects_of(lm, encoded, [edits])
        np.testing.assert_allclose(together.kl[number], alone.kl[0], rtol=1e-4, atol=1e-6)
        for window, ids in enumerate(encoded):
            with torch.no_grad():
                clean = lm.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
                with edited(lm, edits):
                    other = lm.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            kl = float((clean.exp() * (clean - other)).sum())
            nll = -float(other.gather(1, torch.tensor(ids[1:])[:, None]).sum())
            assert together.kl[number, window] == pytest.approx(kl, rel=1e-3, abs=1e-5)
            assert together.nll[number, window] == pytest.approx(nll, rel=1e-4)


def test_the_interval_covers() -> None:
    """At 90 %, about nine in ten intervals hold the truth."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        sums = generator.normal(1.0, 0.3, size=24)
        interval = ratio_interval(sums, np.ones(24), level=0.9)
        hits += interval.low <= 1.0 <= interval.high
    assert 160 <= hits <= 195


def test_perplexity_protocols_count_what_they_say() -> None:
    lm, _ = provable("llama", planted=False)
    whole = perplexity(lm, ["some words " * 30], window=100)
    assert sum(whole.items["tokens"]) == 330 - 4  # each of four windows gives up its first token
    strided = perplexity(lm, ["some words " * 30], window=100, stride=50)
    assert sum(strided.items["tokens"]) == 329  # every token but the first is scored once
    word = perplexity(lm, ["some words here", "and more"], protocol="word", window=100)
    assert sum(word.items["tokens"]) == 5
    assert whole.value == pytest.approx(np.exp(sum(whole.items["nll"]) / sum(whole.items["tokens"])))
    assert whole.interval.low < whole.value < whole.interval.high
    with pytest.raises(StudfinderError, match="shorter than one window"):
        perplexity(lm, ["short"], protocol="gptq")
    with pytest.raises(StudfinderError, match="no text"):
        perplexity(lm, "no such text")


def test_published_coordinates_match_by_name_then_by_shape() -> None:
    card = scan(provable("llama", planted=False)[0], prove=False).model
    from dataclasses import replace

    named = replace(card, id="meta-llama/Llama-2-7b-hf")
    assert {(p.model, p.layer, p.row, p.col, p.match) for p in published_for(named, ())} == {
        ("Llama-2-7B", 1, 2533, 7890, "name")
    }
    shaped = replace(card, id="./mine", layers=32, hidden=4096, intermediate=11008)
    assert {p.model for p in published_for(shaped, ())} == {"Llama-7B", "Llama-2-7B", "OLMo-7B-0724"}
    assert all(p.match == "shape" for p in published_for(shaped, ()))
    assert published_for(card, ()) == ()
    assert len({(entry.model, entry.weights) for entry in TABLE}) == len(TABLE)


def test_the_papers_loop_finds_the_planted_weight_and_leaves_no_trace() -> None:
    lm, index = provable("llama", planted=True)
    with torch.no_grad():  # the paper wants a spike of its own in the input, too
        lm.model.get_parameter("model.layers.1.mlp.up_proj.weight")[7].mul_(1e4)
    before = content_hash(lm)
    findings = scan(lm, iterative=True, prove=False)
    assert findings.super_weights[0].index == index
    assert content_hash(lm) == before
