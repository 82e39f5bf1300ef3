"""What single numbers do: a weight, all of them, a neuron, a channel, each beside a control of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

from studfinder.edits import Edit, Weights, channel, matched_controls, neuron, top_fraction, zero
from studfinder.models import LM, matrix
from studfinder.records import Chart, Findings, SuperWeight
from studfinder.report.words import brief
from studfinder.studies import effects_plot, effects_table, nulled, swept
from studfinder.studies.experiment import Bench, Outcome
from studfinder.texts import encode, proof_text


def count_of(targets: Sequence[Weights]) -> int:
    """How many weights these are."""
    return sum(len(target.entries) for target in targets)


def add_units(
    outcome: Outcome,
    bench: Bench,
    lm: LM,
    weights: Sequence[SuperWeight],
    findings: Findings,
    others: Sequence[Weights],
) -> None:
    """Each edit by itself on the proof text: a table, a chart and a sentence."""
    named = _unit_edits(lm, weights, findings, others)
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


def _unit_edits(
    lm: LM, weights: Sequence[SuperWeight], findings: Findings, others: Sequence[Weights]
) -> list[tuple[str, tuple[Edit, ...]]]:
    taken = [weight.index for weight in weights]
    matched = [matched_controls(lm, w, findings, count=2, exclude=taken) for w in weights]
    named: list[tuple[str, tuple[Edit, ...]]] = []
    for weight, (size, contribution) in zip(weights, matched, strict=True):
        named.append((f"{brief(weight)} alone", zero(weight)))
        named.append(("  control: nearest in size", zero(size)))
        named.append(("  control: nearest in contribution", zero(contribution)))
    if len(weights) > 1:
        named.append(("all together", zero(weights)))
        named.append(("  control: their controls together", zero([pair[1] for pair in matched])))
    first = weights[0]
    writers = [ref.parameter for ref in lm.anatomy.layers[first.layer].writers]
    writer = first.expert if first.expert is not None else writers.index(first.parameter)
    row, col = _nearest(lm, first, writer, axis=1), _nearest(lm, first, writer, axis=0)
    named.append((f"neuron {first.col} of layer {first.layer}", zero(neuron(lm, first.layer, first.col, writer))))
    named.append((f"  control: neuron {col}", zero(neuron(lm, first.layer, col, writer))))
    named.append((f"channel {first.row} of layer {first.layer}", zero(channel(lm, first.layer, first.row, writer))))
    named.append((f"  control: channel {row}", zero(channel(lm, first.layer, row, writer))))
    # 7,000 weights are a millionth of Llama-7B's; on a small model the same share is far fewer.
    few = top_fraction(lm, 1e-6, keep={(weight.parameter, weight.index) for weight in weights})
    named.append((f"the {count_of(few):,} largest others", zero(few)))
    named.append((f"the {count_of(others):,} largest others", zero(others)))
    return named


def _nearest(lm: LM, weight: SuperWeight, writer: int, axis: int) -> int:
    """The other row (axis 1) or column (axis 0) of the matrix whose norm is nearest the super weight's own."""
    ref = lm.anatomy.layers[weight.layer].writers[writer]
    with matrix(lm, ref) as weight_CF:
        assert weight_CF is not None
        norms = weight_CF.float().norm(dim=axis)
    own = weight.row if axis == 1 else weight.col
    distance = (norms - norms[own]).abs()
    distance[own] = float("inf")
    return int(distance.argmin())
