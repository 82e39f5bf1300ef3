"""A training run as tables and curves: what came of it, and what was seen on the way."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure

from studfinder.records import Cell, Chart, Plot, Series, Table, Training, point
from studfinder.report.charts import draw_chart
from studfinder.report.result import Sheet, drawing

SEEN = {
    "eval_loss": "test loss, nats a label",
    "eval_accuracy": "share of right answers",
    "outliers/inf_norm": "largest |activation|",
    "outliers/kurtosis": "kurtosis of activations",
    "outliers/top_ratio": "largest |a| over its layer's median",
    "outliers/top_query": "largest Q over its head's mean",
    "outliers/top_key": "largest K over its head's mean",
    "outliers/sink_share": "heads with an attention sink",
}
"""What is shown of a log, by its name there."""
_MOST = 12
"""Rows of the table of steps: the first, the last, and some between."""
_LOG_FROM = 30
"""A curve whose values span this factor is drawn on a log axis."""


def training_sheet(record: Training) -> Sheet:
    """What a person reads of a training run."""
    of = record.run.settings
    what = of.get("data_source") or of.get("data_text") or of.get("data_task") or "a task"
    attended = of.get("attention") or "vanilla"
    lead = f"{record.parameters:,} parameters, {record.tokens:,} tokens of {what}, attention: {attended}."
    notes = ["The loss stopped being finite, and the run ended there."] if record.diverged else []
    drawn = drawing("training", partial(_draw, record), "Curves over training steps.") if _seen(record) else None
    charts = {} if drawn is None else {"training": drawn}
    return Sheet(
        title="Training",
        lead=lead,
        models=(),
        run=record.run,
        record=record,
        tables=_tables(record),
        notes=notes,
        charts=charts,
    )


def _seen(record: Training) -> dict[str, list[tuple[int, float]]]:
    return {name: curve for name in SEEN if (curve := record.curve(name))}


def _tables(record: Training) -> list[Table]:
    ends: list[tuple[Cell, ...]] = [
        ("test loss, nats a label", record.loss),
        ("share of right answers", record.accuracy),
        ("parameters", record.parameters),
        ("tokens", record.tokens),
    ]
    tables = [
        Table(
            title="At the end",
            columns=("what", "value"),
            rows=tuple(ends),
            note="Intervals: 95 %, bootstrap over test sequences.",
        )
    ]
    seen = {name: dict(curve) for name, curve in _seen(record).items()}
    steps = sorted({step for curve in seen.values() for step in curve})
    if steps:
        shown = [steps[round(place * (len(steps) - 1) / (_MOST - 1))] for place in range(_MOST)]
        rows = tuple((step, *(curve.get(step) for curve in seen.values())) for step in dict.fromkeys(shown))
        tables.append(Table(title="On the way", columns=("step", *(SEEN[name] for name in seen)), rows=rows))
    return tables


def _draw(record: Training, width: float) -> Figure:
    plots = []
    for name, curve in _seen(record).items():
        steps, values = zip(*curve, strict=True)
        series = Series(name="run", x=steps, points=tuple(map(point, values)))
        log = min(values) > 0 and max(values) > _LOG_FROM * min(values)
        plots.append(Plot(kind="lines", series=(series,), title=SEEN[name], x="steps", log=log))
    return draw_chart(Chart(name="training", plots=tuple(plots)), width)
