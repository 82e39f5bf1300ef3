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

from dataclasses import dataclass
from typing import Any

from studfinder.experiments.quantize_keeps import COLUMNS, KEEP_CONTROLS, ROWS, WEIGHTS, findings_keeps
from studfinder.experiments.quantize_preserved import Preserved
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import method_class
from studfinder.records.config import option
from studfinder.studies import PAIRED
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import (
    CAVEAT,
    NAMES,
    CalibratedConfig,
    Rounding,
    SchemeConfig,
    families_chart,
    keeping_notes,
    kept_pairs,
)


@dataclass(frozen=True, kw_only=True)
class PreservingConfig(SchemeConfig, CalibratedConfig):
    """Which methods, judged by what."""

    items: int = option(120, help="Items of every other measure.", least=1)
    measures: tuple[str, ...] = option(
        "perplexity:wikitext2,facts-in-context,facts-parametric-matched,passkey:128;256,repetition",
        help="What is measured; a semicolon stands for a comma within an argument.",
        commas=True,
    )
    methods: tuple[str, ...] = option("rtn,gptq,awq,smoothquant", help="Ways to round.", commas=True)
    lam: float = option(5.0, help="Massive is above this many times the head's mean.")
    prompts: int = option(12, help="Of our prompts, on which massive values are looked at.", least=1)
    calibration_windows: int = option(32, help="Windows of it.", least=1)


EXPERIMENT = Experiment(
    name="massive-values/quantization",
    paper="2502.01563",
    shows="figure 4",
    summary="At equal bits, groups and calibration, what does each quantiser lose, and does keeping findings save it?",
    needs="about an hour and 3 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": PreservingConfig()},
)


_PAPER = (
    "The paper's figure 4 (Llama3-8B, accuracy over the best, read off): AWQ 0.97 on GSM8K and 0.98 on AQuA, "
    "SmoothQuant 1 and 1, GPTQ 0.78 and 0.74; on its facts all lie between 0.95 and 1."
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Every method with every keep."""
    own, rounding, findings = bench.config, Rounding(bench, lm), load_findings(bench, lm)
    scheme, keeps = rounding.scheme(), findings_keeps(lm, findings, seed=own.seed)
    both: dict[str, Any] = dict(keeps)
    if COLUMNS in keeps and ROWS in keeps:
        both[f"{COLUMNS} and {ROWS}"] = [keeps[COLUMNS], keeps[ROWS]]
    variants = []
    for name in own.methods:
        options = {"activations": None} if name == "smoothquant" else {}
        method, label = method_class(name)(scheme=scheme, **options), NAMES.get(name, name)
        variants.append(rounding.variant(label, method))
        variants += [
            rounding.variant(f"{label}, keep {kept}", method, keep=keep, kept=kept, family=label)
            for kept, keep in both.items()
        ]
    measures = [name.replace(";", ",") for name in own.measures]
    limits = {name.partition(":")[0]: own.items for name in measures} | {"perplexity": own.limit}
    preserved = Preserved(findings, own.prompts, float(own.lam))
    scored = rounding.scored(variants, measures, preserved, limits=limits)
    pairs = kept_pairs(scored)
    plain = [one.label for one in scored.tried() if not one.kept]
    nearest = [(label, label, NAMES["rtn"]) for label in plain if NAMES["rtn"] in plain and label != NAMES["rtn"]]
    tables = [
        scored.scores_table("scores", f"All are {scheme}. {_PAPER} {CAVEAT}", bits="bits per weight", first="recipe"),
        scored.changes_table(
            "with something kept, against the same method with nothing kept",
            f"{PAIRED} {CAVEAT}",
            pairs=[(one.label, one.label, other.label) for one, other in pairs],
        ),
        scored.changes_table("methods that keep nothing, against rounding to nearest", pairs=nearest),
    ]
    told = [measure for measure in scored.measures if not measure.startswith("repetition")]
    notes = keeping_notes(scored, told, "methods", against=KEEP_CONTROLS)
    notes += [f"it has none of {kept}." for kept in (WEIGHTS, ROWS) if kept not in keeps]
    return Outcome(tables, [*notes, *scored.notes()], [families_chart(scored, "quantization")], remarks=[CAVEAT])
