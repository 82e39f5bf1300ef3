"""Does it take a quantiser that preserves massive values to preserve what is read from the context (Jin et al. 2025)?

What it asks: at equal bits, blocks and calibration text, which of AWQ, SmoothQuant, GPTQ and rounding to nearest keeps
the skill of answering from the context, and which the skill of answering from memory (figure 4)? How: each is made here
with few enough bits that something breaks; skill is accuracy above chance as a share of the original's, the mean over
the tasks of each kind. Weights and inputs in eight bits, plain and with SmoothQuant, besides. What to look at: skill
from context less skill from memory, of one method against another, paired by item; and beside it the KL, since a method
that rounds better keeps more of everything. The share of massive entries of Q and K that are massive still says whether
the methods differ in what the paper says is the reason.

The paper compares three checkpoints of different third parties, with unlike bits, groups and calibration, one score a
task and no intervals; its released SmoothQuant recipe holds no quantisation at all, which would explain its bars of
1.00. Its facts are yes-or-no questions (half right by guessing), its context tasks long answers (never right by it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from studfinder.experiments.norms import lambda_at
from studfinder.experiments.quantize_preserved import Preserved
from studfinder.experiments.skill import FROM_CONTEXT, FROM_MEMORY, Skills
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, SCHEMES, ActivationScheme, Scheme, SmoothQuant, WithActivations, method_class
from studfinder.records import Cell, Chart, Claim, ClaimResult, Interval, Plot, Series, Table, point, scheme_named
from studfinder.records.config import option
from studfinder.studies import KL, ModelVariant, judged
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, NAMES, CalibratedConfig, Rounding


@dataclass(frozen=True, kw_only=True)
class FigureConfig(CalibratedConfig):
    """Which schemes and methods, judged by which tasks."""

    schemes: tuple[str, ...] = option(
        "w4-channel,w3-g64", help="Schemes by name; claims are judged in the first.", commas=True
    )
    methods: tuple[str, ...] = option("rtn,gptq,awq,smoothquant", help="Ways to round weights.", commas=True)
    inputs: str = option("int8", help="What inputs are rounded to, with weights of eight bits; empty for none.")
    context: str = option("lookup:4,8 passkey:128", help="Tasks that read their prompt, with spaces between.")
    memory: str = option("facts yes-no", help="Questions about facts, with spaces between.")
    items: int = option(200, help="Items of each.", least=1)
    prompts: int = option(12, help="Of our prompts, on which massive values are looked at.", least=1)


_AT = "the skill kept from context, {} less GPTQ, less the same of skill from memory"
_FIGURE = "figure 4, Llama3-8B, of GSM8K and AQuA over the best, read off: {}; on facts all lie between .95 and 1"
AWQ_CONTEXT = Claim(
    key="massive-values/awq-context",
    says="AWQ keeps what is read from context better than GPTQ, beyond what it keeps of memory.",
    decides=_AT.format("AWQ"),
    published=_FIGURE.format("AWQ .97 and .98, GPTQ .78 and .74"),
    paper_effect=0.17,
)
SMOOTH_CONTEXT = Claim(
    key="massive-values/smoothquant-context",
    says="SmoothQuant keeps what is read from context better than GPTQ, beyond what it keeps of memory.",
    decides=_AT.format("SmoothQuant"),
    published=_FIGURE.format("SmoothQuant 1 and 1 (as released it rounds nothing), GPTQ .78 and .74"),
    paper_effect=0.19,
)
GPTQ_CONTEXT = Claim(
    key="massive-values/gptq-context",
    says="GPTQ costs skill from context and little skill from memory.",
    decides="the skill kept from context under GPTQ less that from memory",
    kind="less",
    published=_FIGURE.format("GPTQ .78 and .74"),
    paper_effect=-0.18,
)
EXPERIMENT = Experiment(
    name="massive-values/quantization",
    paper="2502.01563",
    shows="figure 4",
    summary="At equal bits, blocks and calibration, which quantiser keeps what is read from context, which memory?",
    needs="about 40 minutes and 3 GB with smollm2 on two cores (estimated; plus a scan)",
    presets={"cpu": FigureConfig(), "paper": FigureConfig(calibration_windows=128)},
    claims=(AWQ_CONTEXT, SMOOTH_CONTEXT, GPTQ_CONTEXT),
    spread=True,
)
_NAIVE, _SMOOTH = "W8A8, rounding", "W8A8, SmoothQuant"


def run(bench: Bench, lm: LM) -> Outcome:
    """Every method in every scheme, and eight bits with rounded inputs."""
    own, rounding = bench.config, Rounding(bench, lm)
    for name in own.schemes:
        scheme_named(name)  # before anything is done for nothing
    sides = {FROM_CONTEXT: own.context.split(), FROM_MEMORY: own.memory.split()}
    measures = list(dict.fromkeys([*sides[FROM_CONTEXT], *sides[FROM_MEMORY]]))
    findings = replace(load_findings(bench, lm, prove=False), super_weights=())  # the figure asks nothing of them
    preserved = Preserved(findings, own.prompts, lambda_at(lm.anatomy.head_dim, 0.01))
    limits = {name.partition(":")[0]: own.items for name in measures}
    scored = rounding.scored(list(_variants(rounding)), measures, preserved, limits=limits)
    skills = Skills(scored, sides)
    note = f"Calibrated on {own.calibration_windows} windows of {own.length} tokens of {own.calibration}. {CAVEAT}"
    tables = [scored.scores_table("scores", note, bits="bits per weight", first="recipe")]
    notes = [
        f"no measure of {side} has room to fall, so context and memory are not compared." for side in skills.lacking
    ]
    chart = scored.chart("skill")
    if not skills.lacking:
        tables.insert(0, _table(skills, own.schemes))
        notes += [_says(skills, one.label) for one in scored.tried()]
        chart = _chart(skills)
    return Outcome(tables, [*notes, *scored.notes()], [chart], remarks=[CAVEAT], claims=_claims(skills, own))


def _label(method: str, scheme: str) -> str:
    return f"{scheme}, {NAMES.get(method, method)}"


def _variants(rounding: Rounding) -> Iterator[ModelVariant]:
    own = rounding.bench.config
    for name in own.schemes:
        for method in own.methods:
            options: dict[str, Any] = {"activations": None} if method == "smoothquant" else {}
            yield rounding.variant(
                _label(method, name),
                method_class(method)(scheme=rounding.scheme(scheme_named(name)), **options),
                family=name,
            )
    if own.inputs:
        # A static range, because a dynamic one of a whole call would depend on what else is in the batch.
        inputs = ActivationScheme(element=own.inputs, scope="tensor", range="static")
        weights: Scheme = SCHEMES["w8-tensor"]
        yield rounding.variant(_NAIVE, WithActivations(weights=RTN(scheme=weights), activations=inputs), family="W8A8")
        yield rounding.variant(_SMOOTH, SmoothQuant(scheme=weights, activations=inputs), family="W8A8")


# --- what is said of it ---------------------------------------------------------------------------------------------


def _table(skills: Skills, schemes: tuple[str, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    nearest = {**{name: _label("rtn", name) for name in schemes}, "W8A8": _NAIVE}
    labels = skills.scored.labels
    for one in skills.scored.tried():
        other = nearest[one.family]
        against = skills.apart(one.label, other) if other in labels and other != one.label else None
        kept = [skills.kept((1, one.label, side)) for side in (FROM_CONTEXT, FROM_MEMORY)]
        rows.append((one.label, skills.scored.change(KL, one.label), *kept, skills.apart(one.label), against))
    return Table(
        title="skill that is kept",
        columns=(
            "recipe",
            "KL, nats per token",
            "from context",
            "from memory",
            "context - memory",
            "less that of rounding to nearest",
        ),
        rows=tuple(rows),
        note="Skill: accuracy above chance over the original's, the mean over tasks. Context: "
        f"{', '.join(skills.tasks(FROM_CONTEXT))}; memory: {', '.join(skills.tasks(FROM_MEMORY))}. "
        "Context - memory: below 0, context lost more. "
        "Intervals: items resampled by task, alike for all recipes.",
    )


def _says(skills: Skills, label: str) -> str:
    apart = skills.apart(label)
    how = "loses context and memory alike, as far as these items show"
    if apart.high < 0 or apart.low > 0:
        how = f"loses more from {FROM_CONTEXT if apart.high < 0 else FROM_MEMORY}"
    return f"{label}: {how} (skill kept from context less that from memory {apart:+.2f})."


def _chart(skills: Skills) -> Chart:
    """What is kept of either skill, a row a recipe."""
    labels = tuple(one.label for one in skills.scored.tried())
    series = tuple(
        Series(name=f"from {side}", points=tuple(point(skills.kept((1, label, side))) for label in labels))
        for side in (FROM_CONTEXT, FROM_MEMORY)
    )
    return Chart(name="skill", plots=(Plot(kind="dots", rows=labels, series=series, x="skill kept", none=1.0),))


def _claims(skills: Skills, own: FigureConfig) -> list[ClaimResult]:
    """In the first scheme."""
    first = own.schemes[0]
    gptq, tasks = _label("gptq", first), [task for side in skills.sides for task in skills.tasks(side)]
    tried = [one.label for one in skills.scored.tried()]
    items = ", ".join(f"{len(skills.scored.items(skills.scored.original, task))} items of {task}" for task in tasks)
    found = []
    for claim, method in ((AWQ_CONTEXT, "awq"), (SMOOTH_CONTEXT, "smoothquant"), (GPTQ_CONTEXT, "")):
        other = _label(method, first) if method else gptq
        missing = [label for label in (other, gptq) if label not in tried]
        if missing or skills.lacking:
            why = f"{missing[0]} was not made" if missing else f"no measure of {skills.lacking[0]} has room to fall"
            found.append(judged(claim, None, why=why, cost="this experiment with the methods and tasks it begins with"))
            continue
        sides: list[Interval] = [
            skills.kept((1, other, side), *([(-1, gptq, side)] if method else []))
            for side in (FROM_CONTEXT, FROM_MEMORY)
        ]
        number = skills.apart(other, gptq if method else "")
        found.append(
            judged(
                claim,
                number,
                effect=sides[0],
                control=sides[1],
                items=f"{items}; {first}",
                cost=_cost(number, claim, own),
            )
        )
    return found


def _cost(number: Interval, claim: Claim, own: FigureConfig) -> str:
    """Half an interval shrinks with the root of the items."""
    paper = abs(claim.paper_effect or 0.1)
    times = max(1.0, ((number.high - number.low) / 2 / (paper / 2)) ** 2)
    return (
        f"--set items={int(own.items * times) + 1}, about {times:.1f} times this run, shows half of the paper's effect"
    )
