"""The page and its figures: every state renders, nothing from outside gets out of its quotes, nothing is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from proved import made_up_proof
from scanned import a_scan
from studfinder.errors import StudfinderError
from studfinder.records import Findings, Interval, RunCard, SuperWeight, Training
from studfinder.report import comparison_page, figures, page
from studfinder.report.profile import Profile, pack_profile
from studfinder.report.training import training_sheet
from studfinder.runs import run_of
from studfinder.verbs.report import read_run, report, write_report
from studfinder.verbs.results import write_sheet

pytestmark = pytest.mark.usefixtures("true_figures")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module", params=["proved", "candidates", "none"])
def state(request: pytest.FixtureRequest) -> tuple[Findings, Profile]:
    findings, profile = a_scan(found=request.param != "none")
    return (made_up_proof(findings) if request.param == "proved" else findings), profile


@pytest.fixture(scope="module")
def html(state) -> str:
    return page(*state)


def test_every_state_has_the_same_sections(state, html):
    findings, _ = state
    order = ["verdict", "continuations", "effects", "depth", "spikes", "maps", "sinks", "findings"]
    places = [html.index(f'id="{name}"') for name in [*order, "caveats", "provenance"]]
    assert places == sorted(places)
    assert ("Nothing to leave out" in html) == (not findings.super_weights)
    assert ("The nearest miss" in html) == (not findings.super_weights)
    assert len(html.encode()) < 2_000_000


def test_every_figure_is_a_figure_with_words(state):
    names = figures.available(*state)
    assert set(names) >= {"depth", "spikes", "maps", "sinks"}
    assert ("effects" in names) == (state[0].proof is not None)
    for name in names:
        assert isinstance(figures.draw(name, *state), Figure)
        assert len(figures.describe(name, *state)) > 40


def test_every_chart_has_a_title_and_a_description(html):
    charts = re.findall(r"<svg class=\"chart.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 10  # five drawings, each for a wide and a narrow screen
    for chart in charts:
        assert re.search(r"<title id=[^>]*>[^<]+</title><desc id=[^>]*>[^<]+</desc>", chart)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(html):
    html = unescape(html)
    assert "default-src 'none'" in html
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", html)
    assert not re.search(r"https?://", html)
    assert not re.search(r"@import|url\((?!#)", html)


def test_text_from_outside_stays_text():
    findings, profile = a_scan()
    findings = made_up_proof(findings)
    weights = tuple(dataclasses.replace(w, token=EVIL, parameter=EVIL) for w in findings.super_weights)
    activations = tuple(dataclasses.replace(a, token=EVIL) for a in findings.massive_activations)
    findings = dataclasses.replace(
        findings,
        super_weights=weights,
        massive_activations=activations,
        continuation_prompt=EVIL,
        continuations=tuple(dataclasses.replace(c, text=EVIL, label=EVIL) for c in findings.continuations),
        published=tuple(dataclasses.replace(p, source=EVIL, model=EVIL) for p in findings.published),
        model=dataclasses.replace(findings.model, id=EVIL, origin=EVIL),
        prompts=dataclasses.replace(findings.prompts, names=(EVIL,), id=EVIL),
        run=dataclasses.replace(findings.run, command=EVIL, settings={EVIL: EVIL}, versions={EVIL: EVIL}),
        nonfinite=(EVIL,),
        others={EVIL: ({EVIL: EVIL, "x": [EVIL]},)},
    )
    for html in (page(findings, profile, folder=EVIL), comparison_page([(EVIL, findings, profile)] * 2)):
        assert "<script>alert" not in html
        assert "<img" not in html
        assert html.count("</script>") == html.count("<script")
    assert "<img" not in findings._repr_html_()


def test_data_in_the_page_is_json_that_closes_nothing():
    html = page(*a_scan())
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    assert [entry["name"] for entry in json.loads(data[1])["maps"]] == ["query", "key", "value"]


def test_a_large_model_still_fits():
    generator = np.random.default_rng(0)
    maps = {f"norm.{name}": generator.random((126, 128, 128), np.float32) for name in ("query", "key")}
    layers = {f"{name}.layers": np.arange(126) for name in maps}
    packed = pack_profile({**maps, **layers})
    assert packed["code"] == "u8"
    assert packed["step"] > 1
    assert sum(len(entry["ratio"]) for entry in packed["maps"]) < 1_500_000


@pytest.mark.parametrize("missing", ["norm.", "sink", "rotary.", "residual.", "spike."])
def test_a_model_without_a_part_has_a_page(missing):
    findings, profile = a_scan()
    assert page(findings, {name: array for name, array in profile.items() if not name.startswith(missing)})


def test_numbers_that_overflowed_do_not_stop_the_page():
    findings, profile = a_scan()
    spoiled = {name: array.copy() for name, array in profile.items()}
    for name in ("spike.output", "residual.top", "residual.median", "norm.query", "sink"):
        spoiled[name].flat[0] = np.inf
        spoiled[name].flat[1] = np.nan
    assert page(findings, spoiled)


def test_a_loss_without_bound_has_a_page():
    findings, profile = a_scan()
    findings = made_up_proof(findings)
    first = findings.super_weights[0]
    assert first.effect is not None
    endless = dataclasses.replace(first.effect.kl, value=np.inf, high=np.inf)
    effect = dataclasses.replace(first.effect, kl=endless, perplexity_ratio=endless, control_kls=(-0.001, 0.0, 0.002))
    weights = (dataclasses.replace(first, effect=effect), *findings.super_weights[1:])
    assert page(dataclasses.replace(findings, super_weights=weights), profile)


@pytest.mark.real
def test_report_draws_a_run_again(tmp_path: Path):
    folder = _written(tmp_path / "run")
    _, html = report(folder)
    assert html == folder / "report.html"
    assert {file.name for file in folder.glob("figure-*")} == {
        f"figure-{name}.{kind}"
        for name in ("scores", "depth", "spikes", "maps", "sinks", "picture", "ranges")
        for kind in ("png", "svg")
    }
    first = (folder / "figure-depth.svg").read_bytes()
    report(folder / "findings.json")
    assert (folder / "figure-depth.svg").read_bytes() == first


def test_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from studfinder.cli.app import run_cli

    folders = [str(_written(tmp_path / name)) for name in ("one", "two")]
    assert run_cli(["report", *folders, "--out", str(tmp_path / "both")]) == 0
    assert "super weights proven" in capsys.readouterr().out
    html = (tmp_path / "both" / "report.html").read_text("utf-8")
    assert "2 scans, side by side" in html
    assert run_cli(["report", *folders]) == 0


def test_many_runs_have_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One line of the terminal, and one row of the page, for each; the page has all that few runs have in columns."""
    from studfinder.cli.app import run_cli

    folders = [str(_written(tmp_path / name)) for name in "abcde"]
    assert run_cli(["report", *folders, "--out", str(tmp_path / "all")]) == 0
    shown = capsys.readouterr().out
    assert "super weights" in shown.splitlines()[0]
    assert "content hash" not in shown
    html = (tmp_path / "all" / "report.html").read_text("utf-8")
    assert "5 scans, side by side" in html
    assert '<th scope="col">content hash</th>' in html
    assert all(html.count(f"({folder})</th>") == 1 for folder in folders)


