"""The skyline, beside a scan too, and the picture for sharing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from proved import made_up_proof
from readers import _samples
from scanned import a_scan
from studfinder.records import FormatCost, GroupCosts, Result, RunCard, Sensitivity, to_json
from studfinder.report.sharing import sharing_card
from studfinder.report.skyline import skyline_of
from studfinder.verbs.report import skyline_beside, write_report


def _costs() -> Sensitivity:
    group = _samples()["Sensitivity"].groups[0]
    groups: list[GroupCosts] = []
    for layer in range(4):
        for kind in ("q_proj+k_proj", "down_proj"):
            cost = FormatCost(stored_as="int4-g64", bits=4.3, kl=0.01 * (1 + layer), error=0.001)
            groups.append(replace(group, name=f"layers.{layer}.{kind}", layer=layer, costs=(cost,)))
    return replace(_samples()["Sensitivity"], model=a_scan()[0].model, groups=tuple(groups))


def test_the_tower_of_a_super_weight_is_named():
    findings = made_up_proof(a_scan()[0])
    skyline = skyline_of(_costs(), findings)
    assert skyline is not None
    (held,) = (one for one in skyline.towers if one.holds)
    assert (held.layer, held.kind, held.holds) == (2, "down_proj", "[7, 30]")
    assert skyline.stored_as == "int4-g64"
    assert "KL alone in int4-g64" in skyline.draw(980).axes[0].get_ylabel()


def test_a_which_layer_experiment_has_a_skyline():
    findings = made_up_proof(a_scan()[0])
    run = RunCard(verb="experiment", key="k", settings={"element": "int4", "block": "64"})
    data = {"a-model": {"groups": [[2, "down_proj", 0.3], [2, "o_proj", -0.001]]}}
    of = Result(
        name="quantize/which-layer", paper="-", shows="ours", models=(findings.model,), run=run, tables=(), data=data
    )
    skyline = skyline_of(of, findings)
    assert skyline is not None
    assert [(one.kl, bool(one.holds)) for one in skyline.towers] == [(0.3, True), (0.0, False)]
    assert skyline_of(replace(of, data={}), findings) is None


@pytest.mark.usefixtures("true_figures")
def test_a_scan_shows_the_skyline_of_a_plan_beside_it(tmp_path: Path):
    findings, profile = a_scan()
    findings = made_up_proof(findings)
    scan, plan, other = (tmp_path / name for name in ("scan", "plan", "other"))
    for folder in (scan, plan, other):
        folder.mkdir()
    assert skyline_beside(scan, findings) is None
    (other / "sensitivity.json").write_text("{")
    (plan / "sensitivity.json").write_text(to_json(_costs()))
    html = write_report(scan, findings, profile).read_text("utf-8")
    assert '<section id="skyline"' in html
    assert "holds the super weight [7, 30]" in html
    assert (scan / "figure-skyline.svg").is_file()
    with Image.open(scan / "card.png") as card:
        assert card.size == (1200, 630)
    another = replace(findings, model=replace(findings.model, content_hash="3" * 64))
    assert skyline_beside(scan, another) is None


@pytest.mark.parametrize("title", ["short", "a sentence of some length. " * 40, "\x1b[31m $x$ <b> 模型"])
def test_a_card_has_its_size_whatever_it_says(title):
    card = Image.open(io.BytesIO(sharing_card(title=title, about=title, foot=title)))
    assert (card.format, card.size) == ("PNG", (1200, 630))
