"""The census as an experiment, and the pools that bound what it missed."""

from __future__ import annotations

import pytest
import torch
from experimented import run
from safetensors.torch import save_file

from proving import COL, LAYER, ROW, provable
from studfinder.detectors.census_findings import in_turn
from studfinder.edits import TiedWeightsWarning, Weights, zero
from studfinder.experiments.census_head import head_carriers
from studfinder.experiments.census_rankings import by_contribution, by_impact, by_magnitude, rounded_to
from studfinder.experiments.census_tables import biases, early_down, recalled, recalls, where
from studfinder.measures import effects_of
from studfinder.prove.pools import Pool, cut, drawn_pools, pool_stream, singled
from studfinder.quantizers import Scheme
from studfinder.records import Interval
from studfinder.stats import most_unseen, share_interval
from tiny import prompts, tiny


@pytest.fixture(scope="module")
def planted():
    return provable("llama", planted=True)[0]


def test_what_carries_most_is_found_whatever_order_finds_it(planted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path / "cache"))
    settings = {"draws": 1, "first": 8, "sample": 1, "pools": 12, "windows": 2, "tokens": 32}
    result = run("super-weight/census", planted, tmp_path, **settings)
    carriers, recalls, inside, compared, _, iceberg, where, predicted, *head = result.tables
    first = dict(zip(carriers.columns, carriers.rows[0], strict=True))
    assert first["number"] == f"layers.{LAYER} down_proj[{ROW}, {COL}]"
    assert isinstance(first["KL in nats per token"], Interval)
    assert first["place: spikes"] == first["place: |w| x input"] == 1
    carrying = [row[3].value for row in carriers.rows if row[3].value > 0.05]
    assert sum(sum(row[1:]) for row in where.rows) >= len(carrying) > 1
    assert sum(sum(row[1:]) for row in predicted.rows) == pytest.approx(100)
    for table in (recalls, inside):
        for _, *shares, last in table.rows:
            assert shares == sorted(shares)
            assert last.low <= last.value <= last.high
    of_all, of_matrices = ({row[0]: row[-1] for row in table.rows} for table in (recalls, inside))
    assert of_all["spikes"].n > of_matrices["spikes"].n  # gains are left out
    assert of_all["spikes"].value < of_matrices["spikes"].value
    assert sum(row[-1] for row in iceberg.rows) == sum(one.numel() for one in planted.model.parameters())
    assert {row[0] for row in compared.rows} >= {"gain", "embedding", "down projection", "other weight", "head"}
    assert "with 95 % confidence at most" in result.notes[0]
    channels, beside = head
    assert sum(row[1] for row in channels.rows) > 0
    for _, _, exact, kl in beside.rows:
        assert kl.value == pytest.approx(exact, rel=1e-2)
    assert "closed form" in result.notes[1]
    assert "stand among the first 200" in result.notes[2]


def test_of_a_gain_with_an_offset_both_edits_are_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path / "cache"))
    settings = {"draws": 1, "first": 4, "sample": 0, "pools": 0, "windows": 2, "tokens": 32}
    result = run("super-weight/census", provable("gemma3_text", planted=False)[0], tmp_path, **settings)
    (gains,) = [table for table in result.tables if "two ways" in table.title]
    for _, w, at_one, off in gains.rows:
        assert off.value > at_one.value or abs(w) > 1


# --- tables -----------------------------------------------------------------------------------------------------------

GAIN, UP, DOWN = (f"model.layers.1.{name}.weight" for name in ("input_layernorm", "mlp.up_proj", "mlp.down_proj"))


def at(value: float) -> Interval:
    return Interval(value=value, low=value, high=value, level=0.95, n=4, method="")


def test_recall_is_of_what_was_measured_above_the_threshold():
    """Of three numbers above .05 an order that begins with the gain has one in its first 10; of the two in matrices,
    with the gain passed over, another place counts."""
    measured = {(GAIN, (1,)): at(0.9), (UP, (2, 3)): at(0.06), (DOWN, (4, 5)): at(0.3), (DOWN, (0, 0)): at(0.04)}
    filler = [(GAIN, (n,)) for n in range(2, 12)]
    order = [(GAIN, (1,)), *filler, (UP, (2, 3)), (DOWN, (0, 0))]
    of_all, of_matrices = recalls(tiny("llama"), measured, {"order": order}, 0.05)
    assert of_all.rows[0][1:3] == (1 / 3, 2 / 3)
    assert of_matrices.rows[0][1:3] == (1 / 2, 1 / 2)
    assert of_all.rows[0][-1] == share_interval(2, 3, what="numbers")
    said = recalled(measured, order, "order", 0.05)
    assert said.startswith("of the 3 numbers measured above 0.05 nats per token 66.7% [9.4%, 99.2%] stand among")
    assert recalled({(GAIN, (1,)): at(0.01)}, order, "order", 0.05).startswith("no number was measured above 0.05")