@pytest.mark.parametrize("count", [2, 5])
def test_scorecards_of_many_models_have_a_row_each(count):
    from studfinder.records import Interval, Measured, RunCard, Scorecard
    from studfinder.report.scorecard import tables

    lines = tuple(
        Measured(
            measure=name,
            kind="fluency",
            what="-",
            score=Interval(value=1.0, low=0.5, high=2.0, n=9, level=0.95, method="-"),
        )
        for name in ("perplexity", "repetition")
    )
    card = Scorecard(model=a_scan()[0].model, measured=lines, run=RunCard(verb="measure", key="k"))
    cards = [dataclasses.replace(card, model=dataclasses.replace(card.model, id=f"m{place}")) for place in range(count)]
    (table,) = tables(cards)
    if count == 2:
        assert table.columns == ("measure", "about", "m0", "m1", "chance")
        assert [row[0] for row in table.rows] == ["perplexity", "repetition"]
    else:
        assert table.columns == ("model", "perplexity", "repetition")
        assert [row[0] for row in table.rows] == ["m0", "m1", "m2", "m3", "m4"]


def test_experiments_of_several_models_are_one_set_of_tables():
    from studfinder.records import Result, RunCard, Table
    from studfinder.report.together import together

    def result(name: str, *models: str) -> Result:
        shown = [Table(title=f"{model}: scores", columns=("edit", "KL"), rows=(("a", 1.0),)) for model in models]
        return Result(
            name=name,
            paper="-",
            shows="ours",
            models=tuple(dataclasses.replace(a_scan()[0].model, id=model) for model in models),
            run=RunCard(verb="experiment", key="k"),
            tables=(*shown, Table(title="all", columns=("x",), rows=((len(models),),))),
            notes=tuple(f"{model}: it is so" for model in models),
            data={model: {} for model in models},
        )

    tables, notes = together(
        [("r1", result("e", "one", "two")), ("r2", result("e", "three")), ("r3", result("e", "one"))]
    )
    assert [(table.title, table.columns) for table in tables] == [
        ("scores", ("model", "edit", "KL")),
        ("all", ("model", "x")),
    ]
    assert [row[0] for row in tables[0].rows] == ["one (r1)", "two", "three", "one (r3)"]
    assert notes == ["one: it is so", "two: it is so", "three: it is so"]
    tables, _ = together([("r1", result("e", "one")), ("r2", result("f", "one"))])
    assert [table.title for table in tables] == ["e: scores", "e: all", "f: scores", "f: all"]
    assert [table.rows[0][0] for table in tables] == ["one"] * 4


