"""The training experiments: small ones from end to end, and the arithmetic of their tables."""

from __future__ import annotations

import json
import math
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
from experimented import drawn
from transformers import TrainerCallback

from rerun import interrupted
from studfinder.errors import StudfinderError
from studfinder.experiments import outlier_free_pretrain, plan_experiment, run_experiment
from studfinder.experiments.kv_shift_ablations import Clamp
from studfinder.experiments.kv_shift_hop import HopConfig, accuracy, without_a_model
from studfinder.experiments.kv_shift_pretrain import quadrants
from studfinder.experiments.outlier_free_backcopy import half_way, to_the_first
from studfinder.experiments.outlier_free_pretrain import in_eight_bits
from studfinder.experiments.w8a8 import STATIC
from studfinder.records import Chart, Interval
from studfinder.report.charts import draw_chart
from studfinder.report.style import WIDE
from studfinder.studies import trained
from studfinder.studies.seeds import about, against, curves, ends_table, last, over, over_seeds, steps_to
from studfinder.studies.trained import shift_scalars
from studfinder.studies.vehicle import shortfalls, vehicle_verdict, window_kurtosis
from studfinder.training import ModelShape, TextSource, build_model, tokenized, variants_from
from studfinder.training.presets import Threshold
from studfinder.training.tasks import HopK
from tiny import tiny

TINY = {"steps": 2, "look_every": 1, "test": 4, "batch": 4, "seeds": 2}
TOY = {
    "kv-shift/induction": {"widths": [16, 8], "vocabulary": 40, "length": 16, "heads": 2},
    "kv-shift/n-gram": {"vocabulary": 32, "length": 16, "rules": 5, "hidden": 16},
    "kv-shift/hop-k": {"length": 16, "hops": 2, "layers": 1, "hidden": 16, "heads": 2},
    "kv-shift/ablations": {"vocabulary": 40, "length": 16, "hidden": 16, "heads": 2},
    "outlier-free/backcopy": {"vocabulary": 16, "length": 16, "layers": 2, "hidden": 16},
}
LANGUAGE = ("kv-shift/pretrain", "outlier-free/pretrain", "massive-values/rope-control")


def ran(name, folder, **settings):
    plan = plan_experiment(name, settings={**TINY, **settings})
    return run_experiment(plan, out=folder)


def whole(result, folder, name):
    assert result.name == name
    for table in result.tables:
        assert table.rows
    assert any(isinstance(cell, Interval) for row in result.tables[0].rows for cell in row)
    drawn(result, folder)


@pytest.mark.parametrize("name", TOY)
@pytest.mark.real
def test_a_toy_experiment_from_end_to_end(tmp_path, name):
    result, folder = ran(name, tmp_path / "run", **TOY[name])
    whole(result, folder, name)


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.real
def test_a_language_experiment_from_end_to_end(tmp_path, name):
    text = tmp_path / "t.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 40)
    settings = {"text": str(text), "vocabulary": 270, "length": 16, "layers": 2, "hidden": 16, "heads": 2}
    result, folder = ran(name, tmp_path / "run", **settings, warmup=1)
    whole(result, folder, name)


def test_pretraining_is_measured_in_eight_bits(tmp_path, monkeypatch):
    text = tmp_path / "t.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 40)
    settings = {"text": str(text), "vocabulary": 270, "length": 16, "layers": 1, "hidden": 16, "heads": 2, "warmup": 1}
    monkeypatch.setattr("studfinder.experiments.run.draw_into", lambda *_: None)
    models = {"vanilla": [], "both": ["kv_shift", "gated"]}
    monkeypatch.setattr(outlier_free_pretrain, "models", lambda length: models)
    result, _ = ran("outlier-free/pretrain", tmp_path / "run", **settings)
    _, bits = result.tables
    for row in bits.rows:
        cells = dict(zip(bits.columns, row, strict=True))
        full, eight, gap = (cells[name].value for name in ("test loss", f"W8A8 {STATIC}", outlier_free_pretrain._COST))
        assert gap == pytest.approx(eight - full)
        assert 0 < abs(gap) < 0.1
        assert cells["test loss"].n == 2  # seeds
    for seeds in result.data.values():
        for cell in seeds:
            assert last(cell, "full") == pytest.approx(last(cell, "test"), rel=1e-5)
    gap = bits.rows[0][bits.columns.index(outlier_free_pretrain._COST)]
    assert gap.low < 0 < gap.high, "two seeds of two steps can show nothing"
    assert result.notes[-2].startswith(f"W8A8 {STATIC} is not shown to cost vanilla attention anything")
    assert f"({gap} nats a token)" in result.notes[-2]


