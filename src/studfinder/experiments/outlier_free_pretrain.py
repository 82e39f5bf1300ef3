"""The same small language model with each attention that promises fewer outliers (arXiv 2306.12929 and its successors).

Quantizable Transformers' OPT-125m after 12.3 B tokens: inf norm 340 and kurtosis 1,778 with vanilla attention, 8.7 and
18.9 with gates, 63 and 19,728 with clipped softmax. Those outliers take tens of thousands of steps to grow. A short run
shows their beginning if there is one, and what each attention does to the loss; "no outliers" in every row means that
there was nothing to prevent yet.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.trained import (
    against,
    curves,
    ends_table,
    every_cell,
    one_panel,
    recipe_of,
    run_cell,
    text_source,
)
from studfinder.records import Result
from studfinder.report.style import new_figure
from studfinder.training import Shape

_SCORES = {
    "test": "test loss",
    "outliers/inf_norm": "inf norm",
    "outliers/paper_inf_norm": "inf norm (paper's way)",
    "outliers/kurtosis": "kurtosis",
    "outliers/paper_kurtosis": "kurtosis (paper's way)",
    "outliers/massive_activations": "massive activations",
    "outliers/top_sink": "largest attention to the first token",
}

EXPERIMENT = Experiment(
    trains=True,
    name="outlier-free/pretrain",
    paper="2306.12929",
    shows="table 2",
    summary="Which attention trains with fewer outliers, and at what loss?",
    needs="hours on two cores (no model is loaded: small ones are trained on wikitext2)",
    presets={
        "cpu": {
            "text": "wikitext2",
            "vocabulary": 1024,
            "length": 128,
            "layers": 4,
            "hidden": 96,
            "heads": 4,
            "steps": 1000,
            "batch": 16,
            "lr": 2e-3,
            "warmup": 100,
            "schedule": "cosine",
            "look_every": 100,
            "test": 64,
            "seeds": 3,
        },
    },
)


def models(length: int) -> dict[str, list[str]]:
    """Kinds of attention; clipped softmax's gamma follows from the training length, as in the paper."""
    return {
        "vanilla": [],
        "clipped softmax": [f"clipped_softmax:alpha=12,length={length}"],
        "gated": ["gated:kind=linear,pi_init=0.25"],
        "explicit k', v'": ["attention_bias"],
        "softmax-one": ["softmax_one"],
        "KV shift": ["kv_shift"],
        "KV shift + gate": ["kv_shift", "gated:kind=linear,pi_init=0.25"],
    }


def run(bench: Bench) -> Outcome:
    """Loss and outliers of each attention, over seeds."""
    s = bench.settings
    source, vocabulary = text_source(bench)
    shape = Shape(layers=s["layers"], hidden=s["hidden"], heads=s["heads"], tied=True)
    kinds = models(s["length"])

    def cell(name: str, seed: int) -> dict[str, Any]:
        return run_cell(source, vocabulary, shape, kinds[name], recipe_of(s, seed), watch=True)

    cells = every_cell(bench, list(kinds), s["seeds"], cell)
    notes = against(
        cells, "vanilla", {name: _SCORES[name] for name in ("test", "outliers/inf_norm", "outliers/kurtosis")}
    )
    return Outcome([ends_table(f"After {s['steps']} steps on {s['text']}", cells, _SCORES)], notes, cells)


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Loss, inf norm and kurtosis over steps."""
    figures = {
        "loss": one_panel(
            width,
            {name: [cell["test"] for cell in seeds] for name, seeds in result.data.items()},
            "test loss, nats a token",
        )
    }
    wide = width > 600
    figure = new_figure(width, 360 if wide else 700)
    grid = figure.add_gridspec(*((1, 2) if wide else (2, 1)))
    for place, (curve, label) in enumerate((("inf_norm", "inf norm"), ("kurtosis", "kurtosis"))):
        panel = {name: [cell["outliers"][curve] for cell in seeds] for name, seeds in result.data.items()}
        axes = curves(figure, grid[(0, place) if wide else (place, 0)], panel, label, log=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4 if wide else 2)
    return {**figures, "outliers": figure}
