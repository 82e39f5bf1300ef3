"""What single numbers do: a weight, all of them, a neuron, a channel, each beside a control of the same kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from studfinder.edits import Edit, Weights, channel, matched_controls, neuron, zero
from studfinder.experiments.weights import controls_of
from studfinder.measures import Effects
from studfinder.models import LM, matrix
from studfinder.records import Chart, Claim, ClaimResult, Findings, SuperWeight
from studfinder.report.words import brief
from studfinder.stats import ratio_interval
from studfinder.studies import cost_of, effects_plot, effects_table, judged, nulled, ratio, swept
from studfinder.studies.experiment import Bench, Outcome
from studfinder.texts import encode, proof_text

ONE = Claim(
    key="super-weight/one",
    says="Removing one weight wrecks the model (twice the perplexity and more); removing one like it does not.",
    decides="perplexity without it over perplexity without the weight nearest in size that shares no row or column",
    none=2.0,
    published="Llama-7B, WikiText-2: 5.67 to 1,211 without one weight",
    paper_effect=1211.11 / 5.67,
)


def add_units(
    outcome: Outcome,
    bench: Bench,
    lm: LM,
    weights: Sequence[SuperWeight],
    findings: Findings,
    others: Mapping[int, Sequence[Weights]],
) -> None:
    """Each edit by itself on the proof text: a table, a chart, a sentence and a claim.

    Args:
        others: the largest other weights, by how many they are.
    """
    named = _unit_edits(lm, weights, bench.config.singly, findings, others)
    labels = [label for label, _ in named]
    windows = encode(lm, proof_text())[0][: bench.config.windows]
    variants = [edits for _, edits in named]
    effects = swept(bench, lm, "one edit at a time", windows, variants, bench.progress)
    nulls = nulled(bench, lm, "one edit at a time", windows, variants, effects, bench.progress)
    note = "On our proof text; intervals over its windows. A control stands under what it controls for."
    outcome.tables.append(effects_table("one edit at a time", labels, effects, note, "set to zero", nulls))
    plot = effects_plot(labels, effects, "perplexity / original, proof text")
    outcome.charts.append(Chart(name="units", plots=(plot,)))
    moves = [label for place, label in enumerate(labels) if effects.kl_interval(place).low > 0.01]
    beaten, loud = ([m.strip() for m in moves if m.startswith(" ") == control] for control in (False, True))
    outcome.notes.append(
        f"taken alone on our proof text, these move the model by more than 0.01 nats per token: "
        f"{', '.join(beaten) or 'none'}; of the controls: {', '.join(loud) or 'none'}."
    )
    outcome.claims.insert(0, _one(effects, labels[0]))


def _one(effects: Effects, label: str) -> ClaimResult:
    """The first weight against the control that stands under it."""
    number = ratio_interval(effects.nll[0] - effects.nll[1], effects.tokens, exponential=True)
    return judged(
        ONE,
        number,
        effect=ratio(effects, 0),
        control=ratio(effects, 1),
        items=f"{number.n} pieces of our proof text",
        why=label,
        cost=cost_of(ONE, number, "--set windows=", number.n, 0.0),
    )


def _unit_edits(
    lm: LM,
    weights: Sequence[SuperWeight],
    singly: int,
    findings: Findings,
    others: Mapping[int, Sequence[Weights]],
) -> list[tuple[str, tuple[Edit, ...]]]:
    taken = [weight.index for weight in weights]
    sizes = controls_of(lm, weights, findings)
    named: list[tuple[str, tuple[Edit, ...]]] = []
    for weight, size in list(zip(weights, sizes, strict=True))[:singly]:
        contribution = matched_controls(lm, weight, findings, count=2, exclude=taken)[1]
        named.append((f"{brief(weight)} alone", zero(weight)))
        named.append(("  control: nearest in size", zero(size)))
        named.append(("  control: nearest in contribution", zero(contribution)))
    if len(weights) > 1:
        named.append((f"all {len(weights)} together", zero(weights)))
        named.append(("  control: their controls in size together", zero(sizes)))
    first = weights[0]
    writers = [ref.parameter for ref in lm.anatomy.layers[first.layer].writers]
    writer = first.expert if first.expert is not None else writers.index(first.parameter)
    row, col = nearest_line(lm, first, axis=1), nearest_line(lm, first, axis=0)
    named.append((f"neuron {first.col} of layer {first.layer}", zero(neuron(lm, first.layer, first.col, writer))))
    named.append((f"  control: neuron {col}", zero(neuron(lm, first.layer, col, writer))))
    named.append((f"channel {first.row} of layer {first.layer}", zero(channel(lm, first.layer, first.row, writer))))
    named.append((f"  control: channel {row}", zero(channel(lm, first.layer, row, writer))))
    return named + [(f"the {count:,} largest others", zero(some)) for count, some in others.items()]


def nearest_line(lm: LM, weight: SuperWeight, axis: int, but: Collection[int] = ()) -> int:
    """The row (axis 1) or column (axis 0) of the weight's matrix, another than its own and than those of `but`, whose
    norm is nearest to that of its own."""
    writers = lm.anatomy.layers[weight.layer].writers
    ref = next(one for one in writers if (one.parameter, one.expert) == (weight.parameter, weight.expert))
    with matrix(lm, ref) as weight_CF:
        assert weight_CF is not None
        norms = weight_CF.float().norm(dim=axis)
    own = weight.row if axis == 1 else weight.col
    distance = (norms - norms[own]).abs()
    distance[torch.tensor([own, *but])] = float("inf")
    return int(distance.argmin())