def test_a_vehicle_says_first_whether_it_passed(tmp_path, monkeypatch):
    """A few steps grow nothing, and so nothing is said of any arm; seeds without time are left out."""
    for name in ("text/public_domain_en.txt", "calibration/wikipedia.txt", "wikitext2/wiki.test.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("The quick brown fox jumps over the lazy dog, and then it sleeps.\n" * 60)
    monkeypatch.setenv("STUDFINDER_DATA", str(tmp_path))
    monkeypatch.setattr("studfinder.experiments.run.draw_into", lambda *_: None)
    seconds = iter([30.0, 30.0, 30.0, 99.0])
    real = trained.run_cell
    monkeypatch.setattr(trained, "run_cell", lambda *a, **k: real(*a, **k) | {"seconds": next(seconds)})
    settings = {"arms": ["linear gate", "sink logit"], "minutes": 1.25, "warmup": 1}
    result, _ = ran("outlier-free/vehicle", tmp_path / "run", **settings)
    assert list(result.data) == ["vanilla", "linear gate"]
    assert [len(seeds) for seeds in result.data.values()] == [2, 1]
    assert list(result.notes[:2]) == [
        "Vanilla attention passed the vehicle's threshold at 0 of 2 seeds: what outliers do could not be decided here.",
        "Not trained, for want of time: linear gate (1 of 2 seeds), sink logit (2 of 2 seeds).",
    ]
    by_seed, ends, costs, differences = result.tables
    assert [row[0] for row in by_seed.rows] == ["0", "1"]
    assert by_seed.rows[0][-1] == "no: sink, ratio, kurtosis, damage"
    for seeds in result.data.values():
        for cell in seeds:
            assert last(cell, "full") == pytest.approx(last(cell, "test"), rel=1e-5)
            assert 0 < last(cell, "ratio") < 100
            assert len(cell["kurtosis"]) == 2
    assert [row[0] for row in ends.rows] == [row[0] for row in costs.rows] == ["vanilla", "linear gate"]
    assert [row[0] for row in differences.rows] == ["linear gate"]
    with pytest.raises(StudfinderError, match="there is no arm 'linear'"):
        plan_experiment("outlier-free/vehicle", settings={"arms": ["linear"]})


def grown(**changed):
    """A cell that just passes the threshold of `NEEDED`, with numbers changed."""
    numbers = {"sink": 0.51, "ratio": 101, "kurtosis": 501, "damage": 0.16} | changed
    curves = {name: [[0, -9.0], [9, value]] for name, value in numbers.items()}
    return {"outliers": {"top_sink": curves.pop("sink")}, **curves}


NEEDED = Threshold(sink=0.5, ratio=100, kurtosis=500, damage=0.15)


@pytest.mark.parametrize(
    ("changed", "lacking"),
    [
        ({}, []),
        ({"sink": 0.5}, ["sink"]),
        ({"sink": math.nan, "ratio": 100}, ["sink", "ratio"]),
        ({"kurtosis": 3, "damage": -1}, ["kurtosis", "damage"]),
    ],
)
def test_what_a_vehicle_lacks(changed, lacking):
    assert shortfalls(grown(**changed), NEEDED) == lacking
    assert shortfalls({}, NEEDED) == ["sink", "ratio", "kurtosis", "damage"]


@pytest.mark.parametrize(("good", "decided"), [(5, True), (3, True), (2, False), (0, False)])
def test_most_seeds_of_a_vehicle_must_pass(good, decided):
    seeds = [grown(damage=0.2 if number < good else 0.1) for number in range(5)]
    said, table = vehicle_verdict(seeds, NEEDED, 7)
    assert said.startswith(f"Vanilla attention passed the vehicle's threshold at {good} of 5 seeds")
    assert ("could not be decided here" in said) == (not decided)
    assert [row[0] for row in table.rows] == ["7", "8", "9", "10", "11"]
    assert [row[-1] for row in table.rows] == ["yes"] * good + ["no: damage"] * (5 - good)


def test_the_kurtosis_of_a_window():
    from scipy.stats import kurtosis

    x_BTC = torch.randn(3, 5, 8)
    x_BTC[0, 0, 3] = 50
    assert window_kurtosis(x_BTC) == pytest.approx(
        kurtosis(x_BTC.flatten(1).numpy(), axis=1, fisher=False).mean(), rel=1e-4
    )
    spike_BTC = torch.zeros(1, 65, 64)
    spike_BTC[0, 0, 1] = 1
    assert window_kurtosis(spike_BTC) == pytest.approx(65 * 64, rel=1e-2)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([1.0, 1.1], f"W8A8 {STATIC} costs vanilla attention 1.05 [0.415, 1.69] nats a token."),
        (
            [1.0, -1.1],
            "is not shown to cost vanilla attention anything at this size (-0.05 [-13.4, 13.3] nats a token)",
        ),
        ([-1.0, -1.1], "is not shown to cost"),
        ([None, None], "is not known: it diverged at every seed"),
    ],
)
def test_what_eight_bits_cost_is_said_as_the_interval_has_it(gaps, said):
    seeds = [cell_of(stopped="diverged") if gap is None else {"gap": {STATIC: [[0, gap]]}} for gap in gaps]
    note = outlier_free_pretrain._cost({"vanilla": seeds, "gated": [{"gap": {STATIC: [[0, 9.0]]}}] * 2})
    assert said in note