def test_where_what_carries_lies():
    lm = tiny("llama")
    measured = {(GAIN, (1,)): at(0.9), (DOWN, (4, 5)): at(0.3), ("model.embed_tokens.weight", (1, 1)): at(0.1)}
    totals = {GAIN: 1.0, DOWN: 3.0, "model.embed_tokens.weight": 4.0}
    lies, predicted = where(lm, measured, totals, 0.2)
    assert {row[0]: row[1:] for row in lies.rows} == {"gain": (0, 1, 0, 0), "down projection": (0, 1, 0, 0)}
    assert {row[0]: row[1:] for row in predicted.rows} == {
        "down projection": (0, 37.5, 0, 0),
        "embedding": (0, 0, 0, 50),
        "gain": (0, 12.5, 0, 0),
    }
    (said,) = early_down(lm, measured, 0.2)
    assert said.startswith("0% [0%, 84%] of what was measured above 0.2 nats lies in down projections of the first")
    assert "layers.1 input_layernorm[1]" in said


def test_errors_by_kind_leave_out_what_fp32_rounds_away():
    measured = {(DOWN, (0, n)): at(0.02 * n) for n in range(1, 4)} | {(DOWN, (1, 1)): at(5.0), (GAIN, (1,)): at(0.1)}
    predicted = {(DOWN, (0, n)): 0.01 for n in range(1, 4)} | {(DOWN, (1, 1)): 1e-7, (GAIN, (1,)): 1.0}
    table = biases(tiny("llama"), predicted, measured)
    assert [(row[0], row[1], pytest.approx(row[3])) for row in table.rows] == [
        ("down projection", 3, 4.0),
        ("gain", 1, 0.1),
    ]


# --- the output matrix -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_what_an_entry_of_the_output_matrix_carries_is_known_exactly(architecture):
    """The closed form is what setting the entry to zero does, and finds all of them: also one that keeps a rare token
    rare, whose slope is nothing."""
    lm, windows = provable(architecture, planted=False)[0], prompts((20, 24))
    head = lm.model.get_output_embeddings().weight
    if head is lm.model.get_input_embeddings().weight:  # untied, so that only the output matrix is edited
        lm.model.get_output_embeddings().weight = torch.nn.Parameter(head.detach().clone())
        lm.model.config.tie_word_embeddings = False
    head = lm.model.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(4)
    found = dict(head_carriers(lm, windows, 1e-3))
    assert found
    name = next(name for name, one in lm.model.named_parameters() if one is head)
    rows = torch.arange(0, head.shape[0], max(1, head.shape[0] // 12)).tolist()
    spots = [*list(found)[:6], *list(found)[-6:], *((name, (row, 3)) for row in rows)]
    effects = effects_of(lm, windows, [zero(Weights(parameter=spot[0], entries=(spot[1],))) for spot in spots])
    for spot, kl in zip(spots, (effects.kl.sum(axis=1) / effects.tokens.sum()).tolist(), strict=True):
        if spot in found:
            assert found[spot] == pytest.approx(kl, rel=1e-2)
        else:
            assert kl <= 1e-3


def test_a_cap_on_logits_has_no_closed_form():
    lm = tiny("gemma2")
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1000)
    assert head_carriers(lm, prompts((8, 8)), 0.01) is None


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_size_and_size_times_input(architecture):
    """A channel whose input is loud counts for more than the same weight at a silent one."""
    lm = tiny(architecture)
    ref = lm.anatomy.layers[1].writers[0]
    with torch.no_grad():
        lm.model.get_parameter(ref.parameter)[ref.index(3, 4)] = 9.0
        for norm in lm.anatomy.layers[1].norms:
            lm.model.get_submodule(norm.module).weight[7] = 50.0
    spot = (ref.parameter, ref.index(3, 4))
    assert by_magnitude(lm, 1) == [spot]
    loud = by_contribution(lm, prompts(), 20)
    axis = 0 if architecture == "gpt2" else 1  # stored (in, out)
    assert sum(index[axis] == 7 for name, index in loud if name != ref.parameter) > 10


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_impact_and_impact_times_rounding_error(architecture, tmp_path):
    """A predicted KL of w^2 for all is an impact of 1; of rounding errors those of the block with the widest range."""
    lm = tiny(architecture)
    ref = lm.anatomy.layers[1].writers[0]
    with torch.no_grad():
        lm.model.get_parameter(ref.parameter)[ref.index(3, 4)] = 9.0
    kl = {name: one.detach().square() for name, one in lm.model.named_parameters()}
    kl[ref.parameter][ref.index(5, 6)] *= 7
    save_file({name: one.clone() for name, one in kl.items()}, tmp_path / "map")
    assert by_impact(lm, tmp_path / "map", 1) == [(ref.parameter, ref.index(5, 6))]
    scheme = Scheme(element="int4", block=8, zero="integer", remainder="block")
    found = by_impact(lm, tmp_path / "map", 4, rounded_to(scheme))
    assert {(ref.parameter, ref.index(3, col)) for col in range(8)} > set(found)


def test_in_turn():
    assert in_turn([("a", (1,)), ("b", (2,))], [("b", (2,)), ("c", (3,)), ("d", (4,))]) == [
        ("a", (1,)),
        ("b", (2,)),
        ("c", (3,)),
        ("d", (4,)),
    ]


# --- pools ------------------------------------------------------------------------------------------------------------


def test_pools_hold_every_number_once_and_nothing_that_is_listed():
    lm = tiny("llama")
    names = ("model.layers.1.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight")
    listed = [(names[0], (3, 4)), (names[1], (5,))]
    pools = [Pool(names, number, 7) for number in range(7)]
    halves = [half for pool in pools for half in pool.split()]
    for some in (pools, halves):
        masks = [pool.masks(lm, listed) for pool in some]
        for name in names:
            counts = sum(mask[name].int() for mask in masks)
            missing = [(name, tuple(place)) for place in (counts == 0).nonzero().tolist()]
            assert int(counts.max()) == 1
            assert missing == [one for one in listed if one[0] == name]


@pytest.mark.parametrize("places", [("model.layers.1.mlp.up_proj.weight",), ("model.embed_tokens.weight",)])
def test_a_pool_is_the_edit_that_zeroes_its_numbers(places):
    lm, windows = tiny("gemma2"), prompts((8, 8))
    pool = Pool(places, 1, 40)
    (mask,) = pool.masks(lm, []).values()
    weights = Weights(parameter=places[0], entries=tuple(map(tuple, mask.nonzero().tolist())))
    before = {name: one.detach().clone() for name, one in lm.model.named_parameters()}
    with pytest.warns(TiedWeightsWarning) if "embed" in places[0] else torch.no_grad():
        effects = effects_of(lm, windows, [pool_stream(lm, pool, []), zero(weights)])
    assert (effects.kl[0] == effects.kl[1]).all()
    assert effects.kl[0].sum() > 0
    assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())


