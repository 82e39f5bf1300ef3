"""Do massive values of Q and K come from RoPE? Trained, not correlational (after arXiv 2502.01563, section 5).

Jin et al. find massive values in Q and K of models with RoPE and not in models without, which differ in much else. Here
the same small model is trained on the same text with RoPE, with the fastest half of its pairs turning (p-RoPE), with no
positions (NoPE) and with ALiBi. A small model that shows no massive values with RoPE either shows nothing about where
they come from; the largest ratio to the head's mean is kept for that reason.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from studfinder.detectors.massive_values import ratio_null
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.language import SMALL, about_text, language_cells, source_of
from studfinder.experiments.seeds import about, against, ended, ends_table, last, lines
from studfinder.experiments.seeds_draw import curves
from studfinder.records import Result
from studfinder.report.style import new_figure

_MODELS: dict[str, list[str]] = {
    "RoPE": [],
    "p-RoPE, half": ["rope:kind=p-rope,fraction=0.5"],
    "NoPE": ["nope"],
    "ALiBi": ["alibi"],
}
_SCORES = {
    "test": "test loss",
    "outliers/massive_queries": "massive entries of Q",
    "outliers/massive_keys": "massive entries of K",
    "outliers/top_query": "largest Q over its head's mean",
    "outliers/top_key": "largest K over its head's mean",
}

EXPERIMENT = Experiment(
    trains=True,
    name="massive-values/rope-control",
    paper="2502.01563",
    shows="ours",
    summary="The same small model with RoPE, p-RoPE, NoPE and ALiBi: do massive values of Q and K appear?",
    needs="about an hour on two cores (no model is loaded: small ones are trained on wikitext2)",
    presets={"cpu": {**SMALL, "hidden": 128, "heads": 2, "steps": 1500}},
)


def run(bench: Bench) -> Outcome:
    """Massive values with each kind of positions, over seeds. Heads are 64 wide, so that a ratio of 5 is possible."""
    s = bench.settings
    source = source_of(bench)
    cells = language_cells(bench, source, _MODELS)
    notes = against(cells, "RoPE", _SCORES)
    if not any(last(cell, "outliers/massive_keys") for cell in ended(cells["RoPE"])):
        notes.append("With RoPE no entry of K is massive at this size: where they come from is not shown by this run.")
    heads = s["layers"] * s["heads"]
    mean, low, high = ratio_null(s["hidden"] // s["heads"], heads)
    notes.append(
        f"One vector of random direction in each of the {heads} heads would give a largest ratio of {mean:.2f} "
        f"[{low:.2f}, {high:.2f}]: what lies below it is no concentration."
    )
    return Outcome(
        [ends_table(f"After {s['steps']} steps on {s['text']}", cells, _SCORES, "positions", about_text(source, s))],
        [*notes, *about(cells)],
        cells,
    )


def draw(result: Result, width: float) -> dict[str, Figure]:
    """The largest ratios in Q and K over steps."""
    wide = width > 600
    figure = new_figure(width, 360 if wide else 700)
    grid = figure.add_gridspec(*((1, 2) if wide else (2, 1)))
    for place, (curve, label) in enumerate((("top_query", "largest Q over mean"), ("top_key", "largest K over mean"))):
        panel = grid[(0, place) if wide else (place, 0)]
        axes = curves(figure, panel, lines(result.data, f"outliers/{curve}"), label, low=0)
        axes.axhline(5, color="#9a9fa8", linewidth=1, linestyle=":")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4 if wide else 2)
    return {"ratios": figure}