def test_eight_bits_of_an_outlier_cost_something():
    """A channel that is large everywhere takes the range of all others."""
    source = TextSource(np.random.default_rng(0).integers(3, 96, 2000), 32, 96, "random")
    before = in_eight_bits(4, source, tiny("llama").model)
    model = tiny("llama").model
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = 3000.0
        model.model.layers[1].self_attn.q_proj.weight[:, 3] = 1e-4
        model.model.layers[1].self_attn.k_proj.weight[:, 3] = 1e-4
        model.model.layers[1].self_attn.v_proj.weight[:, 3] = 1e-4
        model.lm_head.weight.mul_(30)
    after = in_eight_bits(4, source, model)
    assert abs(last(after, f"gap/{STATIC}")) > 10 * abs(last(before, f"gap/{STATIC}"))


@pytest.mark.real
def test_an_interrupted_experiment_trains_nothing_twice(tmp_path, monkeypatch):
    name = "kv-shift/ablations"
    first, folder = ran(name, tmp_path / "run", **TOY[name])
    assert len((folder / "steps.jsonl").read_text().splitlines()) == 2 * 7
    interrupted(folder, lost=1)
    done, real = [], trained.run_cell
    monkeypatch.setattr(trained, "run_cell", lambda *a, **k: done.append(1) or real(*a, **k))
    second, _ = ran(name, tmp_path / "run", **TOY[name])
    assert len(done) == 1

    def clockless(data):
        return json.dumps({n: [{**c, "seconds": 0} for c in cells] for n, cells in data.items()})

    assert clockless(first.data) == clockless(second.data)


def test_means_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(over_seeds([1.0]).low)
    dozen = over_seeds([float(value) for value in range(12)])
    assert dozen.high - dozen.value == pytest.approx(2.20099 * np.std(range(12), ddof=1) / math.sqrt(12), rel=1e-5)


def cell_of(*accuracies, stopped=None):
    points = [[10 * (number + 1), value] for number, value in enumerate(accuracies)]
    return {"accuracy": points, "test": points, "loss": points, "parameters": 7, "stopped": stopped, "seconds": 1.0}


@pytest.mark.parametrize(
    "name", ["kv-shift/induction", "kv-shift/hop-k", "outlier-free/backcopy", "massive-values/rope-control"]
)
def test_what_diverges_is_said_and_drawn(tmp_path, name):
    settings = TOY.get(name)
    if settings is None:
        text = tmp_path / "t.txt"
        text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 40)
        settings = {"text": str(text), "vocabulary": 270, "length": 16, "layers": 1, "hidden": 16, "heads": 2}
    result, folder = ran(name, tmp_path / "run", **settings, steps=4, lr=1e10, warmup=0)
    assert result.notes[-2].startswith("Diverged, and left out")
    assert all("diverged" in row for row in result.tables[0].rows)
    drawn(result, folder)


