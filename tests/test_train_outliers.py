"""Outliers on the way: the same numbers as the detectors of a scan, and the paper's reduction beside ours."""

from __future__ import annotations

import io
import json
import math
from typing import ClassVar

import pytest
import torch

from studfinder.detectors import observe
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import MassiveValues
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.sites import PartOutput, tapped
from studfinder.sites.parts import part_names
from studfinder.training import (
    ModelShape,
    OutlierCallback,
    TaskSource,
    TrainingRecipe,
    build_model,
    fit,
    look,
    task_from,
)
from studfinder.training.moments import Moments
from studfinder.training.outliers import _first_of
from studfinder.training.screen import LiveLine
from tiny import CONFIGS, tiny, token_ids

IDS = token_ids(batch=4, length=12).tolist()


def residuals(lm):
    """(L, B, T, C), by transformers' own means; its last entry is normed, so that layer is left out."""
    with torch.no_grad():
        return torch.stack(lm.model(torch.tensor(IDS), output_hidden_states=True).hidden_states[1:-1])


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
def test_a_look_says_what_the_detectors_of_a_scan_say(architecture):
    lm = tiny(architecture)
    seen = look(lm, IDS)
    activations, values, sinks = MassiveActivations(lm), MassiveValues(lm), AttentionSinks(lm)
    for ids in IDS:
        observe(lm, [ids], (MassiveActivations(lm),))  # one by one or together
    observe(lm, IDS, (activations, values, sinks), batch_size=1)
    assert seen.summary["massive_activations"] == len(activations.found())
    assert seen.summary["massive_queries"] == sum(entry.tensor == "query" for entry in values.found())
    assert seen.summary["sink_share"] == len(sinks.found()) / sinks.heads
    assert seen.summary["top_activation"] == pytest.approx(
        max(abs(activations.top(layer)[0].value) for layer in range(3)), rel=1e-5
    )
    assert len(seen.layers["sink"]) == len(lm.anatomy.layers)
    assert all(math.isfinite(value) for value in seen.summary.values())


def test_our_reduction_is_the_one_that_is_said():
    lm = tiny("llama")
    hidden_LBTC = residuals(lm)
    seen = look(lm, IDS)
    expected = hidden_LBTC.abs().amax(dim=(2, 3)).mean(dim=1)
    assert seen.layers["inf_norm"][:-1] == pytest.approx(expected.tolist(), rel=1e-5)
    centred = hidden_LBTC - hidden_LBTC.mean(-1, keepdim=True)
    kurtosis = (centred.pow(4).mean(-1) / centred.pow(2).mean(-1).pow(2)).mean(dim=(1, 2))
    assert seen.layers["kurtosis"][:-1] == pytest.approx(kurtosis.tolist(), rel=1e-4)


def test_kurtosis_of_a_gaussian_is_three():
    from studfinder.sites import BlockOutput

    torch.manual_seed(0)
    moments = Moments()
    moments._blocks([(None, BlockOutput(0, torch.randn(4, 64, 2048)))])
    assert moments.kurtosis == pytest.approx(3, abs=0.02)
    assert moments.paper_kurtosis == pytest.approx(3, abs=0.02)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_papers_rows_run_along_the_first_axis(architecture):
    lm = tiny(architecture)
    parts: dict[str, torch.Tensor] = {}
    with torch.no_grad(), tapped(lm, read={PartOutput: [lambda event: parts.update({event.name: event.output})]}):
        lm.model(torch.tensor(IDS), use_cache=False)
    assert set(parts) == set(part_names(lm))
    moments = Moments()
    observe(lm, IDS, (moments,), batch_size=len(IDS))
    for name, output in parts.items():
        rows = output.reshape(output.shape[0], -1)
        assert moments.paper_norms[name].value == pytest.approx(rows.abs().amax(1).mean().item(), rel=1e-5)
        spread, mean = rows.std(1, keepdim=True), rows.mean(1, keepdim=True)
        kurtosis = ((rows - mean).pow(4).mean(1, keepdim=True) / (spread.pow(4) + 1e-6)).mean()
        assert moments.paper_tails[name].value == pytest.approx(kurtosis.item(), rel=1e-4)
    # OPT's feed-forward half works on flat tokens, so that its rows are tokens.
    expected = len(IDS) * len(IDS[0]) if architecture == "opt" else len(IDS)
    writer = lm.anatomy.layers[0].writers[0].module
    assert moments.paper_norms[writer].n == expected
    assert max(moments.paper_norms.values(), key=lambda m: m.value).value == moments.paper_inf_norm


def test_parts_of_every_architecture_are_found():
    for architecture in CONFIGS:
        lm = tiny(architecture)
        names = part_names(lm)
        assert len(names) == len(set(names))
        assert any("norm" in name or "ln" in name for name in names), architecture


def test_two_streams_merge_into_one():
    lm = tiny("llama")
    first, second, both = Moments(), Moments(), Moments()
    observe(lm, IDS[:1], (first,))
    observe(lm, IDS[1:], (second,), batch_size=3)
    observe(lm, IDS, (both,), batch_size=4)
    first.merge(second)
    for name in ("inf_norm", "kurtosis", "paper_inf_norm", "paper_kurtosis"):
        assert getattr(first, name) == pytest.approx(getattr(both, name), rel=1e-5)


