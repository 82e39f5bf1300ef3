"""The super-weight paper's experiments, from end to end, on a tiny model with a planted super weight."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experimented import run

from proving import COL, LAYER, ROW, provable
from rerun import put
from studfinder.errors import StudfinderError
from studfinder.experiments import super_weight_case, super_weight_coordinates, super_weight_stopwords
from studfinder.experiments.super_weight_ablation import AblationConfig
from studfinder.experiments.super_weight_ablation_claims import LIKE, MANY, PRUNED
from studfinder.experiments.super_weight_coordinates import CoordinatesConfig
from studfinder.experiments.super_weight_coordinates_tables import shares_of
from studfinder.experiments.super_weight_scaling_tables import held_out_gain, judged_accuracy
from studfinder.experiments.super_weight_stopwords import StopwordsConfig, _prompts
from studfinder.experiments.weights import controls_of, super_weights_of
from studfinder.models import cached_content_hash, load
from studfinder.records import Comparison, Findings, Interval, read_record, to_json
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.scan import plan_scan, run_scan, scan_run
from tasked import choices, words, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small data, a cache and a run folder of its own: the scan in it serves all experiments."""
    folder = tmp_path_factory.mktemp("experiments")
    random = np.random.default_rng(0)
    write(folder / "data", "choice/piqa.jsonl", choices(12, 2))
    write(folder / "data", "choice/winogrande.jsonl", [])
    write(folder, "passages.jsonl", [{"text": words(random, 9)} for _ in range(12)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("studfinder.verbs.scan._has_gradients", lambda _: False)  # no census, as in every test
        patch.setenv("STUDFINDER_DATA", str(folder / "data"))
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def planted(folder):
    """A model with one super weight, and a tokenizer that has an end."""
    lm = provable("llama", planted=True)[0]
    mlp = lm.model.model.layers[LAYER].mlp
    with torch.no_grad():  # its input spikes too, as a super weight's does
        mlp.up_proj.weight[COL] *= 20
        mlp.down_proj.weight[:, COL] /= 20
    lm.model.config.max_position_embeddings = 1024  # windows of perplexity are longer than a tiny model's context
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = "?"
    lm = load(lm.model, tokenizer)
    plan = plan_scan(lm, ScanConfig(), cached_content_hash)
    put(scan_run(plan), to_json(run_scan(plan)[0]))  # its report takes seconds
    return lm


def cells(table, label):
    (row,) = [row for row in table.rows if row[0] == label]
    return dict(zip(table.columns, row, strict=True))


def test_ablation(planted, folder):
    result = run(
        "super-weight/ablation", planted, folder, limit=6, windows=3, others=40, tasks="piqa,hellaswag", texts="proof"
    )
    scores, change, shares, units = result.tables
    assert f"[{ROW}, {COL}]" in scores.note
    assert "Not here: hellaswag." in scores.note
    assert [note for note in result.notes if "hellaswag" in note] == [
        "tiny: not measured: hellaswag (task hellaswag has no documents)."
    ]
    assert cells(scores, "original")["hellaswag"] == "not here"
    pruned, like, many = (cells(change, label)["perplexity proof"] for label in (PRUNED, LIKE, MANY))
    assert isinstance(pruned, Comparison)
    assert len({pruned.interval.value, like.interval.value, many.interval.value}) == 3
    back = cells(shares, "log perplexity proof")
    assert back["by +SA"].value != back["by as large a number elsewhere"].value
    alone = cells(units, f"L{LAYER} [{ROW}, {COL}] alone")["KL in nats per token"]
    control = units.rows[1][1]
    assert units.columns[1:4] == ("KL in nats per token", "its null edit's", "beyond that")
    assert alone.value > 0.01
    assert units.rows[0][2:4] == (None, None)
    for _, kl, floor, beyond, _ in units.rows:
        if kl.value < 0.01:
            assert beyond.value == pytest.approx(kl.value - floor.value)
            assert beyond.method.endswith("and 8 draws")
    assert isinstance(alone, Interval)
    assert isinstance(control, Interval)
    assert alone.low > control.high
    claims = {one.claim.key.partition("/")[2]: one for one in result.claims}
    assert list(claims) == ["one", "like-share", "7000-others", "tasks", "restore", "restore-perplexity"]
    assert claims["like-share"].number.value == pytest.approx(pruned.interval.value / like.interval.value)
    assert claims["one"].effect.interval.value / claims["one"].control.interval.value == pytest.approx(
        claims["one"].number.value
    )
    for key in ("tasks", "restore"):  # a random model is at chance
        assert claims[key].verdict == "not decided"
        assert claims[key].number is None
        assert claims[key].why
        assert claims[key].cost
    own, other = claims["restore-perplexity"].effect.value, claims["restore-perplexity"].control.value
    assert claims["restore-perplexity"].number.value == pytest.approx(own - max(other, 0))


def test_stopwords(planted, folder):
    text = str(folder / "passages.jsonl")
    result = run("super-weight/stopwords", planted, folder, limit=12, top=5, others=40, text=text, passing=False)
    by_class, by_token = result.tables
    classes = [cells(by_class, f"{kind} tokens") for kind in ("delimiter", "low-semantic", "other")]
    assert sum(row["as it is"].value for row in classes) == pytest.approx(1.0)
    assert classes[0]["as it is"].n == 12
    assert len(by_token.rows) == 5
    assert by_token.rows[0][2].n == 6  # half of the prompts judge what the others chose
    assert cells(by_class, "all stopwords")["a control / as it is"].interval.value == pytest.approx(1, abs=0.3)
    assert "the model says the last word of 12 of 12 prompts; all count." in result.notes[0]
    (claim,) = result.claims
    assert claim.number.value == pytest.approx(claim.effect.interval.value - claim.control.interval.value)


def test_only_prompts_count_that_the_model_passes(planted, folder, monkeypatch):
    """The right word is made the likeliest after some prompts, and only those are left."""
    text, right = str(folder / "passages.jsonl"), {0, 3, 4, 7, 11}
    _, drawn = _prompts(planted, text, limit=12, seed=0)

    def says(lm, ids):
        number = next(n for n, one in enumerate(drawn) if one.ids == ids)
        p_V = torch.zeros(lm.anatomy.vocabulary, dtype=torch.float64)
        p_V[drawn[number].target if number in right else number + 40] = 1.0
        return p_V

    monkeypatch.setattr(super_weight_stopwords, "next_probabilities", says)
    found = super_weight_stopwords._chosen(
        SimpleNamespace(config=StopwordsConfig(), progress=lambda *_: None), planted, drawn
    )
    assert set(found["kept"]) == right
    assert found["top"][0] == drawn[0].target


def test_a_model_that_passes_no_prompt_is_refused(planted, folder):
    with pytest.raises(StudfinderError, match=r"last word of \d of 12 prompts .* \(passing=false\)"):
        run("super-weight/stopwords", planted, folder / "none", limit=12, text=str(folder / "passages.jsonl"))


def test_stopwords_of_a_plain_file_say_that_it_is_one_passage(planted, tmp_path):
    (tmp_path / "passages.txt").write_text("w3 w4\nw5 w6\n" * 9)
    with pytest.raises(
        StudfinderError, match=r"txt has 1 passage; .* A plain file is one document; .jsonl holds several"
    ):
        _prompts(planted, str(tmp_path / "passages.txt"), limit=4, seed=0)


def test_scaling(planted, folder):
    settings = {"limit": 6, "windows": 4, "factors": [0.0, 1.0, 2.0], "amplified": [2.0], "tasks": "piqa"}
    result = run("super-weight/scaling", planted, folder, text="proof", **settings)
    perplexity, gains, accuracy, best = result.tables
    assert perplexity.columns == ("scaled", "x 0", "x 2")
    (weight, *changed), (control, *same) = perplexity.rows  # there is one super weight: nothing is scaled together
    assert weight == f"L{LAYER} [{ROW}, {COL}]"
    assert control == f"  control of {weight}"
    assert changed[0].interval.value != pytest.approx(1, abs=1e-3)
    assert all(cell.interval.value == pytest.approx(1, abs=1e-2) for cell in same)
    gain, other, beyond = (cell.interval.value for cell in gains.rows[0][2:])
    assert beyond == pytest.approx(gain - other)
    assert [row[0] for row in accuracy.rows] == ["2"]
    assert best.rows[0][2].interval.n == 6
    by_key = {one.claim.key: one for one in result.claims}
    assert by_key["super-weight/scale-perplexity"].number.value == pytest.approx(beyond)
    assert by_key["super-weight/scale-accuracy"].items == "6 items of 1 task"


def test_nothing_is_said_of_accuracy_where_no_item_changed():
    """An interval of no width is no evidence: so few items hold none that a small gain would move."""
    items = [[np.zeros(4)], [np.zeros(4)]]
    found = judged_accuracy(SimpleNamespace(seconds={}), items, 4)
    assert (found.verdict, found.number) == ("not decided", None)
    assert found.why == "none of 4 items came out otherwise"
    items[0][0][1] = 1.0
    found = judged_accuracy(SimpleNamespace(seconds={}), items, 4)
    assert found.number.value == found.effect.interval.value - found.control.interval.value == 0.25
    assert found.smallest > 0


def test_a_factor_is_judged_on_items_that_did_not_choose_it():
    first, second = np.zeros(8), np.zeros(8)
    first[0::2], second[1::2] = 1.0, 1.0  # each factor helps on one half only
    chosen, judged = held_out_gain([[first], [second]])
    assert chosen == [0, 1]
    assert np.all(judged[0] == 0)  # what one half chose does nothing on the other
    chosen, judged = held_out_gain([[-np.ones(8)], [np.ones(8)]])
    assert chosen == [1, 1]
    assert np.all(judged[0] == 1)
    chosen, judged = held_out_gain([[-np.ones(8)]])  # what loses is judged too
    assert chosen == [0, 0]
    assert np.all(judged[0] == -1)


def test_coordinates(planted, folder):
    text = folder / "long.txt"
    text.write_text(words(np.random.default_rng(1), 2000))
    settings = {"limit": 5, "length": 24, "versions": "rtn4,gptq8,tuned", "block": 8, "steps": 2, "pieces": 2}
    result = run("super-weight/coordinates", planted, folder, text=str(text), **settings)
    layers, versions = result.tables
    assert layers.rows[0][:2] == (LAYER, f"[{ROW}, {COL}]")
    assert [row[0] for row in versions.rows] == ["as it is", "RTN, int4", "GPTQ, int8", "trained on, 2 steps"]
    for name, own, rest, _, without, control in versions.rows:
        assert own.value > 0.9, name
        assert rest.value < own.value
        assert abs(np.log(without.interval.value)) > 10 * abs(np.log(control.interval.value))
    assert versions.rows[0][3].interval.value == 1
    assert all(row[3].interval.value != 1 for row in versions.rows[1:])
    prompts, over = result.claims
    assert prompts.number.value == pytest.approx(prompts.effect.value - prompts.control.value)
    assert prompts.verdict == over.verdict == "held"


def test_a_place_that_is_lost_is_counted():
    """Of two prompts one crosses at the super weight; the other layer keeps its commonest place in one of two."""
    read = [[[0, 5, 7], [0, 1, 1]], [[0, 5, 8], [0, 2, 2]]]
    own, rest = shares_of(read, {0: [[0, 5, 7]]}, [[0, 5, 7], [0, 1, 1]])
    assert own.tolist() == [1, 0]
    assert rest.tolist() == [1, 0]
    own, rest = shares_of(read, {0: [[0, 9, 9]]}, [None, None])
    assert own.tolist() == rest.tolist() == [0, 0]


def test_a_version_that_is_not_known_is_named(planted, folder):
    with pytest.raises(StudfinderError, match=r"versions=rtn9; expected rtn, gptq or awq with 2 to 8 bits"):
        super_weight_coordinates._versions(SimpleNamespace(config=CoordinatesConfig(versions=("rtn9",))), planted, [])


def test_models_are_held_against_each_other():
    base = {"super weights": {1: [[0, 5, 7], [0, 3, 7]]}, "commonest": [None, [0, 5, 7]], "layers": 2}
    moved = {"super weights": {1: [[0, 2, 2]]}, "commonest": [None, [0, 2, 2]], "layers": 2}
    deeper = {"super weights": {2: [[0, 2, 2]]}, "commonest": [None, None, [0, 2, 2]], "layers": 3}
    (table,) = super_weight_coordinates.across({"base": base, "copy": base, "moved": moved, "deeper": deeper}).tables
    found = {row[:2]: row[2:] for row in table.rows}
    assert found["base", "copy"] == (2, 1)  # of two in a layer one is its commonest place
    assert found["base", "moved"] == (2, 0)
    assert found["base", "deeper"] == (2, "another number of layers")
    assert super_weight_coordinates.across({"base": base}).tables == []


def test_case(planted, folder):
    rows = [{"text": "w3 w4", "answer": "w5"}, {"text": "w7", "answer": "w8"}, {"text": "w3", "answer": "w8"}]
    write(folder, "prompts.jsonl", rows)
    result = run("super-weight/case", planted, folder, prompts=str(folder / "prompts.jsonl"), top=3)
    right, likeliest = result.tables
    assert [row[:2] for row in right.rows] == [(row["text"], "' '") for row in rows]
    for row in right.rows:
        assert row[2] == ("yes" if row[-1].startswith("' '") and row[3] == row[4] else row[2])
    passes = sum(row[2] == "yes" for row in right.rows)
    assert f"the model passes {passes} of 3 prompts before anything is cut" in result.notes[0]
    assert (result.claims[0].number is None) == (passes < 2)
    assert likeliest.title.endswith("after 'w3 w4'")
    assert max(row[1] for row in likeliest.rows) == likeliest.rows[0][1]


def test_our_own_prompts_have_one_right_word_each():
    pairs = super_weight_case._pairs("")
    assert len(pairs) == len({text for text, _ in pairs}) == 30
    assert all(answer[0] == " " and answer.count(" ") == 1 for _, answer in pairs)
    assert pairs[0] == ("Summer is hot. Winter is", " cold")


def test_a_prompt_without_an_answer_is_named(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"text": "a", "answer": "b"}\n{"text": "a"}\n')
    with pytest.raises(StudfinderError, match=r"line 2 is not a prompt; expected"):
        super_weight_case._pairs(str(tmp_path / "prompts.jsonl"))


def test_controls_share_no_row_or_column_with_a_super_weight(planted):
    findings = read_findings()
    (weight,) = findings.proven
    many = [replace(weight, row=row, col=col, index=(row, col)) for row, col in ((ROW, COL), (ROW, 3), (2, 9))]
    controls = [control.entries[0] for control in controls_of(planted, many, findings)]
    assert len(set(controls)) == 3
    for row, col in controls:
        assert row not in (ROW, 2)
        assert col not in (COL, 3, 9)


def test_a_scan_that_is_named_is_used(planted, folder):
    (place,) = (folder / "runs").glob("*/scan-*")
    for given, proven in ((str(place), True), (f"{place}#all", False)):
        bench = SimpleNamespace(config=AblationConfig(findings=(given,), most=1))
        (weight,), _ = super_weights_of(bench, planted)
        assert (weight.row, weight.col) == (ROW, COL), proven
    other = provable("llama", planted=False)[0]
    with pytest.raises(StudfinderError, match=r"none of findings=.* is of live. Name a scan of it"):
        super_weights_of(bench, other)


def test_anatomy(planted, folder):
    result = run("super-weight/anatomy", planted, folder)
    spike, output = result.tables
    product = {row[2]: row[3] for row in spike.rows}
    assert product["act(gate) x up"] == pytest.approx(product["act(gate)"] * product["up"], rel=1e-5)
    # The neuron's product is the input that the down projection really got.
    weight = read_findings().super_weights[0]
    assert product["act(gate) x up"] == pytest.approx(weight.input_spike, rel=1e-4)
    row = dict(zip(output.columns, output.rows[0], strict=True))
    assert row["|a| there after its layer"] > 5 * row["without the weight"]
    assert row["without a control"] == pytest.approx(row["|a| there after its layer"], rel=0.2)
    assert row["rank of the row"] == 1


def read_findings():
    (file,) = Path("runs").glob("*/scan-*/findings.json")
    return read_record(Findings, file)


def test_positions(planted, folder):
    result = run("super-weight/positions", planted, folder, pieces=3, cuts="0,1,4,16")
    (table,) = result.tables
    assert [row[0] for row in table.rows].count("super weights") == 6
    by_text = {
        text: [row[3].value for row in table.rows if row[:2] == ("super weights", text)]
        for text in ("as it is", "without the first token")
    }
    assert by_text["as it is"] != by_text["without the first token"]
    assert all(row[3].value < 0.1 * by_text[row[1]][-1] for row in table.rows if row[0] == "controls")
    at_first, at_last = result.notes
    assert "positions 0 to 0: " in at_first
    assert "positions 4 to 15: " in at_last
    assert all(", more than that of the controls" in note for note in result.notes)  # planted; the controls do nothing
