"""What a scan says of all numbers: sentences, the terminal, the page, its figures and its table."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html import unescape

import pytest
from matplotlib.figure import Figure

from proved import made_up_proof
from scanned import a_scan
from studfinder.records import CensusCard, CensusPlace, Effect, Findings, Interval, OtherNumber
from studfinder.records.numbers import Verdict
from studfinder.report import comparison_page, figures, page, print_candidates, print_findings
from studfinder.report.caveats import caveats
from studfinder.report.comparison import rows as comparison
from studfinder.report.screen import Screen
from studfinder.report.words import census_sentence, verdict_sentence

_NONE = (0,) * 13
CARD = CensusCard(
    tokens=1984,
    draws=2,
    least_decade=-16,
    places=(
        CensusPlace(layer=0, kind="gain", predicted=0.5, decades=(0, *_NONE, 60, 3, 1, 0, 0, 0)),
        CensusPlace(layer=0, kind="down projection", predicted=0.2, decades=(2, *_NONE, 4000, 30, 0, 0, 0, 0)),
        CensusPlace(layer=1, kind="other weight", predicted=0.1, decades=(0, 7, *_NONE[1:], 7000, 9, 0, 0, 0, 0)),
        CensusPlace(layer=None, kind="embedding", predicted=40.0, decades=(900, *_NONE, 90, 8, 2, 0, 0, 0)),
    ),
    half=12,
    threshold=0.05,
)


def interval(value: float) -> Interval:
    return Interval(value=value, low=0.9 * value, high=1.1 * value, level=0.99, n=16, method="made up")


def effect(kl: float, ratio: float) -> Effect:
    return Effect(
        kl=interval(kl), perplexity_ratio=interval(ratio), control_kl=interval(kl / 90), control_kls=(kl / 90,)
    )


def gain(name: str = "norm[17]", of: Effect | None = None, verdict: Verdict = "proven", **more) -> OtherNumber:
    """A gain that was tested, if `of` is given."""
    fields = {"kind": "gain", "layer": None, "parameter": "model.norm.weight", "index": (17,), "value": 60.5}
    fields |= {"predicted": 0.7, "error": 0.2} | more
    return OtherNumber(name=name, effect=of, verdict=verdict if of else "candidate", **fields)


LARGE, SMALL = effect(3.0, 17.0), effect(0.06, 1.05)
TWO = {"predicted_off": 0.9, "effect_off": effect(4.0, 55.0)}


def scan_of(*numbers: OtherNumber, card: CensusCard | None = CARD, weights: bool = True) -> Findings:
    """A scan whose first super weight is proven, its perplexity 4.7 times as large, and these numbers."""
    findings = made_up_proof(a_scan()[0]) if weights else a_scan(found=False)[0]
    return replace(findings, other_numbers=numbers, census=card)


def printed(findings: Findings, width: int = 100) -> str:
    console = Screen(width, file=io.StringIO(), force_terminal=False)
    print_findings(findings, None, console)
    return console.file.getvalue()


def words_of(findings: Findings) -> str:
    """The page without figures, as text with single spaces."""
    return " ".join(unescape(page(findings, a_scan()[1], folder="runs/m", without=figures.FIGURES)).split())


W = "layers.2 down_proj[7, 30]"
LARGEST = "its perplexity is 17.00 times as large [15.30, 18.70]"
WEIGHT = f"One weight holds this model up: without {W} its perplexity is 4.70 times as large [3.76, 5.87]"


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        (scan_of(), f"{WEIGHT} (1 more weight proven, with smaller effects)."),
        (
            scan_of(gain(of=LARGE)),
            f"{WEIGHT}; so does a gain of a norm: without norm[17] it is 17.00 times as large [15.30, 18.70] (1 more "
            "weight proven, with smaller effects).",
        ),
        (
            scan_of(gain(of=LARGE), gain("norm[3]", SMALL), gain("norm[4]", SMALL), gain("norm[5]", SMALL, "inert")),
            f"{WEIGHT}; so does a gain of a norm: without norm[17] it is 17.00 times as large [15.30, 18.70] (1 more "
            "weight and 2 more gains proven, with smaller effects).",
        ),
        (scan_of(gain(of=SMALL)), f"{WEIGHT} (1 more weight and 1 gain of a norm proven, with smaller effects)."),
        (
            scan_of(gain("layers.0 q_proj[3, 5]", LARGE, kind="other weight")),
            f"{WEIGHT}; so does another weight: without layers.0 q_proj[3, 5] it is 17.00",
        ),
        (
            scan_of(gain("embed_tokens[2, 3]", LARGE, kind="embedding")),
            f"{WEIGHT}; so does an entry of the embedding: without embed_tokens[2, 3] it is 17.00",
        ),
        (
            scan_of(gain(of=LARGE, **TWO)),
            f"{WEIGHT}; so does a gain of a norm: with the factor of norm[17] brought from 61.5 to 1 it is 17.00",
        ),
        (
            scan_of(gain(of=LARGE), gain("norm[3]", SMALL), weights=False),
            f"One gain of a norm holds this model up: without norm[17] {LARGEST} (1 more gain of a norm proven, with "
            "smaller effects).",
        ),
        (
            scan_of(gain("x.bias[1]", effect(3.0, 1.4), kind="bias")),
            "One bias matters more than its like: without x.bias[1] its perplexity is 1.40 times as large [1.26, "
            f"1.54]. {WEIGHT} (",
        ),
        (scan_of(gain(of=SMALL, verdict="inert"), weights=False), "1 other number, of which none of those tested is"),
        (scan_of(gain(), weights=False), "What stands out: 1 other number by prediction (none tested)."),
        (scan_of(weights=False), "None of the three was found"),
    ],
)
def test_the_verdict_names_what_carries_most(findings: Findings, said: str):
    assert said in verdict_sentence(findings)
    assert said in " ".join(printed(findings).split())
    assert said in words_of(findings)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (None, ""),
        (
            CARD,
            "Of 12,112 numbers 3 carry more than 0.1 nats per token by prediction (2 of them in the embedding, where "
            "predictions are too large); none was tested.",
        ),
        (
            replace(CARD, places=CARD.places[1:3], threshold=0.01),
            "Of 11,048 numbers 39 carry more than 0.01 nats per token by prediction; none was tested.",
        ),
        (
            replace(CARD, heavy=2),
            "Of 12,112 numbers 13 were tested: 2 carry more than 0.05 nats per token. How many of the others do "
            "was not measured.",
        ),
        (replace(CARD, heavy=0), "13 were tested: none carries more than 0.05"),
        (
            replace(CARD, heavy=31, unseen=1200),
            f"Of {CARD.bounded:,} numbers outside the embedding and the output matrix 31 carry more than 0.05 nats per "
            "token; all are listed. With 95% confidence at most 1,200 others do.",
        ),
        (
            replace(CARD, places=CARD.places[1:3], heavy=2, unseen=3),
            "Of 11,048 numbers 2 carry more than 0.05 nats per token; all are listed. With 95% confidence at most 3 ",
        ),
        (
            replace(CARD, heavy=1, unseen=1),
            "1 carries more than 0.05 nats per token; it is listed. With 95% confidence at most 1 other does.",
        ),
        (replace(CARD, heavy=0, unseen=0), "none carries more than 0.05 nats per token. With 95% confidence no other"),
    ],
)
def test_the_bound_is_said(card: CensusCard | None, said: str):
    findings = scan_of(gain(of=LARGE), gain("norm[3]"), card=card)
    sentence = census_sentence(findings)
    assert (said in sentence) if said else (sentence == "")
    assert ("all numbers" in printed(findings)) == bool(said)
    assert sentence in " ".join(printed(findings).split())
    html = words_of(findings)
    assert ('id="census"' in html, sentence in html) == (bool(said), True)


def test_the_terminal_shows_tested_numbers_and_counts_the_others():
    many = [gain(f"norm[{n}]", SMALL, "inert") for n in range(20, 28)]
    text = printed(scan_of(*many, gain("norm[5]"), gain("norm[6]"), gain(of=LARGE, **TWO)))
    lines = text.splitlines()
    (first,) = (at for at, line in enumerate(lines) if line.startswith(" other number "))
    assert [" ".join(line.split()) for line in lines[first : first + 4]] == [
        "other number kind weight predicted KL perplexity verdict",
        "norm[17] gain +60.5 0.7 3 x 17 proven",
        "its factor 1 + w at 0 0.9 4 x 55",
        "norm[20] gain +60.5 0.7 0.06 x 1.05 inert",
    ]
    assert "the first line sets w to 0, which leaves the factor 1" in text
    assert "and 1 more (1 inert) in findings.json" in text
    assert "and 2 untested numbers in findings.json" in text
    assert "norm[5]" not in text
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("width", "fits"), [(120, True), (98, False)])
def test_what_is_predicted_of_super_weights_is_shown_where_there_is_room(width: int, fits: bool):
    findings = scan_of()
    weights = tuple(replace(weight, predicted=0.123) for weight in findings.super_weights)
    text = printed(replace(findings, super_weights=weights), width)
    assert ("predicted" in text.split("all numbers")[0], "0.123" in text) == (fits, fits)
    assert "…" not in text
    assert "predicted" not in printed(replace(findings, super_weights=weights, census=None), width)


def test_a_long_name_is_shown_whole_and_what_has_no_room_is_left_out():
    name, rows = "layers.29 post_attention_layernorm[17]", []
    for kind, width in (("gain", 110), ("down projection", 110), ("down projection", 100), ("gain", 80)):
        text = printed(scan_of(gain(name, LARGE, "proven-jointly", kind=kind)), width)
        (row,) = (line for line in text.split(" other number ")[1].splitlines() if name in line)
        rows.append(" ".join(row.split()).removeprefix(name))
    end = "3 x 17 proven-jointly"
    expected = [f" gain +60.5 0.7 {end}", f" down projection +60.5 0.7 {end}", f" down projection 0.7 {end}", f" {end}"]
    assert rows == expected


def test_before_the_proof_no_number_is_listed(capsys: pytest.CaptureFixture[str]):
    print_candidates(replace(a_scan()[0], other_numbers=(gain(),), census=CARD))
    assert "norm[17]" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "drawn"),
    [((), {"iceberg", "places"}), ((gain(),), {"iceberg", "places"}), ((gain(of=LARGE, **TWO), gain("norm[3]")), None)],
)
def test_figures_of_a_census(numbers: tuple[OtherNumber, ...], drawn: set[str] | None):
    findings, profile = scan_of(*numbers), a_scan()[1]
    there = {"iceberg", "places", "predicted"} & set(figures.available(findings, profile))
    assert there == (drawn or {"iceberg", "places", "predicted"})
    for name in there:
        assert isinstance(figures.draw(name, findings, profile, width=358), Figure)
    html = page(findings, profile, without={"effects", "depth", "spikes"})
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert sum(f'id="{name}-wide-t"' in html for name in there) == len(there)
    words = figures.describe("iceberg", findings, profile)
    assert "0.1 to 1 nats: 3; 0.01 to 0.1 nats: 50; 0.001 to 0.01 nats: 11,150" in words
    assert "less: 909" in words
    words = figures.describe("places", findings, profile)
    assert "layer 0: 0.7; layer 1: 0.1; outside the layers: 0" in words
    assert not {"iceberg", "places"} & set(figures.available(replace(findings, census=None), profile))


def test_both_edits_of_a_gain_are_compared_with_what_was_predicted():
    words = figures.describe("predicted", scan_of(gain(of=LARGE, **TWO)), {})
    assert "2 edits" in words
    assert "norm[17], factor at 0: predicted 0.9, measured 4 [3.6, 4.4]; norm[17]: predicted 0.7, measured 3" in words


@pytest.mark.parametrize("empty", [True, False])
def test_a_census_of_nothing_has_a_page(empty: bool):
    nothing = tuple(replace(place, predicted=0.0, decades=(5, *(0,) * 19)) for place in CARD.places)
    endless = Effect(kl=replace(LARGE.kl, value=float("inf"), high=float("inf")), perplexity_ratio=LARGE.kl)
    numbers = () if empty else (gain(of=endless), gain("norm[1]", effect(-1e-6, 1.0), "inert", predicted=0.0))
    findings = scan_of(*numbers, card=replace(CARD, places=nothing, half=None))
    html = page(findings, a_scan()[1], without={"effects", "depth", "spikes"})
    assert ('id="iceberg-narrow-t"' in html, 'id="predicted-narrow-t"' in html) == (True, not empty)
    assert "iceberg" in figures.available(findings, {})
    assert "places" not in figures.available(findings, {})


def test_the_table_holds_both_edits_and_what_can_be_pasted():
    findings = scan_of(gain(of=LARGE, **TWO), gain("norm[3]", index=(3,)))
    html = words_of(findings)
    table = re.sub(r"<[^>]+>|\s+", " ", html.split('<table id="other-numbers">')[1].split("</table>")[0])
    text = " ".join(table.split())
    assert "norm[17] # w at 0: factor 1 gain proven +60.5 0.7 ± 0.2 3 2.7 to 3.3" in text
    assert "factor 1 + w at 0 +61.5 0.9 4 3.6 to 4.4" in text
    assert "norm[3] # gain candidate" in text
    (python,) = re.findall(r'data-copy="(import[^"]*)">copy as Python', html)
    assert "('model.norm.weight', (17,)), # +60.5, proven" in python
    assert "(3,)" not in python
    assert 'id="other-numbers"' not in words_of(scan_of())


def test_names_from_outside_stay_text():
    evil = "</script><script>alert(1)</script>"
    findings = scan_of(gain(evil, LARGE, parameter=evil), card=replace(CARD, nonfinite=(evil,)))
    kept = set(figures.FIGURES) - {"predicted"}
    for html in (page(findings, a_scan()[1], without=kept), comparison_page([("a", findings, {})] * 2)):
        assert "<script>alert" not in html


@pytest.mark.parametrize(
    ("card", "settings", "said"),
    [
        (CARD, {}, "from 1,984 tokens of the prompts (2 labels drawn from the model at each)"),
        (replace(CARD, pools=64, pools_of=2000, loud=3), {}, "64 of 2,000 pools were measured, 3 of them carried more"),
        (replace(CARD, nonfinite=("norm.weight",)), {}, "Nothing is predicted in norm.weight"),
        (None, {}, "there was no census (this scan is older than it)"),
        (None, {"census": False, "prove": False}, "(it comes with the proof)"),
        (None, {"census": False, "prove": True}, "(it was asked not to be, or weights are offloaded"),
    ],
)
def test_caveats_say_how_it_was_predicted_or_why_not(card: CensusCard | None, settings: dict, said: str):
    findings = scan_of(card=card)
    findings = replace(findings, run=replace(findings.run, settings=settings))
    assert said in dict(caveats(findings))["census"]


def test_a_model_that_is_not_causal_has_no_census():
    findings = scan_of(card=None, weights=False)
    findings = replace(findings, summary=replace(findings.summary, bidirectional="an encoder"))
    assert "no likelihood" in dict(caveats(findings))["census"]


def test_runs_are_compared_by_their_numbers():
    runs = [
        scan_of(gain(of=LARGE), gain("norm[2]", SMALL, "inert"), card=replace(CARD, heavy=31, unseen=10)),
        scan_of(gain(), card=CARD),
        scan_of(card=None),
        scan_of(gain(of=LARGE), card=replace(CARD, heavy=3)),
    ]
    shown = dict(comparison(runs))
    assert shown["super weights proven"] == ["2 of 12 tested"] * 4
    proven = ["1 of 2 tested", "1 by prediction, not tested", "not looked for", "1 of 1 tested"]
    assert shown["other numbers proven"] == proven
    assert shown["all numbers"] == [
        "31 above 0.05 nats, at most 10 others (95%)",
        "predicted, not tested",
        "not looked for",
        "3 above 0.05 nats, others not measured",
    ]


def test_a_frame_has_columns_for_both_effects():
    pytest.importorskip("pandas")
    frame = scan_of(gain(of=LARGE, **TWO), gain("norm[3]")).to_frame("other_numbers")
    assert "effect_off" not in frame
    assert tuple(frame.loc[0, ["kl", "kl_off", "perplexity_ratio_off_low"]]) == (3.0, 4.0, 49.5)


def test_findings_say_how_many_numbers_are_proven():
    assert "2 other numbers (1 proven)" in repr(scan_of(gain(of=LARGE), gain("norm[3]")))
    assert "norm[17]" in scan_of(gain(of=LARGE))._repr_html_()
