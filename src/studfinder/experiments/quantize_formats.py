"""Which finding must be kept in which format: int4, MXFP4, NVFP4, fp8?

What it asks: formats differ in how many numbers share a scale, and in how their codes are spaced, so what one of them
must keep another may not. How: rounding to nearest in each format, with nothing kept, with the proven super weights,
with their columns, with the rows of Q and K that make massive values, and with the largest 0.1 % of every matrix held
out of their blocks before the range is taken. Controls: as many other weights nearest in size, as many other columns of
the same matrices, as many other rows. What to look at: whether a finding gains more than its control, with an interval
that leaves out no change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.quantize_draw import draw_ratios, ratios_data
from studfinder.experiments.quantize_keeps import (
    COLUMNS,
    OTHER_COLUMNS,
    OTHER_ROWS,
    OTHERS,
    ROWS,
    WEIGHTS,
    findings_keeps,
)
from studfinder.experiments.quantize_recipes import CAVEAT, KL, Made, Recipe, RecipeWork, fitted, limits_of, listed
from studfinder.experiments.quantize_tables import (
    changes_table,
    keeping_notes,
    kept_pairs,
    refusals,
    scores_table,
    tally,
)
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, SCHEMES, HoldOut, kernel
from studfinder.records import Result, Table

EXPERIMENT = Experiment(
    name="quantize/formats",
    paper="2411.07191",
    shows="ours",
    summary="Which finding must be kept in which format: int4, MXFP4, NVFP4, fp8?",
    needs="about 20 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={
        "cpu": {
            "limit": 16,
            "pieces": 16,
            "text": "wikitext2",
            "formats": "w4-g64,w4-channel,mxfp4,nvfp4,fp8,fp8-block,w8-channel,w8-tensor",
            "fraction": 0.001,
        }
    },
)


def run(bench: Bench) -> Outcome:
    """Every format with every keep."""
    outcome = Outcome([])
    measures = [f"perplexity:{bench.settings['text']}", KL]
    for name in bench.models:
        with bench.model(name) as lm:
            findings = load_findings(bench, lm)
            keeps = findings_keeps(lm, findings, fraction=bench.settings["fraction"], seed=bench.settings["seed"])
            work = RecipeWork(bench=bench, lm=lm, measures=measures, limits=limits_of(bench))
            made = work.carried_out(list(_recipes(bench, lm, keeps)))
        _add(outcome, name, made, measures, keeps)
    outcome.notes.append(CAVEAT)
    return outcome


def _recipes(bench: Bench, lm: LM, keeps: dict[str, HoldOut]) -> Iterator[Recipe]:
    for format in listed(bench.settings["formats"]):
        if format not in SCHEMES:
            raise StudfinderError(f"there is no format {format!r}", expected=", ".join(SCHEMES))
        method = RTN(scheme=fitted(lm, SCHEMES[format]))
        yield Recipe(label=format, method=method, family=format)
        for kept, keep in keeps.items():
            yield Recipe(label=f"{format}, keep {kept}", method=method, keep=keep, kept=kept, family=format)


def _add(outcome: Outcome, name: str, made: list[Made], measures: list[str], keeps: dict[str, Any]) -> None:
    pairs = kept_pairs(made)
    outcome.tables += [
        scores_table(name, made, measures, "Rounded to nearest, no clip. Windows resampled.", "bits per weight"),
        changes_table(
            f"{name}: with something kept, against the same format with nothing kept",
            [(one.recipe.label, one, plain) for one, plain in pairs],
            measures,
            f"Paired; perplexity as a factor, KL as a difference. {CAVEAT}",
        ),
        _formats_table(name, made),
    ]
    outcome.notes += keeping_notes(name, pairs, measures, "formats")
    by_label = {one.recipe.label: one for one in made if not one.refused}
    for kept, other in ((WEIGHTS, OTHERS), (COLUMNS, OTHER_COLUMNS), (ROWS, OTHER_ROWS)):
        against = [
            (one, by_label[f"{one.recipe.family}, keep {other}"])
            for one, _ in pairs
            if one.recipe.kept == kept and f"{one.recipe.family}, keep {other}" in by_label
        ]
        says = tally(against, measures[0])
        outcome.notes += [f"{name}: keeping {kept} instead of {other} {says}, over formats."] if says else []
    outcome.notes += [f"{name}: it has none of {kept}." for kept in (WEIGHTS, ROWS) if kept not in keeps]
    outcome.notes += refusals(name, made)
    outcome.data.setdefault("models", {})[name] = ratios_data(made, measures[0])


def _formats_table(name: str, made: list[Made]) -> Table:
    rows = tuple(
        (one.recipe.family, str(one.recipe.method.scheme), kernel(one.recipe.method.scheme) or "none")
        for one in made[1:]
        if not one.recipe.kept
    )
    return Table(title=f"{name}: the formats", columns=("format", "in words", "kernel in vLLM"), rows=rows)


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity over the original's, by format and by what is kept."""
    return draw_ratios(result, width, "formats")
