"""Language models with and without KV shift, and what their scalars become (arXiv 2411.19574, section 4, table 4).

The paper: 1.5 B to 19 B parameters, always a lower loss; in the 2.9 B model 50 of 128 head pairs keep a1 > a2 and
b1 > b2 and 17 end in the induction quadrant (a1 <= a2 and b1 > b2). A model of a few hundred thousand parameters on a
few million tokens can show whether the loss is lower *there*, with how much spread over seeds; nothing about scale.
"""

from __future__ import annotations

from studfinder.records import Table
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.language import SMALL, language_cells, language_table, source_of
from studfinder.studies.seeds import Trained, about, against, curves, ended

_MODELS: dict[str, list[str]] = {"vanilla": [], "KV shift": ["kv_shift"]}
_SCORES = {"test": "test loss, nats a token"}
_QUADRANTS = {
    "a1 > a2, b1 > b2": (True, True),
    "a1 <= a2, b1 > b2 (induction)": (False, True),
    "a1 > a2, b1 <= b2": (True, False),
    "a1 <= a2, b1 <= b2": (False, False),
}
_PAPER = (50, 17, 9, 52)
"""Table 4, 2.9 B, of 128 head pairs."""

EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/pretrain",
    paper="2411.19574",
    shows="figure 4 and table 4",
    summary="Is the loss of a language model lower with KV shift, and where do its scalars go?",
    needs="an hour on two cores (no model is loaded: small ones are trained on wikitext2)",
    presets={"cpu": SMALL},
)


def run(bench: Bench) -> Outcome:
    """Loss over steps and the final scalars, over seeds."""
    source = source_of(bench)
    cells = language_cells(bench, source, _MODELS)
    tables = [language_table(bench, source, cells, _SCORES), quadrants(cells["KV shift"])]
    return Outcome(
        tables, [*against(cells, "vanilla", _SCORES), *about(cells)], [curves(cells, _SCORES, name="loss")], cells
    )


def quadrants(seeds: list[Trained]) -> Table:
    """The share of head pairs in each quadrant, before and after training, beside the paper's count."""
    begun = [head for cell in ended(seeds) for head in cell["shift at the start"]]
    scalars = [head for cell in ended(seeds) for head in cell["shift"]]
    rows = tuple(
        (name, _share(begun, signs), _share(scalars, signs), paper / sum(_PAPER))
        for (name, signs), paper in zip(_QUADRANTS.items(), _PAPER, strict=True)
    )
    return Table(
        title="Learned scalars by quadrant, share of heads",
        columns=("quadrant", "before training", f"after it ({len(scalars)} heads)", "the paper's 2.9 B"),
        rows=rows,
        note="Before and after are of the same heads. The start draws a1 and b1 from U(0, 1), a2 = 1 - a1, b2 = 1 - b1:"
        " a quarter each in the long run.",
    )


def _share(scalars: list[list[float]], signs: tuple[bool, bool]) -> float | None:
    found = [(a1 > a2, b1 > b2) == signs for a1, a2, b1, b2 in scalars]
    return sum(found) / len(found) if found else None