def test_a_folder_without_results_is_said(tmp_path: Path):
    with pytest.raises(StudfinderError, match=r"holds no findings\.json"):
        report(tmp_path)
    folder = _written(tmp_path / "run")
    (folder / "profile.safetensors").unlink()
    with pytest.raises(StudfinderError, match="missing or not readable"):
        read_run(folder)


@pytest.mark.real
def test_a_report_keeps_no_figure_of_older_results(tmp_path: Path):
    findings, profile = a_scan()
    run = run_of("scan", "m", {}, result="findings.json", out=tmp_path / "run")
    with run.work() as work:
        (work.path / "findings.json").write_text("{}")
        write_report(work.path, findings, profile)
    assert (run.path / "figure-scores.png").exists()
    write_report(run.path, made_up_proof(findings), profile)
    assert not (run.path / "figure-scores.png").exists()
    assert (run.path / "figure-effects.png").exists()


def test_to_frame_has_a_row_an_entry():
    pandas = pytest.importorskip("pandas")
    findings = made_up_proof(a_scan()[0])
    frame = findings.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(findings.super_weights)
    own = [field.name for field in dataclasses.fields(SuperWeight) if field.name != "effect"]
    effects = [f"{name}{end}" for name in ("kl", "perplexity_ratio", "control_kl") for end in ("", "_low", "_high")]
    assert list(frame.columns) == [*own, *effects, "marginal_kl", "marginal_kl_low", "marginal_kl_high"]
    places = [(weight.layer, weight.row, weight.col) for weight in findings.super_weights]
    assert list(zip(frame["layer"], frame["row"], frame["col"], strict=True)) == places
    proven = findings.super_weights[0].effect.kl
    assert tuple(frame.loc[0, ["kl", "kl_low", "kl_high"]]) == (proven.value, proven.low, proven.high)
    assert list(findings.to_frame("attention_sinks").columns) == ["layer", "head", "strength"]


def test_to_frame_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    findings, _ = a_scan()
    with pytest.raises(StudfinderError, match="no list 'weights'"):
        findings.to_frame("weights")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StudfinderError, match="needs pandas"):
        findings.to_frame()


def test_a_notebook_shows_a_few_lines(state):
    html = state[0]._repr_html_()
    assert len(html) < 2500
    assert html.count("<tr>") <= 6


def _written(folder: Path) -> Path:
    from safetensors.numpy import save_file

    from studfinder.records import to_json

    folder.mkdir()
    findings, profile = a_scan()
    save_file(dict(profile), folder / "profile.safetensors")
    (folder / "findings.json").write_text(to_json(findings), encoding="utf-8")
    return folder


def test_a_training_is_drawn_for_both_widths(tmp_path: Path):
    curve = [
        {"step": step, "eval_loss": 6.0 / step, "eval_accuracy": step / 9, "outliers/inf_norm": 10.0**step}
        for step in (1, 2, 4)
    ]
    interval = Interval(value=1.5, low=1.4, high=1.6, level=0.95, n=8, method="made up")
    record = Training(
        run=RunCard(verb="train", key="k", settings={"data_text": "t.txt"}),
        parameters=7,
        tokens=9,
        loss=interval,
        accuracy=interval,
        log=tuple(curve),
    )
    page = write_sheet(tmp_path, training_sheet(record)).read_text()
    assert "test loss, nats a label" in page
    assert {path.name for path in tmp_path.iterdir()} >= {"figure-training.png", "table.md", "table-2.csv"}
