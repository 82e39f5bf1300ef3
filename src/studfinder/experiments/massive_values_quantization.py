"""Do quantisers that preserve massive values preserve what is read from the context (Jin et al. 2025, section 5)?

What it asks: does keeping the super weights, and the rows of Q and K that make massive values, save what quantising
takes: fluency, context, facts? How: AWQ, SmoothQuant (weights only), GPTQ and rounding to nearest, all made here with
the same bits, groups and calibration text, each plain, with findings held out (the super weights, their columns, the
rows), and with as many other weights, columns and rows held out as the control. Besides the scores: the share of
massive entries of Q and K that are massive still, by layer, and how far the super activation is off in the residual
stream. What to look at: whether keeping beats its control, and whether methods that preserve massive values more lose
less in context than in facts.

The paper compares three checkpoints of different third parties, with unlike bits, groups and calibration, one score a
task and no intervals; its released SmoothQuant recipe holds no quantisation at all, which would explain its bars of
1.00. Its scores are of tasks that differ in more than context and facts; here both kinds are asked in one format.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
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
from studfinder.experiments.quantize_preserved import Preserved
from studfinder.experiments.quantize_recipes import (
    CAVEAT,
    KL,
    NAMES,
    Made,
    Recipe,
    RecipeWork,
    block_of,
    fitted,
    limits_of,
    listed,
)
from studfinder.experiments.quantize_tables import (
    changes_table,
    keeping_notes,
    kept_pairs,
    refusals,
    scores_table,
    tally,
)
from studfinder.experiments.weights import load_findings
from studfinder.measures.registry import calibrated
from studfinder.models import LM
from studfinder.quantizers import HoldOut, Scheme, method_class
from studfinder.records import Result

EXPERIMENT = Experiment(
    name="massive-values/quantization",
    paper="2502.01563",
    shows="figure 4",
    summary="At equal bits, groups and calibration, what does each quantiser lose, and does keeping findings save it?",
    needs="about an hour and 3 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={
        "cpu": {
            "limit": 16,
            "pieces": 16,
            "items": 120,
            "measures": "perplexity:wikitext2,facts-in-context,facts-parametric-matched,passkey:128;256,repetition",
            "methods": "rtn,gptq,awq,smoothquant",
            "element": "int4",
            "block": "64",
            "zero": "integer",
            "lam": 5.0,
            "prompts": 12,
            "calibration": "wikipedia",
            "calibration_windows": 32,
            "length": 512,
        }
    },
)


def run(bench: Bench) -> Outcome:
    """Every method with every keep."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            findings = load_findings(bench, lm)
            keeps = findings_keeps(lm, findings, seed=bench.settings["seed"])
            measures = bench.once("measures", partial(_measures, bench, lm))
            work = RecipeWork(
                bench=bench,
                lm=lm,
                measures=[*measures, KL],
                limits=_limits(bench, measures),
                extras=Preserved(findings, bench.settings["prompts"], float(bench.settings["lam"])),
            )
            made = work.carried_out(list(_recipes(bench, lm, keeps)))
        _add(outcome, name, made, work, keeps)
    outcome.notes.append(CAVEAT)
    return outcome


def _measures(bench: Bench, lm: LM) -> list[str]:
    """The measures by name, with the arguments that give this model, as it is, room to fall; a semicolon in the setting
    stands for a comma within an argument."""
    found = []
    for name in listed(bench.settings["measures"]):
        try:
            found.append(calibrated(name.replace(";", ","), lm))
        except StudfinderError:
            found.append(name)  # the reason is found again, and printed, when it is measured
    return found


def _limits(bench: Bench, measures: list[str]) -> dict[str, int | None]:
    items = bench.settings["items"]
    return {**{name.partition(":")[0]: items for name in measures}, **limits_of(bench)}


def _recipes(bench: Bench, lm: LM, keeps: dict[str, HoldOut]) -> Iterator[Recipe]:
    own = bench.settings
    scheme = fitted(lm, Scheme(element=own["element"], block=block_of(own["block"]), zero=own["zero"]))
    both: dict[str, Any] = dict(keeps)
    if COLUMNS in keeps and ROWS in keeps:
        both[f"{COLUMNS} and {ROWS}"] = [keeps[COLUMNS], keeps[ROWS]]
    for name in listed(own["methods"]):
        options = {"activations": None} if name == "smoothquant" else {}
        method = method_class(name)(scheme=scheme, **options)
        label = NAMES.get(name, name)
        yield Recipe(label=label, method=method, family=label)
        for kept, keep in both.items():
            yield Recipe(label=f"{label}, keep {kept}", method=method, keep=keep, kept=kept, family=label)


# --- what is said of it -----------------------------------------------------------------------------------------------


def _add(outcome: Outcome, name: str, made: list[Made], work: RecipeWork, keeps: dict[str, HoldOut]) -> None:
    measures = list(made[0].scores)
    pairs = kept_pairs(made)
    scheme = next((str(one.recipe.method.scheme) for one in made[1:]), "")
    paper = (
        "The paper's figure 4 (Llama3-8B, accuracy over the best, read off): AWQ 0.97 on GSM8K and 0.98 on AQuA, "
        "SmoothQuant 1 and 1, GPTQ 0.78 and 0.74; on its facts all lie between 0.95 and 1."
    )
    outcome.tables += [
        scores_table(name, made, measures, f"All are {scheme}. {paper}", "bits per weight"),
        changes_table(
            f"{name}: with something kept, against the same method with nothing kept",
            [(one.recipe.label, one, plain) for one, plain in pairs],
            measures,
            f"Paired; perplexity as a factor, the rest as a difference. {CAVEAT}",
        ),
        changes_table(
            f"{name}: methods that keep nothing, against rounding to nearest",
            _against_nearest(made),
            measures,
            "Paired; perplexity as a factor, the rest as a difference.",
        ),
    ]
    told = [measure for measure in measures if not measure.startswith("repetition")]
    outcome.notes += keeping_notes(name, pairs, told, "methods")
    by_label = {one.recipe.label: one for one in made if not one.refused}
    for kept, other in ((WEIGHTS, OTHERS), (COLUMNS, OTHER_COLUMNS), (ROWS, OTHER_ROWS)):
        against = [
            (one, by_label[f"{one.recipe.family}, keep {other}"])
            for one, _ in pairs
            if one.recipe.kept == kept and f"{one.recipe.family}, keep {other}" in by_label
        ]
        for measure in told:
            says = tally(against, measure)
            outcome.notes += [f"{name}: keeping {kept} instead of {other} {says}, over methods."] if says else []
    outcome.notes += [f"{name}: it has none of {kept}." for kept in (WEIGHTS, ROWS) if kept not in keeps]
    outcome.notes += [f"{name}: {measure} was not measured. {why}" for measure, why in work.missing.items()]
    outcome.notes += refusals(name, made)
    perplexities = [measure for measure in measures if measure.startswith("perplexity")]
    outcome.data.setdefault("models", {})[name] = ratios_data(made, (perplexities or measures)[0])


def _against_nearest(made: list[Made]) -> list[tuple[str, Made, Made]]:
    plain = [one for one in made[1:] if not one.recipe.kept and not one.refused]
    nearest = next((one for one in plain if one.recipe.family == NAMES["rtn"]), None)
    return [] if nearest is None else [(one.recipe.label, one, nearest) for one in plain if one is not nearest]


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity over the original's, by method and by what is kept."""
    return draw_ratios(result, width, "quantization")
