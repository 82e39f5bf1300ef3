"""A model in which a later token moves an earlier output is found by trying, and refused where it would be scored."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scanned import a_scan
from studfinder.edits import RandomDims, dims, edited, noise
from studfinder.errors import StudfinderError
from studfinder.measures import damage_matched, effects_of, log_likelihoods, perplexity
from studfinder.measures.greedy import greedy
from studfinder.measures.induction import in_context_learning, induction
from studfinder.measures.passkey import passkey
from studfinder.measures.repetition import repetition
from studfinder.models import LM, load
from studfinder.prove import prove
from studfinder.records import Findings, read_record
from studfinder.sites import bidirectional, causal, check_causal
from studfinder.verbs.continuations import continuations
from studfinder.verbs.measure import measure
from studfinder.verbs.scan import scan
from tiny import ARCHITECTURES, prompts, tiny, tokenizer, two_way

CASES = 210
Visible = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_causal_models_are_causal_in_every_dtype(architecture):
    for dtype in (torch.float32, torch.bfloat16):
        assert bidirectional(tiny(architecture, dtype=dtype)) == ""


def _ways(generator: random.Random) -> dict[str, Visible]:
    """Attention that sees ahead: how query places see key places."""
    size, ahead = generator.randint(2, 18), generator.randint(1, 9)
    return {
        "everything": lambda q, k: q == q,
        "a window on both sides": lambda q, k: (q - k).abs() <= ahead,
        "one token ahead": lambda q, k: k <= q + 1,
        "chunks": lambda q, k: q // size == k // size,
        "what is before, and the own chunk": lambda q, k: (k <= q) | (q // size == k // size),
        "a token some places ahead": lambda q, k: (k <= q) | (k == q + ahead),
        "nothing but what comes": lambda q, k: k >= q,
    }


@pytest.fixture
def peeking(monkeypatch) -> Callable[[Visible], str]:
    """Says what a model with such attention in one of its layers is found to be; which tokens see which is settable."""
    seen: dict[str, Visible] = {}

    def attention(module: nn.Module, query, key, value, mask, scaling=None, **_):
        places = torch.arange(query.shape[2])
        see = seen["by"] if module.layer_idx == seen["layer"] else (lambda q, k: k <= q)
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(
            ~see(places[:, None], places[None, :]), float("-inf")
        )
        return (scores.softmax(dim=-1) @ value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "peeking", attention)
    models = {dtype: tiny("llama", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    for lm in models.values():
        lm.model.set_attn_implementation("peeking")

    def found(by: Visible, layer: int = 0, dtype: torch.dtype = torch.float32) -> str:
        seen.update(by=by, layer=layer)
        causal._KNOWN.clear()
        return bidirectional(models[dtype])

    return found


def test_every_way_to_look_ahead_is_found(peeking, monkeypatch):
    generator = random.Random(0)
    missed, tried = [], 0
    while tried < CASES:
        for name, way in _ways(generator).items():
            layer, dtype = generator.randrange(3), generator.choice([torch.float32, torch.bfloat16])
            tried += 1
            if peeking(way, layer, dtype) != "llama as tried":
                missed.append((name, layer, dtype))
    assert not missed
    monkeypatch.setattr(causal, "_looks_ahead", lambda _lm: False)
    assert not any(peeking(way) for way in _ways(generator).values())


def test_narrow_windows_and_chunks_that_do_not_look_ahead_are_causal(peeking):
    for size in range(1, 20):
        assert peeking(lambda q, k, n=size: (k <= q) & (q - k < n)) == ""
        assert peeking(lambda q, k, n=size: (k <= q) & (q // n == k // n)) == ""


@pytest.mark.parametrize("window", [2, 6, 64, 4096])
def test_embedding_gemma_is_named(window):
    assert bidirectional(two_way(sliding_window=window)) == "gemma3_text with use_bidirectional_attention"


def test_it_costs_two_passes_and_is_kept_for_the_model():
    lm, calls = tiny("llama"), []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(3):
        check_causal(lm, "anything")
    assert len(calls) == 2
    lm.model.set_attn_implementation("eager")
    check_causal(lm, "anything")
    assert len(calls) == 4


def test_under_edits_of_activations_nothing_is_tried_and_the_config_is_believed():
    for lm, reason in ((tiny("llama"), ""), (two_way(), "gemma3_text with use_bidirectional_attention")):
        with edited(lm, noise(dims(lm, select=RandomDims(1)), 0.1)):
            assert bidirectional(lm) == reason
        assert lm.model not in causal._KNOWN


PATHS: dict[str, Callable[[LM], object]] = {
    "likelihoods": lambda lm: log_likelihoods(lm, [([5, 6], [7])]),
    "perplexity": lambda lm: perplexity(lm, ["w3 w4 w5 w6 " * 9], window=8),
    "word perplexity": lambda lm: perplexity(lm, ["w3 w4 w5 w6 " * 9], window=8, protocol="word"),
    "sweep": lambda lm: effects_of(lm, prompts(), [()]),
    "damage": lambda lm: damage_matched(lm, prompts(), (), lambda _: ()),
    "proof": lambda lm: prove(lm, a_scan(found=False)[0]),
    "greedy": lambda lm: greedy(lm, [[5, 6]], 2),
    "induction": lambda lm: induction(lm, "8"),
    "in-context-learning": lambda lm: in_context_learning(lm),
    "repetition": lambda lm: repetition(lm, "8"),
    "passkey": lambda lm: passkey(lm, "90", limit=1),
    "measure": lambda lm: measure(lm),
    "measure against": lambda lm: measure(tiny("llama"), against=lm),
}


@pytest.mark.parametrize("path", PATHS)
def test_what_needs_a_likelihood_refuses_by_name(path):
    model = two_way(max_position_embeddings=4096).model
    lm = load(model, tokenizer())
    with pytest.raises(StudfinderError, match=r"is bidirectional \(gemma3_text with use_bidirectional_attention\)"):
        PATHS[path](lm)


def test_continuations_refuse():
    with pytest.raises(StudfinderError, match="is bidirectional"):
        continuations(load(two_way().model, tokenizer()), scan(_planted()))


def _planted() -> LM:
    from test_detectors import plant_weight

    lm = tiny("llama")
    plant_weight(lm)
    return load(lm.model, tokenizer())


def test_scan_works_and_says_so_in_one_line(tmp_path, mistake, capsys, monkeypatch):
    from studfinder.cli.app import run_cli
    from studfinder.report.caveats import caveats

    monkeypatch.chdir(tmp_path)
    lm = two_way()
    lm.model.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "t.txt").write_text("w3 w4 w5 w6 " * 400)
    refused = mistake("measure", "m")
    assert "m is bidirectional (gemma3_text with use_bidirectional_attention)" in refused
    assert "is bidirectional" in mistake("train", "--from", "m", "--text", "t.txt", "--length", 16, "--out", "r")
    assert not (tmp_path / "r").exists()
    assert run_cli(["scan", "m", "--out", "s", "--prompt", "w3 w4 w5", "--prompt", "w6 w7"]) == 0
    printed = capsys.readouterr().out
    assert " ".join(printed.split()).count("a later token moves an earlier output") == 1
    findings = read_record(Findings, tmp_path / "s" / "findings.json")
    assert findings.proof is None
    assert dict(caveats(findings))["bidirectional"].startswith("gemma3_text with use_bidirectional_attention")