def test_a_diverged_seed_is_in_no_mean():
    cells = {
        "plain": [cell_of(0.1, 0.2), cell_of(0.3, 0.4)],
        "other": [cell_of(0.5, 0.6), cell_of(9, stopped="diverged")],
    }
    plain, other = ends_table("t", cells, {"accuracy": "accuracy"}).rows
    assert (plain[0], plain[2].value, plain[2].n) == ("plain", pytest.approx(0.3), 2)
    assert (other[0], other[2].value, other[2].n) == ("other (1 of 2 seeds diverged)", 0.6, 1)
    assert against(cells, "plain", {"accuracy": "right"}) == ["other minus plain: right 0.4 [nan, nan]."]
    assert about(cells)[0].endswith("other in 1 of 2 seeds (its loss was not finite at step 10).")
    (plot,) = curves(cells, {"accuracy": "right"}).plots
    (line,) = [series for series in plot.series if series.name == "other (1 of 2 seeds diverged)"]
    assert (line.x, [value for value, *_ in line.points]) == ((10, 20), [0.5, 0.6])
    lost = {**cells, "other": [cell_of(stopped="diverged")] * 2}
    assert ends_table("t", lost, {"accuracy": "accuracy"}).rows[1][2] == "diverged"
    assert against(lost, "plain", {"accuracy": "right"}) == ["other minus plain: at no seed did both end."]


def test_an_interrupted_model_goes_on_where_it_was(tmp_path, monkeypatch):
    import studfinder.experiments.outlier_free_backcopy as module

    monkeypatch.setattr(module, "_MODELS", {"vanilla": []})
    monkeypatch.setattr("studfinder.experiments.run.draw_into", lambda *_: None)
    settings = {**TOY["outlier-free/backcopy"], "steps": 6, "seeds": 1, "look_every": 2}
    whole, _ = ran("outlier-free/backcopy", tmp_path / "whole", **settings)

    class Stop(TrainerCallback):
        steps: ClassVar[list[int]] = []
        ends = True

        def on_step_begin(self, args, state, control, **_):
            self.steps.append(state.global_step + 1)
            if self.ends and state.global_step == 3:
                signal.raise_signal(signal.SIGINT)

    real = trained.fit
    monkeypatch.setattr(trained, "fit", lambda *a, callbacks, **k: real(*a, callbacks=[Stop(), *callbacks], **k))
    with pytest.raises(KeyboardInterrupt):
        ran("outlier-free/backcopy", tmp_path / "run", **settings)
    assert Stop.steps == [1, 2, 3, 4]
    assert (tmp_path / "run.partial" / "checkpoints" / "vanilla-seed-0").is_dir()
    Stop.ends = False
    result, folder = ran("outlier-free/backcopy", tmp_path / "run", **settings)
    assert Stop.steps == [1, 2, 3, 4, 5, 6]
    assert not (folder / "checkpoints").exists()
    (cell,), (other,) = result.data["vanilla"], whole.data["vanilla"]
    assert cell.pop("resumed") is True
    assert {**cell, "seconds": 0} == {**other, "seconds": 0}
    assert [step for step, _ in cell["sink"]] == [2, 4, 6]


def test_micro_batches_and_precision_are_settings_of_every_training_experiment():
    plan = plan_experiment("kv-shift/n-gram", settings={"micro": "8", "precision": "bf16"})
    recipe = plan.config.recipe(seed=3)
    assert (recipe.micro, recipe.precision, recipe.seed) == (8, "bf16", 3)
    plain = plan_experiment("kv-shift/n-gram").config.recipe()
    assert (plain.micro, plain.precision) == (None, "fp32")
    with pytest.raises(StudfinderError, match="precision 'auto' is unknown; expected fp32, bf16"):
        plan_experiment("kv-shift/n-gram", settings={"precision": "auto"})
    with pytest.raises(StudfinderError, match="super-weight/ablation has no setting 'micro'"):
        plan_experiment("super-weight/ablation", settings={"micro": "8"})


def test_of_several_processes_one_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("studfinder.runs.processes.process_count", lambda: 2)
    name = "kv-shift/n-gram"
    result, folder = ran(name, tmp_path / "run", **TOY[name], seeds=1)
    assert result.tables
    assert not folder.exists()  # it is the first one's to make
    assert {path.name for path in (tmp_path / "run.partial").glob("*")} <= {"checkpoints"}


def test_the_time_is_that_of_training():
    cells = {"plain": [{**cell_of(0.1), "seconds": 100.0}, {**cell_of(0.2), "seconds": 80.5}]}
    assert about(cells) == ["Training took 3.0 minutes in all, of 2 models."]
    cells["other"] = [{**cell_of(0.1), "resumed": True}]
    assert about(cells) == ["Training took 3.0 minutes in all, of 3 models (of 1 that were interrupted, since then)."]


def axes_of(plot):
    (axes,) = draw_chart(Chart(name="steps", plots=(plot,)), WIDE).axes
    return axes


