"""A claim is judged by its interval alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studfinder.records import Claim, Comparison, Interval, Result, RunCard
from studfinder.report.claims import because, claims_overview, claims_table, verdicts
from studfinder.studies import cost_of, judged


def between(low: float, high: float) -> Interval:
    middle = (low + high) / 2
    return Interval(value=middle, low=low, high=high, level=0.95, n=100, method="bootstrap over items")


def claim(kind: str = "more", **more) -> Claim:
    return Claim(key="x/y", says="It grows.", decides="how much it grew", kind=kind, **more)


@pytest.mark.parametrize(
    ("kind", "none", "paper", "low", "high", "verdict"),
    [
        ("more", 0, None, 0.1, 0.3, "held"),
        ("more", 0, None, -0.3, -0.1, "did not hold"),
        ("more", 0, None, -0.1, 0.3, "not decided"),
        ("more", 0, 0.4, -0.1, 0.3, "did not hold"),
        ("more", 0, 0.4, -0.1, 0.5, "not decided"),
        ("more", 0, 0.4, 0.1, 0.2, "held"),
        ("less", 0, None, -0.3, -0.1, "held"),
        ("less", 0, None, 0.1, 0.3, "did not hold"),
        ("less", 0, -0.4, -0.3, 0.1, "did not hold"),
        ("less", 0, -0.4, -0.5, 0.1, "not decided"),
        ("more", 1, None, 1.1, 2.0, "held"),
        ("more", 1, None, 0.5, 0.9, "did not hold"),
        ("more", 1, 5.0, 0.5, 3.0, "did not hold"),
        ("less", 1, 0.5, 0.6, 1.2, "did not hold"),
        ("less", 1, 0.5, 0.4, 1.2, "not decided"),
    ],
)
def test_the_interval_decides(kind, none, paper, low, high, verdict):
    found = judged(claim(kind, none=none, paper_effect=paper), between(low, high))
    assert found.verdict == verdict
    assert ("could not be decided" in claims_table([found])[0].rows[0][1]) == (verdict == "not decided")


@pytest.mark.parametrize(
    ("none", "margin", "low", "high", "verdict"),
    [
        (0, 0.1, -0.05, 0.09, "held"),
        (0, 0.1, -0.05, 0.2, "not decided"),
        (0, 0.1, 0.11, 0.2, "did not hold"),
        (0, 0.1, -0.2, -0.11, "did not hold"),
        (1, 1.1, 0.95, 1.05, "held"),
        (1, 1.1, 0.5, 1.05, "not decided"),
        (1, 1.1, 0.5, 0.6, "did not hold"),
    ],
)
def test_no_change_is_shown_by_a_margin(none, margin, low, high, verdict):
    assert judged(claim("within", none=none, margin=margin), between(low, high)).verdict == verdict


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine fails no test
@given(st.floats(-5, 5), st.floats(-5, 5), st.sampled_from([None, 0.5, 2.0]))
def test_nothing_failed_whose_interval_holds_the_papers_effect(one, other, paper):
    low, high = sorted((one, other))
    more = judged(claim("more", paper_effect=paper), between(low, high))
    assert more.smallest == (pytest.approx((high - low) / 2) if low < high else None)
    if paper is not None and low <= paper <= high:
        assert more.verdict != "did not hold"
    mirrored = judged(
        claim("less", paper_effect=None if paper is None else -paper), between(-high, -low)
    )  # the rule has no favourite side
    assert mirrored.verdict == more.verdict


def test_ratios_are_judged_by_their_logarithms():
    found = judged(claim(none=1.0), Comparison(kind="ratio", interval=between(0.5, 2.0)))
    assert found.verdict == "not decided"
    assert found.smallest == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["more", "less", "within"])
@pytest.mark.parametrize("none", [0.0, 1.0, 2.0])
def test_where_no_item_changed_nothing_is_decided(kind, none):
    found = judged(claim(kind, none=none, margin=1.1 if kind == "within" else None), between(none, none))
    assert (found.verdict, found.smallest) == ("not decided", None)
    assert "no item changed" in because(found)


@pytest.mark.parametrize("broken", [between(math.nan, 1.0), between(1.0, math.nan), None])
def test_what_was_not_measured_decides_nothing(broken):
    found = judged(claim(), broken, why="there was nothing to measure", cost="an hour with another model")
    assert found.verdict == "not decided"
    assert found.smallest is None
    assert "To decide: an hour with another model." in because(found)


def test_a_margin_belongs_to_within():
    with pytest.raises(ValueError, match="margin"):
        claim("within")
    with pytest.raises(ValueError, match="margin"):
        claim("more", margin=0.1)


def test_an_overview_has_a_row_a_claim_and_a_column_a_model():
    found = [judged(claim(), between(*ends)) for ends in ((0.1, 0.2), (-0.2, -0.1))]
    claims = tuple(replace(one, model=model) for one, model in zip(found, ("a", "b"), strict=True))
    run = RunCard(verb="experiment", key="", settings={}, command="", started="", seconds=1.0, device="cpu", seed=0)
    more = {"paper": "2411.07191", "shows": "table 1", "models": (), "run": run, "tables": ()}
    (table,) = claims_overview(
        [Result(name="x", claims=claims[:1], **more), Result(name="y", claims=claims[1:], **more)]
    )
    assert table.columns[2:] == ("a", "b")
    assert table.rows == (
        ("It grows.", "how much it grew", "held: 0.15 [0.1, 0.2]", "did not hold: -0.15 [-0.2, -0.1]"),
    )
    assert claims_overview([]) == []


def test_verdicts_are_counted():
    results = [judged(claim(), between(*ends)) for ends in ((0.1, 0.2), (-0.2, -0.1), (-1.0, 1.0), (0.3, 0.4))]
    assert verdicts(results) == "2 held, 1 did not hold, 1 could not be decided here"
    assert claims_table([]) == []


def test_the_run_that_would_decide_has_an_interval_as_wide_as_the_paper_s_effect():
    """Half the interval is .2 and the paper's effect .1: four times the items, and four times as long."""
    said = cost_of(claim(paper_effect=0.1), between(-0.1, 0.3), "--limit ", 50, seconds=900)
    assert said == "`--limit 200` where the data has as many, about 1.0 hours at the pace of this run"
    ratio = cost_of(claim(none=1.0, paper_effect=4.0), between(0.25, 4.0), "--set windows=", 10, seconds=60)
    assert ratio.startswith("`--set windows=11` ")  # as wide already: one more at least
    assert cost_of(claim(), between(-0.1, 0.3), "--limit ", 50, seconds=900) == ""  # the paper gives no number
    assert cost_of(claim(paper_effect=0.1), None, "--limit ", 50, seconds=900) == ""
    assert cost_of(claim(paper_effect=0.1), between(-math.inf, 0.3), "--limit ", 50, seconds=900) == ""
