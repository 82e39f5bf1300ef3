"""What two runs side by side say, and what a scorecard comes to."""

from __future__ import annotations

from dataclasses import replace

from proved import made_up_proof
from scanned import a_scan
from studfinder.records import Comparison, Interval, Measured, RunCard, Scorecard
from studfinder.report import comparison_page
from studfinder.report.changes import changes
from studfinder.report.scorecard import scorecard_verdict, tables


def _interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.1, high=value + 0.1, level=0.95, n=9, method="made up")


def test_what_survived_and_what_moved():
    findings, profile = a_scan()
    before = made_up_proof(findings)
    first, second, *rest = before.super_weights
    fewer = replace(
        before, super_weights=(replace(first, value=2 * first.value), replace(second, verdict="inert"), *rest)
    )
    top = before.massive_activations[0]
    after = replace(
        fewer,
        massive_activations=(replace(top, value=-3 * top.value, layer=3), replace(top, dim=9)),
        attention_sinks=(),
    )
    said, (numbers, activations) = changes(before, after)
    assert said[0] == (
        "Of 2 proven numbers in either: 1 survived, changed (layers.2 down_proj[7, 30]), "
        "1 no longer proven (layers.2 down_proj[8, 31])."
    )
    assert said[1] == "Of 2 massive dims in either: 1 moved (dim 7), 1 new (dim 9)."
    assert said[2] == "Heads with an attention sink: 1 before, 0 after, 0 of them the same."
    assert [row[-1] for row in numbers.rows] == ["survived, changed", "no longer proven: inert"]
    assert [row[-1] for row in activations.rows] == ["moved: other layers, 3 times as large", "new"]
    back, _ = changes(after, before)
    assert "1 new (layers.2 down_proj[8, 31])" in back[0]
    assert "1 gone (dim 9)" in back[1]
    gone, _ = changes(before, replace(before, super_weights=(first,)))
    assert "1 survived, 1 gone (layers.2 down_proj[8, 31])" in gone[0]
    html = comparison_page([("a", before, profile), ("b", after, profile)])
    assert '<section id="changes"' in html
    assert "on the same axis" in html


def test_models_of_unlike_shapes_share_no_places():
    findings, _ = a_scan()
    said, made = changes(findings, replace(findings, model=replace(findings.model, hidden=65)))
    assert "unlike shapes" in said[0]
    assert made == []


def test_a_scorecard_has_a_verdict_and_groups_what_can_show_nothing():
    def line(name: str, change: float, headroom: bool | None = True) -> Measured:
        of = Comparison(kind="difference", interval=_interval(change))
        score = _interval(0.5)
        return Measured(
            measure=name,
            kind="context",
            what="-",
            score=score,
            baseline=score,
            change=of,
            chance=0.1,
            headroom=headroom,
        )

    lost = Measured(measure="lost", kind="fluency", what="-", score=None, why_not="no data")
    lines = (line("a", -0.5), line("b", 0.5), line("c", 0.0), line("d", -0.5, False), lost)
    run = RunCard(verb="measure", key="k")
    card = Scorecard(model=a_scan()[0].model, measured=lines, run=run, against="the same model", edits=("zero",))
    assert scorecard_verdict(card) == [
        "Worse: a.", "Better: b.", "No change seen: c.", "No headroom, at chance: d.", "Not measured: lost."
    ]  # fmt: skip
    shown, silent = tables([card])
    assert [row[0] for row in shown.rows] == ["lost", "a", "b", "c"]
    assert [row[0] for row in silent.rows] == ["d"]
    assert scorecard_verdict(replace(card, against="", edits=()))[0] == "Above chance: a, b, c."