def test_a_planted_outlier_is_seen():
    lm = tiny("llama")
    before = look(lm, IDS)
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[:, 5] = 3000.0
    after = look(lm, IDS)
    assert before.summary["massive_activations"] == 0
    assert after.summary["massive_activations"] > 0
    assert after.summary["top_dim"] == 5
    assert after.summary["inf_norm"] > 2900
    assert after.summary["kurtosis"] > 5 * before.summary["kurtosis"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    source = TaskSource(task_from("backcopy:vocabulary=20,length=16"))
    recipe = TrainingRecipe(steps=6, batch=4, look_every=2, test=4, precision="fp32")
    file = tmp_path_factory.mktemp("run") / "outliers.jsonl"
    outliers, screen = OutlierCallback(source, file=file, sequences=3), io.StringIO()
    model = build_model(ModelShape(layers=2, hidden=16, heads=2), [], vocabulary=20, length=16, seed=0)
    fitted = fit(model, source, recipe, callbacks=[outliers, LiveLine(screen)])
    return fitted, outliers, file, screen.getvalue()


def test_the_callback_logs_each_look(watched):
    fitted, outliers, file, _ = watched
    assert sorted(outliers.looks) == [2, 4, 6]
    for name, value in outliers.looks[4].summary.items():
        assert dict(fitted.curve(f"outliers/{name}"))[4] == value
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[1]["summary"] == outliers.looks[4].summary
    assert lines[1]["layers"] == outliers.looks[4].layers


def test_a_look_has_the_precision_of_the_training():
    """What is watched is the model that trains: under autocast in bf16, though its weights are fp32."""
    source = TaskSource(task_from("backcopy:vocabulary=20,length=16"))
    recipe = TrainingRecipe(steps=2, batch=4, look_every=2, test=4, precision="bf16")
    outliers = OutlierCallback(source, sequences=3)
    model = build_model(ModelShape(layers=2, hidden=16, heads=2), [], vocabulary=20, length=16, seed=0)
    trained = load(fit(model, source, recipe, callbacks=[outliers]).model)
    exact = look(trained, outliers.encoded)
    trained.model.forward = torch.autocast("cpu", torch.bfloat16)(trained.model.forward)
    rounded = look(trained, outliers.encoded)
    assert outliers.looks[2] == rounded
    assert outliers.looks[2] != exact
    assert rounded.summary["inf_norm"] == pytest.approx(exact.summary["inf_norm"], rel=0.02)


def test_the_line_on_the_terminal(watched):
    lines = watched[3].splitlines()
    assert [line.split()[1] for line in lines] == ["2/6", "4/6", "6/6"]
    for word in ("loss", "accuracy", "inf norm", "kurtosis", "massive", "sinks", "left"):
        assert word in lines[-1]


def test_the_line_is_rewritten_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    source = TaskSource(task_from("recall:vocabulary=20,length=16,pairs=2"))
    model = build_model(ModelShape(layers=1, hidden=16, heads=2), [], vocabulary=20, length=16, seed=0)
    fit(
        model,
        source,
        TrainingRecipe(steps=3, batch=4, look_every=1, test=4, precision="fp32"),
        callbacks=[LiveLine(screen, 60)],
    )
    painted = screen.getvalue().split("\r")[1:]
    assert all(len(line.rstrip("\n")) == 59 for line in painted)
    assert painted[-1].endswith("\n")
    assert painted[-1].startswith("step 3/3")


@pytest.mark.parametrize("given", [None, "token ids"])
def test_it_is_passed_to_any_trainer_and_reports_wherever_that_reports(tmp_path, given):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Watched(TrainerCallback):
        logged: ClassVar[list] = []

        def on_log(self, args, state, control, logs=None, **_):
            self.logged.append(logs)

    rows = [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)} for ids in IDS]
    options = {"use_cpu": True, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "report_to": ["tensorboard"]}
    callback = OutlierCallback(None if given is None else IDS, file=tmp_path / "looks.jsonl")
    trainer = Trainer(
        model=tiny("llama").model,
        args=TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, save_strategy="no", **options),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[callback, Watched()],
    )
    trainer.train()
    assert list(callback.looks) == [1, 2]
    assert callback.looks[2].summary == look(load(trainer.model), IDS).summary
    seen = [logs for logs in Watched.logged if "outliers/inf_norm" in logs]
    assert [logs["outliers/inf_norm"] for logs in seen[-2:]] == [
        one.summary["inf_norm"] for one in callback.looks.values()
    ]
    assert sum("outliers/inf_norm" in logs for logs in trainer.state.log_history) == 2
    assert len((tmp_path / "looks.jsonl").read_text().splitlines()) == 2
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    kept = EventAccumulator(str(events)).Reload()
    assert any("outliers/inf_norm" in tag for tag in kept.Tags()["scalars"])


def test_padding_is_not_looked_at_and_nothing_to_look_at_is_said():
    batch = {"input_ids": torch.arange(24).reshape(3, 8), "attention_mask": torch.ones(3, 8, dtype=torch.long)}
    batch["attention_mask"][0, 6:] = 0
    batch["attention_mask"][1, 1:] = 0  # a stub
    assert _first_of([batch], 8) == [[0, 1, 2, 3, 4, 5], [16, 17, 18, 19, 20, 21]]
    for nothing in (None, [], [{"pixels": 1}]):
        with pytest.raises(StudfinderError, match="Give OutlierCallback token ids"):
            _first_of(nothing, 8)
    with pytest.raises(StudfinderError, match="nothing to look at"):
        OutlierCallback([[1]])
