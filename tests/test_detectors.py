"""Detectors: what is planted is found where it was planted, and nothing else counts."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from studfinder.detectors import DETECTORS, observe
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import MassiveValues, agreement, concentration, concentration_null
from studfinder.detectors.super_weights import SuperWeights
from studfinder.models import LM
from studfinder.records import Thresholds
from studfinder.sites import Site, WriterCall, capture, tapped
from studfinder.texts import batches
from tiny import ARCHITECTURES, prompts, tiny, two_way

PROMPTS = prompts()
OWN_ATTENTION = ("bloom", "falcon", "gpt_neo")
EAGER = ("gemma2", "gpt_oss")


LOW = Thresholds(activation=0.1, activation_ratio=3.0, lam=1.2, score=5.0, share=0.3, sink=0.2)
"""So low that a random model has something of each kind."""


def detectors(lm: LM, at: Thresholds | None = None):
    return SuperWeights(lm, at), MassiveActivations(lm, at), MassiveValues(lm, at), AttentionSinks(lm, at)


def seen(lm: LM, encoded=PROMPTS, at: Thresholds | None = None, **options):
    watching = detectors(lm, at)
    assert observe(lm, encoded, watching, **options)
    return watching


def attention_layer(lm: LM) -> int:
    return next(i for i, layer in enumerate(lm.anatomy.layers) if layer.attention is not None)


def plant_weight(lm: LM, writer: int = 0, layer: int = 1, row: int = 9, col: int = 7) -> tuple[int, ...]:
    """Make one weight carry an outlying output. Returns its literal index."""
    ref = lm.anatomy.layers[layer].writers[writer]
    with torch.no_grad():
        lm.model.get_parameter(ref.parameter)[ref.index(row, col)] = 90.0
    return ref.index(row, col)


# --- what is planted is found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_untouched_random_model_has_none_of_the_three(architecture):
    """Law 6, the negative half."""
    super_weights, activations, values, _ = seen(tiny(architecture))
    assert super_weights.found() == ()
    assert super_weights.nearest() is not None or not any(super_weights.peaks)
    assert activations.found() == ()
    assert activations.nearest() is not None
    assert values.found() == ()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_planted_super_weight_is_found_at_its_coordinates(architecture):
    """Law 6: what is planted is found at its coordinates."""
    lm = tiny(architecture)
    for writer in range(len(lm.anatomy.layers[1].writers)):
        lm = tiny(architecture)
        index = plant_weight(lm, writer)
        parameter = lm.anatomy.layers[1].writers[writer].parameter
        best = seen(lm)[0].found()[0]
        assert (best.layer, best.row, best.col, best.value) == (1, 9, 7, 90.0)
        assert (best.parameter, best.index, best.expert) == (
            parameter,
            index,
            lm.anatomy.layers[1].writers[writer].expert,
        )
        assert lm.model.get_parameter(parameter)[best.index] == 90.0
        assert best.share == pytest.approx(best.input_spike * 90 / best.output_spike, rel=1e-4)
        assert best.share > 0.5


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_super_weights_spikes_are_those_of_its_token(architecture):
    lm = tiny(architecture)
    plant_weight(lm)
    best = seen(lm)[0].found()[0]
    calls: list[WriterCall] = []
    with torch.no_grad(), tapped(lm, read={WriterCall: [calls.append]}):
        lm.model(input_ids=torch.tensor([PROMPTS[best.prompt]]))
    call = next(c for c in calls if (c.layer, c.writer) == (1, 0))
    row = best.position if call.token_N is None else call.token_N.tolist().index(best.position)
    assert call.input_NF[row, 7].item() == pytest.approx(best.input_spike, rel=1e-3)
    assert call.output_NC[row, 9].item() == pytest.approx(best.output_spike, rel=1e-3)
    assert best.token == str(PROMPTS[best.prompt][best.position])  # no tokenizer: the id


def test_two_weights_that_carry_an_output_together_are_both_candidates():
    lm = tiny("llama")
    x = capture(lm, torch.tensor([PROMPTS[0]]), ["down_proj.input[1]"])["down_proj.input[1]"]
    token = 4
    with torch.no_grad():  # at this token both terms are 40; elsewhere they are what they are
        weight = lm.model.model.layers[1].mlp.down_proj.weight
        weight[3, 5], weight[3, 6] = 40 / x[token, 5], 40 / x[token, 6]
    found = seen(lm, PROMPTS[:1])[0].found()
    assert {(w.row, w.col) for w in found if w.layer == 1} == {(3, 5), (3, 6)}


def test_an_output_of_many_small_terms_is_nobodys_doing():
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.model.layers[1].mlp.down_proj.weight[3] = 300.0
    with tapped(lm, replace={Site("down_proj.input", 1): lambda x: x.abs() + 0.01}):
        super_weights = seen(lm)[0]
    assert super_weights.output_spikes[1].channel == 3
    assert super_weights.found() == ()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_planted_massive_activation_is_found_at_its_coordinates(architecture):
    """Law 6: what is planted is found at its coordinates."""
    lm = tiny(architecture)
    prompt, position, dim = 1, 5, 11

    def plant(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] != len(PROMPTS[prompt]):
            return hidden
        hidden = hidden.clone()
        hidden[0, position, dim] = -5e4
        return hidden

    with tapped(lm, replace={Site("residual", 1): plant}):
        _, activations, _, _ = seen(lm)
    found = activations.found()
    assert {(e.prompt, e.position, e.dim) for e in found} == {(prompt, position, dim)}
    assert (found[0].layer, found[0].value) == (1, torch.tensor(-5e4).item())
    assert found[0].ratio == pytest.approx(5e4 / found[0].median)
    assert {e.layer for e in found} == {1, 2}  # the residual stream carries it on


def test_the_rule_needs_both_thresholds():
    lm = tiny("llama")

    def plant(value: float):
        def replace(hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden.clone()
            hidden[:, 2, 3] = value
            return hidden

        return replace

    for site, value, massive in (
        (Site("residual", 2), 99.0, False),  # over 1000 medians, not over 100
        (Site("residual", 2), 101.0, True),
    ):
        with tapped(lm, replace={site: plant(value)}):
            found = seen(lm)[1].found()
        assert bool(found) is massive
    with tapped(lm, replace={Site("residual", 2): lambda hidden: plant(9e4)(torch.full_like(hidden, 100.0))}):
        assert not seen(lm)[1].found()  # over 100, not over 1000 medians


@pytest.mark.parametrize("tensor", ["query", "key", "value"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_planted_massive_value_is_found_at_its_coordinates(architecture, tensor):
    """Law 6: what is planted is found at its coordinates."""
    lm = tiny(architecture)
    layer, dim = attention_layer(lm), 6
    head = 0 if tensor != "query" and lm.anatomy.kv_heads == 1 else 1
    kind = f"{tensor}.pre_rope" if lm.anatomy.stage == "pre-RoPE" and tensor != "value" else tensor

    def plant(states: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        states[:, head, :, dim] = 1e3
        return states

    with tapped(lm, replace={Site(kind, layer): plant}):
        _, _, values, _ = seen(lm)
    assert [(e.layer, e.tensor, e.head, e.dim) for e in values.found()] == [(layer, tensor, head, dim)]
    tokens = sum(map(len, PROMPTS))
    assert values.found()[0].norm == pytest.approx(1e3 * math.sqrt(tokens), rel=1e-5)


def test_the_lambda_rule_is_that_of_a_dense_computation():
    lm = tiny("qwen2")
    dense = [capture(lm, torch.tensor([ids]), ["query[1]"])["query[1]"][0] for ids in PROMPTS]
    norm_HD = torch.cat(dense, dim=1).double().norm(dim=1)
    for lam in (1.0, 1.5, 2.0):
        for scope in ("head", "layer"):
            values = MassiveValues(lm, Thresholds(lam=lam), scope=scope)
            observe(lm, PROMPTS, [values])
            mean = norm_HD.mean(dim=1, keepdim=True) if scope == "head" else norm_HD.mean()
            expected = {tuple(hit) for hit in (norm_HD > lam * mean).nonzero().tolist()}
            found = {(e.head, e.dim) for e in values.found() if (e.layer, e.tensor) == (1, "query")}
            assert found == expected
    torch.testing.assert_close(values.norm_HD("query", 1), norm_HD)


# --- order, batches and padding -------------------------------------------------------------------------------------


def poisoned(architecture: str) -> LM:
    """A model with something to find, whose padding token would drown everything if it counted."""
    lm = tiny(architecture)
    plant_weight(lm)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[0] = 1e4
    return lm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_depend_neither_on_batch_size_nor_on_order_nor_on_padding(architecture):
    """Law 10: results do not depend on batch size or order."""
    lm = poisoned(architecture)
    alone, together = seen(lm, at=LOW), seen(lm, at=LOW, batch_size=4)
    order = [2, 0, 3, 1]
    shuffled = seen(lm, [PROMPTS[i] for i in order], LOW, batch_size=2)
    for other, names in ((together, range(4)), (shuffled, order)):
        same_results(lm, alone, other, list(names))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nor_in_a_model_whose_tokens_see_those_after_them(attention, monkeypatch):
    lm = two_way()
    lm.model.set_attn_implementation(attention)
    plant_weight(lm)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[0] = 1e4
    alone = seen(lm, at=LOW)
    for size in range(2, len(PROMPTS) + 1):
        same_results(lm, alone, seen(lm, at=LOW, batch_size=size), list(range(4)))
    monkeypatch.setattr(sys.modules["studfinder.detectors.observe"], "bidirectional", lambda _lm: "")
    with pytest.raises(AssertionError):  # the padding is seen
        same_results(lm, alone, seen(lm, at=LOW, batch_size=4), list(range(4)))


def same_results(lm: LM, one, other, names: list[int]) -> None:
    """The same findings, all of them, up to rounding; `names` says which of one's prompts each of other's is."""
    mine, theirs = (
        (
            {(w.parameter, w.index, of[w.prompt], w.position): (w.value, w.output_spike) for w in watching[0].found()},
            {(a.layer, of[a.prompt], a.position, a.dim): a.value for a in watching[1].found()},
            {(v.layer, v.tensor, v.head, v.dim): v.norm for v in watching[2].found()},
            {(s.layer, s.head): s.strength for s in watching[3].found()},
        )
        for watching, of in ((one, range(len(names))), (other, names))
    )
    assert all(mine[:3])
    for found, expected in zip(theirs, mine, strict=True):
        assert found == {place: pytest.approx(value, rel=1e-4) for place, value in expected.items()}
    assert other[1].layers.keys() == one[1].layers.keys()
    for layer, stats in one[1].layers.items():
        assert other[1].layers[layer].magnitudes.n == stats.magnitudes.n
        assert other[1].layers[layer].magnitudes.median == pytest.approx(stats.magnitudes.median, rel=0.01)
        tops = [
            {(of[prompt], position, dim): value for value, (prompt, position, dim) in top.entries}
            for top, of in ((stats.top, range(len(names))), (other[1].layers[layer].top, names))
        ]
        assert len(tops[0]) == len(tops[1]) == stats.top.k
        least = 1.0001 * min(map(abs, tops[0].values()))  # ties for the last place go by the prompt's number
        assert sorted(map(abs, tops[1].values())) == pytest.approx(sorted(map(abs, tops[0].values())), rel=1e-4)
        tops = [{place: value for place, value in top.items() if abs(value) > least} for top in tops]
        assert tops[1] == pytest.approx(tops[0], rel=1e-4)
    assert other[2].sums.keys() == one[2].sums.keys()
    for key in one[2].sums:
        torch.testing.assert_close(other[2].norm_HD(*key), one[2].norm_HD(*key), rtol=1e-4, atol=1e-5)
    assert other[3].totals.keys() == one[3].totals.keys()
    for layer in one[3].totals:
        torch.testing.assert_close(other[3].strength_H(layer), one[3].strength_H(layer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "lfm2", "falcon"])
def test_detectors_of_two_halves_merge_into_that_of_the_whole(architecture):
    """Law 5 for whole detectors."""
    lm = tiny(architecture)
    plant_weight(lm)
    everything = list(batches(PROMPTS, 1))
    whole, first, second = detectors(lm), detectors(lm), detectors(lm)
    run(lm, everything, whole)
    run(lm, everything[:2], first)
    run(lm, everything[2:], second)
    for mine, other in zip(first, second, strict=True):
        mine.merge(other)
    assert first[0].found() == whole[0].found()
    assert first[0].input_spikes == whole[0].input_spikes
    assert first[0].output_spikes == whole[0].output_spikes
    for layer, stats in whole[1].layers.items():
        assert first[1].layers[layer].top.entries == stats.top.entries
        assert first[1].layers[layer].magnitudes.counts.tolist() == stats.magnitudes.counts.tolist()
    for key in whole[2].sums:
        torch.testing.assert_close(first[2].norm_HD(*key), whole[2].norm_HD(*key))
    assert first[3].totals.keys() == whole[3].totals.keys()
    for layer in whole[3].totals:
        torch.testing.assert_close(first[3].strength_H(layer), whole[3].strength_H(layer))


def run(lm: LM, some, watching) -> None:
    """Observe by hand, each event at once: batches keep the numbers of their prompts."""
    batch, read = None, {}
    for detector in watching:
        for event, reader in detector.readers.items():
            read.setdefault(event, []).append(lambda event, reader=reader: reader([(batch, event)]))
    with torch.no_grad(), tapped(lm, read=read):
        for batch in some:
            for detector in watching:
                detector.begin(batch)
            lm.model(input_ids=batch.input_ids_BT, use_cache=False)


@pytest.mark.parametrize("architecture", ["llama", "falcon", "gpt_neo"])
def test_reading_late_is_reading_at_once(architecture):  # falcon writes into what it has shown
    lm = tiny(architecture)
    plant_weight(lm)
    late, at_once = detectors(lm), detectors(lm)
    observe(lm, PROMPTS, late)
    run(lm, batches(PROMPTS, 1), at_once)
    assert late[0].found() == at_once[0].found()
    assert [s.top.entries for s in late[1].layers.values()] == [s.top.entries for s in at_once[1].layers.values()]


# --- attention sinks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [(a, "eager") for a in ARCHITECTURES if a not in OWN_ATTENTION]
    + [(a, "sdpa") for a in ARCHITECTURES if a not in OWN_ATTENTION + EAGER],
)
def test_sinks_are_the_models_own_attention_to_the_first_token(architecture, attention):
    lm = tiny(architecture, attention=attention)
    with torch.no_grad():  # strong enough scores that no head is uniform
        for name, parameter in lm.model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn")):
                parameter *= 6
    strength = {}
    for size in (1, 4):
        sinks = AttentionSinks(lm, Thresholds(sink_tokens=10))
        observe(lm, PROMPTS, [sinks], batch_size=size)
        strength[size] = torch.stack([sinks.strength_H(layer) for layer in sorted(sinks.totals)])
    dense = tiny(architecture, attention="eager")
    dense.model.load_state_dict(lm.model.state_dict())
    expected = torch.zeros_like(strength[1])
    for ids in PROMPTS:
        with torch.no_grad():
            weights = dense.model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        weights = [w for w in weights if w is not None and w.dim() == 4]
        expected += torch.stack([w[0, :, :10, 0].double().mean(dim=1) for w in weights]) / len(PROMPTS)
    torch.testing.assert_close(strength[1], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(strength[4], expected, rtol=1e-4, atol=1e-6)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("architecture", OWN_ATTENTION)
def test_where_scores_cannot_be_formed_sinks_are_not_measured(architecture):
    sinks = seen(tiny(architecture))[3]
    assert sinks.strength_H(0) is None
    assert sinks.heads == 0
    assert sinks.found() == ()


def test_a_head_that_attends_to_the_first_token_is_a_sink():
    lm = tiny("llama")

    def first(key: torch.Tensor) -> torch.Tensor:
        key = torch.zeros_like(key)
        key[:, 1, 0, 0] = 1e3  # KV head 1 serves heads 2 and 3
        return key

    def look(query: torch.Tensor) -> torch.Tensor:
        query = torch.zeros_like(query)
        query[..., 0] = 1
        return query

    with tapped(lm, replace={Site("key", 2): first, Site("query", 2): look}):
        sinks = seen(lm, at=Thresholds(sink=0.9))[3]  # of prompts so short, even heads give the first token much
    strength = sinks.strength_H(2)
    assert strength[2:].tolist() == pytest.approx([1.0] * 2)
    uniform = sum(sum(1 / (t + 1) for t in range(len(ids))) / len(ids) for ids in PROMPTS) / len(PROMPTS)
    assert strength[:2].tolist() == pytest.approx([uniform] * 2, rel=1e-5)
    assert {s.head for s in sinks.found() if s.layer == 2} == {2, 3}


def test_a_prompt_of_one_token_says_nothing_of_sinks():
    assert seen(tiny("llama"), [[5]])[3].strength_H(0) is None


# --- what a map says beyond the count -------------------------------------------------------------------------------


def test_heads_that_agree_agree_and_random_ones_do_not():
    generator = torch.Generator().manual_seed(0)
    same = torch.rand(1, 64, generator=generator).expand(8, 64)
    assert agreement(same).overlap == 1
    assert agreement(same).p < 0.01
    p = [agreement(torch.rand(8, 64, generator=generator)).p for _ in range(40)]
    assert sum(value < 0.05 for value in p) <= 6  # 2 expected
    assert agreement(torch.rand(1, 64)) is None


@pytest.mark.parametrize("dims", [8, 64, 256])
def test_concentration_runs_from_even_to_one_dim(dims):
    one_hot = torch.zeros(2, dims)
    one_hot[:, 3] = 7
    assert concentration(torch.ones(2, dims)).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert concentration(one_hot).tolist() == pytest.approx([1, 1])
    assert 0 < concentration_null(dims) < 1
    many_tokens = torch.randn(1000, dims, generator=torch.Generator().manual_seed(1)).norm(dim=0)[None]
    assert concentration(many_tokens).item() < concentration_null(dims)


def test_silence_is_not_concentrated():
    assert concentration(torch.zeros(1, 8)).tolist() == [0.0]


# --- overflow -------------------------------------------------------------------------------------------------------


def test_an_overflow_is_reported_and_left_out():
    lm = tiny("llama")

    def overflow(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[0, 3, 3] = float("inf")
        return hidden

    watching = detectors(lm)
    with tapped(lm, replace={Site("residual", 1): overflow}):
        finite = observe(lm, PROMPTS, watching)
    sites = [site for detector in watching for site in detector.nonfinite()]
    after = ("residual", "attention", "query", "key", "value", "down_proj.input", "down_proj.output")
    assert set(sites) == {"residual[1]", *(f"{site}[2]" for site in after)}
    assert not finite  # attention carried it to the last token
    assert math.isfinite(watching[1].layers[1].magnitudes.median)
    assert all(math.isfinite(value) for value, _ in watching[1].layers[1].top.entries)
    assert watching[2].norm_HD("query", 2).isfinite().all()


def test_half_precision_that_overflows_names_its_site():
    lm = tiny("llama", dtype=torch.float16)
    with torch.no_grad():
        lm.model.model.layers[1].mlp.down_proj.weight.mul_(3e3)
        lm.model.model.layers[1].mlp.up_proj.weight.mul_(3e3)
        lm.model.model.layers[1].mlp.gate_proj.weight.mul_(3e2)
    watching = detectors(lm)
    observe(lm, PROMPTS, watching)
    assert "down_proj.output[1]" in watching[0].nonfinite()
    assert "residual[1]" in watching[1].nonfinite()
    assert "residual[0]" not in watching[1].nonfinite()


def test_every_registered_detector_is_there():
    from importlib import import_module

    for place in DETECTORS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))
