"""measure: a scorecard before and after an edit, beside another model, resumed and drawn."""

from __future__ import annotations

import pytest

import studfinder as sf
from proving import provable
from studfinder.edits import Weights, zero
from studfinder.errors import NotApplicable, StudfinderError, Unavailable, WriteFailed
from studfinder.measures import MEASURES, Measure, scored
from studfinder.models import load
from studfinder.verbs.measure import measure, write_cards


@pytest.fixture
def lm():
    return provable("llama", planted=True)


def _zeroed(lm_and_index):
    lm, index = lm_and_index
    parameter = lm.anatomy.layers[1].writers[0].parameter
    return lm, zero(Weights(parameter=parameter, entries=(index,)))


def test_before_and_after_an_edit_on_the_same_items(lm):
    model, edits = _zeroed(lm)
    card = measure(model, ["perplexity"], edits=edits, limit=3)
    (line,) = card.measured
    assert line.baseline.value != line.score.value
    assert line.change.kind == "ratio"
    assert line.change.interval.value == pytest.approx(line.score.value / line.baseline.value)


def test_an_edit_leaves_the_model_as_it_was(lm):
    model, edits = _zeroed(lm)
    first = measure(model, ["perplexity"], limit=2).measured[0].score
    measure(model, ["perplexity"], edits=edits, limit=2)
    assert measure(model, ["perplexity"], limit=2).measured[0].score == first


def test_beside_the_same_model_nothing_changes(lm):
    model, _ = lm
    line = measure(model, ["perplexity"], against=model, limit=2).measured[0]
    assert line.change.interval.value == 1
    assert not line.change.changed


def test_an_interrupted_run_goes_on_where_it_stopped(lm, tmp_path, monkeypatch):
    model, _ = lm
    calls = []

    def counted(lm, *, limit, seed, progress=None):
        calls.append(1)
        return scored("counted", [1, 0], text="items", correct=[1, 0], chance=0.5)

    def broken(lm, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(MEASURES, "counted", Measure("context", "test_measure:_counted", ""))
    monkeypatch.setitem(MEASURES, "broken", Measure("context", "test_measure:_broken", ""))
    monkeypatch.setitem(globals(), "_counted", counted)
    monkeypatch.setitem(globals(), "_broken", broken)
    with pytest.raises(KeyboardInterrupt):
        measure(model, ["counted", "broken"], out=tmp_path / "run")
    assert not (tmp_path / "run" / "scorecard.json").exists()
    monkeypatch.setitem(globals(), "_broken", counted)
    card = measure(model, ["counted", "broken"], out=tmp_path / "run")
    assert len(calls) == 2
    assert [line.headroom for line in card.measured] == [False, False]
    assert sf.read(tmp_path / "run") == card
    for name in ("table.md", "table.csv", "figure-scorecard.png", "report.html", "steps.jsonl"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert "no headroom" in (tmp_path / "run" / "table.md").read_text()


def test_one_measure_that_cannot_run_is_a_line_and_not_the_end(lm, monkeypatch):
    model, _ = lm

    def broken(lm, **options):
        raise kind("its data is not here")

    kind = NotApplicable
    monkeypatch.setitem(MEASURES, "broken", Measure("context", "test_measure:_broken", ""))
    monkeypatch.setitem(globals(), "_broken", broken)
    card = measure(model, ["perplexity", "broken"], limit=2)
    assert card.measured[1].score is None
    assert "its data is not here" in card.measured[1].why_not
    with pytest.raises(NotApplicable, match="its data is not here"):
        measure(model, ["broken"])
    for kind in (WriteFailed, Unavailable, StudfinderError, MemoryError):  # these are no lines: they end the run
        with pytest.raises(kind):
            measure(model, ["perplexity", "broken"], limit=2)


def test_scorecards_stand_side_by_side(lm, tmp_path):
    model, edits = _zeroed(lm)
    cards = [measure(model, ["perplexity"], limit=2), measure(model, ["perplexity"], edits=edits, limit=2)]
    page = write_cards(tmp_path / "both", cards)
    assert "side by side" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": []}, "nothing to measure"),
        ({"measures": ["perplexty"]}, "no measure 'perplexty'"),
        ({"limit": 0}, "--limit 0"),
    ],
)
def test_mistakes_are_said(lm, options, message):
    with pytest.raises(StudfinderError, match=message):
        measure(lm[0], **options)


def test_edits_and_another_model_at_once_are_refused(lm):
    model, edits = _zeroed(lm)
    with pytest.raises(StudfinderError, match="both edits and another model"):
        measure(model, edits=edits, against=load(model.model, model.tokenizer))


def test_a_folder_of_other_settings_is_refused(lm, tmp_path):
    model, _ = lm
    measure(model, ["perplexity"], limit=2, out=tmp_path / "run")
    with pytest.raises(StudfinderError, match="limit was 2 and is now 3"):
        measure(model, ["perplexity"], limit=3, out=tmp_path / "run")


def test_the_command_line_says_what_is_wrong(mistake):
    assert "no measure 'perplexty'" in mistake("measure", "nowhere", "--measures", "perplexty")
    assert "no experiment" in mistake("experiment", "super-weight/ablatoin")
    assert "--batch-size many; expected a number" in mistake("measure", "--batch-size", "many")


def test_a_model_that_is_not_there_leaves_no_folder(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in mistake("experiment", "massive-values/map", "--model", "./nowhere", "--json")
    assert not list(tmp_path.iterdir())


def test_a_measurement_that_fails_at_once_leaves_no_folder(lm, tmp_path):
    (tmp_path / "empty.txt").touch()
    model, _ = lm
    with pytest.raises(StudfinderError, match="empty"):
        measure(model, [f"perplexity:{tmp_path / 'empty.txt'}"], out=tmp_path / "run")
    assert [child.name for child in tmp_path.iterdir()] == ["empty.txt"]


def test_an_empty_findings_file_is_named(mistake, tmp_path):
    (tmp_path / "findings.json").touch()
    assert "findings.json is not valid JSON" in mistake("report", tmp_path / "findings.json")
