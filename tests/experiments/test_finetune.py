"""outlier-free/finetune on a tiny model with a planted super weight: every arm, resuming, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
from experimented import run
from transformers import TrainerCallback

import studfinder.experiments.outlier_free_finetune as finetune
from proving import COL, LAYER, ROW, provable
from studfinder.errors import StudfinderError
from studfinder.experiments import plan_experiment, run_experiment
from studfinder.experiments.finetune_tables import _said, _won_back, window_change
from studfinder.experiments.held_weights import Hold, values_of, without
from studfinder.experiments.w8a8 import STATIC, WAYS, w8a8_losses, window_losses
from studfinder.models import load
from studfinder.records import Comparison, Interval
from studfinder.training import TextSource, TrainingRecipe, fit
from tiny import tiny

NAME = "outlier-free/finetune"
SMALL = {
    "steps": 4,
    "look_every": 2,
    "keep_every": 2,
    "warmup": 1,
    "length": 24,
    "limit": 5,
    "watched": 2,
    "precision": "fp32",
}
PLACE = (f"model.layers.{LAYER}.mlp.down_proj.weight", (ROW, COL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it", "rains"]
    random = np.random.default_rng(0)
    (folder / "t.txt").write_text(" ".join(random.choice(words, 2500)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("studfinder.verbs.scan._has_gradients", lambda _: False)  # no census, as in every test
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        patch.delenv("STUDFINDER_DATA", raising=False)
        yield folder


def with_end(lm):
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = "?"
    return load(lm.model, tokenizer)


@pytest.fixture(scope="module")
def planted(folder):
    return with_end(provable("llama", planted=True)[0])


@pytest.fixture(scope="module")
def result(planted, folder):
    return run(NAME, planted, folder, text=str(folder / "t.txt"), **SMALL)


@pytest.fixture
def undrawn(monkeypatch):
    """No figures: drawing is most of a small run."""
    monkeypatch.setattr("studfinder.experiments.run.draw_into", lambda *_: None)


def cells(table, label):
    (row,) = [row for row in table.rows if row[0] == label]
    return dict(zip(table.columns, row, strict=True))


def test_every_arm(result, planted, folder):
    losses, outliers, need, bits = result.tables
    assert [row[0] for row in outliers.rows] == ["untrained", *finetune.ARMS]
    assert f"[{ROW}, {COL}]" in need.title
    assert cells(losses, "untrained")["super weight"] == 500
    assert cells(losses, "super weight frozen")["super weight"] == 500
    assert cells(losses, "super weight decayed")["super weight"] == 0
    assert cells(losses, "plain")["super weight"] not in (0, 500)
    before = cells(need, "untrained")
    assert before["KL without it"].low > before["KL without a control"].high
    assert cells(need, "super weight decayed")["KL without it"].value == 0
    assert cells(need, "other weight decayed")["KL without a control"].value == 0
    assert isinstance(cells(losses, "half-gates")["minus plain training"], Comparison)
    assert isinstance(cells(bits, "KV shift")[f"W8A8 {STATIC}"], Interval)
    assert values_of(planted.model, [PLACE]) == [500]  # the user's own model is as it was
    assert planted.model.config.model_type == "llama"
    assert not (folder / NAME / "checkpoints").exists()


def test_curves_of_every_arm(result):
    (seen,) = result.data.values()
    for arm in seen["arms"].values():
        for curve in ("test loss", "top activation", "need", "value"):
            assert [step for step, _ in arm["curves"][curve]] == [2, 4]
    assert [value for _, value in seen["arms"]["super weight decayed"]["curves"]["value"]] == [0, 0]
    assert [value for _, value in seen["arms"]["super weight frozen"]["curves"]["value"]] == [500, 500]


def test_notes_follow_their_intervals(result):
    text = " ".join(result.notes)
    assert "4 steps of 24 tokens" in text
    assert "costs" in text
    assert "left out" not in text

    def interval(low, high):
        return Interval(value=(low + high) / 2, low=low, high=high, level=0.95, n=3, method="")

    assert _said(interval(0.1, 0.2)).startswith("higher")
    assert _said(interval(-0.2, -0.1)).startswith("lower")
    assert _said(interval(-0.1, 0.1)).startswith("not shown")
    assert _said(window_change([2.0], [1.0])).startswith("not shown")  # one window is no evidence
    untrained = {"loss": [1.0, 1.2], "super": {"loss": [3.0, 3.2]}}
    states = {"untrained": untrained, "plain": {"loss": [1.0, 1.0]}, "super weight decayed": {"loss": [1.5, 1.5]}}
    assert "25.0% [25.0%, 25.0%] of that" in _won_back(states)
    untrained["super"]["loss"] = [1.0, 1.2]  # nothing lost: no share of it
    assert "% [" not in _won_back(states)


def test_an_interrupted_arm_goes_on(planted, folder, result, undrawn, monkeypatch):
    """Ctrl-C in the middle of an arm: the finished ones stay, and it goes on from its checkpoint to the same end."""

    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    plan = plan_experiment(NAME, ["tiny"], settings={"text": str(folder / "t.txt"), **SMALL})
    real, made = finetune.Watcher, []

    def watcher(*args):
        made.append(1)
        return real(*args) if len(made) != 3 else Press()

    monkeypatch.setattr(finetune, "Watcher", watcher)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(plan, out=folder / "again", loader=lambda _: planted)
    (kept,) = (folder / "again.partial" / "checkpoints").iterdir()
    assert kept.name == "arm-KV-shift"
    steps = [json.loads(line)["step"] for line in (folder / "again.partial" / "steps.jsonl").read_text().splitlines()]
    assert [step.partition("/")[2] for step in steps][-2:] == ["arm plain", "arm half-gates"]
    made.clear()
    monkeypatch.setattr(finetune, "Watcher", lambda *args: made.append(1) or real(*args))
    second, _ = run_experiment(plan, out=folder / "again", loader=lambda _: planted)
    first, again = (next(iter(data.values()))["arms"]["KV shift"] for data in (result.data, second.data))
    assert len(made) == len(finetune.ARMS) - 2  # the first two arms were not trained again
    assert again["loss"] == first["loss"]
    assert again["curves"]["test loss"] == first["curves"]["test loss"]


def test_without_a_proven_super_weight(folder, undrawn):
    lm = with_end(provable("llama", planted=False)[0])
    plan = plan_experiment(NAME, ["tiny"], settings={"text": str(folder / "t.txt"), **SMALL, "steps": 1})
    result, _ = run_experiment(plan, out=folder / "none", loader=lambda _: lm)
    assert len(result.tables) == 3
    assert [row[0] for row in result.tables[0].rows] == ["untrained", "plain", "half-gates", "KV shift"]
    assert any("no super weight is proven" in note for note in result.notes)
    assert [chart.name for chart in result.charts] == ["steps", "eight-bits"]


def test_an_architecture_that_takes_no_variant(folder, undrawn):
    lm = with_end(provable("bloom", planted=False)[0])
    plan = plan_experiment(NAME, ["tiny"], settings={"text": str(folder / "t.txt"), **SMALL, "steps": 1})
    result, _ = run_experiment(plan, out=folder / "bloom", loader=lambda _: lm)
    assert [row[0] for row in result.tables[0].rows] == ["untrained", "plain"]
    assert sum("was left out" in note for note in result.notes) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 4096}, "at most 128, the context of"),
        ({"text": "nowhere.txt"}, "there is no text"),
        ({"lr": -1.0}, "lr=-1.0; expected above 0"),
        ({"steps": 0}, "1 or more"),
        ({"watched": 0}, "--watched 0; expected 1 or more"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_what_cannot_be(planted, folder, settings, said):
    with pytest.raises(StudfinderError, match=said):
        plan = plan_experiment(NAME, ["tiny"], settings={"text": str(folder / "t.txt"), **SMALL, **settings})
        run_experiment(plan, out=folder / f"bad-{next(iter(settings))}", loader=lambda _: planted)


def source():
    tokens_N = np.random.default_rng(0).integers(3, 96, 600)
    return TextSource(tokens_N, 12, 96, "random")


def test_held_weights_take_no_part_in_training():
    names = [("model.layers.1.mlp.down_proj.weight", (2, 3)), ("model.layers.0.mlp.down_proj.weight", (1, 1))]
    seen = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            seen.append([float(model.get_parameter(name).grad[index]) for name, index in names])

    lm = tiny("llama")
    start = values_of(lm.model, names)
    hold = Hold(lm.model, names)
    fit(lm.model, source(), TrainingRecipe(steps=3, batch=2, test=2, precision="fp32"), callbacks=[hold, Watch()])
    assert values_of(lm.model, names) == start
    assert seen == [[0, 0]] * 3


def test_decayed_weights_go_on_a_straight_line_and_stay_at_zero():
    place = [("model.layers.1.mlp.down_proj.weight", (2, 3))]
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter(place[0][0])[2, 3] = 4.0
    found = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            found.append(values_of(model, place)[0])

    recipe = TrainingRecipe(steps=6, batch=2, test=2, precision="fp32")
    fit(lm.model, source(), recipe, callbacks=[Hold(lm.model, place, 4), Watch()])
    assert found == [3, 2, 1, 0, 0, 0]


def test_without_is_what_an_edit_gives():
    lm, index = provable("llama", planted=True)
    windows = [[5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 24, 25]]
    found = without(lm, windows, {"super": [PLACE]})
    assert found["loss"] == pytest.approx(window_losses(lm, windows))
    with torch.no_grad():
        lm.model.get_parameter(PLACE[0])[index] = 0
    assert found["super"]["loss"] == pytest.approx(window_losses(lm, windows))
    assert min(found["super"]["kl"]) > 0
    assert without(lm, windows, {"super": [PLACE]})["super"]["kl"] == [0, 0]


def test_eight_bits_cost_more_where_there_is_an_outlier():
    """Per tensor one number sets the step of all others; per token only of its own."""
    plain, planted = provable("llama", planted=False)[0], provable("llama", planted=True)[0]
    windows = [list(range(start, start + 40)) for start in (3, 20, 50)]
    before = planted.model.get_parameter(PLACE[0]).clone()
    gaps = {}
    for name, lm in (("plain", plain), ("planted", planted)):
        found = w8a8_losses(lm, windows, windows[:2])
        assert set(found) == set(WAYS)
        gaps[name] = {way: window_change(losses, window_losses(lm, windows)).value for way, losses in found.items()}
    assert abs(gaps["planted"][STATIC]) > abs(gaps["plain"][STATIC])
    assert torch.equal(planted.model.get_parameter(PLACE[0]), before)
