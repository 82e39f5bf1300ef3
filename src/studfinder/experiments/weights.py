"""The super weights that an experiment works on, and what they are held against.

They are found and proved once, by one scan that all experiments on a model share; or they come from a scan that is
named, which may have tested less (`studfinder scan MODEL --no-census --most 4 --pools 0`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from studfinder.edits import Selection, Weights, matched_controls, selected, top_fraction
from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, check_findings
from studfinder.records import Findings, SuperWeight
from studfinder.records.config import option
from studfinder.report.words import brief
from studfinder.studies.experiment import Bench, StudyConfig
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.scan import plan_scan, run_scan, scan_run


@dataclass(frozen=True, kw_only=True)
class SuperWeightConfig(StudyConfig):
    """Which super weights are meant."""

    findings: tuple[str, ...] = option(
        (),
        help="Scans to take super weights from, one a model: run folders (RUN#all: not only proven ones).",
        otherwise="that in ./runs, or a new one",
        commas=True,
        late=True,
    )
    most: int | None = option(None, help="At most so many, the largest effect first.", least=1, late=True)


def load_findings(bench: Bench, lm: LM, *, prove: bool = True) -> Findings:
    """The findings of a model just loaded; see `scan_of`."""
    findings, _ = scan_of(bench, lm, prove=prove)
    check_findings(lm, findings)
    return findings


def scan_of(bench: Bench, lm: LM, *, prove: bool = True) -> tuple[Findings, Path]:
    """A model's scan, and its folder.

    An earlier one with the same settings in ./runs is used, so that all experiments on a model share one. Otherwise a
    scan is made now: there, or inside the folder that --out names.
    """
    wanted = [ScanConfig(prove=how, progress=bench.progress) for how in dict.fromkeys((True, prove))]
    plans = [plan_scan(lm, config, cached_content_hash) for config in wanted]
    plan = next((one for one in plans if scan_run(one).finished()), plans[-1])  # one that proves holds all of the other
    root = bench.scans if scan_run(plan).finished() is None else Path("runs")
    command = f"studfinder scan {plan.model.id}"
    findings, folder = run_scan(plan, write=True, root=root, command=command)
    assert folder is not None
    return findings, folder


def super_weights_of(bench: Bench, lm: LM) -> tuple[tuple[SuperWeight, ...], Findings]:
    """The super weights that the settings mean, the one with the largest effect first (of those that were not tested,
    the largest score), and the findings that they are from.

    Raises:
        StudfinderError: there are none, or the findings that are named are not of this model.
    """
    chosen = selection_of(bench, lm)
    weights = sorted(chosen.weights, key=lambda one: (-one.effect.kl.value if one.effect else 0.0, -one.score))
    if not weights:
        none = f"no super weight is proven in {lm.source.id}" if chosen.which == "proven" else chosen.nothing
        raise StudfinderError(
            f"{none}, so there is nothing to take away",
            do="See studfinder scan for its candidates, or choose another model",
        )
    return tuple(weights[: getattr(bench.config, "most", None)]), chosen.findings


def selection_of(bench: Bench, lm: LM) -> Selection:
    """The super weights that the settings mean; there may be none. Raises StudfinderError where the findings that are
    named are not of this model."""
    given = getattr(bench.config, "findings", ())
    if not given:
        return Selection(load_findings(bench, lm))
    digest = cached_content_hash(lm)
    for one in map(selected, given):
        if isinstance(one, Selection) and one.findings.model.content_hash == digest:
            check_findings(lm, one.findings)
            return one
    raise StudfinderError(
        f"none of findings={','.join(given)} is of {lm.source.id}", do="Name a scan of it, or leave findings out"
    )


def named(weights: Sequence[SuperWeight]) -> str:
    """What tables call them; those that are not proven are said to be candidates."""
    return ", ".join(brief(one) + ("" if one.verdict.startswith("proven") else " (not proven)") for one in weights)


def unproven(weights: Sequence[SuperWeight]) -> str:
    """What stands in the way of a claim about them: that they are not proven; "" if all are."""
    few = sum(not one.verdict.startswith("proven") for one in weights)
    return f"{few} of these {len(weights)} super weights are candidates that are not proven" if few else ""


def controls_of(lm: LM, weights: Sequence[SuperWeight], findings: Findings) -> list[Weights]:
    """For each weight another one: the nearest in size in the same matrix, in no row or column of the weights there,
    so that it has no part in their spikes.

    Raises:
        StudfinderError: a matrix has no other rows or columns.
    """
    found: list[Weights] = []
    for weight in weights:
        writers = lm.anatomy.layers[weight.layer].writers
        ref = next(one for one in writers if (one.parameter, one.expert) == (weight.parameter, weight.expert))
        rows, cols = ref.view(lm.model.get_parameter(ref.parameter)).shape
        there = [one for one in weights if (one.parameter, one.expert) == (weight.parameter, weight.expert)]
        lines = chain.from_iterable(
            (*((one.row, col) for col in range(cols)), *((row, one.col) for row in range(rows))) for one in there
        )
        taken: set[Any] = {ref.index(*place) for place in lines}
        taken |= {one.entries[0] for one in found if one.parameter == weight.parameter}
        found += matched_controls(lm, weight, findings, count=1, exclude=taken)
    return found


def largest_others(lm: LM, weights: Sequence[SuperWeight], wanted: float) -> list[Weights]:
    """The largest weights of every matrix of the blocks, in all about as many as wanted but at least one of each; the
    super weights are left out."""
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    sizes = [p.numel() for n, p in lm.model.named_parameters() if n.startswith(blocks) and p.dim() >= 2]
    fraction = min(1.0, max(wanted, len(weights)) / sum(sizes))
    return top_fraction(lm, fraction, keep={(weight.parameter, weight.index) for weight in weights})


def count_of(targets: Sequence[Weights]) -> int:
    """How many weights these are."""
    return sum(len(target.entries) for target in targets)