def test_halving_singles_a_number_out():
    lm = tiny("llama")
    hidden = ("model.layers.1.mlp.up_proj.weight", (7, 9))
    (pool,) = [p for p in (Pool((hidden[0],), number, 5) for number in range(5)) if p.masks(lm, [])[hidden[0]][7, 9]]
    while len(singled(lm, pool, [])) > 1:
        pool = next(half for half in pool.split() if half.masks(lm, [])[hidden[0]][7, 9])
    assert singled(lm, pool, []) == [hidden]
    assert singled(lm, pool, [hidden]) == []


def test_pools_are_so_many_that_little_is_predicted_of_each():
    lm = tiny("llama")
    names = [name for name, _ in lm.model.named_parameters()]
    totals = dict.fromkeys(names, 0.0) | {names[0]: 1.0, "model.layers.1.mlp.up_proj.weight": 0.5}
    wholes = {"layers.0": 0.0, "layers.1": 2.5, "layers.2": 0.0, **dict.fromkeys(names, 0.0)}
    counts = cut(lm, totals, wholes, 0.01)
    layer = next(count for own, count in counts.items() if "model.layers.1.mlp.up_proj.weight" in own)
    assert counts[names[0],] == 100
    assert layer > 50
    assert 0.5 / layer + (2.5 - 0.5) / layer**2 <= 0.01
    assert sum(map(len, counts)) == len(names)
    pools, chance = drawn_pools(counts, 40, seed=0)
    assert len(set(pools)) == len(pools) < 60
    assert chance == min(sum(pool.parameters == own for pool in pools) / count for own, count in counts.items())
    assert drawn_pools(counts, 10_000, seed=0)[1] == 1.0


@pytest.mark.parametrize(
    ("seen", "chance", "most"), [(0, 1.0, 0), (5, 1.0, 0), (0, 0.5, 4), (0, 0.25, 10), (0, 0.01, 298)]
)
def test_how_many_may_be_unseen(seen, chance, most):
    """Of none seen: the largest N with (1 - chance)^N at .05 or above."""
    assert most_unseen(seen, chance) == most


def test_exact_intervals_of_shares():
    """As tables of Clopper and Pearson's have them: all of 24 leave 14 % to be missing."""
    for hits, of, low, high in [(24, 24, 0.858, 1.0), (0, 10, 0.0, 0.308), (5, 10, 0.187, 0.813), (1, 2, 0.013, 0.987)]:
        found = share_interval(hits, of, what="numbers")
        assert (found.value, found.n) == (hits / of, of)
        assert (round(found.low, 3), round(found.high, 3)) == (low, high)


def test_the_bound_holds_as_often_as_it_says():
    """Of 60 numbers, of which a sample by unequal strata sees each with a chance of .2 or .5, 95 % of bounds hold."""
    draws = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.2] * 30 + [0.5] * 30)
    seen = (torch.rand((2000, 60), generator=draws) < chances).sum(dim=1)
    bounds = {int(count): most_unseen(int(count), 0.2) for count in seen.unique()}
    held = sum(60 - int(count) <= bounds[int(count)] for count in seen) / len(seen)
    assert held >= 0.95
    assert most_unseen(12, 0.2) > most_unseen(12, 0.25)
