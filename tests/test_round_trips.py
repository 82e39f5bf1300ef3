"""Every entry of every registry, from the command line to the record to the report: the same thing, under its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from faced import parsed
from scanned import a_scan
from studfinder.attention import VARIANTS
from studfinder.attention.variant import variant_from
from studfinder.edits import EditList, parse_edits
from studfinder.experiments import EXPERIMENTS, experiment_named, plan_experiment
from studfinder.measures import MEASURES
from studfinder.measures.tasks import TASKS
from studfinder.quantizers import METHODS, SCHEMES, method_class
from studfinder.quantizers.card import card
from studfinder.records import Interval, Measured, Result, RunCard, Scorecard, Table, Training, from_json, to_json
from studfinder.report.quantization import quantization_sheet
from studfinder.report.result import Sheet, markdown_sheet
from studfinder.report.scorecard import tables
from studfinder.report.training import training_sheet
from studfinder.training import variants_from
from studfinder.verbs.configs import ExperimentConfig, MeasureConfig, QuantizeConfig, TrainConfig
from studfinder.verbs.quantize import _record
from studfinder.verbs.quantize_plan import _method, default_scheme, stored_as
from tiny import tiny

SCORE = Interval(value=1.0, low=0.5, high=1.5, level=0.95, n=3, method="made up")
TABLE = Table(title="t", columns=("a",), rows=((1,),))
SHAPES = [(256, 128), (128, 256)]
EDITS = (
    "zero:model.layers.1.mlp.down_proj.weight[3,4]",
    "scale=0.5:model.layers.1.mlp.down_proj.weight[:,4]",
    "mean:query+key.top1",
    "pooled-mean:query+key.top2@prefill",
    "constant:key[0-1].top",
    "deviation:query+key.pre_rope[0,2].above1.5@always",
    "shuffle=4:value[1].dim1,3",
    "set=-2:residual[2].largest5",
    "noise=0.1:embedding.all",
    "zero:value.smallest2@clean",
    "mean:query.random2.seed7",
    "mean:query.matched1",
    "mean:query.band1.seed3",
)


def again(record: Any) -> Any:
    """A record as it is read from its file."""
    return from_json(type(record), to_json(record))


def card_of(settings: dict[str, Any]) -> RunCard:
    """A run with these settings."""
    return RunCard(verb="v", key="k", settings=settings)


def rounding(words: list[str]) -> None:
    config = parsed(QuantizeConfig, ["--out", "o", *words])
    method = _method(config, default_scheme(SHAPES, torch.bfloat16))
    record = _record(
        "m", "o", method, {"w": stored_as(method, "dense", torch.bfloat16)}, bits=4.0, quantized=1, skipped=(), kept=()
    )
    read = again(record)
    assert read == record
    kind = next(kind for name in METHODS if (kind := method_class(name)).__name__ == read.method)
    assert from_json(kind, json.dumps(read.settings)) == method
    for report in (card(read), markdown_sheet(quantization_sheet(read))):
        assert str(method.scheme) in report.replace("\\", "")
        assert type(method).__name__ in report


def scheme(name: str) -> None:
    rounding(["--scheme", name])


def method(name: str) -> None:
    rounding(["--method", name])


def measure(name: str) -> None:
    (found,) = parsed(MeasureConfig, ["--measures", name]).measures
    findings, _ = a_scan()
    one = Measured(measure=found, what=found, kind="fluency", better="lower", score=SCORE)
    record = Scorecard(model=findings.model, run=findings.run, measured=(one,))
    assert again(record) == record
    sheet = Sheet(title="", lead="", models=(), run=record.run, tables=tables([again(record)]))
    assert name in markdown_sheet(sheet).replace("\\", "")


def task(name: str) -> None:
    assert parsed(MeasureConfig, ["--tasks", name]).tasks == (name,)
    measure(f"tasks:{name}")


def variant(name: str) -> None:
    config = parsed(TrainConfig, ["--attention", {"clipped_softmax": "clipped_softmax:gamma=-0.03"}.get(name, name)])
    (made,) = variants_from(config.attention)
    assert variant_from(json.loads(json.dumps(made.to_dict()))) == made
    settings = {"attention": " ".join(config.attention)}
    record = Training(run=card_of(settings), parameters=1, tokens=1, loss=SCORE, accuracy=SCORE)
    assert variants_from(again(record).run.settings["attention"].split()) == [made]
    assert f"attention: {name}" in markdown_sheet(training_sheet(again(record))).replace("\\", "")


def edit(line: str) -> None:
    lm = tiny("llama")
    (said,) = parsed(MeasureConfig, ["--edit", line]).edits
    edits = EditList(edits=parse_edits(lm, said))
    assert again(edits) == edits
    findings, _ = a_scan()
    record = again(Scorecard(model=findings.model, run=findings.run, measured=(), edits=(said,)))
    assert parse_edits(lm, record.edits[0]) == edits.edits


def experiment(name: str) -> None:
    entry = experiment_named(name).EXPERIMENT
    for preset in entry.presets:
        wanted = plan_experiment(name, preset=preset)
        run = RunCard(verb="experiment", key="k", settings=wanted.settings)
        words = [word for one, value in run.settings.items() for word in ("--set", f"{one}={text(value)}")]
        changes = dict(pair.split("=", 1) for pair in parsed(ExperimentConfig, words).change)
        assert plan_experiment(name, settings=changes).settings == wanted.settings
        record = again(Result(name=name, paper="p", shows="s", models=(), run=run, tables=(TABLE,)))
        assert plan_experiment(name, settings=record.run.settings).settings == wanted.settings
        sheet = markdown_sheet(Sheet(title=name, lead="", models=(), run=record.run, tables=record.tables))
        assert name in sheet.replace("\\", "")


def text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


CASES: list[tuple[Callable[[str], None], str]] = [
    *((scheme, name) for name in SCHEMES),
    *((method, name) for name in METHODS),
    *((measure, name) for name in MEASURES if name != "tasks"),
    *((task, name) for name in TASKS),
    *((variant, name) for name in VARIANTS),
    *((edit, line) for line in EDITS),
    *((experiment, name) for name in EXPERIMENTS),
]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__} {name}" for kind, name in CASES])
def test_from_the_command_line_to_the_record_to_the_report(kind, name):
    kind(name)
