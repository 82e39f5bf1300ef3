"""Which finding must be kept in which format: int4, MXFP4, NVFP4, fp8?

What it asks: formats differ in how many numbers share a scale, and in how their codes are spaced, so what one of them
must keep another may not. How: rounding to nearest in each format, with nothing kept, with the proven super weights,
with their columns, with the rows of Q and K that make massive values, and with the largest 0.1 % of every matrix held
out of their blocks before the range is taken. Controls: as many other weights nearest in size, as many other columns of
the same matrices, as many other rows. What to look at: whether a finding gains more than its control, with an interval
that leaves out no change.
"""

from __future__ import annotations

from dataclasses import dataclass

from studfinder.experiments.quantize_keeps import KEEP_CONTROLS, ROWS, WEIGHTS, findings_keeps
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, seen_in_words
from studfinder.records import Format, Table, scheme_named
from studfinder.records.config import option
from studfinder.studies import PAIRED
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, Rounding, RoundingConfig, families_chart, keeping_notes, kept_pairs


@dataclass(frozen=True, kw_only=True)
class FormatsConfig(RoundingConfig):
    """Which formats."""

    text: str = option("wikitext2", help="The text of the perplexity.")
    formats: tuple[str, ...] = option(
        "w4-g64,w4-channel,mxfp4,nvfp4,fp8,fp8-block,w8-channel,w8-tensor", help="Schemes by name.", commas=True
    )
    fraction: float = option(0.001, help="Share of each matrix, the largest, that is kept too.", least=0, most=0.5)


EXPERIMENT = Experiment(
    name="quantize/formats",
    paper="2411.07191",
    shows="ours",
    summary="Which finding must be kept in which format: int4, MXFP4, NVFP4, fp8?",
    needs="about 20 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": FormatsConfig()},
    spread=True,
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Every format with every keep."""
    keeps = findings_keeps(lm, load_findings(bench, lm), fraction=bench.config.fraction, seed=bench.config.seed)
    rounding, variants, formats = Rounding(bench, lm), [], []
    for name in bench.config.formats:
        method = RTN(scheme=rounding.scheme(scheme_named(name)))
        formats.append((name, str(method.scheme), seen_in_words(Format(weights=method.scheme))))
        variants.append(rounding.variant(name, method))
        variants += [
            rounding.variant(f"{name}, keep {kept}", method, keep=keep, kept=kept, family=name)
            for kept, keep in keeps.items()
        ]
    scored = rounding.scored(variants, [f"perplexity:{bench.config.text}"])
    pairs = [(one.label, one.label, plain.label) for one, plain in kept_pairs(scored)]
    tables = [
        scored.scores_table(
            "scores",
            f"Rounded to nearest, no clip. Windows resampled. {CAVEAT}",
            bits="bits per weight",
            first="recipe",
        ),
        scored.changes_table(
            "with something kept, against the same format with nothing kept", f"{PAIRED} {CAVEAT}", pairs=pairs
        ),
        Table(title="the formats", columns=("format", "in words", "seen to load in"), rows=tuple(formats)),
    ]
    notes = keeping_notes(scored, scored.measures, "formats", against=KEEP_CONTROLS)
    notes += [f"it has none of {kept}." for kept in (WEIGHTS, ROWS) if kept not in keeps]
    return Outcome(tables, notes + scored.notes(), [families_chart(scored, "formats")], remarks=[CAVEAT])