def test_curves_of_unequal_length_share_a_grid():
    seeds = [[(10, 1.0), (20, 3.0)], [(10, 2.0), (20, math.inf), (30, 5.0)]]
    axes = axes_of(over({"kind": seeds, "nothing": []}, log=True))
    (mean,) = (line for line in axes.get_lines() if line.get_label() == "kind")
    assert mean.get_xydata().tolist() == [[10, 1.5], [20, 3.0], [30, 5.0]]
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("log", [False, True])
def test_curves_show_the_interval_over_seeds(log):
    seeds = [[(10, 1.0), (20, 2.0)], [(10, 2.0), (20, 30.0)], [(10, 3.0), (20, 4.0)]]
    axes = axes_of(over({"kind": seeds}, log=log))
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for step, values in ((10, [1.0, 2.0, 3.0]), (20, [2.0, 30.0, 4.0])):
        interval = over_seeds(values)
        found = corners[corners[:, 0] == step, 1]
        assert (found.min(), found.max()) == (pytest.approx(interval.low), pytest.approx(interval.high))
    bottom, top = axes.get_ylim()
    reach = (0.3, 84) if log else (-8, 39)
    assert (bottom > reach[0], top < reach[1]) == (True, True), "a wide band hides what the seeds do"
    own = [line.get_ydata().tolist() for line in axes.get_lines() if line.get_linewidth() < 1]
    assert own == [[value for _, value in curve] for curve in seeds]


def test_of_many_kinds_the_interval_stands_at_the_end():
    kinds = {f"kind {n}": [[(10, n), (20, n + 1.0)], [(10, n), (20, n + 2.0)]] for n in range(1, 7)}
    axes = axes_of(over(kinds))
    assert not axes.collections
    bars = [line.get_ydata().tolist() for line in axes.get_lines() if not line.get_label().startswith("kind")]
    assert bars == [pytest.approx([(i := over_seeds([n + 1.0, n + 2.0])).low, i.high]) for n in range(1, 7)]


def test_four_plots_stand_two_by_two_and_axes_begin_where_they_are_told():
    cells = {"kind": [{name: [(0, 0.5), (1, 0.9)] for name in "abcd"}] * 2}
    axes = draw_chart(curves(cells, {name: name for name in "abcd"}, low=0), WIDE).axes
    assert [(one.get_ylabel(), one.get_ylim()[0]) for one in axes] == [(name, 0) for name in "abcd"]
    assert {(one.get_subplotspec().rowspan.start, one.get_subplotspec().colspan.start) for one in axes} == {
        (row, column) for row in (0, 1) for column in (0, 1)
    }


def test_a_log_axis_is_for_values_that_span_something():
    assert not over({"kind": [[(0, 2.0), (1, 5.0)]]}, log=True).log
    assert over({"kind": [[(0, 2.0), (1, 7.0)]]}, log=True).log


def test_curves_are_read_as_said():
    cell = {"accuracy": [[10, 0.1], [20, 0.9], [30, 0.7]], "outliers": {"inf_norm": [[10, 1.0], [20, 3.0]]}}
    assert steps_to(cell, 0.8) == 20
    assert steps_to(cell, 0.95) == math.inf
    assert last(cell) == 0.7
    assert last(cell, "outliers/inf_norm") == 3.0
    assert math.isnan(last(cell, "outliers/top_sink"))


def test_every_kind_gets_a_line_of_its_own():
    axes = axes_of(over({f"kind {number}": [[(0, 1.0), (1, 2.0)]] for number in range(8)}))
    shown = [line for line in axes.get_lines() if line.get_label().startswith("kind")]
    assert len({(line.get_color(), line.get_linestyle()) for line in shown}) == 8


def test_attention_to_the_first_is_worked_out_where_the_model_is():
    """The meta device stands for any that is not the CPU: a mask made elsewhere is refused."""
    query_BHTD, key_BGTD = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    first_BHT = to_the_first(query_BHTD, key_BGTD)
    assert first_BHT[..., 0].allclose(torch.ones(2, 4))
    assert to_the_first(query_BHTD.to("meta"), key_BGTD.to("meta")).shape == first_BHT.shape


def test_half_of_the_way():
    assert half_way([(0, 1.0), (5, 1.4), (10, 1.6), (15, 2.0)]) == 10
    assert half_way([(0, 1.0), (5, 0.2), (10, 0.6)]) == 5  # downwards as well
    assert half_way([(0, 1.0), (5, 1.0)]) == math.inf


