"""Where in the text is a super weight missed?

What it asks: does the KL of taking the super weights away grow or fall with the position in the window, and does it
depend on the first token, at which the massive activation stands? How: KL from the original by position, on our proof
text as it is and with the first token of each piece left out. Control: as many weights of the same matrices, nearest in
size. What to look at: whether the lines fall, and whether the two are apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studfinder.edits import zero
from studfinder.experiments.weights import SuperWeightConfig, controls_of, super_weights_of
from studfinder.models import LM
from studfinder.records import Chart, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.studies import Divergence, ModelVariant, Original, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome


@dataclass(frozen=True, kw_only=True)
class PositionsConfig(SuperWeightConfig):
    """How much text, and where it is cut."""

    pieces: int = option(32, help="Pieces of our proof text.", least=1)
    cuts: tuple[int, ...] = option("0,1,2,4,8,16,32,64,128", help="Positions at which it is cut.", commas=True)


EXPERIMENT = Experiment(
    name="super-weight/positions",
    paper="2411.07191",
    shows="ours",
    summary="How does the KL of losing the super weights go with the position, with and without the first token?",
    needs="about a minute with smollm2 on two cores (plus the scan that finds the weights)",
    presets={"cpu": PositionsConfig()},
    spread=True,
)
WITH, WITHOUT = "as it is", "without the first token"


def run(bench: Bench, lm: LM) -> Outcome:
    """KL by position of two edits, on two texts."""
    (weights, findings), own = super_weights_of(bench, lm), bench.config
    edits = {"super weights": zero(weights), "controls": zero(controls_of(lm, weights, findings))}
    variants = [ModelVariant("original"), *(with_edits(lm, label, edit) for label, edit in edits.items())]
    texts = [Original(own.pieces, name=name, skip=skip, cuts=own.cuts) for skip, name in enumerate((WITH, WITHOUT))]
    scored = bench.grid(lm, variants, texts)
    rows: list[tuple[Any, ...]] = []
    series = []
    for name in (WITH, WITHOUT):
        found = [measure for measure in scored.measures if measure.startswith(f"{name}, ")]
        for variant in scored.tried():
            kls = [scored.scores[variant.label][measure].interval for measure in found]
            rows += [(variant.label, *measure.split(", "), kl) for measure, kl in zip(found, kls, strict=True)]
            line = Series(
                name=f"{variant.label}, {name}",
                x=tuple(float(cut + 1) for cut in own.cuts[: len(kls)]),
                points=tuple(map(point, kls)),
                dotted=name == WITHOUT,
                like=f"{variant.label}, {WITH}",
                quiet=variant.label == "controls",
            )
            series.append(line)
    plot = Plot(kind="lines", series=tuple(series), x="position, from 1", y="KL, nats per token", log=True, log_x=True)
    table = Table(title="KL by position", columns=("set to zero", "text", "positions", "KL"), rows=tuple(rows))
    places = [name for name in scored.measures if name.startswith(f"{WITH}, ")]
    notes = []
    for measure in dict.fromkeys((places[0], places[-1])):
        taken, control = (Divergence.of(scored.scores[label][measure]) for label in ("super weights", "controls"))
        more = (taken - control).interval()
        how = "more" if more.low > 0 else "not clearly more"
        said = (
            f"the KL of the super weights is {taken.interval()}, {how} than that of the controls, {control.interval()}"
        )
        notes.append(f"positions {measure.split(', ')[1]}: {said} (difference {more}).")
    return Outcome([table], notes, [Chart(name="positions", plots=(plot,))])
