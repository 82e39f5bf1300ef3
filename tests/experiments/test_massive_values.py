"""The experiments of the massive-values paper, end to end on tiny models with planted massive values."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from proving import tokenizer
from rerun import interrupted
from studfinder.edits import edited, massive_value_disruption
from studfinder.errors import StudfinderError
from studfinder.experiments import norms, plan_experiment, run_experiment
from studfinder.experiments.disruptions_claims import DISRUPTION_CLAIMS, disruption_claims
from studfinder.experiments.disruptions_read import DisruptionScores, disruption_notes
from studfinder.experiments.massive_agreement import layers_agreement
from studfinder.experiments.massive_values_constant import _halves
from studfinder.measures import Effects, Scores
from studfinder.measures.likelihood import log_likelihoods
from studfinder.models import load
from studfinder.sites import capture
from studfinder.stats import crossed, mean_interval
from studfinder.studies import Grid, GridScores, ModelVariant
from studfinder.texts import default_prompts, encode
from tiny import CONFIGS, D, H, L


def made(architecture="llama", dim=None, positions=1024):
    """A tiny model with room for prompts; `dim` is made massive in every head of Q and K."""
    config = AutoConfig.for_model(architecture, **{**CONFIGS[architecture], "max_position_embeddings": positions})
    if architecture == "gpt2":
        config.n_positions = positions
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        if dim is not None:
            for block in model.model.layers:
                for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
                    projection.weight[dim::D] *= 60
    return load(model, tokenizer())


@pytest.fixture
def ran(cache, tmp_path):
    """Run an experiment on given models, by name, in a folder of its own."""

    def run(name, models, **settings):
        plan = plan_experiment(name, tuple(models), settings=settings)
        return run_experiment(plan, out=tmp_path / name.replace("/", "-"), loader=models.__getitem__)

    return run


SLOW = 3  # pair 3 of 4 turns 1024 x 0.001 / 2 pi < 1 times; pairs 0 to 2 turn more than once


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "stablelm", "gemma3_text"])
def test_maps_hold_the_norms_of_what_attention_received(architecture):
    lm = made(architecture, positions=128)
    maps = norms.read_maps(lm, 2)
    encoded = encode(lm, default_prompts()[:2])[0]
    assert maps.tokens == sum(map(len, encoded))
    for tensor in maps.tensors:
        for place, layer in enumerate(maps.layers[tensor]):
            site = f"{tensor}[{layer}]"
            total = sum(
                capture(lm, torch.tensor([ids]), [site])[site].double().square().sum(dim=(0, 2)) for ids in encoded
            )
            np.testing.assert_allclose(maps.norm_LHD(tensor)[place], total.sqrt().numpy(), rtol=1e-4)
    assert ("key.pre_rope" in maps.tensors) == (architecture != "gpt2")
    assert maps.squares["value"].shape[0] == 2


def test_counts_are_those_of_the_definition():
    norm_LHD = np.ones((1, 2, 8))
    norm_LHD[0, 0, 5] = 40.0
    assert norms.counts(norm_LHD, 5.0).tolist() == [1]
    assert norms.counts(norm_LHD, 10.0).tolist() == [0]  # 40 / (47 / 8) = 6.8
    assert norms.counts(norm_LHD, 10.0, "layer").tolist() == [1]  # 40 / (55 / 16) = 11.6
    assert norms.norm_ratios(np.zeros((1, 1, 4))).tolist() == [[[0, 0, 0, 0]]]


def test_chance_is_that_of_normal_vectors():
    drawn = np.abs(np.random.default_rng(7).standard_normal((4000, 64)))
    own = (drawn > 3 * drawn.mean(axis=1, keepdims=True)).mean()
    assert norms.chance_above(64, 3.0) == pytest.approx(own, rel=0.1)


@pytest.mark.parametrize("dims", [8, 64, 128])
def test_lambda_is_where_few_heads_of_random_direction_hold_an_entry(dims):
    drawn_LHD = np.abs(np.random.default_rng(7).standard_normal((100, 200, dims)))
    lam = norms.lambda_at(dims, 0.01)
    assert norms.holding(drawn_LHD, lam).mean() == pytest.approx(0.01, rel=0.35)  # both are drawn
    assert norms.chance_holding(dims, lam) == pytest.approx(0.01, abs=1e-3)


def heads_of(places, layers=6, heads=5, dims=64):
    """M with one large dim in each head, at places (layers, heads)."""
    norm_LHD = np.random.default_rng(3).random((layers, heads, dims))
    np.put_along_axis(norm_LHD, np.broadcast_to(places, (layers, heads))[..., None], 9.0, axis=-1)
    return norm_LHD


@pytest.mark.parametrize(
    ("places", "agree"),
    [
        (np.arange(6)[:, None] + 40, True),  # one dim a layer
        (np.random.default_rng(0).integers(0, 64, (6, 5)), False),
        (np.random.default_rng(0).integers(40, 64, (6, 5)), False),  # the same band is not the same dim
    ],
)
def test_heads_agree_beyond_their_band_or_do_not(places, agree):
    slow_LD = np.tile(np.arange(64) >= 40, (6, 1))
    found = layers_agreement(heads_of(places), slow_LD)
    assert (found.excess.low > 0) == agree
    assert (found.p < 0.01) == agree
    assert found.agreeing == (6 if agree else 0)
    assert layers_agreement(heads_of(places)[:, :1], slow_LD) is None


def test_a_shared_band_looks_like_agreement_to_a_null_without_bands():
    places = np.random.default_rng(0).integers(48, 64, (40, 5))
    norm_LHD = heads_of(places, layers=40)
    assert layers_agreement(norm_LHD, np.zeros((40, 64), bool)).p < 0.01
    assert layers_agreement(norm_LHD, np.tile(np.arange(64) >= 48, (40, 1))).p > 0.05


def test_heads_that_share_within_their_groups_alone_do_not_agree_between_them():
    places = np.random.default_rng(1).integers(0, 64, (30, 3)).repeat(3, axis=1)  # nine heads, one dim a group of three
    norm_LHD, all_alike = heads_of(places, layers=30, heads=9), np.zeros((30, 64), bool)
    assert layers_agreement(norm_LHD, all_alike).p < 0.01
    between = layers_agreement(norm_LHD, all_alike, groups=3)
    assert between.p > 0.05
    assert between.excess.low < 0 < between.excess.high


def test_map_counts_the_planted_dims_and_no_others(ran):
    models = {"planted": made(dim=SLOW), "plain": made()}
    result, folder = ran("massive-values/map", models, limit=2, layers=[1], lambdas=[5])
    verdict = {(one.claim.key.partition("/")[2], one.model): one.verdict for one in result.claims}
    assert verdict["query-and-key", "planted"] == "held"
    assert verdict["query-and-key", "plain"] != "held"
    assert verdict["same-dims", "planted"] == "held"
    assert {verdict["not-value", model] for model in models} == {"held"}
    for name, expected in (("planted", H * L), ("plain", 0)):
        table = next(table for table in result.tables if table.title.startswith(f"{name}: massive entries"))
        assert {row[:2]: row[2].value for row in table.rows}["Q before RoPE", 5.0] == expected
    shown = np.array(result.data["planted"]["layers"]["1"]["query"]["norm"])
    assert shown.shape == (H, D)  # every dim, not half of them
    assert (folder / "figure-map.png").is_file()
    assert (folder / "figure-map-2.svg").is_file()


def test_map_refuses_a_layer_that_is_not_there(ran):
    with pytest.raises(StudfinderError, match="layers=7"):
        ran("massive-values/map", {"plain": made()}, limit=1, layers=[7])


def test_layers_says_where_massive_values_begin(ran):
    lm = made(dim=SLOW)
    with torch.no_grad():
        lm.model.model.layers[0].self_attn.q_proj.weight[SLOW::D] /= 60
    result, _ = ran("massive-values/layers", {"planted": lm}, limit=2)
    rows = {row[0]: row for row in result.tables[0].rows}
    assert {name: rows[name][4] for name in ("Q", "K", "V")} == {"Q": 1, "K": 0, "V": None}
    assert any("Q from layer 1, K from layer 0, V never" in note for note in result.notes)
    first, rope = result.claims
    G = lm.anatomy.kv_heads
    assert first.effect.value == pytest.approx((H + 2 * G) / (2 * (H + G)))
    assert (first.verdict, rope.verdict, rope.number.value) == ("held", "not decided", 0)  # every one was there before
    # The planted dim's pair never turns, so RoPE moves hardly anything.
    assert rows["Q"][7].interval.value == 0


# --- rotary bands ---------------------------------------------------------------------------------------------------


def test_rope_tells_slow_dims_from_fast_ones_and_from_no_rope(ran):
    models = {"slow": made(dim=SLOW), "fast": made(dim=0), "none": made("gpt2")}
    result, _ = ran("massive-values/rope", models, limit=2)
    tensors = {"slow": "query", "fast": "query.pre_rope", "none": "query"}  # RoPE spreads a fast dim over its pair
    bands = {name: result.data[name]["tensors"][tensors[name]]["bands"]["distances seen"] for name in models}
    assert bands["slow"]["share"]["value"] == 1
    assert bands["slow"]["base"] == 0.25
    assert bands["slow"]["p"] == pytest.approx(0.25**L, abs=0.01)
    assert bands["fast"]["share"]["value"] == 0
    assert bands["fast"]["p"] > 0.9
    assert bands["none"] is None
    verdict = {one.model: one.verdict for one in result.claims}
    assert verdict == {"slow": "held", "fast": "did not hold", "none": "not decided"}
    assert any(note.startswith("none: Q") and "no RoPE" in note for note in result.notes)


def test_a_window_limits_the_distances_a_layer_sees(ran):
    result, _ = ran("massive-values/rope", {"gemma": made("gemma3_text", dim=1)}, limit=2)
    bands = result.data["gemma"]["tensors"]["query.pre_rope"]["bands"]
    # In a window of 6 tokens pair 1 makes 6 x 0.1 / 2 pi of a turn; over 1024 tokens it makes 16.
    assert bands["distances seen"]["share"]["value"] > bands["training length"]["share"]["value"] == 0
    assert any("windows or not" in note for note in result.notes)


# --- intervals over items and draws -----------------------------------------------------------------------------------


def test_crossed_agrees_with_the_plain_bootstrap_where_nothing_is_drawn():
    values = np.random.default_rng(0).normal(size=80)
    clusters = [str(i // 2) for i in range(80)]
    ours, plain = crossed(lambda m: m["x"], {"x": values[None]}, clusters), mean_interval(values, clusters)
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_crossed_counts_draws_as_random_and_pairs_items():
    generator = np.random.default_rng(0)
    items = generator.normal(size=60)
    alike, apart = np.stack([items] * 4), np.stack([items + shift for shift in (-2, -1, 1, 2)])
    one, many = (crossed(lambda m: m["x"], {"x": x}) for x in (alike, apart))
    assert many.high - many.low > 2 * (one.high - one.low)
    paired = crossed(lambda m: m["a"] - m["b"], {"a": apart + 1, "b": apart})
    assert (paired.low, paired.high) == pytest.approx((1, 1))


def test_crossed_draws_each_set_of_items_by_itself_and_shared_items_together():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(1, 60)), generator.normal(size=(1, 90))
    clusters = {"a": [f"a{i // 3}" for i in range(60)], "b": [str(i) for i in range(90)]}
    clusters["again"] = list(clusters["a"])
    scores = {"a": a, "b": b, "again": a + 1}
    wide = {name: crossed(lambda m, name=name: m[name], {name: scores[name]}, clusters[name]) for name in ("a", "b")}
    half = [(wide[name].high - wide[name].low) / 2 for name in ("a", "b")]
    apart = crossed(lambda m: m["a"] - m["b"], {"a": a, "b": b}, clusters)
    assert (apart.high - apart.low) / 2 == pytest.approx(np.hypot(*half), rel=0.05)
    assert apart.n == 20 + 90
    paired = crossed(lambda m: m["again"] - m["a"], scores, clusters)
    assert (paired.low, paired.high) == pytest.approx((1, 1))


# --- disrupting -------------------------------------------------------------------------------------------------------

SMALL = {
    "limit": 16,
    "k": [1],
    "draws": 2,
    "context": "lookup:2 in-context:numbers",
    "memory": "facts yes-no facts:art",
    "passkeys": 4,
    "passkey": "192",
}


@pytest.fixture(scope="module")
def disrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        patch.delenv("STUDFINDER_DATA", raising=False)
        yield disrupt(folder / "run"), folder / "run"


def disrupt(folder):
    plan = plan_experiment("massive-values/disrupt", ("planted",), settings=SMALL)
    return run_experiment(plan, out=folder, loader=lambda _: made(dim=SLOW))[0]


def test_disrupt_measures_every_row_and_its_equal_damage(disrupted):
    result, folder = disrupted
    read, known, compared = result.tables
    damage = {row[0]: row[1] for row in read.rows}
    noise = "noise in the other dims, as harmful as: massive, k = 1"
    assert list(damage) == ["as it is", "massive, k = 1", "smallest, k = 1", "random, k = 1", noise]
    assert damage[noise].value == pytest.approx(damage["massive, k = 1"].value, rel=0.5)
    assert damage["massive, k = 1"].value > 10 * damage["smallest, k = 1"].value > 0
    assert read.columns[3:] == (
        "facts-in-context 4",
        "facts-parametric-matched 4",
        "lookup 2",
        "in-context numbers",
        "passkey",
    )
    assert known.columns[3:] == ("facts", "yes-no")
    assert [row[0] for row in read.rows if row[-1] is None] == ["smallest, k = 1", "random, k = 1"]
    assert any("facts:art was not measured" in note for note in result.notes)
    assert len(compared.rows) == 2 * 4
    assert (folder / "figure-disrupt.png").is_file()
    assert [found.claim.key for found in result.claims] == [claim.key for claim in DISRUPTION_CLAIMS]
    assert all(found.verdict == "not decided" and found.why for found in result.claims if found.number is None)


def test_disrupt_goes_on_where_it_stopped(disrupted, monkeypatch):
    result, folder = disrupted
    interrupted(folder, lost=2)  # the passkeys, which are asked last
    asked = []
    own = Grid._take
    monkeypatch.setattr(Grid, "_take", lambda self, cell, lm: (asked.append(cell.measure), own(self, cell, lm))[1])
    again = disrupt(folder)
    assert asked == ["facts:art", "passkey:192", "passkey:192"]  # the first might be here by now
    assert again.tables == result.tables
    assert again.notes == result.notes
    assert again.claims == result.claims


def test_likelihoods_under_a_disruption_are_those_of_full_passes():
    lm = made(dim=SLOW)
    context, answers = list(range(5, 60)), [[7, 8, 9], [10, 11]]
    with edited(lm, massive_value_disruption(lm, 1)), torch.no_grad():
        found = log_likelihoods(lm, [(context, answer) for answer in answers])
        for answer, likelihood in zip(answers, found, strict=True):
            ids = torch.tensor([context + answer[:-1]])
            log_p_TV = lm.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 :].log_softmax(dim=-1)
            own = sum(float(log_p_TV[place, token]) for place, token in enumerate(answer))
            assert likelihood.logprob == pytest.approx(own, abs=1e-4)


MEASURES = {"context": "lookup:4", "memory": "facts:cities", "asked": "facts-in-context:4", "known": "facts-par:4"}
NOISE, SMALLEST, RANDOM = "noise elsewhere", "smallest, k = 1", "random, k = 1"


def _rows(context, memory, noisy_context, noisy_memory, clean=(0.85, 0.85), key=0.1, n=200, seed=0):
    """Made-up scores, drawn with given accuracies; squares of four."""
    generator = np.random.default_rng(seed)
    nearly = (clean[0] - 0.01, clean[1] - 0.01)  # where no item changed nothing is decided
    rates = {"as it is": clean, "massive, k = 1": (context, memory), SMALLEST: nearly, RANDOM: nearly}
    rates[NOISE] = (noisy_context, noisy_memory)
    scored, keys = GridScores(), GridScores()
    drawn = {name: generator.random(n) for name in MEASURES.values()}
    for label, found in rates.items():
        scored.variants.append(ModelVariant(label, family=label))
        scored.scores[label] = {
            measure: _made(measure, drawn[measure] < rate)
            for measure, rate in zip(MEASURES.values(), found * 2, strict=True)
        }
    for label, rate in (("as it is", 1.0), ("massive, k = 1", key), (NOISE, 0.9)):
        keys.variants.append(ModelVariant(label, family=label))
        keys.scores[label] = {"passkey:128": _made("passkey:128", np.arange(n) < rate * n)}
    effects = Effects(np.ones((4, 2)), np.ones((4, 2)), np.zeros(2), np.ones(2))
    sides = {side: [measure] for side, measure in MEASURES.items()}
    return DisruptionScores(scored, keys, effects, {"massive, k = 1": NOISE}, sides)


def _made(measure, right):
    score = tuple(right.astype(float).tolist())
    clusters = tuple(str(place // 4) for place in range(len(score)))
    interval = mean_interval(score, clusters)
    return Scores(
        measure=measure,
        value=interval.value,
        interval=interval,
        items={"score": score},
        clusters=clusters if measure != "passkey:128" else (),
        chance=0.25 if measure != "passkey:128" else 0.0,
    )


@pytest.mark.parametrize(
    ("rates", "alone", "beyond", "verdicts"),
    [
        ((0.3, 0.8, 0.55, 0.55), "context lost more by", "context lost more: ", ("held", "held")),
        ((0.4, 0.4, 0.41, 0.41), "neither is shown", "neither is shown", ("did not hold", "did not hold")),
        ((0.8, 0.3, 0.55, 0.55), "memory lost more by", "memory lost more: ", ("did not hold", "did not hold")),
        ((0.3, 0.8, 0.31, 0.81), "context lost more by", "neither is shown", ("did not hold", "held")),
    ],
)
def test_sentences_and_verdicts_follow_the_numbers(rates, alone, beyond, verdicts):
    rows = _rows(*rates)
    for note in disruption_notes(rows):
        assert note.startswith("massive, k = 1, ")
        first, second = note.split("; beyond noise")
        assert alone in first
        assert beyond in second
    found = {one.claim.key.partition("/")[2]: one for one in disruption_claims(rows, 1)}
    assert found["context-loses-more"].verdict == verdicts[0]
    assert found["context-loses-more-of-the-same-questions"].verdict == verdicts[0]
    assert (found["memory-keeps-most"].verdict == "held") == (verdicts[1] == "held")
    assert found["passkeys-are-lost"].verdict == "held"
    assert found["smallest-do-no-harm"].verdict == found["random-do-no-harm"].verdict == "held"


def test_shares_are_of_the_skill_above_chance():
    rows = _rows(0.25, 0.55, 0.85, 0.85, n=4000)
    kept = rows.kept("massive, k = 1", "context"), rows.kept("massive, k = 1", "memory")
    assert kept[0].value == pytest.approx(0, abs=0.05)
    assert kept[1].value == pytest.approx(0.5, abs=0.05)
    assert rows.beyond("massive, k = 1", ("context", "memory")).interval.value == pytest.approx(0.5, abs=0.07)
    # Noise that costs nothing leaves the difference as it is.
    assert rows.beyond("massive, k = 1", ("context", "memory"), NOISE).interval.value == pytest.approx(0.5, abs=0.07)


def test_differences_of_differences_cover_the_truth():
    """Where both sides lose alike under both, the interval holds 0 about as often as it says."""
    held = 0
    for seed in range(60):
        interval = _rows(0.6, 0.6, 0.6, 0.6, n=80, seed=seed).beyond("massive, k = 1", ("context", "memory"), NOISE)
        held += interval.interval.low <= 0 <= interval.interval.high
    assert held >= 50


def test_a_measure_at_chance_is_named_and_decides_nothing():
    rows = _rows(0.25, 0.8, 0.25, 0.8, clean=(0.25, 0.8))
    assert "at chance on the model as it is, and not averaged: lookup 4." in disruption_notes(rows)
    assert rows.kept("massive, k = 1", "context") is None
    undecided = [one for one in disruption_claims(rows, 1) if one.number is None]
    assert len(undecided) == 4
    assert all(one.why and one.cost for one in undecided)


# --- constant or deviation -----------------------------------------------------------------------------------------


def test_halves_of_energy():
    values_HTD = torch.zeros(1, 4, 3)
    values_HTD[0, :, 0] = 10.0  # constant
    values_HTD[0, :, 1] = torch.tensor([1.0, -1.0, 1.0, -1.0])  # nothing but deviation
    share, constant, others = _halves(values_HTD.square().mean(1), values_HTD.mean(1).square(), 1)
    assert share == pytest.approx(100 / 101)
    assert constant == pytest.approx(1)
    assert others == 0


def test_constant_or_deviation_runs_and_resumes(ran, monkeypatch):
    lm = made(dim=SLOW)
    settings = {"limit": 1, "k": [1], "draws": 2, "repeat": 16}
    result, folder = ran("massive-values/constant-or-deviation", {"planted": lm}, **settings)
    rows = {row[0]: row for row in result.tables[1].rows}
    assert rows["1 random, held constant"][3].method == "paired bootstrap over sequences and 2 draws"
    assert rows["1 massive, deviation only"][3].method == "paired bootstrap over sequences"
    assert len(rows) == 1 + 2 * 4
    before = (folder / "steps.jsonl").read_bytes()
    interrupted(folder)
    again, _ = ran("massive-values/constant-or-deviation", {"planted": lm}, **settings)
    assert (folder / "steps.jsonl").read_bytes() == before
    assert again.tables == result.tables
    steps = [json.loads(line)["step"].partition("/")[2] for line in before.splitlines()]
    assert "energy" in steps
    assert sum("| 1 random, held constant draw" in step for step in steps) == 2 * 3  # two measures, and what it was
