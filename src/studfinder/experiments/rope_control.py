"""Do massive values of Q and K come from RoPE? Trained, not correlational (after arXiv 2502.01563, section 5).

Jin et al. find massive values in Q and K of models with RoPE and not in models without, which differ in much else. Here
the same small model is trained on the same text with RoPE, with the fastest half of its pairs turning (p-RoPE), with no
positions (NoPE) and with ALiBi. A small model that shows no massive values with RoPE either shows nothing about where
they come from; the largest ratio to the head's mean is kept for that reason.
"""

from __future__ import annotations

from dataclasses import replace

from studfinder.detectors.massive_values import ratio_null
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.language import SMALL, language_cells, language_table, source_of
from studfinder.studies.seeds import about, against, curves, ended, last

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
    presets={"cpu": replace(SMALL, hidden=128, heads=2, steps=1500)},
)


def run(bench: Bench) -> Outcome:
    """Massive values with each kind of positions, over seeds. Heads are 64 wide, so that a ratio of 5 is possible."""
    own = bench.config
    source = source_of(bench)
    cells = language_cells(bench, source, _MODELS, watch=True)
    notes = against(cells, "RoPE", _SCORES)
    if not any(last(cell, "outliers/massive_keys") for cell in ended(cells["RoPE"])):
        notes.append("With RoPE no entry of K is massive at this size: where they come from is not shown by this run.")
    heads = own.layers * own.heads
    mean, low, high = ratio_null(own.hidden // own.heads, heads)
    notes.append(
        f"One vector of random direction in each of the {heads} heads would give a largest ratio of {mean:.2f} "
        f"[{low:.2f}, {high:.2f}]: what lies below it is no concentration."
    )
    titles = {f"outliers/{name}": _SCORES[f"outliers/{name}"] for name in ("top_query", "top_key")}
    charts = [curves(cells, titles, name="ratios", none=5.0, low=0)]
    tables = [language_table(bench, source, cells, _SCORES, first="positions")]
    return Outcome(tables, [*notes, *about(cells)], charts, cells)