def test_quadrants_count_heads():
    starts = [[[0.9, 0.1, 0.9, 0.1]] * 2, [[0.9, 0.1, 0.9, 0.1], [0.1, 0.9, 0.1, 0.9]]]
    ends = [[[0.9, 0.1, 0.9, 0.1], [0.1, 0.9, 0.9, 0.1]], [[0.1, 0.9, 0.1, 0.9], [0.2, 0.1, 0, 1]]]
    cells = [{"shift at the start": start, "shift": end} for start, end in zip(starts, ends, strict=True)]
    table = quadrants([*cells, {**cells[0], "stopped": "diverged"}])
    assert [row[1] for row in table.rows] == [0.75, 0, 0, 0.25]
    assert [row[2] for row in table.rows] == [0.25] * 4
    assert [row[3] for row in table.rows] == [50 / 128, 17 / 128, 9 / 128, 52 / 128]


def test_pretraining_says_its_start_and_its_text(tmp_path, monkeypatch):
    text = tmp_path / "t.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 40)
    settings = {"text": str(text), "vocabulary": 270, "length": 16, "layers": 3, "hidden": 16, "heads": 4, "warmup": 1}
    monkeypatch.setattr("studfinder.experiments.run.draw_into", lambda *_: None)
    result, _ = ran("kv-shift/pretrain", tmp_path / "run", **settings, lr=0.5)
    loss, shares = result.tables
    starts = [head for cell in result.data["KV shift"] for head in cell["shift at the start"]]
    assert shares.rows[0][1] == sum(a1 > a2 and b1 > b2 for a1, a2, b1, b2 in starts) / 24
    assert [row[1] for row in shares.rows] != [row[2] for row in shares.rows]

    source = tokenized(str(text), 16, 270)[0]
    assert f"{2 * 4 * 16 / (source.train_windows * 16):.1f} times" in loss.note
    assert f"{len(source.tokens_N):,} tokens" in loss.note


def test_scalars_of_every_form():
    def scalars(text):
        return shift_scalars(
            build_model(ModelShape(layers=1, hidden=16, heads=2), variants_from([text]), vocabulary=8, length=8, seed=0)
        )

    for a1, a2, b1, b2 in scalars("kv_shift"):
        assert a1 + a2 == pytest.approx(1)
        assert b1 + b2 == pytest.approx(1)
    assert all((b1, b2) == (1, 0) for _, _, b1, b2 in scalars("kv_shift:values=false"))
    assert scalars("kv_shift:init=identity") == [[1, 0, 1, 0]] * 2
    assert len(scalars("kv_shift:gated=true")) == 2


def test_clamping_keeps_the_scalars_in_range():
    model = build_model(
        ModelShape(layers=1, hidden=16, heads=2), variants_from(["kv_shift"]), vocabulary=8, length=8, seed=0
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "previous" in name:
                parameter.fill_(1.7)
            if "current" in name:
                parameter.fill_(-0.2)
    Clamp().on_optimizer_step(None, None, None, model=model)
    assert shift_scalars(model) == [[0, 1, 0, 1]] * 2


def test_what_hops_score_without_a_model():
    """A constant model is no better; answering with the current token is never right at one hop, often at two."""
    tasks = HopConfig(length=65, symbols=4, hops=4).tasks()

    class Same(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": torch.nn.functional.one_hot(input_ids, 20)})

    floors = [without_a_model(task, 64) for task in tasks]
    assert floors[0] == pytest.approx(1 / 3)
    assert floors[1] == accuracy(Same(), tasks[1], 64) > 0.45
    assert all(accuracy(Same(), task, 64) <= floor < 0.6 for task, floor in zip(tasks, floors, strict=True))


def test_hops_are_scored_by_their_answers():
    class Oracle(torch.nn.Module):
        """Answers one hop: the token after the latest earlier occurrence of this one."""

        device = torch.device("cpu")

        def forward(self, input_ids, use_cache):
            logits = torch.zeros(*input_ids.shape, 20)
            for row, tokens in enumerate(input_ids.tolist()):
                for place in range(1, len(tokens)):
                    before = [i for i in range(1, place) if tokens[i] == tokens[place]]
                    if before:
                        logits[row, place, tokens[before[-1] + 1]] = 1
            return type("Output", (), {"logits": logits})

    assert accuracy(Oracle(), HopK(length=24, hops=1, exact=1), 8) == 1
    assert accuracy(Oracle(), HopK(length=24, hops=3, exact=1), 8) < 0.8
